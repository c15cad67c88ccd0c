package rotation

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
)

const (
	motoServer = "../../.cache/venv/bin/moto_server"
	pollEvery  = 5 * time.Second // the shortest that sevagent's configuration allows
	atLeast    = 5               // polls
	burst      = 8               // pushes that an agent sees to at once; one above ten would have to wait
)

// secretsManager is moto, with one secret.
type secretsManager struct {
	api *secretsmanager.Client
	env []string // for processes that use it
	id  string
}

func startSecretsManager(b *testing.B, m material) *secretsManager {
	b.Helper()
	if _, err := os.Stat(motoServer); err != nil {
		b.Skipf("needs %s, which 'make test-node' installs", motoServer)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(address)
	start(b, "moto_server", exec.Command(motoServer, "-H", "127.0.0.1", "-p", port))
	until(b, "moto", func() error {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			conn.Close()
		}
		return err
	})
	s := &secretsManager{
		api: secretsmanager.New(secretsmanager.Options{
			Region: "us-east-2", BaseEndpoint: aws.String("http://" + address),
			Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
				return aws.Credentials{AccessKeyID: "test", SecretAccessKey: "test"}, nil
			}),
		}),
		env: []string{
			"AWS_REGION=us-east-2", "AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test", "AWS_EC2_METADATA_DISABLED=true",
			"AWS_ENDPOINT_URL_SECRETS_MANAGER=http://" + address,
		},
		id: "rotation",
	}
	if _, err := s.api.CreateSecret(b.Context(), &secretsmanager.CreateSecretInput{Name: &s.id, SecretString: &m.secret}); err != nil {
		b.Fatal(err)
	}
	return s
}

func (s *secretsManager) put(b *testing.B, m material) {
	b.Helper()
	if _, err := s.api.PutSecretValue(b.Context(), &secretsmanager.PutSecretValueInput{SecretId: &s.id, SecretString: &m.secret}); err != nil {
		b.Fatal(err)
	}
}

// current is the version ID that is labelled AWSCURRENT.
func (s *secretsManager) current(ctx context.Context) (string, error) {
	out, err := s.api.DescribeSecret(ctx, &secretsmanager.DescribeSecretInput{SecretId: &s.id})
	if err != nil {
		return "", err
	}
	for id, labels := range out.VersionIdsToStages {
		if slices.Contains(labels, "AWSCURRENT") {
			return id, nil
		}
	}
	return "", errors.New("no version is current")
}

// poll publishes what has changed, as a peer with this strategy would, and tells when it has.
func (s *secretsManager) poll(ctx context.Context, versions []material, publish func(material) error, published chan<- time.Time) error {
	last := ""
	for {
		id, err := s.current(ctx)
		if err != nil {
			return err
		}
		if id != last {
			out, err := s.api.GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: &s.id, VersionId: &id})
			if err != nil {
				return err
			}
			var fields struct {
				Client string `json:"client_cert"`
			}
			if err := json.Unmarshal([]byte(*out.SecretString), &fields); err != nil {
				return err
			}
			i := slices.IndexFunc(versions, func(m material) bool { return string(m.files[0].content) == fields.Client })
			if err := publish(versions[i]); err != nil {
				return err
			}
			published <- time.Now()
			last = id
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pollEvery*8/10 + rand.N(pollEvery*4/10)): // ±20 %, as sevagent
		}
	}
}

// BenchmarkSecretToFiles is the time from a PutSecretValue that has been answered to switched files: with push, which is
// a POST /v1/refresh at that moment, and with a poll every 5 s ±20 %. Secrets Manager is moto.
func BenchmarkSecretToFiles(b *testing.B) {
	binary, trouble := buildAgent(b)
	if binary == "" {
		b.Skip(trouble)
	}
	versions := newMaterial(b, 4)

	b.Run("push", func(b *testing.B) {
		sm := startSecretsManager(b, versions[0])
		var took []time.Duration
		pushes := func() {
			a := startAgent(b, binary, fileSystem(b, "tmpfs"), sm.id, "24h", sm.env...)
			defer a.stop()
			until(b, "the first publication", a.published)
			for range burst {
				next := versions[(len(took)+1)%len(versions)]
				sm.put(b, next)
				began := time.Now()
				if _, err := a.refresh(); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(began))
				if err := a.shows(next); err != nil {
					b.Fatal(err)
				}
			}
		}
		for b.Loop() {
			pushes()
		}
		for len(took) < 3*burst {
			pushes()
		}
		b.ReportMetric(percentile(took, 50), "p50-ms")
		b.ReportMetric(percentile(took, 99), "p99-ms")
		b.ReportMetric(0, "ns/op")
	})

	// All wait for the same changes, each with a timer of its own.
	b.Run("poll", func(b *testing.B) {
		sm := startSecretsManager(b, versions[0])
		a := startAgent(b, binary, fileSystem(b, "tmpfs"), sm.id, pollEvery.String(), sm.env...)
		until(b, "the first publication", a.published)

		ctx, stop := context.WithCancel(b.Context())
		var wg sync.WaitGroup
		published := make([]chan time.Time, len(peers))
		for i, p := range peers {
			publish := p.start(b, fileSystem(b, "tmpfs"), false)
			published[i] = make(chan time.Time, 1)
			wg.Go(func() {
				if err := sm.poll(ctx, versions, publish, published[i]); err != nil && ctx.Err() == nil {
					b.Errorf("%s: %v", p.name, err)
				}
			})
			<-published[i] // the first version
		}
		defer wg.Wait()
		defer stop()

		took := make([][]time.Duration, len(peers)+1) // the agent's last
		rounds := 0
		round := func() {
			<-time.After(rand.N(pollEvery)) // a moment that knows nothing of anybody's timer
			before, err := os.Readlink(a.dir + "/..data")
			if err != nil {
				b.Fatal(err)
			}
			rounds++
			next := versions[rounds%len(versions)]
			sm.put(b, next)
			began := time.Now()
			var all sync.WaitGroup
			for i := range peers {
				all.Go(func() {
					select {
					case at := <-published[i]:
						took[i] = append(took[i], at.Sub(began))
					case <-ctx.Done():
					}
				})
			}
			// Without opening anything, for which the agent would wait.
			until(b, "the agent's poll", func() error {
				if now, err := os.Readlink(a.dir + "/..data"); err != nil || now == before {
					return errors.New("no new generation")
				}
				return nil
			})
			took[len(peers)] = append(took[len(peers)], time.Since(began))
			all.Wait()
			if err := a.shows(next); err != nil {
				b.Fatal(err)
			}
		}
		for b.Loop() {
			round()
		}
		for rounds < atLeast {
			round()
		}
		for i, p := range peers {
			b.ReportMetric(percentile(took[i], 50), p.name+"-p50-ms")
		}
		b.ReportMetric(percentile(took[len(peers)], 50), "sevagent-p50-ms")
		b.ReportMetric(0, "ns/op")
	})
}

//go:build node

package docker

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/internal/evidence"
	"sevagent/internal/sim"
	"sevagent/internal/sim/tsmfs"
)

// region is the agent's, and that of the simulated device.
const region = "us-east-2"

// withSocket and withAll are what containers mount: the directory of the socket, and the certificates too.
var (
	withSocket = []string{readOnly("/run/sevagent", "/run/sevagent")}
	withAll    = append([]string{readOnly(published, published)}, withSocket...)
)

// simulated is one device for all tests: its keys take long to make.
var simulated = sync.OnceValues(func() (*sim.PSP, error) {
	psp, err := sim.New(sim.DefaultOptions(time.Now()))
	if err == nil {
		err = psp.Save(work)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(work, "policy.yaml"), []byte("profile: aws-shared\nroots: roots.pem\n"), 0o644)
	}
	return psp, err
})

// startAttesting is startAgent with a simulated device, in mode enforce.
func startAttesting(t *testing.T, attestation, settings string) *agent {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("the simulated device needs /dev/fuse:", err)
	}
	psp, err := simulated()
	if err != nil {
		t.Fatal(err)
	}
	const tsm = "/run/tsm"
	if err := os.MkdirAll(tsm, 0o755); err != nil {
		t.Fatal(err)
	}
	mounted, err := tsmfs.Mount(tsm, psp)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mounted.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return configureAgent(t, fmt.Sprintf("transport: configfs, configfs: %s, policy: %s, %s", tsm, filepath.Join(work, "policy.yaml"), attestation), settings)
}

// verified is what sevctl says of evidence.
type verified struct {
	Nonce   string
	Binding evidence.Binding
	Caller  evidence.Caller
}

// verify has sevctl judge a document.
func verify(t *testing.T, document, nonce string) (v verified, err error) {
	t.Helper()
	cmd := exec.Command(filepath.Join(work, "sevctl"), "evidence", "verify", "-", "--output", "json", "--nonce", nonce, "--region", region,
		"--policy", filepath.Join(work, "policy.yaml"), "--allow-custom-roots")
	cmd.Stdin = strings.NewReader(document)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return v, fmt.Errorf("sevctl: %w: %s", err, stderr.String())
	}
	if err := json.Unmarshal(out, &v); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return v, nil
}

func newNonce() string {
	var nonce [32]byte
	rand.Read(nonce[:])
	return hex.EncodeToString(nonce[:])
}

// spki is the hash of a certificate's key.
func spki(t *testing.T, certificate string) string {
	t.Helper()
	block, _ := pem.Decode([]byte(certificate))
	if block == nil {
		t.Fatalf("not PEM: %q", certificate)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// ecs stands in for the ECS agent's introspection: it knows the tasks of containers.
type ecs struct{ tasks sync.Map }

func startECS(t *testing.T) *ecs {
	t.Helper()
	e := new(ecs)
	l, err := net.Listen("tcp", "127.0.0.1:51678")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arn, ok := e.tasks.Load(r.URL.Query().Get("dockerid"))
		if r.URL.Path != "/v1/tasks" || !ok {
			http.NotFound(w, r)
			return
		}
		fmt.Fprintf(w, `{"Arn":%q,"KnownStatus":"RUNNING"}`, arn)
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return e
}

// TestEvidence: containers get evidence by the mounted directory alone, which binds the certificate that they see, and
// names uid, container and task of who asked.
func TestEvidence(t *testing.T) {
	const arn = "arn:aws:ecs:us-east-2:111122223333:task/test/"
	startAttesting(t, "rate: 50, burst: 64", "")
	agent := startECS(t)
	tools := append([]string{readOnly(filepath.Join(work, "sevagent"), tool)}, withAll...)
	other := task + "0" // another task, which test/docker/run sweeps up as well
	documents := make(map[string]string)
	var last struct{ id, nonce string }
	for _, x := range []struct {
		name string
		args []string
		want evidence.Caller
	}{
		{"root", nil, evidence.Caller{TaskARN: arn + task}},
		{"a user, of another task", []string{"--user=1000:1000", "--cgroup-parent=/ecs/" + other}, evidence.Caller{UID: 1000, TaskARN: arn + other}},
		{"a task that the ECS agent contradicts", []string{"--user=7:7", "--cgroup-parent=/ecs/" + other}, evidence.Caller{UID: 7}},
	} {
		c := startContainer(t, image, append(x.args, tools...)...)
		x.want.ContainerID = c.id
		if agent.tasks.Store(c.id, x.want.TaskARN); x.want.TaskARN == "" {
			agent.tasks.Store(c.id, arn+task)
		}
		want := spki(t, c.ask("cat "+published+"/client.crt").Text)
		for _, way := range []string{"evidence", "tool"} {
			nonce := newNonce()
			r := c.ask(way + " " + nonce)
			if r.Refused != nil {
				t.Fatalf("%s, %s: refused: %+v", x.name, way, r.Refused)
			}
			v, err := verify(t, r.Text, nonce)
			if err != nil {
				t.Fatalf("%s, %s: %v", x.name, way, err)
			}
			if v.Nonce != "verified" || v.Binding.Kind != "client" || v.Binding.SPKISHA256.String() != want || v.Caller != x.want {
				t.Errorf("%s, %s: evidence is %+v, want caller %+v and key %s", x.name, way, v, x.want, want)
			}
			if _, err := verify(t, r.Text, newNonce()); err == nil {
				t.Errorf("%s, %s: another nonce is verified", x.name, way)
			}
			documents[c.id], last.id, last.nonce = r.Text, c.id, nonce
		}
	}
	// Nobody takes another's name.
	for id := range documents {
		if id == last.id {
			continue
		}
		forged := strings.ReplaceAll(documents[last.id], last.id, id)
		if _, err := verify(t, forged, last.nonce); err == nil || !strings.Contains(err.Error(), "report_data_mismatch") {
			t.Errorf("with another container's name: %v, want report_data_mismatch", err)
		}
	}
}

// TestFlood: a container that floods is told to wait, and meanwhile another has its evidence with the next report, and
// rotations.
func TestFlood(t *testing.T) {
	const pause = 4 * time.Second                      // between reports
	a := startAttesting(t, "rate: 0.25, burst: 2", "") // the gate and evidence.json use the burst up
	limit := unix.Rlimit{Cur: 8192, Max: 8192}         // LimitNOFILE= of sevagent.service
	if err := unix.Prlimit(a.cmd.Process.Pid, unix.RLIMIT_NOFILE, &limit, nil); err != nil {
		t.Fatal(err)
	}
	polite := startContainer(t, image, withAll...)
	polite.ask("read")
	greedy := startContainer(t, image, withSocket...)
	r := greedy.ask("flood")
	if r.Refused.Status != http.StatusTooManyRequests || r.Refused.RetryAfter < time.Second {
		t.Errorf("a flood is told %+v, want 429 and when to come again", *r.Refused)
	}
	nonce, began := newNonce(), time.Now()
	answer := polite.ask("evidence " + nonce)
	took := time.Since(began)
	if generation := a.rotate(); generation != polite.ask("load").Loaded.Generation {
		t.Error("another does not see a rotation")
	}
	t.Logf("another's evidence took %v; the flood had %s", took.Round(time.Millisecond), greedy.ask("calm").Text)
	if answer.Refused != nil {
		t.Fatalf("another is refused: %+v", *answer.Refused)
	}
	if took > pause+2*time.Second {
		t.Errorf("another waited %v, want no more than until the next report", took)
	}
	if _, err := verify(t, answer.Text, nonce); err != nil {
		t.Error(err)
	}
}

// TestRestart: containers go on through the mounts that they have while the agent is stopped, killed and started.
func TestRestart(t *testing.T) {
	a := startAttesting(t, "rate: 50, burst: 64", `owner: "1000:1000"`)
	c := startContainer(t, image, append([]string{"--user=1000:1000"}, withAll...)...)
	c.ask("read")
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		before := c.ask("load").Loaded
		a.stop(s)
		if r := c.ask("evidence " + newNonce()).Refused; r == nil || r.Code != "unreachable" {
			t.Errorf("%v: without an agent, evidence is refused with %+v, want that it cannot be reached", s, r)
		}
		if got := c.ask("load").Loaded; *got != *before {
			t.Errorf("%v: without an agent a container has %+v, want %+v", s, *got, *before)
		}
		a.start()
		if got := c.ask("load").Loaded; *got != *before {
			t.Errorf("%v: after a restart a container has %+v, want %+v", s, *got, *before)
		}
		for range 2 {
			want := loaded{a.rotate(), a.subject(), a.subject()}
			if got := c.ask("load").Loaded; *got != want {
				t.Errorf("%v: after a restart and a rotation a container has %+v, want %+v", s, *got, want)
			}
			nonce := newNonce()
			r := c.ask("evidence " + nonce)
			if r.Refused != nil {
				t.Fatalf("%v: evidence is refused: %+v", s, *r.Refused)
			}
			v, err := verify(t, r.Text, nonce)
			if err != nil {
				t.Fatal(err)
			}
			if want := spki(t, c.ask("cat "+published+"/client.crt").Text); v.Binding.SPKISHA256.String() != want || v.Caller.ContainerID != c.id {
				t.Errorf("%v: evidence is %+v, want key %s and container %s", s, v, want, c.id)
			}
		}
	}
	if s := c.ask("tally").Tally; s.Bad != 0 || s.Loads == 0 {
		t.Errorf("of %d loads %d were bad: %s", s.Loads, s.Bad, s.First)
	}
}

package agent

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"sevagent/internal/evidence"
	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/internal/sim/simaws"
)

// metadata serves a simulated instance's metadata to the SDK. The region is configured, so that only the instance is
// left to learn; "" leaves it to the metadata service.
func metadata(t *testing.T, h http.Handler, region string) {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	home := t.TempDir()
	for name, value := range map[string]string{
		"AWS_EC2_METADATA_SERVICE_ENDPOINT": server.URL, "AWS_EC2_METADATA_DISABLED": "", "AWS_REGION": region,
		"AWS_DEFAULT_REGION": "", "AWS_PROFILE": "", "AWS_CONFIG_FILE": filepath.Join(home, "config"),
		"AWS_SHARED_CREDENTIALS_FILE": filepath.Join(home, "credentials"),
	} {
		t.Setenv(name, value)
	}
}

// instance is what the agent makes of simaws.DefaultInstance.
var instance = evidence.Instance{ID: "i-0123456789abcdef0", Region: "us-east-2", AccountID: "111122223333"}

func TestInstance(t *testing.T) {
	odd := simaws.DefaultInstance()
	odd.ID = "mi-0123456789abcdef0"
	for _, c := range []struct {
		name   string
		served simaws.Instance
		region string // configured
		want   evidence.Instance
	}{
		{"with the region", simaws.DefaultInstance(), "", instance},
		{"an ID that evidence cannot hold", odd, "", evidence.Instance{}},
		{"not asked for", simaws.DefaultInstance(), "us-east-2", evidence.Instance{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			imds := &simaws.IMDS{Instance: c.served}
			metadata(t, imds, c.region)
			cloud := new(cloud)
			region, _, err := cloud.find(t.Context())
			if err != nil || region != "us-east-2" {
				t.Errorf("the region is %q, %v, want us-east-2", region, err)
			}
			if got := cloud.instance(); got != c.want {
				t.Errorf("the instance is %+v, want %+v", got, c.want)
			}
			if n := imds.V1Requests(); n != 0 {
				t.Errorf("%d requests of IMDSv1, want none", n)
			}
		})
	}
}

// TestIdentify: with a region of its own the agent learns the instance beside all else, from a service that comes up
// late.
func TestIdentify(t *testing.T) {
	imds := &simaws.IMDS{Instance: simaws.DefaultInstance()}
	first := true
	metadata(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if first {
			first = false
			w.WriteHeader(http.StatusForbidden)
			return
		}
		imds.ServeHTTP(w, r)
	}), "us-east-2")
	cloud := new(cloud)
	cloud.identify(t.Context(), slog.New(slog.DiscardHandler))
	if got := cloud.instance(); got != instance {
		t.Errorf("the instance is %+v, want %+v", got, instance)
	}
}

// TestEvidenceNamesTheInstance: in what it is asked for, in what it publishes, and in the status; and nothing where the
// node has no metadata service, which keeps no gate closed.
func TestEvidenceNamesTheInstance(t *testing.T) {
	for _, c := range []struct {
		name string
		want evidence.Instance
	}{{"with a metadata service", instance}, {"without", evidence.Instance{}}} {
		t.Run(c.name, func(t *testing.T) {
			a, _ := simulatedAgent(t, sim.DefaultOptions(time.Now()))
			if c.want != (evidence.Instance{}) {
				a.attestation.cloud.identity.Store(&c.want)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- a.attestation.worker.Run(ctx) }()
			defer func() { cancel(); <-done }()

			must.Do(t, a.attestation.passGate(t.Context()), "pass the gate")
			claims := evidence.Claims{
				Purpose: evidence.PurposeClient, Nonce: make([]byte, 16), Caller: evidence.HostCaller(7),
				// not the caller's to say
				Instance: evidence.Instance{ID: "i-ffffffff", Region: "eu-west-1", AccountID: "000000000000"},
			}
			doc, _, err := a.attestation.evidence(t.Context(), claims)
			must.Do(t, err, "get evidence")
			published := must.Get(a.attestation.publishedEvidence(t.Context(), evidence.BindClient, [32]byte{1}))(t,
				"get evidence to publish")
			own := must.Get(evidence.Parse(published))(t, "parse the published evidence")
			if doc.Instance != c.want || own.Instance != c.want {
				t.Errorf("evidence names %+v, what is published %+v, want %+v", doc.Instance, own.Instance, c.want)
			}
			if got := a.attestation.status(time.Now()).InstanceID; got != c.want.ID {
				t.Errorf("status names %q, want %q", got, c.want.ID)
			}
		})
	}
}

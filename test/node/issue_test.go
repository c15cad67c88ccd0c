//go:build node

package node

import (
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"sevagent/internal/must"
	"sevagent/internal/sim/simaws"
	"sevagent/internal/sim/simca"
	"sevagent/test/lab"
)

// issuing is an agent whose certificate a simulated Private CA issues for a key of its own. It is killed, not stopped.
type issuing struct {
	*lab.Agent
	t         *testing.T
	dir, mtls string
	env       []string
	authority *simaws.PrivateCA
}

func newIssuing(t *testing.T) *issuing {
	t.Helper()
	i := simaws.DefaultInstance()
	authority := &simaws.PrivateCA{Region: i.Region, AccountID: i.AccountID}
	authority.SetCA(must.Get(simca.New("Test CA", time.Now()))(t, "make a CA"))
	pca, imds := httptest.NewServer(authority), httptest.NewServer(&simaws.IMDS{Instance: i})
	t.Cleanup(pca.Close)
	t.Cleanup(imds.Close)
	dir := t.TempDir()
	n := &issuing{t: t, dir: dir, mtls: filepath.Join(dir, "mtls"), authority: authority, env: lab.Environment(
		"AWS_ENDPOINT_URL_ACM_PCA="+pca.URL, "AWS_EC2_METADATA_SERVICE_ENDPOINT="+imds.URL)}
	must.Do(t, os.Mkdir(n.mtls, 0o755), "make a directory")
	must.Do(t, syscall.Mount("tmpfs", n.mtls, "tmpfs", 0, "size=256k"), "mount a small tmpfs")
	t.Cleanup(func() { must.Do(t, syscall.Unmount(n.mtls, syscall.MNT_DETACH), "unmount it") })
	lab.Write(t, filepath.Join(dir, "config.yaml"), fmt.Sprintf(`attestation: {mode: "off"}
mtls: {path: %s, issue: [{name: node, from: acm-pca, gives: [client], ca: %q}]}
listen: {socket: %s/s.sock, tcp: ""}
`, n.mtls, authority.ARN(), dir))
	return n
}

func (n *issuing) start() {
	n.t.Helper()
	cmd := exec.Command(lab.Bin("sevagent"), "run", "--config", n.dir)
	cmd.Env = n.env
	n.Agent = lab.StartAgent(n.t, filepath.Join(n.dir, "s.sock"), cmd)
}

// issued checks how many certificates were issued in all, and returns the one that is published.
func (n *issuing) issued(want int) string {
	n.t.Helper()
	n.UntilReady()
	if got := n.authority.Issued(); got != want {
		n.t.Errorf("%d certificates were issued, want %d", got, want)
	}
	return lab.Read(n.t, filepath.Join(n.mtls, "client.crt"))
}

// TestIssuingKilled: an agent that is killed between its order and the publication wastes that certificate and no other;
// one that is killed later orders nothing.
func TestIssuingKilled(t *testing.T) {
	n := newIssuing(t)
	n.authority.SetDelay(time.Hour)
	n.start()
	lab.Until(t, "the order", func() error {
		if n.authority.Calls()["GetCertificate"] == 0 {
			return fmt.Errorf("the calls are %v", n.authority.Calls())
		}
		return nil
	})
	n.Stop(t, syscall.SIGKILL)
	n.authority.SetDelay(0)
	n.start()
	published := n.issued(2)
	n.Stop(t, syscall.SIGKILL)
	n.start()
	if n.issued(2) != published {
		t.Error("another certificate is published after the restart")
	}
}

// TestIssuingFullDirectory: while there is no room, the last good certificate stays, and the one that is issued waits.
func TestIssuingFullDirectory(t *testing.T) {
	n := newIssuing(t)
	n.start()
	before := n.issued(1)
	filler := filepath.Join(n.mtls, ".filler")
	f := must.Get(os.Create(filler))(t, "make a file")
	for size := 64 << 10; size > 0; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	must.Do(t, f.Close(), "close the file")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err := n.Client.Renew(ctx, "node")
	if err == nil {
		t.Error("a certificate was published without room for it")
	}
	if n.issued(2) != before {
		t.Error("the last good certificate is gone")
	}
	must.Do(t, os.Remove(filler), "make room")
	lab.Until(t, "the new certificate", func() error {
		if _, err := n.Refresh(); err != nil {
			return err
		}
		if n.issued(2) == before {
			return fmt.Errorf("the old one is published")
		}
		return nil
	})
}

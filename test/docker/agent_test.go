//go:build node

package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"sevagent/internal/mtls"
	"sevagent/internal/readers"
	"sevagent/internal/reload"
	"sevagent/internal/sim/simca"
)

const socket = "/run/sevagent/sevagent.sock"

// agent is a real sevagent, without attestation, that publishes one secret to a tmpfs of its own.
type agent struct {
	t       *testing.T
	secret  string // file
	version int
	client  *http.Client
}

// status is what the tests need of `sevagent status --json`.
type status struct {
	MTLS    *mtls.Status    `json:"mtls"`
	Readers *readers.Status `json:"readers"`
	Reload  *reload.Status  `json:"reload"`
}

// startAgent runs the agent until the test ends. It has published when startAgent returns.
func startAgent(t *testing.T, settings string) *agent {
	t.Helper()
	if err := syscall.Mount("tmpfs", published, "tmpfs", syscall.MS_NODEV|syscall.MS_NOSUID|syscall.MS_NOEXEC, "size=16m,mode=0755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(published, 0); err != nil {
			t.Error("unmount:", err)
		}
	})
	a := &agent{t: t, secret: filepath.Join(t.TempDir(), "secret.json"), client: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}}
	t.Cleanup(a.client.CloseIdleConnections)
	config := fmt.Sprintf("attestation: {mode: \"off\"}\nmtls: {secrets: [%q], poll_interval: 24h, %s}\n", "file://"+a.secret, settings)
	if err := os.WriteFile("/etc/sevagent/config.yaml", []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := a.renew(); err != nil {
		t.Fatal(err)
	}

	cmd := exec.Command(filepath.Join(work, "sevagent"), "run")
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Error("the agent ended:", err)
		}
		if t.Failed() {
			t.Logf("sevagent printed:\n%s", log.Bytes())
		}
	})
	until(t, "the first publication", func() error {
		resp, err := a.client.Get("http://sevagent/readyz")
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("readyz: %s", resp.Status)
		}
		return nil
	})
	return a
}

// renew makes another version of the secret, of another authority, so that nothing of it fits to another version.
func (a *agent) renew() error {
	a.version++
	ca, err := simca.New(fmt.Sprintf("CA %d", a.version), time.Now())
	if err != nil {
		return err
	}
	text, err := ca.ClientSecret(a.subject(), time.Now())
	if err != nil {
		return err
	}
	temporary := a.secret + ".new"
	if err := os.WriteFile(temporary, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, a.secret)
}

// subject is that of the client's certificate in the newest version.
func (a *agent) subject() string { return fmt.Sprintf("client-%d", a.version) }

// publish has another version published, and returns its generation.
func (a *agent) publish() (generation string, err error) {
	if err := a.renew(); err != nil {
		return "", err
	}
	resp, err := a.client.Post("http://sevagent/v1/refresh", "", nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	var change struct{ Generation string }
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("refresh: %s: %s", resp.Status, body)
	}
	err = json.Unmarshal(body, &change)
	return change.Generation, err
}

// rotate is publish, for a test that goes on with what is published.
func (a *agent) rotate() (generation string) {
	a.t.Helper()
	generation, err := a.publish()
	if err != nil {
		a.t.Fatal(err)
	}
	return generation
}

// status asks with the command.
func (a *agent) status() (s status) {
	a.t.Helper()
	cmd := exec.Command(filepath.Join(work, "sevagent"), "status", "--json")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &s)
	}
	if err != nil {
		a.t.Fatalf("sevagent status: %v\n%s", err, out)
	}
	return s
}

// metric returns what a sample, a name with its labels, has on the default address.
func (a *agent) metric(sample string) float64 {
	a.t.Helper()
	resp, err := http.Get("http://127.0.0.1:9180/metrics")
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(sample) + ` (\S+)$`).FindSubmatch(text)
	if found == nil {
		a.t.Fatalf("there is no sample %s", sample)
	}
	value, err := strconv.ParseFloat(string(found[1]), 64)
	if err != nil {
		a.t.Fatal(err)
	}
	return value
}

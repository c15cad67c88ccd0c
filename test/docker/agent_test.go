//go:build node

package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
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

	"sevagent/client"
	"sevagent/internal/sim/simca"
)

const socket = "/run/sevagent/sevagent.sock"

// agent is a real sevagent that publishes one secret to a tmpfs of its own.
type agent struct {
	t       *testing.T
	secret  string // file
	version int
	client  *http.Client

	cmd *exec.Cmd // nil while it is stopped
	log bytes.Buffer
}

// startAgent runs the agent without attestation until the test ends. It has published when startAgent returns.
func startAgent(t *testing.T, settings string) *agent {
	t.Helper()
	return configureAgent(t, `mode: "off"`, settings)
}

// configureAgent is startAgent with the settings of attestation and of mtls.
func configureAgent(t *testing.T, attestation, settings string) *agent {
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
		DialContext: func(ctx context.Context, _, _ string) (conn net.Conn, err error) {
			poll(5*time.Second, func() error { // in a flood, more wait to be accepted than may
				if conn, err = new(net.Dialer).DialContext(ctx, "unix", socket); errors.Is(err, syscall.EAGAIN) {
					return err
				}
				return nil
			})
			return conn, err
		},
	}}}
	t.Cleanup(a.client.CloseIdleConnections)
	config := fmt.Sprintf("attestation: {%s}\nmtls: {secrets: [%q], poll_interval: 24h, %s}\n", attestation, "file://"+a.secret, settings)
	if err := os.WriteFile("/etc/sevagent/config.yaml", []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := a.renew(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if a.cmd != nil {
			a.stop(syscall.SIGTERM)
		}
		if t.Failed() {
			t.Logf("sevagent printed:\n%s", a.log.Bytes())
		}
	})
	a.start()
	return a
}

// start returns when the agent is ready.
func (a *agent) start() {
	a.t.Helper()
	cmd := exec.Command(filepath.Join(work, "sevagent"), "run")
	cmd.Env = append(os.Environ(), "AWS_REGION="+region)
	cmd.Stderr = &a.log
	if err := cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	a.cmd = cmd
	until(a.t, "the first publication", func() error {
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
}

// stop returns when the agent has ended.
func (a *agent) stop(s syscall.Signal) {
	a.t.Helper()
	a.cmd.Process.Signal(s)
	if err := a.cmd.Wait(); err != nil && s != syscall.SIGKILL {
		a.t.Error("the agent ended:", err)
	}
	a.cmd = nil
	a.client.CloseIdleConnections()
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
func (a *agent) status() (s client.Status) {
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

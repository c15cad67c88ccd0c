//go:build node

// Package node tests the unmodified binaries, with their default paths, among real peers. test/node/run prepares the
// namespaces that it runs in.
package node

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sevagent/internal/sim/simca"
)

// Paths of a node, the defaults of the product.
const (
	configDir  = "/etc/sevagent"
	ecsConfig  = "/etc/ecs/ecs.config"
	published  = "/etc/ecs/mtls"
	socket     = "/run/sevagent/sevagent.sock"
	devNode    = "/dev/sev-guest"
	tsm        = "/sys/kernel/config/tsm/report"
	secretName = "node/mtls"
)

var repo = os.Getenv("SEVAGENT_REPO")

func bin(name string) string { return filepath.Join(repo, "bin", name) }

// machine is one run of the test machine: metadata, Secrets Manager and the simulated device.
type machine struct {
	t       *testing.T
	moto    string // its address
	dir     string // of the device's root
	env     []string
	ca      *simca.CA
	agent   *exec.Cmd
	log     *bytes.Buffer
	waitErr chan error
}

// newMachine starts the peers. mount says whether configfs-tsm is there, node whether /dev/sev-guest is.
func newMachine(t *testing.T, mount, node bool) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir()}
	for _, dir := range []string{configDir, published, "/run/sevagent", "/etc/ecs"} {
		clearDir(t, dir)
	}
	if node {
		if err := syscall.Mknod(devNode, syscall.S_IFCHR|0o600, 1<<8|3); err != nil { // opens as /dev/null does
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(devNode) })
	}
	m.start("ec2-metadata-mock", filepath.Join(repo, ".cache/bin/ec2-metadata-mock"), "-n", "169.254.169.254", "-p", "80", "--imdsv2", "-c", m.metadata())
	m.moto = freePort(t)
	_, port, _ := net.SplitHostPort(m.moto)
	m.start("moto_server", filepath.Join(repo, ".cache/venv/bin/moto_server"), "-H", "127.0.0.1", "-p", port)
	args := []string{"device", "--dir", m.dir, "--socket", m.deviceSocket()}
	if mount {
		args = append(args, "--configfs", tsm)
	}
	m.start("sevsim", bin("sevsim"), args...)
	m.until("metadata service", func() error { return dial("169.254.169.254:80") })
	m.until("moto", func() error { return dial(m.moto) })
	m.until("simulated device", func() error {
		if _, err := os.Stat(m.deviceSocket()); err != nil {
			return err
		}
		if mount {
			if err := os.Mkdir(filepath.Join(tsm, "probe"), 0o700); err != nil {
				return err
			}
			defer os.Remove(filepath.Join(tsm, "probe"))
			_, err := os.Stat(filepath.Join(tsm, "probe/outblob"))
			return err
		}
		return nil
	})
	// The product gets nothing from the environment but where Secrets Manager is.
	m.env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "AWS_ENDPOINT_URL_SECRETS_MANAGER=http://" + m.moto}
	var err error
	if m.ca, err = simca.New("Node test CA", time.Now()); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *machine) deviceSocket() string { return filepath.Join(m.dir, "device.sock") }

// metadata is a configuration of ec2-metadata-mock for an m6a.large in us-east-2.
func (m *machine) metadata() string {
	file := filepath.Join(m.t.TempDir(), "metadata.json")
	write(m.t, file, `{"dynamic": {"values": {"instance-identity-document": {
	  "accountId": "111122223333", "architecture": "x86_64", "availabilityZone": "us-east-2a", "imageId": "ami-0123456789abcdef0",
	  "instanceId": "i-0123456789abcdef0", "instanceType": "m6a.large", "pendingTime": "2026-01-01T00:00:00Z",
	  "privateIp": "10.0.0.10", "region": "us-east-2", "version": "2017-09-30"}}},
	 "metadata": {"values": {"placement-region": "us-east-2", "instance-id": "i-0123456789abcdef0"}}}`)
	return file
}

// start runs a peer until the test ends, and shows its output if the test fails.
func (m *machine) start(name, path string, args ...string) *exec.Cmd {
	m.t.Helper()
	var output bytes.Buffer
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		m.t.Fatalf("start %s: %v", name, err)
	}
	m.t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			cmd.Process.Kill()
			<-done
		}
		if m.t.Failed() {
			m.t.Logf("%s printed:\n%s", name, tail(output.String()))
		}
	})
	return cmd
}

// startAgent runs the unmodified agent, its ioctls diverted to the simulated device.
func (m *machine) startAgent() {
	m.t.Helper()
	m.log = new(bytes.Buffer)
	m.agent = exec.Command(bin("sevsim"), "exec", "--device", m.deviceSocket(), "--", bin("sevagent"), "run")
	m.agent.Env, m.agent.Stdout, m.agent.Stderr = m.env, m.log, m.log
	if err := m.agent.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.waitErr = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan<- error) { done <- cmd.Wait() }(m.agent, m.waitErr)
	m.t.Cleanup(func() { m.stopAgent() })
}

// stopAgent asks the agent to stop and tells how long that took.
func (m *machine) stopAgent() time.Duration {
	if m.agent == nil {
		return 0
	}
	began := time.Now()
	m.agent.Process.Signal(syscall.SIGTERM)
	select {
	case <-m.waitErr:
	case <-time.After(10 * time.Second):
		m.t.Error("the agent did not stop within ten seconds")
		m.agent.Process.Kill()
		<-m.waitErr
	}
	m.agent = nil
	if m.t.Failed() {
		m.t.Logf("the agent's log:\n%s", tail(m.log.String()))
	}
	return time.Since(began)
}

// configure writes the operator's configuration: the simulator's roots, and a rate that tests can live with.
func (m *machine) configure(more string) {
	write(m.t, filepath.Join(configDir, "config.yaml"), fmt.Sprintf("attestation: {policy: %s/policy.yaml, rate: 50, burst: 64}\n%s", m.dir, more))
}

// run runs one of the product's binaries to its end.
func (m *machine) run(name string, args ...string) (stdout, stderr string, status int) {
	m.t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(bin(name), args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = m.env, &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		m.t.Fatalf("run %s: %v", name, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// must is run for what has to succeed.
func (m *machine) must(name string, args ...string) string {
	m.t.Helper()
	out, errs, status := m.run(name, args...)
	if status != 0 {
		m.t.Fatalf("%s %s: exit status %d\n%s%s", name, strings.Join(args, " "), status, out, errs)
	}
	return out
}

// aws runs the real aws CLI against moto.
func (m *machine) aws(args ...string) string {
	m.t.Helper()
	cmd := exec.Command(filepath.Join(repo, ".cache/venv/bin/aws"), append([]string{"--endpoint-url", "http://" + m.moto, "--region", "us-east-2"}, args...)...)
	cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test", "AWS_PAGER=", "AWS_CONFIG_FILE=/dev/null", "AWS_EC2_METADATA_DISABLED=true")
	out, err := cmd.CombinedOutput()
	if err != nil {
		m.t.Fatalf("aws %s: %v\n%s", args[1], err, out)
	}
	return string(out)
}

// secret is a new client secret of the test's CA.
func (m *machine) secret(name string) string {
	m.t.Helper()
	text, err := m.ca.ClientSecret(name, time.Now())
	if err != nil {
		m.t.Fatal(err)
	}
	return text
}

// bootstrap runs the real bootstrap, and in systemd's place starts the agent once it has been configured.
func (m *machine) bootstrap() string {
	m.t.Helper()
	var output bytes.Buffer
	cmd := exec.Command(bin("bootstrap"), "--cluster", "test", "--mtls-secret", secretName, "--services", "none", "--timeout", "30s")
	cmd.Env, cmd.Stdout, cmd.Stderr = m.env, &output, &output
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.until("bootstrap's configuration", func() error {
		_, err := os.Stat(filepath.Join(configDir, "conf.d/50-bootstrap.yaml"))
		return err
	})
	m.startAgent()
	if err := cmd.Wait(); err != nil {
		m.t.Fatalf("bootstrap: %v\n%s", err, output.String())
	}
	return output.String()
}

// until waits for a condition, a minute at most: Python starts slowly on a busy machine.
func (m *machine) until(what string, check func() error) {
	m.t.Helper()
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	m.t.Fatalf("%s: %v", what, err)
}

// health asks the agent over loopback TCP.
func (m *machine) health() (status int, checks string) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:9180/readyz", nil)
	if err != nil {
		m.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	var body json.RawMessage
	json.NewDecoder(resp.Body).Decode(&body)
	return resp.StatusCode, string(body)
}

func dial(address string) error {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err == nil {
		conn.Close()
	}
	return err
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func clearDir(t *testing.T, dir string) {
	t.Helper()
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if filepath.Join(dir, e.Name()) == published {
			continue // a mount point
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
}

func tail(text string) string { return text[max(0, len(text)-6000):] }

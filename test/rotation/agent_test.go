package rotation

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
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// agent is a real sevagent, without attestation, that publishes one secret.
type agent struct {
	dir    string // published
	pid    int
	client *http.Client
	stop   func() // before the test ends
}

// buildAgent returns the path of the daemon; empty, and why, where it cannot be built.
func buildAgent(tb testing.TB) (path, trouble string) {
	if dir := os.Getenv("SEVAGENT_ROTATION_DIR"); dir != "" {
		return filepath.Join(dir, "sevagent"), ""
	}
	path = filepath.Join(tb.TempDir(), "sevagent")
	build := exec.Command("go", "build", "-o", path, "sevagent/cmd/sevagent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Sprintf("build the agent: %v\n%s", err, out)
	}
	return path, ""
}

// startAgent runs the agent until the test ends. It does not wait for the first publication.
func startAgent(tb testing.TB, binary, dir, secret, pollInterval string, env ...string) *agent {
	tb.Helper()
	work, err := os.MkdirTemp("", "sa") // sockets have short paths
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(work) })
	socket, config := filepath.Join(work, "s"), filepath.Join(work, "config.yaml")
	text := fmt.Sprintf(`
attestation: {mode: "off", cache: %[1]q}
mtls: {path: %[2]q, secrets: [%[3]q], poll_interval: %[4]s, owner: "%[5]d:%[6]d"}
listen: {socket: %[7]q, tcp: ""}
`, work, dir, secret, pollInterval, os.Getuid(), os.Getgid(), socket)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(binary, "run", "--config", config)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent"}, env...)
	stop := start(tb, "sevagent", cmd)
	a := &agent{dir: dir, pid: cmd.Process.Pid, stop: stop, client: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}}
	tb.Cleanup(a.client.CloseIdleConnections)
	until(tb, "the agent's socket", func() error {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
		}
		return err
	})
	return a
}

// refresh has the agent look at the secret and returns the generation that is current then.
func (a *agent) refresh() (generation string, err error) {
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
	return change.Generation, json.Unmarshal(body, &change)
}

// start runs a process until the test ends or stop is called, and shows what it printed if the test fails.
func start(tb testing.TB, name string, cmd *exec.Cmd) (stop func()) {
	tb.Helper()
	var output bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &output
	}
	cmd.Stderr = &output
	if err := cmd.Start(); err != nil {
		tb.Fatalf("start %s: %v", name, err)
	}
	stop = sync.OnceFunc(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
		cmd.Wait()
		kill.Stop()
	})
	tb.Cleanup(func() {
		stop()
		if text := output.String(); tb.Failed() {
			tb.Logf("%s printed:\n%s", name, text[max(0, len(text)-4000):])
		}
	})
	return stop
}

// until waits for a condition, a minute at most.
func until(tb testing.TB, what string, check func() error) {
	tb.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); ; <-tick.C {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("%s: %v", what, err)
		}
	}
}

// published reports that there is no generation yet.
func (a *agent) published() error {
	_, err := resolve(a.dir)
	return err
}

// shows reports which file of the published directory is not that of a version.
func (a *agent) shows(m material) error {
	for _, f := range m.files {
		if f.name == "manifest.json" {
			continue
		}
		got, err := os.ReadFile(filepath.Join(a.dir, f.name))
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(got)) != strings.TrimSpace(string(f.content)) {
			return fmt.Errorf("%s is not that of the current version", f.name)
		}
	}
	return nil
}

package main

import (
	"bufio"
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"sevagent/internal/cli/clitest"
	"sevagent/internal/must"
	"sevagent/internal/sim/simscript"
)

var bin string // where the programs are

func TestMain(m *testing.M) {
	os.Exit(simscript.RunWith(m, &bin, "../sevsim", "../sevagent", "../bootstrap"))
}

func TestHelpFits(t *testing.T) { clitest.HelpFits(t, run) }

// simulator is sevsim with a command, until it is stopped.
type simulator struct {
	t     *testing.T
	lines *bufio.Scanner
	seen  strings.Builder
}

func start(t *testing.T, args ...string) *simulator {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // only a test that hangs takes so long
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "sevsim"), args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	s := &simulator{t: t, lines: bufio.NewScanner(must.Get(cmd.StdoutPipe())(t, "make a pipe"))}
	must.Do(t, cmd.Start(), "start sevsim")
	t.Cleanup(func() {
		cancel()
		for s.lines.Scan() {
		}
		cmd.Wait()
	})
	return s
}

// until reads what it prints until a line matches, and returns what the parentheses in the pattern enclose.
func (s *simulator) until(pattern string) string {
	s.t.Helper()
	re := regexp.MustCompile(pattern)
	for s.lines.Scan() {
		s.seen.WriteString(s.lines.Text() + "\n")
		if m := re.FindStringSubmatch(s.lines.Text()); m != nil {
			return m[len(m)-1]
		}
	}
	s.t.Fatalf("sevsim has ended, and has printed nothing like %q:\n%s", pattern, s.seen.String())
	return ""
}

// shell runs a script in which the programs are found.
func shell(t *testing.T, script string) (output string, status int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", script)
	cmd.Env = []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	out, err := cmd.CombinedOutput()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return string(out), e.ExitCode()
	}
	must.Do(t, err, "run %s", script)
	return string(out), 0
}

func refused(t *testing.T, url string) bool {
	t.Helper()
	resp, err := http.Get(url)
	if err == nil {
		resp.Body.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// Bootstrap's signal sees what it sees on a node: an ECS agent whose port is closed until it has registered the node.
func TestSignalOfANode(t *testing.T) {
	t.Run("that registers", func(t *testing.T) {
		node := start(t, "node", "--register-after", "500ms", "--region", "cn-north-1")
		file := node.until(`: \. (\S+/environment); bootstrap signal`)
		out, status := shell(t, ". "+file+"; bootstrap signal")
		const registered = "registration arn:aws-cn:ecs:cn-north-1:111122223333:container-instance/demo/"
		if status != 0 || !strings.Contains(out, registered) {
			t.Errorf("bootstrap signal: exit status %d: %s", status, out)
		}
		node.until("CloudFormation has a signal for NodesReady: SUCCESS, i-0123456789abcdef0$")
	})
	t.Run("that does not", func(t *testing.T) {
		node := start(t, "node", "--register-after", "1h", "--instance-id", "i-0fedcba9876543210")
		file := node.until(`: \. (\S+/environment); bootstrap signal`)
		url, _ := shell(t, ". "+file+"; echo $SEVAGENT_BOOTSTRAP_INTROSPECTION")
		if !refused(t, strings.TrimSpace(url)) {
			t.Error("the ECS agent listens and has not registered the node")
		}
		out, status := shell(t, ". "+file+"; bootstrap signal --timeout 300ms")
		if status == 0 || !strings.Contains(out, "connection refused") {
			t.Errorf("bootstrap signal: exit status %d: %s", status, out)
		}
		node.until("CloudFormation has a signal for NodesReady: FAILURE, 76543210:registration: ")
	})
}

// A person can have metadata that is late, off or silent.
func TestMetadata(t *testing.T) {
	late := start(t, "metadata", "--after", "1h")
	if url := late.until("METADATA_SERVICE_ENDPOINT=(.*)$"); !refused(t, url) {
		t.Errorf("%s answers before its time", url)
	}
	for _, c := range []struct {
		name  string
		flags []string
		token string // the status of a request for a token, as curl has it
	}{
		{"up", nil, "200"},
		{"late, and up now", []string{"--after", "1ms"}, "200"},
		{"off", []string{"--fault", "403"}, "403"},
		{"credentials are late", []string{"--fault", "404", "--fault-below", "meta-data/iam/"}, "200"},
		{"up again", []string{"--fault", "503", "--fault-for", "1ns"}, "200"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, append([]string{"metadata"}, c.flags...)...)
			url := s.until("METADATA_SERVICE_ENDPOINT=(.*)$")
			s.until("^ready$")
			req := must.Get(http.NewRequest(http.MethodPut, url+"/latest/api/token", nil))(t, "make a request")
			req.Header.Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "60")
			resp := must.Get(http.DefaultClient.Do(req))(t, "ask for a token")
			resp.Body.Close()
			if !strings.HasPrefix(resp.Status, c.token) {
				t.Errorf("a token has status %s, want %s", resp.Status, c.token)
			}
		})
	}
	for _, args := range []string{"--fault 200", "--fault x", "--set a"} {
		if out, status := shell(t, "sevsim metadata "+args); status != 2 {
			t.Errorf("sevsim metadata %s: exit status %d, want 2: %s", args, status, out)
		}
	}
}

package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// installed builds the program and lays it out as the package does, with a script in the place of sevagentd that tells
// how it was started.
func installed(t *testing.T, place string) (program string) {
	t.Helper()
	root := t.TempDir()
	program = filepath.Join(root, "bin/sevagent")
	build := exec.Command("go", "build", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	if place == "" {
		return program
	}
	place = filepath.Join(root, place)
	if err := os.MkdirAll(filepath.Dir(place), 0o755); err != nil {
		t.Fatal(err)
	}
	const script = "#!/bin/sh\necho \"pid $$ env $FRONT_TEST args $*\"\nexit 7\n"
	if err := os.WriteFile(place, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return program
}

func TestBecomesTheWholeProgram(t *testing.T) {
	for _, place := range []string{"libexec/sevagent/sevagentd", "bin/sevagentd"} {
		program := installed(t, place)
		for _, args := range [][]string{{"run", "--config", "/etc/x"}, {"--socket", "/s", "status", "--json"}, {"version"}, {"--help"}, {"help", "evidence"}, {"evidense"}, {"--wrong"}, {}, {"refresh"},
			{"evidence", "--help"}, {"evidence", "--nonce", "xyz"}, {"evidence", "more"}, {"evidence", "--bind", "peer"}, {"evidence", "--socket", "/nowhere"}} {
			cmd := exec.Command(program, args...)
			cmd.Env = append(os.Environ(), "FRONT_TEST=kept")
			out, err := cmd.CombinedOutput()
			want := fmt.Sprintf("pid %d env kept args %s\n", cmd.Process.Pid, strings.Join(args, " "))
			if string(out) != want || cmd.ProcessState.ExitCode() != 7 {
				t.Errorf("%s %q: %q, %v; want %q and exit status 7", place, args, out, err, want)
			}
		}
	}
}

func TestWholeProgramMissing(t *testing.T) {
	cmd := exec.Command(installed(t, ""), "run")
	out, _ := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 1 || strings.Count(string(out), "\n") != 1 || !strings.Contains(string(out), "libexec/sevagent/sevagentd") || !strings.Contains(string(out), "reinstall") {
		t.Errorf("exit status %d, %q", cmd.ProcessState.ExitCode(), out)
	}
}

// TestAsksAlone has no sevagentd to become, and an agent that answers.
func TestAsksAlone(t *testing.T) {
	program := installed(t, "")
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", r.Method, r.URL.Path)
	})}
	go server.Serve(l)
	defer server.Close()
	config := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(config, []byte("listen: {socket: "+strconv.Quote(socket)+"}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for command, want := range map[string]string{"evidence": "POST /v1/evidence"} {
		for _, flags := range [][]string{{"--socket", socket}, {"--config", config}} {
			for _, args := range [][]string{append([]string{command}, flags...), append(flags[:2:2], command)} {
				if out, err := exec.Command(program, args...).CombinedOutput(); err != nil || string(out) != want {
					t.Errorf("%q: %q, %v; want %q", args, out, err, want)
				}
			}
		}
	}
	file := filepath.Join(t.TempDir(), "evidence.json")
	if out, err := exec.Command(program, "evidence", "--socket", socket, "-o", file, "--nonce", strings.Repeat("ab", 16), "--bind", "client").CombinedOutput(); err != nil || len(out) != 0 {
		t.Errorf("into a file: %q, %v", out, err)
	}
	if content, err := os.ReadFile(file); err != nil || string(content) != "POST /v1/evidence" {
		t.Errorf("the file holds %q, %v", content, err)
	}
}

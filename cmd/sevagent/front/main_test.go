package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sevagent/client"
	"sevagent/internal/evidence"
)

// TestSame holds to what other packages say the names that this program does not link them for.
func TestSame(t *testing.T) {
	if bindNone != evidence.BindNone || bindClient != evidence.BindClient || bindServer != evidence.BindServer || minNonce != evidence.MinNonce || maxNonce != evidence.MaxNonce {
		t.Error("package evidence has other constants")
	}
	if defaultSocket != client.DefaultSocket {
		t.Errorf("defaultSocket is %s, and package client's %s", defaultSocket, client.DefaultSocket)
	}
}

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
			{"evidence", "--help"}, {"evidence", "--nonce"}, {"evidence", "-o=x"}, {"evidence", "--"}, {"evidence", "evidence"}, {"evidence", "--nonce", "xyz"}, {"evidence", "more"}, {"evidence", "--bind", "peer"}, {"evidence", "--socket", "/nowhere"}} {
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
	var body []byte // of the last request
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ = io.ReadAll(r.Body)
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
			for _, args := range [][]string{append([]string{command}, flags...), append(flags[:2:2], command), {command, flags[0] + "=" + flags[1]}} {
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
	if want := `{"bind":"client","nonce":"q6urq6urq6urq6urq6urqw"}`; string(body) != want {
		t.Errorf("asked %s, want %s", body, want)
	}
	if content, err := os.ReadFile(file); err != nil || string(content) != "POST /v1/evidence" {
		t.Errorf("the file holds %q, %v", content, err)
	}
}

// serveRaw answers each connection to a socket by do.
func serveRaw(t *testing.T, do func(net.Conn)) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "sf") // sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); os.RemoveAll(dir) })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { do(conn); conn.Close() }()
		}
	}()
	return socket
}

// TestLeavesTheRest has agents that answer otherwise than by evidence: then it is the whole program's turn.
func TestLeavesTheRest(t *testing.T) {
	program := installed(t, "bin/sevagentd")
	for name, text := range map[string]string{
		"closes at once": "", "truncated": "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}", "problem": "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}",
		"oversized": "HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n{}", "garbage": "220 mail.example.com ESMTP\r\n",
		"chunked": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
	} {
		socket := serveRaw(t, func(conn net.Conn) {
			if name != "closes at once" {
				http.ReadRequest(bufio.NewReader(conn))
			}
			io.WriteString(conn, text)
		})
		file := filepath.Join(t.TempDir(), "evidence.json")
		cmd := exec.Command(program, "evidence", "--socket", socket, "-o", file)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != 7 || !strings.Contains(string(out), "args evidence --socket") {
			t.Errorf("%s: %q, %v; want the whole program", name, out, err)
		}
		if _, err := os.Stat(file); err == nil {
			t.Errorf("%s: the file was written", name)
		}
	}
}

// TestInterrupted waits for an agent that does not answer, and is told to stop.
func TestInterrupted(t *testing.T) {
	program := installed(t, "bin/sevagentd")
	asked := make(chan struct{}, 1)
	done := make(chan struct{})
	defer close(done)
	socket := serveRaw(t, func(conn net.Conn) {
		asked <- struct{}{}
		<-done
	})
	cmd := exec.Command(program, "evidence", "--socket", socket)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-asked
	cmd.Process.Signal(syscall.SIGINT)
	timer := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	defer timer.Stop()
	cmd.Wait()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGINT || out.Len() > 0 {
		t.Errorf("ended with %v and %q, want by SIGINT and without a word", cmd.ProcessState, out.String())
	}
}

func TestAnswer(t *testing.T) {
	long := strings.Repeat("x", maxAnswer)
	for _, c := range []struct {
		name, text, want string
		ok               bool
	}{
		{"plain", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}", "{}", true},
		{"no reason, odd case", "HTTP/1.1 200\r\ncontent-LENGTH:2\r\n\r\n{}", "{}", true},
		{"more behind it", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}{}", "{}", true},
		{"as long as may be", fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", maxAnswer, long), long, true},
		{"too long", fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%sx", maxAnswer+1, long), "", false},
		{"empty", "", "", false},
		{"head only", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", "", false},
		{"truncated", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}", "", false},
		{"no length", "HTTP/1.1 200 OK\r\n\r\n{}", "", false},
		{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}", "", false},
		{"negative", "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}", "", false},
		{"signed", "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\n{}", "", false},
		{"huge", "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n{}", "", false},
		{"chunked", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", "", false},
		{"compressed", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Encoding: gzip\r\n\r\n{}", "", false},
		{"another status", "HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\n{}", "", false},
		{"refused", "HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\n{}", "", false},
		{"interim", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "", false},
		{"another version", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", "", false},
		{"bare line feeds", "HTTP/1.1 200 OK\nContent-Length: 2\n\n{}", "", false},
		{"folded", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n X: y\r\n\r\n{}", "", false},
		{"a blank in a name", "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\n{}", "", false},
		{"long line", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 5000) + "\r\nContent-Length: 2\r\n\r\n{}", "", false},
		{"endless header", "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", 4000) + "Content-Length: 2\r\n\r\n{}", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := answer(strings.NewReader(c.text))
			if ok != c.ok || ok && string(got) != c.want {
				t.Errorf("got %.40q, %v; want %.40q, %v", got, ok, c.want, c.ok)
			}
		})
	}
}

// FuzzAnswer holds answer to net/http: what the one accepts, the other reads the same.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"))
	f.Add([]byte("HTTP/1.1 200\r\ncontent-length:\t2 \r\nX:\r\n\r\n{}{}"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, ok := answer(bytes.NewReader(text))
		if !ok {
			return
		}
		resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(text)), nil)
		if err != nil {
			t.Fatalf("net/http does not read it: %v", err)
		}
		want, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK || !bytes.Equal(got, want) {
			t.Errorf("read %q, and net/http reads %q, %v, status %d", got, want, err, resp.StatusCode)
		}
	})
}

package spiffe

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/mtls/source"
	"sevagent/internal/must"
)

// listen makes a socket as the SPIRE agent does.
func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	l := must.Get(net.Listen("unix", path))(t, "listen on a socket")
	t.Cleanup(func() { l.Close() })
	must.Do(t, os.Chmod(path, 0o777), "make the socket everybody's")
	return l
}

// TestSocket is about a stream over a real socket.
func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "api.sock")
	changed := make(chan struct{}, 1)
	s := New(Config{
		Name: "issue/node", Socket: path, Gives: []string{"client"}, Log: slog.New(slog.DiscardHandler),
		Changed: func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		},
	})
	if _, err := s.connect(t.Context()); source.KindOf(err) != source.Transient || !errors.Is(err, fs.ErrNotExist) ||
		!strings.Contains(err.Error(), "BindReadOnlyPaths="+filepath.Dir(path)) {
		t.Errorf("no socket: %v, want a transient error with advice", err)
	}

	l := listen(t, path)
	o := issue(t, mtlstest.NewCA(t, "trust domain", nil), testID, time.Hour)
	server := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(
		func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/grpc")
			w.Write(frame(encodeOffers(o)))
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})}
	server.Protocols.SetUnencryptedHTTP2(true)
	go server.Serve(l)
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	<-changed
	if _, err := s.Describe(ctx); err != nil {
		t.Errorf("describe what was pushed: %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run ended with %v, want nil", err)
	}

	server.Close() // removes the socket
	before := identityOf(path)
	listen(t, path)
	if after := identityOf(path); before != (identity{}) || after == before {
		t.Errorf("the identity is %+v without a socket, and then %+v", before, after)
	}
	must.Do(t, os.Remove(path), "remove the socket")
	must.Do(t, os.WriteFile(path, nil, 0o600), "make a file")
	if _, err := s.connect(t.Context()); source.KindOf(err) != source.Persistent ||
		!strings.Contains(err.Error(), "is not a socket") {
		t.Errorf("a file: %v, want a persistent error", err)
	}
}

// TestGone is about a socket that nobody listens on any more.
func TestGone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "api.sock")
	l := listen(t, path)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	s := New(Config{Socket: path, Log: slog.New(slog.DiscardHandler)})
	if _, err := s.connect(t.Context()); source.KindOf(err) != source.Transient ||
		!strings.Contains(err.Error(), "see whether the SPIRE agent runs") {
		t.Errorf("nobody listens: %v, want a transient error with advice", err)
	}
}

// TestImpostor is about those who may put a socket where the SPIRE agent's should be.
func TestImpostor(t *testing.T) {
	const stranger = 4242
	for _, test := range []struct {
		name   string
		root   bool
		change func(t *testing.T, dir string) error // dir has the socket's directory public, and a link to it
		config Config
		want   string
	}{
		{name: "as it should be"},
		{name: "a directory that others may write to",
			change: func(t *testing.T, dir string) error { return os.Chmod(filepath.Join(dir, "public"), 0o777) },
			want:   "public may be written to by others"},
		{name: "one that the group may write to",
			change: func(t *testing.T, dir string) error { return os.Chmod(dir, 0o775) },
			want:   "may be written to by others"},
		{name: "one like /tmp",
			change: func(t *testing.T, dir string) error { return os.Chmod(dir, 0o777|fs.ModeSticky) }},
		{name: "a stranger's directory", root: true,
			change: func(t *testing.T, dir string) error { return os.Chown(filepath.Join(dir, "public"), stranger, 0) },
			want:   "public belongs to the user 4242"},
		{name: "a stranger's socket", root: true,
			change: func(t *testing.T, dir string) error {
				return os.Chown(filepath.Join(dir, "public/api.sock"), stranger, 0)
			},
			want: "api.sock belongs to the user 4242"},
		{name: "a stranger's link", root: true,
			change: func(t *testing.T, dir string) error { return os.Lchown(filepath.Join(dir, "link"), stranger, 0) },
			want:   "link belongs to the user 4242"},
		{name: "an owner that is configured", root: true, config: Config{Owner: stranger},
			change: func(t *testing.T, dir string) error { return os.Chown(filepath.Join(dir, "public"), stranger, 0) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.root && os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			dir := t.TempDir()
			must.Do(t, os.Mkdir(filepath.Join(dir, "public"), 0o755), "make the socket's directory")
			must.Do(t, os.Symlink("public", filepath.Join(dir, "link")), "link to it")
			listen(t, filepath.Join(dir, "public/api.sock"))
			if test.change != nil {
				must.Do(t, test.change(t, dir), "change the directory")
			}
			test.config.Socket = filepath.Join(dir, "link/api.sock")
			test.config.Log = slog.New(slog.DiscardHandler)
			conn, err := New(test.config).connect(t.Context())
			if err == nil {
				conn.Close()
			}
			if test.want == "" && err != nil || test.want != "" && (source.KindOf(err) != source.Persistent ||
				!strings.Contains(err.Error(), test.want)) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

// TestPeer has a user who is not believed listen on a socket that could not be better.
func TestPeer(t *testing.T) {
	const variable = "SEVAGENT_TEST_LISTEN"
	if path := os.Getenv(variable); path != "" { // as that user
		listen(t, path)
		os.Stdout.WriteString("ready\n")
		io.Copy(io.Discard, os.Stdin)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	const stranger = 4242
	dir := t.TempDir()
	must.Do(t, os.Chmod(filepath.Dir(dir), 0o755), "let any user reach the directory")
	path := filepath.Join(dir, "api.sock")
	program := filepath.Join(dir, "program")
	must.Do(t, os.WriteFile(program, must.Get(os.ReadFile("/proc/self/exe"))(t, "read this program"), 0o755), "copy it")
	must.Do(t, os.Chown(dir, stranger, 0), "give it to the user")

	cmd := exec.Command(program, "-test.run=^TestPeer$")
	cmd.Env = []string{variable + "=" + path}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stranger, Gid: stranger}}
	in := must.Get(cmd.StdinPipe())(t, "make a pipe")
	out := must.Get(cmd.StdoutPipe())(t, "make a pipe")
	must.Do(t, cmd.Start(), "start the user's process")
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatalf("the user's process does not listen: %v", err)
	}
	for _, name := range []string{dir, path} {
		must.Do(t, os.Chown(name, 0, 0), "give it to root")
	}
	for owner, want := range map[uint32]string{0: "of the user 4242 listens there", stranger: ""} {
		s := New(Config{Socket: path, Owner: owner, Log: slog.New(slog.DiscardHandler)})
		conn, err := s.connect(t.Context())
		if err == nil {
			conn.Close()
		}
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("with the owner %d: %v, want %q", owner, err, want)
		}
	}
}

func TestOnHost(t *testing.T) {
	if !onHost(int32(os.Getpid())) {
		t.Error("a process in our own cgroup and namespace is not on the host")
	}
	if onHost(0) {
		t.Error("a process that is not visible is on the host")
	}
	for status, want := range map[string]bool{
		"Name:\tspire-agent\nNSpid:\t17\nUid:\t0\n":    false,
		"Name:\tspire-agent\nNSpid:\t17\t1\nUid:\t0\n": true,
		"Name:\tspire-agent\n":                         true,
		"":                                             true,
	} {
		if got := nested(status); got != want {
			t.Errorf("nested(%q) = %v, want %v", status, got, want)
		}
	}
}

package spiffe

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
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

//go:build node

package rotation

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
)

// A reader is this binary, run again in a mount namespace of its own, where it sees the published directory at
// containerDir only, read-only. It ends when its standard input does, and then prints its tally.
const (
	roleVariable      = "SEVAGENT_ROTATION_ROLE"
	publishedVariable = "SEVAGENT_ROTATION_PUBLISHED"
	containerVariable = "SEVAGENT_ROTATION_CONTAINER"
	anchorsVariable   = "SEVAGENT_ROTATION_ANCHORS" // for the server: a file with all clients' trust anchors
	serverVariable    = "SEVAGENT_ROTATION_SERVER"  // for curl: the server's address
)

// pause is between two loads, up to twice as long; gap between two opens of a load. With more loads, the agent would
// wait longer for a quiet moment, up to half a second at each rotation.
const (
	pause = 50 * time.Millisecond
	gap   = 6 * time.Millisecond
)

func TestMain(m *testing.M) {
	role := os.Getenv(roleVariable)
	if role == "" {
		os.Exit(m.Run())
	}
	if err := reader(role); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", role, err)
		os.Exit(1)
	}
}

// enter makes what is published appear in the container, and disappear from where the agent writes it.
func enter(published, container string) error {
	if err := syscall.Mount(published, container, "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if err := syscall.Mount("", container, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("make read-only: %w", err)
	}
	if err := syscall.Unmount(published, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", published, err)
	}
	return nil
}

func reader(role string) error {
	dir := os.Getenv(containerVariable)
	if err := enter(os.Getenv(publishedVariable), dir); err != nil {
		return err
	}
	if role == "python" || role == "python-path" {
		python, err := exec.LookPath("python3")
		if err != nil {
			return err
		}
		return syscall.Exec(python, []string{"python3", "reader.py", role, dir}, os.Environ())
	}

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	var t tally
	var err error
	switch role {
	case "go":
		loop(ctx, &t, func() error { return loadResolved(dir, rand.N(2*gap)) })
	case "go-slow": // many rotations pass between two opens
		loop(ctx, &t, func() error { return loadResolved(dir, 50*time.Millisecond) })
	case "go-one-file":
		loop(ctx, &t, func() error { return loadOne(dir) })
	case "go-path": // not by the contract
		loop(ctx, &t, func() error { return load(dir, func() { time.Sleep(gap) }) })
	case "curl":
		loop(ctx, &t, func() error { return fetch(ctx, dir, os.Getenv(serverVariable)) })
	case "server":
		err = serve(ctx, &t, dir, os.Getenv(anchorsVariable))
	case "watch-file":
		err = watchFile(ctx, &t, dir)
	case "watch-dir":
		err = watchDir(ctx, &t, dir)
	default:
		err = errors.New("no such role")
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(t)
}

func loop(ctx context.Context, t *tally, load func() error) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(rand.N(2 * pause)):
		}
		if err := load(); ctx.Err() == nil { // curl may have been cut off
			t.note(err)
		}
	}
}

func loadResolved(dir string, wait time.Duration) error {
	gen, err := resolve(dir)
	if err != nil {
		return err
	}
	return load(gen, func() { time.Sleep(wait) })
}

// fetch is one request by curl with the files of one generation. (Given client.pem by path, curl opens it twice.)
func fetch(ctx context.Context, dir, address string) error {
	gen, err := resolve(dir)
	if err != nil {
		return err
	}
	pem, ca := filepath.Join(gen, "client.pem"), filepath.Join(gen, "ca.crt")
	out, err := exec.CommandContext(ctx, "curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "20",
		"--cert", pem, "--cacert", ca, "https://"+address+"/").CombinedOutput()
	if err == nil && string(out) != "hello" {
		err = errors.New("unexpected answer")
	}
	if err == nil {
		return nil
	}
	for _, name := range []string{pem, ca} {
		if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return fmt.Errorf("curl: %w: %s", err, out)
}

// serve is a server that reads its files at each handshake, and that asks for clients' certificates. It accepts clients
// of any version: one that has loaded its files just before a rotation is in order.
func serve(ctx context.Context, t *tally, dir, anchors string) error {
	text, err := os.ReadFile(anchors)
	if err != nil {
		return err
	}
	clients := x509.NewCertPool()
	if !clients.AppendCertsFromPEM(text) {
		return errors.New("no trust anchors")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	results := make(chan error)
	config := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c, err := serverConfig(dir, clients)
		results <- err
		return c, err
	}}
	server := &http.Server{
		TLSConfig: config,
		ErrorLog:  log.New(os.Stderr, "", 0),
		Handler:   http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }),
	}
	done := make(chan error, 1)
	go func() { done <- server.ServeTLS(l, "", "") }()
	fmt.Println(l.Addr())
	for {
		select {
		case err := <-results:
			t.note(err)
		case <-ctx.Done():
			server.Close()
			return nil
		case err := <-done:
			return err
		}
	}
}

func serverConfig(dir string, clients *x509.CertPool) (*tls.Config, error) {
	gen, err := resolve(dir)
	if err != nil {
		return nil, err
	}
	var content [3][]byte
	for i, name := range []string{"server.crt", "server.key", "ca.crt"} {
		if content[i], err = os.ReadFile(filepath.Join(gen, name)); err != nil {
			return nil, err
		}
	}
	if err := fits(content[0], content[1], content[2], x509.ExtKeyUsageServerAuth); err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(content[0], content[1])
	return &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients, SessionTicketsDisabled: true,
	}, err
}

// notice loads the generation that is current, and prints its name when it is another one than last.
func notice(t *tally, dir string, last *string) {
	gen, err := resolve(dir)
	if err == nil {
		if gen == *last {
			return
		}
		err = load(gen, func() {})
	}
	t.note(err)
	*last = gen
	fmt.Println(filepath.Base(gen))
}

// watchFile watches one file by its path, as controller-runtime's certwatcher does: handleEvent there.
func watchFile(ctx context.Context, t *tally, dir string) error {
	return watch(ctx, t, dir, filepath.Join(dir, "..data/client.crt"), func(w *fsnotify.Watcher, e fsnotify.Event) (bool, error) {
		switch {
		case e.Has(fsnotify.Write), e.Has(fsnotify.Create):
			return true, nil
		case e.Has(fsnotify.Chmod), e.Has(fsnotify.Remove):
			return true, w.Add(e.Name) // it may be another file by now
		}
		return false, nil
	})
}

// watchDir watches the directory for a new ..data, as Envoy does.
func watchDir(ctx context.Context, t *tally, dir string) error {
	return watch(ctx, t, dir, dir, func(_ *fsnotify.Watcher, e fsnotify.Event) (bool, error) {
		return filepath.Base(e.Name) == "..data" && e.Has(fsnotify.Create), nil
	})
}

func watch(ctx context.Context, t *tally, dir, path string, on func(*fsnotify.Watcher, fsnotify.Event) (bool, error)) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Add(path); err != nil {
		return err
	}
	last := ""
	notice(t, dir, &last)
	for {
		select {
		case e := <-w.Events:
			look, err := on(w, e)
			if err != nil {
				return fmt.Errorf("watch %s after %s: %w", path, e, err)
			}
			if look {
				notice(t, dir, &last)
			}
		case err := <-w.Errors:
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

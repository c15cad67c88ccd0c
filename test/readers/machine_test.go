//go:build node

package readers

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sevagent/internal/sim/simca"
)

const (
	publishedDir = "/etc/ecs/mtls"
	consumerDir  = publishedDir + "/web"
	secretFile   = "/run/secret.json"
	agentSocket  = "/run/sevagent/sevagent.sock"
	dockerSocket = "/run/docker.sock" // /var/run is a link
	reloadLabel  = "io.sevagent.reload"
)

// machine is the node: a real agent, its secret, a server for the clients among the readers, and Docker.
type machine struct {
	t       *testing.T
	work    string
	client  *http.Client // of the agent
	cas     [2]*simca.CA // one of them issues a version, in turn
	peers   *simca.CA    // whom the readers talk to
	n       int          // version of the secret
	orders  atomic.Pointer[tls.Config]
	refused atomic.Pointer[string] // the first handshake that failed at the server
	docker  docker
}

func newMachine(t *testing.T, snippets ...string) *machine {
	t.Helper()
	m := &machine{t: t, work: "/run/readers"} // for every user, unlike t.TempDir
	if err := os.Mkdir(m.work, 0o755); err != nil {
		t.Fatal(err)
	}
	for i, ca := range []**simca.CA{&m.cas[0], &m.cas[1], &m.peers} {
		var err error
		if *ca, err = simca.New(fmt.Sprintf("CA %d", i), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	m.serveOrders()
	m.docker.serve(t)

	m.write("/etc/sevagent/config.yaml", `
attestation: {mode: "off"}
mtls: {secrets: ["file://`+secretFile+`"], poll_interval: 24h}
listen: {tcp: ""}
`)
	for i, text := range append(snippets, "mtls: {reload_splay: 1s}\n") {
		m.write(fmt.Sprintf("/etc/sevagent/conf.d/%d0-test.yaml", i+1), text)
	}
	m.put(false)
	m.run("sevagent", exec.Command(filepath.Join(os.Getenv("SEVAGENT_READERS_DIR"), "bin/sevagent"), "run"))
	m.client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", agentSocket)
	}}}
	t.Cleanup(m.client.CloseIdleConnections)
	m.until("the agent", func() error { return errors.Join(m.refresh(), readable(publishedDir), readable(consumerDir)) })
	return m
}

func readable(dir string) error {
	_, err := os.ReadFile(filepath.Join(dir, "server.pem"))
	return err
}

func (m *machine) write(path, text string) {
	m.t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) issue(ca *simca.CA, name string) simca.Leaf {
	m.t.Helper()
	leaf, err := ca.IssueFrom(simca.Template{
		Name: name, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(0, 0, 90),
		DNSNames: []string{"orders.internal", "web.internal"},
		Usages:   []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return leaf
}

// name is the common name of the leaves of the present version.
func (m *machine) name() string { return fmt.Sprintf("version-%d", m.n) }

func (m *machine) ca() *simca.CA { return m.cas[m.n%2] }

// put makes the next version. Its leaves come from the one CA or the other. Its anchors are that CA and the one of the
// peers, or if it is to be alone, that one only.
func (m *machine) put(alone bool) {
	m.t.Helper()
	m.n++
	client, server := m.issue(m.ca(), m.name()), m.issue(m.ca(), m.name())
	anchors := m.ca().PEM()
	if !alone {
		anchors += m.peers.PEM()
	}
	text, err := json.Marshal(map[string]string{
		"client_cert": client.Cert, "client_key": client.Key, "ca_cert": anchors, "server_cert": server.Cert, "server_key": server.Key,
	})
	if err != nil {
		m.t.Fatal(err)
	}
	m.write(secretFile, string(text))
}

// refresh has the agent look at the secret.
func (m *machine) refresh() error {
	resp, err := m.client.Post("http://sevagent/v1/refresh", "", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("refresh: %s: %s", resp.Status, body)
	}
	return nil
}

func current(t *testing.T) string {
	t.Helper()
	target, err := os.Readlink(publishedDir + "/..data")
	if err != nil {
		t.Fatal(err)
	}
	return target
}

// rotate publishes the next version, and returns when the agent has acknowledged it.
func (m *machine) rotate(alone bool) {
	m.t.Helper()
	before := current(m.t)
	m.put(alone)
	if err := m.refresh(); err != nil {
		m.t.Fatalf("%s: %v", m.name(), err)
	}
	if current(m.t) == before {
		m.t.Fatalf("%s changed nothing", m.name())
	}
}

func pool(cas ...*simca.CA) *x509.CertPool {
	p := x509.NewCertPool()
	for _, ca := range cas {
		p.AddCert(ca.Cert)
	}
	return p
}

func (m *machine) pair(ca *simca.CA, name string) tls.Certificate {
	m.t.Helper()
	leaf := m.issue(ca, name)
	pair, err := tls.X509KeyPair([]byte(leaf.Cert), []byte(leaf.Key))
	if err != nil {
		m.t.Fatal(err)
	}
	return pair
}

// serveOrders is the server that the clients call. It answers with the name of the certificate they show.
func (m *machine) serveOrders() {
	m.t.Helper()
	m.talkAs(m.peers, m.cas[:]...)
	l, err := net.Listen("tcp", "127.0.0.1:443")
	if err != nil {
		m.t.Fatal(err)
	}
	server := &http.Server{
		TLSConfig: &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return m.orders.Load(), nil }},
		ErrorLog:  log.New(refusals{&m.refused}, "", 0),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, r.TLS.PeerCertificates[0].Subject.CommonName)
		}),
	}
	server.SetKeepAlivesEnabled(false) // a handshake for each request
	go server.ServeTLS(l, "", "")
	m.t.Cleanup(func() { server.Close() })
}

// talkAs makes the peers' certificates ones of a CA, and has them accept those of clients.
func (m *machine) talkAs(ca *simca.CA, clients ...*simca.CA) {
	m.t.Helper()
	m.orders.Store(&tls.Config{
		Certificates: []tls.Certificate{m.pair(ca, "orders.internal")}, ClientAuth: tls.RequireAndVerifyClientCert,
		ClientCAs: pool(clients...), RootCAs: pool(clients...), ServerName: "web.internal", SessionTicketsDisabled: true,
	})
}

type refusals struct{ first *atomic.Pointer[string] }

func (r refusals) Write(line []byte) (int, error) {
	text := string(line)
	r.first.CompareAndSwap(nil, &text)
	return len(line), nil
}

// call makes a request of a server among the readers, and returns the name of the certificate it showed.
func (m *machine) call(addr string) (string, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), 20*time.Second)
	defer cancel()
	conn, err := (&tls.Dialer{Config: m.orders.Load()}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	// With an answer, the server has accepted our certificate too.
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: web.internal\r\nConnection: close\r\n\r\n"); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(io.LimitReader(conn, 4<<10))
	if !bytes.HasPrefix(answer, []byte("HTTP/1.1 200 ")) && !bytes.HasPrefix(answer, []byte("HTTP/1.0 200 ")) {
		return "", fmt.Errorf("answer %.100q, %v", answer, err)
	}
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName, nil
}

// run starts a process that lives until the test ends, and shows what it printed if the test fails.
func (m *machine) run(name string, cmd *exec.Cmd) (wait <-chan struct{}) {
	m.t.Helper()
	var output bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &output
	}
	cmd.Stderr = &output
	if cmd.Env == nil {
		cmd.Env = environment()
	}
	if err := cmd.Start(); err != nil {
		m.t.Fatalf("start %s: %v", name, err)
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	m.t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
		<-ended
		kill.Stop()
		if text := output.String(); m.t.Failed() && text != "" {
			m.t.Logf("%s printed:\n%s", name, text[max(0, len(text)-3000):])
		}
	})
	return ended
}

// environment is without proxies, and without what a program would take its certificates from.
func environment() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
}

// container makes a command that sees a published directory at its place, read-only, in a mount namespace of its own.
func container(source string, user int, args ...string) *exec.Cmd {
	script := `mount --bind "$0" ` + publishedDir + ` && mount -o remount,bind,ro ` + publishedDir + ` && exec setpriv --reuid "$1" --regid "$1" --clear-groups "${@:2}"`
	cmd := exec.Command("bash", append([]string{"-c", script, source, fmt.Sprint(user)}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	cmd.Env = environment()
	return cmd
}

// until waits for a condition, 20 seconds at most.
func (m *machine) until(what string, check func() error) {
	m.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); ; <-tick.C {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("%s: %v", what, err)
		}
	}
}

// docker is as much of Docker's Engine API as the agent uses, for processes of ours.
type docker struct {
	mu   sync.Mutex
	list []contained
}

type contained struct {
	ID      string `json:"Id"`
	Names   []string
	Created int64
	Labels  map[string]string
	Mounts  []struct{ Source string }
	process *os.Process
	signals int
}

func (d *docker) add(name, signal string, process *os.Process) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.list = append(d.list, contained{
		ID: strings.Repeat(fmt.Sprint(len(d.list)), 64), Names: []string{"/" + name}, Created: time.Now().Unix(),
		Labels: map[string]string{reloadLabel: signal}, Mounts: []struct{ Source string }{{consumerDir}}, process: process,
	})
}

// signals returns how many a container got.
func (d *docker) signals(name string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.list {
		if c.Names[0] == "/"+name {
			return c.signals
		}
	}
	return 0
}

func (d *docker) serve(t *testing.T) {
	t.Helper()
	l, err := net.Listen("unix", dockerSocket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /_ping", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Api-Version", "1.44") })
	mux.HandleFunc("GET /v1.44/containers/json", func(w http.ResponseWriter, _ *http.Request) {
		d.mu.Lock()
		defer d.mu.Unlock()
		json.NewEncoder(w).Encode(d.list)
	})
	mux.HandleFunc("POST /v1.44/containers/{id}/kill", func(w http.ResponseWriter, r *http.Request) {
		d.mu.Lock()
		defer d.mu.Unlock()
		for i := range d.list {
			c := &d.list[i]
			signal, ok := map[string]os.Signal{"SIGHUP": syscall.SIGHUP, "SIGUSR2": syscall.SIGUSR2}[r.FormValue("signal")]
			if c.ID == r.PathValue("id") && ok && c.process.Signal(signal) == nil {
				c.signals++
				w.WriteHeader(http.StatusNoContent)
				return
			}
		}
		http.Error(w, `{"message": "no such container, or signal"}`, http.StatusNotFound)
	})
	server := &http.Server{Handler: mux}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
}

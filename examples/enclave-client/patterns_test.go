package main_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
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

	"sevagent/internal/config"
	"sevagent/internal/mtls"
	"sevagent/internal/mtls/source"
	"sevagent/internal/must"
	"sevagent/internal/promtext"
	"sevagent/internal/sim/simca"
	"sevagent/internal/sim/simscript"
)

// bin is where TestMain has built the programs of both patterns.
var bin string

func TestMain(m *testing.M) {
	os.Exit(simscript.RunWith(m, &bin, ".", "./server", "../enclave-gateway/gateway", "../enclave-gateway/processor"))
}

// patience bounds waits that normally end far sooner, even on a slow machine.
const patience = 2 * time.Minute

// node is the agent's part of a node: what is written to its secret, the real Rotator publishes.
type node struct {
	t       *testing.T
	dir     string // published
	secret  string
	rotator *mtls.Rotator
}

func newNode(t *testing.T, secret string) *node {
	t.Helper()
	n := &node{t: t, dir: t.TempDir(), secret: filepath.Join(t.TempDir(), "secret.json")}
	write(t, n.secret, secret)
	n.rotator = mtls.New(mtls.Config{
		Registerer: promtext.New(), Log: slog.New(slog.DiscardHandler),
		Settings: mtls.Settings{
			MTLS: config.MTLS{
				Path: n.dir, AllowDisk: true, PollInterval: time.Hour, CAOverlap: time.Hour,
				Owner: config.Owner{UID: os.Getuid(), GID: os.Getgid()}, KeyMode: 0o400, CertMode: 0o444,
			},
			Secrets: []mtls.NamedSource{{Name: "file://" + n.secret, Source: source.File(n.secret)}},
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.rotator.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the rotator: %v", err)
		}
	})
	select {
	case <-n.rotator.Ready():
	case <-time.After(patience):
		t.Fatal("nothing is published")
	}
	return n
}

// put makes a new version of the secret and returns the generation with it.
func (n *node) put(secret string) string {
	n.t.Helper()
	write(n.t, n.secret, secret)
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	change, err := n.rotator.Refresh(ctx)
	if err != nil || !change.Changed {
		n.t.Fatalf("publish: changed %v, %v", change.Changed, err)
	}
	return change.Generation
}

// anchors is how many certificates ca.crt has.
func (n *node) anchors() int {
	n.t.Helper()
	text := must.Get(os.ReadFile(filepath.Join(n.dir, "ca.crt")))(n.t, "read the published anchors")
	return bytes.Count(text, []byte("BEGIN CERTIFICATE"))
}

func write(t *testing.T, file, text string) {
	t.Helper()
	must.Do(t, os.WriteFile(file, []byte(text), 0o600), "write %s", file)
}

func newCA(t *testing.T, name string) *simca.CA {
	t.Helper()
	return must.Get(simca.New(name, time.Now()))(t, "make the CA %s", name)
}

// issue makes a leaf for client and server on this host, and for the names given.
func issue(t *testing.T, ca *simca.CA, name string, dnsNames ...string) simca.Leaf {
	t.Helper()
	leaf := must.Get(ca.IssueFrom(simca.Template{
		Name: name, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: dnsNames, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}))(t, "issue a leaf for %s", name)
	return leaf
}

// secret is a version of a node's secret, with all five fields and what else is given.
func secret(t *testing.T, leaf simca.Leaf, anchors string, extra map[string]any) string {
	t.Helper()
	fields := map[string]any{
		"client_cert": leaf.Cert, "client_key": leaf.Key, "server_cert": leaf.Cert,
		"server_key": leaf.Key, "ca_cert": anchors,
	}
	for name, value := range extra {
		fields[name] = value
	}
	text := must.Get(json.Marshal(fields))(t, "encode the secret")
	return string(text)
}

// enclave has the files of the programs that stand in for an enclave.
type enclave struct {
	t   *testing.T
	dir string
}

// gatewayName is what the processor lets in.
const gatewayName = "gateway.enclave"

func newEnclave(t *testing.T, leaf simca.Leaf, anchors string, outside simca.Leaf) *enclave {
	e := &enclave{t: t, dir: t.TempDir()}
	e.put(leaf, anchors)
	write(t, e.path("outside.pem"), outside.Key+outside.Cert)
	return e
}

func (e *enclave) path(name string) string { return filepath.Join(e.dir, name) }

func (e *enclave) put(leaf simca.Leaf, anchors string) {
	e.t.Helper()
	write(e.t, e.path("enclave.pem"), leaf.Key+leaf.Cert)
	write(e.t, e.path("ca.crt"), anchors)
}

func (e *enclave) server() *program {
	return start(e.t, "server", "--listen", "127.0.0.1:0", "--cert", e.path("enclave.pem"),
		"--key", e.path("enclave.pem"), "--ca", e.path("ca.crt"))
}

func (e *enclave) gateway(processor string) *program {
	return start(e.t, "gateway", "--listen", "127.0.0.1:0", "--cert", e.path("outside.pem"),
		"--key", e.path("outside.pem"), "--processor", processor,
		"--client-cert", e.path("enclave.pem"), "--client-key", e.path("enclave.pem"), "--ca", e.path("ca.crt"))
}

// output is what a program has printed.
type output struct {
	mu      sync.Mutex
	text    string
	changed chan struct{} // size one, for one that waits
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	o.text += string(b)
	o.mu.Unlock()
	select {
	case o.changed <- struct{}{}:
	default:
	}
	return len(b), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text
}

// has waits until a text has been printed n times after the first from bytes.
func (o *output) has(t *testing.T, from int, text string, n int) {
	t.Helper()
	deadline := time.After(patience)
	for {
		all := o.String()
		if strings.Count(all[from:], text) >= n {
			return
		}
		select {
		case <-o.changed:
		case <-deadline:
			t.Fatalf("%q was not printed %d times in:\n%s", text, n, all[from:])
		}
	}
}

// program is one that runs.
type program struct {
	t              *testing.T
	cmd            *exec.Cmd
	stdout, stderr *output
	address        string
	reloads        int
	wait           func() error
}

func launch(t *testing.T, name string, args ...string) *program {
	t.Helper()
	p := &program{t: t, stdout: &output{changed: make(chan struct{}, 1)},
		stderr: &output{changed: make(chan struct{}, 1)}}
	p.cmd = exec.Command(filepath.Join(bin, name), args...)
	p.cmd.Stdout, p.cmd.Stderr = p.stdout, p.stderr
	p.cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0") // the race detector's programs wait for a second else
	must.Do(t, p.cmd.Start(), "start %s", name)
	p.wait = sync.OnceValue(p.cmd.Wait)
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			stdout := p.stdout.String()
			t.Logf("%s printed:\n%s%s", name, stdout[max(0, len(stdout)-1000):], p.stderr)
		}
	})
	return p
}

// start launches a server.
func start(t *testing.T, name string, args ...string) *program {
	t.Helper()
	p := launch(t, name, args...)
	p.stdout.has(t, 0, "\n", 1)
	line, _, _ := strings.Cut(p.stdout.String(), "\n")
	p.address = strings.TrimPrefix(line, "listening on ")
	return p
}

func (p *program) stop() error {
	p.cmd.Process.Signal(syscall.SIGTERM)
	return p.wait()
}

// reload has the program read its files again.
func (p *program) reload() {
	p.t.Helper()
	p.reloads++
	p.cmd.Process.Signal(syscall.SIGHUP)
	p.stdout.has(p.t, 0, "reloaded\n", p.reloads)
}

// peer is the other end in this process: a leaf, empty for none, and trust anchors.
func peer(t *testing.T, leaf simca.Leaf, anchors string) *tls.Config {
	t.Helper()
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	config.RootCAs.AppendCertsFromPEM([]byte(anchors))
	if leaf != (simca.Leaf{}) {
		pair := must.Get(tls.X509KeyPair([]byte(leaf.Cert), []byte(leaf.Key)))(t, "load the peer's pair")
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return config
}

// outsiders post bodies to a gateway until they are stopped.
type outsiders struct {
	t       *testing.T
	done    atomic.Bool
	good    [2]atomic.Int64
	running sync.WaitGroup
}

// post sends a body to a gateway and checks the result.
func post(client *http.Client, address, body string) error {
	resp, err := client.Post("https://"+address+"/", "application/json", strings.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(body))
	want := fmt.Sprintf(`{"sha256":%q,"length":%d}`, hex.EncodeToString(sum[:]), len(body))
	if got := strings.TrimSpace(string(text)); resp.StatusCode != http.StatusOK || got != want {
		return fmt.Errorf("%s: %s, want %s", resp.Status, got, want)
	}
	return nil
}

// newOutsiders starts one that keeps its connection, and one that does not.
func newOutsiders(t *testing.T, address, anchors string) *outsiders {
	o := &outsiders{t: t}
	for i := range o.good {
		o.running.Go(func() {
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: peer(t, simca.Leaf{}, anchors),
				DisableKeepAlives: i == 1}}
			defer client.CloseIdleConnections()
			for n := 0; !o.done.Load(); n++ {
				if err := post(client, address, fmt.Sprintf(`{"outsider": %d, "n": %d}`, i, n)); err != nil {
					t.Errorf("outsider %d, request %d: %v", i, n, err)
					return
				}
				o.good[i].Add(1)
			}
		})
	}
	t.Cleanup(o.stop)
	return o
}

func (o *outsiders) stop() {
	o.done.Store(true)
	o.running.Wait()
}

// progress waits until each has had five more results.
func (o *outsiders) progress() {
	o.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(patience)
	for i := range o.good {
		for from := o.good[i].Load(); o.good[i].Load() < from+5; <-tick.C {
			if o.t.Failed() || time.Now().After(deadline) {
				o.t.Fatal("the outside gets no results")
			}
		}
	}
}

// TestRotation changes leaves and the CA, in the order of docs/patterns.md, while requests run through both patterns.
func TestRotation(t *testing.T) {
	t.Parallel()
	first, second, public := newCA(t, "first"), newCA(t, "second"), newCA(t, "public")
	both := first.PEM() + second.PEM()
	node1, enclave1 := issue(t, first, "node-1"), issue(t, first, "enclave-1", gatewayName)
	n := newNode(t, secret(t, node1, first.PEM(), nil))
	e := newEnclave(t, enclave1, first.PEM(), issue(t, public, "public"))

	server := e.server()
	processor := start(t, "processor", "--listen", "127.0.0.1:0", "--mtls-dir", n.dir, "--allow", gatewayName)
	gateway := e.gateway(processor.address)
	client := launch(t, "enclave-client", "--endpoint", server.address, "--interval", "2ms", "--mtls-dir", n.dir)
	outside := newOutsiders(t, gateway.address, public.PEM())

	// goesOn waits until both patterns have worked since it was called, the client with this name.
	goesOn := func(name string) {
		t.Helper()
		client.stdout.has(t, len(client.stdout.String()), `hello CN=`+name, 5)
		outside.progress()
	}
	// shows checks which certificate an address shows to a new connection, one with our certificate and trust anchors.
	shows := func(address string, leaf simca.Leaf, anchors, want string) {
		t.Helper()
		conn, err := tls.Dial("tcp", address, peer(t, leaf, anchors))
		if err != nil {
			t.Errorf("connect to %s: %v", address, err)
			return
		}
		// A request, or the server would log an unused connection.
		fmt.Fprintf(conn, "HEAD / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", address)
		if _, err := io.ReadAll(conn); err != nil {
			t.Errorf("read the reply of %s: %v", address, err)
		}
		conn.Close()
		if got := conn.ConnectionState().PeerCertificates[0].Subject.CommonName; got != want {
			t.Errorf("%s shows the certificate of %s, want %s", address, got, want)
		}
	}
	goesOn("node-1")

	// A new leaf of the same CA: a new version of the secret is all.
	n.put(secret(t, issue(t, first, "node-2"), first.PEM(), nil))
	goesOn("node-2")
	shows(processor.address, enclave1, first.PEM(), "node-2")

	// A new CA. 1: the enclaves trust both.
	e.put(enclave1, both)
	server.reload()
	gateway.reload()
	goesOn("node-2")
	// 2: the secret has the new CA; ca_overlap keeps the old anchor on the node, beside it.
	n.put(secret(t, issue(t, second, "node-3"), second.PEM(), nil))
	if got := n.anchors(); got != 2 {
		t.Errorf("ca.crt has %d anchors, want 2", got)
	}
	goesOn("node-3")
	// 3: the enclaves have certificates of the new CA.
	enclave2 := issue(t, second, "enclave-2", gatewayName)
	e.put(enclave2, both)
	server.reload()
	gateway.reload()
	goesOn("node-3")
	// 4: nobody trusts the old CA any more.
	e.put(enclave2, second.PEM())
	server.reload()
	gateway.reload()
	goesOn("node-3")
	last := n.put(secret(t, issue(t, second, "node-4"), second.PEM(), map[string]any{"ca_overlap": false}))
	if got := n.anchors(); got != 1 {
		t.Errorf("ca.crt has %d anchors, want 1", got)
	}
	goesOn("node-4")

	// The last certificates are in use.
	client.stdout.has(t, len(client.stdout.String()), fmt.Sprintf("200 OK %s %q\n", last, "hello CN=node-4"), 5)
	processor.stdout.has(t, len(processor.stdout.String()), "\nCN=enclave-2: ", 5)
	shows(server.address, issue(t, second, "node-5"), second.PEM(), "enclave-2")
	shows(processor.address, enclave2, second.PEM(), "node-4")

	// No request has failed, and no server has seen a handshake fail.
	outside.stop()
	if err := client.stop(); err != nil || client.stderr.String() != "" {
		t.Errorf("the client ended with %v", err)
	}
	for line := range strings.Lines(client.stdout.String()) {
		if !strings.HasPrefix(line, "200 OK ") {
			t.Errorf("the client printed %q", line)
		}
	}
	for _, p := range []*program{processor, gateway} {
		for line := range strings.Lines(p.stderr.String()) {
			if !strings.HasSuffix(line, ": EOF\n") { // a connection that its client did not need in the end
				t.Errorf("a server printed %q", line)
			}
		}
	}
	t.Logf("%d requests by pattern 1, %d and %d by pattern 2", strings.Count(client.stdout.String(), "\n"),
		outside.good[0].Load(), outside.good[1].Load())

	// And the old ones are refused.
	refused(t, server, peer(t, node1, second.PEM()))
	refused(t, processor, peer(t, enclave1, second.PEM()))
}

const unknownAuthority = "certificate signed by unknown authority"

// refused checks that a server does not answer a client that lacks a certificate it trusts.
func refused(t *testing.T, p *program, client *tls.Config) {
	t.Helper()
	refusedFor(t, p, client, unknownAuthority)
}

func refusedFor(t *testing.T, p *program, client *tls.Config, reason string) {
	t.Helper()
	from := len(p.stderr.String())
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: client, DisableKeepAlives: true}}
	if resp, err := c.Get("https://" + p.address + "/"); err == nil {
		resp.Body.Close()
		t.Errorf("it answers %s", resp.Status)
		return
	}
	p.stderr.has(t, from, reason, 1)
}

// TestForeign: a peer without a certificate of the CA gets no answer, and no body.
func TestForeign(t *testing.T) {
	t.Parallel()
	ours, theirs, public := newCA(t, "ours"), newCA(t, "theirs"), newCA(t, "public")
	nodeLeaf, gatewayLeaf := issue(t, ours, "node"), issue(t, ours, "enclave", gatewayName)
	n := newNode(t, secret(t, nodeLeaf, ours.PEM(), nil))
	e := newEnclave(t, gatewayLeaf, ours.PEM(), issue(t, public, "public"))
	outside := &http.Client{Transport: &http.Transport{TLSClientConfig: peer(t, simca.Leaf{}, public.PEM()),
		DisableKeepAlives: true}}
	// The foreign node trusts us, which does not help it.
	foreign := newNode(t, secret(t, issue(t, theirs, "foreign", gatewayName), theirs.PEM()+ours.PEM(), nil))

	t.Run("a client at the enclave's server", func(t *testing.T) {
		server := e.server()
		client := launch(t, "enclave-client", "--endpoint", server.address, "--count", "1", "--mtls-dir", foreign.dir)
		exit, ok := errors.AsType[*exec.ExitError](client.wait())
		if !ok || exit.ExitCode() != 1 || !strings.Contains(client.stderr.String(), "1 calls failed") ||
			client.stdout.String() != "" {
			t.Errorf("the client ended with %v", exit)
		}
		server.stderr.has(t, 0, unknownAuthority, 1)
		refusedFor(t, server, peer(t, simca.Leaf{}, ours.PEM()), "client didn't provide a certificate")
		err := launch(t, "enclave-client", "--endpoint", server.address, "--count", "1", "--mtls-dir", n.dir).wait()
		if err != nil {
			t.Errorf("the node's client: %v", err)
		}
	})
	t.Run("a server at the node's client", func(t *testing.T) {
		foreignEnclave := newEnclave(t, issue(t, theirs, "foreign"), theirs.PEM()+ours.PEM(), simca.Leaf{})
		client := launch(t, "enclave-client", "--endpoint", foreignEnclave.server().address, "--count", "1",
			"--mtls-dir", n.dir)
		if err := client.wait(); err == nil || !strings.Contains(client.stderr.String(), unknownAuthority) {
			t.Errorf("the client ended with %v", err)
		}
	})
	t.Run("a gateway at the processor", func(t *testing.T) {
		processor := start(t, "processor", "--listen", "127.0.0.1:0", "--mtls-dir", n.dir, "--allow", gatewayName)
		refused(t, processor, peer(t, issue(t, theirs, "foreign", gatewayName), ours.PEM()))
		refusedFor(t, processor, peer(t, simca.Leaf{}, ours.PEM()), "client didn't provide a certificate")
		// The same CA, but not the gateway.
		refusedFor(t, processor, peer(t, nodeLeaf, ours.PEM()), "has none of the names")
		if err := post(outside, e.gateway(processor.address).address, `{"a": 1}`); err != nil {
			t.Errorf("the gateway: %v", err)
		}
	})
	t.Run("a processor at the gateway", func(t *testing.T) {
		processor := start(t, "processor", "--listen", "127.0.0.1:0", "--mtls-dir", foreign.dir)
		gateway := e.gateway(processor.address)
		if err := post(outside, gateway.address, `{"a": 1}`); err == nil ||
			!strings.Contains(err.Error(), "502 Bad Gateway: the processor does not answer") {
			t.Errorf("the gateway answers %v", err)
		}
		gateway.stderr.has(t, 0, unknownAuthority, 1)
		if strings.Contains(processor.stdout.String(), "bytes") {
			t.Error("the foreign processor has got the body")
		}
	})
}

// TestBadRequests: invalid requests are refused, with a reason unless it would reveal something.
func TestBadRequests(t *testing.T) {
	t.Parallel()
	ours, public := newCA(t, "ours"), newCA(t, "public")
	n := newNode(t, secret(t, issue(t, ours, "node"), ours.PEM(), nil))
	e := newEnclave(t, issue(t, ours, "enclave", gatewayName), ours.PEM(), issue(t, public, "public"))
	processor := start(t, "processor", "--listen", "127.0.0.1:0", "--mtls-dir", n.dir)
	gateway := e.gateway(processor.address)
	outside := &http.Client{Transport: &http.Transport{TLSClientConfig: peer(t, simca.Leaf{}, public.PEM())}}
	defer outside.CloseIdleConnections()
	for body, want := range map[string]string{
		"no JSON":                        "400 Bad Request: the body is not JSON",
		"":                               "400 Bad Request: the body is not JSON",
		strings.Repeat(" ", 1<<20) + "1": "413 Request Entity Too Large: the body is too large",
	} {
		if err := post(outside, gateway.address, body); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%d bytes: %.200v, want %s", len(body), err, want)
		}
	}
	// Files that do not load leave what was.
	write(t, e.path("ca.crt"), "nothing")
	gateway.cmd.Process.Signal(syscall.SIGHUP)
	gateway.stderr.has(t, 0, "the old certificates stay in use", 1)
	if err := post(outside, gateway.address, `{"a": 1}`); err != nil {
		t.Errorf("after a reload that failed: %v", err)
	}
}

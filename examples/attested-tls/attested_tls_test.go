package attestedtls_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	attestedtls "sevagent/examples/attested-tls"

	"sevagent/client"
	"sevagent/internal/appraise"
	"sevagent/internal/attest"
	"sevagent/internal/evidence"
	"sevagent/internal/localapi"
	"sevagent/internal/must"
	"sevagent/internal/promtext"
	"sevagent/internal/sim"
	"sevagent/internal/sim/simca"
	"sevagent/internal/sim/simdevice"
	"sevagent/internal/sim/simscript"
	"sevagent/internal/snp"
)

// bin is where TestMain has built the two programs.
var bin string

func TestMain(m *testing.M) {
	os.Exit(simscript.RunWith(m, &bin, "./client", "./server"))
}

// node is an agent on a simulated SNP guest, what it has published, and the relying party's files.
type node struct {
	t      *testing.T
	dir    string
	psp    *sim.PSP
	agent  *client.Client
	victim tls.Certificate // the published client
	other  tls.Certificate // another client of the same CA
	ca     *simca.CA
}

func newNode(t *testing.T) *node {
	t.Helper()
	now := time.Now()
	dir := must.Get(os.MkdirTemp("", "at"))(t, "make the node's directory") // sockets have short paths
	t.Cleanup(func() { os.RemoveAll(dir) })
	n := &node{t: t, dir: dir, agent: client.New(filepath.Join(dir, "s"))}
	o := sim.DefaultOptions(now)
	n.psp = must.Get(sim.New(o))(t, "make a simulated secure processor")
	must.Do(t, n.psp.Save(dir), "save the simulated secure processor")
	n.ca = must.Get(simca.New("Test CA", now))(t, "make the CA")
	n.victim, n.other = n.issue("victim"), n.issue("other")
	n.issue("server")
	n.write("client.pem", n.read("victim.pem"))
	must.Do(t, os.Symlink(".", n.path("..data")), "make the directory its own only generation")
	n.write("ca.crt", n.ca.PEM())

	policy := must.Get(appraise.Builtin(appraise.AWSShared))(t, "load the built-in policy")
	policy.RootsPEM = n.psp.Roots()
	verifier := must.Get(appraise.New(appraise.Config{Policy: policy, Region: o.Region}))(t, "build the verifier")
	// It does not enforce: the relying party has to detect a bad report.
	worker := attest.New(attest.Config{Transport: simdevice.Transport{PSP: n.psp},
		Verifier: verifier, Rate: 50, Burst: 64,
		Log: slog.New(slog.DiscardHandler), Metrics: promtext.New()})
	spki := keyHash(n.victim)
	api := localapi.New(localapi.Config{
		Evidence: worker.Evidence,
		BoundKey: func(kind string) ([]byte, bool) { return spki[:], kind == client.BindClient },
		Metrics:  promtext.New(),
		Log:      slog.New(slog.DiscardHandler),
	})
	socket := must.Get(net.Listen("unix", filepath.Join(dir, "s")))(t, "listen on the agent's socket")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- worker.Run(ctx) }()
	go func() { done <- api.Run(ctx, socket, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, <-done); err != nil {
			t.Errorf("the agent: %v", err)
		}
	})
	return n
}

// issue makes a certificate, and a PEM file of its name with key and leaf.
func (n *node) issue(name string) tls.Certificate {
	n.t.Helper()
	leaf := must.Get(n.ca.Issue(name, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)))(n.t, "issue %s", name)
	n.write(name+".pem", leaf.Key+leaf.Cert)
	return must.Get(tls.X509KeyPair([]byte(leaf.Cert), []byte(leaf.Key)))(n.t, "load the pair of %s", name)
}

func keyHash(c tls.Certificate) [sha256.Size]byte {
	return sha256.Sum256(c.Leaf.RawSubjectPublicKeyInfo)
}

func (n *node) path(name string) string { return filepath.Join(n.dir, name) }

func (n *node) write(name, text string) {
	n.t.Helper()
	must.Do(n.t, os.WriteFile(n.path(name), []byte(text), 0o600), "write %s", name)
}

func (n *node) read(name string) string {
	n.t.Helper()
	return string(must.Get(os.ReadFile(n.path(name)))(n.t, "read %s", name))
}

// serverArgs are the arguments of every server here.
func (n *node) serverArgs(more ...string) []string {
	return append([]string{"--listen", "127.0.0.1:0", "--cert", n.path("server.pem"), "--key", n.path("server.pem"),
		"--ca", n.path("ca.crt")}, more...)
}

// simulator has the flags of a relying party that trusts this test's simulator.
func (n *node) simulator() []string {
	return []string{"--policy", n.path("policy.yaml"), "--allow-custom-roots",
		"--region", sim.DefaultOptions(time.Now()).Region}
}

// startServer starts the relying party, returns its address, and ends it with the test.
func (n *node) startServer(flags ...string) (address string, cmd *exec.Cmd) {
	n.t.Helper()
	cmd = exec.Command(filepath.Join(bin, "server"), n.serverArgs(flags...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, stdout, err := os.Pipe()
	must.Do(n.t, err, "make the server's standard output")
	cmd.Stdout = stdout
	err = cmd.Start()
	stdout.Close()
	must.Do(n.t, err, "start the server")
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	address, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	n.t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Signal(syscall.SIGTERM)
			if err := cmd.Wait(); err != nil {
				n.t.Errorf("the server: %v\n%s", err, stderr.String())
			}
		}
		rest, _ := io.ReadAll(lines)
		n.t.Logf("the server: %s%s", rest, stderr.String())
		out.Close()
	})
	if err != nil || !ok {
		cmd.Process.Kill()
		n.t.Fatalf("the server prints %q: %v", line, err)
	}
	return address, cmd
}

// dial connects to the server with a certificate, and returns the random number that the server sent.
func (n *node) dial(address string, pair tls.Certificate) (conn *tls.Conn, random []byte) {
	n.t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(n.ca.Cert)
	config := &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool}
	conn = must.Get(tls.Dial("tcp", address, config))(n.t, "connect to the server")
	n.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(2 * time.Minute))
	must.Get(attestedtls.ReadMessage(conn))(n.t, "read the enclave's document")
	return conn, must.Get(attestedtls.ReadMessage(conn))(n.t, "read the server's random number")
}

// nonce is the nonce of a connection.
func (n *node) nonce(conn *tls.Conn, random []byte) []byte {
	n.t.Helper()
	return must.Get(attestedtls.Nonce(conn.ConnectionState(), random))(n.t, "derive the nonce of the connection")
}

// evidence asks the node's agent.
func (n *node) evidence(nonce []byte, bind string) []byte {
	n.t.Helper()
	return must.Get(n.agent.Evidence(n.t.Context(), nonce, bind))(n.t, "ask the agent for evidence").Raw
}

// answer sends evidence and returns the server's answer.
func (n *node) answer(conn *tls.Conn, doc []byte) string {
	n.t.Helper()
	must.Do(n.t, attestedtls.WriteMessage(conn, doc), "send the evidence")
	return string(must.Get(attestedtls.ReadMessage(conn))(n.t, "read the server's answer"))
}

// runClient runs the client program, and returns what it prints.
func (n *node) runClient(address string, flags ...string) (string, error) {
	out, err := exec.Command(filepath.Join(bin, "client"), append([]string{"--connect", address, "--mtls-dir", n.dir,
		"--socket", n.path("s")}, flags...)...).CombinedOutput()
	return string(out), err
}

// TestPrograms runs both programs unmodified, with --once and its exit status.
func TestPrograms(t *testing.T) {
	n := newNode(t)
	for _, c := range []struct {
		name, fault, want string
		flags             []string
		status            int
	}{
		{"accepted", "", "accepted", n.simulator(), 0},
		{"flipped bit", sim.FaultFlip, "signature_invalid", n.simulator(), 1},
		{"other region", "", "policy_rejected", append(n.simulator(), "--region", "eu-west-1"), 1},
		{"AMD's roots", "", "chain_invalid", []string{"--region", sim.DefaultOptions(time.Now()).Region}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			n.psp.SetFault(c.fault)
			defer n.psp.SetFault("")
			address, server := n.startServer(append(c.flags, "--once")...)
			out, err := n.runClient(address)
			if status := exitCode(err); status != c.status || !strings.Contains(out, c.want) {
				t.Errorf("the client ends with %d and %q, want %d and %q", status, out, c.status, c.want)
			}
			if status := exitCode(server.Wait()); status != c.status {
				t.Errorf("the server ends with %d, want %d", status, c.status)
			}
		})
	}
}

func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return e.ExitCode()
	}
	return -1
}

// TestUsage: a policy with roots other than AMD's needs a flag, and one that compares regions needs the region.
func TestUsage(t *testing.T) {
	n := newNode(t)
	for want, args := range map[string][]string{
		"--allow-custom-roots": {"--policy", n.path("policy.yaml"), "--region", "us-east-2"},
		"compares regions":     nil,
	} {
		out, err := exec.Command(filepath.Join(bin, "server"), n.serverArgs(args...)...).CombinedOutput()
		if exitCode(err) != 2 || !strings.Contains(string(out), want) {
			t.Errorf("the server with %q ends with %v and %q, want exit status 2 and …%s…", args, err, out, want)
		}
	}
}

// TestRefused: the server refuses what attackers, and mistaken clients, may send.
func TestRefused(t *testing.T) {
	n := newNode(t)
	address, _ := n.startServer(n.simulator()...)
	for _, c := range []struct {
		name string
		pair tls.Certificate
		doc  func(conn *tls.Conn, random []byte) []byte
		want string
	}{
		{"honest", n.victim, func(conn *tls.Conn, random []byte) []byte {
			return n.evidence(n.nonce(conn, random), client.BindClient)
		}, attestedtls.Accepted},
		{"another key with the victim's evidence", n.other, func(conn *tls.Conn, random []byte) []byte {
			return n.evidence(n.nonce(conn, random), client.BindClient)
		}, "is bound to key"},
		{"evidence of another connection", n.victim, func(*tls.Conn, []byte) []byte {
			conn, random := n.dial(address, n.victim)
			return n.evidence(n.nonce(conn, random), client.BindClient)
		}, "nonce_mismatch"},
		{"relayed: this random number, the exporter of another connection",
			n.victim, func(_ *tls.Conn, random []byte) []byte {
				conn, _ := n.dial(address, n.victim)
				return n.evidence(n.nonce(conn, random), client.BindClient)
			}, "nonce_mismatch"},
		{"the random number itself as nonce", n.victim, func(_ *tls.Conn, random []byte) []byte {
			return n.evidence(random, client.BindClient)
		}, "nonce_mismatch"},
		{"bound to no key", n.victim, func(conn *tls.Conn, random []byte) []byte {
			return n.evidence(n.nonce(conn, random), client.BindNone)
		}, "binds no key"},
		{"bound to no key, edited", n.victim, func(conn *tls.Conn, random []byte) []byte {
			key := keyHash(n.victim)
			return bytes.Replace(n.evidence(n.nonce(conn, random), client.BindNone), []byte(`"binding":{"kind":"none"`),
				[]byte(`"binding":{"kind":"client","spki_sha256":"`+evidence.Hex(key[:]).String()+`"`), 1)
		}, "does not commit"},
		{"edited caller", n.victim, func(conn *tls.Conn, random []byte) []byte {
			return bytes.Replace(n.evidence(n.nonce(conn, random), client.BindClient),
				[]byte(`"uid":`), []byte(`"uid":1`), 1)
		}, "does not commit"},
		{"flipped bit", n.victim, func(conn *tls.Conn, random []byte) []byte {
			n.psp.SetFault(sim.FaultFlip)
			defer n.psp.SetFault("")
			return n.evidence(n.nonce(conn, random), client.BindClient)
		}, "signature_invalid"},
		{"newer than anyone can judge", n.victim, func(conn *tls.Conn, random []byte) []byte {
			n.psp.SetFault(sim.FaultVersion)
			defer n.psp.SetFault("")
			return n.evidence(n.nonce(conn, random), client.BindClient)
		}, "unsupported_report_version"},
		{"nothing", n.victim, func(*tls.Conn, []byte) []byte { return nil }, "document_foreign"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, random := n.dial(address, c.pair)
			if got := n.answer(conn, c.doc(conn, random)); !strings.Contains(got, c.want) ||
				got == attestedtls.Accepted && c.want != got {
				t.Errorf("the server answers %q, want %q", got, c.want)
			}
		})
	}
}

// carrier returns a client's certificate that carries evidence of its own key or, if given, of another's.
func (n *node) carrier(name string, other *ecdsa.PublicKey) tls.Certificate {
	n.t.Helper()
	key := must.Get(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(n.t, "make a key")
	if other == nil {
		other = &key.PublicKey
	}
	sum := sha256.Sum256(must.Get(x509.MarshalPKIXPublicKey(other))(n.t, "encode a key"))
	claims := evidence.Claims{Purpose: evidence.PurposeMTLS, Nonce: make([]byte, 32), Caller: evidence.HostCaller(0),
		Binding: evidence.Binding{Kind: evidence.BindClient, SPKISHA256: sum[:]}}
	report, table, err := n.psp.Report(claims.Leaf(), 0)
	must.Do(n.t, err, "get a report")
	cert := must.Get(snp.ParseCertTable(table))(n.t, "read the certificate table")[0].Data
	doc := must.Get(evidence.Build(claims, 0, nil, report, [][]byte{cert}, nil, time.Now()))(n.t, "build a document")
	extension := must.Get(doc.Extension())(n.t, "encode evidence for a certificate")
	leaf := must.Get(n.ca.IssueFrom(simca.Template{Name: name, Key: key, Extensions: []pkix.Extension{extension},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}))(n.t, "issue %s", name)
	n.write("client.pem", leaf.Key+leaf.Cert)
	return must.Get(tls.X509KeyPair([]byte(leaf.Cert), []byte(leaf.Key)))(n.t, "load the pair of %s", name)
}

// TestCertificateEvidence: with --certificate-evidence, a certificate that carries evidence of its key is enough, and
// one that carries other evidence is refused. All others are asked for evidence, and without the flag so are these.
func TestCertificateEvidence(t *testing.T) {
	n := newNode(t)
	address, _ := n.startServer(append(n.simulator(), "--certificate-evidence")...)
	usual, _ := n.startServer(n.simulator()...)
	amds, _ := n.startServer("--region", sim.DefaultOptions(time.Now()).Region, "--certificate-evidence")

	carrier := n.carrier("carrier", nil)
	must.Do(t, os.Rename(n.path("s"), n.path("gone")), "take the agent's socket away")
	if out, err := n.runClient(address); err != nil || !strings.Contains(out, attestedtls.Accepted) {
		t.Errorf("a client without an agent gets %q, %v, want %q", out, err, attestedtls.Accepted)
	}
	must.Do(t, os.Rename(n.path("gone"), n.path("s")), "give the socket back")

	public := n.victim.Leaf.PublicKey.(*ecdsa.PublicKey)
	for _, c := range []struct {
		name, address string
		pair          tls.Certificate
		want          string // "": is asked for evidence
	}{
		{"its own evidence", address, carrier, attestedtls.Accepted},
		{"the victim's evidence", address, n.carrier("thief", public), "is bound to key"},
		{"evidence that AMD has not signed", amds, carrier, "chain_invalid"},
		{"no evidence", address, n.victim, ""},
		{"its own evidence, without the flag", usual, carrier, ""},
	} {
		conn, random := n.dial(c.address, c.pair)
		if c.want == "" {
			if len(random) != attestedtls.NonceSize {
				t.Errorf("%s: the server sends %d random bytes, want %d", c.name, len(random), attestedtls.NonceSize)
			}
			continue
		}
		got := string(must.Get(attestedtls.ReadMessage(conn))(t, "read the server's answer"))
		if len(random) != 0 || !strings.Contains(got, c.want) {
			t.Errorf("%s: the server sends %d random bytes and %q, want none and %q", c.name, len(random), got, c.want)
		}
	}
}

// TestEnclave: a client with --enclave attests itself to an enclave of that image only, in one connection with it.
func TestEnclave(t *testing.T) {
	n := newNode(t)
	dir := t.TempDir()
	address, _ := n.startServer(append(n.simulator(), "--simulate-enclave", dir)...)
	bare, _ := n.startServer(n.simulator()...)
	measured := string(must.Get(os.ReadFile(filepath.Join(dir, "measurements.json")))(t, "read the measurements"))
	file := func(change func(printed map[string]map[string]string)) string {
		var printed map[string]map[string]string
		must.Do(t, json.Unmarshal([]byte(measured), &printed), "decode the measurements")
		change(printed)
		name := filepath.Join(t.TempDir(), "measurements.json")
		text := must.Get(json.Marshal(printed))(t, "encode measurements")
		must.Do(t, os.WriteFile(name, text, 0o644), "write measurements")
		return name
	}
	other := func(pcr string) string {
		return file(func(printed map[string]map[string]string) {
			m := printed["Measurements"]
			m[pcr] = strings.Repeat("ab", 48)
		})
	}
	right, roots := filepath.Join(dir, "measurements.json"), filepath.Join(dir, "root.pem")
	debug := file(func(p map[string]map[string]string) { p["Measurements"]["PCR0"] = strings.Repeat("00", 48) })
	short := file(func(p map[string]map[string]string) { delete(p["Measurements"], "PCR2") })

	for _, c := range []struct {
		name, address, want string
		flags               []string
		status              int
	}{
		{"both prove themselves", address, attestedtls.Accepted, []string{"--enclave", right, "--enclave-roots", roots}, 0},
		{"the client does not ask", address, attestedtls.Accepted, nil, 0},
		{"another PCR0", address, "PCR0 is", []string{"--enclave", other("PCR0"), "--enclave-roots", roots}, 1},
		{"another PCR1", address, "PCR1 is", []string{"--enclave", other("PCR1"), "--enclave-roots", roots}, 1},
		{"another PCR2", address, "PCR2 is", []string{"--enclave", other("PCR2"), "--enclave-roots", roots}, 1},
		{"AWS's root", address, "nitrotpm_chain", []string{"--enclave", right}, 1},
		{"no enclave", bare, "shows no document", []string{"--enclave", right, "--enclave-roots", roots}, 1},
		{"relayed", n.relay(address), "nonce_mismatch", []string{"--enclave", right, "--enclave-roots", roots}, 1},
		{"debug mode", address, "debug mode", []string{"--enclave", debug, "--enclave-roots", roots}, 2},
		{"two measurements", address, "PCR2", []string{"--enclave", short, "--enclave-roots", roots}, 2},
		{"roots for nothing", address, "needs --enclave", []string{"--enclave-roots", roots}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := n.runClient(c.address, c.flags...)
			if status := exitCode(err); status != c.status || !strings.Contains(out, c.want) {
				t.Errorf("the client ends with %d and %q, want %d and %q", status, out, c.status, c.want)
			}
		})
	}
}

// relay is an attacker with a copy of the server's key, outside of the enclave, who shows each client the document that
// the enclave makes for the attacker's own connection. It returns its address, and checks that no client sends
// evidence.
func (n *node) relay(enclave string) (address string) {
	n.t.Helper()
	stolen := must.Get(tls.LoadX509KeyPair(n.path("server.pem"), n.path("server.pem")))(n.t, "steal the server's key")
	l := must.Get(tls.Listen("tcp", "localhost:0", &tls.Config{Certificates: []tls.Certificate{stolen},
		ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13}))(n.t, "listen")
	n.t.Cleanup(func() { l.Close() })
	pool := x509.NewCertPool()
	pool.AddCert(n.ca.Cert)
	up := must.Get(tls.Dial("tcp", enclave, &tls.Config{Certificates: []tls.Certificate{n.victim}, RootCAs: pool}))(
		n.t, "connect to the enclave")
	n.t.Cleanup(func() { up.Close() })
	doc := must.Get(attestedtls.ReadMessage(up))(n.t, "get a document of the enclave's")
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		attestedtls.WriteMessage(conn, doc)
		attestedtls.WriteMessage(conn, make([]byte, attestedtls.NonceSize))
		if got, err := attestedtls.ReadMessage(conn); err == nil {
			n.t.Errorf("the client sends %d bytes of evidence to a relay of an enclave's document", len(got))
		}
	}()
	return l.Addr().String()
}

// TestNoClientCertificate: without a certificate of the CA there is no connection to prove anything in.
func TestNoClientCertificate(t *testing.T) {
	n := newNode(t)
	address, _ := n.startServer(n.simulator()...)
	stranger := must.Get(simca.New("Stranger", time.Now()))(t, "make another CA")
	ca := n.ca
	n.ca = stranger
	foreign := n.issue("foreign")
	pool := x509.NewCertPool()
	pool.AddCert(ca.Cert)
	for name, certs := range map[string][]tls.Certificate{"none": nil, "of another CA": {foreign}} {
		conn, err := tls.Dial("tcp", address, &tls.Config{Certificates: certs, RootCAs: pool})
		if err != nil {
			continue
		}
		conn.SetDeadline(time.Now().Add(2 * time.Minute))
		if doc, err := attestedtls.ReadMessage(conn); err == nil {
			t.Errorf("a client with a certificate %s gets the enclave's document, %x", name, doc)
		}
		conn.Close()
	}
}

// TestNonce: both ends of a connection derive the same nonce, and no two connections do.
func TestNonce(t *testing.T) {
	n := newNode(t)
	pool := x509.NewCertPool()
	pool.AddCert(n.ca.Cert)
	random := make([]byte, attestedtls.NonceSize)
	seen := make(map[string]bool)
	for range 2 {
		a, b := net.Pipe()
		server := tls.Server(a, &tls.Config{Certificates: []tls.Certificate{n.other}, SessionTicketsDisabled: true})
		client := tls.Client(b, &tls.Config{RootCAs: pool, ServerName: "localhost"})
		done := make(chan error, 1)
		go func() { done <- server.Handshake() }()
		must.Do(t, errors.Join(client.Handshake(), <-done), "shake hands over a pipe")
		got, want := n.nonce(client, random), n.nonce(server, random)
		if !bytes.Equal(got, want) || seen[string(got)] {
			t.Errorf("nonce %x at the client, %x at the server; seen before: %v", got, want, seen[string(got)])
		}
		seen[string(got)] = true
		if _, err := attestedtls.Nonce(client.ConnectionState(), random[1:]); err == nil {
			t.Error("a short random number is taken")
		}
		a.Close()
		b.Close()
	}
}

// TestMessages: messages are bounded, and read whole or not at all.
func TestMessages(t *testing.T) {
	var b bytes.Buffer
	most := make([]byte, attestedtls.MaxMessage)
	must.Do(t, attestedtls.WriteMessage(&b, most), "write a message of the greatest size")
	if got, err := attestedtls.ReadMessage(bytes.NewReader(b.Bytes())); err != nil || len(got) != len(most) {
		t.Errorf("%d bytes come back as %d: %v", len(most), len(got), err)
	}
	if err := attestedtls.WriteMessage(io.Discard, append(most, 0)); err == nil {
		t.Error("a message beyond the bound is written")
	}
	for name, text := range map[string]string{"nothing": "", "cut length": "\x00\x00", "cut": "\x00\x00\x00\x02a",
		"too long": "\x00\x04\x00\x01", "huge": "\xff\xff\xff\xff"} {
		if got, err := attestedtls.ReadMessage(strings.NewReader(text)); err == nil {
			t.Errorf("%s: read as %q", name, got)
		}
	}
}

// TestDocument: docs/attested-tls.md quotes the code that runs.
func TestDocument(t *testing.T) {
	document := string(must.Get(os.ReadFile("../../docs/attested-tls.md"))(t, "read the page that quotes it"))
	for file, name := range map[string]string{"server/verify.go": "verifyPeer", "client/enclave.go": "verifyEnclave"} {
		source := must.Get(os.ReadFile(file))(t, "read the example's source")
		_, function, ok := strings.Cut(string(source), "\n// "+name+" ")
		if !ok || !strings.Contains(document, "```go\n// "+name+" "+function+"```\n") {
			t.Errorf("docs/attested-tls.md does not quote %s of %s as it is", name, file)
		}
	}
}

// TestTryIt runs the commands of docs/attested-tls.md, on one simulated node among those that this machine may have.
func TestTryIt(t *testing.T) {
	document := string(must.Get(os.ReadFile("../../docs/attested-tls.md"))(t, "read the page"))
	_, document, _ = strings.Cut(document, "## Try it, without hardware\n")
	blocks := regexp.MustCompile("(?ms)^```\n(.*?)^```$").FindAllStringSubmatch(document, -1)
	if len(blocks) != 3 {
		t.Fatalf("the page has %d blocks of commands, want 3", len(blocks))
	}
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "bin")+"/", "./cmd/...")
	build.Dir = "../.."
	out, err := build.CombinedOutput()
	must.Do(t, err, "build the binaries: %s", out)
	must.Do(t, os.Symlink(bin, filepath.Join(dir, "bin/attested-tls")), "link the examples")
	if !strings.HasSuffix(blocks[0][1], "\nbin/sevsim node\n") {
		t.Fatalf("the first block ends otherwise than with the node: %q", blocks[0][1])
	}
	start := func(command string, ready *regexp.Regexp) string {
		t.Helper()
		cmd := exec.Command("bash", "-euc", command)
		cmd.Dir = dir
		stdout := must.Get(cmd.StdoutPipe())(t, "make a pipe")
		must.Do(t, cmd.Start(), "start %s", command)
		lines := bufio.NewReader(stdout)
		t.Cleanup(func() {
			cmd.Process.Signal(syscall.SIGTERM)
			io.Copy(io.Discard, lines)
			cmd.Wait()
		})
		for {
			line, err := lines.ReadString('\n')
			if m := ready.FindStringSubmatch(line); m != nil {
				return m[len(m)-1]
			}
			must.Do(t, err, "wait for %s to print %s", command, ready)
		}
	}
	socket := start("exec bin/sevsim node", regexp.MustCompile(`sevagent status --socket (\S+)`))
	node := filepath.Dir(filepath.Dir(socket))
	l := must.Get(net.Listen("tcp", "127.0.0.1:0"))(t, "find a free port")
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	here := strings.NewReplacer("$(ls -d /dev/shm/sevagent-demo-*)", node, ":8443", ":"+port, "bin/attested-tls/server",
		"exec bin/attested-tls/server")
	start(here.Replace(blocks[1][1]), regexp.MustCompile(`listening on`))
	client := exec.Command("bash", "-euc", here.Replace(blocks[2][1]))
	client.Dir = dir
	out, err = client.CombinedOutput()
	if want := "localhost:" + port + ": accepted\n"; err != nil || string(out) != want {
		t.Errorf("the client prints %q, %v, want %q", out, err, want)
	}
	client = exec.Command("bash", "-euc", strings.Replace(here.Replace(blocks[2][1]), "--enclave-roots root.pem", "", 1))
	client.Dir = dir
	if out, err := client.CombinedOutput(); exitCode(err) != 1 || !strings.Contains(string(out), "nitrotpm_chain") {
		t.Errorf("without the simulator's root the client prints %q, %v, want status 1 and nitrotpm_chain", out, err)
	}
}

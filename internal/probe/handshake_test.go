package probe

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sevagent/client"
	"sevagent/internal/must"
	"sevagent/internal/promtext"
	"sevagent/internal/sim/simca"
)

func pair(t testing.TB, l simca.Leaf) *tls.Certificate {
	t.Helper()
	c := must.Get(tls.X509KeyPair([]byte(l.Cert), []byte(l.Key)))(t, "load a pair")
	return &c
}

func pool(ca *simca.CA) *x509.CertPool {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(ca.PEM()))
	return roots
}

// pki issues the tests' certificates.
type pki struct {
	t           testing.TB
	now         time.Time
	ca, foreign *simca.CA
}

func newPKI(t testing.TB) pki {
	t.Helper()
	now := time.Now()
	ours := must.Get(simca.New("ours", now))(t, "make our CA")
	return pki{t, now, ours, must.Get(simca.New("foreign", now))(t, "make a foreign CA")}
}

// leaf is for 127.0.0.1, valid for a day about now.
func (k pki) leaf(ca *simca.CA) simca.Leaf {
	return must.Get(ca.Issue("leaf", k.now.Add(-12*time.Hour), k.now.Add(12*time.Hour)))(k.t, "issue a leaf")
}

// server is the configuration of a good server: it requires a client certificate of ours.
func (k pki) server(change ...func(*tls.Config)) *tls.Config {
	c := &tls.Config{Certificates: []tls.Certificate{*pair(k.t, k.leaf(k.ca))}, ClientCAs: pool(k.ca),
		ClientAuth: tls.RequireAndVerifyClientCert}
	for _, f := range change {
		f(c)
	}
	return c
}

func (k pki) material(ca *simca.CA) func() (*tls.Certificate, *x509.CertPool, error) {
	cert, roots := pair(k.t, k.leaf(ca)), pool(k.ca)
	return func() (*tls.Certificate, *x509.CertPool, error) { return cert, roots, nil }
}

func testLog(t testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

func newProber(t testing.TB, material func() (*tls.Certificate, *x509.CertPool, error), s Settings) *Prober {
	return New(Config{Material: material, Settings: s, Registerer: promtext.New(), Log: testLog(t)})
}

// serve hands every connection to handle, and returns where it listens.
func serve(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	l := must.Get(net.Listen("tcp", "127.0.0.1:0"))(t, "listen on loopback")
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				handle(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

// serveTLS shakes hands, and then waits for the client to leave.
func serveTLS(t *testing.T, c *tls.Config) string {
	return serve(t, func(conn net.Conn) {
		if s := tls.Server(conn, c); s.Handshake() == nil {
			io.Copy(io.Discard, s)
		}
	})
}

// long is a time that no test waits for.
const long = time.Minute

func TestResults(t *testing.T) {
	k := newPKI(t)
	template := simca.Template{Name: "leaf", NotBefore: k.now.Add(-2 * time.Hour), NotAfter: k.now.Add(time.Hour),
		IPAddresses: []net.IP{{127, 0, 0, 1}}, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	shows := func(ca *simca.CA, change func(*simca.Template)) func(*tls.Config) {
		tp := template
		change(&tp)
		leaf := pair(t, must.Get(ca.IssueFrom(tp))(t, "issue a leaf"))
		return func(c *tls.Config) { c.Certificates = []tls.Certificate{*leaf} }
	}
	asIs := func(*simca.Template) {}
	tls12 := func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }
	tls11 := func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }
	accepts := func(kind tls.ClientAuthType) func(*tls.Config) {
		return func(c *tls.Config) { c.ClientAuth = kind }
	}
	onTLS := func(change ...func(*tls.Config)) func(*testing.T) string {
		return func(t *testing.T) string { return serveTLS(t, k.server(change...)) }
	}
	raw := func(handle func(net.Conn)) func(*testing.T) string {
		return func(t *testing.T) string { return serve(t, handle) }
	}
	hangsUp := func(after func(*tls.Conn) error, change ...func(*tls.Config)) func(*testing.T) string {
		c := k.server(change...)
		return raw(func(conn net.Conn) { after(tls.Server(conn, c)) })
	}
	intermediate := must.Get(k.ca.Intermediate("intermediate", k.now))(t, "make an intermediate")

	for _, test := range []struct {
		name      string
		server    func(*testing.T) string
		client    *simca.CA
		linger    time.Duration // default: long
		short     bool          // the probe runs into its timeout
		want      client.ProbeResult
		reason    string // part of the reason
		described bool   // the server's certificate is
	}{
		{name: "good", server: onTLS(), linger: time.Millisecond, want: client.ProbeOK, described: true},
		{name: "good with TLS 1.2", server: onTLS(tls12), linger: time.Millisecond,
			want: client.ProbeOK, described: true},
		{name: "good with an intermediate", server: onTLS(shows(intermediate, asIs)),
			linger: time.Millisecond, want: client.ProbeOK, described: true},
		{name: "good and talkative", server: hangsUp(func(c *tls.Conn) error {
			_, err := io.WriteString(c, "hello")
			return err
		}), want: client.ProbeOK, described: true},
		{name: "refuses our certificate", server: onTLS(), client: k.foreign, want: client.ProbeAlert,
			reason: `to our certificate with the alert "unknown certificate authority"`, described: true},
		{name: "refuses our certificate with TLS 1.2", server: onTLS(tls12), client: k.foreign, want: client.ProbeAlert,
			reason: `to our certificate with the alert "unknown certificate authority"`, described: true},
		{name: "refuses our certificate for a reason of its own", server: onTLS(func(c *tls.Config) {
			c.VerifyConnection = func(tls.ConnectionState) error { return errors.New("no") }
		}), want: client.ProbeAlert, reason: `"bad certificate"`, described: true},
		{name: "hangs up over our certificate", server: hangsUp((*tls.Conn).Handshake),
			want: client.ProbeClosed, reason: "no alert", described: true},
		{name: "hangs up over our certificate with TLS 1.2", server: hangsUp((*tls.Conn).Handshake, tls12),
			want: client.ProbeClosed, reason: "no alert", described: true},
		{name: "expired", server: onTLS(shows(k.ca, func(t *simca.Template) { t.NotAfter = k.now.Add(-time.Hour) })),
			want: client.ProbeExpired, reason: "is after", described: true},
		{name: "not valid yet", server: onTLS(shows(k.ca, func(t *simca.Template) {
			t.NotBefore = k.now.Add(time.Hour)
		})), want: client.ProbeExpired, reason: "is before", described: true},
		{name: "foreign CA", server: onTLS(shows(k.foreign, asIs)),
			want: client.ProbeUntrusted, reason: "unknown authority", described: true},
		{name: "foreign CA with TLS 1.2", server: onTLS(shows(k.foreign, asIs), tls12),
			want: client.ProbeUntrusted, reason: "unknown authority", described: true},
		{name: "not for servers", server: onTLS(shows(k.ca, func(t *simca.Template) {
			t.Usages = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		})), want: client.ProbeUntrusted, reason: "key usage", described: true},
		{name: "wrong address", server: onTLS(shows(k.ca, func(t *simca.Template) {
			t.IPAddresses = []net.IP{{127, 0, 0, 2}}
		})), want: client.ProbeNameMismatch, reason: "127.0.0.2, not 127.0.0.1", described: true},
		{name: "wrong name of a foreign CA", server: onTLS(shows(k.foreign,
			func(t *simca.Template) { t.IPAddresses = nil })), want: client.ProbeUntrusted, described: true},
		{name: "no client authentication", server: onTLS(accepts(tls.NoClientCert)),
			want: client.ProbeNotRequested, reason: "does not ask", described: true},
		{name: "no client authentication with TLS 1.2", server: onTLS(accepts(tls.NoClientCert), tls12),
			want: client.ProbeNotRequested, described: true},
		{name: "asks and does not insist", server: onTLS(accepts(tls.RequestClientCert)),
			linger: time.Millisecond, want: client.ProbeOK, described: true},
		{name: "TLS 1.1", server: onTLS(tls11), want: client.ProbeAlert,
			reason: `before it had our certificate with the alert "protocol version not supported"`},
		{name: "not TLS", server: raw(func(c net.Conn) {
			bufio.NewReader(c).ReadByte()
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			io.Copy(io.Discard, c)
		}), want: client.ProbeProtocol, reason: "does not look like a TLS handshake"},
		{name: "hangs up at once", server: raw(func(net.Conn) {}),
			want: client.ProbeProtocol, reason: "closed the connection"},
		{name: "hangs up after the hello", server: raw(func(c net.Conn) { c.Read(make([]byte, 4096)) }),
			want: client.ProbeProtocol, reason: "closed the connection"},
		{name: "never answers", server: raw(func(c net.Conn) { io.Copy(io.Discard, c) }),
			short: true, want: client.ProbeTimeout, reason: "did not end within"},
		{name: "nobody listens", server: func(*testing.T) string {
			l := must.Get(net.Listen("tcp", "127.0.0.1:0"))(t, "listen on loopback")
			l.Close()
			return l.Addr().String()
		}, want: client.ProbeRefused, reason: "refused"},
		// RFC 6761 has .invalid never resolve.
		{name: "no such name", server: func(*testing.T) string { return "enclave.invalid:443" },
			want: client.ProbeDNS, reason: "enclave.invalid"},
		{name: "no port", server: func(*testing.T) string { return "127.0.0.1" },
			want: client.ProbeUnreachable, reason: "missing port"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			issuer := test.client
			if issuer == nil {
				issuer = k.ca
			}
			p := newProber(t, k.material(issuer), Settings{})
			p.timeout, p.linger = long, long
			if test.linger > 0 {
				p.linger = test.linger
			}
			if test.short {
				p.timeout = 2 * time.Second
			}
			endpoint := test.server(t)
			r := p.probe(t.Context(), endpoint)
			if r.Result != test.want || !strings.Contains(r.Reason, test.reason) {
				t.Errorf("%s, %q, want %s, with %q", r.Result, r.Reason, test.want, test.reason)
			}
			if r.OK() != (test.want == client.ProbeOK) || r.OK() != (r.Reason == "") {
				t.Errorf("OK is %v with result %s and reason %q", r.OK(), r.Result, r.Reason)
			}
			connected := test.want != client.ProbeDNS && test.want != client.ProbeRefused &&
				test.want != client.ProbeUnreachable
			if r.Reachable != connected || (r.ConnectSeconds > 0) != connected ||
				r.Reachable != (r.Address == endpoint) {
				t.Errorf("reachable: %v, after %v s, at %q", r.Reachable, r.ConnectSeconds, r.Address)
			}
			if (r.Server != nil) != test.described || strings.HasPrefix(r.TLSVersion, "TLS 1.") != test.described {
				t.Errorf("server's certificate %+v, version %q, want to know: %v",
					r.Server, r.TLSVersion, test.described)
			}
		})
	}
}

// TestServerCertificate: an untrusted server is described all the same, in text that is safe for a terminal.
func TestServerCertificate(t *testing.T) {
	k := newPKI(t)
	notAfter := k.now.Add(-time.Minute).UTC().Truncate(time.Second)
	leaf := pair(t, must.Get(k.foreign.IssueFrom(simca.Template{
		Name: "evil\x1b[2J" + strings.Repeat("é", maxText), NotBefore: notAfter.Add(-time.Hour), NotAfter: notAfter,
	}))(t, "issue a hostile leaf"))
	p := newProber(t, k.material(k.ca), Settings{})
	r := p.probe(t.Context(), serveTLS(t, k.server(func(c *tls.Config) { c.Certificates = []tls.Certificate{*leaf} })))
	if r.Result != client.ProbeExpired || r.Server == nil {
		t.Fatalf("the result is %+v, want the expired server described", r)
	}
	sum := sha256.Sum256(leaf.Certificate[0])
	c := *r.Server
	if !c.NotAfter.Equal(notAfter) || !c.NotBefore.Equal(notAfter.Add(-time.Hour)) || c.Issuer != "CN=foreign" ||
		c.SHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("the server's certificate is described as %+v", c)
	}
	if !strings.HasPrefix(c.Subject, `CN=evil\x1b[2Jéé`) || len(c.Subject) > maxText+3 {
		t.Errorf("subject %q", c.Subject)
	}
	if r.HandshakeSeconds != 0 {
		t.Errorf("a handshake that failed took %v s", r.HandshakeSeconds)
	}
}

// TestRotation: every probe takes what is published at that time.
func TestRotation(t *testing.T) {
	k := newPKI(t)
	var material func() (*tls.Certificate, *x509.CertPool, error)
	p := newProber(t, func() (*tls.Certificate, *x509.CertPool, error) { return material() }, Settings{})
	p.linger = long
	p.timeout = long
	endpoint := serve(t, func(conn net.Conn) { // greets the clients that it trusts
		if s := tls.Server(conn, k.server()); s.Handshake() == nil {
			io.WriteString(s, "hello")
		}
	})
	for _, step := range []struct {
		name     string
		material func() (*tls.Certificate, *x509.CertPool, error)
		want     client.ProbeResult
	}{
		{"an error", func() (*tls.Certificate, *x509.CertPool, error) { return nil, nil, errors.New("half a pair") },
			client.ProbeNoMaterial},
		{"no certificate", func() (*tls.Certificate, *x509.CertPool, error) { return nil, pool(k.ca), nil },
			client.ProbeNoMaterial},
		{"no anchors", func() (*tls.Certificate, *x509.CertPool, error) { return pair(t, k.leaf(k.ca)), nil, nil },
			client.ProbeNoMaterial},
		{"a foreign certificate", k.material(k.foreign), client.ProbeAlert},
		{"a good certificate", k.material(k.ca), client.ProbeOK},
	} {
		material = step.material
		if r := p.probe(t.Context(), endpoint); r.Result != step.want ||
			r.Reachable != (step.want != client.ProbeNoMaterial) {
			t.Errorf("with %s: %+v, want %s", step.name, r, step.want)
		}
	}
}

// TestOpenSSL: another implementation of TLS rejects and accepts us in its own way.
func TestOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("no openssl in PATH to serve TLS")
	}
	k := newPKI(t)
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		must.Do(t, os.WriteFile(path, []byte(content), 0o600), "write %s", name)
		return path
	}
	leaf := k.leaf(k.ca)
	cert, key, ca := file("cert", leaf.Cert), file("key", leaf.Key), file("ca", k.ca.PEM())

	for _, version := range []string{"-tls1_3", "-tls1_2"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			l := must.Get(net.Listen("tcp", "127.0.0.1:0"))(t, "listen on loopback")
			endpoint := l.Addr().String()
			l.Close()
			cmd := exec.CommandContext(t.Context(), openssl,
				"s_server", "-accept", endpoint, "-cert", cert, "-key", key,
				"-CAfile", ca,
				"-Verify", "1", "-verify_return_error", version)
			cmd.Stderr = t.Output()
			stdin := must.Get(cmd.StdinPipe())(t, "make standard input") // at its end s_server would go
			stdout := must.Get(cmd.StdoutPipe())(t, "make standard output")
			must.Do(t, cmd.Start(), "start openssl s_server")
			defer func() {
				stdin.Close()
				cmd.Process.Kill()
				cmd.Wait()
			}()
			out := bufio.NewScanner(stdout)
			for out.Scan() && !strings.HasPrefix(out.Text(), "ACCEPT") {
			}
			if out.Text() == "" {
				t.Fatal("openssl s_server did not start")
			}
			drained := make(chan struct{})
			go func() {
				defer close(drained)
				io.Copy(io.Discard, stdout)
			}()
			defer func() {
				cmd.Process.Kill()
				<-drained
			}()
			for _, step := range []struct {
				client *simca.CA
				linger time.Duration
				want   client.ProbeResult
				reason string
			}{
				{k.ca, time.Millisecond, client.ProbeOK, ""},
				{k.foreign, long, client.ProbeAlert, "to our certificate"},
				{k.ca, time.Millisecond, client.ProbeOK, ""},
			} {
				p := newProber(t, k.material(step.client), Settings{})
				p.timeout, p.linger = long, step.linger
				r := p.probe(t.Context(), endpoint)
				if r.Result != step.want || !strings.Contains(r.Reason, step.reason) || r.Server == nil ||
					r.Server.Issuer != "CN=ours" {
					t.Errorf("%s with a certificate of %s: %+v, want %s",
						version, step.client.Cert.Subject, r, step.want)
				}
			}
		})
	}
}

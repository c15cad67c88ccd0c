//go:build node

// Package ca holds the client of ACME against Pebble, the authority that Let's Encrypt tests clients with.
package ca

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sevagent/internal/mtls/certset"
	"sevagent/internal/mtls/issue"
	"sevagent/internal/mtls/issue/acme"
	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/mtls/source"
	"sevagent/internal/must"
	"sevagent/internal/sim/simca"
	"sevagent/test/lab"
)

const name = "node.cluster.test"

var macKey = []byte("0123456789abcdef0123456789abcdef")

// pebble is a real Pebble, behind a proxy that can add what it does not do itself.
type pebble struct {
	*lab.Process
	cmd       func() *exec.Cmd
	listen    string
	directory string // through the proxy
	answers   string // where Pebble looks for answers to http-01
	manage    string
	tls       *x509.CertPool // for both
	http      *http.Client

	before atomic.Pointer[func(http.ResponseWriter, *http.Request) (answered bool)]
	after  atomic.Pointer[func(*http.Response)]
}

// start runs Pebble: it demands an external account binding, and repeats an authorization that it has given. Of good
// nonces it refuses 5 %, as it does by default.
func start(t *testing.T) *pebble {
	t.Helper()
	ca := lab.NewCA(t, "TLS of the authority")
	leaf := must.Get(ca.Issue("pebble", time.Now(), time.Now().Add(time.Hour)))(t, "issue Pebble's certificate")
	dir := t.TempDir()
	lab.Write(t, filepath.Join(dir, "cert.pem"), leaf.Cert)
	lab.Write(t, filepath.Join(dir, "key.pem"), leaf.Key)
	p := &pebble{
		listen: lab.FreeAddress(t), answers: lab.FreeAddress(t), manage: "https://" + lab.FreeAddress(t),
		tls: x509.NewCertPool(),
	}
	p.tls.AddCert(ca.Cert)
	p.http = &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: p.tls}, DisableKeepAlives: true,
	}}
	_, port, _ := net.SplitHostPort(p.answers)
	config := must.Get(json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": p.listen, "managementListenAddress": strings.TrimPrefix(p.manage, "https://"),
		"certificate": filepath.Join(dir, "cert.pem"), "privateKey": filepath.Join(dir, "key.pem"),
		"httpPort": json.Number(port), "tlsPort": 1, "keyAlgorithm": "ecdsa",
		"externalAccountBindingRequired": true,
		"externalAccountMACKeys":         map[string]string{"kid-1": base64.RawURLEncoding.EncodeToString(macKey)},
		"domainBlocklist":                []string{"blocked.test"},
		"retryAfter":                     map[string]int{"authz": 1, "order": 1},
		"profiles": map[string]any{
			"default": map[string]any{"description": "the default", "validityPeriod": 7776000},
			"short":   map[string]any{"description": "one hour", "validityPeriod": 3600},
		},
	}}))(t, "encode Pebble's configuration")
	lab.Write(t, filepath.Join(dir, "pebble.json"), string(config))
	resolver := lab.StartResolver(t)
	p.cmd = func() *exec.Cmd {
		cmd := exec.Command(lab.Pinned("pebble", "pebble"), "-strict", "-config", filepath.Join(dir, "pebble.json"),
			"-dnsserver", resolver)
		cmd.Env = lab.Environment("PEBBLE_VA_NOSLEEP=1", "PEBBLE_AUTHZREUSE=100")
		return cmd
	}
	p.run(t)
	p.directory = p.proxy(t, leaf)
	return p
}

// run returns when Pebble answers.
func (p *pebble) run(t *testing.T) {
	t.Helper()
	p.Process = lab.Start(t, "pebble", p.cmd())
	lab.UntilOpen(t, p.Process, p.listen)
	lab.UntilOpen(t, p.Process, strings.TrimPrefix(p.manage, "https://"))
}

// restart forgets all accounts and orders, as Pebble does when it ends, and makes a new root.
func (p *pebble) restart(t *testing.T) {
	t.Helper()
	p.Stop(t, syscall.SIGTERM)
	p.run(t)
}

// proxy returns the URL of the directory through a proxy under the same certificate.
func (p *pebble) proxy(t *testing.T, leaf simca.Leaf) string {
	t.Helper()
	front := httptest.NewUnstartedServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "https", Host: p.listen})
			r.Out.Host = r.In.Host // Pebble's URLs have it
		},
		Transport: p.http.Transport,
		ModifyResponse: func(r *http.Response) error {
			if f := p.after.Load(); f != nil {
				(*f)(r)
			}
			return nil
		},
	})
	proxied := front.Config.Handler
	front.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f := p.before.Load(); f == nil || !(*f)(w, r) {
			proxied.ServeHTTP(w, r)
		}
	})
	pair := must.Get(tls.X509KeyPair([]byte(leaf.Cert), []byte(leaf.Key)))(t, "load the proxy's certificate")
	front.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	front.StartTLS()
	t.Cleanup(front.Close)
	return front.URL + "/dir"
}

// roots asks for the root, which is new after each start.
func (p *pebble) roots(t *testing.T) (*x509.CertPool, []*x509.Certificate) {
	t.Helper()
	res := must.Get(p.http.Get(p.manage+"/roots/0"))(t, "get Pebble's root")
	defer res.Body.Close()
	block, _ := pem.Decode(must.Get(io.ReadAll(res.Body))(t, "read Pebble's root"))
	root := must.Get(x509.ParseCertificate(block.Bytes))(t, "parse Pebble's root")
	pool := x509.NewCertPool()
	pool.AddCert(root)
	return pool, []*x509.Certificate{root}
}

// config is one with which orders succeed.
func (p *pebble) config(t *testing.T) acme.Config {
	return acme.Config{
		Directory: p.directory, Roots: p.tls, Contact: []string{"mailto:ops@cluster.test"}, Profile: "short",
		EAB:       func(context.Context) (string, []byte, error) { return "kid-1", macKey, nil },
		Challenge: acme.HTTP01, Listen: p.answers, Log: mtlstest.Log(t),
	}
}

// TestServerCertificate: a certificate of a server whose key was born here, its renewals, and what is asked between.
func TestServerCertificate(t *testing.T) {
	p := start(t)
	pool, anchors := p.roots(t)
	c := p.config(t)
	c.Anchors = anchors
	bindings := 0
	binding := c.EAB
	c.EAB = func(ctx context.Context) (string, []byte, error) { bindings++; return binding(ctx) }
	a := acme.New(c)

	first, _ := lab.Order(t, a, pool, x509.ExtKeyUsageServerAuth, name, "www.cluster.test")
	leaf := first.Chain[0]
	if life := leaf.NotAfter.Sub(leaf.NotBefore); life > time.Hour {
		t.Errorf("the certificate has a life of %v: not that of the profile", life)
	}
	if len(first.Chain) != 2 || len(first.Anchors) != 1 || !first.Anchors[0].Equal(anchors[0]) {
		t.Errorf("%d certificates and %d anchors, want a leaf, an intermediate, and the root that was given",
			len(first.Chain), len(first.Anchors))
	}
	// A public authority issues for servers alone: a client of it could not be verified.
	if u := leaf.ExtKeyUsage; len(u) != 1 || u[0] != x509.ExtKeyUsageServerAuth {
		t.Errorf("usages %v: Pebble has changed; docs say that authorities like it issue for servers alone", u)
	}
	if conn, err := net.Dial("tcp", c.Listen); err == nil {
		conn.Close()
		t.Errorf("%s is still open, although no order waits", c.Listen)
	}

	// The names are authorized now: without any challenge, with other keys, from the same account.
	a.Challenge = acme.None
	for range 10 {
		again, _ := lab.Order(t, a, pool, x509.ExtKeyUsageServerAuth, name)
		if again.Chain[0].SerialNumber.Cmp(leaf.SerialNumber) == 0 {
			t.Error("a renewal gave the same certificate")
		}
	}
	if bindings != 1 {
		t.Errorf("the external account binding was used %d times, want once", bindings)
	}

	start, end, again, err := a.RenewalWindow(t.Context(), leaf)
	if err != nil || start.Before(leaf.NotBefore) || !end.After(start) || end.After(leaf.NotAfter) {
		t.Errorf("renewal from %v to %v (%v), want a window in the certificate's life", start, end, err)
	}
	if life := leaf.NotAfter.Sub(leaf.NotBefore); again != life/10 { // Pebble says 6 hours
		t.Errorf("ask again after %v, want a tenth of the life, %v", again, life/10)
	}
	soon := time.Now().UTC().Truncate(time.Second)
	p.suggest(t, leaf, map[string]any{"suggestedWindow": map[string]any{"start": soon, "end": soon.Add(time.Minute)}})
	start, end, _, err = a.RenewalWindow(t.Context(), leaf)
	if err != nil || !start.Equal(soon) || !end.Equal(soon.Add(time.Minute)) {
		t.Errorf("renewal from %v to %v (%v), want what the authority has set", start, end, err)
	}
	p.suggest(t, leaf, map[string]any{"suggestedWindow": map[string]any{"start": soon, "end": soon}})
	if _, _, again, err = a.RenewalWindow(t.Context(), leaf); err == nil || again < time.Minute {
		t.Errorf("an empty window: %v, ask again after %v; want an error, and some time", err, again)
	}

	// It loses everything.
	r, _ := lab.NewRequest(t, &x509.CertificateRequest{DNSNames: []string{name}})
	lost := must.Get(a.Order(t.Context(), r))(t, "order")
	p.restart(t)
	if _, err := lost.Collect(t.Context()); !errors.Is(err, issue.ErrLost) {
		t.Errorf("an order of which the authority does not know: %v, want that it is lost", err)
	}
	a.Challenge = acme.HTTP01
	for want := 2; want <= 3; want++ {
		pool, _ = p.roots(t)
		lab.Order(t, a, pool, x509.ExtKeyUsageServerAuth, name)
		if bindings != want {
			t.Errorf("%d accounts were registered, want %d: one more each time that the authority loses them", bindings, want)
		}
		p.restart(t) // between two orders, this time
	}
}

// TestSource: from the configuration of an operator to what can be published, by the source that the agent has.
func TestSource(t *testing.T) {
	p := start(t)
	_, anchors := p.roots(t)
	c := p.config(t)
	c.Anchors = anchors
	newSource := func(gives string) *issue.Source {
		return issue.New(issue.Config{
			Name: "issue/node", From: "acme", Authority: acme.New(c), Gives: []string{gives}, Key: "ecdsa-p384", Spec: gives,
			Names: func(context.Context) (*x509.CertificateRequest, error) {
				return &x509.CertificateRequest{DNSNames: []string{name}}, nil
			},
			Log: mtlstest.Log(t),
		})
	}
	// next asks until there is another version than old, and returns it as a bundle.
	next := func(s *issue.Source, old string) *certset.Bundle {
		t.Helper()
		var version string
		lab.Until(t, "a certificate", func() error {
			v, err := s.Describe(t.Context())
			if err != nil {
				t.Fatalf("describe: %v", err)
			} else if v.Current == old {
				return errors.New("none yet")
			}
			version = v.Current
			return nil
		})
		content := must.Get(s.Fetch(t.Context(), version, source.Current))(t, "fetch version %s", version)
		return must.Get(certset.Parse("issue/node", version, content(), certset.Reading{}))(t, "parse version %s", version)
	}

	s := newSource("server")
	b := next(s, "")
	if _, err := certset.Assemble([]*certset.Bundle{b}, nil, time.Now(), nil); err != nil {
		t.Errorf("the server's certificate cannot be published: %v", err)
	}
	for _, renew := range []func(){
		func() { // as an authority does that is about to revoke it; a second time it would be followed later
			p.suggest(t, b.Leaf(), map[string]any{
				"suggestedWindow": map[string]any{"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z"},
			})
		},
		s.Renew,
	} {
		s.Published(b.Version, b.Leaf())
		renew()
		again := next(s, b.Version)
		if certset.SPKI(again.Leaf()) == certset.SPKI(b.Leaf()) {
			t.Error("the renewed certificate has the same key")
		}
		b = again
	}

	// Authorities like Pebble do not issue for clients. That is found out before it is published.
	b = next(newSource("client"), "")
	_, err := certset.Assemble([]*certset.Bundle{b}, nil, time.Now(), nil)
	if err == nil || !strings.Contains(err.Error(), "not for client authentication") {
		t.Errorf("a client's certificate from Pebble: %v, want that it is not for clients", err)
	}
}

// suggest has Pebble answer with a window of the test's.
func (p *pebble) suggest(t *testing.T, leaf *x509.Certificate, window any) {
	t.Helper()
	body := must.Get(json.Marshal(map[string]any{
		"certificate": mtlstest.CertPEM(leaf), "ariResponse": string(must.Get(json.Marshal(window))(t, "encode")),
	}))(t, "encode renewal information")
	res := must.Get(p.http.Post(p.manage+"/set-renewal-info/", "application/json", bytes.NewReader(body)))(t, "set it")
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Fatalf("set renewal information: %s", res.Status)
	}
}

// TestRefused: what an operator has configured wrong. Each says what to do.
func TestRefused(t *testing.T) {
	p := start(t)
	taken := must.Get(net.Listen("tcp", "127.0.0.1:0"))(t, "occupy a port")
	defer taken.Close()
	for what, c := range map[string]struct {
		change  func(*acme.Config)
		request x509.CertificateRequest
		add     []pkix.Extension
		kind    source.Kind
		lost    bool
		want    []string
	}{
		"no binding": {
			change: func(c *acme.Config) { c.EAB = nil },
			kind:   source.Persistent, want: []string{"set eab"},
		},
		"wrong key of the binding": {
			change: func(c *acme.Config) {
				c.EAB = func(context.Context) (string, []byte, error) { return "kid-1", []byte("wrong"), nil }
			},
			kind: source.Persistent, want: []string{"register an account", "check the key ID and the MAC key of eab"},
		},
		"wrong key ID of the binding": {
			change: func(c *acme.Config) {
				c.EAB = func(context.Context) (string, []byte, error) { return "kid-2", macKey, nil }
			},
			kind: source.Persistent, want: []string{"register an account", "check the key ID and the MAC key of eab"},
		},
		"a binding that cannot be read": {
			change: func(c *acme.Config) {
				c.EAB = func(context.Context) (string, []byte, error) {
					return "", nil, &source.Error{Kind: source.Persistent, Err: errors.New("read secret x: denied")}
				}
			},
			kind: source.Persistent, want: []string{"get the external account binding: read secret x: denied"},
		},
		"contact": {
			change: func(c *acme.Config) { c.Contact = []string{"tel:112"} },
			kind:   source.Persistent, want: []string{"change contact"},
		},
		"profile": {
			change: func(c *acme.Config) { c.Profile = "long" },
			kind:   source.Persistent, want: []string{`no profile "long", but default, short`},
		},
		"a name that it does not issue for": {
			request: x509.CertificateRequest{DNSNames: []string{"blocked.test"}},
			kind:    source.Persistent, want: []string{"rejectedIdentifier", "change dns"},
		},
		"no challenge": {
			change: func(c *acme.Config) { c.Challenge = "" },
			kind:   source.Persistent, lost: true,
			want: []string{"control over " + name + " by ", "http-01", "challenge is none"},
		},
		"an address that the authority does not ask": {
			change: func(c *acme.Config) { c.Listen = lab.FreeAddress(t) },
			kind:   source.Transient, lost: true, want: []string{"by http-01", "(connection)", "lead to challenge_listen"},
		},
		"an address that is taken": {
			change: func(c *acme.Config) { c.Listen = taken.Addr().String() },
			kind:   source.Persistent, want: []string{"address already in use", "change challenge_listen"},
		},
		"unknown certificate": {
			change: func(c *acme.Config) { c.Roots = nil },
			kind:   source.Persistent, want: []string{"set roots"},
		},
		"no directory": {
			change: func(c *acme.Config) { c.Directory += "ectory" },
			kind:   source.Persistent, want: []string{"404", "check directory"},
		},
		"something else than a directory": {
			change: func(c *acme.Config) { c.Directory = p.manage + "/roots/0" },
			kind:   source.Persistent, want: []string{"no ACME directory", "check directory"},
		},
		"nobody there": {
			change: func(c *acme.Config) { c.Directory = "https://" + lab.FreeAddress(t) },
			kind:   source.Transient, want: []string{"connection refused", "check that the node can reach it"},
		},
		"without TLS": {
			change: func(c *acme.Config) { c.Directory = strings.Replace(c.Directory, "https:", "http:", 1) },
			kind:   source.Persistent, want: []string{"ACME needs https"},
		},
		"extensions": {
			add:  []pkix.Extension{{Id: []int{1, 3, 6, 1, 5, 5, 7, 1, 35}, Value: []byte{5, 0}}},
			kind: source.Persistent, want: []string{"evidence: none"},
		},
		"a URI": {
			request: x509.CertificateRequest{DNSNames: []string{name}, URIs: []*url.URL{{Scheme: "spiffe", Host: "x"}}},
			kind:    source.Persistent, want: []string{"remove uri"},
		},
		"no name": {
			request: x509.CertificateRequest{Subject: pkix.Name{CommonName: name}},
			kind:    source.Persistent, want: []string{"set dns"},
		},
		"a common name that is no name": {
			request: x509.CertificateRequest{DNSNames: []string{name}, Subject: pkix.Name{CommonName: "i-0123"}},
			kind:    source.Persistent, want: []string{`common name "i-0123"`},
		},
	} {
		t.Run(what, func(t *testing.T) {
			config := p.config(t)
			if c.change != nil {
				c.change(&config)
			}
			if c.request.DNSNames == nil && c.request.Subject.CommonName == "" {
				c.request.DNSNames = []string{name}
			}
			r, _ := lab.NewRequest(t, &c.request)
			r.Extensions = c.add
			o, err := acme.New(config).Order(t.Context(), r)
			if err == nil {
				_, err = lab.Collect(t.Context(), o)
			}
			if err == nil {
				t.Fatal("it gave a certificate")
			}
			t.Log(err)
			if got := source.KindOf(err); got != c.kind {
				t.Errorf("%v: is %s, want %s", err, got, c.kind)
			}
			if errors.Is(err, issue.ErrLost) != c.lost {
				t.Errorf("%v: lost is %t, want %t", err, !c.lost, c.lost)
			}
			if conn, err := net.Dial("tcp", config.Listen); c.lost && err == nil {
				conn.Close()
				t.Errorf("%s is still open, although the order is lost", config.Listen)
			}
			for _, want := range append(c.want, config.Directory) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v: does not say %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q has more than one line", err)
			}
		})
	}
}

// TestTroubles: what happens between a node and an authority that works, or will. The proxy does it, to a real Pebble.
func TestTroubles(t *testing.T) {
	p := start(t)
	pool, _ := p.roots(t)
	a := acme.New(p.config(t))
	lab.Order(t, a, pool, x509.ExtKeyUsageServerAuth, name)
	answer := func(status int, header, text string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPost {
				return false // answers to HEAD have no text
			}
			if header != "" {
				w.Header().Set("Retry-After", header)
			}
			http.Error(w, text, status)
			return true
		}
	}
	order := func() (issue.Order, error) {
		r, _ := lab.NewRequest(t, &x509.CertificateRequest{DNSNames: []string{name}})
		return a.Order(t.Context(), r)
	}

	for what, c := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request) bool
		next   time.Duration // about
		want   string
	}{
		"limit": {
			answer(429, "120", `{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too\nmany"}`),
			2 * time.Minute, "too many (rateLimited)",
		},
		"limit of a week": {
			answer(429, "604800", `{"type":"urn:ietf:params:acme:error:rateLimited"}`), time.Hour, "(rateLimited)",
		},
		"maintenance": {
			answer(503, time.Now().Add(5*time.Minute).UTC().Format(http.TimeFormat), "<p>maintenance</p>"),
			5 * time.Minute, "HTTP 503",
		},
		"broken": {answer(500, "", strings.Repeat("x", 5000)), 0, "xxx… (HTTP 500)"},
		"connections end": {
			func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }, 0, "EOF",
		},
	} {
		p.before.Store(&c.answer)
		_, err := order()
		p.before.Store(nil)
		e, ok := errors.AsType[*source.Error](err)
		if !ok || e.Kind != source.Transient || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want a transient error that says %q", what, err, c.want)
			continue
		}
		if in := time.Until(e.Next); c.next == 0 && !e.Next.IsZero() || c.next != 0 && (in > c.next || in < c.next/2) {
			t.Errorf("%s: next in %v, want about %v", what, in, c.next)
		}
	}

	// It has removed the order.
	removed := must.Get(order())(t, "order")
	gone := answer(404, "", `{"type":"urn:ietf:params:acme:error:malformed","detail":"no such order"}`)
	p.before.Store(&gone)
	if _, err := removed.Collect(t.Context()); !errors.Is(err, issue.ErrLost) {
		t.Errorf("an order that is not there: %v, want that it is lost", err)
	}
	p.before.Store(nil)

	// A nonce that Pebble does not know, once for each request.
	bad := 0
	spoil := func(r *http.Response) {
		if r.StatusCode == http.StatusBadRequest {
			bad++
		} else if r.Request.Method == http.MethodPost && r.Header.Get("Replay-Nonce") != "" {
			r.Header.Set("Replay-Nonce", "spoiled")
		}
	}
	p.after.Store(&spoil)
	lab.Order(t, a, pool, x509.ExtKeyUsageServerAuth, name)
	p.after.Store(nil)
	if bad == 0 {
		t.Error("Pebble did not refuse a nonce")
	}

	// It works on the order for longer than a call lasts, as ACM does for up to two minutes.
	ctx, cancel := context.WithCancel(t.Context()) // the end of a call's time
	var finalized, hidden atomic.Int32
	working := func(r *http.Response) {
		if strings.Contains(r.Request.URL.Path, "/finalize") {
			finalized.Add(1)
		} else if !strings.Contains(r.Request.URL.Path, "/my-order/") {
			return
		} else if finalized.Load() > 0 {
			cancel()
		}
		var o map[string]any
		json.NewDecoder(r.Body).Decode(&o)
		if o["status"] == "valid" || o["status"] == "processing" {
			o["status"] = "processing"
			delete(o, "certificate")
			hidden.Add(1)
		}
		body, _ := json.Marshal(o)
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		r.Header.Del("Content-Length")
		r.Header.Set("Retry-After", "30")
	}
	o := must.Get(order())(t, "order")
	p.after.Store(&working)
	for range 3 {
		_, err := o.Collect(ctx)
		ctx = t.Context()
		e, ok := errors.AsType[*source.Error](err)
		if !errors.Is(err, issue.ErrPending) || !ok || e.Kind != source.Transient ||
			time.Until(e.Next) > 30*time.Second || e.Next.IsZero() {
			t.Errorf("%v (%+v), want that it is pending, and the next look in 30 s", err, e)
		}
	}
	p.after.Store(nil)
	if _, err := lab.Collect(t.Context(), o); err != nil {
		t.Errorf("collect after a long time: %v", err)
	}
	if finalized.Load() != 1 || hidden.Load() < 3 {
		t.Errorf("finalized %d times, looked %d times; want once, and at least three times", finalized.Load(), hidden.Load())
	}

	// The answer to the finalization is lost, or never comes. Whether there is a certificate is found out, not guessed.
	for what, lose := range map[string]func(cancel func(), r *http.Response){
		"lost": func(func(), *http.Response) { panic(http.ErrAbortHandler) },
		"late": func(cancel func(), r *http.Response) { cancel(); <-r.Request.Context().Done() },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		var finalized atomic.Int32
		losing := func(r *http.Response) {
			if strings.Contains(r.Request.URL.Path, "/finalize") {
				finalized.Add(1)
				lose(cancel, r)
			}
		}
		o := must.Get(order())(t, "order")
		p.after.Store(&losing)
		_, err := o.Collect(ctx)
		cancel()
		if err == nil || errors.Is(err, issue.ErrPending) || source.KindOf(err) != source.Transient {
			t.Errorf("%s: %v, want a transient error", what, err)
		}
		p.after.Store(nil)
		if _, err := lab.Collect(t.Context(), o); err != nil {
			t.Errorf("%s: collect again: %v", what, err)
		}
		if finalized.Load() != 1 {
			t.Errorf("%s: finalized %d times", what, finalized.Load())
		}
	}
}

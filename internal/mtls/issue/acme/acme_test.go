package acme

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/acme"

	"sevagent/internal/mtls/issue"
	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/mtls/source"
	"sevagent/internal/must"
)

// What orders and renewals are is tested against Pebble and step-ca: test/ca, test/system/ca.
var (
	_ issue.Authority = (*Authority)(nil)
	_ issue.Suggester = (*Authority)(nil)
)

// TestCertificateID has the example of RFC 9773 section 4.1.
func TestCertificateID(t *testing.T) {
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(0x87654321),
		AuthorityKeyId: []byte{
			0x69, 0x88, 0x5b, 0x6b, 0x87, 0x46, 0x40, 0x41, 0xe1, 0xb3,
			0x7b, 0x84, 0x7b, 0xa0, 0xae, 0x2c, 0xde, 0x01, 0xc8, 0xd4,
		},
	}
	if got, err := certificateID(leaf); err != nil || got != "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE" {
		t.Errorf("the identifier is %q (%v)", got, err)
	}
	leaf.SerialNumber.SetInt64(0x7f)
	if got, err := certificateID(leaf); err != nil || got != "aYhba4dGQEHhs3uEe6CuLN4ByNQ.fw" {
		t.Errorf("the identifier is %q (%v), want the serial number without a zero before it", got, err)
	}
	leaf.AuthorityKeyId = nil
	if got, err := certificateID(leaf); err == nil {
		t.Errorf("without the issuer's key identifier: %q, want an error", got)
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration) string { return now.Add(d).Format(http.TimeFormat) }
	for _, c := range []struct {
		value, date string
		want        time.Duration
	}{
		{"", "", 0},
		{"30", "", 30 * time.Second},
		{"-30", "", 0},
		{"99999999999999999999", "", 0},
		{"soon", "", 0},
		{at(time.Hour), "", time.Hour},
		{at(-time.Hour), "", 0},
		{at(time.Hour), at(59 * time.Minute), time.Minute}, // our clock is behind
	} {
		h := http.Header{"Retry-After": {c.value}, "Date": {c.date}}
		if got := retryAfter(h, now); got != c.want {
			t.Errorf("Retry-After %q at %q: %v, want %v", c.value, c.date, got, c.want)
		}
	}
}

func TestExplain(t *testing.T) {
	problem := func(status int, kind, detail string, sub ...acme.Subproblem) *acme.Error {
		if kind != "" {
			kind = "urn:ietf:params:acme:error:" + kind
		}
		return &acme.Error{StatusCode: status, ProblemType: kind, Detail: detail, Subproblems: sub}
	}
	for _, c := range []struct {
		err  error
		kind source.Kind
		want string
	}{
		// Authorities differ in the status: the type decides.
		{problem(400, "externalAccountRequired", "a"), source.Persistent, "a (externalAccountRequired); set eab"},
		{problem(403, "externalAccountRequired", "a"), source.Persistent, "a (externalAccountRequired); set eab"},
		{problem(500, "caa", "a"), source.Persistent, "a (caa); permit the authority in the CAA record of the name"},
		{problem(400, "dns", "a"), source.Transient, "a (dns); let the authority's resolver find the name"},
		{problem(403, "rateLimited", "a"), source.Transient, "a (rateLimited)"},
		{problem(500, "serverInternal", ""), source.Transient, "it does not say why (serverInternal)"},
		// A type that is new to us, and none.
		{problem(400, "moonPhase", "a"), source.Persistent, "a (moonPhase)"},
		{problem(503, "moonPhase", "a"), source.Transient, "a (moonPhase)"},
		{problem(404, "", "a"), source.Persistent, "a (HTTP 404)"},
		{problem(429, "", "a"), source.Transient, "a (HTTP 429)"},
		{problem(502, "", "a\n\tb  c\xff"), source.Transient, "a b c? (HTTP 502)"},
		{problem(502, "", strings.Repeat("ä", 301)), source.Transient, strings.Repeat("ä", 300) + "… (HTTP 502)"},
		{
			problem(400, "compound", "two", acme.Subproblem{Type: "x", Detail: "one\nof them"},
				acme.Subproblem{Detail: "the other", Identifier: &acme.AuthzID{Type: "dns", Value: "a.test"}}),
			source.Persistent, "two, one of them, a.test: the other (compound)",
		},
		{
			&url.Error{Op: "Get", URL: "https://x", Err: errors.New("no route to host")},
			source.Transient, "no route to host; check that the node can reach it",
		},
		{context.DeadlineExceeded, source.Transient, "it does not answer in time; check that the node can reach it"},
		{persistent("as it is"), source.Persistent, "as it is"},
	} {
		err := explain(c.err)
		if got := source.KindOf(err); got != c.kind || err.Error() != c.want {
			t.Errorf("%v: %q, %s; want %q, %s", c.err, err, got, c.want, c.kind)
		}
		if _, ok := errors.AsType[*acme.Error](c.err); ok && !errors.Is(err, c.err) {
			t.Errorf("%v: the problem is not its cause", err)
		}
	}
}

func TestParseChain(t *testing.T) {
	root := mtlstest.NewCA(t, "root", nil)
	intermediate := mtlstest.NewCA(t, "intermediate", root)
	leaf, _ := intermediate.Leaf(t, "leaf")
	got, err := parseChain([][]byte{leaf.Raw, intermediate.Cert.Raw, root.Cert.Raw})
	if err != nil || len(got) != 2 || !got[0].Equal(leaf) || !got[1].Equal(intermediate.Cert) {
		t.Errorf("%d certificates (%v), want leaf and intermediate without the root", len(got), err)
	}
	if _, err := parseChain([][]byte{leaf.Raw, []byte("none")}); !errors.Is(err, issue.ErrUnusable) {
		t.Error("something else than a certificate is in the chain, without an error")
	}
}

func TestListenAdvice(t *testing.T) {
	err := &net.OpError{Op: "listen", Net: "tcp", Err: os.NewSyscallError("bind", syscall.EACCES)}
	if got := listenAdvice(err); !strings.Contains(got, "CAP_NET_BIND_SERVICE") {
		t.Errorf("%v: the advice is %q, want the capability that the unit does not have", err, got)
	}
}

func TestResponder(t *testing.T) {
	l := must.Get(net.Listen("tcp", "127.0.0.1:0"))(t, "find a free port")
	l.Close()
	r := newResponder(l.Addr().String())
	must.Do(t, r.serve(t.Context(), "/.well-known/acme-challenge/one", "one.key"), "open the responder")
	must.Do(t, r.serve(t.Context(), "/.well-known/acme-challenge/two", "two.key"), "add an answer")
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()

	ask := func(method, path string) (int, string) {
		t.Helper()
		req := must.Get(http.NewRequest(method, "http://"+l.Addr().String()+path, nil))(t, "make a request")
		res := must.Get(client.Do(req))(t, "ask for %s", path)
		defer res.Body.Close()
		return res.StatusCode, string(must.Get(io.ReadAll(res.Body))(t, "read the answer"))
	}
	// As many that hold a connection as may be: more than two of the authority's have to get through.
	for range maxConnections - 2 {
		conn := must.Get(net.Dial("tcp", l.Addr().String()))(t, "connect")
		defer conn.Close()
	}
	for range 2 * maxConnections { // each frees its slot
		if status, text := ask("GET", "/.well-known/acme-challenge/one"); status != 200 || text != "one.key" {
			t.Fatalf("the challenge is answered by %d %q", status, text)
		}
	}
	if _, text := ask("GET", "/.well-known/acme-challenge/two"); text != "two.key" {
		t.Errorf("the second challenge is answered by %q", text)
	}
	for _, c := range [][2]string{
		{"GET", "/"}, {"GET", "/.well-known/acme-challenge/"}, {"GET", "/.well-known/acme-challenge/three"},
		{"POST", "/.well-known/acme-challenge/one"},
	} {
		if status, _ := ask(c[0], c[1]); status != http.StatusNotFound {
			t.Errorf("%s %s is answered by %d, want 404", c[0], c[1], status)
		}
	}
	r.close()
	r.close()
	if conn, err := net.Dial("tcp", l.Addr().String()); err == nil {
		conn.Close()
		t.Error("the address is open although it was closed")
	}

	// Nobody asks for the order any more.
	r.open = time.Millisecond
	must.Do(t, r.serve(t.Context(), "/x", "x"), "open the responder again")
	for {
		r.mu.Lock()
		closed := r.server == nil
		r.mu.Unlock()
		if closed {
			break
		}
	}
	if conn, err := net.Dial("tcp", l.Addr().String()); err == nil {
		conn.Close()
		t.Error("the address stays open although nobody asks for the order")
	}
}

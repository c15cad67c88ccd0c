package mtls

import (
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sevagent/client"
	"sevagent/internal/mtls/issue"
	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/mtls/source"
	"sevagent/internal/must"
)

// authority issues certificates for a day, of which an hour is past.
type authority struct {
	t     *testing.T
	ca    *mtlstest.CA
	delay time.Duration // until a certificate is there
	err   error         // of all calls
	lost  bool          // the order, after it was accepted
	// unusable is what a certificate is of which nothing can be read.
	unusable bool
	// uncollectable is the error of all calls after an order.
	uncollectable error
	change        []mtlstest.Change
	anchor        *x509.Certificate // that it claims to lead to; nil: its own
	other         crypto.Signer     // whose key is certified; nil: the one of the request

	orders, collected int
	tokens            map[string]bool
}

func (a *authority) String() string           { return "the test's CA" }
func (a *authority) Backdated() time.Duration { return time.Hour }

func (a *authority) Order(_ context.Context, r issue.Request) (issue.Order, error) {
	a.orders++
	a.tokens[r.Token] = true
	if a.err != nil {
		return nil, a.err
	}
	return &certificateOrder{a, must.Get(x509.ParseCertificateRequest(r.CSR))(a.t, "read the request"),
		time.Now().Add(a.delay)}, nil
}

type certificateOrder struct {
	*authority
	csr   *x509.CertificateRequest
	there time.Time
}

func (o *certificateOrder) Collect(context.Context) (issue.Certificate, error) {
	switch {
	case o.lost:
		return issue.Certificate{}, fmt.Errorf("%w: RequestFailedException", issue.ErrLost)
	case o.err != nil || o.uncollectable != nil:
		return issue.Certificate{}, cmp.Or(o.err, o.uncollectable)
	case time.Now().Before(o.there):
		return issue.Certificate{}, issue.ErrPending
	}
	o.collected++
	if o.unusable {
		err := fmt.Errorf("collect: %w: its chain ends nowhere", issue.ErrUnusable)
		return issue.Certificate{}, &source.Error{Kind: source.Persistent, Err: err}
	}
	now := time.Now()
	change := append([]mtlstest.Change{func(c *x509.Certificate) {
		c.Subject, c.DNSNames, c.URIs = o.csr.Subject, o.csr.DNSNames, o.csr.URIs
		c.NotBefore, c.NotAfter = now.Add(-time.Hour), now.Add(24*time.Hour)
	}}, o.change...)
	key := o.other
	if key == nil {
		key = publicOnly{o.csr.PublicKey}
	}
	return issue.Certificate{
		Chain:   []*x509.Certificate{o.ca.LeafFor(o.t, "node", key, change...)},
		Anchors: []*x509.Certificate{cmp.Or(o.anchor, o.ca.Cert)},
	}, nil
}

// publicOnly is a key that signs nothing.
type publicOnly struct{ crypto.PublicKey }

func (k publicOnly) Public() crypto.PublicKey { return k.PublicKey }

func (k publicOnly) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("not ours")
}

func newAuthority(t *testing.T) *authority {
	return &authority{t: t, ca: mtlstest.NewCA(t, "ca", nil), tokens: make(map[string]bool)}
}

// issuing is a source that orders from a, with a specification of what.
func (a *authority) issuing(spec string, as ...issue.Authority) *issue.Source {
	return issue.New(issue.Config{
		Name: "a", From: "acm-pca", Authority: append(as, a)[0], Gives: []string{"client"}, Key: "ecdsa-p256", Spec: spec,
		Names: func(context.Context) (*x509.CertificateRequest, error) {
			return &x509.CertificateRequest{
				Subject: pkix.Name{CommonName: "i-1"}, DNSNames: []string{"node.example.org"},
			}, nil
		},
		Log: mtlstest.Log(a.t),
	})
}

// withIssuing runs a test in a bubble, with a node whose only source a issues certificates. The first is published.
func withIssuing(t *testing.T, test func(t *testing.T, a *authority, n *node)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		n := start(t, filepath.Join(mtlstest.MemoryDir(t), "mtls"), map[string]source.Source{"a": a.issuing("1")})
		if n.after(2 * time.Second); n.secret("a").State != client.SecretCurrent || !n.Status().Ready {
			t.Fatalf("nothing is published: %+v", n.secret("a"))
		}
		test(t, a, n)
	})
}

func (n *node) issue() client.IssueStatus { return *n.secret("a").Issue }

// TestIssuing: a certificate is renewed by itself in the second half of its life, each time for another key, and
// nothing is ordered that is not due.
func TestIssuing(t *testing.T) {
	withIssuing(t, func(t *testing.T, a *authority, n *node) {
		if a.orders != 1 || a.collected != 1 {
			t.Fatalf("%d orders, %d certificates for one publication", a.orders, a.collected)
		}
		keys := map[string]bool{n.read(t)["client.key"]: true}
		for i := range 5 {
			st := n.issue()
			life := st.NotAfter.Sub(st.Issued)
			if part := float64(st.RenewAt.Sub(st.Issued)) / float64(life); part < 0.5 || part > 0.64 {
				t.Errorf("renewed after %.2f of its life", part)
			}
			n.after(time.Until(st.RenewAt) - time.Minute)
			if a.orders != i+1 {
				t.Fatalf("ordered %d times, a minute early", a.orders)
			}
			n.after(time.Minute + 2*time.Second)
			if a.orders != i+2 || n.issue().Serial == st.Serial || n.issue().State != client.IssueIdle {
				t.Fatalf("%d orders; %+v, was %+v", a.orders, n.issue(), st)
			}
			keys[n.read(t)["client.key"]] = true
		}
		if len(keys) != 6 || len(a.tokens) != 6 {
			t.Errorf("%d keys and %d tokens for 6 certificates", len(keys), len(a.tokens))
		}
	})
}

// TestIssuingRestart: what is published needs no new certificate after a restart, and is renewed when it would have
// been; unless something else is to be ordered now.
func TestIssuingRestart(t *testing.T) {
	withIssuing(t, func(t *testing.T, a *authority, n *node) {
		was, files := n.issue(), n.read(t)
		n.stop()
		again := start(t, n.path, map[string]source.Source{"a": a.issuing("1")})
		if again.after(time.Minute); a.orders != 1 || again.issue().RenewAt != was.RenewAt {
			t.Fatalf("%d orders; %+v, was %+v", a.orders, again.issue(), was)
		}
		for _, name := range []string{"client.key", "client.crt", "ca.crt"} {
			if again.read(t)[name] != files[name] {
				t.Errorf("%s has changed", name)
			}
		}
		if again.after(time.Until(was.RenewAt) + 2*time.Second); a.orders != 2 {
			t.Errorf("%d orders after the moment of renewal", a.orders)
		}
		again.stop()
		other := start(t, n.path, map[string]source.Source{"a": a.issuing("2")})
		if other.after(16 * time.Minute); a.orders != 3 {
			t.Errorf("%d orders, for another specification", a.orders)
		}
	})
}

// TestIssuingAnchorsOfOthers: a restart issues nothing although ca.crt has the anchors of a secret, too.
func TestIssuingAnchorsOfOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, other := newAuthority(t), mtlstest.NewCA(t, "other", nil)
		anchors := newFake(other.AnchorSecret(t))
		for _, names := range [][2]string{{"a", "b"}, {"b", "a"}} { // whichever is first
			path := filepath.Join(mtlstest.MemoryDir(t), "mtls")
			n := start(t, path, map[string]source.Source{names[0]: a.issuing("1"), names[1]: anchors})
			n.after(3 * time.Second)
			orders := a.orders
			for range 2 {
				n.stop()
				n = start(t, path, map[string]source.Source{names[0]: a.issuing("1"), names[1]: anchors})
				n.after(time.Hour)
			}
			if got := strings.Count(n.read(t)["ca.crt"], "BEGIN"); a.orders != orders || got != 2 || !n.Status().Ready {
				t.Errorf("%v: %d orders more, %d anchors; %+v", names, a.orders-orders, got, n.Status().Secrets)
			}
			n.stop()
		}
	})
}

// TestRenew: refresh orders nothing, Renew does, and returns once it is published; six an hour at most.
func TestRenew(t *testing.T) {
	withIssuing(t, func(t *testing.T, a *authority, n *node) {
		must.Get(n.Refresh(t.Context()))(t, "refresh")
		if a.orders != 1 {
			t.Fatalf("a refresh has ordered a certificate")
		}
		for range 5 {
			before := n.issue().Serial
			a.delay = 5 * time.Second
			answer := must.Get(n.Renew(t.Context(), "a"))(t, "renew")
			if !answer.Changed || n.issue().Serial == before {
				t.Fatalf("answered %+v before the new certificate is published", answer)
			}
		}
		_, err := n.Renew(t.Context(), "a")
		if err == nil || !strings.Contains(err.Error(), "and none is ordered before ") {
			t.Errorf("the seventh in an hour: %v", err)
		}
		n.after(time.Hour)
		if a.orders != 7 || n.secret("a").State != client.SecretCurrent {
			t.Errorf("%d orders; %+v", a.orders, n.secret("a"))
		}
		var unknown *UnknownError
		if _, err := n.Renew(t.Context(), "b"); !errors.As(err, &unknown) {
			t.Errorf("a name that is none: %v", err)
		}
	})
}

// TestIssuingFails: whatever the authority does, the last good certificate stays, the authority is asked ever more
// slowly, and the state says what is wrong.
func TestIssuingFails(t *testing.T) {
	denied := &source.Error{Kind: source.Persistent, Err: errors.New("AccessDeniedException: no")}
	for _, c := range []struct {
		name   string
		break_ func(a *authority)
		state  client.IssueState
		secret client.SecretState
		reason string
		most   int // orders in the six hours after the renewal was due
	}{
		{"down", func(a *authority) { a.err = errors.New("connection refused") },
			client.IssueFailing, client.SecretUnreachable, "a: connection refused", 60},
		{"denied", func(a *authority) { a.err = denied },
			client.IssueFailing, client.SecretDenied, "AccessDeniedException", 60},
		{"slow", func(a *authority) { a.delay = 50 * time.Minute }, client.IssueIdle, client.SecretCurrent, "", 1},
		{"never", func(a *authority) { a.delay = 50 * time.Hour }, client.IssueOrdered, client.SecretCurrent, "", 7},
		{"lost", func(a *authority) { a.lost = true },
			client.IssueFailing, client.SecretUnreachable, "RequestFailedException", 60},
		{"unusable", func(a *authority) { a.unusable = true },
			client.IssueRefused, client.SecretDenied, "the certificate cannot be used: its chain ends nowhere", 5},
		{"for another key", func(a *authority) { a.other = mtlstest.NewKey(a.t) },
			client.IssueRefused, client.SecretDenied, "is for another key", 5},
		{"for another name", func(a *authority) {
			a.change = []mtlstest.Change{func(c *x509.Certificate) { c.DNSNames = []string{"else.example.org"} }}
		}, client.IssueRefused, client.SecretDenied, "does not have the names asked for: DNS:node.example.org", 5},
		{"for another subject", func(a *authority) {
			a.change = []mtlstest.Change{func(c *x509.Certificate) { c.Subject.CommonName = "i-2" }}
		}, client.IssueRefused, client.SecretDenied, "does not have the names asked for: common name i-1", 5},
		{"for servers", func(a *authority) {
			a.change = []mtlstest.Change{mtlstest.Usage(x509.ExtKeyUsageServerAuth)}
		}, client.IssueRefused, client.SecretRejected, "usage", 5},
		{"from tomorrow", func(a *authority) {
			a.change = []mtlstest.Change{func(c *x509.Certificate) { c.NotBefore = time.Now().Add(23 * time.Hour) }}
		}, client.IssueRefused, client.SecretHeld, "", 5},
		{"by another CA", func(a *authority) {
			a.anchor = mtlstest.NewCA(a.t, "ca", nil).Cert
		}, client.IssueRefused, client.SecretRejected, "client_cert", 5},
		{"by a CA that is none", func(a *authority) {
			a.anchor = a.ca.LeafFor(a.t, "node", mtlstest.NewKey(a.t))
		}, client.IssueRefused, client.SecretRejected, "is not a CA certificate", 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			withIssuing(t, func(t *testing.T, a *authority, n *node) {
				was := n.read(t)["client.crt"]
				n.after(time.Until(n.issue().RenewAt) - time.Second)
				c.break_(a)
				a.orders = 0
				n.after(6 * time.Hour)
				s := n.secret("a")
				if s.Issue.State != c.state || s.State != c.secret || !strings.Contains(s.Error, c.reason) {
					t.Errorf("%s, %s: %s; want %s, %s", s.State, s.Issue.State, s.Error, c.secret, c.state)
				}
				if a.orders > c.most || a.orders < min(c.most, 4) {
					t.Errorf("%d orders in six hours, %d to %d are right", a.orders, min(c.most, 4), c.most)
				}
				if !n.Status().Ready || c.name != "slow" && n.read(t)["client.crt"] != was {
					t.Error("the last good certificate is gone")
				}
				a.err, a.delay, a.lost, a.unusable, a.other, a.change, a.anchor = nil, 0, false, false, nil, nil, nil
				n.after(8 * time.Hour)
				if s := n.secret("a"); s.State != client.SecretCurrent || n.read(t)["client.crt"] == was {
					t.Errorf("not renewed after the trouble: %s, %s: %s", s.State, s.Issue.State, s.Error)
				}
			})
		})
	}
}

// TestIssuingLostAnswer: after an answer that was lost, the same request is sent again.
func TestIssuingLostAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		a.err = errors.New("connection reset")
		n := start(t, filepath.Join(mtlstest.MemoryDir(t), "mtls"), map[string]source.Source{"a": a.issuing("1")})
		n.after(time.Minute)
		if a.orders < 3 || len(a.tokens) != 1 {
			t.Errorf("%d orders with %d tokens", a.orders, len(a.tokens))
		}
		a.err = nil
		if n.after(2 * time.Minute); n.secret("a").State != client.SecretCurrent || len(a.tokens) != 1 {
			t.Errorf("%+v, %d tokens", n.secret("a"), len(a.tokens))
		}
	})
}

// TestIssuingLateAtBoot: as TestLateAtBoot.
func TestIssuingLateAtBoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		a.err = errors.New("the metadata service knows no role of this instance")
		n := start(t, filepath.Join(mtlstest.MemoryDir(t), "mtls"), map[string]source.Source{"a": a.issuing("1")})
		n.after(20 * time.Second)
		a.err = nil
		// An order and, a second later, its certificate.
		if n.after(3 * time.Second); n.secret("a").State != client.SecretCurrent {
			t.Errorf("three seconds after the authority can be reached: %+v", n.secret("a"))
		}
	})
}

// suggester is an authority that says when to renew.
type suggester struct {
	*authority
	from, to time.Time
	err      error
	always   bool
	first    *x509.Certificate // the window is for; always: for all
	asked    int
}

func (s *suggester) RenewalWindow(_ context.Context, leaf *x509.Certificate) (
	from, to time.Time, again time.Duration, err error,
) {
	s.asked++
	if s.first = cmp.Or(s.first, leaf); !s.always && !s.first.Equal(leaf) {
		return from, to, time.Hour, nil
	}
	return s.from, s.to, time.Hour, s.err
}

// TestIssuingSuggested: a window that the authority suggests is followed, unless it is too late; errors change nothing.
func TestIssuingSuggested(t *testing.T) {
	for _, c := range []struct {
		name     string
		from, to time.Duration // from the issuance
		err      error
		min, max time.Duration // of the renewal
	}{
		{"soon", 2 * time.Hour, 3 * time.Hour, nil, 2 * time.Hour, 3 * time.Hour},
		{"past", -2 * time.Hour, -time.Hour, nil, 0, time.Minute},
		{"late", 23 * time.Hour, 24 * time.Hour, nil, 14 * time.Hour, 18 * time.Hour},
		{"fails", 0, 0, errors.New("500"), 12 * time.Hour, 16 * time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				s := &suggester{authority: newAuthority(t), from: began.Add(c.from), to: began.Add(c.to), err: c.err}
				src := s.issuing("1", s)
				n := start(t, filepath.Join(mtlstest.MemoryDir(t), "mtls"), map[string]source.Source{"a": src})
				first := n.after(2 * time.Second).Secrets[0].Issue.Serial
				for n.issue().Serial == first && time.Since(began) < 24*time.Hour {
					n.after(time.Minute)
				}
				if d := time.Since(began); d < c.min || d > c.max+2*time.Minute {
					t.Errorf("renewed after %v, want %v to %v", d, c.min, c.max)
				}
				if most := int(time.Since(began)/time.Hour) + 2; s.asked > most {
					t.Errorf("asked %d times, at most %d are right", s.asked, most)
				}
			})
		})
	}
}

// TestIssuingCollides: where a secret gives the same file, another certificate would not help, and none is ordered. Once
// the secret is gone, the one that is there is published.
func TestIssuingCollides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, other := newAuthority(t), mtlstest.NewCA(t, "other", nil)
		secret := newFake(other.ClientSecret(t, "client"))
		n := start(t, filepath.Join(mtlstest.MemoryDir(t), "mtls"), map[string]source.Source{"a": a.issuing("1"), "b": secret})
		n.after(10 * time.Hour)
		if s := n.secret("a"); a.orders != 1 || s.State != client.SecretRejected || !strings.Contains(s.Error, "client.crt") {
			t.Fatalf("%d orders; %s: %s", a.orders, s.State, s.Error)
		}
		s := n.config.Settings
		s.Secrets = s.Secrets[:1]
		n.Apply(s)
		if n.after(time.Minute); a.orders != 1 || n.secret("a").State != client.SecretCurrent {
			t.Errorf("%d orders without the secret; %+v", a.orders, n.secret("a"))
		}
	})
}

// TestIssuingClockAhead: by a clock that is ahead, each certificate is due as soon as it is there. Few are ordered.
func TestIssuingClockAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		a.change = []mtlstest.Change{func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = c.NotBefore.Add(-18*time.Hour), c.NotAfter.Add(-18*time.Hour)
		}}
		n := start(t, filepath.Join(mtlstest.MemoryDir(t), "mtls"), map[string]source.Source{"a": a.issuing("1")})
		n.after(24 * time.Hour)
		if s := n.secret("a"); a.orders < 7 || a.orders > 9 || s.State != client.SecretCurrent {
			t.Errorf("%d orders in a day of certificates with six hours left, 8 are right; %+v", a.orders, s)
		}
	})
}

// TestIssuingSuggestedNonsense: an authority that wants every certificate renewed at once is not obeyed for long.
func TestIssuingSuggestedNonsense(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &suggester{authority: newAuthority(t), always: true, from: time.Now().Add(-2 * time.Hour), to: time.Now()}
		n := start(t, filepath.Join(mtlstest.MemoryDir(t), "mtls"), map[string]source.Source{"a": s.issuing("1", s)})
		if n.after(24 * time.Hour); s.orders > 12 {
			t.Errorf("%d certificates in a day", s.orders)
		}
	})
}

// TestIssuingNotCollected: an order that was accepted costs money, so none follows while certificates cannot be
// collected for a reason that the next one would share.
func TestIssuingNotCollected(t *testing.T) {
	withIssuing(t, func(t *testing.T, a *authority, n *node) {
		n.after(time.Until(n.issue().RenewAt) - time.Second)
		a.orders, a.uncollectable = 0, &source.Error{Kind: source.Persistent, Err: errors.New("AccessDeniedException: no")}
		n.after(6 * time.Hour)
		if s := n.secret("a"); a.orders != 1 || s.State != client.SecretDenied {
			t.Errorf("%d orders; %+v", a.orders, s)
		}
		a.uncollectable = nil
		if n.after(2 * time.Hour); a.orders != 1 || n.secret("a").State != client.SecretCurrent {
			t.Errorf("%d orders after the trouble; %+v", a.orders, n.secret("a"))
		}
	})
}

// TestIssuingHeld: a certificate that begins soon is waited for.
func TestIssuingHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		a.change = []mtlstest.Change{func(c *x509.Certificate) { c.NotBefore = time.Now().Add(50 * time.Minute) }}
		n := start(t, filepath.Join(mtlstest.MemoryDir(t), "mtls"), map[string]source.Source{"a": a.issuing("1")})
		if n.after(49 * time.Minute); a.orders != 1 || n.secret("a").State != client.SecretHeld {
			t.Errorf("%d orders for one that begins soon; %+v", a.orders, n.secret("a"))
		}
		if n.after(2 * time.Minute); a.orders != 1 || n.secret("a").State != client.SecretCurrent {
			t.Errorf("%d orders once it is valid; %+v", a.orders, n.secret("a"))
		}
	})
}

// TestIssuingHeldReplaced: once what was held is published, the order that was to replace it is dropped, unless the
// authority has accepted it.
func TestIssuingHeldReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		a.change = []mtlstest.Change{func(c *x509.Certificate) { c.NotBefore = time.Now().Add(90 * time.Minute) }}
		n := start(t, filepath.Join(mtlstest.MemoryDir(t), "mtls"), map[string]source.Source{"a": a.issuing("1")})
		n.after(time.Minute)
		a.err = errors.New("connection refused")
		n.after(88 * time.Minute)
		if s := n.secret("a"); a.orders < 2 || s.State != client.SecretUnreachable {
			t.Fatalf("%d orders; %+v", a.orders, s)
		}
		a.orders = 0
		if n.after(time.Hour); a.orders > 1 || n.secret("a").State != client.SecretCurrent {
			t.Errorf("%d orders after it was published; %+v", a.orders, n.secret("a"))
		}
	})
}

// TestRenewAfterTrouble: a renewal that is asked for does not wait until the next attempt is due.
func TestRenewAfterTrouble(t *testing.T) {
	for _, c := range []struct {
		name   string
		break_ func(a *authority)
	}{
		{"denied", func(a *authority) {
			a.err = &source.Error{Kind: source.Persistent, Err: errors.New("AccessDeniedException: no")}
		}},
		{"for servers", func(a *authority) {
			a.change = []mtlstest.Change{mtlstest.Usage(x509.ExtKeyUsageServerAuth)}
		}},
		{"for another key", func(a *authority) { a.other = mtlstest.NewKey(a.t) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			withIssuing(t, func(t *testing.T, a *authority, n *node) {
				n.after(time.Until(n.issue().RenewAt) - time.Second)
				c.break_(a)
				n.after(5 * time.Hour)
				if _, err := n.Renew(t.Context(), "a"); err == nil {
					t.Fatal("renewed in spite of it")
				}
				a.err, a.change, a.other, a.delay = nil, nil, nil, 5*time.Second
				began, was := time.Now(), n.issue().Serial
				answer, err := n.Renew(t.Context(), "a")
				if err != nil || !answer.Changed || n.issue().Serial == was || time.Since(began) > time.Minute {
					t.Errorf("after %v: %v; %+v", time.Since(began), err, n.secret("a"))
				}
			})
		})
	}
}

// TestIssuingInsteadOfSecret: files of a secret that the configuration drops for a source that issues stay until that
// has a certificate, whatever else is configured.
func TestIssuingInsteadOfSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, other := newAuthority(t), mtlstest.NewCA(t, "other", nil)
		anchors := newFake(other.AnchorSecret(t))
		n := start(t, filepath.Join(mtlstest.MemoryDir(t), "mtls"),
			map[string]source.Source{"b": newFake(other.ClientSecret(t, "client")), "c": anchors})
		was := n.after(time.Minute).Generation
		a.err = errors.New("connection refused")
		s := n.config.Settings
		s.Secrets = []NamedSource{{"a", a.issuing("1")}, {"c", anchors}}
		n.Apply(s)
		before := n.read(t)["client.crt"]
		if n.after(5 * time.Hour); before == "" || n.read(t)["client.crt"] != before || n.secret("a").Published != "" {
			t.Fatalf("generation %s, was %s; %+v", n.Status().Generation, was, n.secret("a"))
		}
		a.err = nil
		if n.after(time.Hour); n.read(t)["client.crt"] == before || n.secret("a").State != client.SecretCurrent {
			t.Errorf("after the outage: %+v", n.secret("a"))
		}
	})
}

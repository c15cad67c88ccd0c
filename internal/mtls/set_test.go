package mtls

import (
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestChainIsPutInOrder(t *testing.T) {
	root := newCA(t, "root", nil)
	upper := newCA(t, "upper", root)
	lower := newCA(t, "lower", upper)
	stranger := newCA(t, "stranger", nil)
	leaf, key := lower.leaf(t, "node")
	for name, c := range map[string]struct {
		given, want []*x509.Certificate
		warning     string
	}{
		"in order":      {[]*x509.Certificate{leaf, lower.cert, upper.cert}, []*x509.Certificate{leaf, lower.cert, upper.cert}, ""},
		"leaf last":     {[]*x509.Certificate{upper.cert, lower.cert, leaf}, []*x509.Certificate{leaf, lower.cert, upper.cert}, ""},
		"with the root": {[]*x509.Certificate{root.cert, upper.cert, leaf, lower.cert}, []*x509.Certificate{leaf, lower.cert, upper.cert, root.cert}, ""},
		"with a stranger": {[]*x509.Certificate{stranger.cert, lower.cert, leaf, upper.cert}, []*x509.Certificate{leaf, lower.cert, upper.cert, stranger.cert},
			`secret a: client_cert: "CN=stranger" is not part of the chain`},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := mustSet(t, secretJSON(t, map[string]any{clientCert: certPEM(c.given...), clientKey: keyPEM(t, key), caCert: certPEM(root.cert)}))
			if got, want := s.file("client.crt"), certPEM(c.want...); got != want {
				t.Errorf("client.crt is\n%s\nwant\n%s", got, want)
			}
			if got, want := s.file("client.pem"), keyPEM(t, key)+certPEM(c.want...); got != want {
				t.Errorf("client.pem is\n%s\nwant\n%s", got, want)
			}
			if got := strings.Join(s.warnings, "; "); got != c.warning {
				t.Errorf("warnings %q, want %q", got, c.warning)
			}
		})
	}
	t.Run("without the intermediates", func(t *testing.T) {
		_, err := assemble(mustBundles(t, secretJSON(t, map[string]any{clientCert: certPEM(leaf), clientKey: keyPEM(t, key), caCert: certPEM(root.cert)})), nil, time.Now(), nil)
		if _, ok := errors.AsType[*RejectError](err); !ok {
			t.Errorf("error %v, want a RejectError", err)
		}
	})
	t.Run("anchored below the root", func(t *testing.T) {
		s, _ := mustSet(t, secretJSON(t, map[string]any{clientCert: certPEM(leaf), clientKey: keyPEM(t, key), caCert: certPEM(lower.cert)}))
		if len(s.warnings) != 1 || !strings.Contains(s.warnings[0], "holds no root") {
			t.Errorf("warnings %q, want one about OpenSSL", s.warnings)
		}
	})
}

func TestSecretsGoTogether(t *testing.T) {
	ca := newCA(t, "ca", nil)
	cert, key := ca.leaf(t, "node")
	pair := secretJSON(t, map[string]any{clientCert: certPEM(cert), clientKey: keyPEM(t, key)})
	anchors := secretJSON(t, map[string]any{caCert: certPEM(ca.cert)})
	plainCert := []byte(certPEM(cert))

	s, _ := mustSet(t, plainCert, pair, plainCert, anchors)
	if diff := cmp.Diff([]string{"ca.crt", "cert-0.pem", "cert-2.pem", "client.crt", "client.key", "client.pem"}, s.names()); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	for _, f := range s.files {
		want := map[string]string{"ca.crt": "d", "cert-0.pem": "a", "cert-2.pem": "c"}[f.name]
		if want == "" {
			want = "b"
		}
		if f.origin != (sourceVersion{want, "1"}) {
			t.Errorf("%s comes from %v, want secret %s", f.name, f.origin, want)
		}
	}

	_, err := assemble(mustBundles(t, pair, anchors, ca.clientSecret(t, "other")), nil, time.Now(), nil)
	if e, ok := errors.AsType[*CollisionError](err); !ok || e.Secrets != [2]string{"a", "c"} || e.File != "client.crt" {
		t.Errorf("error %v, want that a and c both give client.crt", err)
	}
	otherKey := secretJSON(t, map[string]any{clientKey: keyPEM(t, ca.key)})
	certOnly := secretJSON(t, map[string]any{clientCert: certPEM(cert)})
	_, err = assemble(mustBundles(t, certOnly, otherKey, anchors), nil, time.Now(), nil)
	if e, ok := errors.AsType[*RejectError](err); !ok || e.Secret != "b" || e.Field != clientKey {
		t.Errorf("error %v, want one that names client_key of b", err)
	}
}

// A certificate from the future is held until the whole chain is valid, not a second longer, and one whose chain never
// will be is refused.
func TestHeld(t *testing.T) {
	now := time.Now()
	in := func(d time.Duration) time.Time { return now.Add(d).Truncate(time.Second).UTC() }
	until := func(from, to time.Duration) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = in(from), in(to) }
	}
	const year = 365 * 24 * time.Hour
	for name, c := range map[string]struct {
		ca, leaf func(*x509.Certificate)
		until    time.Time
		refused  string
	}{
		"leaf from tomorrow":       {until(-time.Hour, year), until(24*time.Hour, year), in(24 * time.Hour), ""},
		"CA even later":            {until(48*time.Hour, year), until(24*time.Hour, year), in(48 * time.Hour), ""},
		"CA later, leaf valid":     {until(2*time.Hour, year), until(-time.Hour, year), in(2 * time.Hour), ""},
		"ends before it can begin": {until(48*time.Hour, year), until(24*time.Hour, 36*time.Hour), time.Time{}, "client_cert: does not lead to ca_cert"},
		"CA over before the leaf":  {until(-time.Hour, 12*time.Hour), until(24*time.Hour, year), time.Time{}, "client_cert: does not lead to ca_cert"},
	} {
		t.Run(name, func(t *testing.T) {
			ca := newCA(t, "ca", nil, c.ca)
			bundles := mustBundles(t, ca.clientSecret(t, "node", c.leaf))
			_, err := assemble(bundles, nil, now, nil)
			if c.refused != "" {
				if e, ok := errors.AsType[*RejectError](err); !ok || !strings.Contains(e.Error(), c.refused) {
					t.Fatalf("error %v, want %q", err, c.refused)
				}
				return
			}
			e, ok := errors.AsType[*HeldError](err)
			if !ok || !e.Until.Equal(c.until) {
				t.Fatalf("error %v, want held until %v", err, c.until)
			}
			if _, err := assemble(bundles, nil, e.Until, nil); err != nil {
				t.Errorf("at that moment: %v", err)
			}
			if _, err := assemble(bundles, nil, e.Until.Add(-maxSkew-time.Second), nil); err == nil {
				t.Error("was published more than five minutes earlier")
			}
		})
	}
	t.Run("CA alone", func(t *testing.T) {
		ca := newCA(t, "ca", nil, until(24*time.Hour, year))
		_, err := assemble(mustBundles(t, secretJSON(t, map[string]any{caCert: certPEM(ca.cert)})), nil, now, nil)
		if e, ok := errors.AsType[*HeldError](err); !ok || !e.Until.Equal(in(24*time.Hour)) {
			t.Errorf("error %v, want held until tomorrow", err)
		}
	})
}

// The anchors of a rotation: one that has expired and one that has not begun do no harm beside one that is valid.
func TestAnchorsOverlap(t *testing.T) {
	ca := newCA(t, "ca", nil)
	old := newCA(t, "old", nil, valid(-48*time.Hour, -24*time.Hour))
	next := newCA(t, "next", nil, valid(24*time.Hour, 48*time.Hour))
	cert, key := ca.leaf(t, "node")
	s, _ := mustSet(t, secretJSON(t, map[string]any{clientCert: certPEM(cert), clientKey: keyPEM(t, key), caCert: certPEM(old.cert, next.cert, ca.cert)}))
	if got, want := s.file("ca.crt"), certPEM(old.cert, next.cert, ca.cert); got != want {
		t.Errorf("ca.crt is\n%s\nwant all three:\n%s", got, want)
	}
	if len(s.warnings) != 1 || !strings.Contains(s.warnings[0], `"CN=old" expired`) {
		t.Errorf("warnings %q, want one about the old CA", s.warnings)
	}
}

// A pair that has expired while it was published does not keep another secret from being renewed.
func TestStandingPairMayExpire(t *testing.T) {
	ca := newCA(t, "ca", nil)
	cert, key := ca.leaf(t, "server", valid(-time.Hour, time.Hour))
	bundles := mustBundles(t, ca.clientSecret(t, "node"), secretJSON(t, map[string]any{serverCert: certPEM(cert), serverKey: keyPEM(t, key)}))
	later := time.Now().Add(2 * time.Hour)
	if _, err := assemble(bundles, nil, later, nil); err == nil {
		t.Error("an expired pair was accepted as new")
	}
	s, err := assemble(bundles, bundles[1:], later, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.warnings) != 1 || !strings.Contains(s.warnings[0], "secret b: server_cert: expired") {
		t.Errorf("warnings %q, want one about server_cert", s.warnings)
	}
}

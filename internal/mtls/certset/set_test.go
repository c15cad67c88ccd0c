package certset

import (
	"crypto"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sevagent/internal/mtls/mtlstest"
)

type certs = []*x509.Certificate

// clientSecret is a secret with a client pair, given as chain in any order, and anchors.
func clientSecret(t *testing.T, key crypto.Signer, chain certs, anchors ...*x509.Certificate) []byte {
	return mtlstest.Fields{
		clientCert: mtlstest.CertPEM(chain...), clientKey: mtlstest.KeyPEM(t, key),
		caCert: mtlstest.CertPEM(anchors...),
	}.JSON(t)
}

func TestChainIsPutInOrder(t *testing.T) {
	root := mtlstest.NewCA(t, "root", nil)
	upper := mtlstest.NewCA(t, "upper", root)
	lower := mtlstest.NewCA(t, "lower", upper)
	stranger := mtlstest.NewCA(t, "stranger", nil)
	leaf, key := lower.Leaf(t, "node")
	for name, c := range map[string]struct {
		given, want certs
		warning     string
	}{
		"in order":  {certs{leaf, lower.Cert, upper.Cert}, certs{leaf, lower.Cert, upper.Cert}, ""},
		"leaf last": {certs{upper.Cert, lower.Cert, leaf}, certs{leaf, lower.Cert, upper.Cert}, ""},
		"with the root": {certs{root.Cert, upper.Cert, leaf, lower.Cert},
			certs{leaf, lower.Cert, upper.Cert, root.Cert}, ""},
		"with a stranger": {certs{stranger.Cert, lower.Cert, leaf, upper.Cert},
			certs{leaf, lower.Cert, upper.Cert, stranger.Cert},
			`secret a: client_cert: "CN=stranger" is not part of the chain`},
	} {
		t.Run(name, func(t *testing.T) {
			s := mustSet(t, clientSecret(t, key, c.given, root.Cert))
			if got, want := s.file("client.crt"), mtlstest.CertPEM(c.want...); got != want {
				t.Errorf("client.crt is\n%s\nwant\n%s", got, want)
			}
			if got, want := s.file("client.pem"), mtlstest.KeyPEM(t, key)+mtlstest.CertPEM(c.want...); got != want {
				t.Errorf("client.pem is\n%s\nwant\n%s", got, want)
			}
			if got := strings.Join(s.Warnings, "; "); got != c.warning {
				t.Errorf("warnings %q, want %q", got, c.warning)
			}
		})
	}
	t.Run("without the intermediates", func(t *testing.T) {
		_, err := Assemble(mustBundles(t, clientSecret(t, key, certs{leaf}, root.Cert)), nil, time.Now(), nil)
		if _, ok := errors.AsType[*RejectError](err); !ok {
			t.Errorf("error %v, want a RejectError", err)
		}
	})
	t.Run("anchored below the root", func(t *testing.T) {
		s := mustSet(t, clientSecret(t, key, certs{leaf}, lower.Cert))
		if len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "holds no root") {
			t.Errorf("warnings %q, want one about OpenSSL", s.Warnings)
		}
	})
}

func TestSecretsGoTogether(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	cert, key := ca.Leaf(t, "node")
	pair := mtlstest.Fields{clientCert: mtlstest.CertPEM(cert), clientKey: mtlstest.KeyPEM(t, key)}.JSON(t)
	anchors := mtlstest.Fields{caCert: mtlstest.CertPEM(ca.Cert)}.JSON(t)
	plainCert := []byte(mtlstest.CertPEM(cert))

	s := mustSet(t, plainCert, pair, plainCert, anchors)
	want := []string{"ca.crt", "cert-0.pem", "cert-2.pem", "client.crt", "client.key", "client.pem"}
	if diff := cmp.Diff(want, s.names()); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	for _, f := range s.Files {
		want := map[string]string{"ca.crt": "d", "cert-0.pem": "a", "cert-2.pem": "c"}[f.Name]
		if want == "" {
			want = "b"
		}
		if f.Origin != (Origin{Secret: want, Version: "1"}) {
			t.Errorf("%s comes from %v, want secret %s", f.Name, f.Origin, want)
		}
	}

	_, err := Assemble(mustBundles(t, pair, anchors, ca.ClientSecret(t, "other")), nil, time.Now(), nil)
	if e, ok := errors.AsType[*CollisionError](err); !ok || e.Secrets != [2]string{"a", "c"} || e.File != "client.crt" {
		t.Errorf("error %v, want that a and c both give client.crt", err)
	}
	otherKey := mtlstest.Fields{clientKey: mtlstest.KeyPEM(t, ca.Key)}.JSON(t)
	certOnly := mtlstest.Fields{clientCert: mtlstest.CertPEM(cert)}.JSON(t)
	_, err = Assemble(mustBundles(t, certOnly, otherKey, anchors), nil, time.Now(), nil)
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
		"leaf from tomorrow":   {until(-time.Hour, year), until(24*time.Hour, year), in(24 * time.Hour), ""},
		"CA even later":        {until(48*time.Hour, year), until(24*time.Hour, year), in(48 * time.Hour), ""},
		"CA later, leaf valid": {until(2*time.Hour, year), until(-time.Hour, year), in(2 * time.Hour), ""},
		"ends before it can begin": {until(48*time.Hour, year), until(24*time.Hour, 36*time.Hour), time.Time{},
			"client_cert: does not lead to ca_cert"},
		"CA over before the leaf": {until(-time.Hour, 12*time.Hour), until(24*time.Hour, year), time.Time{},
			"client_cert: does not lead to ca_cert"},
	} {
		t.Run(name, func(t *testing.T) {
			ca := mtlstest.NewCA(t, "ca", nil, c.ca)
			bundles := mustBundles(t, ca.ClientSecret(t, "node", c.leaf))
			_, err := Assemble(bundles, nil, now, nil)
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
			if _, err := Assemble(bundles, nil, e.Until, nil); err != nil {
				t.Errorf("at that moment: %v", err)
			}
			if _, err := Assemble(bundles, nil, e.Until.Add(-maxSkew-time.Second), nil); err == nil {
				t.Error("was published more than five minutes earlier")
			}
		})
	}
	t.Run("CA alone", func(t *testing.T) {
		ca := mtlstest.NewCA(t, "ca", nil, until(24*time.Hour, year))
		_, err := Assemble(mustBundles(t, mtlstest.Fields{caCert: mtlstest.CertPEM(ca.Cert)}.JSON(t)), nil, now, nil)
		if e, ok := errors.AsType[*HeldError](err); !ok || !e.Until.Equal(in(24*time.Hour)) {
			t.Errorf("error %v, want held until tomorrow", err)
		}
	})
}

// The anchors of a rotation: one that has expired and one that has not begun do no harm beside one that is valid.
func TestAnchorsOverlap(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	old := mtlstest.NewCA(t, "old", nil, mtlstest.Valid(-48*time.Hour, -24*time.Hour))
	next := mtlstest.NewCA(t, "next", nil, mtlstest.Valid(24*time.Hour, 48*time.Hour))
	cert, key := ca.Leaf(t, "node")
	s := mustSet(t, clientSecret(t, key, certs{cert}, old.Cert, next.Cert, ca.Cert))
	if got, want := s.file("ca.crt"), mtlstest.CertPEM(old.Cert, next.Cert, ca.Cert); got != want {
		t.Errorf("ca.crt is\n%s\nwant all three:\n%s", got, want)
	}
	if len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], `"CN=old" expired`) {
		t.Errorf("warnings %q, want one about the old CA", s.Warnings)
	}
}

// A pair that has expired while it was published does not keep another secret from being renewed.
func TestStandingPairMayExpire(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	cert, key := ca.Leaf(t, "server", mtlstest.Valid(-time.Hour, time.Hour))
	bundles := mustBundles(t, ca.ClientSecret(t, "node"),
		mtlstest.Fields{serverCert: mtlstest.CertPEM(cert), serverKey: mtlstest.KeyPEM(t, key)}.JSON(t))
	later := time.Now().Add(2 * time.Hour)
	if _, err := Assemble(bundles, nil, later, nil); err == nil {
		t.Error("an expired pair was accepted as new")
	}
	s, err := Assemble(bundles, bundles[1:], later, nil)
	if err != nil {
		t.Fatalf("a published pair that has expired keeps the set from being assembled: %v", err)
	}
	if len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "secret b: server_cert: expired") {
		t.Errorf("warnings %q, want one about server_cert", s.Warnings)
	}
}

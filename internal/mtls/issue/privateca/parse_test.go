package privateca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/aws/smithy-go"

	"sevagent/internal/mtls/issue"
	"sevagent/internal/must"
	"sevagent/internal/sim/simca"
)

// TestAlgorithm has the keys that a CA may have (API reference, CertificateAuthorityConfiguration, KeyAlgorithm).
func TestAlgorithm(t *testing.T) {
	ec := func(c elliptic.Curve) crypto.PublicKey {
		return must.Get(ecdsa.GenerateKey(c, rand.Reader))(t, "make a key").Public()
	}
	edwards, _, err := ed25519.GenerateKey(rand.Reader)
	must.Do(t, err, "make a key")
	for name, c := range map[string]struct {
		key  crypto.PublicKey
		want string
	}{
		"RSA_2048":      {must.Get(rsa.GenerateKey(rand.Reader, 2048))(t, "make a key").Public(), "SHA256WITHRSA"},
		"EC_prime256v1": {ec(elliptic.P256()), "SHA256WITHECDSA"},
		"EC_secp384r1":  {ec(elliptic.P384()), "SHA384WITHECDSA"},
		"EC_secp521r1":  {ec(elliptic.P521()), "SHA512WITHECDSA"},
		"Ed25519":       {edwards, ""},
		"unknown":       {nil, ""}, // as crypto/x509 has ML-DSA
	} {
		got, err := algorithmOf(&x509.Certificate{PublicKey: c.key})
		if string(got) != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %q, %v, want %q", name, got, err, c.want)
		}
	}
}

// TestSameName: a certificate whose issuer has the same name is no root.
func TestSameName(t *testing.T) {
	root := must.Get(simca.New("Root", time.Now()))(t, "make a root")
	below := must.Get(root.Intermediate("Root", time.Now()))(t, "make a CA below it")
	if err := endsInRoot([]*x509.Certificate{below.Cert}); err == nil {
		t.Error("it counts as a root")
	}
	must.Do(t, endsInRoot(below.Chain()), "find the root")
}

// TestNotFound: a certificate that Private CA does not know may appear within a minute.
func TestNotFound(t *testing.T) {
	unknown := &smithy.GenericAPIError{Code: "ResourceNotFoundException"}
	for age, want := range map[time.Duration]error{appears / 2: issue.ErrPending, 2 * appears: issue.ErrLost} {
		o := &order{a: &Authority{}, placed: time.Now().Add(-age)}
		if err := o.classify("collect it", unknown); !errors.Is(err, want) {
			t.Errorf("%v after its order: %v, want that %v", age, err, want)
		}
	}
}

func TestParse(t *testing.T) {
	ca := must.Get(simca.New("Root", time.Now()))(t, "make a CA")
	good := ca.PEM()
	for name, c := range map[string]struct {
		text string
		want int
	}{
		"one": {good, 1}, "two": {good + "\n" + good, 2}, "no newline at the end": {strings.TrimSpace(good), 1},
		"nothing": {"", 0}, "something else": {"x", 0}, "something behind": {good + "x", 0},
		"half":                     {good[:len(good)/2], 0},
		"another type":             {strings.ReplaceAll(good, "CERTIFICATE", "PRIVATE KEY"), 0},
		"no certificate inside it": {string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})), 0},
	} {
		if got, err := parse(c.text); len(got) != c.want || (err == nil) != (c.want > 0) {
			t.Errorf("%s: %d certificates, %v, want %d", name, len(got), err, c.want)
		}
	}
}

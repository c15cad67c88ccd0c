package mtls

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"
)

// authority is a CA for tests.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

var serial int64

// newCA makes a root, or an intermediate of parent.
func newCA(t testing.TB, name string, parent *authority, change ...func(*x509.Certificate)) *authority {
	t.Helper()
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	key := newKey(t)
	return &authority{sign(t, template, key.Public(), key, parent, change), key}
}

// leaf issues a certificate for client and server authentication, and its key.
func (ca *authority) leaf(t testing.TB, name string, change ...func(*x509.Certificate)) (cert *x509.Certificate, key crypto.Signer) {
	t.Helper()
	key = newKey(t)
	return ca.leafFor(t, name, key, change...), key
}

func (ca *authority) leafFor(t testing.TB, name string, key crypto.Signer, change ...func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		DNSNames:    []string{name + ".example.org"},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	return sign(t, template, key.Public(), ca.key, ca, change)
}

func sign(t testing.TB, template *x509.Certificate, pub crypto.PublicKey, signer crypto.Signer, parent *authority, change []func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	serial++
	template.SerialNumber = big.NewInt(serial)
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(90*24*time.Hour)
	if template.IsCA {
		template.NotAfter = time.Now().Add(10 * 365 * 24 * time.Hour)
	}
	for _, c := range change {
		c(template)
	}
	issuer := template
	if parent != nil {
		issuer, signer = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, pub, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func valid(from, to time.Duration) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(from), time.Now().Add(to) }
}

func usage(u ...x509.ExtKeyUsage) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.ExtKeyUsage = u }
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func certPEM(certs ...*x509.Certificate) string {
	var b strings.Builder
	for _, c := range certs {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return b.String()
}

func keyPEM(t testing.TB, key crypto.Signer) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// secretJSON encodes fields as a secret.
func secretJSON(t testing.TB, fields map[string]any) []byte {
	t.Helper()
	b, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// clientSecret is a secret as the documentation shows it: a client pair and its CA.
func (ca *authority) clientSecret(t testing.TB, name string, change ...func(*x509.Certificate)) []byte {
	t.Helper()
	cert, key := ca.leaf(t, name, change...)
	return secretJSON(t, map[string]any{clientCert: certPEM(cert), clientKey: keyPEM(t, key), caCert: certPEM(ca.cert)})
}

// mustSet assembles secrets named a, b, c … in version 1.
func mustSet(t testing.TB, secrets ...[]byte) (*set, []*bundle) {
	t.Helper()
	bundles := mustBundles(t, secrets...)
	s, err := assemble(bundles, nil, time.Now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return s, bundles
}

func mustBundles(t testing.TB, secrets ...[]byte) (bundles []*bundle) {
	t.Helper()
	for i, content := range secrets {
		b, err := parseBundle(string(rune('a'+i)), "1", content)
		if err != nil {
			t.Fatal(err)
		}
		bundles = append(bundles, b)
	}
	return bundles
}

func (s *set) file(name string) string {
	for _, f := range s.files {
		if f.name == name {
			return string(f.content)
		}
	}
	return ""
}

func (s *set) names() (names []string) {
	for _, f := range s.files {
		names = append(names, f.name)
	}
	return names
}

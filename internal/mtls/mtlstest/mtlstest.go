// Package mtlstest makes certificates, secrets and directories for the tests of package mtls and its rooms.
package mtlstest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sevagent/internal/must"
	"sevagent/internal/sim"
)

// Change edits the template of a certificate.
type Change = func(*x509.Certificate)

// CA is a certificate authority.
type CA struct {
	Cert *x509.Certificate
	Key  crypto.Signer
}

// NewCA makes a root, or an intermediate of parent. Each change may edit the template.
func NewCA(t testing.TB, name string, parent *CA, change ...Change) *CA {
	t.Helper()
	return NewCAFor(t, name, NewKey(t), parent, change...)
}

// NewCAFor is NewCA with a key of the caller's.
func NewCAFor(t testing.TB, name string, key crypto.Signer, parent *CA, change ...Change) *CA {
	t.Helper()
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	return &CA{sign(t, template, key, parent, change), key}
}

// Leaf issues a certificate for client and server authentication, and makes its key.
func (ca *CA) Leaf(t testing.TB, name string, change ...Change) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	key := NewKey(t)
	return ca.LeafFor(t, name, key, change...), key
}

// LeafFor is Leaf for a key of the caller's.
func (ca *CA) LeafFor(t testing.TB, name string, key crypto.Signer, change ...Change) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		DNSNames:    []string{name + ".example.org"},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	return sign(t, template, key, ca, change)
}

var serial atomic.Int64

// sign makes a certificate for key, by parent or, without one, by key itself.
func sign(t testing.TB, template *x509.Certificate, key crypto.Signer, parent *CA, change []Change) *x509.Certificate {
	t.Helper()
	template.SerialNumber = big.NewInt(serial.Add(1))
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(90*24*time.Hour)
	if template.IsCA {
		template.NotAfter = time.Now().Add(10 * 365 * 24 * time.Hour)
	}
	for _, c := range change {
		c(template)
	}
	issuer, signer := template, key
	if parent != nil {
		issuer, signer = parent.Cert, parent.Key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), signer)
	must.Do(t, err, "issue a certificate for %s", template.Subject)
	return must.Get(x509.ParseCertificate(der))(t, "parse the certificate of %s", template.Subject)
}

// Valid sets the dates of a certificate, from now.
func Valid(from, to time.Duration) Change {
	return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(from), time.Now().Add(to) }
}

// Usage sets the extended key usage of a certificate.
func Usage(u ...x509.ExtKeyUsage) Change {
	return func(c *x509.Certificate) { c.ExtKeyUsage = u }
}

// NewKey makes a key that is quickly made.
func NewKey(t testing.TB) crypto.Signer {
	t.Helper()
	return must.Get(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t, "make a key")
}

// CertPEM encodes certificates.
func CertPEM(certs ...*x509.Certificate) string {
	var b strings.Builder
	for _, c := range certs {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return b.String()
}

// KeyPEM encodes a key as PKCS #8.
func KeyPEM(t testing.TB, key crypto.Signer) string {
	t.Helper()
	der := must.Get(x509.MarshalPKCS8PrivateKey(key))(t, "encode a key")
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// Fields are the fields of a JSON secret.
type Fields map[string]any

// JSON encodes the fields as a secret.
func (f Fields) JSON(t testing.TB) []byte {
	t.Helper()
	return must.Get(json.Marshal(f))(t, "encode a secret")
}

// ClientFields are those of a secret as the documentation shows it: a client pair and its CA.
func (ca *CA) ClientFields(t testing.TB, name string, change ...Change) Fields {
	t.Helper()
	cert, key := ca.Leaf(t, name, change...)
	return Fields{"client_cert": CertPEM(cert), "client_key": KeyPEM(t, key), "ca_cert": CertPEM(ca.Cert)}
}

// ClientSecret is a secret with ClientFields.
func (ca *CA) ClientSecret(t testing.TB, name string, change ...Change) []byte {
	t.Helper()
	return ca.ClientFields(t, name, change...).JSON(t)
}

// ServerSecret is a secret with all five fields.
func (ca *CA) ServerSecret(t testing.TB, name string) []byte {
	t.Helper()
	f := ca.ClientFields(t, name)
	cert, key := ca.Leaf(t, name+"-server")
	f["server_cert"], f["server_key"] = CertPEM(cert), KeyPEM(t, key)
	return f.JSON(t)
}

// PairSecret is a secret with a client pair alone, AnchorSecret one with its CA alone.
func (ca *CA) PairSecret(t testing.TB, name string) []byte {
	t.Helper()
	f := ca.ClientFields(t, name)
	delete(f, "ca_cert")
	return f.JSON(t)
}

// AnchorSecret is a secret with nothing but the CA.
func (ca *CA) AnchorSecret(t testing.TB) []byte {
	t.Helper()
	return Fields{"ca_cert": CertPEM(ca.Cert)}.JSON(t)
}

// MemoryDir is t.TempDir in memory where there is one: the tests flush a lot.
func MemoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "sevagent-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := sim.RemoveAll(dir); err != nil {
			t.Errorf("remove the test's directory: %v", err)
		}
	})
	return dir
}

// Log returns a logger to the test's output.
func Log(t testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// Read returns the content of a file.
func Read(t testing.TB, path string) string {
	t.Helper()
	return string(must.Get(os.ReadFile(path))(t, "read what should be there"))
}

// Stat returns what stat(2) says of a file.
func Stat(t testing.TB, path string) *syscall.Stat_t {
	t.Helper()
	return must.Get(os.Stat(path))(t, "stat what should be there").Sys().(*syscall.Stat_t)
}

package certset

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"

	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/must"
)

// What is rare, and right: it is published without a warning, and TLS peers accept it.
func TestRareShapes(t *testing.T) {
	for _, program := range []string{"openssl", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s", program)
		}
	}
	p521 := must.Get(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))(t, "make a key on P-521")
	spiffe := must.Get(url.Parse("spiffe://example.org/ns/a/sa/b"))(t, "parse a SPIFFE ID")
	own := mtlstest.NewCA(t, "own CA", nil, func(c *x509.Certificate) {
		c.DNSNames, c.KeyUsage = []string{"node.example.org"}, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
	})
	ca := mtlstest.NewCA(t, "ca", nil)
	constrained := mtlstest.NewCA(t, "constrained", nil, func(c *x509.Certificate) {
		c.PermittedURIDomains, c.PermittedDNSDomains = []string{"example.org"}, []string{"example.org"}
		c.PermittedDNSDomainsCritical = true
	})
	type pair struct {
		ca   *mtlstest.CA
		leaf *x509.Certificate
		key  crypto.Signer
	}
	issue := func(ca *mtlstest.CA, change mtlstest.Change) pair {
		leaf, key := ca.Leaf(t, "node", change)
		return pair{ca, leaf, key}
	}
	for name, c := range map[string]pair{
		"P-521":      {ca, ca.LeafFor(t, "node", p521), p521},
		"its own CA": {own, own.Cert, own.Key},
		"names within constraints, and of a kind without": issue(constrained, func(c *x509.Certificate) {
			c.URIs, c.IPAddresses = []*url.URL{spiffe}, []net.IP{net.IPv4(10, 0, 0, 1)}
		}),
		"for ever": issue(ca, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Unix(0, 0), time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
		}),
		"the longest serial number": issue(ca, func(c *x509.Certificate) {
			c.SerialNumber = new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 159), big.NewInt(1))
		}),
		"wildcard":   issue(ca, func(c *x509.Certificate) { c.DNSNames = []string{"*.example.org"} }),
		"no subject": issue(ca, func(c *x509.Certificate) { c.Subject = pkix.Name{} }),
	} {
		cert, keyText := mtlstest.CertPEM(c.leaf), mtlstest.KeyPEM(t, c.key)
		s, err := set(mtlstest.Fields{
			clientCert: cert, clientKey: keyText, serverCert: cert, serverKey: keyText, caCert: mtlstest.CertPEM(c.ca.Cert),
		}.JSON(t))
		switch {
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case len(s.Warnings) > 0:
			t.Errorf("%s: warnings %q", name, s.Warnings)
		default:
			if err := connect(t, s); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// What programs with OpenSSL make and those in Go cannot use is named: a key whose curve is spelled out.
func TestExplicitCurve(t *testing.T) {
	out, err := exec.Command("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout",
		"-param_enc", "explicit").Output()
	if err != nil {
		t.Skipf("needs openssl: %v", err)
	}
	fields := mtlstest.NewCA(t, "ca", nil).ClientFields(t, "node")
	fields[clientKey] = string(out)
	_, err = set(fields.JSON(t))
	if want := "want one on P-256, P-384 or P-521, by name"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("a key with explicit parameters: %v, want %s", err, want)
	}
}

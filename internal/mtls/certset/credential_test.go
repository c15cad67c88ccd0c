package certset

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"testing"

	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/must"
)

// TestCredentialBundle: a consumer that asks for it gets the client's key as PKCS #8, whatever form the secret has it
// in, and then the chain of client.crt. Nobody gets it unasked.
func TestCredentialBundle(t *testing.T) {
	root := mtlstest.NewCA(t, "root", nil)
	ca := mtlstest.NewCA(t, "ca", root)
	ec := mtlstest.NewKey(t).(*ecdsa.PrivateKey)
	rsaKey := must.Get(rsa.GenerateKey(rand.Reader, 2048))(t, "make a key")
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	must.Do(t, err, "make a key")
	block := func(label string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der}))
	}
	for name, c := range map[string]struct {
		key  crypto.Signer
		text string
	}{
		"EC":     {ec, block("EC PRIVATE KEY", must.Get(x509.MarshalECPrivateKey(ec))(t, "encode a key"))},
		"RSA":    {rsaKey, block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey))},
		"PKCS 8": {ed, mtlstest.KeyPEM(t, ed)},
	} {
		t.Run(name, func(t *testing.T) {
			leaf := ca.LeafFor(t, "node", c.key)
			s := mustSet(t, mtlstest.Fields{clientCert: mtlstest.CertPEM(leaf, ca.Cert), clientKey: c.text,
				caCert: mtlstest.CertPEM(root.Cert)}.JSON(t))
			for _, f := range s.Files {
				if f.Name == bundleFile {
					t.Error("the set holds it, and nobody has asked for it")
				}
			}
			sub, missing := s.Subset([]string{bundleFile})
			if len(sub.Files) != 1 || len(missing) != 0 {
				t.Fatalf("a consumer gets %d files, and lacks %q", len(sub.Files), missing)
			}
			f := sub.Files[0]
			if want := mtlstest.KeyPEM(t, c.key) + mtlstest.CertPEM(leaf, ca.Cert); string(f.Content) != want {
				t.Errorf("it is\n%s\nwant\n%s", f.Content, want)
			}
			if !f.Private || f.Name != bundleFile || f.Ends != leaf && !f.Ends.Equal(leaf) || sub.Leaves[kindClient] == nil {
				t.Errorf("it is %+v, with the leaves %v", f, sub.Leaves)
			}
			if _, err := tls.X509KeyPair(f.Content, f.Content); err != nil {
				t.Errorf("load it as a key pair: %v", err)
			}
		})
	}
	t.Run("without a client", func(t *testing.T) {
		s := mustSet(t, root.AnchorSecret(t))
		if _, missing := s.Subset([]string{bundleFile}); len(missing) != 1 {
			t.Errorf("a set of anchors gives it; missing is %q", missing)
		}
	})
}

// Package simca issues certificates for tests and the demonstration. Its keys are P-256, which are fast to make.
package simca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"
)

// CA is a certificate authority: a root, or an intermediate.
type CA struct {
	Cert *x509.Certificate
	Key  *ecdsa.PrivateKey

	parent *CA // nil for a root
}

// New makes a root that is valid from a day before now until ten years after.
func New(name string, now time.Time) (*CA, error) { return newCA(nil, name, now) }

// Intermediate makes a CA under this one, with the same dates as New.
func (ca *CA) Intermediate(name string, now time.Time) (*CA, error) { return newCA(ca, name, now) }

func newCA(parent *CA, name string, now time.Time) (*CA, error) {
	cert, key, err := parent.sign(nil, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-24 * time.Hour), NotAfter: now.AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	})
	return &CA{Cert: cert, Key: key, parent: parent}, err
}

// sign makes the certificate of a key, without a CA a self-signed one. It makes the key, too, if that is nil.
func (ca *CA) sign(key *ecdsa.PrivateKey, template *x509.Certificate) (
	*x509.Certificate, *ecdsa.PrivateKey, error) {
	var err error
	if key == nil {
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, nil, err
		}
	}
	if ca == nil {
		ca = &CA{Cert: template, Key: key}
	}
	cert, err := ca.Certify(template, &key.PublicKey)
	return cert, key, err
}

// Certify makes a certificate for a key that others have. It has all of the template but the serial number.
func (ca *CA) Certify(template *x509.Certificate, key crypto.PublicKey) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial.Add(serial, big.NewInt(1)) // never 0
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Cert, key, ca.Key)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate for %s: %w", template.Subject.CommonName, err)
	}
	return x509.ParseCertificate(der)
}

// Chain returns the certificates that lead from those that the CA issues to the root: its own first.
func (ca *CA) Chain() []*x509.Certificate {
	var all []*x509.Certificate
	for ; ca != nil; ca = ca.parent {
		all = append(all, ca.Cert)
	}
	return all
}

// PEM returns the trust anchor: the certificate of the root above this CA.
func (ca *CA) PEM() string {
	chain := ca.Chain()
	return certificatePEM(chain[len(chain)-1])
}

func certificatePEM(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

// Leaf is a certificate, with the intermediates above it, and its key, PEM.
type Leaf struct{ Cert, Key string }

// Template is the content of a leaf.
type Template struct {
	Name                string // the subject's common name
	NotBefore, NotAfter time.Time
	DNSNames            []string
	IPAddresses         []net.IP
	Usages              []x509.ExtKeyUsage
	Key                 *ecdsa.PrivateKey // nil: a new one
	Extensions          []pkix.Extension  // beside those of the other fields
}

// Issue makes a leaf for a client and a server, with the names name and localhost.
func (ca *CA) Issue(name string, notBefore, notAfter time.Time) (Leaf, error) {
	return ca.IssueFrom(Template{
		Name: name, NotBefore: notBefore, NotAfter: notAfter,
		DNSNames: []string{name, "localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	})
}

// IssueFrom makes a leaf.
func (ca *CA) IssueFrom(t Template) (Leaf, error) {
	cert, key, err := ca.sign(t.Key, &x509.Certificate{
		Subject: pkix.Name{CommonName: t.Name}, NotBefore: t.NotBefore, NotAfter: t.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: t.Usages, DNSNames: t.DNSNames, IPAddresses: t.IPAddresses,
		ExtraExtensions: t.Extensions,
	})
	if err != nil {
		return Leaf{}, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Leaf{}, err
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	leaf := Leaf{Cert: certificatePEM(cert), Key: string(keyPEM)}
	chain := ca.Chain()
	for _, above := range chain[:len(chain)-1] {
		leaf.Cert += certificatePEM(above)
	}
	return leaf, nil
}

// ClientSecret issues a client and returns its JSON secret, valid from an hour before now until 90 days after.
func (ca *CA) ClientSecret(name string, now time.Time) (string, error) {
	leaf, err := ca.Issue(name, now.Add(-time.Hour), now.AddDate(0, 0, 90))
	if err != nil {
		return "", err
	}
	text, err := json.Marshal(map[string]string{"client_cert": leaf.Cert, "client_key": leaf.Key, "ca_cert": ca.PEM()})
	return string(text), err
}

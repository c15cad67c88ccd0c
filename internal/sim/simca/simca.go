// Package simca issues certificates for tests and the demonstration. Its keys are P-256, which are fast to make.
package simca

import (
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
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	template.SerialNumber = serial.Add(serial, big.NewInt(1)) // never 0
	issuer, signer := template, key
	if ca != nil {
		issuer, signer = ca.Cert, ca.Key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, &key.PublicKey, signer)
	if err != nil {
		return nil, nil, fmt.Errorf("issue a certificate for %s: %w", template.Subject.CommonName, err)
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

// PEM returns the trust anchor: the certificate of the root above this CA.
func (ca *CA) PEM() string {
	for ca.parent != nil {
		ca = ca.parent
	}
	return certificatePEM(ca.Cert)
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
	for ; ca.parent != nil; ca = ca.parent {
		leaf.Cert += certificatePEM(ca.Cert)
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

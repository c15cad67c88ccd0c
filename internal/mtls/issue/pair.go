package issue

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Keys are the types of private keys that can be made.
func Keys() []string { return []string{"ecdsa-p256", "ecdsa-p384"} }

func newKey(of string) (crypto.Signer, error) {
	switch of {
	case "ecdsa-p256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ecdsa-p384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	}
	return nil, fmt.Errorf("%q is not one of %s", of, strings.Join(Keys(), ", "))
}

// pair is a key with the certificate that was issued for it, as a version of a secret.
type pair struct {
	version string
	leaf    *x509.Certificate
	content []byte // the JSON object that certset.Parse reads
	at      time.Time
}

// newPair makes a version of what an authority has issued for key, if that is what was asked for: for the key, and for
// all names of the request. Who publishes it verifies the rest.
func newPair(
	c Certificate, key crypto.Signer, asked *x509.CertificateRequest, gives []string, spec string,
) (*pair, error) {
	if len(c.Chain) == 0 {
		return nil, fmt.Errorf("the authority's answer holds no certificate")
	}
	leaf := c.Chain[0]
	if public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(leaf.PublicKey) {
		return nil, fmt.Errorf("the certificate with serial number %x is for another key than the one made for it",
			leaf.SerialNumber)
	}
	if missing := missingNames(leaf, asked); len(missing) > 0 {
		return nil, fmt.Errorf("the certificate with serial number %x does not have the names asked for: %s",
			leaf.SerialNumber, strings.Join(missing, ", "))
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	object := make(map[string]string)
	for _, kind := range gives {
		object[kind+"_cert"] = encode(c.Chain)
		object[kind+"_key"] = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	if len(c.Anchors) > 0 {
		object["ca_cert"] = encode(c.Anchors)
	}
	content, err := json.Marshal(object)
	return &pair{version: versionOf(leaf, spec), leaf: leaf, content: content}, err
}

// versionOf names a version by its certificate and by what was ordered, so that a configuration that orders something
// else is seen to differ even after a restart.
func versionOf(leaf *x509.Certificate, spec string) string {
	return fmt.Sprintf("sha256-%.8x-%s", sha256.Sum256(leaf.Raw), orderOf(spec))
}

// orderOf is the end of a version's name, which stands for what was ordered.
func orderOf(spec string) string { return fmt.Sprintf("%.4x", sha256.Sum256([]byte(spec))) }

// missingNames returns the names that were asked for and are not in a certificate. A common name may be one of the DNS
// names instead.
func missingNames(leaf *x509.Certificate, asked *x509.CertificateRequest) (missing []string) {
	if cn := asked.Subject.CommonName; cn != "" && cn != leaf.Subject.CommonName && !slices.Contains(asked.DNSNames, cn) {
		missing = append(missing, "common name "+cn)
	}
	for _, name := range asked.DNSNames {
		if !slices.ContainsFunc(leaf.DNSNames, func(n string) bool { return strings.EqualFold(n, name) }) {
			missing = append(missing, "DNS:"+name)
		}
	}
	for _, name := range asked.URIs {
		has := false
		for _, u := range leaf.URIs {
			has = has || u.String() == name.String()
		}
		if !has {
			missing = append(missing, "URI:"+name.String())
		}
	}
	return missing
}

func encode(certs []*x509.Certificate) string {
	var b strings.Builder
	for _, c := range certs {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return b.String()
}

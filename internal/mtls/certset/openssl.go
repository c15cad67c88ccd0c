package certset

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"
	"time"
)

// What OpenSSL asks of a chain and crypto/x509 does not: OpenSSL 3.0, crypto/x509/v3_purp.c and x509_vfy.c. What Go asks
// beyond OpenSSL, crypto/x509 finds by itself.

func usageOf(kind string) x509.ExtKeyUsage {
	if kind == kindServer {
		return x509.ExtKeyUsageServerAuth
	}
	return x509.ExtKeyUsageClientAuth
}

// checkUsage verifies what a leaf is for. OpenSSL does not count anyExtendedKeyUsage.
func checkUsage(kind string, leaf *x509.Certificate) error {
	if !hasUsage(kind, leaf) {
		return fmt.Errorf("is not for %s authentication: its extended key usage does not say so", kind)
	}
	if leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return fmt.Errorf("cannot sign a TLS handshake: its key usage does not include digitalSignature")
	}
	return nil
}

// hasUsage reports whether the extended key usage of c, if it has any, names that of a kind.
func hasUsage(kind string, c *x509.Certificate) bool {
	return len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0 || slices.Contains(c.ExtKeyUsage, usageOf(kind))
}

// checkOpenSSL verifies that OpenSSL, too, goes from the leaf to the end of p. It takes the issuer of a certificate by
// name and key identifier, and does not come back to try another one; all are those that it may take.
func checkOpenSSL(kind string, p path, all []*x509.Certificate, at time.Time) error {
	for i, c := range p {
		if !hasUsage(kind, c) {
			return fmt.Errorf("%q is not for certificates for %s authentication", c.Subject, kind)
		}
		if i+1 == len(p) {
			if isRoot(c) {
				return findsIssuer(c, c)
			}
			break
		}
		if err := findsIssuer(p[i+1], c); err != nil {
			return err
		}
		for _, other := range all {
			names := bytes.Equal(other.RawSubject, c.RawIssuer) && mayIssue(other, c) == nil
			sameKey := bytes.Equal(other.RawSubjectPublicKeyInfo, p[i+1].RawSubjectPublicKeyInfo)
			if names && !sameKey && !at.Before(other.NotBefore) && !at.After(other.NotAfter) {
				return fmt.Errorf("readers that use OpenSSL cannot tell which %q issued %q: two have that name, and no key "+
					"identifier tells them apart", other.Subject, c.Subject)
			}
		}
	}
	return nil
}

func findsIssuer(issuer, c *x509.Certificate) error {
	if err := mayIssue(issuer, c); err != nil {
		return fmt.Errorf("readers that use OpenSSL do not find the issuer of %q: %w", c.Subject, err)
	}
	return nil
}

// authorityKeyID is the extension of RFC 5280, section 4.2.1.1.
type authorityKeyID struct {
	KeyID  []byte        `asn1:"optional,tag:0"`
	Issuer asn1.RawValue `asn1:"optional,tag:1"` // GeneralNames
	Serial *big.Int      `asn1:"optional,tag:2"`
}

// mayIssue compares the authority key identifier of c with an issuer, as X509_check_akid does.
func mayIssue(issuer, c *x509.Certificate) error {
	i := slices.IndexFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidAuthorityKeyID) })
	if i < 0 {
		return nil
	}
	var id authorityKeyID
	if _, err := asn1.Unmarshal(c.Extensions[i].Value, &id); err != nil {
		return fmt.Errorf("its authority key identifier does not parse")
	}
	if len(id.KeyID) > 0 && len(issuer.SubjectKeyId) > 0 && !bytes.Equal(id.KeyID, issuer.SubjectKeyId) {
		return fmt.Errorf("its authority key identifier names the key %x, and %q has %x", id.KeyID, issuer.Subject,
			issuer.SubjectKeyId)
	}
	if id.Serial != nil && id.Serial.Cmp(issuer.SerialNumber) != 0 {
		return fmt.Errorf("its authority key identifier names the serial number %x, and %q has %x; issue it anew", id.Serial,
			issuer.Subject, issuer.SerialNumber)
	}
	if name := directoryName(id.Issuer.Bytes); name != nil && !bytes.Equal(name, issuer.RawIssuer) {
		return fmt.Errorf("its authority key identifier names another issuer than %q has", issuer.Subject)
	}
	return nil
}

var oidAuthorityKeyID = asn1.ObjectIdentifier{2, 5, 29, 35}

// directoryName returns the first directoryName of GeneralNames, as DER; nil: there is none.
func directoryName(names []byte) []byte {
	for len(names) > 0 {
		var name asn1.RawValue
		rest, err := asn1.Unmarshal(names, &name)
		if err != nil {
			return nil
		}
		if name.Class == asn1.ClassContextSpecific && name.Tag == 4 { // explicit, since Name is a CHOICE
			return name.Bytes
		}
		names = rest
	}
	return nil
}

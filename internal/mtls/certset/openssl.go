package certset

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"
	"time"
)

// What OpenSSL asks of a chain and crypto/x509 does not: OpenSSL 3.0, crypto/x509/v3_purp.c and x509_vfy.c. What Go
// asks beyond OpenSSL, crypto/x509 finds by itself.

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

// checkLinks verifies that OpenSSL takes each certificate of p for the issuer of the one before, and for its purpose.
func checkLinks(kind string, p path) error {
	for i, c := range p {
		if !hasUsage(kind, c) {
			return fmt.Errorf("%q is not for certificates for %s authentication", c.Subject, kind)
		}
		issuer := c // of a root
		if i+1 < len(p) {
			issuer = p[i+1]
		} else if !isRoot(c) {
			break
		}
		if err := mayIssue(issuer, c); err != nil {
			return fmt.Errorf("readers that use OpenSSL do not find the issuer of %q: %w", c.Subject, err)
		}
	}
	return checkNames(p)
}

// OpenSSL chooses an issuer by name, key identifier and dates, and does not come back to try another one. It looks
// among the anchors first, and takes one that has expired if there is no other. Of what comes with a leaf it takes the
// first, which is that of the path, since that is sent first.

// candidates returns those of list that OpenSSL may take for the issuer of c, apart by whether they are valid.
func candidates(c *x509.Certificate, list []*x509.Certificate, at time.Time) (valid, invalid []*x509.Certificate) {
	for _, o := range list {
		switch {
		case !bytes.Equal(o.RawSubject, c.RawIssuer) || mayIssue(o, c) != nil:
		case at.Before(o.NotBefore) || at.After(o.NotAfter):
			invalid = append(invalid, o)
		default:
			valid = append(valid, o)
		}
	}
	return valid, invalid
}

// checkChoice verifies that OpenSSL gets to an anchor whichever of the anchors it takes.
func (s *search) checkChoice(p path, issuers map[*x509.Certificate][]*x509.Certificate, at time.Time) error {
	for i, c := range p[:len(p)-1] {
		valid, _ := candidates(c, s.anchors, at)
		for _, o := range valid {
			if !slices.ContainsFunc(issuers[c], o.Equal) {
				return fmt.Errorf("readers that use OpenSSL cannot tell which %q issued %q: serial number %x, or %x, "+
					"which is not valid for it", o.Subject, c.Subject, p[i+1].SerialNumber, o.SerialNumber)
			}
		}
	}
	return nil
}

// inTheWay returns the anchors that OpenSSL takes for issuers in p although they have expired.
func (p path) inTheWay(anchors []*x509.Certificate, at time.Time) (list []*x509.Certificate) {
	for _, c := range p[:len(p)-1] {
		valid, invalid := candidates(c, anchors, at)
		if len(valid) > 0 {
			break
		}
		list = append(list, invalid...)
	}
	return list
}

// leadsUp reports whether OpenSSL gets from c to a root by the anchors alone, which it does not leave again.
func leadsUp(c *x509.Certificate, anchors []*x509.Certificate, at time.Time) bool {
	for range maxChain {
		if isRoot(c) {
			return true
		}
		valid, _ := candidates(c, anchors, at)
		if len(valid) == 0 {
			return false
		}
		c = valid[0]
	}
	return false
}

// deadEnd returns the anchor of which OpenSSL finds no issuer, if all anchors are trusted; nil: it gets to a root.
func (p path) deadEnd(anchors []*x509.Certificate, at time.Time) *x509.Certificate {
	for _, c := range p[:len(p)-1] {
		valid, _ := candidates(c, anchors, at)
		i := slices.IndexFunc(valid, func(o *x509.Certificate) bool { return !leadsUp(o, anchors, at) })
		switch {
		case i >= 0:
			return valid[i]
		case len(valid) > 0:
			return nil
		}
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
	value := extension(c, oidAuthorityKeyID)
	if value == nil {
		return nil
	}
	var id authorityKeyID
	if _, err := asn1.Unmarshal(value, &id); err != nil {
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
	if name, _ := nextDirectoryName(id.Issuer.Bytes); name != nil && !bytes.Equal(name, issuer.RawIssuer) {
		return fmt.Errorf("its authority key identifier names another issuer than %q has", issuer.Subject)
	}
	return nil
}

var oidAuthorityKeyID = asn1.ObjectIdentifier{2, 5, 29, 35}

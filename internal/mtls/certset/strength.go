package certset

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
)

// minRSABits is the least that NIST SP 800-57 part 1, table 4, still allows for signatures. The others bound the work
// of verifying one signature to about a millisecond, which is that of P-521, too. A key of 32,000 bits takes thirty.
const (
	minRSABits = 2048
	maxRSABits = 8192
	// Above bigRSABits, the public exponent must not be larger than the one that everybody uses.
	bigRSABits  = 4096
	maxExponent = 65537
)

// costlyError is about a key that takes long to verify with: not only we would spend that time.
type costlyError string

func (e costlyError) Error() string { return string(e) }

// checkStrength rejects keys that TLS peers reject, or should, and keys that take long to verify with.
func checkStrength(key crypto.PublicKey) error {
	switch key := key.(type) {
	case *rsa.PublicKey:
		switch n := key.N.BitLen(); {
		case n < minRSABits:
			return fmt.Errorf("RSA key of %d bits, want at least %d", n, minRSABits)
		case n > maxRSABits:
			return costlyError(fmt.Sprintf("RSA key of %d bits, want at most %d", n, maxRSABits))
		case n > bigRSABits && key.E > maxExponent:
			return costlyError(fmt.Sprintf("RSA key of %d bits with the exponent %d, want at most %d", n, key.E, maxExponent))
		}
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
		default:
			return fmt.Errorf("ECDSA key on %s, want P-256, P-384 or P-521", key.Curve.Params().Name)
		}
	case ed25519.PublicKey:
	default:
		return fmt.Errorf("key is neither RSA nor ECDSA nor Ed25519")
	}
	return nil
}

// checkCert verifies what a certificate is by itself. An anchor is a certificate from ca_cert or peer_ca.
func checkCert(c *x509.Certificate, anchor bool) error {
	if c.PublicKeyAlgorithm == x509.UnknownPublicKeyAlgorithm {
		return errors.New(describeAlgorithm(algorithmOf(c)))
	}
	if err := checkStrength(c.PublicKey); err != nil {
		return err
	}
	// Nobody verifies the signature of a root on itself: it is trusted because it is listed.
	selfSigned := bytes.Equal(c.RawSubject, c.RawIssuer)
	switch c.SignatureAlgorithm {
	case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1:
		if !anchor || !selfSigned {
			return fmt.Errorf("signed with %s, which can be forged", c.SignatureAlgorithm)
		}
	}
	if anchor && (!c.BasicConstraintsValid || !c.IsCA) {
		return errNoCA
	}
	return nil
}

// errNoCA is about an anchor. Readers differ in what they make of one without CA:TRUE: a version 1 root, or a leaf that
// is its own CA.
var errNoCA = errors.New("is not a CA certificate: it needs the extension basicConstraints with CA:TRUE")

// algorithmOf returns that of the key in a certificate.
func algorithmOf(c *x509.Certificate) asn1.ObjectIdentifier {
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		PublicKey asn1.BitString
	}
	if _, err := asn1.Unmarshal(c.RawSubjectPublicKeyInfo, &spki); err != nil {
		return nil
	}
	return spki.Algorithm.Algorithm
}

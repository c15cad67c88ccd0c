package nitro

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	"sevagent/internal/pattern"
)

// Error is why a document is refused: a code for programs, a reason for people.
type Error struct{ Code, Reason string }

func (e *Error) Error() string { return e.Reason }

// Codes of an Error.
const (
	CodeMalformed  = "nitrotpm_malformed"   // not a document, or not in the form that AWS gives it
	CodeKind       = "nitrotpm_kind"        // of an enclave or a sandbox, and a node's is wanted
	CodeChain      = "nitrotpm_chain"       // the certificates do not lead to the root, or are not a document's
	CodeSignature  = "nitrotpm_signature"   // not signed with the key of its certificate
	CodeExpired    = "nitrotpm_expired"     // the certificates led to the root, and have ended
	CodeFromFuture = "nitrotpm_from_future" // made later than now
	CodeTooOld     = "nitrotpm_too_old"     // older than the caller wants
	CodeBinding    = "nitrotpm_binding"     // for another attestation report, or for something else
	CodeRegion     = "nitrotpm_region"      // of another region
	CodeInstance   = "nitrotpm_instance"    // of another instance
)

// Skew is how far AWS's clock may be ahead of the caller's. Certificates are made seconds before the documents that
// they sign, and begin 3 seconds before them: a caller whose clock is slow would refuse every fresh document.
const Skew = 5 * time.Minute

// Config says how a document is verified.
type Config struct {
	// Roots are the trust anchors. Nil: AWS's root, which is embedded.
	Roots *x509.CertPool
	// Now is the caller's time.
	Now time.Time
	// Stored verifies the certificates for the document's own timestamp instead of Now. They end three hours after a
	// document, so that one from a file cannot be verified otherwise. It then proves that AWS signed it at that time,
	// if nobody has got at the key since.
	Stored bool
	// MaxAge bounds the document's age by AWS's clock. Zero: its certificate does, unless it is Stored.
	MaxAge time.Duration
}

// Verify verifies a document: its form, that its certificates lead to a root, its signature, its time. Whether it is of
// the right kind, and for the right report, is for the caller to ask. The error is an *Error.
func Verify(document []byte, c Config) (*Document, error) {
	p, err := parse(document)
	if err != nil {
		return nil, &Error{CodeMalformed, "it is no attestation document of AWS's: " + err.Error()}
	}
	age := c.Now.Sub(p.Timestamp)
	switch {
	case age < -Skew:
		return nil, &Error{CodeFromFuture, fmt.Sprintf("it says that it was made at %s, which is %v from now",
			p.Timestamp.Format(time.RFC3339), (-age).Round(time.Second))}
	case c.MaxAge > 0 && age > c.MaxAge:
		return nil, &Error{CodeTooOld, fmt.Sprintf("it says that it was made at %s, %v ago, and at most %v is wanted",
			p.Timestamp.Format(time.RFC3339), age.Round(time.Second), c.MaxAge)}
	}
	at := c.Now
	if c.Stored || p.Timestamp.After(at) {
		at = p.Timestamp
	}
	leaf, err := p.chain(c.Roots, at)
	if err != nil {
		return nil, err
	}
	if !p.signed(leaf.PublicKey.(*ecdsa.PublicKey)) {
		return nil, &Error{CodeSignature, "its signature is not by the key of its certificate"}
	}
	return &p.Document, nil
}

// region has the form of AWS's regions.
var region = pattern.New(`^[a-z]+(-[a-z]+)+-[0-9]+$`)

// chain verifies the certificates at a time, and takes the region from the first.
func (p *parsed) chain(roots *x509.CertPool, at time.Time) (*x509.Certificate, error) {
	refuse := func(format string, args ...any) error { return &Error{CodeChain, fmt.Sprintf(format, args...)} }
	leaf, err := x509.ParseCertificate(p.leaf)
	if err != nil {
		return nil, refuse("its certificate does not parse: %v", err)
	}
	// The first of the bundle is the root, as the maker of the document has it: never an anchor, and not needed.
	intermediates := x509.NewCertPool()
	for i, der := range p.bundle[1:] {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, refuse("the certificate %d of its cabundle does not parse: %v", i+1, err)
		}
		intermediates.AddCert(cert)
	}
	if roots == nil {
		roots = Roots()
	}
	options := x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, // AWS's have none
	}
	if _, err := leaf.Verify(options); err != nil {
		options.CurrentTime = p.Timestamp
		if _, then := leaf.Verify(options); then != nil || at.Equal(p.Timestamp) {
			return nil, refuse("its certificates do not lead to the root: %v", err)
		}
		return nil, &Error{CodeExpired, fmt.Sprintf("it says that it was made at %s, and its certificates, which "+
			"live for hours, are not valid at %s: verify stored evidence for its own time",
			p.Timestamp.Format(time.RFC3339), at.UTC().Format(time.RFC3339))}
	}
	key, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P384() || leaf.IsCA || leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return nil, refuse("its certificate is not one that signs documents")
	}
	name, inAWS := strings.CutSuffix(leaf.Subject.CommonName, ".aws")
	name, ours := strings.CutPrefix(name, p.ModuleID+".")
	if !inAWS || !ours || len(name) > 32 || !region.MatchString(name) {
		return nil, refuse("its certificate is that of %.128q, want its module_id %q, a region and .aws",
			leaf.Subject.CommonName, p.ModuleID)
	}
	p.Region = name
	return leaf, nil
}

// signed verifies the signature over the payload as it stands: Sig_structure of RFC 9052, section 4.4.
func (p *parsed) signed(key *ecdsa.PublicKey) bool {
	data := append([]byte("\x84\x6aSignature1"), protected...)
	data = append(data, 0x40) // no external_aad
	switch n := len(p.payload); {
	case n < 24:
		data = append(data, majorBytes<<5|byte(n))
	case n < 1<<8:
		data = append(data, majorBytes<<5|24, byte(n))
	default: // MaxDocument is below 1<<16
		data = append(data, majorBytes<<5|25, byte(n>>8), byte(n))
	}
	digest := sha512.Sum384(append(data, p.payload...))
	r, s := new(big.Int).SetBytes(p.signature[:48]), new(big.Int).SetBytes(p.signature[48:])
	return ecdsa.Verify(key, digest[:], r, s)
}

// Code returns the code of an error of this package, or "".
func Code(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return ""
}

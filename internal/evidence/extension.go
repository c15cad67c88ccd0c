package evidence

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ExtensionOID is id-pe-cmw, the X.509 extension of RFC 9999.
var ExtensionOID = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 35}

// MaxExtension bounds the extension's value in bytes. AWS Private CA takes at most 4,096 characters of base64.
const MaxExtension = 3072

// The media type of the record in the extension. A later profile has another version in it.
const (
	extensionTypes = "application/vnd.sevagent.evidence."
	extensionType  = extensionTypes + "v2+cbor"
	maxMediaType   = 127 // of each half: RFC 6838, section 4.2; the halves of what is ours are shorter
)

// Errors of ParseCertificate for certificates whose evidence is not just malformed.
var (
	// ErrNoExtension: the certificate carries no evidence.
	ErrNoExtension = errors.New("the certificate has no extension id-pe-cmw (1.3.6.1.5.5.7.1.35)")
	// ErrForeignExtension: it carries a conceptual message of another program.
	ErrForeignExtension = errors.New("the extension id-pe-cmw is not sevagent's evidence")
)

// Extension returns the certificate extension that carries d, for the certificate whose key d binds: docs/evidence.md
// has its encoding. d must be as the agent makes it for a key that it publishes: purpose mtls, caller the host, a
// binding, and the certificate of the endorsement key. ParseExtension gives d back, without what has no room:
// the verdict, the certificates behind the first, and the document of a NitroTPM.
func (d *Document) Extension() (pkix.Extension, error) {
	value, err := d.extension()
	if err != nil {
		return pkix.Extension{}, fmt.Errorf("encode evidence for a certificate: %w", err)
	}
	return pkix.Extension{Id: slices.Clone(ExtensionOID), Value: value}, nil
}

func (d *Document) extension() ([]byte, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	certs, err := d.Certs()
	if err != nil {
		return nil, err
	}
	switch {
	case d.Purpose != PurposeMTLS || d.Caller.Kind != CallerHost || d.Binding.kind() == BindNone:
		return nil, fmt.Errorf("it is for the purpose %s, the caller %s and a binding of the kind %s; want %s, %s and a key",
			d.Purpose, d.Caller.Kind, d.Binding.kind(), PurposeMTLS, CallerHost)
	case d.IssuedAt < 0 || d.IssuedAt > maxInteger:
		return nil, fmt.Errorf("it was made at %d seconds since 1970; set the node's clock", d.IssuedAt)
	case len(certs) == 0:
		return nil, errors.New("it has no certificate of the endorsement key, so nobody could verify it")
	}

	var w cborWriter
	w.head(cborArray, 10)
	w.bytes(d.Nonce)
	w.head(cborUint, uint64(d.IssuedAt))
	w.text(d.Binding.Kind)
	w.bytes(d.Binding.SPKISHA256)
	w.head(cborUint, uint64(*d.Caller.UID))
	if d.Instance == (Instance{}) {
		w.head(cborArray, 0)
	} else {
		w.head(cborArray, 3)
		w.text(d.Instance.ID)
		w.text(d.Instance.Region)
		w.text(d.Instance.AccountID)
	}
	w.head(cborUint, uint64(d.Batch.Index))
	w.head(cborArray, uint64(len(d.Batch.Path)))
	for _, step := range d.Batch.Path {
		w.bytes(step)
	}
	w.bytes(d.Report)
	w.bytes(certs[0])

	var record cborWriter
	record.head(cborArray, 3)
	record.text(extensionType)
	record.bytes(w)
	record.head(cborUint, cmwEndorsements|cmwEvidence)
	value, err := asn1.Marshal([]byte(record)) // the arm cbor of RFC 9999's CHOICE, an OCTET STRING
	if err == nil && len(value) > MaxExtension {
		err = fmt.Errorf("it takes %d bytes, and %d are allowed: the report has %d, the endorsement key's certificate %d, "+
			"the path %d for %d steps; ask again when fewer requests wait together",
			len(value), MaxExtension, len(d.Report), len(certs[0]), len(d.Batch.Path)*Size, len(d.Batch.Path))
	}
	return value, err
}

// ParseCertificate returns the document that a certificate carries, of the form that Parse checks. Whether that binds
// the certificate's key is the caller's to compare.
func ParseCertificate(cert *x509.Certificate) (*Document, error) {
	var found []pkix.Extension
	for _, e := range cert.Extensions {
		if e.Id.Equal(ExtensionOID) {
			found = append(found, e)
		}
	}
	switch {
	case len(found) == 0:
		return nil, ErrNoExtension
	case len(found) > 1:
		return nil, errors.New("parse the certificate's evidence: id-pe-cmw stands there twice")
	case found[0].Critical:
		return nil, errors.New("parse the certificate's evidence: id-pe-cmw is critical")
	}
	return ParseExtension(found[0].Value)
}

// ParseExtension returns the document of an extension's value, of the form that Parse checks. There is one value for
// each document: what parses, Extension encodes to the same bytes.
func ParseExtension(value []byte) (*Document, error) {
	d, err := parseExtension(value)
	if err != nil {
		return nil, fmt.Errorf("parse the certificate's evidence: %w", err)
	}
	return d, nil
}

func parseExtension(value []byte) (*Document, error) {
	if len(value) > MaxExtension {
		return nil, fmt.Errorf("%d bytes, at most %d are allowed", len(value), MaxExtension)
	}
	var arm asn1.RawValue
	if rest, err := asn1.Unmarshal(value, &arm); err != nil || len(rest) > 0 {
		return nil, errors.New("the value of id-pe-cmw is not one ASN.1 value")
	}
	if arm.Class != asn1.ClassUniversal || arm.Tag != asn1.TagOctetString || arm.IsCompound {
		return nil, fmt.Errorf("%w: it is not CBOR", ErrForeignExtension)
	}

	record := cborReader{rest: arm.Bytes}
	record.count(3)
	switch kind := record.text(maxMediaType); {
	case record.err != nil:
		return nil, fmt.Errorf("%w: it is no record of a media type such as %s", ErrForeignExtension, extensionType)
	case kind != extensionType && strings.HasPrefix(kind, extensionTypes):
		return nil, fmt.Errorf("%w: the record's media type is %q, want %q", ErrProfile, kind, extensionType)
	case kind != extensionType:
		return nil, fmt.Errorf("%w: the record's media type is %q", ErrForeignExtension, kind)
	}
	r := cborReader{rest: record.bytes(0, MaxExtension)}
	indicator := record.uint(maxInteger)
	if err := record.end(); err != nil {
		return nil, err
	}
	if indicator != cmwEndorsements|cmwEvidence {
		return nil, fmt.Errorf("the record's indicator is %d, want %d", indicator, cmwEndorsements|cmwEvidence)
	}

	d := &Document{EATProfile: Profile, Purpose: PurposeMTLS}
	r.count(10)
	d.Nonce = r.bytes(MinNonce, MaxNonce)
	d.IssuedAt = int64(r.uint(maxInteger))
	d.Binding = Binding{Kind: r.text(len(BindClient)), SPKISHA256: r.bytes(32, 32)}
	d.Caller = HostCaller(uint32(r.uint(1<<32 - 1)))
	if len(r.rest) > 0 && r.rest[0] == cborArray<<5 {
		r.count(0)
	} else {
		r.count(3)
		d.Instance = Instance{ID: r.text(maxRegion), Region: r.text(maxRegion), AccountID: r.text(maxRegion)}
		if r.err == nil && d.Instance == (Instance{}) {
			return nil, errors.New("the instance is empty")
		}
	}
	d.Batch.Index = int(r.uint(1<<MaxDepth - 1))
	d.Batch.Path = make([]Hex, r.head(cborArray, MaxDepth))
	for i := range d.Batch.Path {
		d.Batch.Path[i] = r.bytes(Size, Size)
	}
	d.Report = r.bytes(reportSize, reportSize)
	cert := r.bytes(1, MaxExtension)
	if err := r.end(); err != nil {
		return nil, err
	}

	if d.Binding.Kind != BindClient && d.Binding.Kind != BindServer {
		return nil, fmt.Errorf("unknown binding %q", d.Binding.Kind)
	}
	d.ReportData = d.Report[reportDataOffset:][:Size]
	d.Certificates = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}))
	var err error
	if d.CMW, err = cmw(d.Report, nil, [][]byte{cert}); err != nil {
		return nil, err
	}
	return d, d.check()
}

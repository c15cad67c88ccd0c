package evidence

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"time"
)

// Profile is the eat_profile of the document (RFC 9711, section 4.3.2): a name, not an address to fetch.
const Profile = "tag:sevagent,2026:evidence#2"

// profile1 is that of leaf version 1, which did not commit to the kinds of binding and caller and to the instance.
const profile1 = "tag:sevagent,2026:evidence#1"

// ErrOlder is returned for a document of profile 1.
var ErrOlder = errors.New("eat_profile is " + profile1 + ", made by an older agent; upgrade the node's sevagent")

// MaxDocument bounds an evidence document in bytes.
const MaxDocument = 256 << 10

// Document is the JSON form of evidence. The names eat_profile, eat_nonce and iat are those of RFC 9711.
//
// What the hardware vouches for is Report alone; through its REPORT_DATA it commits to Purpose, Nonce, Binding,
// Caller and Instance. IssuedAt and Verdict are the node's word and for convenience: a relying party appraises anew.
type Document struct {
	EATProfile string `json:"eat_profile"`
	// Nonce is base64url without padding, as RFC 9711 has it in JSON.
	Nonce B64URL `json:"eat_nonce"`
	// IssuedAt is in seconds since the Unix epoch.
	IssuedAt int64   `json:"iat"`
	Purpose  Purpose `json:"purpose"`
	Binding  Binding `json:"binding"`
	Caller   Caller  `json:"caller"`
	// Instance is absent where the node does not know what instance it is.
	Instance Instance `json:"instance,omitzero"`
	Batch    Batch    `json:"batch"`
	// ReportData is REPORT_DATA as the report must carry it: the root of the batch.
	ReportData Hex `json:"report_data"`
	// Report is the ATTESTATION_REPORT, raw ABI bytes.
	Report []byte `json:"report"`
	// Certificates are the endorsement key's certificate (VLEK or VCEK) and, where the host gave them, those
	// above it, PEM.
	Certificates string          `json:"certificates"`
	CMW          json.RawMessage `json:"cmw"`
	Verdict      json.RawMessage `json:"verdict,omitempty"`
}

// Batch places the request's leaf in the tree whose root is REPORT_DATA.
type Batch struct {
	Index int   `json:"index"`
	Path  []Hex `json:"path"`
}

// Build puts a document together. certs are DER, the endorsement key's first.
func Build(c Claims, index int, path [][Size]byte, report []byte, certs [][]byte, verdict any, now time.Time) (
	*Document, error) {
	c.Binding.Kind = c.Binding.kind()
	d := &Document{
		EATProfile: Profile,
		Nonce:      c.Nonce,
		IssuedAt:   now.Unix(),
		Purpose:    c.Purpose,
		Binding:    c.Binding,
		Caller:     c.Caller,
		Instance:   c.Instance,
		Batch:      Batch{Index: index, Path: []Hex{}},
		Report:     report,
	}
	for _, p := range path {
		d.Batch.Path = append(d.Batch.Path, p[:])
	}
	root, err := Root(c.Leaf(), index, path)
	if err != nil {
		return nil, err
	}
	d.ReportData = root[:]
	var text bytes.Buffer
	for _, der := range certs {
		pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	d.Certificates = text.String()
	if d.CMW, err = cmw(report, certs); err != nil {
		return nil, err
	}
	if verdict != nil {
		if d.Verdict, err = json.Marshal(verdict); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// Parse reads a document and checks its form, not its truth.
func Parse(data []byte) (*Document, error) {
	if len(data) > MaxDocument {
		return nil, fmt.Errorf("parse evidence: %d bytes, at most %d are allowed", len(data), MaxDocument)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	d := new(Document)
	if err := dec.Decode(d); err != nil {
		return nil, fmt.Errorf("parse evidence: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("parse evidence: more than one JSON value")
	}
	if d.EATProfile == profile1 {
		return nil, fmt.Errorf("parse evidence: %w", ErrOlder)
	}
	if d.EATProfile != Profile {
		return nil, fmt.Errorf("parse evidence: eat_profile is %q, want %q", d.EATProfile, Profile)
	}
	if err := d.Claims().Check(); err != nil {
		return nil, fmt.Errorf("parse evidence: %w", err)
	}
	if _, err := d.root(); err != nil {
		return nil, fmt.Errorf("parse evidence: batch: %w", err)
	}
	return d, nil
}

// Claims returns what the document says it was made for.
func (d *Document) Claims() Claims {
	return Claims{Purpose: d.Purpose, Nonce: d.Nonce, Binding: d.Binding, Caller: d.Caller, Instance: d.Instance}
}

// Root recomputes from the claims and the batch what REPORT_DATA must be. Only that of the report itself is
// worth comparing with; the document's own report_data is information.
func (d *Document) Root() ([Size]byte, error) { return d.root() }

func (d *Document) root() ([Size]byte, error) {
	path := make([][Size]byte, len(d.Batch.Path))
	for i, p := range d.Batch.Path {
		if len(p) != Size {
			return [Size]byte{}, fmt.Errorf("step %d of the path has %d bytes, want %d", i, len(p), Size)
		}
		path[i] = [Size]byte(p)
	}
	return Root(d.Claims().Leaf(), d.Batch.Index, path)
}

// Certs returns the certificates of the document, DER, at most eight.
func (d *Document) Certs() ([][]byte, error) {
	var certs [][]byte
	for rest := []byte(d.Certificates); len(bytes.TrimSpace(rest)) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" {
			return nil, errors.New("certificates: not a sequence of PEM certificates")
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return nil, fmt.Errorf("certificates: entry %d: %w", len(certs), err)
		}
		if certs = append(certs, block.Bytes); len(certs) > 8 {
			return nil, errors.New("certificates: more than 8")
		}
	}
	return certs, nil
}

// Media types of the records in the CMW collection.
const (
	reportType = "application/vnd.sevagent.sev-snp-report"
	certType   = "application/pkix-cert"
)

// CMW indicators, RFC 9999: which conceptual message a record holds.
const (
	cmwEndorsements = 1 << 1
	cmwEvidence     = 1 << 2
)

// cmw wraps the report and its certificates as a conceptual message wrapper collection in JSON.
func cmw(report []byte, certs [][]byte) (json.RawMessage, error) {
	record := func(mediaType string, value []byte, indicator int) []any {
		return []any{mediaType, base64.RawURLEncoding.EncodeToString(value), indicator}
	}
	collection := map[string]any{
		"__cmwc_t": Profile,
		"report":   record(reportType, report, cmwEvidence),
	}
	for i, der := range certs {
		collection[fmt.Sprintf("certificate-%d", i)] = record(certType, der, cmwEndorsements)
	}
	return json.Marshal(collection)
}

// Hex is bytes that are lower-case hexadecimal in JSON.
type Hex []byte

// MarshalText implements encoding.TextMarshaler.
func (h Hex) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hex) UnmarshalText(text []byte) (err error) {
	*h, err = hex.AppendDecode(nil, text)
	return err
}

func (h Hex) String() string { return hex.EncodeToString(h) }

// B64URL is bytes that are base64url without padding in JSON.
type B64URL []byte

// MarshalText implements encoding.TextMarshaler.
func (b B64URL) MarshalText() ([]byte, error) { return base64.RawURLEncoding.AppendEncode(nil, b), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *B64URL) UnmarshalText(text []byte) (err error) {
	*b, err = base64.RawURLEncoding.Strict().AppendDecode(nil, text)
	return err
}

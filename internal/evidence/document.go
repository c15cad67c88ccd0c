package evidence

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"sevagent/internal/strictjson"
)

// Profile is the eat_profile of the document (RFC 9711, section 4.3.2): a name, not an address to fetch.
const Profile = "tag:sevagent,2026:evidence#2"

// profile1 is that of leaf version 1, which did not commit to the kinds of binding and caller and to the instance.
const profile1 = "tag:sevagent,2026:evidence#1"

// Errors of Parse for documents that are not just malformed.
var (
	// ErrOlder: the document is of profile 1.
	ErrOlder = errors.New("eat_profile is " + profile1 + ", made by an older agent; upgrade the node's sevagent")
	// ErrProfile: the document is of a profile that this code does not know.
	ErrProfile = errors.New("unknown eat_profile")
	// ErrContradiction: report_data, cmw or certificates does not agree with the report.
	ErrContradiction = errors.New("the document contradicts itself")
	// ErrReportData: the report's REPORT_DATA is for other claims than the document's.
	ErrReportData = errors.New(
		"the report's REPORT_DATA does not commit to the document's nonce, purpose, binding, " +
			"caller, instance and batch")
)

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
	// NitroTPM is a document of the node's NitroTPM that commits to Report: package nitro verifies it. Absent where the
	// node has none, or leaves it out: nothing shows that one was taken away.
	NitroTPM []byte `json:"nitrotpm,omitempty"`
	// Certificates are the endorsement key's certificate (VLEK or VCEK) and, where the host gave them, those
	// above it, PEM.
	Certificates string          `json:"certificates"`
	CMW          json.RawMessage `json:"cmw"`
	Verdict      json.RawMessage `json:"verdict,omitempty"`

	// shared is the end of the JSON, from the report on, if it was encoded for the whole batch.
	shared []byte
}

// Batch places the request's leaf in the tree whose root is REPORT_DATA.
type Batch struct {
	Index int   `json:"index"`
	Path  []Hex `json:"path"`
}

// Build puts a document together. certs are DER, the endorsement key's first.
func Build(c Claims, index int, path [][Size]byte, report []byte, certs [][]byte, verdict any, now time.Time) (
	*Document, error) {
	s, err := Share(report, nil, certs, verdict, now)
	if err != nil {
		return nil, err
	}
	return s.Document(c, index, path)
}

// Shared is what all documents of a batch have in common, which is most of them. It is made and encoded once: thousands
// of callers wait together.
type Shared struct{ document Document }

// Share starts the documents of a batch. nitroTPM is the document of a NitroTPM for the report, or nil; certs are DER,
// the endorsement key's first.
func Share(report, nitroTPM []byte, certs [][]byte, verdict any, now time.Time) (*Shared, error) {
	d := Document{EATProfile: Profile, IssuedAt: now.Unix(), Report: report, NitroTPM: nitroTPM}
	var text bytes.Buffer
	for _, der := range certs {
		pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	d.Certificates = text.String()
	var err error
	if d.CMW, err = cmw(report, nitroTPM, certs); err != nil {
		return nil, err
	}
	if verdict != nil {
		if d.Verdict, err = json.Marshal(verdict); err != nil {
			return nil, err
		}
	}
	if _, d.shared, err = d.Encode(); err != nil {
		return nil, err
	}
	return &Shared{d}, nil
}

// Document puts the document of one leaf together.
func (s *Shared) Document(c Claims, index int, path [][Size]byte) (*Document, error) {
	c.Binding.Kind = c.Binding.kind()
	root, err := Root(c.Leaf(), index, path)
	if err != nil {
		return nil, err
	}
	d := s.document
	d.Nonce, d.Purpose, d.Binding, d.Caller, d.Instance = c.Nonce, c.Purpose, c.Binding, c.Caller, c.Instance
	d.Batch = Batch{Index: index, Path: make([]Hex, len(path))}
	for i := range path {
		d.Batch.Path[i] = path[i][:]
	}
	d.ReportData = root[:]
	return &d, nil
}

// sharedMembers is how the members at the end of a document are encoded if they are empty.
const sharedMembers = `,"report":null,"certificates":"","cmw":null}`

// Encode returns the document as JSON with a line feed, in two parts: its own, and the one that it shares with all
// documents of its batch, which must not be changed. Together they are what json.Encoder writes.
func (d *Document) Encode() (own, shared []byte, err error) {
	head := *d
	head.Report, head.NitroTPM, head.Certificates, head.CMW, head.Verdict = nil, nil, "", nil, nil
	if own, err = json.Marshal(head); err != nil {
		return nil, nil, err
	}
	own = bytes.TrimSuffix(own, []byte(sharedMembers))
	if d.shared != nil {
		return own, d.shared, nil
	}
	whole, err := json.Marshal(d)
	if err != nil {
		return nil, nil, err
	}
	return own, append(whole[len(own):], '\n'), nil
}

// The ATTESTATION_REPORT: AMD publication 56860, "ATTESTATION_REPORT Structure". Parse looks at no more of it.
const (
	reportSize       = 0x4A0
	reportDataOffset = 0x050
	signingKeyOffset = 0x048 // bits 4:2, SIGNING_KEY: 0 is the VCEK, 1 the VLEK
)

// maxNitroTPM bounds the document of a NitroTPM in bytes: AWS's limit. It has about 5,000.
const maxNitroTPM = 16 << 10

// Parse reads a document and checks its form: docs/evidence.md has the rules. It does not check whether the report is
// genuine. But the report's REPORT_DATA commits to the claims of a document that it returns, every member is spelled
// in the one way that the profile has for it, and none contradicts another. Verdict and IssuedAt are the node's word.
func Parse(data []byte) (*Document, error) {
	d, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("parse evidence: %w", err)
	}
	return d, nil
}

func parse(data []byte) (*Document, error) {
	if len(data) > MaxDocument {
		return nil, fmt.Errorf("%d bytes, at most %d are allowed", len(data), MaxDocument)
	}
	d := new(Document)
	if err := strictjson.Unmarshal(data, d); err != nil {
		return nil, cmp.Or(otherProfile(data), err)
	}
	if err := checkProfile(d.EATProfile); err != nil {
		return nil, err
	}
	if d.Binding.Kind == "" { // Claims.Check takes it for none
		return nil, errors.New("binding: no kind")
	}
	if err := d.check(); err != nil {
		return nil, err
	}
	return d, nil
}

// check reports what is wrong with the members of a document, each of which has been read by its type.
func (d *Document) check() error {
	if err := d.Claims().Check(); err != nil {
		return err
	}
	root, err := d.Root()
	if err != nil {
		return fmt.Errorf("batch: %w", err)
	}
	if len(d.Report) != reportSize {
		return fmt.Errorf("report: %d bytes, want %d", len(d.Report), reportSize)
	}
	if len(d.NitroTPM) > maxNitroTPM {
		return fmt.Errorf("nitrotpm: %d bytes, at most %d are allowed", len(d.NitroTPM), maxNitroTPM)
	}
	certs, err := d.Certs()
	if err != nil {
		return err
	}
	if d.Verdict != nil && d.Verdict[0] != '{' {
		return errors.New("verdict: not an object")
	}
	if err := d.sameCMW(certs); err != nil {
		return err
	}
	switch reported := d.Report[reportDataOffset:][:Size]; {
	case !bytes.Equal(d.ReportData, reported):
		return fmt.Errorf("%w: report_data is not the report's REPORT_DATA", ErrContradiction)
	case !bytes.Equal(root[:], reported):
		return ErrReportData
	}
	return nil
}

// otherProfile returns why a document that is none of ours may be one of another profile, or nil.
func otherProfile(data []byte) error {
	var d struct {
		Profile string `json:"eat_profile"`
	}
	if json.Unmarshal(data, &d) != nil || d.Profile == "" {
		return nil
	}
	return checkProfile(d.Profile)
}

func checkProfile(profile string) error {
	switch profile {
	case Profile:
		return nil
	case profile1:
		return ErrOlder
	}
	return fmt.Errorf("%w %q, want %q", ErrProfile, profile, Profile)
}

// sameCMW checks that the collection says what report, nitrotpm and certificates say. It may leave out the
// certificates behind the first, of which nothing is said.
func (d *Document) sameCMW(certs [][]byte) error {
	text, err := cmw(d.Report, d.NitroTPM, certs)
	if err != nil {
		return err
	}
	var got, want map[string]any
	if json.Unmarshal(d.CMW, &got) != nil {
		return errors.New("cmw: not an object")
	}
	if err := json.Unmarshal(text, &want); err != nil {
		return err
	}
	for i := 1; i < len(certs); i++ {
		if name := certRecord(i); got[name] == nil {
			delete(want, name)
		}
	}
	if !reflect.DeepEqual(got, want) {
		return fmt.Errorf("%w: cmw does not say what report, nitrotpm and certificates say", ErrContradiction)
	}
	return nil
}

// Claims returns what the document says it was made for.
func (d *Document) Claims() Claims {
	return Claims{Purpose: d.Purpose, Nonce: d.Nonce, Binding: d.Binding, Caller: d.Caller, Instance: d.Instance}
}

// Root recomputes from the claims and the batch what REPORT_DATA must be.
func (d *Document) Root() ([Size]byte, error) {
	path := make([][Size]byte, len(d.Batch.Path))
	for i, p := range d.Batch.Path {
		if len(p) != Size {
			return [Size]byte{}, fmt.Errorf("step %d of the path has %d bytes, want %d", i, len(p), Size)
		}
		path[i] = [Size]byte(p)
	}
	return Root(d.Claims().Leaf(), d.Batch.Index, path)
}

const maxCerts = 8

// Certs returns the certificates of the document, DER. The first is that of the endorsement key that the report names;
// nothing is known of those behind it.
func (d *Document) Certs() ([][]byte, error) {
	var certs [][]byte
	for rest := d.Certificates; rest != ""; {
		block, _ := pem.Decode([]byte(rest))
		if block == nil || block.Type != "CERTIFICATE" || len(block.Headers) > 0 {
			return nil, errors.New("certificates: not a sequence of PEM certificates")
		}
		var ok bool
		if rest, ok = strings.CutPrefix(rest, string(pem.EncodeToMemory(block))); !ok {
			return nil, fmt.Errorf("certificates: entry %d is not in canonical form", len(certs))
		}
		if certs = append(certs, block.Bytes); len(certs) > maxCerts {
			return nil, fmt.Errorf("certificates: more than %d", maxCerts)
		}
	}
	if len(certs) == 0 {
		return nil, nil
	}
	return certs, d.checkFirst(certs[0])
}

// checkFirst reports why a certificate is not for the kind of key that signed the report.
func (d *Document) checkFirst(der []byte) error {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("certificates: entry 0: %w", err)
	}
	if len(d.Report) != reportSize {
		return nil
	}
	// The common names are AMD's: publications 57230 (VCEK) and 58369 (VLEK).
	want, ok := map[byte]string{0: "SEV-VCEK", 1: "SEV-VLEK"}[d.Report[signingKeyOffset]>>2&7]
	if ok && cert.Subject.CommonName != want {
		return fmt.Errorf("%w: certificates: the first is not a %s certificate", ErrContradiction, want)
	}
	return nil
}

// Media types of the records in the CMW collection.
const (
	reportType = "application/vnd.sevagent.sev-snp-report"
	nitroType  = "application/vnd.sevagent.nitrotpm-document"
	certType   = "application/pkix-cert"
)

// CMW indicators, RFC 9999: which conceptual message a record holds.
const (
	cmwEndorsements = 1 << 1
	cmwEvidence     = 1 << 2
)

// cmw wraps the report, the document of a NitroTPM if there is one, and the certificates as a conceptual message
// wrapper collection in JSON.
func cmw(report, nitroTPM []byte, certs [][]byte) (json.RawMessage, error) {
	record := func(mediaType string, value []byte, indicator int) []any {
		return []any{mediaType, base64.RawURLEncoding.EncodeToString(value), indicator}
	}
	collection := map[string]any{
		"__cmwc_t": Profile,
		"report":   record(reportType, report, cmwEvidence),
	}
	if len(nitroTPM) > 0 {
		collection["nitrotpm"] = record(nitroType, nitroTPM, cmwEvidence)
	}
	for i, der := range certs {
		collection[certRecord(i)] = record(certType, der, cmwEndorsements)
	}
	return json.Marshal(collection)
}

// certRecord names the record of the certificate at place i.
func certRecord(i int) string { return fmt.Sprintf("certificate-%d", i) }

// Hex is bytes that are lower-case hexadecimal in JSON.
type Hex []byte

// MarshalText implements encoding.TextMarshaler.
func (h Hex) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hex) UnmarshalText(text []byte) error {
	raw, err := hex.AppendDecode(nil, text)
	if err != nil || hex.EncodeToString(raw) != string(text) {
		return fmt.Errorf("a text of %d characters is not lower-case hexadecimal", len(text))
	}
	*h = raw
	return nil
}

func (h Hex) String() string { return hex.EncodeToString(h) }

// B64URL is bytes that are base64url without padding in JSON.
type B64URL []byte

// MarshalText implements encoding.TextMarshaler.
func (b B64URL) MarshalText() ([]byte, error) { return base64.RawURLEncoding.AppendEncode(nil, b), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *B64URL) UnmarshalText(text []byte) error {
	raw, err := base64.RawURLEncoding.AppendDecode(nil, text)
	if err != nil || base64.RawURLEncoding.EncodeToString(raw) != string(text) { // the decoder skips line breaks
		return fmt.Errorf("a text of %d characters is not base64url without padding", len(text))
	}
	*b = raw
	return nil
}

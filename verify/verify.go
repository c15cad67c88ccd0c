// Package verify is for relying parties: a sevagent evidence document goes in, and a verdict comes out. It works
// offline, against AMD's roots that are embedded in it, and reads no flags, files, environment or network.
//
//	verifier, err := verify.New(verify.Config{Region: "us-east-2"})
//	…
//	result, err := verifier.Document(doc, verify.Want{
//		Nonce:   nonce,                            // that this relying party chose, and uses once
//		Key:     peer.RawSubjectPublicKeyInfo,     // of the certificate that the peer has presented
//		Purpose: verify.PurposeClient,
//	})
//	if err != nil {
//		return err // a *verify.Rejection
//	}
//
// A nil error means that an AMD processor has signed the report at the bottom of the document, that the report meets
// the policy, and that it commits to the nonce, purpose, key, caller and instance that Result shows. Zero values are
// the strict ones: a nonce and a region are required unless the caller gives them up by name.
//
// A genuine guest is not yet one of one's own. On EC2 the launch measurement covers Amazon's firmware and not the
// image, the kernel or the agent. A node under an attacker's root can pass a nonce on to any SEV-SNP guest of the
// region that the attacker owns, in any account, and answer with that guest's evidence. Bind the key of a connection,
// and issue certificates for such keys to one's own nodes alone: docs/attested-tls.md.
package verify

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"sevagent/internal/appraise"
	"sevagent/internal/appraise/second"
	"sevagent/internal/evidence"
	"sevagent/internal/snp"
)

// Config says what all evidence must meet.
type Config struct {
	// Policy says which reports are acceptable. The zero value is the built-in policy aws-shared.
	Policy Policy
	// Region is the EC2 region that evidence must come from, for example us-east-2. It is required if the policy
	// compares regions, as aws-shared does, and refused if it does not.
	Region string
	// AnyRegion accepts evidence of every region instead.
	AnyRegion bool
	// AllowCustomRoots accepts a policy with roots other than AMD's, as simulators have. Evidence that such roots vouch
	// for proves nothing about hardware.
	AllowCustomRoots bool
	// RevocationLists are AMD's lists of revoked certificates, DER or PEM, from
	// https://kdsintf.amd.com/vlek/v1/Milan/crl or vcek/v1/Milan/crl. If there are any, evidence is refused whose
	// certificates they list or do not cover. Without them, revocation is not checked.
	RevocationLists [][]byte
}

// Verifier verifies evidence by one Config. It is safe for concurrent use, and verifies the chain of an endorsement
// key's certificate once for all evidence under it: keep it.
type Verifier struct {
	appraiser *appraise.Verifier
	policy    appraise.Policy
	region    string // compared, unless it is empty
}

// New returns a Verifier. It fails if the configuration is incomplete or contradicts itself.
func New(c Config) (*Verifier, error) {
	p, err := appraise.Builtin(appraise.AWSShared)
	if c.Policy.policy != nil {
		p = *c.Policy.policy
	}
	switch {
	case err != nil:
		return nil, err
	case p.RootsPEM != nil && !c.AllowCustomRoots:
		return nil, fmt.Errorf("policy %s has its own roots, which nothing allows: they prove nothing about hardware",
			p.Name)
	case c.Region != "" && c.AnyRegion:
		return nil, errors.New("a region is required, and any region is allowed: choose one")
	case c.Region != "" && !p.NeedsRegion():
		return nil, fmt.Errorf("policy %s does not compare regions: it cannot require %s", p.Name, c.Region)
	case c.Region == "" && !c.AnyRegion && p.NeedsRegion():
		return nil, fmt.Errorf(
			"policy %s compares regions: say which one evidence must come from, or that any may be", p.Name)
	}
	appraiser, err := appraise.New(appraise.Config{
		Policy: p, Region: c.Region, RevocationLists: c.RevocationLists, Second: second.Opinion,
	})
	if err != nil {
		return nil, fmt.Errorf("policy %s: %w", p.Name, err)
	}
	return &Verifier{appraiser: appraiser, policy: p, region: c.Region}, nil
}

// Want says what one document must be.
type Want struct {
	// Nonce is the nonce that the evidence was asked for with: 16 to 64 random bytes, used once. It alone proves that
	// the evidence is not a replay.
	Nonce []byte
	// AnyNonce accepts evidence for any nonce instead: a replay is not detected. Such evidence may be from a file, so the
	// document of a NitroTPM in it is verified for its own time: its certificates end three hours after it.
	AnyNonce bool
	// Key is a public key that the evidence must bind, a SubjectPublicKeyInfo in DER: the RawSubjectPublicKeyInfo of
	// the certificate that the peer of a TLS connection has presented. Nil: a binding is not asked for.
	Key []byte
	// Binding is the kind of certificate whose key the evidence must bind, BindClient or BindServer. A published client
	// certificate and a server certificate may have one key, and then Key alone does not tell them apart. Empty: either.
	Binding string
	// Purpose is what the evidence must have been made for. Empty: any.
	Purpose Purpose
	// MaxAge bounds the age of evidence by the node's own clock, whose reading the report does not commit to: it finds
	// what was forgotten, not what was forged. It bounds that of a NitroTPM's document by AWS's clock, which AWS signs.
	// Zero: any age.
	MaxAge time.Duration
	// Now is the time to verify for. Zero: the present.
	Now time.Time
}

// skew is how far a node's clock may be ahead, in a comparison with MaxAge.
const skew = time.Minute

// Document verifies an evidence document. The error is nil if the evidence may be relied on, and a *Rejection if not;
// the Result is there in either case, to be shown or logged.
func (v *Verifier) Document(doc []byte, w Want) (*Result, error) {
	if code, reason := w.check(); code != "" {
		return v.rejected(code, reason)
	}
	d, err := evidence.Parse(doc)
	if err != nil {
		return v.rejected(form(doc, err))
	}
	return v.document(d, w)
}

// Certificate verifies the evidence that a certificate carries in its extension id-pe-cmw (docs/evidence.md, "In a
// certificate"), as Document verifies a document. The evidence must bind the certificate's own key; Want.Key is nil or
// that key. Its purpose is PurposeMTLS, and the node chose its nonce, so that nearly every caller sets Want.AnyNonce.
//
// cert is the one that the peer of a TLS connection has presented. That the peer holds its key, and the chain, the
// names and the validity of cert are for TLS to check. A Rejection has CodeExtensionMissing if cert carries no evidence,
// CodeDocumentForeign if it carries another program's, and CodeDocumentMalformed if that has another form than ours.
func (v *Verifier) Certificate(cert *x509.Certificate, w Want) (*Result, error) {
	key := append([]byte{}, cert.RawSubjectPublicKeyInfo...)
	if w.Key != nil && !bytes.Equal(w.Key, key) {
		return v.rejected(CodeBindingMismatch, "the certificate has another key than is wanted")
	}
	w.Key = key
	if code, reason := w.check(); code != "" {
		return v.rejected(code, reason)
	}
	d, err := evidence.ParseCertificate(cert)
	if err != nil {
		return v.rejected(cmp.Or(parseCode(err), CodeDocumentMalformed), err.Error())
	}
	return v.document(d, w)
}

// document appraises the report of a document, and compares its claims with w.
func (v *Verifier) document(d *evidence.Document, w Want) (*Result, error) {
	now := w.now()
	certs, err := d.Certs()
	if err != nil {
		return v.rejected(CodeDocumentMalformed, err.Error())
	}

	// The first is the signing key's, of the others nothing is said: a reader who takes the first must not find
	// another.
	r := v.appraise(now, d.Report, certs[:min(len(certs), 1)])
	r.Purpose, r.Binding, r.Caller = d.Purpose, &d.Binding, &d.Caller
	if d.Instance != (Instance{}) {
		r.Instance = &d.Instance
	}
	if !w.AnyNonce {
		r.Nonce = r.compare(bytes.Equal(d.Nonce, w.Nonce), CodeNonceMismatch,
			fmt.Sprintf("the evidence is for nonce %x, and %x is wanted", []byte(d.Nonce), w.Nonce))
	}
	if w.Key != nil {
		r.Key = r.compareKey(w.Key)
	}
	if w.Binding != "" && d.Binding.Kind != w.Binding {
		r.reject(CodeBindingMismatch, fmt.Sprintf("the evidence has a binding of the kind %s, and %s is wanted",
			d.Binding.Kind, w.Binding))
	}
	if w.Purpose != "" && d.Purpose != w.Purpose {
		r.reject(CodePurposeMismatch, fmt.Sprintf("the evidence was made for the purpose %s, and %s is wanted",
			d.Purpose, w.Purpose))
	}
	if w.MaxAge != 0 {
		r.checkAge(now.Sub(time.Unix(d.IssuedAt, 0)), w.MaxAge)
	}
	v.nitroTPM(r, d, w)
	return r, r.Verdict.Err()
}

// WantReport says what a bare report must be.
type WantReport struct {
	// ReportData is what REPORT_DATA must begin with; the rest of it must be zero.
	ReportData []byte
	// AnyReportData accepts any instead: what the report was made for is then the caller's to check.
	AnyReportData bool
	// Now is the time to verify for. Zero: the present.
	Now time.Time
}

// Report verifies an attestation report that another tool has made: 1184 bytes as the processor gave them, and
// certificates in DER, among them that of the key that signed it (VLEK or VCEK). Result and error are as Document's,
// without the claims that only a document has.
func (v *Verifier) Report(report []byte, certs [][]byte, w WantReport) (*Result, error) {
	now := Want{Now: w.Now}.now()
	if (len(w.ReportData) == 0) != w.AnyReportData || len(w.ReportData) > snp.ReportDataSize {
		return v.rejected(CodeNonceRequired, fmt.Sprintf("want 1 to %d bytes of REPORT_DATA to compare, or any by name",
			snp.ReportDataSize))
	}
	r := v.appraise(now, report, certs)
	if p := r.Verdict.Report; p != nil && !w.AnyReportData {
		want := make([]byte, snp.ReportDataSize)
		copy(want, w.ReportData)
		r.Nonce = r.compare(bytes.Equal(p.ReportData[:], want), CodeNonceMismatch,
			fmt.Sprintf("REPORT_DATA is %x, and %x padded with zeros is wanted", p.ReportData, w.ReportData))
	}
	return r, r.Verdict.Err()
}

// check returns the code and the reason for which w cannot be compared with.
func (w Want) check() (code, reason string) {
	switch {
	case len(w.Nonce) == 0 && !w.AnyNonce:
		return CodeNonceRequired, "no nonce to compare with was given: the evidence may be a replay"
	case len(w.Nonce) > 0 && w.AnyNonce:
		return CodeNonceRequired, "a nonce is required, and any nonce is allowed: choose one"
	case w.Key != nil && len(w.Key) == 0:
		return CodeBindingMismatch, "the key to compare with is empty"
	case w.Binding != "" && w.Binding != BindClient && w.Binding != BindServer:
		return CodeBindingMismatch, fmt.Sprintf("the kind of binding to compare with is %q, and none of %s and %s",
			w.Binding, BindClient, BindServer)
	case w.MaxAge < 0:
		return CodeTooOld, "the greatest age allowed is negative"
	}
	return "", ""
}

func (w Want) now() time.Time {
	if w.Now.IsZero() {
		return time.Now()
	}
	return w.Now
}

func (r *Result) compareKey(spki []byte) Check {
	// Both kinds are of keys that peers of a TLS connection have. A kind that is added may be of another, and of the same
	// bytes.
	if kind := r.Binding.Kind; kind != BindClient && kind != BindServer {
		return r.compare(false, CodeBindingMismatch,
			fmt.Sprintf("the evidence binds no key of a certificate: its binding is of the kind %s", kind))
	}
	want := sha256.Sum256(spki)
	return r.compare(bytes.Equal(r.Binding.SPKISHA256, want[:]), CodeBindingMismatch,
		fmt.Sprintf("the evidence is bound to key %s, and the peer's is %x", r.Binding.SPKISHA256, want))
}

func (r *Result) checkAge(age, most time.Duration) {
	switch {
	case age < -skew:
		r.reject(CodeFromFuture,
			fmt.Sprintf("by the node's clock the evidence is made %v from now", (-age).Round(time.Second)))
	case age > most:
		r.reject(CodeTooOld, fmt.Sprintf("the evidence is %v old, and at most %v is wanted",
			age.Round(time.Second), most))
	}
}

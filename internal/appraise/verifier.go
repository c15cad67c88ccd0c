// Package appraise decides whether attestation reports are genuine and meet a policy.
//
// It works offline, against AMD's roots, which are embedded in it, or against roots that a policy file names. It
// promises that a verdict of pass or warn means: signed by a key that the roots endorse, at a time when the certificates
// were valid, and no enforced rule broken. The caller checks where a report came from, and whether its REPORT_DATA is
// the requested one.
package appraise

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"time"

	"sevagent/internal/snp"
)

// Config is what a Verifier needs.
type Config struct {
	Policy Policy
	// RevocationLists are AMD's, DER or PEM, each signed by an ARK of the roots. If there are any, a certificate that
	// they list is refused, and so is one that none of them covers. Without them revocation is not checked.
	RevocationLists [][]byte
	// Region is the EC2 region that evidence must come from, for the rule csp_id with the value "node". If it is
	// empty, only the form of CSP_ID is checked.
	Region string
	// Own is set by a node that appraises its own reports: the rule pinned, which keeps a relying party from taking
	// any machine for its own, is then not applied.
	Own bool
	// Second is a second opinion on each chain that is verified for the first time, and refuses it by an error. Relying
	// parties have go-sev-guest's (package second). nil: none, as on nodes, whose own verdict nobody relies on.
	Second func(Chain) error
}

// Chain is a well-signed report with the chain that endorses its key.
type Chain struct {
	Report                   *snp.Report
	Line                     string // of products, Milan for example
	Leaf, Intermediate, Root *x509.Certificate
	TCB                      snp.TCBVersion // that the leaf is for
	At                       time.Time      // when all of them are valid; zero: never
}

// Verifier appraises reports by one policy. It is safe for concurrent use, and its verdicts do not depend on what it
// has appraised before.
type Verifier struct {
	cfg   Config
	lists revocations
	roots roots
	kind  string
	// signed verifies a report's signature; tests replace it, since it is what takes time.
	signed func(*snp.Report, *ecdsa.PublicKey) bool

	mu sync.Mutex
	// chains remembers endorsement certificates whose chain has been verified, by chainKey; it is emptied when it
	// reaches maxChains.
	chains map[[sha256.Size]byte]*endorsement
}

const maxChains = 256

// New returns a Verifier; it fails if the policy's own roots do not parse.
func New(cfg Config) (*Verifier, error) {
	v := &Verifier{cfg: cfg, kind: RootsAMD, signed: signed, chains: make(map[[sha256.Size]byte]*endorsement)}
	var err error
	if cfg.Policy.RootsPEM != nil {
		v.kind = RootsCustom
		v.roots, err = customRoots(cfg.Policy.RootsPEM)
	} else {
		v.roots, err = amdRoots()
	}
	if err != nil {
		return nil, err
	}
	if v.lists, err = readRevocations(cfg.RevocationLists, v.roots); err != nil {
		return nil, err
	}
	return v, nil
}

// Appraise verifies a report at the time now and applies the policy to it. certs are DER, from the host's certificate
// table or from an evidence document, in any order; the one that endorses the report is used, and none of them is
// trusted as a root.
func (v *Verifier) Appraise(now time.Time, report []byte, certs [][]byte) (verdict *Verdict) {
	verdict = &Verdict{Policy: v.cfg.Policy.Name, Roots: v.kind, Rules: []RuleResult{}}
	// Bytes made by the host may enter a library here that has panicked on such bytes before: go-sev-guest (its pull
	// request 186), as the second opinion.
	defer func() {
		if p := recover(); p != nil {
			verdict.failf(CodeVerificationPanicking, "the verification library panicked: %v", p)
		}
	}()

	r, err := snp.ParseReport(report)
	if err != nil {
		verdict.fail(CodeReportMalformed, err.Error())
		return verdict
	}
	verdict.Report = r
	verdict.Signer = r.SigningKey.String()
	if !r.Known() {
		verdict.unsupported(CodeUnsupportedVersion,
			fmt.Sprintf("report version %d is newer than %d", r.Version, snp.MaxKnownVersion))
		return verdict
	}
	if err := r.CheckUnsigned(); err != nil {
		verdict.fail(CodeReportMalformed, err.Error())
		return verdict
	}
	if r.SigningKey != snp.SignedByVCEK && r.SigningKey != snp.SignedByVLEK {
		verdict.failf(CodeSignatureInvalid,
			"the report is not signed by an endorsement key (SIGNING_KEY %v)", r.SigningKey)
		return verdict
	}
	if r.Version >= 3 && r.CPUID.Product() == "" {
		verdict.unsupported(CodeUnsupportedProduct,
			fmt.Sprintf("the processor, CPUID %v, is of a product that this version does not know; update it", r.CPUID))
		return verdict
	}
	candidates, code, err := v.candidates(r, certs)
	if len(candidates) == 0 {
		verdict.fail(code, err.Error())
		return verdict
	}
	blank := *verdict
	for i, e := range candidates {
		attempt := blank
		if v.judge(now, r, e, &attempt) {
			attempt.apply(v.cfg, r, now)
			*verdict = attempt
			break
		}
		if i == 0 { // the likeliest says why
			*verdict = attempt
		}
	}
	return verdict
}

// judge reports whether e endorses the report now. If it does not, verdict says why.
func (v *Verifier) judge(now time.Time, r *snp.Report, e *endorsement, verdict *Verdict) bool {
	product := e.product(r)
	line := product.Line()
	// The signature comes first: the chain does not matter if the report was altered.
	if !v.signed(r, e.key) {
		switch {
		case e.tcb != r.ReportedTCB:
			verdict.failf(CodeCertificateMismatch,
				"the %v certificate is for TCB %v, the report's REPORTED_TCB is %v: they do not belong together",
				r.SigningKey, e.tcb, r.ReportedTCB)
		case !e.endorsesChip(r):
			verdict.failf(CodeCertificateMismatch, "the %v certificate is for another chip than CHIP_ID", r.SigningKey)
		default:
			verdict.failf(CodeSignatureInvalid,
				"the report's signature is not by the key of the %v certificate", r.SigningKey)
		}
		return false
	}
	if err := r.CheckSigned(); err != nil { // well signed, yet with bits that have no name here
		verdict.unsupported(CodeUnsupportedVersion, err.Error())
		return false
	}
	if v.roots[line] == nil {
		verdict.unsupported(CodeUnsupportedProduct, fmt.Sprintf("the %s roots do not cover %q", v.kind, line))
		return false
	}
	if e.period.notAfter.IsZero() { // not from the cache
		if err := v.verifyChain(r, e, line); err != nil {
			verdict.fail(CodeChainInvalid, err.Error())
			return false
		}
	}
	verdict.CSPID, verdict.NotAfter = e.cspID, e.period.notAfter
	switch {
	case now.After(e.period.notAfter):
		verdict.failf(CodeCertificateExpired, "the %s certificate expired at %s",
			shortName(e.period.last), e.period.notAfter.UTC().Format(time.RFC3339))
	case now.Before(e.period.notBefore):
		verdict.failf(CodeCertificateNotYet, "the %s certificate is valid from %s",
			shortName(e.period.first), e.period.notBefore.UTC().Format(time.RFC3339))
	case e.tcb != r.ReportedTCB:
		verdict.failf(CodeCertificateMismatch, "the %v certificate is for TCB %v, REPORTED_TCB is %v",
			r.SigningKey, e.tcb, r.ReportedTCB)
	case !e.ofLine(line):
		verdict.failf(CodeCertificateMismatch,
			"the %v certificate is for the product %q, the report's processor is a %s",
			r.SigningKey, e.line, product)
	case !e.endorsesChip(r):
		verdict.failf(CodeCertificateMismatch, "the %v certificate is for another chip than CHIP_ID", r.SigningKey)
	default:
		if code, reason := v.lists.revoked(e.leaf, v.roots, now); code != "" {
			verdict.fail(code, reason)
			return false
		}
		verdict.Product = product
		return true
	}
	return false
}

// shortName is the name by which people know a certificate: VLEK for SEV-VLEK, but SEV-Milan as it stands.
func shortName(commonName string) string {
	switch commonName {
	case "SEV-VCEK", "SEV-VLEK":
		return commonName[len("SEV-"):]
	}
	return commonName
}

// signed verifies SIGNATURE, ECDSA on P-384 with SHA-384 over bytes 0 to 0x29F. R and S are 72 bytes each,
// little-endian: AMD 56860, "Format for an ECDSA P-384 signature".
func signed(r *snp.Report, key *ecdsa.PublicKey) bool {
	const ecdsaP384SHA384 = 1 // SIGNATURE_ALGO
	if r.SignatureAlgo != ecdsaP384SHA384 {
		return false
	}
	raw := r.Raw()
	number := func(b []byte) *big.Int {
		b = slices.Clone(b)
		slices.Reverse(b)
		return new(big.Int).SetBytes(b)
	}
	sig := raw[snp.SignedSize:]
	hash := sha512.Sum384(raw[:snp.SignedSize])
	return ecdsa.Verify(key, hash[:], number(sig[:72]), number(sig[72:144]))
}

func (v *Verdict) fail(code, reason string) { v.Status, v.Code, v.Reason = Fail, code, reason }

func (v *Verdict) failf(code, format string, args ...any) { v.fail(code, fmt.Sprintf(format, args...)) }

func (v *Verdict) unsupported(code, reason string) {
	v.Status, v.Code, v.Reason = Unsupported, code, reason
}

// Package appraise decides whether attestation reports are genuine and meet a policy.
//
// It works offline, against AMD's roots as embedded in go-sev-guest or against roots that a policy file names.
// It is the only door to that library and guards against what is known of it: default roots that fail every
// report from EC2, options that are written to, network access that looks optional and is not, and parsers
// that panic. It promises that a verdict of pass or warn means: signed by a key that the roots endorse, at a
// time when the certificates were valid, and no enforced rule broken. The caller checks
// where a report came from, and whether its REPORT_DATA is the requested one.
package appraise

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"slices"
	"sync"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/logger"

	"sevagent/internal/snp"
)

// Config is what a Verifier needs.
type Config struct {
	Policy Policy
	// Region is the EC2 region that evidence must come from, for the rule csp_id with the value "node". If it is
	// empty, only the form of CSP_ID is checked.
	Region string
}

// Verifier appraises reports by one policy. It is safe for concurrent use.
type Verifier struct {
	cfg   Config
	roots roots
	kind  string

	mu sync.Mutex
	// chains remembers endorsement certificates whose chain has been verified, by SHA-256 of the DER and the
	// product line; it is emptied when it reaches maxChains.
	chains map[[sha256.Size]byte]*chain
}

const maxChains = 256

// chain is an endorsement certificate that leads to a root.
type chain struct {
	leaf     *x509.Certificate
	exts     *kds.Extensions
	key      *ecdsa.PublicKey
	notAfter time.Time // the earliest in the chain
}

// quietLibrary keeps go-sev-guest from writing to standard error by itself.
var quietLibrary = sync.OnceFunc(func() { logger.Init("go-sev-guest", false, false, io.Discard) })

// New returns a Verifier; it fails if the policy's own roots do not parse.
func New(cfg Config) (*Verifier, error) {
	quietLibrary()
	v := &Verifier{cfg: cfg, kind: RootsAMD, chains: make(map[[sha256.Size]byte]*chain)}
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
	return v, nil
}

// Appraise verifies a report at the time now and applies the policy to it. certs are DER, from the host's certificate
// table or from an evidence document; the first that fits the report's signing key is used, and none of them is trusted
// as a root.
func (v *Verifier) Appraise(now time.Time, report []byte, certs [][]byte) (verdict *Verdict) {
	verdict = &Verdict{Policy: v.cfg.Policy.Name, Roots: v.kind, Rules: []RuleResult{}}
	// Bytes made by the host enter a library here that has panicked on such bytes before (go-sev-guest
	// pull request 186).
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
		verdict.unsupported(fmt.Sprintf("report version %d is newer than %d", r.Version, snp.MaxKnownVersion))
		return verdict
	}
	if r.SigningKey != snp.SignedByVCEK && r.SigningKey != snp.SignedByVLEK {
		verdict.failf(CodeSignatureInvalid, "the report is not signed by an endorsement key (SIGNING_KEY %v)", r.SigningKey)
		return verdict
	}
	c := v.cached(r, certs)
	if c == nil {
		leaf, err := pickLeaf(r.SigningKey, certs)
		if err != nil {
			verdict.fail(CodeCertificateMalformed, err.Error())
			return verdict
		}
		if leaf == nil {
			verdict.failf(CodeCertificateMissing, "no %v certificate came with the report", r.SigningKey)
			return verdict
		}
		if c, err = describeLeaf(r, leaf); err != nil {
			verdict.fail(CodeChainInvalid, err.Error())
			return verdict
		}
	}
	// The signature comes first: the chain does not matter if the report was altered.
	if !signed(r, c.key) {
		if tcb := certTCB(c); tcb != r.ReportedTCB.Components() {
			verdict.failf(CodeCertificateMismatch,
				"the %v certificate is for TCB %v, the report's REPORTED_TCB is %v: they do not belong together",
				r.SigningKey, tcb, r.ReportedTCB)
		} else {
			verdict.failf(CodeSignatureInvalid, "the report's signature is not by the key of the %v certificate", r.SigningKey)
		}
		return verdict
	}
	if c.notAfter.IsZero() {
		proto, err := abi.ReportToProto(report)
		if err != nil {
			// Well signed, yet with bits that the library has no name for.
			verdict.unsupported(err.Error())
			return verdict
		}
		if err := v.verifyChain(r, c, proto); err != nil {
			verdict.fail(CodeChainInvalid, err.Error())
			return verdict
		}
	}
	verdict.CSPID = c.exts.CspID
	verdict.NotAfter = c.notAfter
	switch {
	case now.After(c.notAfter):
		verdict.failf(CodeCertificateExpired, "the %v certificate expired at %s",
			r.SigningKey, c.notAfter.UTC().Format(time.RFC3339))
	case now.Before(c.leaf.NotBefore):
		verdict.failf(CodeCertificateNotYet, "the %v certificate is valid from %s",
			r.SigningKey, c.leaf.NotBefore.UTC().Format(time.RFC3339))
	case certTCB(c) != r.ReportedTCB.Components():
		verdict.failf(CodeCertificateMismatch, "the %v certificate is for TCB %v, REPORTED_TCB is %v",
			r.SigningKey, certTCB(c), r.ReportedTCB)
	case r.SigningKey == snp.SignedByVCEK && !r.MaskChipKey && !slices.Equal(c.exts.HWID, r.ChipID[:]):
		verdict.fail(CodeCertificateMismatch, "the VCEK certificate is for another chip than CHIP_ID")
	default:
		verdict.apply(v.cfg, r, now)
	}
	return verdict
}

// cached returns the chain of the first certificate that has been verified before, for a report like this one.
func (v *Verifier) cached(r *snp.Report, certs [][]byte) *chain {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, der := range certs {
		if c := v.chains[chainKey(r, der)]; c != nil {
			return c
		}
	}
	return nil
}

// chainKey covers all that verifyChain looks at: the certificate, and of the report the processor and the kind of key.
func chainKey(r *snp.Report, der []byte) [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte{byte(r.SigningKey), r.CPUID.Family, r.CPUID.Model, r.CPUID.Stepping, byte(min(r.Version, 3))})
	h.Write(der)
	return [sha256.Size]byte(h.Sum(nil))
}

// verifyChain checks that c leads to a root, at a time inside the leaf's validity: its dates are checked separately, to
// distinguish an expired certificate from a foreign one. It sets c.notAfter and remembers c.
func (v *Verifier) verifyChain(r *snp.Report, c *chain, report *spb.Report) error {
	att := &spb.Attestation{Report: report, CertificateChain: new(spb.CertificateChain)}
	if r.SigningKey == snp.SignedByVLEK {
		att.CertificateChain.VlekCert = c.leaf.Raw
	} else {
		att.CertificateChain.VcekCert = c.leaf.Raw
	}
	// A fresh Options each time: the library writes to it. Without DisableCertFetching it would ask AMD's
	// servers although roots are given.
	err := verify.SnpAttestation(att, &verify.Options{
		TrustedRoots:        v.roots,
		DisableCertFetching: true,
		Now:                 c.leaf.NotBefore.Add(c.leaf.NotAfter.Sub(c.leaf.NotBefore) / 2),
	})
	if err != nil {
		return fmt.Errorf("verify the %v certificate against %s roots: %w", r.SigningKey, v.kind, err)
	}
	c.notAfter = c.leaf.NotAfter
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.chains) >= maxChains {
		clear(v.chains)
	}
	v.chains[chainKey(r, c.leaf.Raw)] = c
	return nil
}

// describeLeaf reads the fields of an endorsement certificate that is not verified yet.
func describeLeaf(r *snp.Report, leaf *x509.Certificate) (*chain, error) {
	key, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P384() {
		return nil, fmt.Errorf("the %v certificate has no P-384 key", r.SigningKey)
	}
	signer := abi.VcekReportSigner
	if r.SigningKey == snp.SignedByVLEK {
		signer = abi.VlekReportSigner
	}
	exts, err := kds.CertificateExtensions(leaf, signer)
	if err != nil {
		return nil, fmt.Errorf("read the extensions of the %v certificate: %w", r.SigningKey, err)
	}
	return &chain{leaf: leaf, exts: exts, key: key}, nil
}

func certTCB(c *chain) snp.TCB { return snp.TCBVersion(c.exts.TCBVersion).Components() }

// pickLeaf returns the first certificate issued for an endorsement key of the given kind, or nil.
func pickLeaf(kind snp.SigningKey, certs [][]byte) (*x509.Certificate, error) {
	want := "SEV-" + kind.String() // the common name that AMD gives: publications 57230 (VCEK) and 58369 (VLEK)
	for i, der := range certs {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d that came with the report: %w", i, err)
		}
		if cert.Subject.CommonName == want {
			return cert, nil
		}
	}
	return nil, nil
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

func (v *Verdict) unsupported(reason string) {
	v.Status, v.Code, v.Reason = Unsupported, CodeUnsupportedVersion, reason
}

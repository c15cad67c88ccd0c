package appraise

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"sevagent/internal/snp"
)

// endorsement is the certificate of a VCEK or a VLEK, and what it says of the key: AMD publications 57230 (VCEK) and
// 58369 (VLEK).
type endorsement struct {
	leaf *x509.Certificate
	kind snp.SigningKey
	key  *ecdsa.PublicKey
	// line is the product line, "Milan" for "Milan-B1": AMD has issued VCEKs with a wrong stepping.
	line  string
	tcb   snp.TCBVersion
	hwid  []byte // of a VCEK: the first bytes of CHIP_ID, all others of which are zero
	cspID string // of a VLEK

	// period is that of the whole chain; verifyChain sets it.
	period period
}

// period is when all certificates of a chain are valid.
type period struct {
	notBefore, notAfter time.Time
	first, last         string // the certificates that begin it and end it
}

// maxCandidates bounds how many certificates of the right kind are tried for one report; each costs a signature.
const maxCandidates = 4

// candidates returns the certificates that may be the report's endorsement, those for its TCB first. It passes over all
// others, whatever they are: hosts and people send ASKs in other formats, and certificates of other chips. If it finds
// none, err says why those that looked like one were rejected.
func (v *Verifier) candidates(r *snp.Report, certs [][]byte) (found []*endorsement, code string, err error) {
	code, err = CodeCertificateMissing, fmt.Errorf("no %v certificate came with the report", r.SigningKey)
	for i, der := range certs {
		if e := v.cached(r, der); e != nil {
			found = append(found, e)
			continue
		}
		leaf, parseErr := x509.ParseCertificate(der)
		if parseErr != nil {
			if code == CodeCertificateMissing {
				code = CodeCertificateMalformed
				err = fmt.Errorf("certificate %d that came with the report: %w", i, parseErr)
			}
			continue
		}
		if leaf.Subject.CommonName != "SEV-"+r.SigningKey.String() {
			continue
		}
		e, readErr := readEndorsement(leaf, r.SigningKey)
		if readErr != nil {
			if code != CodeChainInvalid {
				code, err = CodeChainInvalid, fmt.Errorf("the %v certificate %w", r.SigningKey, readErr)
			}
			continue
		}
		found = append(found, e)
	}
	slices.SortStableFunc(found, func(a, b *endorsement) int { return rank(r, a) - rank(r, b) })
	return found[:min(len(found), maxCandidates)], code, err
}

// rank is 0 for an endorsement that may belong to the report, 1 for any other.
func rank(r *snp.Report, e *endorsement) int {
	if e.tcb == r.ReportedTCB && e.endorsesChip(r) {
		return 0
	}
	return 1
}

// endorsesChip reports whether the endorsement is for the chip that the report shows, if both show one.
func (e *endorsement) endorsesChip(r *snp.Report) bool {
	if e.kind != snp.SignedByVCEK || r.MaskChipKey {
		return true
	}
	padded := make([]byte, len(r.ChipID))
	copy(padded, e.hwid)
	return bytes.Equal(padded, r.ChipID[:])
}

// amdName is how AMD names the subjects and issuers of its certificates, as crypto/x509 writes it.
func amdName(commonName string) string {
	return "CN=" + commonName + ",OU=Engineering,O=Advanced Micro Devices,L=Santa Clara,ST=CA,C=US"
}

// amdArc is where AMD's certificate extensions are; 35 of the certificate extensions is authorityKeyIdentifier.
const amdArc, authorityKeyIdentifier = "1.3.6.1.4.1.3704.1.", "2.5.29.35"

// readEndorsement reads a certificate that is not verified yet. Its errors follow after "the … certificate".
func readEndorsement(leaf *x509.Certificate, kind snp.SigningKey) (*endorsement, error) {
	key, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P384() {
		return nil, fmt.Errorf("has no P-384 key")
	}
	if leaf.Version != 3 || leaf.SignatureAlgorithm != x509.SHA384WithRSAPSS {
		return nil, fmt.Errorf("is not signed by RSA-PSS with SHA-384, as AMD's are, but by %v",
			leaf.SignatureAlgorithm)
	}
	if got, want := leaf.Subject.String(), amdName("SEV-"+kind.String()); got != want {
		return nil, fmt.Errorf("is for %q, AMD's are for %q", got, want)
	}
	if len(leaf.UnhandledCriticalExtensions) > 0 {
		return nil, fmt.Errorf("has a critical extension, %v", leaf.UnhandledCriticalExtensions[0])
	}
	values := make(map[string][]byte)
	for _, x := range leaf.Extensions {
		id := x.Id.String()
		if id == authorityKeyIdentifier {
			continue // issuing the certificate may add it
		}
		arc, ok := strings.CutPrefix(id, amdArc)
		if !ok {
			return nil, fmt.Errorf("has an extension that AMD's do not have, %s", id)
		}
		values[arc] = x.Value
	}
	e := &endorsement{leaf: leaf, kind: kind, key: key}
	if err := e.readExtensions(values); err != nil {
		return nil, err
	}
	return e, nil
}

// readExtensions takes every value out of values. One that is left, or one that is not there, is an error.
func (e *endorsement) readExtensions(values map[string][]byte) (err error) {
	take := func(arc string) []byte {
		value, ok := values[arc]
		if !ok && err == nil {
			err = fmt.Errorf("lacks the extension %s%s", amdArc, arc)
		}
		delete(values, arc)
		return value
	}
	number := func(arc string, max int) uint64 {
		var n int
		if rest, bad := asn1.Unmarshal(take(arc), &n); err == nil && (bad != nil || len(rest) > 0 || n < 0 || n > max) {
			err = fmt.Errorf("has an extension %s%s that is no number from 0 to %d", amdArc, arc, max)
		}
		return uint64(n)
	}
	text := func(arc string) (s string) {
		value := take(arc)
		rest, bad := asn1.UnmarshalWithParams(value, &s, "ia5")
		if err == nil && (bad != nil || len(rest) > 0 || s == "" || value[0] != asn1.TagIA5String) {
			err = fmt.Errorf("has an extension %s%s that is no IA5String", amdArc, arc)
		}
		return s
	}

	number("1", 255) // structVersion: 0 on Milan and Genoa, 1 on Turin
	product := text("2")
	e.line, _, _ = strings.Cut(product, "-")
	// The arcs of the TCB's bytes, from the lowest. All are security patch levels, at most 127 but for the microcode.
	arcs, chipIDSize := []string{"3.1", "3.2", "3.4", "3.5", "3.6", "3.7", "3.3", "3.8"}, 64
	if _, ok := values["3.9"]; ok { // the FMC's: Turin
		e.tcb.Layout = snp.LayoutTurin
		arcs, chipIDSize = []string{"3.9", "3.1", "3.2", "3.3", "3.5", "3.6", "3.7", "3.8"}, 8
	}
	for i, arc := range arcs {
		max := 127
		if i == 7 {
			max = 255
		}
		e.tcb.Raw |= number(arc, max) << (8 * i)
	}
	if e.kind == snp.SignedByVLEK {
		e.cspID = text("5")
	} else {
		e.hwid = take("4")
		// AMD issues it as plain bytes, although 57230 has an OCTET STRING. Other readers do not take a second form.
		if err == nil && len(e.hwid) != chipIDSize {
			err = fmt.Errorf("has a hardware ID of other than %d bytes", chipIDSize)
		}
	}
	if err == nil && len(values) > 0 {
		err = fmt.Errorf("has an extension that AMD's do not have, %s%s", amdArc, slices.Sorted(maps.Keys(values))[0])
	}
	return err
}

// product returns the product that a report and its endorsement are from; the endorsement says it for reports without
// CPUID.
func (e *endorsement) product(r *snp.Report) snp.Product {
	if r.Version < 3 {
		return snp.Product(e.line)
	}
	return r.CPUID.Product()
}

// ofLine reports whether the certificate is for the product line. Some name the product itself.
func (e *endorsement) ofLine(line string) bool {
	return e.line == line || line == "Genoa" && (e.line == "Bergamo" || e.line == "Siena")
}

// cached returns a certificate whose chain has been verified before, for reports of this product and version.
func (v *Verifier) cached(r *snp.Report, der []byte) *endorsement {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.chains[chainKey(r, der)]
}

// chainKey covers all that verifyChain looks at: the certificate, and of the report the processor and the kind of key.
func chainKey(r *snp.Report, der []byte) [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte{byte(r.SigningKey), r.CPUID.Family, r.CPUID.Model, byte(min(r.Version, 3))})
	h.Write(der)
	return [sha256.Size]byte(h.Sum(nil))
}

// verifyChain checks that e leads to a root of the product line, whatever the time: the dates are checked separately,
// to distinguish an expired certificate from a foreign one. It sets e.period and remembers e.
func (v *Verifier) verifyChain(r *snp.Report, e *endorsement, line string) error {
	ark, intermediate := v.roots.issuer(line, e.kind)
	if intermediate == nil {
		return fmt.Errorf("the %s roots have no intermediate for a %v of %s", v.kind, e.kind, line)
	}
	hint := "was it made by a simulator? Then verify it by a policy that names the simulator's roots"
	if v.kind == RootsCustom {
		hint = "the policy's own roots are for reports of the simulator or laboratory that they come from"
	}
	// The intermediate's own signature was checked when the roots were read, or it is AMD's.
	issued := bytes.Equal(e.leaf.RawIssuer, intermediate.RawSubject) && e.leaf.CheckSignatureFrom(intermediate) == nil
	// AMD's have no AuthorityKeyIdentifier; one that names another key is refused by OpenSSL, too.
	if id := e.leaf.AuthorityKeyId; id != nil && !bytes.Equal(id, intermediate.SubjectKeyId) {
		issued = false
	}
	if !issued {
		return fmt.Errorf("the %v certificate was not issued by %s of the %s roots; %s",
			e.kind, intermediate.Subject.CommonName, v.kind, hint)
	}
	e.period = periodOf(e.leaf, intermediate, ark)
	if v.cfg.Second != nil {
		chain := Chain{Report: r, Line: line, TCB: e.tcb, Leaf: e.leaf, Intermediate: intermediate, Root: ark}
		if !e.period.notAfter.Before(e.period.notBefore) {
			chain.At = e.period.notBefore.Add(e.period.notAfter.Sub(e.period.notBefore) / 2)
		}
		if err := v.cfg.Second(chain); err != nil {
			return fmt.Errorf("the second opinion refuses the %v certificate: %w", e.kind, err)
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.chains) >= maxChains {
		clear(v.chains)
	}
	v.chains[chainKey(r, e.leaf.Raw)] = e
	return nil
}

func periodOf(chain ...*x509.Certificate) period {
	var p period
	for _, c := range chain {
		name := c.Subject.CommonName
		if p.first == "" || c.NotBefore.After(p.notBefore) {
			p.notBefore, p.first = c.NotBefore, name
		}
		if p.last == "" || c.NotAfter.Before(p.notAfter) {
			p.notAfter, p.last = c.NotAfter, name
		}
	}
	return p
}

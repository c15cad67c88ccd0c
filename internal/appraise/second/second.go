// Package second is the second opinion of relying parties on the chain of a report: go-sev-guest's. It is the only door
// to that library and guards against what is known of it: default roots that fail every report from EC2, options that
// are written to, and network access that looks optional and is not. Package appraise catches its panics.
package second

import (
	"io"
	"sync"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"
	"github.com/google/logger"

	"sevagent/internal/appraise"
	"sevagent/internal/snp"
)

// quiet keeps go-sev-guest from writing to standard error by itself.
var quiet = sync.OnceFunc(func() { logger.Init("go-sev-guest", false, false, io.Discard) })

// Opinion has go-sev-guest verify report and chain, too, at a time when the chain is valid. It skips what the library
// cannot verify: a chain that is never valid as a whole, and processors that it has no name for, which are Turin, whose
// certificates it cannot read (google/go-sev-guest#165), Bergamo, Siena, and other models of the known families.
func Opinion(c appraise.Chain) error {
	r := c.Report
	eax := abi.FmsToCpuid1Eax(r.CPUID.Family, r.CPUID.Model, r.CPUID.Stepping)
	if c.TCB.Layout != snp.LayoutMilan || r.Version >= 3 && kds.ProductLineFromFms(eax) != c.Line ||
		c.At.IsZero() {
		return nil
	}
	quiet()
	report, err := abi.ReportToProto(r.Raw())
	if err != nil {
		return err
	}
	// The library's own roots know the ASK but no ASVK and so refuse every report signed by a VLEK, as all of EC2's
	// shared tenancy are (go-sev-guest v0.15.0, verify/trust).
	root := trust.AMDRootCertsProduct(c.Line)
	root.ProductCerts = &trust.ProductCerts{Ark: c.Root}
	att := &spb.Attestation{Report: report, CertificateChain: new(spb.CertificateChain)}
	if r.SigningKey == snp.SignedByVLEK {
		root.ProductCerts.Asvk, att.CertificateChain.VlekCert = c.Intermediate, c.Leaf.Raw
	} else {
		root.ProductCerts.Ask, att.CertificateChain.VcekCert = c.Intermediate, c.Leaf.Raw
	}
	// A fresh Options each time: the library writes to it. Without DisableCertFetching it would ask AMD's servers
	// although roots are given.
	return verify.SnpAttestation(att, &verify.Options{
		TrustedRoots:        map[string][]*trust.AMDRootCerts{c.Line: {root}},
		DisableCertFetching: true,
		Now:                 c.At,
	})
}

package second

import (
	"crypto/x509"
	"testing"
	"time"

	"sevagent/internal/appraise"
	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/internal/snp"
)

// chainOf has a verifier verify a report of a simulated machine, and returns what it asks for a second opinion on.
func chainOf(t *testing.T, change func(*sim.Options)) (c appraise.Chain) {
	t.Helper()
	now := time.Now()
	o := sim.DefaultOptions(now)
	change(&o)
	psp := must.Get(sim.New(o))(t, "make a simulator")
	policy := must.Get(appraise.Builtin(appraise.AWSShared))(t, "take a built-in policy")
	policy.RootsPEM = psp.Roots()
	verifier := must.Get(appraise.New(appraise.Config{
		Policy: policy, Second: func(asked appraise.Chain) error { c = asked; return nil },
	}))(t, "make a verifier")
	report, table, err := psp.Report([snp.ReportDataSize]byte{1}, 0)
	must.Do(t, err, "get a report")
	cert := must.Get(snp.ParseCertTable(table))(t, "parse the certificate table")[0].Data
	if v := verifier.Appraise(now, report, [][]byte{cert}); !v.Genuine() {
		t.Fatalf("the report: %s: %s", v.Code, v.Reason)
	}
	return c
}

// TestOpinion: go-sev-guest verifies the chain of every report whose processor it knows.
func TestOpinion(t *testing.T) {
	other := chainOf(t, func(*sim.Options) {})
	for version := uint32(2); version <= snp.MaxKnownVersion; version++ {
		for _, signer := range []snp.SigningKey{snp.SignedByVLEK, snp.SignedByVCEK} {
			c := chainOf(t, func(o *sim.Options) {
				if o.Version = version; signer == snp.SignedByVCEK {
					o.Signer, o.ChipID = signer, [64]byte{1}
				}
			})
			if err := Opinion(c); err != nil {
				t.Errorf("version %d, %v: %v", version, signer, err)
			}
			for name, break_ := range map[string]func(*appraise.Chain){
				"other roots": func(c *appraise.Chain) { c.Root, c.Intermediate = other.Root, other.Intermediate },
				"other leaf":  func(c *appraise.Chain) { c.Leaf = other.Leaf },
				"expired":     func(c *appraise.Chain) { c.At = c.Leaf.NotAfter.Add(time.Hour) },
				"no issuer":   func(c *appraise.Chain) { c.Intermediate = new(x509.Certificate) },
			} {
				broken := c
				break_(&broken)
				if Opinion(broken) == nil {
					t.Errorf("version %d, %v, %s: go-sev-guest accepts it, or was not asked", version, signer, name)
				}
			}
		}
	}
	// It has no name for this processor, and is not asked.
	c := chainOf(t, func(o *sim.Options) {
		o.Product, o.Version, o.Signer, o.ChipID = snp.Bergamo, 3, snp.SignedByVCEK, [64]byte{1}
	})
	c.Root, c.Intermediate = other.Root, other.Intermediate
	if err := Opinion(c); err != nil {
		t.Errorf("Bergamo: %v, want that go-sev-guest is not asked", err)
	}
}

package sim_test

import (
	"testing"
	"time"

	"sevagent/internal/appraise"
	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/internal/snp"
)

// TestReportsAreAcceptedByTheProductsVerifier: with the simulator's roots, and only with them.
func TestReportsAreAcceptedByTheProductsVerifier(t *testing.T) {
	now := time.Now()
	chip := [64]byte{1, 2, 3}
	for _, c := range []struct {
		name   string
		policy string
		change func(*sim.Options)
	}{
		{"VLEK", appraise.AWSShared, func(*sim.Options) {}},
		{"VLEK version 3", appraise.AWSShared, func(o *sim.Options) { o.Version = 3 }},
		{"VCEK", appraise.AWSDedicated, func(o *sim.Options) { o.Signer, o.ChipID = snp.SignedByVCEK, chip }},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := sim.DefaultOptions(now)
			c.change(&o)
			psp := newPSP(t)
			must.Do(t, psp.SetOptions(o), "set the options")
			report, raw := getReport(t, psp, [snp.ReportDataSize]byte{9})
			table := must.Get(snp.ParseCertTable(raw))(t, "parse the certificate table")
			policy := must.Get(appraise.Builtin(c.policy))(t, "load the policy %s", c.policy)
			judge := func(roots []byte) *appraise.Verdict {
				policy.RootsPEM = roots
				v := must.Get(appraise.New(appraise.Config{Policy: policy, Region: "us-east-2"}))(t, "build the verifier")
				return v.Appraise(now, report, [][]byte{table[0].Data})
			}
			if v := judge(psp.Roots()); v.Status != appraise.Pass || v.Roots != appraise.RootsCustom {
				t.Errorf("with its own roots: %s %s %s", v.Status, v.Reason, v.Roots)
			}
			if v := judge(nil); v.Code != appraise.CodeChainInvalid {
				t.Errorf("with AMD's roots: %s %s %s", v.Status, v.Code, v.Reason)
			}
		})
	}
}

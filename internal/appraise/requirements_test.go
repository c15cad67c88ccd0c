package appraise_test

import (
	"testing"
	"time"

	"sevagent/internal/appraise"
	"sevagent/internal/must"
	"sevagent/internal/snp"
)

// TestRequirementsFollowTheVerdict: every rule that a verdict may have is listed, in its order.
func TestRequirementsFollowTheVerdict(t *testing.T) {
	now := time.Now()
	s := simulate(t, now, "", nil)
	v := verifier(t, appraise.AWSDedicated, func(p *appraise.Policy) {
		p.RootsPEM = s.psp.Roots()
		everyRule(p)
	})
	verdict := v.Appraise(now, s.report, [][]byte{s.cert})
	p := must.Get(appraise.Builtin(appraise.AWSDedicated))(t, "take a built-in policy")
	everyRule(&p)
	listed := p.Requirements()
	if last := listed[len(listed)-1]; last.Rule == "nitrotpm" { // not of the report
		listed = listed[:len(listed)-1]
	}
	if len(listed) != len(verdict.Rules) {
		t.Fatalf("%d rules are listed, the verdict has %d", len(listed), len(verdict.Rules))
	}
	for i, r := range verdict.Rules {
		if listed[i].Rule != r.Rule || listed[i].Mode != r.Mode {
			t.Errorf("rule %d is listed as %s %s, in the verdict %s %s",
				i, listed[i].Mode, listed[i].Rule, r.Mode, r.Rule)
		}
	}
}

// everyRule switches on the rules that aws-dedicated does not apply.
func everyRule(p *appraise.Policy) {
	for _, mode := range []*appraise.Mode{
		&p.CSPID.Mode, &p.ChipIDs.Mode, &p.PolicyRequired.Mode, &p.PlatformForbidden.Mode, &p.ProvisionalFirmware.Mode,
		&p.Measurement.Mode, &p.IDKeys.Mode, &p.AuthorKeys.Mode,
	} {
		*mode = appraise.Warn
	}
}

// TestLooserRules: each way of requiring less is seen, and no way of requiring more.
func TestLooserRules(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*appraise.Policy)
		want   string // the rule that is looser
	}{
		{"the profile", func(*appraise.Policy) {}, ""},
		{"mode warn", func(p *appraise.Policy) { p.Signer.Mode = appraise.Warn }, "signer"},
		{"no mode", func(p *appraise.Policy) { p.Pinned.Mode = "" }, "pinned"},
		{"mode enforce", func(p *appraise.Policy) { p.VMPL.Mode = appraise.Enforce }, ""},
		{"older version", func(p *appraise.Policy) { p.ReportVersion.Value.Min = 2 }, "report_version"},
		{"newer version", func(p *appraise.Policy) { p.ReportVersion.Value.Min = 5 }, ""},
		{"another signer", func(p *appraise.Policy) { p.Signer.Value = "VLEK" }, "signer"},
		{"another chip", func(p *appraise.Policy) { p.ChipID.Value = "zero" }, "chip_id"},
		{"higher VMPL", func(p *appraise.Policy) { p.VMPL.Value = 1 }, "vmpl"},
		{"fewer forbidden bits", func(p *appraise.Policy) { p.PolicyForbidden.Value = []string{"MIGRATE_MA"} },
			"policy_forbidden"},
		{"more forbidden bits",
			func(p *appraise.Policy) { p.PolicyForbidden.Value = append(p.PolicyForbidden.Value, "SMT") }, ""},
		{"other required bits", func(p *appraise.Policy) { p.PlatformRequired.Value = []string{"ECC_EN"} },
			"platform_required"},
		{"lower minimum", func(p *appraise.Policy) { p.MinReportedTCB.ByProduct.Milan.SNP-- }, "min_reported_tcb"},
		{"lower minimum of Genoa", func(p *appraise.Policy) { p.MinCommittedTCB.ByProduct.Genoa.Bootloader-- },
			"min_committed_tcb"},
		{"higher minimum", func(p *appraise.Policy) { p.MinLaunchTCB.ByProduct.Genoa.Microcode++ }, ""},
		{"one more product", func(p *appraise.Policy) { p.MinLaunchTCB.ByProduct.Turin.SNP = 4 }, ""},
		{"one product less", func(p *appraise.Policy) { p.MinLaunchTCB.ByProduct.Genoa = snp.TCB{} }, ""},
		{"one value below that of Genoa", func(p *appraise.Policy) {
			p.MinLaunchTCB.Value = snp.TCB{Bootloader: 9, SNP: 24, Microcode: 217}
		}, "min_launch_tcb"},
		{"fewer mitigations", func(p *appraise.Policy) { p.MitigationVector.ByProduct.Milan = 0x17 },
			"mitigation_vector"},
		{"more mitigations", func(p *appraise.Policy) { p.MitigationVector.ByProduct.Milan = 0x1F }, ""},
		{"a rule that the profile does not apply", func(p *appraise.Policy) { p.IDKeys.Mode = appraise.Warn }, ""},
	} {
		p := must.Get(appraise.Builtin(appraise.AWSDedicated))(t, "take a built-in policy")
		c.change(&p)
		var looser string
		for _, r := range p.Requirements() {
			if r.Looser != "" {
				looser += r.Rule
			}
		}
		if looser != c.want {
			t.Errorf("%s: looser: %q, want %q", c.name, looser, c.want)
		}
	}
}

// TestRequiredWords: what a rule requires of which processors, and of which region.
func TestRequiredWords(t *testing.T) {
	p := must.Get(appraise.Builtin(appraise.AWSShared))(t, "take a built-in policy")
	tcb := snp.TCB{Bootloader: 4, SNP: 24, Microcode: 217}
	p.MinReportedTCB.Value, p.MinReportedTCB.ByProduct = snp.TCB{}, appraise.ByProduct[snp.TCB]{Milan: tcb}
	p.MinCommittedTCB.Value, p.MinCommittedTCB.ByProduct = tcb, appraise.ByProduct[snp.TCB]{}
	p.MinLaunchTCB.Value, p.MinLaunchTCB.ByProduct = snp.TCB{}, appraise.ByProduct[snp.TCB]{}
	for _, region := range [][2]string{{"node", "<the verifier's region>"}, {"eu-west-1", "eu-west-1"}} {
		p.CSPID.Value = region[0]
		want := map[string]string{
			"csp_id":            "CN=cc-" + region[1] + ".amazonaws.com",
			"min_reported_tcb":  "at least 4.0.24.217 for Milan",
			"min_committed_tcb": "at least 4.0.24.217 for all products",
			"min_launch_tcb":    "at least nothing",
		}
		for _, r := range p.Requirements() {
			if text, ok := want[r.Rule]; ok && r.Required != text {
				t.Errorf("%s requires %q, want %q", r.Rule, r.Required, text)
			}
		}
	}
}

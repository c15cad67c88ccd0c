package appraise

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"sevagent/internal/snp"
)

// judge applies the policy's rules to a genuine report and sets the verdict's status.
func (v *Verdict) judge(cfg Config, r *snp.Report) {
	p := cfg.Policy
	v.rule("signer", p.Signer.Mode, r.SigningKey.String() == p.Signer.Value, r.SigningKey.String(), p.Signer.Value)
	if p.CSPID.Mode != "" {
		ok, want := cspIDMatches(v.CSPID, p.CSPID.Value, cfg.Region)
		v.rule("csp_id", p.CSPID.Mode, ok, v.CSPID, want)
	}
	chip := "zero"
	if r.ChipID != ([64]byte{}) {
		chip = "set"
	}
	v.rule("chip_id", p.ChipID.Mode, chip == p.ChipID.Value, chip, p.ChipID.Value)
	v.rule("vmpl", p.VMPL.Mode, r.VMPL <= p.VMPL.Value, fmt.Sprint(r.VMPL), fmt.Sprintf("at most %d", p.VMPL.Value))

	set := bitNames(uint64(r.Policy), snp.PolicyBits)
	v.rule("policy_forbidden", p.PolicyForbidden.Mode, !slices.ContainsFunc(p.PolicyForbidden.Value, func(b string) bool { return slices.Contains(set, b) }),
		r.Policy.String(), "none of "+strings.Join(p.PolicyForbidden.Value, ", "))
	on := bitNames(uint64(r.PlatformInfo), snp.PlatformBits)
	v.rule("platform_required", p.PlatformRequired.Mode, !slices.ContainsFunc(p.PlatformRequired.Value, func(b string) bool { return !slices.Contains(on, b) }),
		r.PlatformInfo.String(), "all of "+strings.Join(p.PlatformRequired.Value, ", "))
	v.rule("platform_unknown", p.PlatformUnknown.Mode, r.PlatformInfo.Unknown() == 0, fmt.Sprintf("%#x", uint64(r.PlatformInfo.Unknown())), "no unknown bits")

	v.rule("min_reported_tcb", p.MinReportedTCB.Mode, r.ReportedTCB.Components().AtLeast(p.MinReportedTCB.Value), r.ReportedTCB.String(), "at least "+p.MinReportedTCB.Value.String())
	v.rule("min_launch_tcb", p.MinLaunchTCB.Mode, r.LaunchTCB.Components().AtLeast(p.MinLaunchTCB.Value), r.LaunchTCB.String(), "at least "+p.MinLaunchTCB.Value.String())
	if r.Version >= 5 { // older reports carry no mitigation vectors
		want := p.MitigationVector.Value
		v.rule("mitigation_vector", p.MitigationVector.Mode, r.LaunchMitVector&want == want && r.CurrentMitVector&want == want,
			fmt.Sprintf("launch %#x, current %#x", r.LaunchMitVector, r.CurrentMitVector), fmt.Sprintf("all bits of %#x", want))
	}
	measurement := fmt.Sprintf("%x", r.Measurement)
	v.rule("measurement", p.Measurement.Mode, slices.Contains(p.Measurement.Value, measurement), measurement, fmt.Sprintf("one of %d known values", len(p.Measurement.Value)))

	v.Status = Pass
	var failed, warned []string
	for _, r := range v.Rules {
		text := fmt.Sprintf("%s is %s, want %s", r.Rule, r.Observed, r.Required)
		switch r.Status {
		case Fail:
			failed = append(failed, text)
		case Warned:
			warned = append(warned, text)
		}
	}
	switch {
	case failed != nil:
		v.fail(CodePolicyRejected, strings.Join(failed, "; "))
	case warned != nil:
		v.Status, v.Code, v.Reason = Warned, CodePolicyRejected, strings.Join(warned, "; ")
	}
}

// rule records the outcome of one rule; one without a mode is not applied.
func (v *Verdict) rule(name string, mode Mode, ok bool, observed, required string) {
	if mode == "" {
		return
	}
	status := Pass
	if !ok {
		status = Fail
		if mode == Warn {
			status = Warned
		}
	}
	v.Rules = append(v.Rules, RuleResult{Rule: name, Mode: mode, Status: status, Observed: observed, Required: required})
}

// cspIDForm is how EC2 names itself in the CSP_ID of a VLEK.
var cspIDForm = regexp.MustCompile(`^CN=cc-([a-z0-9-]+)\.amazonaws\.com$`)

func cspIDMatches(cspID, want, nodeRegion string) (ok bool, required string) {
	if want == "node" {
		want = nodeRegion
	}
	m := cspIDForm.FindStringSubmatch(cspID)
	if want == "" {
		return m != nil, "CN=cc-<region>.amazonaws.com"
	}
	return m != nil && m[1] == want, fmt.Sprintf("CN=cc-%s.amazonaws.com", want)
}

func bitNames(value uint64, names []snp.BitName) (set []string) {
	for _, n := range names {
		if value&n.Bit != 0 {
			set = append(set, n.Name)
		}
	}
	return set
}

package appraise

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"sevagent/internal/pattern"
	"sevagent/internal/snp"
)

// apply applies the policy's rules to a genuine report and sets the verdict's status.
func (v *Verdict) apply(cfg Config, r *snp.Report, now time.Time) {
	p := cfg.Policy
	if rules := p.silent(r, v.Product); rules != nil {
		v.unsupported(CodeUnsupportedProduct, fmt.Sprintf(
			"the report is genuine, but the policy has no %s for %[2]s processors; "+
				"set by_product.%[2]s in a policy file",
			strings.Join(rules, ", "), v.Product))
		return
	}
	versions := p.ReportVersion.Value
	v.rule("report_version", p.ReportVersion.Mode, r.Version >= versions.Min && r.Version <= versions.Max,
		fmt.Sprint(r.Version), fmt.Sprintf("%d to %d", versions.Min, versions.Max))
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
	v.oneOf("chip_ids", p.ChipIDs, r.ChipID[:])
	v.rule("vmpl", p.VMPL.Mode, r.VMPL <= p.VMPL.Value, fmt.Sprint(r.VMPL), fmt.Sprintf("at most %d", p.VMPL.Value))

	set := bitNames(uint64(r.Policy), snp.PolicyBits)
	v.allOf("policy_required", p.PolicyRequired, set, r.Policy.String())
	v.noneOf("policy_forbidden", p.PolicyForbidden, set, r.Policy.String())
	on := bitNames(uint64(r.PlatformInfo), snp.PlatformBits)
	v.allOf("platform_required", p.PlatformRequired, on, r.PlatformInfo.String())
	v.noneOf("platform_forbidden", p.PlatformForbidden, on, r.PlatformInfo.String())
	unknown := r.PlatformInfo.Unknown()
	v.rule("platform_unknown", p.PlatformUnknown.Mode, unknown == 0,
		fmt.Sprintf("%#x", uint64(unknown)), "no unknown bits")

	v.atLeast("min_reported_tcb", p.MinReportedTCB, r.ReportedTCB)
	v.atLeast("min_committed_tcb", p.MinCommittedTCB, r.CommittedTCB)
	v.atLeast("min_launch_tcb", p.MinLaunchTCB, r.LaunchTCB)
	found, contradiction := "none", false
	for _, other := range []struct {
		name string
		tcb  snp.TCBVersion
	}{{"COMMITTED_TCB", r.CommittedTCB}, {"REPORTED_TCB", r.ReportedTCB}, {"LAUNCH_TCB", r.LaunchTCB}} {
		if !contradiction && !r.CurrentTCB.Components().AtLeast(other.tcb.Components()) {
			found, contradiction = fmt.Sprintf("%s %v above CURRENT_TCB %v", other.name, other.tcb, r.CurrentTCB), true
		}
	}
	v.rule("tcb_contradiction", p.TCBContradiction.Mode, !contradiction, found, "none")
	v.rule("provisional_firmware", p.ProvisionalFirmware.Mode, r.CommittedTCB == r.CurrentTCB,
		fmt.Sprintf("committed %v, current %v", r.CommittedTCB, r.CurrentTCB), "committed as current")
	if want, ok := p.MitigationVector.For(v.Product); ok && r.Version >= mitigationVersion {
		v.rule("mitigation_vector", p.MitigationVector.Mode, r.LaunchMitVector&r.CurrentMitVector&want == want,
			fmt.Sprintf("launch %#x, current %#x", r.LaunchMitVector, r.CurrentMitVector),
			fmt.Sprintf("all bits of %#x", want))
	}
	ok, want := measured(p.Measurement.Value, fmt.Sprintf("%x", r.Measurement), now)
	v.rule("measurement", p.Measurement.Mode, ok, fmt.Sprintf("%x", r.Measurement), want)
	v.oneOf("id_keys", p.IDKeys, r.IDKeyDigest[:])
	v.oneOf("author_keys", p.AuthorKeys, r.AuthorKeyDigest[:])

	if !cfg.Own {
		pinned := p.ChipIDs.Mode == Enforce || p.Measurement.Mode == Enforce
		v.rule("pinned", p.Pinned.Mode, pinned, pinnedText(pinned, r), pinnedValue+
			", so that it is your machine and not any in the world; "+
			"'sevctl policy pin --report FILE --cert FILE' writes them")
	}

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

func (v *Verdict) allOf(name string, r Rule[[]string], set []string, observed string) {
	missing := slices.ContainsFunc(r.Value, func(bit string) bool { return !slices.Contains(set, bit) })
	v.rule(name, r.Mode, !missing, observed, "all of "+strings.Join(r.Value, ", "))
}

func (v *Verdict) noneOf(name string, r Rule[[]string], set []string, observed string) {
	found := slices.ContainsFunc(r.Value, func(bit string) bool { return slices.Contains(set, bit) })
	v.rule(name, r.Mode, !found, observed, "none of "+strings.Join(r.Value, ", "))
}

func (v *Verdict) oneOf(name string, r Rule[[]string], observed []byte) {
	text := hex.EncodeToString(observed)
	v.rule(name, r.Mode, slices.Contains(r.Value, text), text, fmt.Sprintf("one of %d known values", len(r.Value)))
}

func (v *Verdict) atLeast(name string, r ProductRule[snp.TCB], observed snp.TCBVersion) {
	min, _ := r.For(v.Product)
	v.rule(name, r.Mode, observed.Components().AtLeast(min),
		observed.String(), "at least "+observed.Layout.Pack(min).String())
}

// mitigationVersion is the VERSION from which reports carry mitigation vectors.
const mitigationVersion = 5

// silent returns the rules that are applied and have no value for the product.
func (p Policy) silent(r *snp.Report, product snp.Product) (rules []string) {
	for _, min := range []struct {
		name string
		rule ProductRule[snp.TCB]
	}{
		{"min_reported_tcb", p.MinReportedTCB}, {"min_committed_tcb", p.MinCommittedTCB},
		{"min_launch_tcb", p.MinLaunchTCB},
	} {
		if _, ok := min.rule.For(product); min.rule.Mode != "" && !ok {
			rules = append(rules, min.name)
		}
	}
	_, ok := p.MitigationVector.For(product)
	if p.MitigationVector.Mode != "" && !ok && r.Version >= mitigationVersion {
		rules = append(rules, "mitigation_vector")
	}
	return rules
}

// pinnedText says what a policy could pin.
func pinnedText(pinned bool, r *snp.Report) string {
	if pinned {
		return "pinned"
	}
	return fmt.Sprintf("nothing (the report has CHIP_ID %x, MEASUREMENT %x)", r.ChipID, r.Measurement)
}

// measured looks a measurement up among those that are not retired on the day of now.
func measured(known []Measurement, observed string, now time.Time) (ok bool, required string) {
	today, current := now.UTC().Format(time.DateOnly), 0
	for _, m := range known {
		if m.NotAfter != "" && m.NotAfter < today {
			if m.Value == observed {
				return false, "one that is not retired; this one was accepted until " + m.NotAfter
			}
			continue
		}
		current++
		ok = ok || m.Value == observed
	}
	return ok, fmt.Sprintf("one of %d known values", current)
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
	v.Rules = append(v.Rules, RuleResult{
		Rule: name, Mode: mode, Status: status, Observed: observed, Required: required,
	})
}

// cspIDForm is how EC2 names itself in the CSP_ID of a VLEK.
var cspIDForm = pattern.New(`^CN=cc-([a-z0-9-]+)\.amazonaws\.com$`)

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

package appraise

import (
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"sevagent/internal/snp"
)

// apply applies the policy's rules to a genuine report and sets the verdict's status.
func (v *Verdict) apply(cfg Config, r *snp.Report, now time.Time) {
	p := cfg.Policy
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
	v.rule("platform_unknown", p.PlatformUnknown.Mode, unknown == 0, fmt.Sprintf("%#x", uint64(unknown)), "no unknown bits")

	v.atLeast("min_reported_tcb", p.MinReportedTCB, r.ReportedTCB)
	v.atLeast("min_committed_tcb", p.MinCommittedTCB, r.CommittedTCB)
	v.atLeast("min_launch_tcb", p.MinLaunchTCB, r.LaunchTCB)
	v.rule("provisional_firmware", p.ProvisionalFirmware.Mode, r.CommittedTCB == r.CurrentTCB,
		fmt.Sprintf("committed %v, current %v", r.CommittedTCB, r.CurrentTCB), "committed as current")
	if r.Version >= 5 { // older reports carry no mitigation vectors
		want := p.MitigationVector.Value
		v.rule("mitigation_vector", p.MitigationVector.Mode, r.LaunchMitVector&r.CurrentMitVector&want == want,
			fmt.Sprintf("launch %#x, current %#x", r.LaunchMitVector, r.CurrentMitVector),
			fmt.Sprintf("all bits of %#x", want))
	}
	ok, want := measured(p.Measurement.Value, fmt.Sprintf("%x", r.Measurement), now)
	v.rule("measurement", p.Measurement.Mode, ok, fmt.Sprintf("%x", r.Measurement), want)
	v.oneOf("id_keys", p.IDKeys, r.IDKeyDigest[:])
	v.oneOf("author_keys", p.AuthorKeys, r.AuthorKeyDigest[:])

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

func (v *Verdict) atLeast(name string, r Rule[snp.TCB], observed snp.TCBVersion) {
	v.rule(name, r.Mode, observed.Components().AtLeast(r.Value), observed.String(), "at least "+r.Value.String())
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

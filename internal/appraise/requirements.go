package appraise

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"sevagent/internal/snp"
)

// Requirement is a rule of a policy in words.
type Requirement struct {
	Rule     string
	Mode     Mode // "" if the rule is not applied
	Required string
	// Looser is what the policy's profile requires where the policy requires less, or something else.
	Looser string
}

// rule is what Requirements needs to know of one: its words, and whether it is as strict as that of another policy.
type rule struct {
	name     string
	mode     Mode
	required string
	strictAs func(base Policy) bool
}

// Requirements returns every rule of p, in the order of a verdict. The last, nitrotpm, is of what is beside a report.
func (p Policy) Requirements() []Requirement {
	base, err := Builtin(p.Profile)
	if err != nil {
		base = p // made by a program, without a profile to compare with
	}
	inBase := base.rules()
	var all []Requirement
	for i, r := range p.rules() {
		q, b := Requirement{Rule: r.name, Mode: r.mode, Required: r.required}, inBase[i]
		if b.mode != "" && (severity(r.mode) < severity(b.mode) || !r.strictAs(base)) {
			q.Looser = string(b.mode) + ", " + b.required
		}
		all = append(all, q)
	}
	return all
}

func severity(m Mode) int { return slices.Index([]Mode{"", Warn, Enforce}, m) }

func (p Policy) rules() []rule {
	same := func(Policy) bool { return true } // such a rule has one value: its mode is all there is to compare
	atLeast := func(min, base snp.TCB) bool { return min.AtLeast(base) }
	allBits := func(bits, base uint64) bool { return bits&base == base }
	tcb := func(min snp.TCB, product snp.Product) string { return product.Layout().Pack(min).String() }
	vector := func(bits uint64, _ snp.Product) string { return fmt.Sprintf("all bits of %#x", bits) }
	var nitroTPM Mode
	if p.NitroTPM.applied() {
		nitroTPM = Enforce
	}
	versions, region := p.ReportVersion.Value, p.CSPID.Value
	if region == "node" {
		region = "<the verifier's region>"
	}
	return []rule{
		{"report_version", p.ReportVersion.Mode, fmt.Sprintf("%d to %d", versions.Min, versions.Max),
			func(b Policy) bool {
				return versions.Min >= b.ReportVersion.Value.Min && versions.Max <= b.ReportVersion.Value.Max
			}},
		{"signer", p.Signer.Mode, p.Signer.Value, func(b Policy) bool { return p.Signer.Value == b.Signer.Value }},
		{"csp_id", p.CSPID.Mode, "CN=cc-" + region + ".amazonaws.com", same},
		{"chip_id", p.ChipID.Mode, p.ChipID.Value, func(b Policy) bool { return p.ChipID.Value == b.ChipID.Value }},
		{"chip_ids", p.ChipIDs.Mode, known(len(p.ChipIDs.Value)), same},
		{"vmpl", p.VMPL.Mode, fmt.Sprintf("at most %d", p.VMPL.Value),
			func(b Policy) bool { return p.VMPL.Value <= b.VMPL.Value }},
		{"policy_required", p.PolicyRequired.Mode, "all of " + strings.Join(p.PolicyRequired.Value, ", "),
			func(b Policy) bool { return containsAll(p.PolicyRequired.Value, b.PolicyRequired.Value) }},
		{"policy_forbidden", p.PolicyForbidden.Mode, "none of " + strings.Join(p.PolicyForbidden.Value, ", "),
			func(b Policy) bool { return containsAll(p.PolicyForbidden.Value, b.PolicyForbidden.Value) }},
		{"platform_required", p.PlatformRequired.Mode, "all of " + strings.Join(p.PlatformRequired.Value, ", "),
			func(b Policy) bool { return containsAll(p.PlatformRequired.Value, b.PlatformRequired.Value) }},
		{"platform_forbidden", p.PlatformForbidden.Mode, "none of " + strings.Join(p.PlatformForbidden.Value, ", "),
			func(b Policy) bool { return containsAll(p.PlatformForbidden.Value, b.PlatformForbidden.Value) }},
		{"platform_unknown", p.PlatformUnknown.Mode, "no unknown bits", same},
		{"min_reported_tcb", p.MinReportedTCB.Mode, "at least " + p.MinReportedTCB.words(tcb),
			func(b Policy) bool { return p.MinReportedTCB.covers(b.MinReportedTCB, atLeast) }},
		{"min_committed_tcb", p.MinCommittedTCB.Mode, "at least " + p.MinCommittedTCB.words(tcb),
			func(b Policy) bool { return p.MinCommittedTCB.covers(b.MinCommittedTCB, atLeast) }},
		{"min_launch_tcb", p.MinLaunchTCB.Mode, "at least " + p.MinLaunchTCB.words(tcb),
			func(b Policy) bool { return p.MinLaunchTCB.covers(b.MinLaunchTCB, atLeast) }},
		{"tcb_contradiction", p.TCBContradiction.Mode, "none", same},
		{"provisional_firmware", p.ProvisionalFirmware.Mode, "committed as current", same},
		{"mitigation_vector", p.MitigationVector.Mode, p.MitigationVector.words(vector),
			func(b Policy) bool { return p.MitigationVector.covers(b.MitigationVector, allBits) }},
		{"measurement", p.Measurement.Mode, known(len(p.Measurement.Value)), same},
		{"id_keys", p.IDKeys.Mode, known(len(p.IDKeys.Value)), same},
		{"author_keys", p.AuthorKeys.Mode, known(len(p.AuthorKeys.Value)), same},
		{"pinned", p.Pinned.Mode, pinnedValue, same},
		{"nitrotpm", nitroTPM, p.NitroTPM.words(), same},
	}
}

func known(n int) string { return fmt.Sprintf("one of %d known values", n) }

func containsAll(list, wanted []string) bool {
	return !slices.ContainsFunc(wanted, func(s string) bool { return !slices.Contains(list, s) })
}

// words lists the values of all products that the rule covers.
func (r ProductRule[T]) words(word func(T, snp.Product) string) string {
	var zero T
	if r.Value != zero {
		return word(r.Value, snp.Milan) + " for all products"
	}
	var parts []string
	for _, product := range snp.Products {
		if value, ok := r.For(product); ok {
			parts = append(parts, word(value, product)+" for "+string(product))
		}
	}
	return cmp.Or(strings.Join(parts, ", "), "nothing")
}

// covers reports whether r says as much as base, for each product that base covers.
func (r ProductRule[T]) covers(base ProductRule[T], asMuch func(value, base T) bool) bool {
	return !slices.ContainsFunc(snp.Products, func(product snp.Product) bool {
		wanted, ok := base.For(product)
		value, _ := r.For(product) // a product that r does not cover is not passed
		return ok && value != *new(T) && !asMuch(value, wanted)
	})
}

package appraise

import (
	"fmt"

	"sevagent/internal/snp"
)

// Mode says what a rule that does not hold does to the verdict.
type Mode string

// The modes of a rule.
const (
	Enforce Mode = "enforce" // the evidence fails
	Warn    Mode = "warn"    // the verdict says so, and the evidence passes
)

// Policy says which genuine reports are acceptable. The zero value of a rule means that it is not applied.
//
// The built-in profiles are in Builtin; a policy file starts from one of them and overrides rules by name
// (package config reads it, hence the yaml tags).
type Policy struct {
	// Name stands in verdicts: the profile's name or the file's path.
	Name string `yaml:"-"`
	// Profile is the built-in profile that a file starts from. Required in a file.
	Profile string `yaml:"profile"`
	// Roots is the path of a PEM file with ARK and ASK or ASVK certificates to trust instead of AMD's: for
	// laboratories and simulators. Verdicts by them have `roots: custom`.
	Roots string `yaml:"roots"`
	// RootsPEM is the content of that file; package config fills it in.
	RootsPEM []byte `yaml:"-"`

	// ReportVersion bounds VERSION. A report newer than this code knows is never appraised, whatever the maximum.
	ReportVersion Rule[VersionRange] `yaml:"report_version"`
	// Signer is the key that must have signed: VLEK on shared tenancy, VCEK on Dedicated Hosts.
	Signer Rule[string] `yaml:"signer"`
	// CSPID compares the CSP_ID of the VLEK with that of an EC2 region, CN=cc-<region>.amazonaws.com. The value
	// is the region; "node" means the verifier's region; without one, only the form is checked.
	CSPID Rule[string] `yaml:"csp_id"`
	// ChipID is "zero" (EC2 shared tenancy masks CHIP_ID) or "set".
	ChipID Rule[string] `yaml:"chip_id"`
	// ChipIDs lists acceptable values of CHIP_ID, 128 hex digits: the processors of one's own Dedicated Hosts.
	ChipIDs Rule[[]string] `yaml:"chip_ids"`
	// VMPL is the highest privilege number accepted; the agent runs at 0.
	VMPL Rule[uint32] `yaml:"vmpl"`
	// PolicyForbidden are POLICY bits that must be clear, by AMD's names (DEBUG, MIGRATE_MA, …).
	PolicyForbidden Rule[[]string] `yaml:"policy_forbidden"`
	// PolicyRequired are POLICY bits that must be set.
	PolicyRequired Rule[[]string] `yaml:"policy_required"`
	// PlatformRequired are PLATFORM_INFO bits that must be set, by AMD's names.
	PlatformRequired Rule[[]string] `yaml:"platform_required"`
	// PlatformForbidden are PLATFORM_INFO bits that must be clear.
	PlatformForbidden Rule[[]string] `yaml:"platform_forbidden"`
	// PlatformUnknown applies to PLATFORM_INFO bits that have no name here; its value must be "none".
	PlatformUnknown Rule[string] `yaml:"platform_unknown"`
	// MinReportedTCB, MinCommittedTCB and MinLaunchTCB bound REPORTED_TCB, COMMITTED_TCB and LAUNCH_TCB from below,
	// component by component.
	MinReportedTCB  ProductRule[snp.TCB] `yaml:"min_reported_tcb"`
	MinCommittedTCB ProductRule[snp.TCB] `yaml:"min_committed_tcb"`
	MinLaunchTCB    ProductRule[snp.TCB] `yaml:"min_launch_tcb"`
	// TCBContradiction applies to reports whose TCBs contradict each other, as no firmware makes them: COMMITTED_TCB,
	// REPORTED_TCB or LAUNCH_TCB above CURRENT_TCB in a component. Its value must be "none".
	TCBContradiction Rule[string] `yaml:"tcb_contradiction"`
	// ProvisionalFirmware applies to firmware that is not committed, COMMITTED_TCB other than CURRENT_TCB; its value
	// must be "none".
	ProvisionalFirmware Rule[string] `yaml:"provisional_firmware"`
	// MitigationVector are bits that LAUNCH_MIT_VECTOR and CURRENT_MIT_VECTOR must have, in reports that carry
	// them (VERSION 5 and later).
	MitigationVector ProductRule[uint64] `yaml:"mitigation_vector"`
	// Pinned applies to policies that do not say whose machine or image it must be: it holds if chip_ids or
	// measurement is enforced. Its value must be "chip_ids or measurement".
	Pinned Rule[string] `yaml:"pinned"`
	// Measurement lists acceptable values of MEASUREMENT.
	Measurement Rule[[]Measurement] `yaml:"measurement"`
	// IDKeys and AuthorKeys list acceptable values of ID_KEY_DIGEST and AUTHOR_KEY_DIGEST, 96 hex digits.
	IDKeys     Rule[[]string] `yaml:"id_keys"`
	AuthorKeys Rule[[]string] `yaml:"author_keys"`
	// NitroTPM says what must be beside the report. Appraise does not apply it, which sees the report alone.
	NitroTPM NitroTPM `yaml:"nitrotpm"`
}

// VersionRange bounds a version, both ends included.
type VersionRange struct {
	Min uint32 `yaml:"min"`
	Max uint32 `yaml:"max"`
}

// Measurement is one acceptable launch measurement. On EC2 it covers Amazon's firmware and the number of vCPUs, and
// instances keep the one that they were launched with.
type Measurement struct {
	// Value is MEASUREMENT, 96 lower-case hex digits.
	Value string `yaml:"value"`
	// VCPUs is the number of vCPUs that it stands for. Zero: not said. For people only.
	VCPUs uint32 `yaml:"vcpus"`
	// NotAfter is the last day, UTC, on which it is accepted, as 2027-01-31. Empty: it is not retired.
	NotAfter string `yaml:"not_after"`
}

// NeedsRegion reports whether a rule compares with the region of the node.
func (p Policy) NeedsRegion() bool { return p.CSPID.Mode != "" && p.CSPID.Value == "node" }

// Rule is one requirement and what happens when it does not hold. A rule without a mode is not applied.
type Rule[T any] struct {
	Mode  Mode `yaml:"mode"`
	Value T    `yaml:"value"`
}

// ProductRule is a Rule whose value differs between products. Their security versions cannot be compared.
type ProductRule[T comparable] struct {
	Mode Mode `yaml:"mode"`
	// Value is for all products. Zero: ByProduct says it.
	Value T `yaml:"value"`
	// ByProduct has a value for each product that the policy covers; zero: it does not.
	ByProduct ByProduct[T] `yaml:"by_product"`
}

// ByProduct is a value for each product.
type ByProduct[T comparable] struct {
	Milan   T `yaml:"Milan"`
	Genoa   T `yaml:"Genoa"`
	Bergamo T `yaml:"Bergamo"`
	Turin   T `yaml:"Turin"`
}

// For returns the rule's value for a product. It reports false if the rule does not cover it.
func (r ProductRule[T]) For(product snp.Product) (value T, ok bool) {
	var zero T
	if r.Value != zero {
		return r.Value, true
	}
	switch product {
	case snp.Milan:
		value = r.ByProduct.Milan
	case snp.Genoa:
		value = r.ByProduct.Genoa
	case snp.Bergamo:
		value = r.ByProduct.Bergamo
	case snp.Turin:
		value = r.ByProduct.Turin
	}
	return value, value != zero
}

// pinnedValue is the one value of the rule pinned.
const pinnedValue = "chip_ids or measurement"

// Names of the built-in profiles.
const (
	AWSShared    = "aws-shared"
	AWSDedicated = "aws-dedicated"
)

// Builtin returns a built-in profile.
func Builtin(name string) (Policy, error) {
	// What EC2's reports of 2025 and 2026 carry; docs/policy.md has the reasons, and the sources of other products.
	minimum := ProductRule[snp.TCB]{Mode: Enforce, ByProduct: ByProduct[snp.TCB]{
		Milan: snp.TCB{Bootloader: 4, TEE: 0, SNP: 24, Microcode: 217},
		Genoa: snp.TCB{Bootloader: 10, TEE: 0, SNP: 23, Microcode: 84},
	}}
	p := Policy{
		Name:             name,
		Profile:          name,
		ReportVersion:    Rule[VersionRange]{Enforce, VersionRange{Min: 3, Max: 5}},
		VMPL:             Rule[uint32]{Warn, 0}, // tools other than sevagent ask for VMPL 1
		PolicyForbidden:  Rule[[]string]{Enforce, []string{"DEBUG", "MIGRATE_MA"}},
		PlatformRequired: Rule[[]string]{Enforce, []string{"ALIAS_CHECK_COMPLETE"}},
		PlatformUnknown:  Rule[string]{Warn, "none"},
		MinReportedTCB:   minimum,
		MinCommittedTCB:  minimum,
		MinLaunchTCB:     minimum,
		TCBContradiction: Rule[string]{Warn, "none"},
		MitigationVector: ProductRule[uint64]{Mode: Enforce, ByProduct: ByProduct[uint64]{Milan: 0xF}},
		NitroTPM:         NitroTPM{Mode: NitroAccept},
	}
	switch name {
	case AWSShared:
		p.Signer = Rule[string]{Enforce, snp.SignedByVLEK.String()}
		p.CSPID = Rule[string]{Enforce, "node"}
		p.ChipID = Rule[string]{Enforce, "zero"}
	case AWSDedicated:
		p.Signer = Rule[string]{Enforce, snp.SignedByVCEK.String()}
		p.ChipID = Rule[string]{Enforce, "set"}
		p.Pinned = Rule[string]{Enforce, pinnedValue}
	default:
		return Policy{}, fmt.Errorf("no built-in policy %q (there are %s and %s)", name, AWSShared, AWSDedicated)
	}
	return p, nil
}

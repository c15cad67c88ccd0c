package config

import (
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"sevagent/internal/appraise"
	"sevagent/internal/snp"
)

// LoadPolicy returns a built-in policy by name, or reads a policy file: anything with a slash or a dot in it. A
// file starts from the profile that it names and overrides the rules that it sets.
func LoadPolicy(nameOrPath string) (appraise.Policy, error) {
	if !strings.ContainsAny(nameOrPath, "/.") {
		return appraise.Builtin(nameOrPath)
	}
	data, err := readFile(nameOrPath)
	if err != nil {
		return appraise.Policy{}, fmt.Errorf("read the policy: %w", err)
	}
	// The profile first, since everything else is read over it.
	var base struct {
		Profile string `yaml:"profile"`
	}
	(&decoder{file: nameOrPath, places: make(map[string]place)}).read(data, &base)
	policy, err := appraise.Builtin(base.Profile)
	if err != nil {
		return appraise.Policy{}, fmt.Errorf("%s:1: profile: %w", nameOrPath, err)
	}
	d := decoder{file: nameOrPath, places: make(map[string]place)}
	d.read(data, &policy)
	policy.Name = nameOrPath
	if policy.Roots != "" {
		file := policy.Roots
		if !filepath.IsAbs(file) {
			file = filepath.Join(filepath.Dir(nameOrPath), file)
		}
		policy.RootsPEM, err = readFile(file)
		if block, _ := pem.Decode(policy.RootsPEM); err == nil && block == nil {
			err = fmt.Errorf("%s holds no PEM certificate", file)
		}
		if err != nil {
			d.errs = append(d.errs, fmt.Errorf("%v: roots: %w", d.places["roots"], err))
		}
	}
	if err := errors.Join(append(d.errs, validatePolicy(policy, d.places)...)...); err != nil {
		return appraise.Policy{}, err
	}
	return policy, nil
}

func validatePolicy(p appraise.Policy, places map[string]place) (errs []error) {
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%v: %s: %s", places[key], key, fmt.Sprintf(format, args...)))
	}
	oneOf := func(key, value string, allowed ...string) {
		if !slices.Contains(allowed, value) {
			bad(key, "%q is not one of %s", value, strings.Join(allowed, ", "))
		}
	}
	for key, mode := range map[string]appraise.Mode{
		"signer.mode": p.Signer.Mode, "csp_id.mode": p.CSPID.Mode, "chip_id.mode": p.ChipID.Mode, "vmpl.mode": p.VMPL.Mode,
		"policy_forbidden.mode": p.PolicyForbidden.Mode, "platform_required.mode": p.PlatformRequired.Mode,
		"platform_unknown.mode": p.PlatformUnknown.Mode, "min_reported_tcb.mode": p.MinReportedTCB.Mode,
		"min_launch_tcb.mode": p.MinLaunchTCB.Mode, "mitigation_vector.mode": p.MitigationVector.Mode, "measurement.mode": p.Measurement.Mode,
	} {
		if mode != "" { // no mode: the rule is not applied
			oneOf(key, string(mode), string(appraise.Enforce), string(appraise.Warn))
		}
	}
	if p.Signer.Mode != "" {
		oneOf("signer.value", p.Signer.Value, snp.SignedByVCEK.String(), snp.SignedByVLEK.String())
	}
	if p.ChipID.Mode != "" {
		oneOf("chip_id.value", p.ChipID.Value, "zero", "set")
	}
	if p.PlatformUnknown.Mode != "" {
		oneOf("platform_unknown.value", p.PlatformUnknown.Value, "none")
	}
	bits := func(key string, values []string, names []snp.BitName) {
		for i, v := range values {
			if !slices.ContainsFunc(names, func(n snp.BitName) bool { return n.Name == v }) {
				bad(fmt.Sprintf("%s[%d]", key, i), "%q is not the name of a bit", v)
			}
		}
	}
	bits("policy_forbidden.value", p.PolicyForbidden.Value, snp.PolicyBits)
	bits("platform_required.value", p.PlatformRequired.Value, snp.PlatformBits)
	for i, m := range p.Measurement.Value {
		if b, err := hex.DecodeString(m); err != nil || len(b) != 48 || strings.ToLower(m) != m {
			bad(fmt.Sprintf("measurement.value[%d]", i), "%q is not 96 lower-case hexadecimal digits", m)
		}
	}
	return errs
}

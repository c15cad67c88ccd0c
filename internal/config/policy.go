package config

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"sevagent/internal/appraise"
	"sevagent/internal/snp"
)

// LoadPolicy returns a built-in policy by name, or reads a policy file: anything with a slash or a dot in it. A
// file starts from the profile that it names and overrides the rules, and the parts of rules, that it sets.
func LoadPolicy(nameOrPath string) (appraise.Policy, error) {
	if isProfile(nameOrPath) {
		return appraise.Builtin(nameOrPath)
	}
	data, err := readFile(nameOrPath)
	if err != nil {
		return appraise.Policy{}, fmt.Errorf("read the policy: %w", err)
	}
	return parsePolicy(nameOrPath, data, readFile)
}

// isProfile reports whether it is the name of a built-in profile, and not the path of a file.
func isProfile(nameOrPath string) bool { return !strings.ContainsAny(nameOrPath, "/.") }

// parsePolicy is LoadPolicy for a file that has been read; read reads the roots that it names.
func parsePolicy(file string, data []byte, read func(string) ([]byte, error)) (appraise.Policy, error) {
	// The profile first, since everything else is read over it. The second reading reports what else is wrong.
	var named appraise.Policy
	newDecoder().read(file, data, &named)
	policy, profileErr := appraise.Builtin(named.Profile)
	if profileErr != nil {
		policy, _ = appraise.Builtin(appraise.AWSShared) // for the sake of the other mistakes
	}

	d := newDecoder()
	d.read(file, data, &policy)
	policy.Name = file
	if profileErr != nil {
		_, isYAML := d.places[""]
		if _, set := d.places["profile"]; set {
			d.bad("profile", "%s", profileErr)
		} else if isYAML && !d.failed[""] || len(d.found) == 0 {
			d.at(d.line(1), "profile", "not set; a file starts from %s or %s",
				appraise.AWSShared, appraise.AWSDedicated)
		}
	}
	if policy.Roots != "" {
		roots := policy.Roots
		if !filepath.IsAbs(roots) {
			roots = filepath.Join(filepath.Dir(file), roots)
		}
		data, err := read(roots)
		if err == nil {
			err = checkPEM(roots, data)
		}
		if err != nil {
			d.bad("roots", "%s", err)
		}
		policy.RootsPEM = data
	}
	validatePolicy(policy, &d.mistakes)
	if errs := d.errors(); errs != nil {
		return appraise.Policy{}, errors.Join(errs...)
	}
	return policy, nil
}

// checkPEM checks that a file holds certificates and nothing else. Package appraise checks that they can be roots.
func checkPEM(file string, data []byte) error {
	if len(data) > maxFile {
		return fmt.Errorf("%s is larger than %d bytes", file, maxFile)
	}
	for n := 0; ; n++ {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			if n == 0 {
				return fmt.Errorf("%s holds no PEM certificate", file)
			}
			return nil
		}
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("%s: entry %d is %s, not a certificate", file, n, quote(block.Type))
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("%s: entry %d: %w", file, n, err)
		}
	}
}

// cspRegion is the form of an EC2 region in a CSP_ID.
var cspRegion = regexp.MustCompile(`^[a-z0-9-]+$`)

// validatePolicy finds every mistake in a policy whose types are right.
func validatePolicy(p appraise.Policy, m *mistakes) {
	m.validateModes(p)
	// A value matters if the file has set it or a mode applies it.
	matters := func(key string, mode appraise.Mode) bool {
		_, set := m.places[key]
		return set || mode != ""
	}
	if matters("signer.value", p.Signer.Mode) {
		m.oneOf("signer.value", p.Signer.Value, snp.SignedByVLEK.String(), snp.SignedByVCEK.String())
	}
	if matters("csp_id.value", p.CSPID.Mode) && (len(p.CSPID.Value) > 64 || !cspRegion.MatchString(p.CSPID.Value)) {
		m.bad("csp_id.value", "%s is neither node nor an EC2 region", quote(p.CSPID.Value))
	}
	if matters("chip_id.value", p.ChipID.Mode) {
		m.oneOf("chip_id.value", p.ChipID.Value, "zero", "set")
	}
	if p.VMPL.Value > 3 {
		m.bad("vmpl.value", "%d is not between 0 and 3", p.VMPL.Value)
	}
	if matters("platform_unknown.value", p.PlatformUnknown.Mode) {
		m.oneOf("platform_unknown.value", p.PlatformUnknown.Value, "none")
	}
	if matters("provisional_firmware.value", p.ProvisionalFirmware.Mode) {
		m.oneOf("provisional_firmware.value", p.ProvisionalFirmware.Value, "none")
	}
	if r := p.ReportVersion; r.Mode != "" && r.Value.Min > r.Value.Max {
		m.bad("report_version.value", "min %d is above max %d", r.Value.Min, r.Value.Max)
	}
	m.bits("policy_required.value", p.PolicyRequired.Value, snp.PolicyBits)
	m.bits("policy_forbidden.value", p.PolicyForbidden.Value, snp.PolicyBits)
	m.bits("platform_required.value", p.PlatformRequired.Value, snp.PlatformBits)
	m.bits("platform_forbidden.value", p.PlatformForbidden.Value, snp.PlatformBits)
	m.digests("chip_ids", p.ChipIDs, 64)
	m.digests("id_keys", p.IDKeys, 48)
	m.digests("author_keys", p.AuthorKeys, 48)
	if matters("measurement.value", p.Measurement.Mode) && len(p.Measurement.Value) == 0 {
		m.bad("measurement.value", "empty, so that no report is acceptable; list some or remove measurement")
	}
	for i, v := range p.Measurement.Value {
		key := fmt.Sprintf("measurement.value[%d]", i)
		m.digest(key+".value", v.Value, 48)
		if _, err := time.Parse(time.DateOnly, v.NotAfter); v.NotAfter != "" && err != nil {
			m.bad(key+".not_after", "%s is not a day such as \"2027-01-31\"", quote(v.NotAfter))
		}
	}
}

// digests checks a rule that lists acceptable values of a field of size bytes.
func (m *mistakes) digests(name string, r appraise.Rule[[]string], size int) {
	if r.Mode != "" && len(r.Value) == 0 {
		m.bad(name+".value", "empty, so that no report is acceptable; list some or remove %s", name)
	}
	for i, v := range r.Value {
		m.digest(fmt.Sprintf("%s.value[%d]", name, i), v, size)
	}
}

func (m *mistakes) digest(key, value string, size int) {
	if b, err := hex.DecodeString(value); err != nil || len(b) != size || strings.ToLower(value) != value {
		m.bad(key, "%s is not %d lower-case hexadecimal digits", quote(value), 2*size)
	}
}

// validateModes checks the modes of all rules. An empty mode, written out, is how a file says that a rule of its
// profile is not applied. A value without any mode would be a rule that its author relies on and nobody applies.
func (m *mistakes) validateModes(p appraise.Policy) {
	v := reflect.ValueOf(p)
	for i := range v.NumField() {
		rule, name := v.Field(i), v.Type().Field(i).Tag.Get("yaml")
		if rule.Kind() != reflect.Struct {
			continue
		}
		mode := rule.FieldByName("Mode").String()
		if _, set := m.places[name+".mode"]; set && mode != "" {
			m.oneOf(name+".mode", mode, string(appraise.Enforce), string(appraise.Warn))
		} else if at, valueSet := m.places[name+".value"]; valueSet && !set && mode == "" {
			m.at(at, name+".mode", "not set; choose %s or %s", appraise.Enforce, appraise.Warn)
		}
	}
}

// bits checks that values are names of bits.
func (m *mistakes) bits(key string, values []string, known []snp.BitName) {
	var names []string
	for _, b := range known {
		names = append(names, b.Name)
	}
	for i, v := range values {
		if !slices.Contains(names, v) {
			m.bad(fmt.Sprintf("%s[%d]", key, i), "%s is not one of %s", quote(v), strings.Join(names, ", "))
		}
	}
}

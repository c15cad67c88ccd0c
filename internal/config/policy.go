package config

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"sevagent/internal/appraise"
	"sevagent/internal/nitro"
	"sevagent/internal/pattern"
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
	return ParsePolicy(nameOrPath, data, readFile)
}

// isProfile reports whether it is the name of a built-in profile, and not the path of a file.
func isProfile(nameOrPath string) bool { return !strings.ContainsAny(nameOrPath, "/.") }

// ParsePolicy is LoadPolicy for a file that has been read; read reads the file of roots that it names.
func ParsePolicy(file string, data []byte, read func(string) ([]byte, error)) (appraise.Policy, error) {
	// The profile first, since everything else is read over it. The second reading reports what else is wrong.
	var named appraise.Policy
	newDecoder().read(file, data, &named)
	policy, profileErr := appraise.Builtin(named.Profile)
	if profileErr != nil {
		policy, _ = appraise.Builtin(appraise.AWSShared) // for the sake of the other mistakes
	}

	d := newDecoder()
	spread(&policy)
	d.read(file, data, &policy)
	d.settle(&policy)
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
	if _, set := d.places["roots"]; set && policy.Roots == "" && !d.failed["roots"] {
		d.bad("roots", "empty; name a PEM file, or remove roots for AMD's")
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

// productRule is an appraise.ProductRule whatever the type of its values.
type productRule struct {
	name   string
	mode   *appraise.Mode
	spread func()                 // offers Milan's value as the one for all products, for a file to set parts of
	settle func(all bool)         // leaves the one value for all products, or that of each
	empty  func(snp.Product) bool // whether there is no value for a product
	value  func(snp.Product) any  // the value for a product
}

func productRules(p *appraise.Policy) []productRule {
	return []productRule{
		productRuleOf("min_reported_tcb", &p.MinReportedTCB), productRuleOf("min_committed_tcb", &p.MinCommittedTCB),
		productRuleOf("min_launch_tcb", &p.MinLaunchTCB), productRuleOf("mitigation_vector", &p.MitigationVector),
	}
}

func productRuleOf[T comparable](name string, r *appraise.ProductRule[T]) productRule {
	return productRule{
		name:   name,
		mode:   &r.Mode,
		spread: func() { r.Value = r.ByProduct.Milan },
		settle: func(all bool) {
			if all {
				r.ByProduct = appraise.ByProduct[T]{}
			} else {
				r.Value = *new(T)
			}
		},
		empty: func(product snp.Product) bool { _, ok := r.For(product); return !ok },
		value: func(product snp.Product) any { value, _ := r.For(product); return value },
	}
}

func spread(p *appraise.Policy) {
	for _, r := range productRules(p) {
		r.spread()
	}
}

// settle leaves each rule the one value for all products that the file has set, or else a value for each product.
func (d *decoder) settle(p *appraise.Policy) {
	for _, r := range productRules(p) {
		_, all := d.places[r.name+".value"]
		at, each := d.places[r.name+".by_product"]
		if all && each {
			d.at(at, r.name+".by_product", "value is there, too, and is for all products; give one of them")
		}
		r.settle(all)
	}
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
var cspRegion = pattern.New(`^[a-z0-9-]+$`)

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
	if matters("tcb_contradiction.value", p.TCBContradiction.Mode) {
		m.oneOf("tcb_contradiction.value", p.TCBContradiction.Value, "none")
	}
	if matters("pinned.value", p.Pinned.Mode) {
		m.oneOf("pinned.value", p.Pinned.Value, "chip_ids or measurement")
	}
	switch r := p.ReportVersion; {
	case r.Mode != "" && r.Value.Min > r.Value.Max:
		m.bad("report_version.value", "min %d is above max %d", r.Value.Min, r.Value.Max)
	case r.Value.Max > snp.MaxKnownVersion:
		m.bad("report_version.value.max", "%d is above %d, the newest version that can be appraised",
			r.Value.Max, snp.MaxKnownVersion)
	}
	m.bits("policy_required", p.PolicyRequired, snp.PolicyBits)
	m.bits("policy_forbidden", p.PolicyForbidden, snp.PolicyBits)
	m.bits("platform_required", p.PlatformRequired, snp.PlatformBits)
	m.bits("platform_forbidden", p.PlatformForbidden, snp.PlatformBits)
	for _, r := range productRules(&p) {
		m.productRule(r, matters(r.name+".value", *r.mode))
	}
	m.digests("chip_ids", p.ChipIDs, 64)
	m.digests("id_keys", p.IDKeys, 48)
	m.digests("author_keys", p.AuthorKeys, 48)
	m.nitroTPM(p.NitroTPM)
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

// instanceID is the form of an EC2 instance's ID.
var instanceID = pattern.New(`^i-[0-9a-f]{8,17}$`)

// nitroTPM checks the rule nitrotpm.
func (m *mistakes) nitroTPM(r appraise.NitroTPM) {
	const key = "nitrotpm"
	at, set := m.places[key]
	if !set {
		return
	}
	ids, pcrs := len(r.InstanceIDs) > 0, len(r.PCRs) > 0
	_, modeSet := m.places[key+".mode"]
	switch {
	case modeSet:
		m.oneOf(key+".mode", string(r.Mode),
			string(appraise.NitroRequire), string(appraise.NitroAccept), string(appraise.NitroRefuse))
	case !m.failedBelow(key):
		m.at(at, key+".mode", "not set; choose require, or accept, under which evidence without a document passes")
	}
	if r.Mode == appraise.NitroRefuse && (ids || pcrs) {
		m.bad(key, "instance_ids and pcrs say what a document must be, and mode refuse that there must be none")
	}
	for _, list := range []struct {
		name string
		some bool
	}{{key + ".instance_ids", ids}, {key + ".pcrs", pcrs}} {
		if _, set := m.places[list.name]; set && !list.some {
			m.bad(list.name, "empty, so that it requires nothing; list some, or remove it")
		}
	}
	for i, id := range r.InstanceIDs {
		if !instanceID.MatchString(id) {
			m.bad(fmt.Sprintf("%s.instance_ids[%d]", key, i), "%s is not the ID of an EC2 instance", quote(id))
		}
	}
	for i, s := range r.PCRs {
		m.boot(fmt.Sprintf("%s.pcrs[%d]", key, i), s)
	}
}

// boot checks one set of registers.
func (m *mistakes) boot(key string, s nitro.Set) {
	if _, err := time.Parse(time.DateOnly, s.NotAfter); s.NotAfter != "" && err != nil {
		m.bad(key+".not_after", "%s is not a day such as \"2027-01-31\"", quote(s.NotAfter))
	}
	seen := make(map[uint32]bool)
	for i, v := range s.Values {
		pin := fmt.Sprintf("%s.values[%d]", key, i)
		if _, set := m.places[pin+".pcr"]; !set { // it would be 0
			m.bad(pin, "no pcr; give the number of the register")
		} else if why := nitro.Meaningless(v.PCR); why != "" {
			m.bad(pin+".pcr", "PCR%d cannot be pinned: %s", v.PCR, why)
		} else if seen[v.PCR] {
			m.bad(pin+".pcr", "PCR%d stands twice in one set; another value is another set", v.PCR)
		}
		seen[v.PCR] = true
		m.digest(pin+".value", v.Value, 48)
	}
	if why := s.Incomplete(); why != "" && !m.failedBelow(key) {
		m.bad(key+".values", "it pins %s", why)
	}
}

// productRule checks the values of a rule that has one for each product. None may be empty: it would say nothing.
func (m *mistakes) productRule(r productRule, matters bool) {
	covered := slices.ContainsFunc(snp.Products, func(p snp.Product) bool { return !r.empty(p) })
	if matters && !covered && !m.failedBelow(r.name) {
		m.bad(r.name+".value", "empty, so that it requires nothing; give a value, or remove %s", r.name)
	}
	for _, product := range snp.Products {
		key := r.name + ".by_product." + string(product)
		if _, set := m.places[key]; set && r.empty(product) && !m.failedBelow(key) {
			m.bad(key, "empty; give a value, or remove %s", product)
		}
		if tcb, ok := r.value(product).(snp.TCB); ok && tcb.FMC != 0 && product != snp.Turin {
			if _, set := m.places[key+".fmc"]; set {
				m.bad(key+".fmc", "only Turin has an FMC")
			}
		}
	}
}

// failedBelow reports whether a value within key could not be decoded, which is reported already.
func (m *mistakes) failedBelow(key string) bool {
	for failed := range m.failed {
		if strings.HasPrefix(failed, key) && m.failed[failed] {
			return true
		}
	}
	return false
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
		if rule.Kind() != reflect.Struct || name == "nitrotpm" { // whose modes are others
			continue
		}
		if at, set := m.places[name]; set && !m.setBelow(name) && !m.failed[name] {
			m.at(at, name, "empty, so that it changes nothing; give it a mode or a value, or remove it")
			continue
		}
		mode := rule.FieldByName("Mode").String()
		if _, set := m.places[name+".mode"]; set && mode != "" {
			m.oneOf(name+".mode", mode, string(appraise.Enforce), string(appraise.Warn))
		} else if at, valueSet := m.value(name); valueSet && !set && mode == "" {
			m.at(at, name+".mode", "not set; choose %s or %s", appraise.Enforce, appraise.Warn)
		}
	}
}

// setBelow reports whether a file has set a key within key.
func (m *mistakes) setBelow(key string) bool {
	for at := range m.places {
		if strings.HasPrefix(at, key+".") {
			return true
		}
	}
	return false
}

// value returns where a rule's value was set, in either form.
func (m *mistakes) value(rule string) (at place, set bool) {
	if at, set = m.places[rule+".value"]; !set {
		at, set = m.places[rule+".by_product"]
	}
	return at, set
}

// bits checks that values are names of bits, and that there are any.
func (m *mistakes) bits(name string, r appraise.Rule[[]string], known []snp.BitName) {
	key, values := name+".value", r.Value
	if _, set := m.places[key]; (set || r.Mode != "") && len(values) == 0 {
		m.bad(key, "empty, so that it requires nothing; list some, or write mode: \"\" for a rule that is not applied")
	}
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

package config

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sevagent/internal/appraise"
	"sevagent/internal/must"
	"sevagent/internal/nitro"
	"sevagent/internal/sim"
	"sevagent/internal/snp"

	"github.com/google/go-cmp/cmp"
)

func noRoots(string) ([]byte, error) { return nil, os.ErrNotExist }

func certificatePEM(t *testing.T) string {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	must.Do(t, err, "generate a key")
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der := must.Get(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t, "make a certificate")
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func builtin(t *testing.T, name string) appraise.Policy {
	t.Helper()
	p := must.Get(appraise.Builtin(name))(t, "take a built-in policy")
	return p
}

func TestBuiltinPolicy(t *testing.T) {
	for _, name := range []string{appraise.AWSShared, appraise.AWSDedicated} {
		got := must.Get(LoadPolicy(name))(t, "load a policy")
		if diff := cmp.Diff(builtin(t, name), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		// What a profile says stands as a file, too.
		got = must.Get(ParsePolicy("c.yaml", []byte("profile: "+name), noRoots))(t, "read the profile as a file")
		if got.Name != "c.yaml" || got.Profile != name {
			t.Errorf("got name %q and profile %q, want c.yaml and %s", got.Name, got.Profile, name)
		}
	}
	if _, err := LoadPolicy("aws"); err == nil {
		t.Error("there is no profile aws")
	}
}

func TestPolicyFile(t *testing.T) {
	dir := t.TempDir()
	roots := "# ours\n" + certificatePEM(t) + certificatePEM(t)
	write(t, dir, "pki/roots.pem", roots)
	measurement := strings.Repeat("0f", 48)
	file := write(t, dir, "policy.yaml", `min_reported_tcb: {value: {snp: 25}}  # the others stay
profile: aws-shared
roots: pki/roots.pem
signer: {mode: warn, value: VCEK}
csp_id: {value: us-east-2}
vmpl: {mode: enforce, value: 1}
policy_forbidden: {value: [DEBUG, SMT]}
min_committed_tcb: {by_product: {Genoa: {snp: 27}, Turin: {fmc: 1, bootloader: 1, tee: 1, snp: 4, microcode: 81}}}
mitigation_vector: {value: 0xffffffffffffffff}
measurement: {mode: enforce, value: [{value: `+measurement+`, vcpus: 2, not_after: "2027-01-31"}]}
id_keys: {mode: warn, value: [`+measurement+`]}
report_version: {value: {min: 4}}
platform_unknown: {mode: ""}
nitrotpm:
  mode: require
  instance_ids: [i-0123456789abcdef0]
  pcrs:
  - name: ami-1
    not_after: "2027-01-31"
    values: [{pcr: 4, value: `+measurement+`}, {pcr: 12, value: `+measurement+`}]
`)
	got := must.Get(LoadPolicy(file))(t, "load a policy")
	want := builtin(t, appraise.AWSShared)
	want.Name, want.Roots, want.RootsPEM = file, "pki/roots.pem", []byte(roots)
	// One value is for all products, and starts from Milan's.
	want.MinReportedTCB = appraise.ProductRule[snp.TCB]{Mode: appraise.Enforce,
		Value: snp.TCB{Bootloader: 4, SNP: 25, Microcode: 217}}
	want.MinCommittedTCB.ByProduct.Genoa.SNP = 27
	want.MinCommittedTCB.ByProduct.Turin = snp.TCB{FMC: 1, Bootloader: 1, TEE: 1, SNP: 4, Microcode: 81}
	want.Signer = appraise.Rule[string]{Mode: appraise.Warn, Value: "VCEK"}
	want.CSPID.Value = "us-east-2"
	want.VMPL = appraise.Rule[uint32]{Mode: appraise.Enforce, Value: 1}
	want.PolicyForbidden.Value = []string{"DEBUG", "SMT"}
	want.MitigationVector = appraise.ProductRule[uint64]{Mode: appraise.Enforce, Value: 1<<64 - 1}
	want.PlatformUnknown.Mode = ""
	want.Measurement = appraise.Rule[[]appraise.Measurement]{Mode: appraise.Enforce,
		Value: []appraise.Measurement{{Value: measurement, VCPUs: 2, NotAfter: "2027-01-31"}}}
	want.IDKeys = appraise.Rule[[]string]{Mode: appraise.Warn, Value: []string{measurement}}
	want.ReportVersion.Value.Min = 4
	want.NitroTPM = appraise.NitroTPM{Mode: appraise.NitroRequire, InstanceIDs: []string{"i-0123456789abcdef0"},
		PCRs: []nitro.Set{{Name: "ami-1", NotAfter: "2027-01-31",
			Values: []nitro.Pin{{PCR: 4, Value: measurement}, {PCR: 12, Value: measurement}}}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// Nothing of it stays in the profile.
	diff := cmp.Diff([]string{"DEBUG", "MIGRATE_MA"}, builtin(t, appraise.AWSShared).PolicyForbidden.Value)
	if diff != "" {
		t.Errorf("the profile has changed:\n%s", diff)
	}

	if _, err := LoadPolicy(filepath.Join(dir, "none.yaml")); err == nil ||
		!strings.HasPrefix(err.Error(), "read the policy: ") {
		t.Errorf("an absent file: got %v", err)
	}
}

// TestPolicyOfSimulator: roots of the form of AMD's own.
func TestPolicyOfSimulator(t *testing.T) {
	psp := must.Get(sim.New(sim.DefaultOptions(time.Now())))(t, "make a simulator")
	dir := t.TempDir()
	write(t, dir, "roots.pem", string(psp.Roots()))
	got := must.Get(LoadPolicy(write(t, dir, "policy.yaml", "profile: aws-shared\nroots: roots.pem\n")))(t,
		"load a policy")
	if string(got.RootsPEM) != string(psp.Roots()) {
		t.Error("the policy's roots are not the simulator's")
	}
}

func TestPolicyRefuses(t *testing.T) {
	good := certificatePEM(t)
	files := map[string]string{
		"/etc/empty": "", "/etc/key": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
		"/etc/half":  good + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
		"/etc/large": good + strings.Repeat("\n", maxFile),
	}
	read := func(file string) ([]byte, error) {
		if text, ok := files[file]; ok {
			return []byte(text), nil
		}
		return nil, &os.PathError{Op: "open", Path: file, Err: os.ErrNotExist}
	}
	policyKeys := "profile, roots, report_version, signer, csp_id, chip_id, chip_ids, vmpl, policy_forbidden, " +
		"policy_required, platform_required, platform_forbidden, platform_unknown, min_reported_tcb, " +
		"min_committed_tcb, min_launch_tcb, tcb_contradiction, provisional_firmware, mitigation_vector, pinned, " +
		"measurement, id_keys, author_keys, nitrotpm"
	policyBits := "SMT, MIGRATE_MA, DEBUG, SINGLE_SOCKET, CXL_ALLOW, MEM_AES_256_XTS, RAPL_DIS, " +
		"CIPHERTEXT_HIDING_DRAM, PAGE_SWAP_DISABLE"
	platformBits := "SMT_EN, TSME_EN, ECC_EN, RAPL_DIS, CIPHERTEXT_HIDING_DRAM_EN, ALIAS_CHECK_COMPLETE, TIO_EN"
	const p = "profile: aws-dedicated\n"
	pin := func(pcr string) string { return "{pcr: " + pcr + ", value: " + strings.Repeat("0a", 48) + "}" }
	for _, tt := range []struct{ name, text, want string }{
		{"empty", "", "1: profile: not set; a file starts from aws-shared or aws-dedicated"},
		{"no profile and more", "roots: /etc/none\n", "1: profile: not set; " +
			"a file starts from aws-shared or aws-dedicated\n1: roots: open /etc/none: file does not exist"},
		{"unknown profile and more", "vmpl: {value: 9}\nprofile: gcp\n",
			"1: vmpl.value: 9 is not between 0 and 3\n" +
				"2: profile: no built-in policy \"gcp\" (there are aws-shared and aws-dedicated)"},
		{"profile of another type", "profile: 1\n", "1: profile: 1 is not text; put it in quotes"},
		{"not YAML", "a: [\n", "1: not YAML: did not find expected node content"},
		{"not a mapping", "[]\n", "1: want a mapping with the keys " + policyKeys},
		{"field that is not a key", p + "name: x\n", "2: name: unknown key; there are " + policyKeys},
		{"unknown rule", p + "mesurement: {}\n", "2: mesurement: unknown key; did you mean measurement?"},
		{"rule without its mapping", p + "signer: VCEK\n", "2: signer: want a mapping with the keys mode, value"},
		{"mode", p + "signer: {mode: off}\n", "2: signer.mode: \"off\" is not one of enforce, warn"},
		{"mode without a value", p + "signer: {mode: ~}\n", "2: signer.mode: no value; give one or remove the key"},
		{"no mode", p + "measurement: {value: [{value: " + strings.Repeat("0a", 48) + "}]}\n",
			"2: measurement.mode: not set; choose enforce or warn"},
		{"no value", p + "csp_id:\n  mode: enforce\n", "3: csp_id.value: \"\" is neither node nor an EC2 region"},
		{"signer", p + "signer: {value: vcek}\n", "2: signer.value: \"vcek\" is not one of VLEK, VCEK"},
		{"CSP_ID", p + "csp_id: {mode: warn, value: CN=x}\n",
			"2: csp_id.value: \"CN=x\" is neither node nor an EC2 region"},
		{"chip ID", p + "chip_id: {value: one}\n", "2: chip_id.value: \"one\" is not one of zero, set"},
		{"VMPL", p + "vmpl: {value: 4}\n", "2: vmpl.value: 4 is not between 0 and 3"},
		{"VMPL below 0", p + "vmpl: {value: -1}\n", "2: vmpl.value: \"-1\" is not a whole number from 0 to 4294967295"},
		{"policy bit", p + "policy_forbidden: {value: [DEBUG, debug]}\n",
			"2: policy_forbidden.value[1]: \"debug\" is not one of " + policyBits},
		{"platform bit", p + "platform_required: {value: [SMT]}\n",
			"2: platform_required.value[0]: \"SMT\" is not one of " + platformBits},
		{"platform unknown", p + "platform_unknown: {value: some}\n",
			"2: platform_unknown.value: \"some\" is not one of none"},
		{"TCB component out of range", p + "min_reported_tcb: {value: {snp: 256}}\n",
			"2: min_reported_tcb.value.snp: \"256\" is not a whole number from 0 to 255"},
		{"TCB component unknown", p + "min_launch_tcb:\n  value: {psp: 1}\n",
			"3: min_launch_tcb.value.psp: unknown key; there are fmc, bootloader, tee, snp, microcode"},
		{"TCB component unknown and far", p + "min_launch_tcb:\n  value: {component: 1}\n",
			"3: min_launch_tcb.value.component: unknown key; there are fmc, bootloader, tee, snp, microcode"},
		{"TCB as a number", p + "min_launch_tcb: {value: 7}\n",
			"2: min_launch_tcb.value: want a mapping with the keys fmc, bootloader, tee, snp, microcode"},
		{"rule that says nothing", p + "signer: ~\nvmpl: {}\nmin_launch_tcb:\n",
			"2: signer: empty, so that it changes nothing; give it a mode or a value, or remove it\n" +
				"3: vmpl: empty, so that it changes nothing; give it a mode or a value, or remove it\n" +
				"4: min_launch_tcb: empty, so that it changes nothing; give it a mode or a value, or remove it"},
		{"version that nobody knows", p + "report_version: {value: {max: 4294967295}}\n",
			"2: report_version.value.max: 4294967295 is above 5, the newest version that can be appraised"},
		{"nothing forbidden", p + "policy_forbidden: {value: []}\n", "2: policy_forbidden.value: empty, " +
			"so that it requires nothing; list some, or write mode: \"\" for a rule that is not applied"},
		{"nothing required", p + "platform_forbidden:\n  mode: enforce\n", "3: platform_forbidden.value: empty, " +
			"so that it requires nothing; list some, or write mode: \"\" for a rule that is not applied"},
		{"no mitigation", p + "mitigation_vector: {value: 0}\n", "2: mitigation_vector.value: empty, " +
			"so that it requires nothing; give a value, or remove mitigation_vector"},
		{"no TCB", p + "min_launch_tcb: {value: {bootloader: 0, snp: 0, microcode: 0}}\n",
			"2: min_launch_tcb.value: empty, so that it requires nothing; give a value, or remove min_launch_tcb"},
		{"no TCB for a product", p + "min_launch_tcb:\n  by_product:\n    Turin: {}\n",
			"4: min_launch_tcb.by_product.Turin: empty; give a value, or remove Turin"},
		{"unknown product", p + "min_launch_tcb: {by_product: {Rome: {snp: 1}}}\n",
			"2: min_launch_tcb.by_product.Rome: unknown key; there are Milan, Genoa, Bergamo, Turin"},
		{"FMC of another product", p + "min_launch_tcb: {by_product: {Genoa: {fmc: 1}}}\n",
			"2: min_launch_tcb.by_product.Genoa.fmc: only Turin has an FMC"},
		{"all products and each", p + "mitigation_vector: {value: 1, by_product: {Turin: 2}}\n",
			"2: mitigation_vector.by_product: value is there, too, and is for all products; give one of them"},
		{"roots that name no file", p + "roots: \"\"\n", "2: roots: empty; name a PEM file, or remove roots for AMD's"},
		{"contradiction", p + "tcb_contradiction: {value: some}\n",
			"2: tcb_contradiction.value: \"some\" is not one of none"},
		{"pinned", p + "pinned: {mode: warn, value: vmpl}\n",
			"2: pinned.value: \"vmpl\" is not one of chip_ids or measurement"},
		{"mitigation vector", p + "mitigation_vector: {value: 0x10000000000000000}\n",
			"2: mitigation_vector.value: \"0x10000000000000000\" is not a whole number from 0 to 18446744073709551615"},
		{"measurement", p + "measurement:\n  mode: enforce\n  value:\n  - {value: ABCD}\n",
			"5: measurement.value[0].value: \"ABCD\" is not 96 lower-case hexadecimal digits"},
		{"retired on no day", p + "measurement: {mode: warn, value: [{value: " +
			strings.Repeat("0a", 48) + ", not_after: \"soon\"}]}\n",
			"2: measurement.value[0].not_after: \"soon\" is not a day such as \"2027-01-31\""},
		{"no chip IDs", p + "chip_ids: {mode: enforce, value: []}\n",
			"2: chip_ids.value: empty, so that no report is acceptable; list some or remove chip_ids"},
		{"ID key", p + "id_keys: {mode: enforce, value: [aa]}\n",
			"2: id_keys.value[0]: \"aa\" is not 96 lower-case hexadecimal digits"},
		{"platform bit", p + "platform_forbidden: {mode: enforce, value: [SMT]}\n",
			"2: platform_forbidden.value[0]: \"SMT\" is not one of SMT_EN, TSME_EN, ECC_EN, RAPL_DIS, " +
				"CIPHERTEXT_HIDING_DRAM_EN, ALIAS_CHECK_COMPLETE, TIO_EN"},
		{"provisional", p + "provisional_firmware: {mode: enforce, value: some}\n",
			"2: provisional_firmware.value: \"some\" is not one of none"},
		{"versions", p + "report_version: {value: {min: 5, max: 4}}\n",
			"2: report_version.value: min 5 is above max 4"},
		{"no measurement", p + "measurement: {mode: warn, value: []}\n",
			"2: measurement.value: empty, so that no report is acceptable; list some or remove measurement"},
		{"NitroTPM without a mode", p + "nitrotpm: {instance_ids: [i-0123456789abcdef0]}\n", "2: nitrotpm.mode: not set; " +
			"choose require, or accept, under which evidence without a document passes"},
		{"NitroTPM of nothing", p + "nitrotpm: {}\n", "2: nitrotpm.mode: not set; " +
			"choose require, or accept, under which evidence without a document passes"},
		{"NitroTPM of another mode", p + "nitrotpm: {mode: enforce}\n",
			"2: nitrotpm.mode: \"enforce\" is not one of require, accept, refuse"},
		{"NitroTPM refused and pinned", p + "nitrotpm: {mode: refuse, instance_ids: [i-01234567]}\n",
			"2: nitrotpm: instance_ids and pcrs say what a document must be, and mode refuse that there must be none"},
		{"NitroTPM of no instance", p + "nitrotpm: {mode: require, instance_ids: [], pcrs: []}\n",
			"2: nitrotpm.instance_ids: empty, so that it requires nothing; list some, or remove it\n" +
				"2: nitrotpm.pcrs: empty, so that it requires nothing; list some, or remove it"},
		{"NitroTPM of what is no instance", p + "nitrotpm: {mode: require, instance_ids: [ip-10-0-0-1]}\n",
			"2: nitrotpm.instance_ids[0]: \"ip-10-0-0-1\" is not the ID of an EC2 instance"},
		{"registers", p + "nitrotpm:\n  mode: require\n  pcrs:\n" +
			"  - values: [" + pin("4") + "]\n" +
			"  - values: [" + pin("7") + ", " + pin("12") + ", " + pin("7") + "]\n" +
			"  - values: [" + pin("7") + ", " + pin("0") + "]\n" +
			"  - values: [" + pin("7") + ", " + pin("16") + "]\n" +
			"  - values: [" + pin("7") + ", " + pin("5") + "]\n" +
			"  - values: [" + pin("7") + ", {value: " + strings.Repeat("0a", 48) + "}]\n" +
			"  - values: [" + pin("7") + ", {pcr: 4}]\n" +
			"  - {values: [" + pin("7") + "], not_after: never}\n" +
			"  - values: []\n",
			"5: nitrotpm.pcrs[0].values: it pins 4 without 12 or 7: a command line from outside, which switches " +
				"protection off, changes 12 alone (GHSA-xrv8-2pf5-f3q7)\n" +
				"6: nitrotpm.pcrs[1].values[2].pcr: PCR7 stands twice in one set; another value is another set\n" +
				"7: nitrotpm.pcrs[2].values[1].pcr: PCR0 cannot be pinned: AWS gives it one constant value on every " +
				"instance\n" +
				"8: nitrotpm.pcrs[3].values[1].pcr: PCR16 cannot be pinned: root can reset it at any time\n" +
				"9: nitrotpm.pcrs[4].values[1].pcr: PCR5 cannot be pinned: the partition table, which grows at the " +
				"first boot, changes it at the second\n" +
				"10: nitrotpm.pcrs[5].values[1]: no pcr; give the number of the register\n" +
				"11: nitrotpm.pcrs[6].values[1].value: \"\" is not 96 lower-case hexadecimal digits\n" +
				"12: nitrotpm.pcrs[7].not_after: \"never\" is not a day such as \"2027-01-31\"\n" +
				"13: nitrotpm.pcrs[8].values: it pins neither 4, what was started, nor 7, whose signatures Secure Boot " +
				"accepts: an attacker's image can give all other registers any value"},
		{"roots that are not there", p + "roots: none\n", "2: roots: open none: file does not exist"},
		{"roots without a certificate", p + "roots: /etc/empty\n", "2: roots: /etc/empty holds no PEM certificate"},
		{"roots with a key", p + "roots: /etc/key\n",
			"2: roots: /etc/key: entry 0 is \"PRIVATE KEY\", not a certificate"},
		{"roots with a broken certificate", p + "roots: /etc/half\n",
			"2: roots: /etc/half: entry 1: x509: malformed certificate"},
		{"roots that are too large", p + "roots: /etc/large\n", "2: roots: /etc/large is larger than 1048576 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			policy, err := ParsePolicy("c.yaml", []byte(tt.text), read)
			if err == nil {
				t.Fatal("read, want an error")
			}
			if want := "c.yaml:" + strings.ReplaceAll(tt.want, "\n", "\nc.yaml:"); err.Error() != want {
				t.Errorf("got:\n%s\nwant:\n%s", err, want)
			}
			if diff := cmp.Diff(appraise.Policy{}, policy); diff != "" {
				t.Errorf("a policy came with the error:\n%s", diff)
			}
		})
	}
}

// FuzzPolicy holds ParsePolicy to: whatever is in a file, it gives a policy that validates or mistakes that say where.
func FuzzPolicy(f *testing.F) {
	for _, s := range []string{
		"profile: aws-shared\n", "profile: aws-dedicated\nroots: x\nsigner: {mode: warn, value: VLEK}\n",
		"measurement: {value: [a, ~]}\n",
		"profile: &a x\nvmpl: *a\n",
		"profile: aws-shared\nmin_reported_tcb: {mode: enforce, value: {snp: 1, tee: 0x2}}\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		policy, err := ParsePolicy("c.yaml", data, noRoots)
		if err != nil {
			checkLocated(t, err)
			return
		}
		d := newDecoder()
		if validatePolicy(policy, &d.mistakes); d.found != nil {
			t.Errorf("read a policy with mistakes: %v", d.errors())
		}
	})
}

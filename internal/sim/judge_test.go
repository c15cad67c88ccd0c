package sim_test

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"sevagent/internal/appraise"
	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/internal/snp"
)

// judge appraises a report by a built-in policy with these roots, AMD's if they are nil. The signature and the chain
// are verified by go-sev-guest, which knows nothing of the simulator.
func judge(t *testing.T, policyName string, report, table, roots []byte, now time.Time) *appraise.Verdict {
	t.Helper()
	entries := must.Get(snp.ParseCertTable(table))(t, "parse the certificate table")
	policy := must.Get(appraise.Builtin(policyName))(t, "load the policy %s", policyName)
	policy.RootsPEM = roots
	cfg := appraise.Config{Policy: policy, Region: "us-east-2", Own: true}
	verifier := must.Get(appraise.New(cfg))(t, "build the verifier")
	return verifier.Appraise(now, report, [][]byte{entries[0].Data})
}

// TestReportsAreGenuine: the verifier accepts signature and chain of each kind of report by the PSP's roots, and by no
// others.
func TestReportsAreGenuine(t *testing.T) {
	now := time.Now()
	in2023 := sim.DefaultOptions(time.Date(2023, 6, 1, 0, 0, 0, 0, time.UTC))
	for _, c := range []struct {
		name   string
		policy string
		change func(*sim.Options)
		at     time.Time
		code   string // policy_rejected: signature and chain are good
	}{
		{"VLEK", appraise.AWSShared, func(*sim.Options) {}, now, ""},
		{"version 3", appraise.AWSShared, func(o *sim.Options) { o.Version = 3 }, now, ""},
		{"version 2", appraise.AWSShared, func(o *sim.Options) { o.Version = 2 }, now, appraise.CodePolicyRejected},
		{"VCEK", appraise.AWSDedicated, func(o *sim.Options) {
			o.Signer, o.ChipID = snp.SignedByVCEK, [64]byte{1, 2, 3}
		}, now, ""},
		{"older TCB", appraise.AWSShared, func(o *sim.Options) { o.TCB.Microcode = 115 }, now, appraise.CodePolicyRejected},
		{"in 2023", appraise.AWSShared, func(o *sim.Options) { *o = in2023 }, in2023.NotBefore.Add(time.Hour), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			psp := newPSP(t)
			o := sim.DefaultOptions(now)
			c.change(&o)
			must.Do(t, psp.SetOptions(o), "set the options")
			report, table := getReport(t, psp, [snp.ReportDataSize]byte{9})
			if v := judge(t, c.policy, report, table, psp.Roots(), c.at); v.Code != c.code || v.Roots != appraise.RootsCustom {
				t.Errorf("by its own roots: %q %s %s, want %q, custom", v.Code, v.Reason, v.Roots, c.code)
			}
			if v := judge(t, c.policy, report, table, nil, c.at); v.Code != appraise.CodeChainInvalid {
				t.Errorf("by AMD's roots: %s %s %s, want chain_invalid", v.Status, v.Code, v.Reason)
			}
		})
	}
}

func saved(t testing.TB, psp *sim.PSP) string {
	t.Helper()
	dir := t.TempDir()
	must.Do(t, psp.Save(dir), "save the secure processor")
	return dir
}

// TestEveryFlippedBitIsRefused: bits in the signed part, and in R and S.
func TestEveryFlippedBitIsRefused(t *testing.T) {
	now := time.Now()
	psp := newPSP(t)
	report, table := getReport(t, psp, [snp.ReportDataSize]byte{9})
	for bit := 0; bit < 8*(snp.SignedSize+144); bit += 53 { // a prime: every place within a byte
		flipped := append([]byte(nil), report...)
		flipped[bit/8] ^= 1 << (bit % 8)
		if v := judge(t, appraise.AWSShared, flipped, table, psp.Roots(), now); v.Code == "" ||
			v.Code == appraise.CodePolicyRejected {
			t.Errorf("bit %d of byte %#x flipped: the signature is accepted, %q", bit%8, bit/8, v.Code)
		}
	}
}

// TestRootIsShared: reports of processes that load one root verify by it, and its keys are for their owner only.
func TestRootIsShared(t *testing.T) {
	now := time.Now()
	first := must.Get(sim.New(sim.DefaultOptions(now)))(t, "make the first secure processor")
	dir := saved(t, first)
	second := must.Get(sim.Load(dir, sim.DefaultOptions(now)))(t, "load the second from its files")
	report, table := getReport(t, second, zero)
	if v := judge(t, appraise.AWSShared, report, table, first.Roots(), now); v.Status != appraise.Pass {
		t.Errorf("a report of the second by the first's root: %s %s", v.Status, v.Reason)
	}
	text := string(must.Get(os.ReadFile(filepath.Join(dir, "roots.pem")))(t, "read roots.pem"))
	if text != string(first.Roots()) || strings.Contains(text, "PRIVATE") {
		t.Error("roots.pem does not have just the roots")
	}
	for _, name := range []string{"ark.pem", "ask.pem", "asvk.pem"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v, want mode 0600", name, info.Mode(), err)
		}
	}
	// A key of one root with the certificate of another is not a root.
	other := must.Get(sim.New(sim.DefaultOptions(now)))(t, "make a secure processor with another root")
	mine := must.Get(os.ReadFile(filepath.Join(dir, "ark.pem")))(t, "read the first root's file")
	theirs := must.Get(os.ReadFile(filepath.Join(saved(t, other), "ark.pem")))(t, "read the other root's file")
	key, _ := pem.Decode(mine)
	_, cert := pem.Decode(theirs)
	mixed := append(pem.EncodeToMemory(key), cert...)
	must.Do(t, os.WriteFile(filepath.Join(dir, "ark.pem"), mixed, 0o600), "mix the two")
	if _, err := sim.Load(dir, sim.DefaultOptions(now)); err == nil {
		t.Error("Load has accepted a key with another's certificate")
	}
}

// TestLooksLikeEC2 compares every field with the report of a real instance and its VLEK.
func TestLooksLikeEC2(t *testing.T) {
	const real = "../../../shared/testdata/aws-snp"
	raw, err := os.ReadFile(filepath.Join(real, "us-east-2-v5-report.bin"))
	if err != nil {
		t.Skipf("the real reports are missing: %v", err)
	}
	text, err := os.ReadFile(filepath.Join(real, "us-east-2-v5-vlek.pem"))
	if err != nil {
		t.Skipf("the real reports are missing: %v", err)
	}
	want := must.Get(snp.ParseReport(raw))(t, "parse the real report")
	report, table, err := newPSP(t).Report(want.ReportData, want.VMPL)
	must.Do(t, err, "get a simulated report")
	got := must.Get(snp.ParseReport(report))(t, "parse the simulated report")
	ignored := cmpopts.IgnoreFields(snp.Report{}, "Measurement", "ReportID")
	if diff := cmp.Diff(want, got, ignored, cmpopts.IgnoreUnexported(snp.Report{})); diff != "" {
		t.Errorf("the report (-real +simulated):\n%s", diff)
	}

	block, _ := pem.Decode(text)
	realVLEK := must.Get(x509.ParseCertificate(block.Bytes))(t, "parse the real VLEK")
	entries, err := snp.ParseCertTable(table)
	if err != nil || len(entries) != 1 || entries[0].GUID != snp.GUIDVLEK {
		t.Fatalf("certificate table: %v, %v", entries, err)
	}
	vlek := must.Get(x509.ParseCertificate(entries[0].Data))(t, "parse the simulated VLEK")
	values := func(c *x509.Certificate) map[string][]byte {
		m := make(map[string][]byte)
		for _, e := range c.Extensions {
			if !e.Id.Equal(authorityKeyID) { // crypto/x509 adds it
				m[e.Id.String()] = e.Value
			}
		}
		return m
	}
	if diff := cmp.Diff(values(realVLEK), values(vlek)); diff != "" {
		t.Errorf("the VLEK's extensions (-real +simulated):\n%s", diff)
	}
	for _, c := range []struct{ name, got, want string }{
		{"subject", vlek.Subject.String(), realVLEK.Subject.String()},
		{"issuer", vlek.Issuer.String(), realVLEK.Issuer.String()},
		{"signature", vlek.SignatureAlgorithm.String(), realVLEK.SignatureAlgorithm.String()},
	} {
		if c.got != c.want {
			t.Errorf("the VLEK's %s = %s, want %s", c.name, c.got, c.want)
		}
	}
}

var authorityKeyID = asn1.ObjectIdentifier{2, 5, 29, 35}

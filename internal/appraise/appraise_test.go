package appraise_test

import (
	"bytes"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sevagent/internal/appraise"
	"sevagent/internal/appraise/second"
	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/internal/snp"
)

// realReports are reports that are not ours to distribute; tests that need them skip where they are absent.
const realReports = "../../../shared/testdata/aws-snp"

func real(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(realReports, name))
	if err != nil {
		t.Skipf("no real report: %v", err)
	}
	if block, _ := pem.Decode(data); block != nil {
		return block.Bytes
	}
	return data
}

func verifier(t testing.TB, profile string, change func(*appraise.Policy)) *appraise.Verifier {
	t.Helper()
	p := must.Get(appraise.Builtin(profile))(t, "take a built-in policy")
	if change != nil {
		change(&p)
	}
	v := must.Get(appraise.New(appraise.Config{Policy: p, Region: "us-east-2", Second: second.Opinion}))(t, "make a verifier")
	return v
}

func date(t *testing.T, text string) time.Time {
	t.Helper()
	d := must.Get(time.Parse(time.DateOnly, text))(t, "read a date")
	return d
}

// TestRealReports judges reports of EC2 and of a bare Milan host with AMD's own roots.
func TestRealReports(t *testing.T) {
	for _, c := range []struct {
		name, report, cert, at, policy string
		status                         appraise.Status
		code, reason                   string
	}{
		// Both EC2 reports were asked for at VMPL 1, by another tool.
		{"EC2 2026", "us-east-2-v5-report.bin", "us-east-2-v5-vlek.pem",
			"2026-11-25", appraise.AWSShared, appraise.Warned, "policy_rejected", "vmpl is 1"},
		{"EC2 2025", "us-east-2-v3-report.bin", "us-east-2-v3-vlek.der",
			"2025-06-01", appraise.AWSShared, appraise.Warned, "policy_rejected", "vmpl is 1"},
		{"EC2 2025, expired", "us-east-2-v3-report.bin", "us-east-2-v3-vlek.der",
			"2026-11-25", appraise.AWSShared, appraise.Fail, "certificate_expired", "expired at 2025-12-10"},
		{"EC2 2026, too early", "us-east-2-v5-report.bin", "us-east-2-v5-vlek.pem",
			"2026-01-01", appraise.AWSShared, appraise.Fail, "certificate_not_yet_valid", "valid from 2026-03-09"},
		{"another report's VLEK", "us-east-2-v5-report.bin", "us-east-2-v3-vlek.der",
			"2025-06-01", appraise.AWSShared, appraise.Fail, "certificate_mismatch", "do not belong together"},
		{"VCEK for a VLEK report", "us-east-2-v5-report.bin", "milan-b0-v2-vcek.der",
			"2026-11-25", appraise.AWSShared, appraise.Fail, "certificate_missing", "no VLEK certificate"},
		{"old Milan host on shared tenancy", "milan-b0-v2-report.bin", "milan-b0-v2-vcek.der",
			"2025-06-01", appraise.AWSShared, appraise.Fail, "policy_rejected", "signer is VCEK"},
		{"old Milan host on a Dedicated Host", "milan-b0-v2-report.bin", "milan-b0-v2-vcek.der",
			"2025-06-01", appraise.AWSDedicated, appraise.Fail, "policy_rejected", "min_reported_tcb is 3.0.8.115"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := verifier(t, c.policy, nil).Appraise(date(t, c.at), real(t, c.report), [][]byte{real(t, c.cert)})
			if v.Status != c.status || v.Code != c.code || !strings.Contains(v.Reason, c.reason) {
				t.Errorf("%s %s: %s, want %s %s: …%s…", v.Status, v.Code, v.Reason, c.status, c.code, c.reason)
			}
			if v.Roots != appraise.RootsAMD {
				t.Errorf("roots = %s", v.Roots)
			}
		})
	}
}

func TestRealReportOfAnotherRegion(t *testing.T) {
	report, cert := real(t, "us-east-2-v5-report.bin"), real(t, "us-east-2-v5-vlek.pem")
	p := must.Get(appraise.Builtin(appraise.AWSShared))(t, "take a built-in policy")
	v := must.Get(appraise.New(appraise.Config{Policy: p, Region: "eu-west-1"}))(t, "make a verifier")
	if got := v.Appraise(date(t, "2026-11-25"), report, [][]byte{cert}); got.Code != "policy_rejected" ||
		!strings.Contains(got.Reason, "csp_id is CN=cc-us-east-2.amazonaws.com") {
		t.Errorf("%s %s", got.Code, got.Reason)
	}
}

// TestEveryFlippedBitOfARealReportIsRefused: none of them passes, in the signed part nor in the signature.
func TestEveryFlippedBitOfARealReportIsRefused(t *testing.T) {
	report, certs := real(t, "us-east-2-v5-report.bin"), [][]byte{real(t, "us-east-2-v5-vlek.pem")}
	v, at := verifier(t, appraise.AWSShared, nil), date(t, "2026-11-25")
	const signature = snp.SignedSize + 2*72 // what follows R and S is reserved and not covered
	for bit := range signature * 8 {
		if bit%7 != 0 && bit > 64 { // all of the version and SVN, and every seventh further on
			continue
		}
		flipped := bytes.Clone(report)
		flipped[bit/8] ^= 1 << (bit % 8)
		got := v.Appraise(at, flipped, certs)
		if got.Err() == nil {
			t.Fatalf("bit %d of byte %#x: %s", bit%8, bit/8, got.Status)
		}
	}
}

// simulated is a report of the simulator, its certificate and a policy that trusts its root.
type simulated struct {
	psp    *sim.PSP
	report []byte
	cert   []byte
}

func simulate(t testing.TB, now time.Time, fault string, change func(*sim.Options)) simulated {
	t.Helper()
	o := sim.DefaultOptions(now)
	if change != nil {
		change(&o)
	}
	psp := must.Get(sim.New(o))(t, "make a simulator")
	psp.SetFault(fault)
	report, cert := take(t, psp)
	return simulated{psp, report, cert}
}

// take gets a report with its certificate.
func take(t testing.TB, psp *sim.PSP) (report, cert []byte) {
	t.Helper()
	report, raw, err := psp.Report([snp.ReportDataSize]byte{1}, 0)
	must.Do(t, err, "get a report")
	return report, must.Get(snp.ParseCertTable(raw))(t, "parse the certificate table")[0].Data
}

// TestSyntheticReports covers the ground of the real ones with the simulator.
func TestSyntheticReports(t *testing.T) {
	now := time.Now()
	trust := func(s simulated) func(*appraise.Policy) {
		return func(p *appraise.Policy) { p.RootsPEM = s.psp.Roots() }
	}
	good := simulate(t, now, "", nil)
	other := simulate(t, now, "", nil)
	for _, c := range []struct {
		name   string
		s      simulated
		policy func(*appraise.Policy)
		at     time.Time
		status appraise.Status
		code   string
	}{
		{"good", good, trust(good), now, appraise.Pass, ""},
		{"AMD's roots", good, nil, now, appraise.Fail, appraise.CodeChainInvalid},
		{"foreign root", good, trust(other), now, appraise.Fail, appraise.CodeChainInvalid},
		{"foreign VLEK of the same TCB", simulated{good.psp, good.report, other.cert},
			trust(good), now, appraise.Fail, appraise.CodeSignatureInvalid},
		{"expired", good, trust(good), now.AddDate(2, 0, 0), appraise.Fail, appraise.CodeCertificateExpired},
		{"from the future", good, trust(good), now.AddDate(-1, 0, 0), appraise.Fail, appraise.CodeCertificateNotYet},
		{"no certificate", simulated{good.psp, good.report, nil},
			trust(good), now, appraise.Fail, appraise.CodeCertificateMissing},
		{"half a certificate", simulated{good.psp, good.report, good.cert[:300]},
			trust(good), now, appraise.Fail, appraise.CodeCertificateMalformed},
		{"half a report", simulated{good.psp, good.report[:700], good.cert},
			trust(good), now, appraise.Fail, appraise.CodeReportMalformed},
		{"measurement not pinned", good, func(p *appraise.Policy) {
			trust(good)(p)
			p.Measurement = appraise.Rule[[]appraise.Measurement]{Mode: appraise.Enforce,
				Value: []appraise.Measurement{{Value: strings.Repeat("00", 48)}}}
		}, now, appraise.Fail, appraise.CodePolicyRejected},
		{"measurement only warned of", good, func(p *appraise.Policy) {
			trust(good)(p)
			p.Measurement = appraise.Rule[[]appraise.Measurement]{Mode: appraise.Warn}
		}, now, appraise.Warned, appraise.CodePolicyRejected},
	} {
		t.Run(c.name, func(t *testing.T) {
			var certs [][]byte
			if c.s.cert != nil {
				certs = [][]byte{c.s.cert}
			}
			v := verifier(t, appraise.AWSShared, c.policy).Appraise(c.at, c.s.report, certs)
			if v.Status != c.status || v.Code != c.code {
				t.Errorf("%s %s: %s, want %s %s", v.Status, v.Code, v.Reason, c.status, c.code)
			}
			if (v.Err() == nil) != (c.status == appraise.Pass || c.status == appraise.Warned) {
				t.Errorf("Err = %v for %s", v.Err(), v.Status)
			}
		})
	}
	for _, c := range []struct {
		name, fault string
		change      func(*sim.Options)
		status      appraise.Status
		code, text  string
	}{
		{"flipped bit", sim.FaultFlip, nil, appraise.Fail, appraise.CodeSignatureInvalid, ""},
		{"version 6", sim.FaultVersion, nil, appraise.Unsupported, appraise.CodeUnsupportedVersion, "newer than 5"},
		{"unknown policy bit", "", func(o *sim.Options) { o.Policy |= 1 << 40 },
			appraise.Unsupported, appraise.CodeUnsupportedVersion, ""},
		{"debug", "", func(o *sim.Options) { o.Policy |= snp.PolicyDebug },
			appraise.Fail, appraise.CodePolicyRejected, "policy_forbidden"},
		{"alias check", "", func(o *sim.Options) { o.PlatformInfo &^= snp.PlatformAliasCheckComplete },
			appraise.Fail, appraise.CodePolicyRejected, "platform_required"},
		{"old TCB", "", func(o *sim.Options) { o.TCB.Microcode = 200 },
			appraise.Fail, appraise.CodePolicyRejected, "min_reported_tcb"},
		{"mitigations", "", func(o *sim.Options) { o.MitVector = 7 },
			appraise.Fail, appraise.CodePolicyRejected, "mitigation_vector"},
		{"other region", "", func(o *sim.Options) { o.Region = "eu-west-1" },
			appraise.Fail, appraise.CodePolicyRejected, "csp_id"},
		{"VCEK", "", func(o *sim.Options) { o.Signer, o.ChipID[0] = snp.SignedByVCEK, 1 },
			appraise.Fail, appraise.CodePolicyRejected, "signer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := simulate(t, now, c.fault, c.change)
			v := verifier(t, appraise.AWSShared, trust(s)).Appraise(now, s.report, [][]byte{s.cert})
			if v.Status != c.status || v.Code != c.code || !strings.Contains(v.Reason, c.text) {
				t.Errorf("%s %s: %s, want %s %s: …%s…", v.Status, v.Code, v.Reason, c.status, c.code, c.text)
			}
		})
	}
}

// TestCachedChainIsStillJudgedByItsDates: the second appraisal takes the chain from the cache.
func TestCachedChainIsStillJudgedByItsDates(t *testing.T) {
	now := time.Now()
	s := simulate(t, now, "", nil)
	v := verifier(t, appraise.AWSShared, func(p *appraise.Policy) { p.RootsPEM = s.psp.Roots() })
	for _, c := range []struct {
		at   time.Time
		code string
	}{{now, ""}, {now.AddDate(3, 0, 0), appraise.CodeCertificateExpired}, {now, ""}} {
		if got := v.Appraise(c.at, s.report, [][]byte{s.cert}); got.Code != c.code {
			t.Errorf("at %v: %s %s, want %q", c.at, got.Code, got.Reason, c.code)
		}
	}
}

func TestCustomRootsAreChecked(t *testing.T) {
	now := time.Now()
	a, b := simulate(t, now, "", nil).psp.Roots(), simulate(t, now, "", nil).psp.Roots()
	ark := func(roots []byte) []byte { return roots[:bytes.Index(roots, []byte("-----END CERTIFICATE-----\n"))+26] }
	for _, c := range []struct {
		name string
		pem  []byte
		want string
	}{
		{"nothing", []byte{}, "no certificate"},
		{"text", []byte("hello"), "not a PEM certificate"},
		{"no ASK", ark(a), "neither ASK nor ASVK"},
		{"no ARK", a[len(ark(a)):], "no ARK"},
		{"ARK of another, no ASK", append(bytes.Clone(ark(b)), a[bytes.LastIndex(a, []byte("-----BEGIN")):]...), "SEV-VLEK-"},
		{"ARK of another", append(bytes.Clone(ark(b)), a[len(ark(a)):]...), "SEV-"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := must.Get(appraise.Builtin(appraise.AWSShared))(t, "take a built-in policy")
			p.RootsPEM = c.pem
			if _, err := appraise.New(appraise.Config{Policy: p}); err == nil ||
				!strings.Contains(err.Error(), c.want) {
				t.Errorf("err = %v, want one that says %q", err, c.want)
			}
		})
	}
}

// TestHostileReports: whatever the length and the content, the answer is a code.
func TestHostileReports(t *testing.T) {
	now := time.Now()
	s := simulate(t, now, "", nil)
	v := verifier(t, appraise.AWSShared, func(p *appraise.Policy) { p.RootsPEM = s.psp.Roots() })
	long := append(bytes.Clone(s.report), make([]byte, 16)...)
	for n := range 1201 {
		got := v.Appraise(now, long[:n], [][]byte{s.cert})
		if want := n == snp.ReportSize; (got.Err() == nil) != want ||
			!want && got.Code != appraise.CodeReportMalformed {
			t.Fatalf("%d bytes: %s %s", n, got.Status, got.Code)
		}
	}
	unsigned := bytes.Clone(s.report)
	unsigned[0x48] = byte(snp.Unsigned) << 2
	reserved := bytes.Clone(s.report)
	reserved[0x48] = 3 << 2
	for _, c := range []struct {
		name   string
		report []byte
		status appraise.Status
		code   string
	}{
		{"unsigned", unsigned, appraise.Fail, appraise.CodeSignatureInvalid},
		{"signed by a reserved key", reserved, appraise.Fail, appraise.CodeSignatureInvalid},
		{"all ones", bytes.Repeat([]byte{0xff}, snp.ReportSize), appraise.Unsupported, appraise.CodeUnsupportedVersion},
		{"all zeros", make([]byte, snp.ReportSize), appraise.Fail, appraise.CodeReportMalformed},
	} {
		if got := v.Appraise(now, c.report, [][]byte{s.cert}); got.Status != c.status || got.Code != c.code {
			t.Errorf("%s: %s %s, want %s %s", c.name, got.Status, got.Code, c.status, c.code)
		}
	}
}

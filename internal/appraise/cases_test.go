package appraise_test

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sevagent/internal/appraise"
	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/internal/snp"
)

// otherReports are genuine reports of other clouds and hosts, which are not ours to distribute either.
const otherReports = "../../../shared/cases/attestation"

// other reads a report, or the certificates in a file.
func other(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(otherReports, name))
	if err != nil {
		t.Skipf("no real report: %v", err)
	}
	return data
}

func otherCerts(t *testing.T, names ...string) (certs [][]byte) {
	t.Helper()
	for _, name := range names {
		data := other(t, name)
		block, rest := pem.Decode(data)
		if block == nil {
			certs = append(certs, data)
		}
		for ; block != nil; block, rest = pem.Decode(rest) {
			certs = append(certs, block.Bytes)
		}
	}
	return certs
}

// pin lists the report's own chip, as a relying party lists those of its hosts.
func pin(t *testing.T, report []byte) func(*appraise.Policy) {
	t.Helper()
	r := must.Get(snp.ParseReport(report))(t, "parse the report")
	return func(p *appraise.Policy) {
		p.ChipIDs = appraise.Rule[[]string]{Mode: appraise.Enforce, Value: []string{hex.EncodeToString(r.ChipID[:])}}
	}
}

// TestReportsOfOtherMachines: each product by its own minima, in one policy, and whatever is genuine is never called a
// forgery.
func TestReportsOfOtherMachines(t *testing.T) {
	at := time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC)
	genoa := func(p *appraise.Policy) { // one value for all products, as policy files had it before there were several
		value := appraise.ProductRule[snp.TCB]{Mode: appraise.Enforce,
			Value: snp.TCB{Bootloader: 10, SNP: 23, Microcode: 84}}
		p.MinReportedTCB, p.MinCommittedTCB, p.MinLaunchTCB = value, value, value
	}
	turin := func(p *appraise.Policy) {
		min := snp.TCB{FMC: 1, Bootloader: 1, TEE: 1, SNP: 4, Microcode: 81}
		p.MinReportedTCB.ByProduct.Turin, p.MinCommittedTCB.ByProduct.Turin = min, min
		p.MinLaunchTCB.ByProduct.Turin = min
		p.MitigationVector.ByProduct.Turin = 0x3F
	}
	newerTurin := func(p *appraise.Policy) {
		turin(p)
		p.MinLaunchTCB.ByProduct.Turin.FMC = 2
		p.MitigationVector.ByProduct.Turin = 0x7F
	}
	for _, c := range []struct {
		name, report string
		certs        string
		pinned       bool
		change       func(*appraise.Policy)
		status       appraise.Status
		code, reason string // reason: parts of it, separated by |
	}{
		{"Milan", "ms-milan-report.bin", "ms-milan-vcek.pem", true, nil, appraise.Pass, "", ""},
		{"Milan, CR LF", "ms-milan-report.bin", "ms-milan-vcek-crlf.pem", true, nil, appraise.Pass, "", ""},
		{"Milan, nothing pinned", "ms-milan-report.bin", "ms-milan-vcek.pem",
			false, nil, appraise.Fail, "policy_rejected",
			"pinned is nothing (the report has CHIP_ID |sevctl policy pin"},
		{"Azure", "az-milan-v3-report.bin", "az-milan-v3-vcek.der",
			false, nil, appraise.Fail, "policy_rejected", "pinned is nothing"},
		{"Azure, live", "az-live-report.bin", "az-live-vcek.der",
			false, nil, appraise.Fail, "policy_rejected", "pinned is nothing"},
		{"Genoa", "ms-genoa-report.bin", "ms-genoa-vcek.pem", true, nil, appraise.Pass, "", ""},
		{"Genoa of Azure", "az-genoa-report.bin", "az-vcek-genoa.pem", true, nil, appraise.Pass, "", ""},
		{"Genoa of an inference host", "tinfoil-genoa-report.bin",
			"tinfoil-genoa-vcek.der", true, nil, appraise.Pass, "", ""},
		{"Genoa by one value for all", "ms-genoa-report.bin", "ms-genoa-vcek.pem", true, genoa, appraise.Pass, "", ""},
		{"Milan by Genoa's value for all", "ms-milan-report.bin",
			"ms-milan-vcek.pem", true, genoa, appraise.Fail, "policy_rejected",
			"min_reported_tcb is 4.0.24.219, want at least 10.0.23.84"},
		{"Turin", "ms-turin-report.bin", "ms-turin-vcek.pem", true, nil, appraise.Unsupported, "unsupported_product",
			"genuine|min_reported_tcb, min_committed_tcb, min_launch_tcb, mitigation_vector for Turin"},
		{"Turin, nothing pinned", "ms-turin-report.bin", "ms-turin-vcek.pem",
			false, nil, appraise.Unsupported, "unsupported_product", "Turin"},
		{"Turin beside its ASK", "ms-turin-report.bin", "ms-turin-ask.pem ms-turin-vcek.pem",
			true, turin, appraise.Warned, "policy_rejected", "platform_unknown is 0x40"},
		{"Turin by a policy for it", "ms-turin-report.bin", "ms-turin-vcek.pem",
			true, turin, appraise.Warned, "policy_rejected", "platform_unknown is 0x40"},
		{"Turin by a stricter policy", "ms-turin-report.bin",
			"ms-turin-vcek.pem", true, newerTurin, appraise.Fail, "policy_rejected",
			"min_launch_tcb is 1.1.1.4.81, want at least 2.1.1.4.81|mitigation_vector is launch 0x3f, current 0x3f, " +
				"want all bits of 0x7f"},
		{"certificate of another Turin", "ms-turin-report.bin",
			"virtee-turin-vcek.der", true, turin, appraise.Fail, "certificate_mismatch", "1.1.1.4.81"},
		{"certificate of a Genoa for a Turin", "ms-turin-report.bin",
			"ms-genoa-vcek.pem", true, turin, appraise.Fail, "certificate_mismatch",
			"is for TCB 10.0.23.84, the report's REPORTED_TCB is 1.1.1.4.81"},
		{"certificate of a Genoa for a Milan", "ms-milan-report.bin",
			"ms-genoa-vcek.pem", true, nil, appraise.Fail, "certificate_mismatch",
			"is for TCB 10.0.23.84, the report's REPORTED_TCB is 4.0.24.219"},
		{"certificate of another Milan", "ms-milan-report.bin",
			"virtee-milan-vcek.der", true, nil, appraise.Fail, "certificate_mismatch",
			"is for TCB 3.0.8.115, the report's REPORTED_TCB is 4.0.24.219"},
		{"others' certificates before the right one",
			"ms-milan-report.bin", "virtee-milan-vcek.der ms-genoa-vcek.pem virtee-turin-vcek.der az-live-vcek.der" +
				" az-vcek.pem ms-milan-report.bin ms-milan-vcek.pem", true, nil, appraise.Pass, "", ""},
		{"no certificate", "ms-milan-report.bin", "", true, nil,
			appraise.Fail, "certificate_missing", "no VCEK certificate"},
		{"only what is no certificate", "ms-milan-report.bin",
			"ms-milan-report.bin", true, nil, appraise.Fail, "certificate_malformed", "certificate 0"},
		{"version 2", "virtee-milan-report.bin", "virtee-milan-vcek.der", true, nil, appraise.Fail, "policy_rejected",
			"report_version is 2|platform_required|min_reported_tcb is 3.0.8.115, want at least 4.0.24.217"},
		{"version 2 of Azure", "az-hcl-inner-report.bin", "az-vcek.pem",
			true, nil, appraise.Fail, "policy_rejected", "report_version is 2"},
		{"debugged", "gsg-attestation.bin", "gsg-vcek.der", true,
			nil, appraise.Fail, "policy_rejected", "report_version is 2|policy_forbidden is 0xb0000 (SMT, DEBUG)"},
		{"REPORTED_TCB below CURRENT_TCB", "dstack-report.bin",
			"dstack-snp-vcek.pem", true, nil, appraise.Fail, "policy_rejected",
			"min_reported_tcb is 4.0.23.213, want at least 4.0.24.217"},
		{"version 6", "ms-milan-version6.bin", "ms-milan-vcek.pem",
			false, nil, appraise.Unsupported, "unsupported_report_version", "newer than 5"},
	} {
		t.Run(c.name, func(t *testing.T) {
			report := other(t, c.report)[:snp.ReportSize]
			v := verifier(t, appraise.AWSDedicated, func(p *appraise.Policy) {
				if c.pinned {
					pin(t, report)(p)
				}
				if c.change != nil {
					c.change(p)
				}
			})
			for _, when := range []string{"cold", "warm"} {
				got := v.Appraise(at, report, otherCerts(t, strings.Fields(c.certs)...))
				if got.Status != c.status || got.Code != c.code {
					t.Errorf("%s: %s %s: %s, want %s %s", when, got.Status, got.Code, got.Reason, c.status, c.code)
				}
				for _, part := range strings.Split(c.reason, "|") {
					if !strings.Contains(got.Reason, part) {
						t.Errorf("%s: the reason is %q, want %q in it", when, got.Reason, part)
					}
				}
				if strings.Contains(got.String(), "1.1.0.81") {
					t.Errorf("%s: a TCB in the layout of another product: %s", when, got)
				}
			}
		})
	}
	t.Run("later", func(t *testing.T) {
		v := verifier(t, appraise.AWSDedicated, nil)
		got := v.Appraise(at.AddDate(9, 0, 0), other(t, "ms-milan-report.bin"), otherCerts(t, "ms-milan-vcek.pem"))
		if got.Code != appraise.CodeCertificateExpired {
			t.Errorf("%s: %s, want certificate_expired", got.Code, got.Reason)
		}
	})
	t.Run("on shared tenancy", func(t *testing.T) {
		got := verifier(t, appraise.AWSShared, nil).Appraise(at,
			other(t, "ms-milan-report.bin"), otherCerts(t, "ms-milan-vcek.pem"))
		for _, part := range []string{"signer is VCEK", "csp_id is", "chip_id is set"} {
			if got.Code != appraise.CodePolicyRejected || !strings.Contains(got.Reason, part) {
				t.Errorf("%s: %s, want %q in it", got.Code, got.Reason, part)
			}
		}
	})
}

// TestOwnReportsNeedNoPins: a node's gate has no machine of somebody else's to fear.
func TestOwnReportsNeedNoPins(t *testing.T) {
	p := must.Get(appraise.Builtin(appraise.AWSDedicated))(t, "take a built-in policy")
	v := must.Get(appraise.New(appraise.Config{Policy: p, Own: true}))(t, "make a verifier")
	got := v.Appraise(time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC),
		other(t, "ms-milan-report.bin"), otherCerts(t, "ms-milan-vcek.pem"))
	if got.Status != appraise.Pass {
		t.Errorf("%s: %s, want pass", got.Status, got.Reason)
	}
}

// TestPins: any of them will do, and only enforced ones.
func TestPins(t *testing.T) {
	now := time.Now()
	s := simulate(t, now, "", func(o *sim.Options) { o.Signer, o.ChipID = snp.SignedByVCEK, [64]byte{1} })
	measurement := []appraise.Measurement{{Value: strings.Repeat("51", 48)}}
	chip := []string{hex.EncodeToString(append([]byte{1}, make([]byte, 63)...))}
	for name, c := range map[string]struct {
		change func(*appraise.Policy)
		want   appraise.Status
	}{
		"nothing": {func(*appraise.Policy) {}, appraise.Fail},
		"measurement": {func(p *appraise.Policy) {
			p.Measurement = appraise.Rule[[]appraise.Measurement]{Mode: appraise.Enforce, Value: measurement}
		}, appraise.Pass},
		"measurement, warning": {func(p *appraise.Policy) {
			p.Measurement = appraise.Rule[[]appraise.Measurement]{Mode: appraise.Warn, Value: measurement}
		}, appraise.Fail},
		"chip_ids": {func(p *appraise.Policy) {
			p.ChipIDs = appraise.Rule[[]string]{Mode: appraise.Enforce, Value: chip}
		}, appraise.Pass},
		"chip_ids, warning": {func(p *appraise.Policy) {
			p.ChipIDs = appraise.Rule[[]string]{Mode: appraise.Warn, Value: chip}
		}, appraise.Fail},
		"pins switched off": {func(p *appraise.Policy) { p.Pinned.Mode = "" }, appraise.Pass},
		"pins that warn":    {func(p *appraise.Policy) { p.Pinned.Mode = appraise.Warn }, appraise.Warned},
	} {
		v := verifier(t, appraise.AWSDedicated, func(p *appraise.Policy) { p.RootsPEM = s.psp.Roots(); c.change(p) })
		if got := v.Appraise(now, s.report, [][]byte{s.cert}); got.Status != c.want {
			t.Errorf("%s: %s: %s, want %s", name, got.Status, got.Reason, c.want)
		}
	}
}

// TestOddReports are well signed, and say what no genuine report says.
func TestOddReports(t *testing.T) {
	now := time.Now()
	later := now.AddDate(0, 6, 0)
	set := func(at int, value byte) func(*sim.Options) {
		return func(o *sim.Options) { o.Alter = func(report []byte) { report[at] = value } }
	}
	cert := func(change func(*x509.Certificate)) func(*sim.Options) {
		return func(o *sim.Options) { o.AlterCertificate = change }
	}
	extension := func(id string, value ...byte) func(*sim.Options) {
		return cert(func(c *x509.Certificate) {
			for i, e := range c.ExtraExtensions {
				if e.Id.String() == "1.3.6.1.4.1.3704.1."+id {
					c.ExtraExtensions[i].Value = value
				}
			}
		})
	}
	vcek := func(o *sim.Options) { o.Signer, o.ChipID = snp.SignedByVCEK, [64]byte{1} }
	shared := simulate(t, now, "", nil)
	for _, c := range []struct {
		name   string
		change func(*sim.Options)
		at     time.Time
		status appraise.Status
		code   string
		reason string
	}{
		{"reserved byte", set(0x210, 1), now, appraise.Unsupported,
			appraise.CodeUnsupportedVersion, "byte 0x210 is 0x1, and version 5 reserves it"},
		{"reserved flag", set(0x49, 1), now, appraise.Unsupported,
			appraise.CodeUnsupportedVersion, "the flags at 0x48"},
		{"reserved byte of REPORTED_TCB", set(0x182, 1), now,
			appraise.Fail, appraise.CodeCertificateMismatch, "REPORTED_TCB is 4.0.29.222 (0xde1d000000010004)"},
		{"another one", set(0x185, 1), now, appraise.Fail, appraise.CodeCertificateMismatch, "(0xde1d010000000004)"},
		{"SPL4 of the certificate", extension("3.4", 2, 1, 1),
			now, appraise.Fail, appraise.CodeCertificateMismatch, "is for TCB 4.0.29.222 (0xde1d000000010004)"},
		{"SPL7 of the certificate", extension("3.7", 2, 1, 1),
			now, appraise.Fail, appraise.CodeCertificateMismatch, "is for TCB 4.0.29.222 (0xde1d010000000004)"},
		{"product of the certificate", extension("2", append([]byte{0x16, 5}, "Genoa"...)...),
			now, appraise.Fail, appraise.CodeCertificateMismatch,
			`is for the product "Genoa", the report's processor is a Milan`},
		{"processor of another product", set(0x189, 0x11), now,
			appraise.Unsupported, appraise.CodeUnsupportedProduct, `the custom roots do not cover "Genoa"`},
		{"unknown processor", set(0x189, 0x60), now, appraise.Unsupported, appraise.CodeUnsupportedProduct,
			"family 0x19, model 0x60, stepping 0x1, is of a product that this version does not know"},
		{"processor of no family", func(o *sim.Options) { o.Alter = func(r []byte) { clear(r[0x188:0x18B]) } },
			now, appraise.Unsupported, appraise.CodeUnsupportedProduct, "family 0x0"},
		{"stepping of five bits", set(0x18A, 0x11), now, appraise.Unsupported,
			appraise.CodeUnsupportedVersion, "CPUID_STEP"},
		{"COMMITTED above CURRENT", set(0x1E6, 30), now, appraise.Warned, appraise.CodePolicyRejected,
			"tcb_contradiction is COMMITTED_TCB 4.0.30.222 above CURRENT_TCB 4.0.29.222, want none"},
		{"LAUNCH above CURRENT", set(0x1F7, 223), now, appraise.Warned,
			appraise.CodePolicyRejected, "tcb_contradiction is LAUNCH_TCB 4.0.29.223 above"},
		{"REPORTED above CURRENT", set(0x3F, 221), now, appraise.Warned,
			appraise.CodePolicyRejected, "tcb_contradiction is COMMITTED_TCB 4.0.29.222 above CURRENT_TCB 4.0.29.221"},
		{"expired ASVK", func(o *sim.Options) { o.IssuerNotAfter = now.AddDate(0, 3, 0) },
			later, appraise.Fail, appraise.CodeCertificateExpired, "the SEV-VLEK-Milan certificate expired at"},
		{"expired ASK", func(o *sim.Options) { vcek(o); o.IssuerNotAfter = now.AddDate(0, 3, 0) },
			later, appraise.Fail, appraise.CodeCertificateExpired, "the SEV-Milan certificate expired at"},
		{"ASVK that expired before the leaf began", func(o *sim.Options) { o.IssuerNotAfter = now.AddDate(-1, 0, 0) },
			now, appraise.Fail, appraise.CodeCertificateExpired, "SEV-VLEK-Milan"},
		{"hash of the signature", cert(func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA256WithRSAPSS }),
			now, appraise.Fail, appraise.CodeChainInvalid, "not signed by RSA-PSS with SHA-384"},
		{"organisation", cert(func(c *x509.Certificate) { c.Subject.Organization = []string{"Someone"} }),
			now, appraise.Fail, appraise.CodeChainInvalid, `is for "CN=SEV-VLEK,OU=Engineering,O=Someone,`},
		{"two organisations", cert(func(c *x509.Certificate) {
			c.Subject.Organization = append(c.Subject.Organization, "Someone")
		}), now, appraise.Fail, appraise.CodeChainInvalid, "is for"},
		{"an extended key usage", cert(func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}), now, appraise.Fail, appraise.CodeChainInvalid, "an extension that AMD's do not have, 2.5.29.37"},
		{"a CA", cert(func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }),
			now, appraise.Fail, appraise.CodeChainInvalid, "2.5.29.19"},
		{"another extension of AMD's", cert(func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, amdExtension(9, 1))
		}), now, appraise.Fail, appraise.CodeChainInvalid, "3704.1.9.1"},
		{"a critical extension", cert(func(c *x509.Certificate) { c.ExtraExtensions[1].Critical = true }),
			now, appraise.Fail, appraise.CodeChainInvalid, "a critical extension"},
		{"the key identifier of another issuer", cert(func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{
				Id: asn1.ObjectIdentifier{2, 5, 29, 35}, Value: append([]byte{0x30, 22, 0x80, 20}, make([]byte, 20)...),
			})
		}), now, appraise.Fail, appraise.CodeChainInvalid, "was not issued by SEV-VLEK-Milan"},
		{"no SPL", cert(func(c *x509.Certificate) { c.ExtraExtensions = c.ExtraExtensions[:2] }),
			now, appraise.Fail, appraise.CodeChainInvalid, "lacks the extension 1.3.6.1.4.1.3704.1.3.1"},
		{"no CSP_ID", cert(func(c *x509.Certificate) {
			c.ExtraExtensions = c.ExtraExtensions[:len(c.ExtraExtensions)-1]
		}), now, appraise.Fail, appraise.CodeChainInvalid, "3704.1.5"},
		{"a HWID in a VLEK", cert(func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, amdExtension(4))
		}), now, appraise.Fail, appraise.CodeChainInvalid, "3704.1.4"},
		{"SPL above 127", extension("3.2", 2, 2, 0, 128), now,
			appraise.Fail, appraise.CodeChainInvalid, "no number from 0 to 127"},
		{"SPL with a tail", extension("3.2", 2, 1, 0, 0), now,
			appraise.Fail, appraise.CodeChainInvalid, "no number from 0 to 127"},
		{"CSP_ID as UTF-8", extension("5", append([]byte{0x0c, 2}, "CN"...)...),
			now, appraise.Fail, appraise.CodeChainInvalid, "no IA5String"},
		{"CSP_ID that is empty", extension("5", 0x16, 0), now,
			appraise.Fail, appraise.CodeChainInvalid, "no IA5String"},
		{"CSP_ID with a suffix", extension("5", append([]byte{0x16, 34}, "CN=cc-us-east-2.amazonaws.com.evil"...)...),
			now, appraise.Fail, appraise.CodePolicyRejected, "csp_id"},
		{"CSP_ID with a line break", extension("5", append([]byte{0x16, 30}, "CN=cc-us-east-2.amazonaws.com\n"...)...),
			now, appraise.Fail, appraise.CodePolicyRejected, "csp_id"},
		{"another chip", func(o *sim.Options) { vcek(o); o.Alter = func(r []byte) { r[0x1A0] = 2 } },
			now, appraise.Fail, appraise.CodeCertificateMismatch, "another chip"},
		{"HWID in an OCTET STRING", func(o *sim.Options) {
			vcek(o)
			extension("4", slices.Concat([]byte{4, 64}, o.ChipID[:])...)(o)
		}, now, appraise.Fail, appraise.CodeChainInvalid, "hardware ID"},
		{"HWID of 63 bytes", func(o *sim.Options) { vcek(o); extension("4", make([]byte, 63)...)(o) },
			now, appraise.Fail, appraise.CodeChainInvalid, "hardware ID"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := sim.DefaultOptions(now)
			c.change(&o)
			s := shared
			if o.IssuerNotAfter.IsZero() {
				must.Do(t, s.psp.SetOptions(o), "set the options")
				s.report, s.cert = take(t, s.psp)
			} else { // the issuer is part of the root
				s = simulate(t, now, "", c.change)
			}
			v := verifier(t, appraise.AWSShared, func(p *appraise.Policy) { p.RootsPEM = s.psp.Roots() })
			got := v.Appraise(c.at, s.report, [][]byte{s.cert})
			if got.Status != c.status || got.Code != c.code || !strings.Contains(got.Reason, c.reason) {
				t.Errorf("%s %s: %s, want %s %s: …%s…", got.Status, got.Code, got.Reason, c.status, c.code, c.reason)
			}
			if strings.Contains(got.Reason, "go-sev-guest") {
				t.Errorf("only go-sev-guest has noticed: %s", got.Reason)
			}
		})
	}
}

// TestNotAfterIsTheEarliest of the chain.
func TestNotAfterIsTheEarliest(t *testing.T) {
	now := time.Now()
	early := now.AddDate(0, 3, 0).UTC().Truncate(time.Second)
	s := simulate(t, now, "", func(o *sim.Options) { o.IssuerNotAfter = early })
	v := verifier(t, appraise.AWSShared, func(p *appraise.Policy) { p.RootsPEM = s.psp.Roots() })
	for _, when := range []string{"cold", "warm"} {
		if got := v.Appraise(now, s.report, [][]byte{s.cert}); got.Status != appraise.Pass ||
			!got.NotAfter.Equal(early) {
			t.Errorf("%s: %s, not after %v, want pass, %v", when, got.Status, got.NotAfter, early)
		}
	}
}

// TestSimulatedProducts: each by its own line of roots, its own layout and its own minimum.
func TestSimulatedProducts(t *testing.T) {
	now := time.Now()
	minimum := appraise.ByProduct[snp.TCB]{
		Milan: snp.TCB{Bootloader: 4, SNP: 24, Microcode: 217}, Genoa: snp.TCB{Bootloader: 10, SNP: 23, Microcode: 84},
		Bergamo: snp.TCB{Bootloader: 10, SNP: 23, Microcode: 25},
		Turin:   snp.TCB{FMC: 1, Bootloader: 1, TEE: 1, SNP: 4, Microcode: 81},
	}
	vectors := appraise.ByProduct[uint64]{Milan: 0xF, Genoa: 0x1F, Bergamo: 0x2F, Turin: 0x3F}
	for _, c := range []struct {
		product snp.Product
		tcb     snp.TCB
		vector  uint64
		text    string
	}{
		{snp.Milan, minimum.Milan, 0xF, "4.0.24.217"}, {snp.Genoa, minimum.Genoa, 0x1F, "10.0.23.84"},
		{snp.Bergamo, minimum.Bergamo, 0x2F, "10.0.23.25"}, {snp.Turin, minimum.Turin, 0x3F, "1.1.1.4.81"},
	} {
		psp := simulate(t, now, "", func(o *sim.Options) { o.Product = c.product }).psp
		for _, signer := range []snp.SigningKey{snp.SignedByVLEK, snp.SignedByVCEK} {
			for _, below := range []bool{false, true} {
				tcb, vector := c.tcb, c.vector
				if below {
					tcb.SNP--
					vector &^= 1
				}
				o, profile := sim.DefaultOptions(now), appraise.AWSShared
				o.Product, o.TCB, o.MitVector, o.Signer = c.product, tcb, vector, signer
				if signer == snp.SignedByVCEK {
					o.ChipID[0], profile = 7, appraise.AWSDedicated
				}
				must.Do(t, psp.SetOptions(o), "set the options")
				report, cert := take(t, psp)
				v := verifier(t, profile, func(p *appraise.Policy) {
					p.RootsPEM = psp.Roots()
					p.MinReportedTCB.ByProduct, p.MinCommittedTCB.ByProduct,
						p.MinLaunchTCB.ByProduct = minimum, minimum, minimum
					p.MitigationVector.ByProduct = vectors
					p.Pinned.Mode = ""
				})
				got := v.Appraise(now, report, [][]byte{cert})
				if !below && (got.Status != appraise.Pass || got.Product != c.product) {
					t.Errorf("%s by %v: %s: %s, want pass", c.product, signer, got.Status, got.Reason)
				}
				if below && (!strings.Contains(got.Reason, "want at least "+c.text) ||
					!strings.Contains(got.Reason, "mitigation_vector")) {
					t.Errorf("%s by %v, below the minimum: %s: %s", c.product, signer, got.Status, got.Reason)
				}
			}
		}
	}
}

// TestRulesThatDoNotCoverAProduct: what the policy says nothing of is neither passed nor called a forgery.
func TestRulesThatDoNotCoverAProduct(t *testing.T) {
	now := time.Now()
	s := simulate(t, now, "", func(o *sim.Options) { o.Product = snp.Bergamo })
	old := simulate(t, now, "", func(o *sim.Options) {
		o.Product, o.Version = snp.Genoa, 4
		o.TCB = snp.TCB{Bootloader: 10, SNP: 23, Microcode: 84}
	})
	for _, c := range []struct {
		name   string
		s      simulated
		change func(*appraise.Policy)
		status appraise.Status
		reason string
	}{
		{"nothing", s, func(*appraise.Policy) {}, appraise.Unsupported,
			"no min_reported_tcb, min_committed_tcb, min_launch_tcb, mitigation_vector for Bergamo"},
		{"all but one", s, func(p *appraise.Policy) {
			p.MinReportedTCB.Value, p.MinCommittedTCB.Value,
				p.MinLaunchTCB.Value = snp.TCB{SNP: 1}, snp.TCB{SNP: 1}, snp.TCB{SNP: 1}
		}, appraise.Unsupported, "no mitigation_vector for Bergamo"},
		{"rules that are not applied", s, func(p *appraise.Policy) {
			p.MinReportedTCB.Mode, p.MinCommittedTCB.Mode, p.MinLaunchTCB.Mode, p.MitigationVector.Mode = "", "", "", ""
		}, appraise.Pass, ""},
		{"no vector in the report", old, func(*appraise.Policy) {}, appraise.Pass, ""},
	} {
		v := verifier(t, appraise.AWSShared, func(p *appraise.Policy) { p.RootsPEM = c.s.psp.Roots(); c.change(p) })
		got := v.Appraise(now, c.s.report, [][]byte{c.s.cert})
		if got.Status != c.status || !strings.Contains(got.Reason, c.reason) ||
			got.Status == appraise.Unsupported && (got.Code != appraise.CodeUnsupportedProduct || len(got.Rules) > 0) {
			t.Errorf("%s: %s %s: %s, want %s: …%s…", c.name, got.Status, got.Code, got.Reason, c.status, c.reason)
		}
	}
}

// TestOneLineOfOurOwn: where the roots differ, the reason says whose they are, without the library's text.
func TestOneLineOfOurOwn(t *testing.T) {
	now := time.Now()
	s, foreign := simulate(t, now, "", nil), simulate(t, now, "", nil)
	genoa := simulate(t, now, "", func(o *sim.Options) { o.Product = snp.Genoa })
	for _, c := range []struct {
		name  string
		roots []byte
		s     simulated
		code  string
		want  string
	}{
		{"a simulator's by AMD's", nil, s, appraise.CodeChainInvalid,
			"the VLEK certificate was not issued by SEV-VLEK-Milan of the amd roots; " +
				"was it made by a simulator? Then verify it by a policy that names the simulator's roots"},
		{"a simulator's by another's", foreign.psp.Roots(), s, appraise.CodeChainInvalid,
			"the VLEK certificate was not issued by SEV-VLEK-Milan of the custom roots; " +
				"the policy's own roots are for reports of the simulator or laboratory that they come from"},
		{"of another line", foreign.psp.Roots(), genoa, appraise.CodeUnsupportedProduct,
			`the custom roots do not cover "Genoa"`},
		{"VCEK by roots without an ASK", cutASK(s.psp.Roots()),
			simulate(t, now, "", func(o *sim.Options) { o.Signer = snp.SignedByVCEK }),
			appraise.CodeChainInvalid, "the custom roots have no intermediate for a VCEK of Milan"},
	} {
		v := verifier(t, appraise.AWSShared, func(p *appraise.Policy) { p.RootsPEM = c.roots })
		if got := v.Appraise(now, c.s.report, [][]byte{c.s.cert}); got.Code != c.code || got.Reason != c.want {
			t.Errorf("%s: %s: %s, want %s: %s", c.name, got.Code, got.Reason, c.code, c.want)
		}
	}
	got := verifier(t, appraise.AWSShared, nil).Appraise(now, s.report, nil).String()
	if !strings.Contains(got, "signed by VLEK, TCB") {
		t.Errorf("without a CSP_ID: %q", got)
	}
}

// amdExtension is an extension below AMD's arc.
func amdExtension(arcs ...int) pkix.Extension {
	id := append(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}, arcs...)
	return pkix.Extension{Id: id, Value: make([]byte, 64)}
}

// cutASK removes the second of three certificates.
func cutASK(roots []byte) []byte {
	end := []byte("-----END CERTIFICATE-----\n")
	parts := bytes.SplitAfter(roots, end)
	return append(bytes.Clone(parts[0]), parts[2]...)
}

// TestCertificatesInAnyOrder: what is no certificate, and what endorses others, is passed over wherever it stands.
func TestCertificatesInAnyOrder(t *testing.T) {
	now := time.Now()
	s := simulate(t, now, "", nil)
	another := simulate(t, now, "", nil).cert // of the same TCB
	v := verifier(t, appraise.AWSShared, func(p *appraise.Policy) { p.RootsPEM = s.psp.Roots() })
	must.Do(t, s.psp.SetOptions(sim.DefaultOptions(now)), "make another key under the same root")
	report, sister := take(t, s.psp)
	if got := v.Appraise(now, report, [][]byte{sister}); got.Status != appraise.Pass {
		t.Fatalf("the report to remember a certificate by: %s: %s", got.Code, got.Reason)
	}
	o := sim.DefaultOptions(now)
	o.AlterCertificate = func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: []byte{5, 0}})
	}
	must.Do(t, s.psp.SetOptions(o), "make a certificate that is not as AMD's")
	_, odd := take(t, s.psp)
	junk, empty := bytes.Repeat([]byte{0xA5}, 1600), []byte{}
	for name, certs := range map[string][][]byte{
		"junk first": {junk, s.cert}, "junk last": {s.cert, junk},
		"empty": {empty, s.cert, nil}, "half": {s.cert[:700], s.cert},
		"another first": {another, s.cert}, "another last": {s.cert, another},
		"a remembered one first": {sister, s.cert}, "a remembered one last": {s.cert, sister},
		"one that is not as AMD's first": {odd, s.cert},
		"twice":                          {s.cert, s.cert}, "with a tail": {append(bytes.Clone(s.cert), 0), s.cert},
	} {
		if got := v.Appraise(now, s.report, certs); got.Status != appraise.Pass {
			t.Errorf("%s: %s %s: %s, want pass", name, got.Status, got.Code, got.Reason)
		}
	}
	// A thousand certificates do not cost a thousand signatures.
	got := v.Appraise(now, s.report, [][]byte{another, another, another, another, s.cert})
	if got.Code != appraise.CodeSignatureInvalid {
		t.Errorf("behind four others: %s: %s, want signature_invalid: only four are tried", got.Code, got.Reason)
	}
}

// TestProvisionalFirmware: firmware that is not committed, the host may take back.
func TestProvisionalFirmware(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		committed byte // the SNP firmware's version in COMMITTED_TCB
		want      appraise.Status
	}{{29, appraise.Pass}, {28, appraise.Fail}} {
		s := simulate(t, now, "", func(o *sim.Options) { o.Alter = func(r []byte) { r[0x1E6] = c.committed } })
		v := verifier(t, appraise.AWSShared, func(p *appraise.Policy) {
			p.RootsPEM, p.ProvisionalFirmware = s.psp.Roots(), appraise.Rule[string]{Mode: appraise.Enforce, Value: "none"}
		})
		if got := v.Appraise(now, s.report, [][]byte{s.cert}); got.Status != c.want {
			t.Errorf("committed %d, current 29: %s %s, want %s", c.committed, got.Status, got.Reason, c.want)
		}
	}
}

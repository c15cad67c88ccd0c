package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/internal/snp"
	"sevagent/verify"
)

// simulatedReport returns a report and the certificate table that came with it.
func simulatedReport(t testing.TB) (report, table []byte) {
	t.Helper()
	psp := must.Get(sim.New(sim.DefaultOptions(time.Now())))(t, "make a simulated secure processor")
	report, table, err := psp.Report([snp.ReportDataSize]byte{1}, 0)
	must.Do(t, err, "get a report")
	return report, table
}

// TestFindReport: a report is found in the forms that tools give it, and where it is not, the message says what to do.
func TestFindReport(t *testing.T) {
	report, table := simulatedReport(t)
	parsed := must.Get(snp.ParseCertTable(table))(t, "read the certificate table")
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	response := binary.LittleEndian.AppendUint32(make([]byte, 4), snp.ReportSize)
	hexed, b64 := hex.EncodeToString(report), base64.StdEncoding.EncodeToString(report)
	other := bytes.Clone(report)
	other[4]++ // GUEST_SVN: still in the form of a report
	for _, c := range []struct {
		name  string
		data  []byte
		certs int
		want  string // of the error; empty: the report is found
	}{
		{"raw", report, 0, ""},
		{"raw and zeros, as in a page", join(report, make([]byte, 4096-snp.ReportSize)), 0, ""},
		{"with its certificate table", join(report, table), 1, ""},
		{"with its certificate table, hexadecimal", []byte(hex.EncodeToString(join(report, table))), 1, ""},
		{"with something else", join(report, []byte("something else")), 0, "14 bytes that are no certificate table"},
		{"hexadecimal", []byte(hexed), 0, ""},
		{"hexadecimal, upper case, 0x", []byte("0x" + strings.ToUpper(hexed) + "\n"), 0, ""},
		{"hexadecimal in lines", []byte(hexed[:64] + "\r\n " + hexed[64:]), 0, ""},
		{"base64", []byte(b64), 0, ""},
		{"base64 in lines", []byte(b64[:76] + "\n" + b64[76:] + "\n"), 0, ""},
		{"base64url", []byte(base64.RawURLEncoding.EncodeToString(report)), 0, ""},
		{"Azure's", join([]byte("HCLA"), make([]byte, 28), report, []byte("runtime data")), 0, ""},
		{"the kernel's response", join(response, make([]byte, 24), report, make([]byte, 2784)), 0, ""},
		{"after a length", join([]byte{0, 3, 0x81, 0x12}, report, []byte("{}")), 0, ""},
		{"somewhere", join([]byte("header"), report), 0, "offset 6: cut it out with 'tail -c +7 FILE | head -c 1184'"},
		{"the first of two", join([]byte("header"), other, report), 0, "offset 6"},
		{"half", report[:600], 0, "600 bytes in which nothing looks like a report"},
		{"half, hexadecimal", []byte(hexed[:1000]), 0, "500 bytes"},
		{"nothing", nil, 0, "0 bytes"},
		{"zeros", make([]byte, 5000), 0, "nothing looks like a report"},
		{"ones", bytes.Repeat([]byte{0xff}, 5000), 0, "nothing looks like a report"},
		{"text", []byte("the report is here"), 0, "neither hexadecimal nor base64"},
		{"PEM", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: parsed[0].Data}), 0, "given with --cert"},
		{"JSON", fmt.Appendf(nil, `{"a": [1], "e": {"report": %q}}`, b64), 0, "jq -r .e.report FILE"},
		{"JSON with a name that must not be shown", fmt.Appendf(nil, `{"x\u001b[2J": %q}`, b64), 0,
			"can be verified with --report, which"},
		{"half of JSON", []byte(`{"report": "`), 0, "JSON, not an attestation report"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, certs, err := findReport(c.data)
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) || strings.ContainsRune(err.Error(), '\x1b') {
					t.Errorf("error %v, want one that says %q", err, c.want)
				}
				return
			}
			if err != nil || !bytes.Equal(got, report) || len(certs) != c.certs {
				t.Errorf("%d bytes of a report and %d certificates (%v), want the report and %d",
					len(got), len(certs), err, c.certs)
			}
		})
	}
}

// FuzzFindReport: what is found is a part of what was given, and nothing panics.
func FuzzFindReport(f *testing.F) {
	report, table := simulatedReport(f)
	f.Add(report)
	f.Add(append(bytes.Clone(report), table...))
	f.Add([]byte(hex.EncodeToString(report)))
	f.Add([]byte(`{"a": "` + base64.StdEncoding.EncodeToString(report) + `"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		found, certs, err := findReport(data)
		if (err == nil) != (len(found) == snp.ReportSize) || err != nil && certs != nil {
			t.Errorf("%d bytes and %d certificates with error %v", len(found), len(certs), err)
		}
	})
}

func TestSplitCerts(t *testing.T) {
	_, table := simulatedReport(t)
	cert := must.Get(snp.ParseCertTable(table))(t, "read the certificate table")[0].Data
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	crlf := bytes.ReplaceAll(text, []byte("\n"), []byte("\r\n"))
	for name, c := range map[string]struct {
		data []byte
		want int
	}{
		"PEM": {text, 1}, "PEM with CR LF": {crlf, 1}, "two in PEM": {append(bytes.Clone(text), crlf...), 2},
		"text before PEM": {append([]byte("Certificate:\n"), text...), 1}, "DER": {cert, 1},
		"two in DER": {append(bytes.Clone(cert), cert...), 2}, "certificate table": {table, 1},
	} {
		got, err := splitCerts("file", c.data)
		if err != nil || len(got) != c.want || !bytes.Equal(got[0], cert) {
			t.Errorf("%s: %d certificates (%v), want %d", name, len(got), err, c.want)
		}
	}
	other := []byte("AMD's older form")
	if got, err := splitCerts("file", other); err != nil || len(got) != 1 || !bytes.Equal(got[0], other) {
		t.Errorf("what is no certificate is %q (%v), want it as it is, for the verifier to pass over", got, err)
	}
	for name, data := range map[string]string{
		"a key": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "half": string(text[:200]),
	} {
		if got, err := splitCerts("file", []byte(data)); err == nil {
			t.Errorf("%s in PEM is %d certificates, want an error", name, len(got))
		}
	}
}

func TestParseNonce(t *testing.T) {
	raw := bytes.Repeat([]byte{0xfb, 0xef}, 16)
	for text, want := range map[string][]byte{
		hex.EncodeToString(raw):                   raw,
		strings.ToUpper(hex.EncodeToString(raw)):  raw,
		base64.RawURLEncoding.EncodeToString(raw): raw,
		base64.URLEncoding.EncodeToString(raw):    raw,
		// base64url too, and hexadecimal first
		strings.Repeat("a", 64):                bytes.Repeat([]byte{0xaa}, 32),
		"00":                                   {0},
		base64.StdEncoding.EncodeToString(raw): nil,
		strings.Repeat("a", 63):                nil, // a digit is missing; as base64url it is another nonce
		"0x" + hex.EncodeToString(raw) + "\n":  nil,
		base64.RawURLEncoding.EncodeToString(raw)[:42] + "9": nil, // bits that count for nothing
	} {
		if got, err := parseNonce(text); !bytes.Equal(got, want) || (err == nil) != (want != nil) {
			t.Errorf("nonce %q is %x (%v), want %x", text, got, err, want)
		}
	}
}

// realForms are reports that other projects have published. They are not ours to distribute.
const realForms = "../../../shared/cases/attestation"

// TestRealForms: other tools' reports and certificates are read, and found genuine. Which of them a policy accepts is
// not a question here.
func TestRealForms(t *testing.T) {
	if _, err := os.Stat(realForms); err != nil {
		t.Skipf("no real reports: %v", err)
	}
	certs := t.TempDir()
	must.Do(t, os.Symlink(must.Get(filepath.Abs(filepath.Join(realForms, "ms-milan-vcek.pem")))(t, "find the VCEK"),
		filepath.Join(certs, "vcek.pem")), "lay the certificates out as snpguest does")
	for _, c := range []struct {
		report string
		certs  []string
	}{
		{"ms-milan-report.bin", []string{"ms-milan-vcek.pem"}},
		{"ms-milan-report.bin", []string{"ms-milan-vcek-crlf.pem"}},
		{"ms-milan-report.bin", []string{certs}},
		{"ms-milan-report-and-table.bin", nil},
		{"ms-milan-report.b64", []string{"ms-milan-vcek.pem"}},
		{"virtee-milan.hex", []string{"virtee-milan-vcek.der"}},
		{"az-hcl-report.bin", []string{"az-vcek.pem"}},
		{"dstack-snp-attestation.bin", []string{"dstack-snp-vcek.pem"}},
		{"ms-genoa-report.bin", []string{"ms-genoa-vcek.pem"}},
	} {
		t.Run(c.report, func(t *testing.T) {
			raw := reportFlags{cmd: new(cobra.Command), report: filepath.Join(realForms, c.report)}
			for _, file := range c.certs {
				if !filepath.IsAbs(file) {
					file = filepath.Join(realForms, file)
				}
				raw.certs = append(raw.certs, file)
			}
			policy := must.Get(verify.BuiltinPolicy("aws-dedicated"))(t, "take a built-in policy")
			v := must.Get(verify.New(verify.Config{Policy: policy}))(t, "make a verifier")
			at := time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC)
			r := must.Get(raw.verify(v, at, nil))(t, "verify the report")
			if code := r.Verdict.Code; code != "" && code != verify.CodePolicyRejected {
				t.Errorf("%s: %s, want a genuine report", code, r.Verdict.Reason)
			}
		})
	}
	for _, file := range []string{"az-live-evidence.json", "az-milan-v3-attestation.json"} {
		data := must.Get(os.ReadFile(filepath.Join(realForms, file)))(t, "read %s", file)
		if got := whatElse(data); !strings.Contains(got, "jq -r .evidence.hcl_report FILE") {
			t.Errorf("%s: the advice is %q, want it to name .evidence.hcl_report", file, got)
		}
	}
}

// BenchmarkDirectory verifies a thousand documents of their own nonces and reports, under one chain.
func BenchmarkDirectory(b *testing.B) {
	dir := b.TempDir()
	psp := must.Get(sim.New(sim.DefaultOptions(time.Now())))(b, "make a simulated secure processor")
	for i := range 1000 {
		claims := claimsOf(binary.BigEndian.AppendUint64(make([]byte, 24), uint64(i)))
		text, _, _, err := makeEvidence(psp, claims, time.Now())
		must.Do(b, err, "make evidence")
		must.Do(b, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%04d.json", i)), text, 0o600), "write evidence")
	}
	roots := func(string) ([]byte, error) { return psp.Roots(), nil }
	policy := must.Get(verify.ParsePolicy("policy", []byte("profile: aws-shared\nroots: r\n"), roots))(b, "read a policy")
	c := verify.Config{Policy: policy, Region: "us-east-2", AllowCustomRoots: true}
	for b.Loop() {
		v := must.Get(verify.New(c))(b, "make a verifier")
		for _, r := range must.Get(verifyAll(dir, v, verify.Want{AnyNonce: true}))(b, "verify the directory") {
			if r.Verdict.Err() != nil {
				b.Fatalf("%s: %v", r.File, r.Verdict)
			}
		}
	}
}

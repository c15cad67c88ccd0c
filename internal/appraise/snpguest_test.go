package appraise_test

import (
	"bytes"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"sevagent/internal/appraise"
	"sevagent/internal/must"
)

// TestSNPGuest: what is genuine here is so for virtee/snpguest, another implementation, where that is installed.
func TestSNPGuest(t *testing.T) {
	program, err := exec.LookPath("snpguest")
	if err != nil {
		t.Skipf("snpguest is not installed: %v", err)
	}
	for _, c := range []struct{ report, cert, key, at, policy string }{
		{"us-east-2-v5-report.bin", "us-east-2-v5-vlek.pem", "vlek", "2026-11-25", appraise.AWSShared},
		{"us-east-2-v3-report.bin", "us-east-2-v3-vlek.der", "vlek", "2025-06-01", appraise.AWSShared},
		{"milan-b0-v2-report.bin", "milan-b0-v2-vcek.der", "vcek", "2025-06-01", appraise.AWSDedicated},
	} {
		whole, cert := real(t, c.report), real(t, c.cert)
		forged := bytes.Clone(whole)
		forged[0x50] ^= 1 // REPORT_DATA
		for name, report := range map[string][]byte{"as it is": whole, "forged": forged} {
			t.Run(c.report+" "+name, func(t *testing.T) {
				v := verifier(t, c.policy, nil).Appraise(date(t, c.at), report, [][]byte{cert})
				ours := v.Err() == nil || v.Code == appraise.CodePolicyRejected

				dir := t.TempDir()
				text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
				must.Do(t, os.WriteFile(filepath.Join(dir, c.key+".pem"), text, 0o600), "write the certificate")
				file := filepath.Join(dir, "report.bin")
				must.Do(t, os.WriteFile(file, report, 0o600), "write the report")
				out, err := exec.Command(program, "verify", "attestation", "--processor-model", "milan", dir,
					file).CombinedOutput()
				if ours != (err == nil) || ours != (name == "as it is") {
					t.Errorf("genuine: %v here (%v), and snpguest says %v: %s", ours, v.Err(), err, out)
				}
			})
		}
	}
}

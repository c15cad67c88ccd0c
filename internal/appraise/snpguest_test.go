package appraise_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-sev-guest/verify/trust"

	"sevagent/internal/appraise"
	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/internal/snp"
)

// TestSNPGuest: what is genuine here is so for virtee/snpguest, another implementation, where that is installed, and
// what is forged is so for neither. snpguest 0.11.0 accepts more: it looks at no dates, not behind the signature, and
// not at CHIP_ID, since it takes every certificate with SEV in its name for an ASK.
func TestSNPGuest(t *testing.T) {
	program, err := exec.LookPath("snpguest")
	if err != nil {
		t.Skipf("snpguest is not installed: %v", err)
	}
	for _, c := range []struct {
		report, cert, at, policy string
		roots                    []byte
	}{
		{"us-east-2-v5-report.bin", "us-east-2-v5-vlek.pem", "2026-11-25", appraise.AWSShared, trust.AskArkMilanVlekBytes},
		{"us-east-2-v3-report.bin", "us-east-2-v3-vlek.der", "2025-06-01", appraise.AWSShared, trust.AskArkMilanVlekBytes},
		{"milan-b0-v2-report.bin", "milan-b0-v2-vcek.der", "2025-06-01", appraise.AWSDedicated, trust.AskArkMilanVcekBytes},
	} {
		t.Run(c.report, func(t *testing.T) {
			report, cert, v := real(t, c.report), real(t, c.cert), verifier(t, c.policy, nil)
			agrees := func(want bool, report []byte) {
				t.Helper()
				ours := v.Appraise(date(t, c.at), report, [][]byte{cert})
				compare(t, want, ours, snpguest(t, program, snp.Milan, report, cert, c.roots))
			}
			agrees(true, report)
			report[0x50] ^= 1 // REPORT_DATA
			agrees(false, report)
		})
	}

	now := time.Now()
	for _, product := range snp.Products {
		psp := simulate(t, now, "", func(o *sim.Options) { o.Product = product }).psp
		v := verifier(t, appraise.AWSShared, func(p *appraise.Policy) { p.RootsPEM = psp.Roots() })
		foreign := simulate(t, now, "", func(o *sim.Options) { o.Product = product }).psp.Roots()
		for _, signer := range []snp.SigningKey{snp.SignedByVLEK, snp.SignedByVCEK} {
			t.Run(fmt.Sprint(product, " ", signer), func(t *testing.T) {
				o := sim.DefaultOptions(now)
				o.Product, o.Signer, o.ChipID = product, signer, [64]byte{7}
				must.Do(t, psp.SetOptions(o), "set the options")
				report, cert := take(t, psp)
				ours := v.Appraise(now, report, [][]byte{cert})
				compare(t, true, ours, snpguest(t, program, product, report, cert, psp.Roots()))

				forger := verifier(t, appraise.AWSShared, func(p *appraise.Policy) { p.RootsPEM = foreign })
				ours = forger.Appraise(now, report, [][]byte{cert})
				compare(t, false, ours, snpguest(t, program, product, report, cert, foreign))

				for _, at := range []int{0x180, 0x187} { // REPORTED_TCB: bootloader or FMC, microcode
					o.Alter = func(r []byte) { r[at]++ }
					must.Do(t, psp.SetOptions(o), "set the options")
					report, cert := take(t, psp)
					ours := v.Appraise(now, report, [][]byte{cert})
					compare(t, false, ours, snpguest(t, program, product, report, cert, psp.Roots()))
				}
			})
		}
	}
}

func compare(t *testing.T, want bool, ours *appraise.Verdict, theirs error) {
	t.Helper()
	if ours.Genuine() != want || (theirs == nil) != want {
		t.Errorf("genuine: %v here (%v), and snpguest says %v, want %v", ours.Genuine(), ours.Err(), theirs, want)
	}
}

// snpguest has the program verify certificates and report, and returns what it says if it refuses one.
func snpguest(t *testing.T, program string, product snp.Product, report, cert, roots []byte) error {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, data []byte) {
		must.Do(t, os.WriteFile(filepath.Join(dir, name), data, 0o600), "write %s", name)
	}
	write("report.bin", report)
	roots = append(bytes.Clone(roots), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})...)
	for block, rest := pem.Decode(roots); block != nil; block, rest = pem.Decode(rest) {
		name := must.Get(x509.ParseCertificate(block.Bytes))(t, "parse a certificate").Subject.CommonName
		switch base, _, _ := strings.Cut(name, "-"+product.Line()); base {
		case "ARK":
			write("ark.pem", pem.EncodeToMemory(block))
		case "SEV":
			write("ask.pem", pem.EncodeToMemory(block))
		case "SEV-VLEK":
			if name == base {
				write("vlek.pem", pem.EncodeToMemory(block))
			} else {
				write("asvk.pem", pem.EncodeToMemory(block))
			}
		case "SEV-VCEK":
			write("vcek.pem", pem.EncodeToMemory(block))
		}
	}
	for _, args := range [][]string{
		{"certs", dir},
		{"attestation", "--processor-model", strings.ToLower(string(product)), dir, filepath.Join(dir, "report.bin")},
	} {
		if out, err := exec.Command(program, append([]string{"verify"}, args...)...).CombinedOutput(); err != nil {
			return errors.New(strings.Join(strings.Fields(fmt.Sprint(err, " ", string(out))), " "))
		}
	}
	return nil
}

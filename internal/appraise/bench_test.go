package appraise_test

import (
	"crypto/ecdsa"
	"crypto/sha512"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"sevagent/internal/appraise"
	"sevagent/internal/must"
	"sevagent/internal/snp"
)

// BenchmarkFloor is what no appraisal can be faster than: the verification of one P-384 signature, on a real report of
// EC2 where there is one.
func BenchmarkFloor(b *testing.B) {
	s, _, _ := benchReport(b)
	cert := must.Get(x509.ParseCertificate(s.cert))(b, "parse a certificate")
	number := func(raw []byte) *big.Int {
		raw = slices.Clone(raw)
		slices.Reverse(raw)
		return new(big.Int).SetBytes(raw)
	}
	r, t := number(s.report[snp.SignedSize:snp.SignedSize+72]), number(s.report[snp.SignedSize+72:snp.SignedSize+144])
	key, hash := cert.PublicKey.(*ecdsa.PublicKey), sha512.Sum384(s.report[:snp.SignedSize])
	b.ReportAllocs()
	for b.Loop() {
		if !ecdsa.Verify(key, hash[:], r, t) {
			b.Fatal("the signature does not verify")
		}
	}
}

// BenchmarkAppraiseCold judges a report whose certificate is new each time: the whole chain is verified.
func BenchmarkAppraiseCold(b *testing.B) {
	now := time.Now()
	s := simulate(b, now, "", nil)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		v := verifier(b, appraise.AWSShared, func(p *appraise.Policy) { p.RootsPEM = s.psp.Roots() })
		b.StartTimer()
		if got := v.Appraise(now, s.report, [][]byte{s.cert}); got.Status != appraise.Pass {
			b.Fatal(got.Reason)
		}
	}
}

// BenchmarkAppraise judges a report whose certificate is known already.
func BenchmarkAppraise(b *testing.B) {
	s, v, now := benchReport(b)
	b.ReportAllocs()
	for b.Loop() {
		if got := v.Appraise(now, s.report, [][]byte{s.cert}); got.Err() != nil {
			b.Fatal(got.Reason)
		}
	}
}

// benchReport is EC2's report of 2026 with AMD's roots, or where that is absent the simulator's with its own.
func benchReport(b *testing.B) (simulated, *appraise.Verifier, time.Time) {
	b.Helper()
	report, err := os.ReadFile(filepath.Join(realReports, "us-east-2-v5-report.bin"))
	if err != nil {
		b.Logf("a simulated report, since there is no real one: %v", err)
		now := time.Now()
		s := simulate(b, now, "", nil)
		return s, verifier(b, appraise.AWSShared, func(p *appraise.Policy) { p.RootsPEM = s.psp.Roots() }), now
	}
	text := must.Get(os.ReadFile(filepath.Join(realReports, "us-east-2-v5-vlek.pem")))(b, "read a file")
	block, _ := pem.Decode(text)
	now := time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC)
	return simulated{report: report, cert: block.Bytes}, verifier(b, appraise.AWSShared, nil), now
}

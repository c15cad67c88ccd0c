package appraise_test

import (
	"crypto/ecdsa"
	"crypto/sha512"
	"crypto/x509"
	"math/big"
	"slices"
	"testing"
	"time"

	"sevagent/internal/appraise"
	"sevagent/internal/snp"
)

// BenchmarkFloor is what no appraisal can be faster than: the verification of one P-384 signature.
func BenchmarkFloor(b *testing.B) {
	s := simulate(b, time.Now(), "", nil)
	cert, err := x509.ParseCertificate(s.cert)
	if err != nil {
		b.Fatal(err)
	}
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
	now := time.Now()
	s := simulate(b, now, "", nil)
	v := verifier(b, appraise.AWSShared, func(p *appraise.Policy) { p.RootsPEM = s.psp.Roots() })
	b.ReportAllocs()
	for b.Loop() {
		if got := v.Appraise(now, s.report, [][]byte{s.cert}); got.Status != appraise.Pass {
			b.Fatal(got.Reason)
		}
	}
}

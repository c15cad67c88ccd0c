package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"sevagent/internal/cluster"
	"sevagent/internal/evidence"
	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/verify"
)

// TestAnswerOfAnother: evidence that says that it is another instance's is not the answer of the one that was asked.
func TestAnswerOfAnother(t *testing.T) {
	now := time.Now()
	psp := must.Get(sim.New(sim.DefaultOptions(now)))(t, "make a simulated secure processor")
	policy := must.Get(verify.ParsePolicy("p", []byte("profile: aws-shared\nroots: r\n"),
		func(string) ([]byte, error) { return psp.Roots(), nil }))(t, "read a policy")
	v := must.Get(verify.New(verify.Config{Policy: policy, AnyRegion: true, AllowCustomRoots: true}))(t, "make a verifier")
	claims := claimsOf(bytes.Repeat([]byte{1}, 32))
	claims.Instance = evidence.Instance{ID: "i-00000000000000001", Region: "us-east-2", AccountID: "123456789012"}
	text, _, _, err := makeEvidence(psp, claims, now)
	must.Do(t, err, "make evidence")
	for id, want := range map[string]cluster.Status{
		claims.Instance.ID: cluster.Warn, "i-00000000000000002": cluster.Fail,
	} {
		got := attestation(v, cluster.Answer{ID: id, Nonce: claims.Nonce, Document: text})
		if got.Status != want || want == cluster.Fail && !strings.Contains(got.Reason, "the instance "+claims.Instance.ID) {
			t.Errorf("asked of %s: %s (%s), want %s", id, got.Status, got.Reason, want)
		}
	}
}

package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"sevagent/internal/cluster"
	"sevagent/internal/evidence"
	"sevagent/internal/must"
	"sevagent/internal/nitro"
	"sevagent/internal/sim"
	"sevagent/internal/sim/simnitro"
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
		got, _ := attestation(v, cluster.Answer{ID: id, Nonce: claims.Nonce, Document: text})
		if got.Status != want || want == cluster.Fail && !strings.Contains(got.Reason, "the instance "+claims.Instance.ID) {
			t.Errorf("asked of %s: %s (%s), want %s", id, got.Status, got.Reason, want)
		}
	}
}

// TestAnswerSigned: where a node has a NitroTPM, AWS's word for the instance counts, whatever the node claims: a node
// that relays its nonce to the guest of another cannot answer.
func TestAnswerSigned(t *testing.T) {
	now := time.Now()
	psp := must.Get(sim.New(sim.DefaultOptions(now)))(t, "make a simulated secure processor")
	ca := must.Get(simnitro.New())(t, "make a root for NitroTPMs")
	policy := must.Get(verify.ParsePolicy("p", []byte("profile: aws-shared\nroots: r\n"),
		func(string) ([]byte, error) { return append(psp.Roots(), ca.PEM()...), nil }))(t, "read a policy")
	v := must.Get(verify.New(verify.Config{Policy: policy, AnyRegion: true, AllowCustomRoots: true}))(t, "make a verifier")
	const here, there = "i-00000000000000001", "i-00000000000000002"
	for _, c := range []struct {
		claimed, signed string
		want            cluster.Status
		reason          string
	}{
		{here, here, cluster.Warn, ""},
		{"", here, cluster.Warn, ""},
		{"", there, cluster.Fail, "AWS has signed that the instance " + there + " has answered"},
		{here, there, cluster.Fail, "nitrotpm_instance"},
		{there, there, cluster.Fail, "the instance " + there},
	} {
		claims := claimsOf(bytes.Repeat([]byte{1}, 32))
		if c.claimed != "" {
			claims.Instance = evidence.Instance{ID: c.claimed, Region: "us-east-2", AccountID: "123456789012"}
		}
		_, report, cert, err := makeEvidence(psp, claims, now)
		must.Do(t, err, "make a report")
		userData, nonce := nitro.Binding(report)
		second := must.Get(ca.Sign(simnitro.Fields{
			Instance: c.signed, Time: now, UserData: userData[:], Nonce: nonce[:],
		}))(t, "sign a document")
		shared := must.Get(evidence.Share(report, second, [][]byte{cert}, nil, now))(t, "put evidence together")
		doc := must.Get(shared.Document(claims, 0, nil))(t, "put the document together")
		text := must.Get(json.Marshal(doc))(t, "encode it")
		got, _ := attestation(v, cluster.Answer{ID: here, Nonce: claims.Nonce, Document: text})
		if got.Status != c.want || !strings.Contains(got.Reason, c.reason) || got.Signed != (c.want == cluster.Warn) {
			t.Errorf("claims %q, AWS says %s: %s (%s), signed %v", c.claimed, c.signed, got.Status, got.Reason, got.Signed)
		}
	}
}

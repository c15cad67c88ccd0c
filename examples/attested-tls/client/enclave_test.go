package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sevagent/internal/must"
	"sevagent/internal/sim/simnitro"
	"sevagent/verify"
)

// TestVerifyEnclave: what a root that is trusted has signed is the enclave's for this connection in each respect, or
// refused. Anybody with an account can have AWS sign any user_data and nonce.
func TestVerifyEnclave(t *testing.T) {
	now := time.Now()
	ca := must.Get(simnitro.New())(t, "make a root")
	roots := filepath.Join(t.TempDir(), "roots.pem")
	must.Do(t, os.WriteFile(roots, ca.PEM(), 0o644), "write the root")
	verifier := must.Get(enclaveVerifier(roots))(t, "make a verifier")
	userData, nonce := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	pcrs := simnitro.PCRs()
	want := measurements{pcrs[0], pcrs[1], pcrs[2]}
	honest := func() simnitro.Fields {
		return simnitro.Fields{Suffix: "-enc0123456789abcdef", Map: simnitro.MapEnclave, PCRs: simnitro.PCRs(), Time: now,
			UserData: userData, Nonce: nonce}
	}
	for _, c := range []struct {
		name, refused string
		change        func(*simnitro.Fields)
	}{
		{"honest", "", func(*simnitro.Fields) {}},
		{"a NitroTPM", "kind nitrotpm", func(f *simnitro.Fields) { f.Suffix, f.Map = "", "" }},
		{"a sandbox", "kind sandbox", func(f *simnitro.Fields) { f.Suffix = "-sandbox" }},
		{"another PCR0", "PCR0", func(f *simnitro.Fields) { f.PCRs[0][47] ^= 1 }},
		{"another PCR1", "PCR1", func(f *simnitro.Fields) { f.PCRs[1][0] ^= 1 }},
		{"no PCR2", "PCR2", func(f *simnitro.Fields) { delete(f.PCRs, 2) }},
		{"another key", "key of the server's certificate", func(f *simnitro.Fields) { f.UserData = nonce }},
		{"no key", "key of the server's certificate", func(f *simnitro.Fields) { f.UserData = nil }},
		{"another connection", "nonce_mismatch", func(f *simnitro.Fields) { f.Nonce = userData }},
		{"no connection", "nonce_mismatch", func(f *simnitro.Fields) { f.Nonce = nil }},
		{"yesterday", "nitrotpm_expired", func(f *simnitro.Fields) { f.Time = now.Add(-24 * time.Hour) }},
	} {
		f := honest()
		c.change(&f)
		err := verifyEnclave(verifier, want, must.Get(ca.Sign(f))(t, "sign"), userData, nonce, now)
		if c.refused == "" && err != nil || c.refused != "" && (err == nil || !strings.Contains(err.Error(), c.refused)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.refused)
		}
	}
}

// TestRealEnclave: a document of AWS's own passes for its image and its user_data at its time, and for nothing else.
func TestRealEnclave(t *testing.T) {
	doc, err := os.ReadFile("../../../../shared/testdata/nitrotpm/nitro-enclave-2025-12-25.cbor")
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("the real documents are not beside the repository")
	}
	must.Do(t, err, "read a real document")
	verifier := must.Get(enclaveVerifier(""))(t, "make a verifier by AWS's root")
	at := time.Date(2025, 12, 25, 13, 15, 38, 0, time.UTC)
	result := must.Get(verifier.NitroDocument(doc, verify.Want{AnyNonce: true, Now: at}))(t, "verify it")
	real := result.NitroTPM
	want := measurements{real.PCRs[0], real.PCRs[1], real.PCRs[2]}
	must.Do(t, want.check(real, *real.UserData), "compare it with what it says")
	if err := want.check(real, bytes.Repeat([]byte{0xff}, 64)); err == nil {
		t.Error("it passes for a user_data that it does not have")
	}
	want[1] = make([]byte, 48)
	if err := want.check(real, *real.UserData); err == nil {
		t.Error("it passes for another PCR1")
	}
	// It was made for no nonce, and so for no connection.
	err = verifyEnclave(verifier, want, doc, *real.UserData, make([]byte, 32), at)
	if rejection, ok := errors.AsType[*verify.Rejection](err); !ok || rejection.Code != verify.CodeNonceMismatch {
		t.Errorf("for a connection: %v, want %s", err, verify.CodeNonceMismatch)
	}
}

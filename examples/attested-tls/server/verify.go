package main

import (
	"crypto/x509"
	"fmt"

	"sevagent/verify"
)

// verifyPeer reports why the evidence document does not prove that the key of leaf, which the peer has shown to hold
// in this connection, is published on a genuine and acceptable SEV-SNP guest. nonce is what this connection asked for.
func verifyPeer(verifier *verify.Verifier, doc, nonce []byte, leaf *x509.Certificate) error {
	result, err := verifier.Document(doc, verify.Want{
		Nonce:   nonce,
		Key:     leaf.RawSubjectPublicKeyInfo,
		Purpose: verify.PurposeClient,
	})
	if err != nil {
		return fmt.Errorf("verify evidence: %w", err)
	}
	// The key is the peer's. Whether it is published for clients or for servers is the agent's word.
	if result.Binding.Kind != verify.BindClient {
		return fmt.Errorf("verify evidence: binding %q, want %q", result.Binding.Kind, verify.BindClient)
	}
	return nil
}

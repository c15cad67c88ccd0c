package main

import (
	"crypto/x509"
	"errors"
	"fmt"

	"sevagent/verify"
)

// verifyCertificate reports why the evidence that leaf carries does not prove that its key was published on a genuine
// and acceptable SEV-SNP guest when leaf was issued: docs/evidence.md, "In a certificate". found is false if leaf
// carries none.
func verifyCertificate(verifier *verify.Verifier, leaf *x509.Certificate) (found bool, err error) {
	_, err = verifier.Certificate(leaf, verify.Want{AnyNonce: true, Binding: verify.BindClient})
	if rejection, ok := errors.AsType[*verify.Rejection](err); ok && rejection.Code == verify.CodeExtensionMissing {
		return false, nil
	}
	if err != nil {
		return true, fmt.Errorf("verify the certificate's evidence: %w", err)
	}
	return true, nil
}

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

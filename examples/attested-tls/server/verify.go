package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"sevagent/internal/appraise"
	"sevagent/internal/evidence"
)

// verifyPeer reports why the evidence document does not prove that the key of leaf, which the peer has shown to hold
// in this connection, is published on a genuine and acceptable SEV-SNP guest. nonce is what this connection asked for.
func verifyPeer(doc []byte, nonce []byte, leaf *x509.Certificate, verifier *appraise.Verifier, now time.Time) error {
	d, err := evidence.Parse(doc)
	if err != nil {
		return err
	}
	// What the document claims: it is the answer to this connection's nonce, for this connection's key.
	if !bytes.Equal(d.Nonce, nonce) {
		return errors.New("verify evidence: it is for another nonce: made for another connection, or before")
	}
	if d.Purpose != evidence.PurposeClient || d.Binding.Kind != evidence.BindClient {
		return fmt.Errorf("verify evidence: purpose %q, binding %q, want client and client", d.Purpose, d.Binding.Kind)
	}
	if spki := sha256.Sum256(leaf.RawSubjectPublicKeyInfo); !bytes.Equal(d.Binding.SPKISHA256, spki[:]) {
		return fmt.Errorf("verify evidence: it is bound to key %s, and the peer's is %x", d.Binding.SPKISHA256, spki)
	}
	// The report is genuine and acceptable. The document's own verdict is the node's word and is not looked at.
	certs, err := d.Certs()
	if err != nil {
		return fmt.Errorf("verify evidence: %w", err)
	}
	verdict := verifier.Appraise(now, d.Report, certs)
	if err := verdict.Err(); err != nil {
		return fmt.Errorf("verify evidence: %w", err)
	}
	// And the report commits to the claims.
	root, err := d.Root()
	if err != nil {
		return fmt.Errorf("verify evidence: %w", err)
	}
	if verdict.Report.ReportData != root {
		return errors.New("verify evidence: the report's REPORT_DATA does not commit to what the document claims")
	}
	return nil
}

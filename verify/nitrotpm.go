package verify

import (
	"bytes"
	"fmt"
	"strings"

	"sevagent/internal/appraise"
	"sevagent/internal/evidence"
	"sevagent/internal/nitro"
)

// nitroTPM verifies the document of a NitroTPM that evidence has, and applies the policy's rule for it.
func (v *Verifier) nitroTPM(r *Result, d *evidence.Document, w Want) {
	var doc *nitro.Document
	if d.NitroTPM != nil {
		var err error
		if doc, err = v.nitroDocument(r, d.NitroTPM, w); err == nil {
			err = sameNode(doc, d, r.Verdict.CSPID)
		}
		if r.NitroTPM.Check = Verified; err != nil {
			r.NitroTPM.Check = Mismatch
			r.reject(nitro.Code(err), "the NitroTPM's document: "+err.Error())
			return
		}
		// They are compared, and say nothing else.
		r.NitroTPM.UserData, r.NitroTPM.Nonce = nil, nil
	}
	if r.Verdict.Genuine() {
		r.Verdict.ApplyNitroTPM(v.policy, doc, w.now())
	}
}

// nitroDocument verifies a document by itself, and shows it in r. Where any nonce is accepted, so that the evidence may
// be from a file, the document is verified for its own time: its certificates live three hours.
func (v *Verifier) nitroDocument(r *Result, data []byte, w Want) (*nitro.Document, error) {
	r.NitroTPM = new(NitroTPM)
	doc, err := nitro.Verify(data, nitro.Config{
		Roots: v.policy.NitroRoots(), Now: w.now(), Stored: w.AnyNonce, MaxAge: w.MaxAge,
	})
	if err != nil {
		return nil, err
	}
	*r.NitroTPM = NitroTPM{
		Kind: string(doc.Kind), ModuleID: doc.ModuleID, InstanceID: doc.InstanceID, Region: doc.Region,
		Timestamp: doc.Timestamp, PCRs: make(map[int]evidence.Hex),
		UserData: field(doc.UserData), Nonce: field(doc.Nonce), PublicKey: field(doc.PublicKey),
	}
	for i, value := range doc.PCRs {
		r.NitroTPM.PCRs[i] = value[:]
	}
	if image, ok := doc.Image(); ok && doc.Kind == nitro.NitroTPM {
		r.NitroTPM.Image = image[:]
	}
	return doc, nil
}

// field is a field of a document that may be null.
func field(b []byte) *evidence.Hex {
	if b == nil {
		return nil
	}
	h := evidence.Hex(b)
	return &h
}

// sameNode reports why a document is not of the node that the report and the claims are of, or nil. Two vendors name
// one region: AWS in the document, and AMD in the VLEK, whose CSP_ID is known once the report is genuine.
func sameNode(doc *nitro.Document, d *evidence.Document, cspID string) error {
	if err := doc.Binds(d.Report); err != nil {
		return err
	}
	other := func(code, format string, args ...any) error {
		return &nitro.Error{Code: code, Reason: fmt.Sprintf(format, args...)}
	}
	region, ofEC2 := strings.CutPrefix(strings.TrimSuffix(cspID, ".amazonaws.com"), "CN=cc-")
	switch claimed := d.Instance; {
	case ofEC2 && doc.Region != region:
		return other(nitro.CodeRegion, "it is of %s, and the report's CSP_ID is %s", doc.Region, cspID)
	case claimed.Region != "" && doc.Region != claimed.Region:
		return other(nitro.CodeRegion, "it is of %s, and the node claims to be in %s", doc.Region, claimed.Region)
	case claimed.ID != "" && doc.InstanceID != claimed.ID:
		return other(nitro.CodeInstance, "it is of %s, and the node claims to be %s", doc.InstanceID, claimed.ID)
	}
	return nil
}

// NitroDocument verifies a bare document that AWS's Nitro hypervisor has signed: of a NitroTPM, an enclave or a
// sandbox. The Result's NitroTPM says which, and what it says. Want.Nonce is compared with its nonce; with AnyNonce it
// is verified for its own time, and Want.MaxAge bounds its age. It has no key, binding or purpose to compare.
// The policy's rule nitrotpm applies to the document of a NitroTPM; if it requires anything, others are refused.
func (v *Verifier) NitroDocument(document []byte, w Want) (*Result, error) {
	if code, reason := w.check(); code != "" {
		return v.rejected(code, reason)
	}
	if w.Key != nil || w.Binding != "" || w.Purpose != "" {
		return v.rejected(CodeBindingMismatch, "a document of a Nitro hypervisor has no key, binding or purpose to compare")
	}
	roots := appraise.RootsAWS
	if v.policy.NitroRoots() != nil {
		roots = appraise.RootsCustom
	}
	r := v.result(&Verdict{Status: Pass, Policy: v.policy.Name, Roots: roots, Rules: []RuleResult{}})
	doc, err := v.nitroDocument(r, document, w)
	if err != nil {
		r.NitroTPM.Check = Mismatch
		r.reject(nitro.Code(err), err.Error())
		return r, r.Verdict.Err()
	}
	r.NitroTPM.Check = Verified
	if !w.AnyNonce {
		r.Nonce = r.compare(bytes.Equal(doc.Nonce, w.Nonce), CodeNonceMismatch,
			fmt.Sprintf("the document is for nonce %x, and %x is wanted", doc.Nonce, w.Nonce))
	}
	if v.region != "" {
		r.Region = r.compare(doc.Region == v.region, CodeNitroTPMRegion,
			fmt.Sprintf("the document is of %s, and %s is wanted", doc.Region, v.region))
	}
	rule := v.policy.NitroTPM
	if doc.Kind == nitro.NitroTPM {
		r.Verdict.ApplyNitroTPM(v.policy, doc, w.now())
	} else if rule.Mode == appraise.NitroRequire || len(rule.InstanceIDs) > 0 || len(rule.PCRs) > 0 {
		r.reject(CodeNitroTPMKind, fmt.Sprintf("it is the document of %v, and the policy is about nodes", doc.Kind))
	}
	return r, r.Verdict.Err()
}

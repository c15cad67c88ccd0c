package verify

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"sevagent/internal/appraise"
	"sevagent/internal/evidence"
	"sevagent/internal/nitro"
)

// Result is what was found. Its JSON form is the output of sevctl evidence verify --format json.
//
// What it says of purpose, binding, caller and instance is what the document claims. The report vouches for that only
// if Verdict.Err returns nil: that is the error which came with the Result.
type Result struct {
	Verdict *Verdict `json:"verdict"`
	// Nonce, Key and Region say whether what was wanted was found.
	Nonce   Check    `json:"nonce"`
	Key     Check    `json:"key"`
	Region  Check    `json:"region"`
	Purpose Purpose  `json:"purpose,omitempty"`
	Binding *Binding `json:"binding,omitempty"`
	// Caller is who asked for the evidence on the node. It is the word of the node's agent, not of the hardware.
	Caller *Caller `json:"caller,omitempty"`
	// Instance is the EC2 instance that the node says it is, nil if it does not say: its word, too.
	Instance *Instance `json:"instance,omitempty"`
	Report   Report    `json:"report"`
	// NitroTPM is what AWS says of the instance, nil if the evidence does not have it. Anyone on the way can have taken
	// it away: a policy that requires it is all that helps.
	NitroTPM *NitroTPM `json:"nitrotpm,omitempty"`
}

// Check says what became of a comparison.
type Check string

// The outcomes of a comparison.
const (
	NotChecked Check = "not_checked" // not asked for, or not reached
	Verified   Check = "verified"
	Mismatch   Check = "mismatch"
)

// Report has the fields of the attestation report that people compare. They are genuine only under a verdict of pass or
// warn.
type Report struct {
	Version     uint32       `json:"version"`
	VMPL        uint32       `json:"vmpl"`
	Measurement evidence.Hex `json:"measurement"`
	ReportedTCB string       `json:"reported_tcb"`
	ReportData  evidence.Hex `json:"report_data"`
	ReportID    evidence.Hex `json:"report_id"`
	ChipID      evidence.Hex `json:"chip_id"`
}

// NitroTPM is what a document says that AWS's Nitro hypervisor has signed. Its other fields are there only if it is
// genuine, and they are of the node that made the report only if Check is Verified. They say what the instance was
// booted from, not what runs in it.
type NitroTPM struct {
	// Check says whether the document is genuine, for this report and of the region and instance that are claimed.
	Check Check `json:"check"`
	// Kind is NitroTPMDocument, EnclaveDocument or SandboxDocument.
	Kind       string    `json:"kind,omitempty"`
	ModuleID   string    `json:"module_id,omitempty"`
	InstanceID string    `json:"instance_id,omitempty"`
	Region     string    `json:"region,omitempty"`
	Timestamp  time.Time `json:"timestamp,omitzero"` // by AWS's clock
	// PCRs are the registers by number, SHA-384. One that is missing was not said to be zero.
	PCRs map[int]evidence.Hex `json:"pcrs,omitempty"`
	// Image is one digest of PCR4, PCR7 and PCR12: docs/evidence.md.
	Image evidence.Hex `json:"image,omitempty"`
	// UserData, Nonce and PublicKey are the word of the software in the instance or enclave, empty in a document that
	// goes with a report, where they are compared. Absent: null.
	UserData  *evidence.Hex `json:"user_data,omitempty"`
	Nonce     *evidence.Hex `json:"nonce,omitempty"`
	PublicKey *evidence.Hex `json:"public_key,omitempty"`
}

// Kinds of documents.
const (
	NitroTPMDocument = string(nitro.NitroTPM)
	EnclaveDocument  = string(nitro.Enclave)
	SandboxDocument  = string(nitro.Sandbox)
)

// Parts of a Result.
type (
	// Verdict has the outcome of the appraisal, and of each rule of the policy.
	Verdict = appraise.Verdict
	// RuleResult says what became of one rule of the policy.
	RuleResult = appraise.RuleResult
	// Status is the outcome of an appraisal or of one rule.
	Status = appraise.Status
	// Rejection is the error for evidence that must not be relied on: a Code for programs, a Reason for people.
	Rejection = appraise.Rejection
	// Binding names the key that the evidence speaks of.
	Binding = evidence.Binding
	// Caller identifies a process on the node.
	Caller = evidence.Caller
	// CallerKind says where on the node a caller runs.
	CallerKind = evidence.CallerKind
	// Instance is an EC2 instance.
	Instance = evidence.Instance
	// Purpose says what evidence was made for.
	Purpose = evidence.Purpose
)

// Outcomes. Pass and Warn may be relied on.
const (
	Pass        = appraise.Pass
	Warn        = appraise.Warned
	Fail        = appraise.Fail
	Unsupported = appraise.Unsupported
)

// Purposes.
const (
	PurposeBoot   = evidence.PurposeBoot   // the agent's own check before the node joins the cluster
	PurposeMTLS   = evidence.PurposeMTLS   // evidence.json beside the published certificates
	PurposeClient = evidence.PurposeClient // asked for over the local API
)

// Kinds of binding.
const (
	BindNone   = evidence.BindNone
	BindClient = evidence.BindClient
	BindServer = evidence.BindServer
)

// Kinds of callers. What is neither of the first two for certain is unknown.
const (
	CallerHost      = evidence.CallerHost
	CallerContainer = evidence.CallerContainer
	CallerUnknown   = evidence.CallerUnknown
)

// Codes of a Rejection.
const (
	CodeDocumentMalformed = "document_malformed" // a document of ours with something wrong in it
	CodeDocumentForeign   = "document_foreign"   // not a document of ours
	CodeDocumentOlder     = "document_older"     // of an earlier profile, made by an agent that is to be upgraded
	CodeDocumentNewer     = "document_newer"     // of a profile of ours that this version does not know
	CodeNonceRequired     = "nonce_required"     // by the caller of this package
	CodeExtensionMissing  = "extension_missing"  // the certificate carries no evidence
	// CodeDocumentContradicts: members of the document do not agree with each other.
	CodeDocumentContradicts = "document_contradicts"
	CodeNonceMismatch       = "nonce_mismatch"
	CodeBindingMismatch     = "binding_mismatch"
	CodePurposeMismatch     = "purpose_mismatch"
	CodeTooOld              = "too_old"
	CodeFromFuture          = "from_future"

	CodeReportDataMismatch   = appraise.CodeReportDataMismatch
	CodeReportMalformed      = appraise.CodeReportMalformed
	CodeCertificateMissing   = appraise.CodeCertificateMissing
	CodeCertificateMalformed = appraise.CodeCertificateMalformed
	CodeCertificateMismatch  = appraise.CodeCertificateMismatch
	CodeCertificateExpired   = appraise.CodeCertificateExpired
	CodeCertificateNotYet    = appraise.CodeCertificateNotYet
	CodeCertificateRevoked   = appraise.CodeCertificateRevoked
	CodeRevocationUnknown    = appraise.CodeRevocationUnknown
	CodeSignatureInvalid     = appraise.CodeSignatureInvalid
	CodeChainInvalid         = appraise.CodeChainInvalid
	CodePolicyRejected       = appraise.CodePolicyRejected
	CodeUnsupportedVersion   = appraise.CodeUnsupportedVersion
	CodeUnsupportedProduct   = appraise.CodeUnsupportedProduct

	// Of the document of a NitroTPM.
	CodeNitroTPMMalformed  = nitro.CodeMalformed
	CodeNitroTPMKind       = nitro.CodeKind // of an enclave or a sandbox
	CodeNitroTPMChain      = nitro.CodeChain
	CodeNitroTPMSignature  = nitro.CodeSignature
	CodeNitroTPMExpired    = nitro.CodeExpired
	CodeNitroTPMFromFuture = nitro.CodeFromFuture
	CodeNitroTPMTooOld     = nitro.CodeTooOld
	CodeNitroTPMBinding    = nitro.CodeBinding // for another report
	CodeNitroTPMRegion     = nitro.CodeRegion  // of another region than the report, or than the node claims
	CodeNitroTPMInstance   = nitro.CodeInstance
	// Of a policy.
	CodeNitroTPMMissing = appraise.CodeNitroTPMMissing
	CodeNitroTPMRefused = appraise.CodeNitroTPMRefused
	CodeNitroTPMPCRs    = appraise.CodeNitroTPMPCRs
)

// appraise judges the report, and says which region it comes from.
func (v *Verifier) appraise(now time.Time, report []byte, certs [][]byte) *Result {
	r := v.result(v.appraiser.Appraise(now, report, certs))
	if p := r.Verdict.Report; p != nil {
		r.Report = Report{
			Version: p.Version, VMPL: p.VMPL, Measurement: p.Measurement[:], ReportedTCB: p.ReportedTCB.String(),
			ReportData: p.ReportData[:], ReportID: p.ReportID[:], ChipID: p.ChipID[:],
		}
	}
	for _, rule := range r.Verdict.Rules {
		if v.region != "" && rule.Rule == "csp_id" {
			if r.Region = Mismatch; rule.Status == Pass {
				r.Region = Verified
			}
		}
	}
	return r
}

func (v *Verifier) result(verdict *Verdict) *Result {
	return &Result{Verdict: verdict, Nonce: NotChecked, Key: NotChecked, Region: NotChecked}
}

// rejected is the result for what was never appraised.
func (v *Verifier) rejected(code, reason string) (*Result, error) {
	roots := appraise.RootsAMD
	if v.policy.RootsPEM != nil {
		roots = appraise.RootsCustom
	}
	r := v.result(&Verdict{
		Status: Fail, Code: code, Reason: reason, Policy: v.policy.Name, Roots: roots, Rules: []RuleResult{},
	})
	return r, r.Verdict.Err()
}

// compare records an outcome, and rejects the evidence if it is not equal.
func (r *Result) compare(equal bool, code, reason string) Check {
	if equal {
		return Verified
	}
	r.reject(code, reason)
	return Mismatch
}

// reject overrides a verdict that is not a failure yet: a report may be genuine and still not be the answer.
func (r *Result) reject(code, reason string) {
	if r.Verdict.Status != Fail {
		r.Verdict.Status, r.Verdict.Code, r.Verdict.Reason = Fail, code, reason
	}
}

// parseCode returns the code of an error of package evidence, or "" for a document that is just malformed.
func parseCode(err error) string {
	for known, code := range map[error]string{
		evidence.ErrOlder:   CodeDocumentOlder,
		evidence.ErrProfile: CodeDocumentNewer,

		evidence.ErrContradiction:    CodeDocumentContradicts,
		evidence.ErrReportData:       CodeReportDataMismatch,
		evidence.ErrNoExtension:      CodeExtensionMissing,
		evidence.ErrForeignExtension: CodeDocumentForeign,
	} {
		if errors.Is(err, known) {
			return code
		}
	}
	return ""
}

// form says what is wrong with a document that does not parse: whether it is one of ours at all.
func form(doc []byte, err error) (code, reason string) {
	var named struct {
		Profile *string `json:"eat_profile"`
	}
	code = parseCode(err)
	if code != "" && code != CodeDocumentNewer {
		return code, err.Error()
	}
	family, _, _ := strings.Cut(evidence.Profile, "#")
	switch json.Unmarshal(doc, &named) {
	case nil:
		if named.Profile == nil {
			return CodeDocumentForeign, "JSON, and not sevagent's evidence: it has no eat_profile"
		}
		if !strings.HasPrefix(*named.Profile, family) {
			return CodeDocumentForeign, fmt.Sprintf("not sevagent's evidence: its eat_profile is %.64q", *named.Profile)
		}
	default:
		if !bytes.HasPrefix(bytes.TrimSpace(doc), []byte("{")) {
			return CodeDocumentForeign, "not JSON, and so not sevagent's evidence"
		}
	}
	return cmp.Or(code, CodeDocumentMalformed), err.Error()
}

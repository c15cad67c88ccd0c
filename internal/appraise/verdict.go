package appraise

import (
	"fmt"
	"strings"
	"time"

	"sevagent/internal/snp"
)

// Status is the outcome of an appraisal or of one rule.
type Status string

// The outcomes.
const (
	Pass Status = "pass"
	// Warned: genuine, but a rule that only warns does not hold.
	Warned Status = "warn"
	// Fail: not genuine, or an enforced rule does not hold.
	Fail Status = "fail"
	// Unsupported: of a report version or a product that this code or the policy cannot appraise. Neither accepted nor
	// refused; the raw evidence is passed on.
	Unsupported Status = "unsupported_report_version"
)

// Codes of a verdict that is not a pass. They are part of the local API.
const (
	CodeReportMalformed       = "report_malformed"
	CodeCertificateMissing    = "certificate_missing"
	CodeCertificateMalformed  = "certificate_malformed"
	CodeCertificateMismatch   = "certificate_mismatch"
	CodeCertificateExpired    = "certificate_expired"
	CodeCertificateNotYet     = "certificate_not_yet_valid"
	CodeSignatureInvalid      = "signature_invalid"
	CodeChainInvalid          = "chain_invalid"
	CodePolicyRejected        = "policy_rejected"
	CodeUnsupportedVersion    = string(Unsupported)
	CodeUnsupportedProduct    = "unsupported_product"
	CodeReportDataMismatch    = "report_data_mismatch"
	CodeVerificationPanicking = "verifier_panic"
)

// Verdict is the result of an appraisal.
type Verdict struct {
	Status Status `json:"status"`
	// Code and Reason are set unless Status is pass: why, for programs and for people.
	Code   string `json:"code,omitempty"`
	Reason string `json:"reason,omitempty"`
	Policy string `json:"policy"`
	// Roots is "amd", or "custom" if the policy brought its own trust anchors.
	Roots string `json:"roots"`
	// Signer, CSPID and NotAfter describe the endorsement key's certificate.
	Signer   string    `json:"signer,omitempty"`
	CSPID    string    `json:"csp_id,omitempty"`
	NotAfter time.Time `json:"not_after,omitzero"`
	// Rules has one entry for each rule of the policy that was applied, in a fixed order.
	Rules []RuleResult `json:"rules"`

	// Product is the processor's, once the report is known to be genuine.
	Product snp.Product `json:"-"`
	// Report is the parsed report, nil if it could not be parsed.
	Report *snp.Report `json:"-"`
}

// RuleResult says what became of one rule.
type RuleResult struct {
	Rule     string `json:"rule"`
	Mode     Mode   `json:"mode"`
	Status   Status `json:"status"`
	Observed string `json:"observed"`
	Required string `json:"required"`
}

// String describes v in one line.
func (v *Verdict) String() string {
	text := fmt.Sprintf("%s (policy %s, roots: %s", v.Status, v.Policy, v.Roots)
	if v.Signer != "" {
		text += ", signed by " + strings.TrimSpace(v.Signer+" "+v.CSPID)
	}
	if v.Report != nil {
		text += ", TCB " + v.Report.ReportedTCB.String()
	}
	return text + ")"
}

// Genuine reports whether the report is genuine, whatever the policy says of it. What any other report shows is only
// its maker's claim.
func (v *Verdict) Genuine() bool { return v.Product != "" }

// Err returns nil for evidence that may be relied on (pass and warn), else a *Rejection.
func (v *Verdict) Err() error {
	if v.Status == Pass || v.Status == Warned {
		return nil
	}
	return &Rejection{Code: v.Code, Reason: v.Reason}
}

// Rejection is the error form of a verdict.
type Rejection struct{ Code, Reason string }

func (r *Rejection) Error() string { return r.Code + ": " + r.Reason }

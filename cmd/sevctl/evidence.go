package main

import (
	"bytes"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"sevagent/internal/appraise"
	"sevagent/internal/cli"
	"sevagent/internal/config"
	"sevagent/internal/evidence"
	"sevagent/internal/snp"
)

// appraisal holds the flags that say how evidence is appraised.
type appraisal struct {
	policy, region   string
	allowCustomRoots bool
}

// reportFlags name a bare report and the time to appraise it at.
type reportFlags struct {
	report, at string
	certs      []string
}

func (r *reportFlags) add(cmd *cobra.Command, report string) {
	f := cmd.Flags()
	f.StringVar(&r.report, "report", "", report)
	f.StringArrayVar(&r.certs, "cert", nil,
		"a `FILE` with the report's VLEK or VCEK certificate,\nPEM or DER; repeatable")
	f.StringVar(&r.at, "at", "", "verify as of this `TIME`, RFC 3339 (default: now)")
}

func evidenceCommand() *cobra.Command {
	var (
		appraisal appraisal
		raw       reportFlags
		nonceHex  string
		out       *output
	)
	cmd := &cobra.Command{
		Use:   "verify [FILE]",
		Short: "Verify evidence offline",
		Long: `Verify evidence offline, against AMD's embedded roots and a policy. Evidence is
a document (FILE, or - for standard input) or, with --report, a raw attestation
report that another tool made, with its certificate.

Exit status 0 if the evidence is acceptable, 1 if not, 2 for wrong usage.`,
		Example: `  sevctl evidence verify evidence.json --region us-east-2 \
    --nonce 00112233445566778899aabbccddeeff
  sevctl evidence verify --report report.bin --cert vlek.pem`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == (raw.report != "") {
				return cli.Usagef("give either a FILE or --report, as in 'sevctl evidence verify evidence.json'")
			}
			if err := out.check(); err != nil {
				return err
			}
			nonce, err := hex.DecodeString(nonceHex)
			if err != nil {
				return cli.Usagef("--nonce is not hexadecimal: %w", err)
			}
			now, err := raw.time()
			if err != nil {
				return err
			}
			verifier, err := appraisal.verifier()
			if err != nil {
				return err
			}

			var r *result
			if raw.report != "" {
				r, err = raw.verify(verifier, now, nonce)
			} else {
				r, err = verifyFile(cmd.InOrStdin(), args[0], verifier, now, nonce)
			}
			if err != nil {
				return err
			}

			print := r.text
			if out.format == "json" {
				print = func(w io.Writer) error { return encode(w, r) }
			}
			if err := out.write(cmd, print); err != nil {
				return err
			}
			if err := r.Verdict.Err(); err != nil {
				return fmt.Errorf("verify evidence: %w", err)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&nonceHex, "nonce", "", "the requested nonce in `HEX`; without it, evidence\nmay be a replay")
	f.StringVar(&appraisal.policy, "policy", appraise.AWSShared,
		"aws-shared, aws-dedicated or a `FILE`\n")
	f.StringVar(&appraisal.region, "region", "", "the EC2 `REGION` that the evidence must come from")
	f.BoolVar(&appraisal.allowCustomRoots, "allow-custom-roots", false,
		"accept a policy with its own roots, as simulators\nhave: such evidence proves nothing about hardware")
	raw.add(cmd, "a `FILE` with a raw attestation report of 1184 bytes,\ninstead of a document")
	out = outputFlags(cmd, "text", "json")
	return cmd
}

// verifier returns a verifier for the policy and region of the flags.
func (a *appraisal) verifier() (*appraise.Verifier, error) {
	policy, err := config.LoadPolicy(a.policy)
	if err != nil {
		return nil, cli.Usage(err)
	}
	if policy.RootsPEM != nil && !a.allowCustomRoots {
		return nil, cli.Usagef(
			"policy %s has its own roots; give --allow-custom-roots to accept them, as for a simulator", a.policy)
	}
	v, err := appraise.New(appraise.Config{Policy: policy, Region: a.region})
	if err != nil {
		return nil, cli.Usagef("policy %s: %w", a.policy, err)
	}
	return v, nil
}

// verifyFile verifies the document in a file, or in stdin if file is "-".
func verifyFile(stdin io.Reader, file string, v *appraise.Verifier, now time.Time, nonce []byte) (*result, error) {
	data, err := readInput(stdin, file, evidence.MaxDocument)
	if err != nil {
		return nil, err
	}
	r, err := verifyDocument(data, v, now, nonce)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return r, nil
}

// verifyDocument checks that the report of a document is genuine and acceptable, and that its REPORT_DATA commits to
// what the document says, the nonce among it. Without a nonce, that one is not checked.
func verifyDocument(data []byte, v *appraise.Verifier, now time.Time, nonce []byte) (*result, error) {
	doc, err := evidence.Parse(data)
	if errors.Is(err, evidence.ErrReportData) {
		return nil, fmt.Errorf("%s: %w", appraise.CodeReportDataMismatch, err)
	}
	if err != nil {
		return nil, err
	}
	certs, err := doc.Certs()
	if err != nil {
		return nil, err
	}

	r := newResult(v.Appraise(now, doc.Report, certs))
	r.Purpose, r.Binding, r.Caller = doc.Purpose, &doc.Binding, &doc.Caller
	if doc.Instance != (evidence.Instance{}) {
		r.Instance = &doc.Instance
	}
	if len(nonce) > 0 {
		r.checkNonce(bytes.Equal(doc.Nonce, nonce),
			fmt.Sprintf("the evidence is for nonce %x, not for the requested one", doc.Nonce))
	}
	return r, nil
}

// verify verifies a bare report. The tool that made it may have put its nonce into REPORT_DATA as it stands.
func (raw *reportFlags) verify(v *appraise.Verifier, now time.Time, nonce []byte) (*result, error) {
	report, err := readInput(nil, raw.report, snp.ReportSize)
	if err != nil {
		return nil, err
	}
	var certs [][]byte
	for _, file := range raw.certs {
		data, err := readInput(nil, file, snp.MaxCertTableSize)
		if err != nil {
			return nil, err
		}
		block, rest := pem.Decode(data)
		if block == nil {
			certs = append(certs, data) // DER
		}
		for ; block != nil; block, rest = pem.Decode(rest) {
			certs = append(certs, block.Bytes)
		}
	}

	r := newResult(v.Appraise(now, report, certs))
	if r.Verdict.Report != nil && len(nonce) > 0 {
		padded := make([]byte, snp.ReportDataSize)
		fits := copy(padded, nonce) == len(nonce)
		r.checkNonce(fits && bytes.Equal(padded, r.Verdict.Report.ReportData[:]),
			"REPORT_DATA is not the nonce padded with zeros")
	}
	return r, nil
}

// time is when to appraise.
func (raw *reportFlags) time() (time.Time, error) {
	if raw.at == "" {
		return time.Now(), nil
	}
	at, err := time.Parse(time.RFC3339, raw.at)
	if err != nil {
		return at, cli.Usagef("--at is not a time such as 2026-01-31T12:00:00Z: %w", err)
	}
	return at, nil
}

// readInput reads a file or, if that is "-" and stdin not nil, standard input. It refuses more than max bytes.
func readInput(stdin io.Reader, file string, max int64) ([]byte, error) {
	in := stdin
	if file != "-" || stdin == nil {
		f, err := os.Open(file)
		if err != nil {
			return nil, cli.Usagef("read evidence: %w", err)
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, max+1))
	if err != nil {
		return nil, cli.Usagef("read %s: %w", file, err)
	}
	if int64(len(data)) > max {
		return nil, fmt.Errorf("read %s: more than %d bytes", file, max)
	}
	return data, nil
}

// result is the verdict on evidence with what it was about, and the JSON output.
type result struct {
	Verdict *appraise.Verdict `json:"verdict"`
	// Nonce is verified, or not_checked if none was given.
	Nonce   string            `json:"nonce"`
	Purpose evidence.Purpose  `json:"purpose,omitempty"`
	Binding *evidence.Binding `json:"binding,omitempty"`
	Caller  *evidence.Caller  `json:"caller,omitempty"`
	// Instance is what the node says it is, and nil if it does not.
	Instance *evidence.Instance `json:"instance,omitempty"`
	Report   reportSummary      `json:"report"`
}

type reportSummary struct {
	Version     uint32       `json:"version"`
	Measurement evidence.Hex `json:"measurement"`
	ReportedTCB string       `json:"reported_tcb"`
	ReportData  evidence.Hex `json:"report_data"`
	ReportID    evidence.Hex `json:"report_id"`
	ChipID      evidence.Hex `json:"chip_id"`
}

func newResult(v *appraise.Verdict) *result {
	r := &result{Verdict: v, Nonce: "not_checked"}
	if p := v.Report; p != nil {
		r.Report = reportSummary{
			Version: p.Version, Measurement: p.Measurement[:], ReportedTCB: p.ReportedTCB.String(),
			ReportData: p.ReportData[:], ReportID: p.ReportID[:], ChipID: p.ChipID[:],
		}
	}
	return r
}

// checkNonce records whether the evidence is for the nonce that was asked for, and if not why.
func (r *result) checkNonce(equal bool, reason string) {
	if !equal {
		r.reject("nonce_mismatch", reason)
		return
	}
	r.Nonce = "verified"
}

// reject overrides a verdict that is not a failure yet: a report may be genuine and still not be the answer.
func (r *result) reject(code, reason string) {
	if r.Verdict.Status != appraise.Fail {
		r.Verdict.Status, r.Verdict.Code, r.Verdict.Reason = appraise.Fail, code, reason
	}
}

// text writes the result for people.
func (r *result) text(w io.Writer) error {
	var b bytes.Buffer
	v := r.Verdict
	fmt.Fprintf(&b, "verdict      %s%s\n", v.Status, because(v))
	fmt.Fprintf(&b, "policy       %s\nroots        %s\n", v.Policy, v.Roots)
	if v.Roots == appraise.RootsCustom {
		fmt.Fprintln(&b, "             these are not AMD's roots: this proves nothing about real hardware")
	}
	fmt.Fprintf(&b, "nonce        %s\n", r.Nonce)
	if r.Binding != nil {
		fmt.Fprintf(&b, "purpose      %s\nbinding      %s %s\n", r.Purpose, r.Binding.Kind, r.Binding.SPKISHA256)
		fmt.Fprintf(&b, "caller       %s\n", r.Caller)
		if r.Instance != nil {
			fmt.Fprintf(&b, "instance     %s %s %s\n", r.Instance.ID, r.Instance.Region, r.Instance.AccountID)
		}
	}
	if v.Report != nil {
		fmt.Fprintf(&b, "report       version %d, TCB %s, measurement %s\n",
			r.Report.Version, r.Report.ReportedTCB, r.Report.Measurement)
		fmt.Fprintf(&b, "signed by    %s %s", v.Signer, v.CSPID)
		if !v.NotAfter.IsZero() {
			fmt.Fprintf(&b, ", certificate valid until %s", v.NotAfter.UTC().Format(time.RFC3339))
		}
		fmt.Fprintln(&b)
	}
	for _, rule := range v.Rules {
		fmt.Fprintf(&b, "  %-4s  %s: %s (want %s)\n", rule.Status, rule.Rule, rule.Observed, rule.Required)
	}
	_, err := b.WriteTo(w)
	return err
}

// because is why a verdict is not a pass, in parentheses.
func because(v *appraise.Verdict) string {
	if v.Code == "" {
		return ""
	}
	return fmt.Sprintf(" (%s: %s)", v.Code, v.Reason)
}

package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
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

// verifyOptions are the flags of sevctl evidence verify.
type verifyOptions struct {
	nonce, policy, at, region, output string
	report                            string
	certs                             []string
	allowCustomRoots                  bool
}

func evidenceCommand() *cobra.Command {
	var o verifyOptions
	cmd := &cobra.Command{
		Use:   "verify [FILE]",
		Short: "Verify evidence offline",
		Long: `Verify evidence offline, against AMD's embedded roots and a policy: an evidence document (FILE, or - for standard
input), or with --report a raw attestation report that another tool made, with its certificate.

Exit status 0 if the evidence may be relied on, 1 if not, 2 for wrong usage.`,
		Example: `  sevctl evidence verify evidence.json --nonce 00112233445566778899aabbccddeeff --region us-east-2
  sevctl evidence verify --report report.bin --cert vlek.pem`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return o.verify(cmd, args) },
	}
	f := cmd.Flags()
	f.StringVar(&o.nonce, "nonce", "", "the nonce that was asked for, in hex; without it, the evidence may be a replay")
	f.StringVar(&o.policy, "policy", appraise.AWSShared, "a built-in policy (aws-shared, aws-dedicated) or a policy file")
	f.StringVar(&o.at, "at", "", "judge as of this time, RFC 3339 (default: now)")
	f.StringVar(&o.region, "region", "", "the EC2 region that the evidence must come from")
	f.StringVar(&o.output, "output", "text", "text or json")
	f.StringVar(&o.report, "report", "", "a raw attestation report of 1184 bytes instead of a document")
	f.StringArrayVar(&o.certs, "cert", nil, "the report's VLEK or VCEK certificate, PEM or DER; repeatable")
	f.BoolVar(&o.allowCustomRoots, "allow-custom-roots", false, "accept a policy with roots of its own, as simulators have: such evidence proves nothing about hardware")
	return cmd
}

// result is the JSON output.
type result struct {
	Verdict *appraise.Verdict `json:"verdict"`
	// Nonce is verified, or not_checked if none was given.
	Nonce   string            `json:"nonce"`
	Purpose evidence.Purpose  `json:"purpose,omitempty"`
	Binding *evidence.Binding `json:"binding,omitempty"`
	Caller  *evidence.Caller  `json:"caller,omitempty"`
	Report  reportSummary     `json:"report"`
}

type reportSummary struct {
	Version     uint32       `json:"version"`
	Measurement evidence.Hex `json:"measurement"`
	ReportedTCB string       `json:"reported_tcb"`
	ReportData  evidence.Hex `json:"report_data"`
	ReportID    evidence.Hex `json:"report_id"`
	ChipID      evidence.Hex `json:"chip_id"`
}

func (o *verifyOptions) verify(cmd *cobra.Command, args []string) error {
	if (len(args) == 1) == (o.report != "") {
		return cli.Usagef("give an evidence document or --report, and not both")
	}
	if o.output != "text" && o.output != "json" {
		return cli.Usagef("--output is %q, want text or json", o.output)
	}
	now, err := o.now()
	if err != nil {
		return err
	}
	verifier, err := o.verifier()
	if err != nil {
		return err
	}
	var r *result
	if o.report != "" {
		r, err = o.verifyReport(verifier, now)
	} else {
		r, err = o.verifyDocument(cmd.InOrStdin(), verifier, now, args[0])
	}
	if err != nil {
		return err
	}
	if o.output == "json" {
		enc := json.NewEncoder(cmd.OutOrStdout())
		enc.SetIndent("", "  ")
		err = enc.Encode(r)
	} else {
		err = r.print(cmd.OutOrStdout())
	}
	if err != nil {
		return err
	}
	if err := r.Verdict.Err(); err != nil {
		return fmt.Errorf("verify evidence: %w", err)
	}
	return nil
}

func (o *verifyOptions) verifier() (*appraise.Verifier, error) {
	policy, err := config.LoadPolicy(o.policy)
	if err != nil {
		return nil, cli.Usage(err)
	}
	if policy.RootsPEM != nil && !o.allowCustomRoots {
		return nil, cli.Usagef("policy %s brings roots of its own; give --allow-custom-roots if that is what you want, for a simulator say", o.policy)
	}
	v, err := appraise.New(appraise.Config{Policy: policy, Region: o.region})
	if err != nil {
		return nil, cli.Usagef("policy %s: %w", o.policy, err)
	}
	return v, nil
}

// verifyDocument checks that the report is genuine and acceptable, and that its REPORT_DATA commits to what the
// document says.
func (o *verifyOptions) verifyDocument(stdin io.Reader, verifier *appraise.Verifier, now time.Time, file string) (*result, error) {
	data, err := readInput(stdin, file, evidence.MaxDocument)
	if err != nil {
		return nil, err
	}
	doc, err := evidence.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	certs, err := doc.Certs()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	r := newResult(verifier.Appraise(now, doc.Report, certs))
	r.Purpose, r.Binding, r.Caller = doc.Purpose, &doc.Binding, &doc.Caller
	root, err := doc.Root()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if r.Verdict.Report != nil && r.Verdict.Report.ReportData != root {
		r.reject(appraise.CodeReportDataMismatch, "the report's REPORT_DATA does not commit to the document's nonce, purpose, binding, caller and batch")
	}
	return r, o.checkNonce(r, doc.Nonce)
}

// checkNonce compares with --nonce. The report commits to got already.
func (o *verifyOptions) checkNonce(r *result, got []byte) error {
	if o.nonce == "" {
		return nil
	}
	want, err := hex.DecodeString(o.nonce)
	if err != nil {
		return cli.Usagef("--nonce is not hexadecimal: %w", err)
	}
	if !bytes.Equal(got, want) {
		r.reject("nonce_mismatch", fmt.Sprintf("the evidence is for nonce %x, not for the one that was asked for", got))
		return nil
	}
	r.Nonce = "verified"
	return nil
}

// verifyReport judges a bare report. A tool that made it may have put its nonce into REPORT_DATA as it stands.
func (o *verifyOptions) verifyReport(verifier *appraise.Verifier, now time.Time) (*result, error) {
	report, err := readInput(nil, o.report, snp.ReportSize)
	if err != nil {
		return nil, err
	}
	var certs [][]byte
	for _, file := range o.certs {
		data, err := readInput(nil, file, snp.MaxCertTableSize)
		if err != nil {
			return nil, err
		}
		if block, _ := pem.Decode(data); block == nil {
			certs = append(certs, data) // DER
			continue
		}
		for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
			certs = append(certs, block.Bytes)
		}
	}
	r := newResult(verifier.Appraise(now, report, certs))
	if r.Verdict.Report == nil || o.nonce == "" {
		return r, nil
	}
	want, err := hex.DecodeString(o.nonce)
	if err != nil {
		return nil, cli.Usagef("--nonce is not hexadecimal: %w", err)
	}
	padded := make([]byte, snp.ReportDataSize)
	copy(padded, want)
	if len(want) > len(padded) || !bytes.Equal(padded, r.Verdict.Report.ReportData[:]) {
		r.reject("nonce_mismatch", "REPORT_DATA is not the nonce padded with zeros")
		return r, nil
	}
	r.Nonce = "verified"
	return r, nil
}

// readInput reads a file or, for "-", standard input, refusing more than max bytes.
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

// reject overrides a verdict that is not a failure yet: a report may be genuine and still not be the answer.
func (r *result) reject(code, reason string) {
	if r.Verdict.Status != appraise.Fail {
		r.Verdict.Status, r.Verdict.Code, r.Verdict.Reason = appraise.Fail, code, reason
	}
}

func (r *result) print(w io.Writer) error {
	var b bytes.Buffer
	v := r.Verdict
	fmt.Fprintf(&b, "verdict      %s", v.Status)
	if v.Code != "" {
		fmt.Fprintf(&b, " (%s: %s)", v.Code, v.Reason)
	}
	fmt.Fprintf(&b, "\npolicy       %s\nroots        %s\n", v.Policy, v.Roots)
	if v.Roots == appraise.RootsCustom {
		fmt.Fprintln(&b, "             these are not AMD's roots: nothing here speaks of real hardware")
	}
	fmt.Fprintf(&b, "nonce        %s\n", r.Nonce)
	if r.Binding != nil {
		fmt.Fprintf(&b, "purpose      %s\nbinding      %s %s\ncaller       uid %d %s %s\n", r.Purpose, r.Binding.Kind, r.Binding.SPKISHA256, r.Caller.UID, r.Caller.ContainerID, r.Caller.TaskARN)
	}
	if v.Report != nil {
		fmt.Fprintf(&b, "report       version %d, TCB %s, measurement %s\n", r.Report.Version, r.Report.ReportedTCB, r.Report.Measurement)
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

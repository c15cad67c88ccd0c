package main

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sevagent/internal/appraise"
	"sevagent/internal/cli"
	"sevagent/internal/config"
	"sevagent/internal/nitro"
	"sevagent/verify"
)

// explainCommand shows the verdict of a policy on a report, rule by rule. A policy's own roots are accepted.
func explainCommand() *cobra.Command {
	appraisal := appraisal{allowCustomRoots: true}
	var raw reportFlags
	cmd := &cobra.Command{
		Use:   "explain POLICY",
		Short: "Show a policy's rules, and its verdict on a report",
		Long: `Show a policy's rules and, with --report, its verdict rule by rule: the result,
what was observed, what is required; then the fields of the report, verified or
not. POLICY is a built-in profile (aws-shared, aws-dedicated) or a policy file,
which is checked in any case. Rules that are looser than the profile's are
named.

Exit status 0 if the report is acceptable or none is given, 1 if it is not, 2 if
the policy is wrong.`,
		Example: `  sevctl policy explain policy.yaml
  sevctl policy explain policy.yaml --report report.bin --cert vlek.pem \
    --region us-east-2`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			appraisal.policy = args[0]
			return explain(cmd, &appraisal, &raw)
		},
	}
	raw.add(cmd, "a `FILE` with an attestation report")
	cmd.Flags().StringVar(&appraisal.region, "region", "", "the EC2 `REGION` that the report must come from")
	return cmd
}

func explain(cmd *cobra.Command, a *appraisal, raw *reportFlags) error {
	now, err := raw.time()
	if err != nil {
		return err
	}
	if raw.report == "" {
		policy, err := config.LoadPolicy(a.policy)
		if err != nil {
			return cli.Usage(err)
		}
		if raw.certs != nil {
			return cli.Usagef("--cert needs --report")
		}
		var b bytes.Buffer
		rulesText(&b, policy, cli.Width(cmd.OutOrStdout()))
		cli.Fprintf(&b, "%s is valid, from the profile %s\n", a.policy, policy.Profile)
		_, err = b.WriteTo(cmd.OutOrStdout())
		return err
	}
	verifier, err := a.verifier()
	if err != nil {
		return err
	}
	r, err := raw.verify(verifier, now, nil)
	if err != nil {
		return err
	}

	var b bytes.Buffer
	verdictText(&b, r.Verdict.Rules, cli.Width(cmd.OutOrStdout()))
	cli.Fprintf(&b, "verdict %s, roots: %s%s\n", r.Verdict.Status, r.Verdict.Roots, because(r.Verdict))
	if report := r.Verdict.Report; report != nil {
		trust := "not verified: its maker can have made these up"
		if r.Verdict.Genuine() {
			trust = "verified: " + string(r.Verdict.Product)
		}
		cli.Fprintf(&b, "\nreport (%s)\n", trust)
		for _, f := range report.Fields() {
			cli.Fprintf(&b, "  %-18s %s\n", f.Name, f.Value)
		}
	}
	if _, err := b.WriteTo(cmd.OutOrStdout()); err != nil {
		return err
	}
	if err := r.Verdict.Err(); err != nil {
		return fmt.Errorf("explain %s: %w", a.policy, err)
	}
	return nil
}

// verdictText writes the results of a policy's rules: in five columns, or in four if these are too wide.
func verdictText(b *bytes.Buffer, rules []appraise.RuleResult, width int) {
	const (
		row    = "%-7s %-7s %-22s %s\n"
		column = len("RESULT  MODE    ") + 22 + len(" ")
		wide   = 160
	)
	results := func(observed, required string) string { return fmt.Sprintf("%-60s %s", observed, required) }
	if width > 0 && width < wide {
		results = func(observed, required string) string { return observed + "; want " + required }
	}
	if len(rules) == 0 {
		fmt.Fprintln(b, "No rule was applied: the report is not genuine, or cannot be appraised.")
		return
	}
	if width == 0 || width >= wide {
		cli.Fprintf(b, row, "RESULT", "MODE", "RULE", results("OBSERVED", "REQUIRED"))
	}
	for _, rule := range rules {
		text := results(rule.Observed, rule.Required)
		cli.Fprintf(b, row, rule.Status, rule.Mode, rule.Rule, cli.Wrapped(text, width, column, column))
	}
}

// rulesText writes the rules of a policy, then those that are not applied and those that are looser than its profile's.
func rulesText(b *bytes.Buffer, policy appraise.Policy, width int) {
	const row = "%-7s %-22s %s\n"
	cli.Fprintf(b, row, "MODE", "RULE", "REQUIRED")
	var unused, looser []string
	for _, r := range policy.Requirements() {
		if r.Mode == "" {
			unused = append(unused, r.Rule)
		} else {
			const column = len("enforce ") + 22 + len(" ")
			cli.Fprintf(b, row, r.Mode, r.Rule, cli.Wrapped(r.Required, width, column, column))
		}
		if r.Looser != "" {
			looser = append(looser, fmt.Sprintf("%s is looser than in %s: %s", r.Rule, policy.Profile, r.Looser))
		}
	}
	cli.Fprintf(b, "%s\n", cli.Wrapped("not applied: "+strings.Join(unused, ", "), width, 0, 2))
	for _, text := range looser {
		cli.Fprintf(b, "%s\n", cli.Wrapped(text, width, 0, 2))
	}
	if policy.RootsPEM != nil {
		fmt.Fprintln(b, "roots: custom; reports are verified by the policy's own roots, not by AMD's")
	}
}

// pinCommand writes a policy that accepts only machines and images like that of a report.
func pinCommand() *cobra.Command {
	var (
		appraisal appraisal
		raw       reportFlags
		tpm, file string
		fleet     fleetFlags
	)
	cmd := &cobra.Command{
		Use:   "pin --report FILE --cert FILE | --from-fleet CLUSTER",
		Short: "Write a policy that pins what a report or a cluster's nodes show",
		Long: `Write a policy file that pins CHIP_ID and MEASUREMENT of a report, after it was
verified: it must be genuine and meet every other rule of the profile. Without
such pins aws-dedicated fails, since any machine in the world with the right
firmware would pass. Take the report from a node that you trust; add the values
of further hosts to the file.

With --nitrotpm, evidence must also have a document of a NitroTPM, with PCR4,
PCR7 and PCR12 of the one in FILE: what that instance was booted from, not what
runs in it.

With --from-fleet, the running nodes of an ECS cluster are asked for evidence as
by 'sevctl verify --attest', with the same rights, and the policy pins the
measurements and PCR sets of those whose evidence passes --policy. A node that
fails, or answers for another, contributes nothing and is reported; comments say
which node contributed what. The nodes are trusted because they answer now:
trust on first use. The region is --region's or the AWS configuration's, the
credentials are those of AWS_PROFILE.

Exit status 0 if the policy was written, 1 if the report is not acceptable or a
node was refused (the policy then has what the others show, if any), 2 for wrong
usage, 3 if AWS could not be reached.`,
		Example: `  sevctl policy pin --report report.bin --cert vcek.pem -o policy.yaml
  sevctl policy pin --from-fleet prod --region us-east-2 -o fleet.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := fleet.check(cmd); err != nil {
				return err
			}
			if fleet.cluster != "" {
				fleet.region = appraisal.region
				return fleet.pin(cmd, file)
			}
			if raw.report == "" {
				return cli.Usagef(
					"--report is missing, as in 'sevctl policy pin --report report.bin --cert vcek.pem -o policy.yaml'")
			}
			if _, err := appraise.Builtin(appraisal.policy); err != nil {
				return cli.Usagef("--profile: %w", err)
			}
			text, err := pin(&appraisal, &raw, tpm)
			if err != nil {
				return err
			}
			return cli.WriteOutput(cmd.Context(), file, cmd.OutOrStdout(), text)
		},
	}
	raw.add(cmd, "a `FILE` with an attestation report")
	f := cmd.Flags()
	f.StringVar(&appraisal.policy, "profile", appraise.AWSDedicated,
		"the `PROFILE` to start from: aws-shared or\naws-dedicated\n")
	f.StringVar(&appraisal.region, "region", "", "the EC2 `REGION` that the report must come from")
	f.StringVar(&tpm, "nitrotpm", "", "a `FILE` with the document of the node's NitroTPM, as\n"+
		"nitro-tpm-attest prints it: pin its registers, too")
	fleet.add(cmd)
	f.StringVarP(&file, "output", "o", "", "write to `FILE` instead of standard output")
	return cmd
}

// pin verifies the report, and the document in the file tpm, unless that is empty, and returns a policy file for them.
func pin(a *appraisal, raw *reportFlags, tpm string) ([]byte, error) {
	now, err := raw.time()
	if err != nil {
		return nil, err
	}
	verifier, err := a.verifier()
	if err != nil {
		return nil, err
	}
	r, err := raw.verify(verifier, now, nil)
	if err != nil {
		return nil, err
	}
	if !r.Verdict.Genuine() || len(r.Verdict.Rules) == 0 {
		return nil, fmt.Errorf("pin: %w", r.Verdict.Err())
	}
	for _, rule := range r.Verdict.Rules {
		if rule.Status == appraise.Fail && rule.Rule != "pinned" {
			return nil, fmt.Errorf("pin: the report does not meet %s: %s is %s, want %s",
				a.policy, rule.Rule, rule.Observed, rule.Required)
		}
	}
	report := r.Verdict.Report
	var b bytes.Buffer
	fmt.Fprintf(&b, "# What a report that was verified on %s shows. Add the values of further hosts.\nprofile: %s\n",
		now.UTC().Format(time.DateOnly), a.policy)
	if report.ChipID != [64]byte{} { // zero where the host masks it
		fmt.Fprintf(&b, "chip_ids: # CHIP_ID\n  mode: enforce\n  value:\n  - \"%x\"\n", report.ChipID)
	}
	fmt.Fprintf(&b, "measurement: # firmware and number of vCPUs\n  mode: enforce\n  value:\n  - value: \"%x\"\n",
		report.Measurement)
	if tpm != "" {
		if err := pinBoot(&b, verifier, tpm, now); err != nil {
			return nil, fmt.Errorf("pin: %s: %w", tpm, err)
		}
	}
	return b.Bytes(), nil
}

// pinBoot writes the rule nitrotpm with the registers of a document. It may be from a file.
func pinBoot(b *bytes.Buffer, v *verify.Verifier, file string, now time.Time) error {
	data, err := readInput(nil, file, maxReportFile)
	if err != nil {
		return err
	}
	document := nitroDocument(data)
	if document == nil {
		return errors.New("not the document of a NitroTPM, raw, in hexadecimal or in base64")
	}
	r, err := v.NitroDocument(document, verify.Want{AnyNonce: true, Now: now})
	switch {
	case err != nil:
		return err
	case r.NitroTPM.Kind != verify.NitroTPMDocument:
		return fmt.Errorf("the document of %v, want that of a NitroTPM", nitro.Kind(r.NitroTPM.Kind))
	case r.NitroTPM.Image == nil:
		return errors.New("the document lacks PCR4, PCR7 or PCR12")
	}
	fmt.Fprintf(b, "nitrotpm: # what %s was booted from; add the sets of further images\n  mode: require\n"+
		"  pcrs:\n  - values:\n", r.NitroTPM.InstanceID)
	writeRegisters(b, r.NitroTPM)
	return nil
}

// writeRegisters writes the values of a set.
func writeRegisters(b *bytes.Buffer, n *verify.NitroTPM) {
	for _, pcr := range []int{4, 7, 12} {
		fmt.Fprintf(b, "    - pcr: %d\n      value: \"%s\"\n", pcr, n.PCRs[pcr])
	}
}

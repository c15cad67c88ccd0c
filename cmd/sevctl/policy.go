package main

import (
	"bytes"
	"fmt"

	"github.com/spf13/cobra"

	"sevagent/internal/cli"
	"sevagent/internal/config"
)

// explainCommand shows the verdict of a policy on a report, rule by rule. A policy's own roots are accepted.
func explainCommand() *cobra.Command {
	appraisal := appraisal{allowCustomRoots: true}
	var raw reportFlags
	cmd := &cobra.Command{
		Use:   "explain POLICY",
		Short: "Show a policy's verdict on a report, rule by rule",
		Long: `Show a policy's verdict on a report, rule by rule: the result, what was
observed, what is required. POLICY is a built-in profile (aws-shared,
aws-dedicated) or a policy file, which is checked in any case.

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
	raw.add(cmd, "a `FILE` with a raw attestation report of 1184 bytes")
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
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is valid, from the profile %s\n", a.policy, policy.Profile)
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
	const row = "%-7s %-7s %-22s %-60s %s\n"
	fmt.Fprintf(&b, row, "RESULT", "MODE", "RULE", "OBSERVED", "REQUIRED")
	for _, rule := range r.Verdict.Rules {
		fmt.Fprintf(&b, row, rule.Status, rule.Mode, rule.Rule, rule.Observed, rule.Required)
	}
	if len(r.Verdict.Rules) == 0 {
		fmt.Fprintln(&b, "No rule was applied: the report is not genuine, or its version is not supported.")
	}
	fmt.Fprintf(&b, "verdict %s, roots: %s%s\n", r.Verdict.Status, r.Verdict.Roots, because(r.Verdict))
	if _, err := b.WriteTo(cmd.OutOrStdout()); err != nil {
		return err
	}
	if err := r.Verdict.Err(); err != nil {
		return fmt.Errorf("explain %s: %w", a.policy, err)
	}
	return nil
}

package main

import (
	"bytes"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"sevagent/internal/cli"
	"sevagent/internal/config"
)

// explainCommand shows what a policy says of a report, rule by rule. Roots of a policy's own are welcome here.
func explainCommand() *cobra.Command {
	o := verifyOptions{allowCustomRoots: true}
	cmd := &cobra.Command{
		Use:   "explain POLICY",
		Short: "Show rule by rule what a policy says of a report",
		Long: `Show rule by rule what a policy says of a report: what passed, what was observed, what is required. POLICY is a
built-in profile (aws-shared, aws-dedicated) or a policy file, which is checked in any case.

Exit status 0 if the report is acceptable or none is given, 1 if it is not, 2 if the policy is wrong.`,
		Example: "  sevctl policy explain policy.yaml --report report.bin --cert vlek.pem --region us-east-2",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.policy = args[0]
			return o.explain(cmd)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.report, "report", "", "a raw attestation report of 1184 bytes")
	f.StringArrayVar(&o.certs, "cert", nil, "the report's VLEK or VCEK certificate, PEM or DER; repeatable")
	f.StringVar(&o.at, "at", "", "judge as of this time, RFC 3339 (default: now)")
	f.StringVar(&o.region, "region", "", "the EC2 region that the report must come from")
	return cmd
}

func (o *verifyOptions) explain(cmd *cobra.Command) error {
	policy, err := config.LoadPolicy(o.policy)
	if err != nil {
		return cli.Usage(err)
	}
	now, err := o.now()
	if err != nil {
		return err
	}
	if o.report == "" {
		if o.certs != nil {
			return cli.Usagef("--cert goes with --report")
		}
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s is a good policy, from the profile %s\n", o.policy, policy.Profile)
		return err
	}
	verifier, err := o.verifier()
	if err != nil {
		return err
	}
	r, err := o.verifyReport(verifier, now)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	v := r.Verdict
	fmt.Fprintf(&b, "%-7s %-7s %-22s %-60s %s\n", "RESULT", "MODE", "RULE", "OBSERVED", "REQUIRED")
	for _, rule := range v.Rules {
		fmt.Fprintf(&b, "%-7s %-7s %-22s %-60s %s\n", rule.Status, rule.Mode, rule.Rule, rule.Observed, rule.Required)
	}
	if len(v.Rules) == 0 {
		fmt.Fprintln(&b, "No rule was applied: the report is not genuine, or cannot be judged.")
	}
	fmt.Fprintf(&b, "verdict %s, roots: %s", v.Status, v.Roots)
	if v.Code != "" {
		fmt.Fprintf(&b, " (%s: %s)", v.Code, v.Reason)
	}
	fmt.Fprintln(&b)
	if _, err := b.WriteTo(cmd.OutOrStdout()); err != nil {
		return err
	}
	if err := v.Err(); err != nil {
		return fmt.Errorf("explain %s: %w", o.policy, err)
	}
	return nil
}

// now is the time to judge at.
func (o *verifyOptions) now() (time.Time, error) {
	if o.at == "" {
		return time.Now(), nil
	}
	at, err := time.Parse(time.RFC3339, o.at)
	if err != nil {
		return at, cli.Usagef("--at is not a time such as 2026-01-31T12:00:00Z: %w", err)
	}
	return at, nil
}

// Package ctl is the command sevctl, which verifies clusters, evidence and reports.
package ctl

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"sevagent/internal/cli"
)

// Run runs the command sevctl with its arguments until it is done, or ctx ends.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	return cli.Execute(ctx, Command(), args, stdin, stdout, stderr)
}

// Command returns the command sevctl with all below it.
func Command() *cobra.Command {
	root := &cobra.Command{Use: "sevctl", Short: "Verify confidential ECS nodes and their evidence"}
	evidence := &cobra.Command{Use: "evidence", Short: "Work with attestation evidence"}
	evidence.AddCommand(verifyCommand())
	policy := &cobra.Command{Use: "policy", Short: "Work with appraisal policies"}
	policy.AddCommand(explainCommand())
	root.AddCommand(evidence, policy, clusterCommand())
	return root
}

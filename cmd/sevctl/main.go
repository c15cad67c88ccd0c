// Command sevctl is for operators and relying parties: it verifies clusters, evidence and reports.
package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"sevagent/internal/cli"
)

func main() { cli.Main("sevctl", run) }

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	root := &cobra.Command{Use: "sevctl", Short: "Verify confidential ECS nodes and their evidence"}
	evidence := &cobra.Command{Use: "evidence", Short: "Work with attestation evidence"}
	evidence.AddCommand(evidenceCommand())
	policy := &cobra.Command{Use: "policy", Short: "Work with appraisal policies"}
	policy.AddCommand(explainCommand(), pinCommand())
	root.AddCommand(evidence, policy, clusterCommand())
	return cli.Execute(ctx, root, formatAlias(args, stderr), stdin, stdout, stderr)
}

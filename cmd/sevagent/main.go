// Command sevagent is the daemon of a confidential ECS node, and the local command line to it.
//
// sevagent run proves at boot that the node is a working SEV-SNP guest, keeps the published certificates equal to
// what Secrets Manager says, and answers containers on a Unix socket. The other commands ask it.
package main

import (
	"context"
	"io"

	"sevagent/internal/cli"
)

func main() { cli.Main("sevagent", run) }

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	var o options
	root := newRoot(&o)
	root.AddCommand(runCommand(&o), checkCommand(&o), statusCommand(&o))
	return cli.Execute(ctx, root, args, stdin, stdout, stderr)
}

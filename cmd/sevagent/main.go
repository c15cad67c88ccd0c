// Command sevagent is the daemon of a confidential ECS node, and the local command line to it.
//
// sevagent run proves at boot that the node is a working SEV-SNP guest, keeps the published certificates equal to
// what Secrets Manager says, and answers containers on a Unix socket. The other commands ask it.
package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"sevagent/internal/cli"
)

func main() { cli.Main("sevagent", run) }

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	var o options
	root := &cobra.Command{Use: "sevagent", Short: "Attest a confidential ECS node and publish its certificates"}
	root.PersistentFlags().StringVar(&o.config, "config", "/etc/sevagent", "configuration: a directory with config.yaml and conf.d, or a file")
	root.PersistentFlags().StringVar(&o.socket, "socket", "", "the agent's socket (default: listen.socket of the configuration)")
	root.AddCommand(runCommand(&o), checkCommand(&o), statusCommand(&o), evidenceCommand(&o), refreshCommand(&o))
	return cli.Execute(ctx, root, args, stdin, stdout, stderr)
}

// options are the flags that all commands share.
type options struct{ config, socket string }

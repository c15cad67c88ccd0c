// Command sevsim is a simulated node: a software SNP device and the AWS services around it, on loopback, with the real
// binaries running in it. It is for demonstration and tests; no package contains it.
package main

import (
	"context"
	"io"
	"os"

	"github.com/spf13/cobra"

	"sevagent/internal/cli"
	"sevagent/internal/sim"
)

func main() { cli.Main("sevsim", run) }

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	root := &cobra.Command{Use: "sevsim", Short: "Simulate a confidential ECS node"}
	var keep bool
	demo := &cobra.Command{
		Use: "demo", Short: "Bring a node up, rotate its certificates, verify its evidence",
		RunE: func(cmd *cobra.Command, args []string) error { return runDemo(cmd.Context(), stdout, keep) },
	}
	demo.Flags().BoolVar(&keep, "keep", false, "leave the node's directory behind")
	var socket string
	under := &cobra.Command{
		Use:   "exec -- PROGRAM [ARGUMENT ...]",
		Short: "Become a program that has a simulated /dev/sev-guest",
		Args:  cobra.MinimumNArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return sim.ExecUnderFilter(socket, args, os.Environ()) },
	}
	under.Flags().StringVar(&socket, "device", "", "the `SOCKET` of the simulated device")
	root.AddCommand(demo, nodeCommand(), under, deviceCommand(), metadataCommand())
	return cli.Execute(ctx, root, args, stdin, stdout, stderr)
}

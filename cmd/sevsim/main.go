// Command sevsim is a simulated node: a software SNP device and the AWS services around it, on loopback, with the real
// binaries running in it. It is for demonstration and tests; no package contains it.
package main

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"sevagent/internal/cli"
	"sevagent/internal/sim"
	"sevagent/internal/sim/simaws"
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
	var poll time.Duration
	var instance string
	node := &cobra.Command{
		Use: "node", Short: "Bring a simulated node up and leave it running until stopped",
		RunE: func(cmd *cobra.Command, args []string) error { return runNode(cmd.Context(), stdout, poll, instance) },
	}
	node.Flags().DurationVar(&poll, "poll-interval", 5*time.Minute, "mtls.poll_interval of the agent\n")
	node.Flags().StringVar(&instance, "instance-id", simaws.DefaultInstance().ID,
		"`ID` of the EC2 instance that the node is\n")
	var socket string
	under := &cobra.Command{
		Use:   "exec -- PROGRAM [ARGUMENT ...]",
		Short: "Become a program that has a simulated /dev/sev-guest",
		Args:  cobra.MinimumNArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return sim.ExecUnderFilter(socket, args, os.Environ()) },
	}
	under.Flags().StringVar(&socket, "device", "", "the `SOCKET` of the simulated device")
	device := deviceCommand()
	root.AddCommand(demo, node, under, device)
	return cli.Execute(ctx, root, args, stdin, stdout, stderr)
}

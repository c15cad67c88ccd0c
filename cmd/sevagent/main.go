// Command sevagent is the daemon of a confidential ECS node, and the local command line to it.
//
// sevagent run proves at boot that the node is a working SEV-SNP guest, keeps the published certificates equal to
// what Secrets Manager says, and answers containers on a Unix socket. The other commands ask it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"sevagent/client"
)

// Exit statuses: DESIGN of the command line, the same for all binaries.
const (
	exitNotAsItShouldBe = 1
	exitUsage           = 2
	exitUnreachable     = 3
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "sevagent:", err)
		os.Exit(exitStatus(err))
	}
}

// usageError is a mistake in the command line or the configuration.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func exitStatus(err error) int {
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[*client.UnreachableError](err); ok {
		return exitUnreachable
	}
	return exitNotAsItShouldBe
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var o options
	root := &cobra.Command{
		Use:           "sevagent",
		Short:         "Attest a confidential ECS node and publish its certificates",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return usageError{errors.New("a command is missing; see 'sevagent --help'")}
		},
	}
	root.PersistentFlags().StringVar(&o.config, "config", "/etc/sevagent", "configuration: a directory with config.yaml and conf.d, or a file")
	root.PersistentFlags().StringVar(&o.socket, "socket", "", "the agent's socket (default: listen.socket of the configuration)")
	root.AddCommand(runCommand(&o), checkCommand(&o), statusCommand(&o), evidenceCommand(&o), refreshCommand(&o), versionCommand())
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError{err} })
	markUsageErrors(root)
	return root.ExecuteContext(ctx)
}

// markUsageErrors marks what cobra says of wrong arguments as usage errors.
func markUsageErrors(root *cobra.Command) {
	for _, cmd := range append(root.Commands(), root) {
		if check := cmd.Args; check != nil {
			cmd.Args = func(cmd *cobra.Command, args []string) error {
				if err := check(cmd, args); err != nil {
					return usageError{err}
				}
				return nil
			}
		}
	}
}

// options are the flags that all commands share.
type options struct{ config, socket string }

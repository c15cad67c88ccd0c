// Command sevctl is for operators and relying parties: it verifies evidence offline.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit statuses.
const (
	exitNotAsItShouldBe = 1
	exitUsage           = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "sevctl:", err)
		os.Exit(exitStatus(err))
	}
}

// usageError is a mistake in the command line, or in a file that it names.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func exitStatus(err error) int {
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	return exitNotAsItShouldBe
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	root := &cobra.Command{
		Use:           "sevctl",
		Short:         "Verify confidential ECS nodes and their evidence",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	evidence := &cobra.Command{Use: "evidence", Short: "Work with attestation evidence"}
	evidence.AddCommand(verifyCommand())
	policy := &cobra.Command{Use: "policy", Short: "Work with appraisal policies"}
	policy.AddCommand(explainCommand())
	version := &cobra.Command{
		Use: "version", Short: "Print the version", Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			v := "(devel)"
			if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
				v = info.Main.Version
			}
			_, err := fmt.Fprintf(stdout, "sevctl %s %s %s/%s\n", v, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
	root.AddCommand(evidence, policy, version)
	for _, group := range []*cobra.Command{root, evidence, policy} {
		group.Args = usageArgs(cobra.NoArgs)
		group.RunE = func(cmd *cobra.Command, args []string) error {
			return usageError{fmt.Errorf("a command is missing; see '%s --help'", cmd.CommandPath())}
		}
	}
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError{err} })
	return root.ExecuteContext(ctx)
}

// usageArgs marks what check says of the arguments as a usage error.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{err}
		}
		return nil
	}
}

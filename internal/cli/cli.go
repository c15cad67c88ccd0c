// Package cli is what the product's commands share: signals become a context, errors one line and an exit status, and
// every program has the commands version, completion and manual.
package cli

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

// Exit statuses, the same for all commands.
const (
	statusFailed      = 1 // a check or an action failed
	statusUsage       = 2 // wrong usage or configuration
	statusUnreachable = 3 // AWS, the agent or the network could not be reached
)

// Usage marks an error as a mistake in the command line, or in a file that it names.
func Usage(err error) error { return marked{err, statusUsage} }

// Usagef is Usage of a new error.
func Usagef(format string, args ...any) error { return Usage(fmt.Errorf(format, args...)) }

// Unreachable marks an error as a failure to reach AWS, the agent or the network.
func Unreachable(err error) error { return marked{err, statusUnreachable} }

// Logged marks an error that the program's log has: Main prints nothing more. Its exit status stays.
func Logged(err error) error { return logged{err} }

type logged struct{ error }

func (l logged) Unwrap() error { return l.error }

type marked struct {
	error
	status int
}

func (m marked) Unwrap() error { return m.error }

// Main runs a command until it is done or a signal stops it, and exits with the status of its error.
func Main(name string, run func(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	cause := context.Cause(ctx)
	stop()
	if err == nil {
		return
	}
	if interrupted(err, cause) {
		fmt.Fprintf(os.Stderr, "%s: interrupted\n", name)
		os.Exit(statusFailed)
	}
	if _, known := errors.AsType[logged](err); !known {
		fmt.Fprintf(os.Stderr, "%s: %s\n", name, explain(err))
	}
	status := statusFailed
	if m, ok := errors.AsType[marked](err); ok {
		status = m.status
	}
	os.Exit(status)
}

// interrupted reports whether err is no more than the end of a context that a signal has ended, for this cause; without
// a cause, none has.
func interrupted(err, cause error) bool {
	return cause != nil && (errors.Is(err, context.Canceled) || errors.Is(err, cause))
}

// Execute runs the command tree under root, with the commands that every program has. Cobra's errors about flags and
// arguments become usage errors; a command that only groups others asks for one of them.
func Execute(ctx context.Context, root *cobra.Command, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	root.AddCommand(versionCommand(root.Name()), manualCommand())
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(flagError)
	if len(args) == 1 && (args[0] == "--version" || args[0] == "-v") {
		// Cobra's own flag prints by a template, and with text/template the linker keeps every method of everything.
		args = []string{"version"}
	}
	root.SetArgs(args)
	root.SetIn(stdin)
	out := &output{Writer: stdout}
	root.SetOut(out)
	root.SetErr(stderr)
	fitHelp(root) // it adds the command completion, which keeps the output that it finds
	prepare(root)
	refuseUnknownTopics(root)
	return out.result(root.ExecuteContext(ctx))
}

func prepare(cmd *cobra.Command) {
	check := cmd.Args
	if check == nil {
		check = cobra.NoArgs
	}
	if cmd.RunE == nil {
		check, cmd.RunE = cobra.ArbitraryArgs, groupError
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return argumentError(cmd, args, err)
		}
		return nil
	}
	for _, sub := range cmd.Commands() {
		prepare(sub)
	}
}

// versionCommand is the command version of the program name.
func versionCommand(name string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "version", Short: "Print the version",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON {
				return JSON(cmd.OutOrStdout()).Encode(map[string]string{
					"name": name, "version": Version(), "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH,
				})
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s %s %s/%s\n",
				name, Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// Version returns what the build recorded about the source: a tag, or a pseudo-version with the commit.
func Version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

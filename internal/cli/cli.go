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
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sevagent/internal/suggest"
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

type marked struct {
	error
	status int
}

func (m marked) Unwrap() error { return m.error }

// Main runs a command until it is done or a signal stops it, and exits with the status of its error.
func Main(name string, run func(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	if err == nil {
		return
	}
	fmt.Fprintf(os.Stderr, "%s: %s\n", name, explain(err))
	status := statusFailed
	if m, ok := errors.AsType[marked](err); ok {
		status = m.status
	}
	os.Exit(status)
}

// Execute runs the command tree under root, with the commands that every program has. Cobra's errors about flags and
// arguments become usage errors; a command that only groups others asks for one of them.
func Execute(ctx context.Context, root *cobra.Command, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	root.AddCommand(versionCommand(root.Name()), manualCommand())
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(flagError)
	prepare(root)
	prepareHelp(root)
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages ", ".FlagUsagesWrapped 80 "))
	root.SetArgs(args)
	root.SetIn(stdin)
	out := &output{Writer: stdout}
	root.SetOut(out)
	root.SetErr(stderr)
	return out.result(root.ExecuteContext(ctx))
}

func prepare(cmd *cobra.Command) {
	check := cmd.Args
	if check == nil {
		check = cobra.NoArgs
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil && cmd.HasSubCommands() {
			return unknownCommand(cmd, args[0])
		} else if err != nil {
			return Usage(err)
		}
		return nil
	}
	if cmd.RunE == nil {
		cmd.RunE = func(cmd *cobra.Command, _ []string) error {
			return Usagef("a command is missing; see '%s --help'", cmd.CommandPath())
		}
	}
	for _, sub := range cmd.Commands() {
		prepare(sub)
	}
}

// prepareHelp makes help about a command that is none an error.
func prepareHelp(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "help" {
			cmd.Run, cmd.RunE = nil, func(_ *cobra.Command, args []string) error {
				about, rest, err := root.Find(args)
				if err != nil || len(rest) > 0 {
					return unknownCommand(about, rest[0])
				}
				about.InitDefaultHelpFlag()
				return about.Help()
			}
		}
	}
}

func unknownCommand(parent *cobra.Command, name string) error {
	var known []string
	for _, cmd := range parent.Commands() {
		if cmd.IsAvailableCommand() {
			known = append(known, cmd.Name())
		}
	}
	advice := fmt.Sprintf("see '%s --help'", parent.CommandPath())
	if best := suggest.Closest(name, known); best != "" {
		advice = "did you mean " + best + "?"
	}
	return Usagef("unknown command %q for %q; %s", name, parent.CommandPath(), advice)
}

// flagError adds to an error of pflag, if it is about a flag that there is not, which one may have been meant.
func flagError(cmd *cobra.Command, err error) error {
	missing, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok {
		return Usage(err)
	}
	var known []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { known = append(known, f.Name) })
	if best := suggest.Closest(missing.GetSpecifiedName(), known); best != "" {
		return Usagef("%w; did you mean --%s?", err, best)
	}
	return Usage(err)
}

// versionCommand is the command version of the program name.
func versionCommand(name string) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version",
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s %s %s/%s\n",
				name, Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

// Version returns what the build recorded about the source: a tag, or a pseudo-version with the commit.
func Version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

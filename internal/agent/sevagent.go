// Package agent is the command sevagent: the daemon, and the command line to it. Its parts are packages of their own; here
// they are put together. Command sevagent says what it is for.
package agent

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"sevagent/internal/cli"
)

// Run runs the command sevagent with its arguments until it is done, or ctx ends.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	return cli.Execute(ctx, Command(), args, stdin, stdout, stderr)
}

// Command returns the command sevagent with all below it.
func Command() *cobra.Command {
	var o options
	root := newRoot(&o)
	root.AddCommand(runCommand(&o), checkCommand(&o), statusCommand(&o), cli.VersionCommand(root.Name()))
	return root
}

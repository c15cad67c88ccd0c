package main

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sevagent/internal/cli"
)

// output says in which form a command writes its result, and where.
type output struct {
	format, file string
	formats      []string
}

// outputFlags adds --format, whose default is the first of formats, and -o to cmd.
func outputFlags(cmd *cobra.Command, formats ...string) *output {
	o := &output{formats: formats}
	last := len(formats) - 1
	names := strings.Join(formats[:last], ", ") + " or " + formats[last]
	cmd.Flags().StringVar(&o.format, "format", formats[0], "`FORMAT` is "+names)
	cmd.Flags().StringVarP(&o.file, "output", "o", "", "write to `FILE` instead of standard output")
	return o
}

// check reports a format that the command does not have.
func (o *output) check() error {
	if !slices.Contains(o.formats, o.format) {
		return cli.Usagef("--format is %q, want one of %s", o.format, strings.Join(o.formats, ", "))
	}
	return nil
}

// write hands to the output what print writes.
func (o *output) write(cmd *cobra.Command, print func(io.Writer) error) error {
	var b bytes.Buffer
	if err := print(&b); err != nil {
		return err
	}
	return cli.WriteOutput(cmd.Context(), o.file, cmd.OutOrStdout(), b.Bytes())
}

// formatAlias returns args with --output FORMAT as --format FORMAT, which it was before -o and --output named a file in
// every command. Any other value of --output names a file, and so does -o. It can go after one release.
func formatAlias(args []string, stderr io.Writer) []string {
	args = slices.Clone(args)
	for i, arg := range args {
		if arg == "--" {
			break
		}
		flag, format, joined := strings.Cut(arg, "=")
		if flag != "--output" {
			continue
		}
		if !joined && i+1 < len(args) {
			format = args[i+1]
		}
		switch format {
		case "table", "json", "html", "text":
			args[i] = "--format" + strings.TrimPrefix(arg, flag)
			fmt.Fprintf(stderr, "sevctl: --output %[1]s is deprecated and will name a file; use --format %[1]s\n", format)
		}
	}
	return args
}

// Package clitest checks what all programs of the product have in common.
package clitest

import (
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"sevagent/internal/must"
)

// Run is the run of a program, as cli.Main calls it.
type Run = func(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error

// HelpFits checks that the help of a program and of every command that it lists fits a terminal of 80 columns. Callers
// leave command out.
func HelpFits(t *testing.T, run Run, command ...string) {
	t.Helper()
	var help strings.Builder
	args := append(slices.Clone(command), "--help")
	must.Do(t, run(t.Context(), args, nil, &help, io.Discard), "ask for the help by %q", args)
	listed := false // whether line is in the list of commands
	for line := range strings.Lines(help.String()) {
		line = strings.TrimSuffix(line, "\n")
		// Cobra's last line is as long as the command's name makes it. Another one takes text/template.
		if n := utf8.RuneCountInString(line); n > 80 && !strings.HasPrefix(line, "Use \"") {
			t.Errorf("%q has a line of %d columns: %s", args, n, line)
		}
		switch fields := strings.Fields(line); {
		case line == "Available Commands:":
			listed = true
		case len(fields) == 0:
			listed = false
		case listed && fields[0] != "help": // the program's own, again
			HelpFits(t, run, append(slices.Clone(command), fields[0])...)
		}
	}
	if help.Len() == 0 {
		t.Errorf("%q prints nothing", args)
	}
}

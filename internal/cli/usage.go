package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// argumentError puts into words what is wrong with a command's arguments, after cobra's check has refused them.
func argumentError(cmd *cobra.Command, args []string, err error) error {
	if cmd.HasSubCommands() && len(args) > 0 {
		return unknownCommand(cmd, args[0])
	}
	required, most := positions(cmd.Use)
	switch {
	case len(args) < len(required):
		return Usagef("%s is missing, as in '%s'", required[len(args)], example(cmd))
	case len(args) > most:
		return Usagef("unexpected argument %q: '%s' accepts %d; see '%[2]s --help'", args[most], cmd.CommandPath(), most)
	}
	return Usage(err)
}

// positions reads the usage line of a command: the arguments that it requires, and how many it takes at most.
func positions(use string) (required []string, most int) {
	words := strings.Fields(use)[1:]
	for i, word := range words {
		if word == "|" || strings.HasPrefix(word, "--") || i > 0 && strings.HasPrefix(words[i-1], "--") {
			continue // a flag, its value, or what separates two forms
		}
		if most++; !strings.HasPrefix(word, "[") {
			required = append(required, word)
		}
	}
	return required, most
}

// example returns the first example of a command, or of the first command below it that has one, as one line.
func example(cmd *cobra.Command) string {
	if cmd.Example == "" {
		subs := below(cmd)
		for _, sub := range subs {
			if sub.Example != "" || sub.HasSubCommands() {
				return example(sub)
			}
		}
		if len(subs) > 0 {
			return example(subs[0])
		}
		return strings.TrimSuffix(cmd.UseLine(), " [flags]")
	}
	joined := strings.ReplaceAll(cmd.Example, "\\\n", " ")
	first, _, _ := strings.Cut(strings.TrimSpace(joined), "\n")
	return strings.Join(strings.Fields(first), " ")
}

// groupError is the error of a command that only groups others, called with none of them.
func groupError(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return unknownCommand(cmd, args[0])
	}
	var names []string
	for _, sub := range below(cmd) {
		names = append(names, sub.Name())
	}
	return Usagef("a command is missing: %s, as in '%s'", alternatives(names), example(cmd))
}

func unknownCommand(cmd *cobra.Command, name string) error {
	cmd.SuggestionsMinimumDistance = tolerance(name)
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		return Usagef("unknown command %q of '%s'; did you mean %s?", name, cmd.CommandPath(), alternatives(near))
	}
	return Usagef("unknown command %q of '%s'; see '%[2]s --help'", name, cmd.CommandPath())
}

// flagError adds to an error about flags what was probably meant.
func flagError(cmd *cobra.Command, err error) error {
	if missing, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		value, _ := pflag.UnquoteUsage(missing.GetFlag())
		return Usagef("--%s needs a value: --%[1]s %s", missing.GetFlag().Name, strings.ToUpper(value))
	}
	if invalid, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		return Usage(InvalidValue("--"+invalid.GetFlag().Name, invalid))
	}
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok || len(unknown.GetSpecifiedName()) < 2 {
		return Usage(err)
	}
	// Cobra compares words only where they are commands.
	flags := &cobra.Command{SuggestionsMinimumDistance: tolerance(unknown.GetSpecifiedName())}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			flags.AddCommand(&cobra.Command{Use: f.Name, Run: func(*cobra.Command, []string) {}})
		}
	})
	if near := flags.SuggestionsFor(unknown.GetSpecifiedName()); len(near) > 0 {
		return Usagef("%w; did you mean --%s?", err, strings.Join(near, " or --"))
	}
	return Usage(err)
}

// InvalidValue is the error of a value that does not parse. name is where the value was given, the flag or a
// variable in its place.
func InvalidValue(name string, err *pflag.InvalidValueError) error {
	var want string
	switch err.GetFlag().Value.Type() {
	case "duration":
		want = "a duration such as 90s or 5m"
	case "bool":
		want = "true or false"
	case "int":
		want = "a number"
	default:
		return fmt.Errorf("%s is %q: %w", name, err.GetValue(), err.Unwrap())
	}
	return fmt.Errorf("%s is %q, want %s", name, err.GetValue(), want)
}

// tolerance is how many letters of a word may be wrong: a third of them, since a suggestion that is far off misleads.
func tolerance(word string) int { return (len(word) + 2) / 3 }

// alternatives returns names as "a, b or c".
func alternatives(names []string) string {
	last := len(names) - 1
	if last < 1 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:last], ", ") + " or " + names[last]
}

// fitHelp makes the texts of cobra's command completion fit 80 columns, as ours do.
func fitHelp(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	completion, _, err := root.Find([]string{"completion"})
	if err != nil {
		return // a program without commands
	}
	for _, shell := range completion.Commands() {
		var lines []string
		for line := range strings.SplitSeq(shell.Long, "\n") {
			lines = append(lines, Wrap(line, 80, 0, 0))
		}
		shell.Long = strings.Join(lines, "\n")
	}
}

// refuseUnknownTopics makes the command help fail for a command that does not exist. Cobra's prints the program's help.
func refuseUnknownTopics(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	i := slices.IndexFunc(root.Commands(), func(c *cobra.Command) bool { return c.Name() == "help" })
	if i < 0 {
		return // a program without commands
	}
	help := root.Commands()[i]
	help.Run, help.Args = nil, cobra.ArbitraryArgs
	help.RunE = func(_ *cobra.Command, args []string) error {
		topic, rest, err := root.Find(args)
		switch {
		case err != nil:
			return Usage(err)
		case len(rest) > 0:
			return unknownCommand(topic, rest[0])
		}
		topic.InitDefaultHelpFlag()
		return topic.Help()
	}
}

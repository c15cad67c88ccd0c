package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// CalledAs is the annotation of a root command that is not called by its name: the path of the program. Its manual
// pages are in section 8, and "sevagent-" precedes their names, since the name alone says too little.
const CalledAs = "called-as"

// manualCommand writes the manual pages of its command tree, for the packages.
func manualCommand() *cobra.Command {
	var release string
	var date int64
	cmd := &cobra.Command{
		Use: "manual DIRECTORY", Short: "Write the manual pages below a directory",
		Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p := program{command: cmd.Root(), page: cmd.Root().Name(), path: cmd.Root().Name(), section: 1}
			if path := p.command.Annotations[CalledAs]; path != "" {
				p.page, p.path, p.section = "sevagent-"+p.page, path, 8
			}
			dir := filepath.Join(args[0], fmt.Sprintf("man%d", p.section))
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			for name, page := range p.manual(release, time.Unix(date, 0).UTC()) {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(page), 0o644); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&release, "release", Version(), "the version that the pages name")
	cmd.Flags().Int64Var(&date, "date", time.Now().Unix(), "the date that the pages name, in seconds since 1970")
	return cmd
}

// program is a command with a manual of its own.
type program struct {
	command *cobra.Command
	page    string // name of its manual page; those of its subcommands begin with it
	path    string // how it is called
	section int
}

// manual returns the pages of a program by file name: its own, and one for each command below it. cobra/doc reads help
// texts as Markdown, which they are not: columns would run together.
func (p program) manual(version string, date time.Time) map[string]string {
	pages := make(map[string]string)
	var add func(cmd *cobra.Command)
	add = func(cmd *cobra.Command) {
		name := p.pageOf(cmd)
		pages[fmt.Sprintf("%s.%d", name, p.section)] = p.render(cmd, name, version, date)
		for _, sub := range below(cmd) {
			add(sub)
		}
	}
	add(p.command)
	return pages
}

// pageOf returns the name of a command's page: sevctl-evidence-verify.
func (p program) pageOf(cmd *cobra.Command) string {
	return p.page + strings.ReplaceAll(strings.TrimPrefix(cmd.CommandPath(), p.command.Name()), " ", "-")
}

// below returns the commands below cmd that have pages. Those that cobra adds to every program say what they do by
// --help.
func below(cmd *cobra.Command) (subs []*cobra.Command) {
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "completion" && sub.Name() != "help" {
			subs = append(subs, sub)
		}
	}
	return subs
}

func (p program) render(cmd *cobra.Command, name, version string, date time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, ".TH %q \"%d\" %q %q %q\n",
		strings.ToUpper(name), p.section, date.Format(time.DateOnly), "sevagent "+version, "sevagent")
	b.WriteString(".nh\n.ad l\n") // names are not broken
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", escape(name), escape(strings.ToLower(cmd.Short[:1])+cmd.Short[1:]))

	use := p.path + strings.TrimPrefix(cmd.UseLine(), p.command.Name())
	if cmd.HasAvailableSubCommands() && cmd.Run == nil && cmd.RunE == nil {
		use = p.path + strings.TrimPrefix(cmd.CommandPath(), p.command.Name()) + " COMMAND [flags]"
	}
	fmt.Fprintf(&b, ".SH SYNOPSIS\n%s\n", escape(use))

	b.WriteString(".SH DESCRIPTION\n")
	long := cmd.Long
	if long == "" {
		long = cmd.Short + "."
	}
	text(&b, long)
	if subs := below(cmd); len(subs) > 0 {
		b.WriteString(".SH COMMANDS\n")
		for _, sub := range subs {
			fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", escape(sub.Name()), escape(sub.Short))
		}
	}
	options(&b, "OPTIONS", cmd.NonInheritedFlags())
	options(&b, "GLOBAL OPTIONS", cmd.InheritedFlags())
	if cmd.Example != "" {
		b.WriteString(".SH EXAMPLES\n")
		text(&b, cmd.Example)
	}
	p.seeAlso(&b, cmd)
	return b.String()
}

func (p program) seeAlso(b *strings.Builder, cmd *cobra.Command) {
	var pages []string
	if cmd.HasParent() {
		pages = append(pages, p.pageOf(cmd.Parent()))
	}
	for _, sub := range below(cmd) {
		pages = append(pages, p.pageOf(sub))
	}
	b.WriteString(".SH SEE ALSO\n")
	for i, page := range pages {
		pages[i] = fmt.Sprintf("\\fB%s\\fR(%d)", escape(page), p.section)
	}
	b.WriteString(strings.Join(pages, ",\n") + "\n")
}

// text writes paragraphs. One with an indented line keeps its layout.
func text(b *strings.Builder, s string) {
	for i, paragraph := range strings.Split(strings.Trim(s, "\n"), "\n\n") {
		if i > 0 {
			b.WriteString(".PP\n")
		}
		verbatim := strings.HasPrefix(paragraph, " ") || strings.Contains(paragraph, "\n ")
		if verbatim {
			b.WriteString(".nf\n")
		}
		for line := range strings.Lines(paragraph) {
			b.WriteString(escape(strings.TrimRight(line, "\n")) + "\n")
		}
		if verbatim {
			b.WriteString(".fi\n")
		}
	}
}

func options(b *strings.Builder, title string, flags *pflag.FlagSet) {
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		if title != "" {
			fmt.Fprintf(b, ".SH %s\n", title)
			title = ""
		}
		value, usage := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		fmt.Fprintf(b, ".TP\n\\fB%s\\fR", escape(name))
		if value != "" {
			fmt.Fprintf(b, " \\fI%s\\fR", escape(value))
		}
		fmt.Fprintf(b, "\n%s", escape(usage))
		if def := f.DefValue; def != "" && def != "false" && def != "[]" && def != "0" && def != "0s" {
			fmt.Fprintf(b, " (default %s)", escape(def))
		}
		b.WriteString("\n")
	})
}

// escape makes roff print a line literally: a hyphen that can be copied, no control line, no closing quote for an
// apostrophe.
func escape(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`).Replace(s)
	if strings.HasPrefix(s, ".") {
		s = `\&` + s
	}
	return s
}

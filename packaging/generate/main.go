// Command generate writes what packages hold besides the programs and is made of them: manual pages, shell completions,
// and the licences of the modules that are linked. The same source and time give the same bytes.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sevagent/internal/agent"
	"sevagent/internal/bootstrap"
	"sevagent/internal/ctl"
)

// program is a command with a manual of its own.
type program struct {
	command *cobra.Command
	page    string // name of its manual page; those of its subcommands begin with it
	path    string // how it is called
	section int
}

func programs() []program {
	return []program{
		{agent.Command(), "sevagent", "sevagent", 1},
		{ctl.Command(), "sevctl", "sevctl", 1},
		// Not in PATH, and the name alone says too little.
		{bootstrap.Command(), "sevagent-bootstrap", "/usr/libexec/sevagent/bootstrap", 8},
	}
}

func main() {
	out := flag.String("o", "", "the root to write below, with usr/share in it")
	version := flag.String("version", "", "the version that manual pages name")
	date := flag.Int64("date", 0, "the time of the source, in seconds since 1970")
	flag.Parse()
	if err := run(*out, *version, time.Unix(*date, 0).UTC(), flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func run(out, version string, date time.Time, binaries []string) error {
	share := filepath.Join(out, "usr/share")
	for _, p := range programs() {
		for name, page := range p.manual(version, date) {
			if err := write(filepath.Join(share, fmt.Sprintf("man/man%d", p.section), name), page); err != nil {
				return err
			}
		}
		if filepath.IsAbs(p.path) {
			continue
		}
		for name, generate := range map[string]func(*strings.Builder) error{
			"bash-completion/completions/" + p.page:         func(b *strings.Builder) error { return p.command.GenBashCompletionV2(b, true) },
			"zsh/_" + p.page:                                func(b *strings.Builder) error { return p.command.GenZshCompletion(b) },
			"fish/vendor_completions.d/" + p.page + ".fish": func(b *strings.Builder) error { return p.command.GenFishCompletion(b, true) },
		} {
			var b strings.Builder
			if err := generate(&b); err != nil {
				return fmt.Errorf("complete %s: %w", p.page, err)
			}
			if err := write(filepath.Join(share, name), b.String()); err != nil {
				return err
			}
		}
	}
	notices, err := notices(binaries)
	if err != nil {
		return err
	}
	return write(filepath.Join(share, "doc/NOTICES"), notices)
}

func write(name, content string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, []byte(content), 0o644)
}

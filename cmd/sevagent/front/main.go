// Command front is what is installed as /usr/bin/sevagent. It has the commands that ask the running agent and becomes,
// for all others, the whole program that ../ is, installed as sevagentd.
//
// The two are one program to their users. They are apart because a caller waits for evidence: the daemon's libraries
// take longer to start than the agent takes to answer. The whole program does all of it alone, too.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"sevagent/internal/ask"
	"sevagent/internal/cli"
)

func main() {
	var o ask.Options
	// Find knows the commands of package ask, and no others: help and the version are the whole program's.
	if cmd, _, err := ask.Root(&o).Find(os.Args[1:]); err != nil || !cmd.HasParent() {
		cli.Main("sevagent", become)
	}
	cli.Main("sevagent", func(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
		return cli.Execute(ctx, ask.Root(&o), args, stdin, stdout, stderr)
	})
}

// become replaces the process by the whole program, which keeps the arguments, the environment, the process ID that
// systemd knows and the sockets that it passed.
func become(context.Context, []string, io.Reader, io.Writer, io.Writer) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find sevagentd beside the running program: %w", err)
	}
	// Where the package has it, and where make build has it.
	places := []string{filepath.Join(filepath.Dir(self), "../libexec/sevagent/sevagentd"), filepath.Join(filepath.Dir(self), "sevagentd")}
	for _, place := range places {
		if err := syscall.Exec(place, os.Args, os.Environ()); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("start %s: %w", place, err)
		}
	}
	return fmt.Errorf("start sevagentd: it is neither of %s; reinstall the package sevagent", strings.Join(places, " and "))
}

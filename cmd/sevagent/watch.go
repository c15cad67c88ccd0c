package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"sevagent/internal/cli"
	"sevagent/internal/watch"
)

// stopGrace is how long a command may take to end after SIGTERM.
const stopGrace = 10 * time.Second

func watchCommand() *cobra.Command {
	var dir, signal, pidFile string
	cmd := &cobra.Command{
		Use:   "watch [-- COMMAND [ARG...]]",
		Short: "Run a command, or send a signal, after each rotation",
		Long: `In a container: run a command, or send a signal, after each rotation of the
certificates, once all files are there. What fails is tried again. The program
needs neither the agent's socket nor a configuration.`,
		Example: "  sevagent watch -- nginx -s reload\n  sevagent watch --signal HUP --pid-file /run/haproxy.pid",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			act, err := action(args, signal, pidFile)
			if err != nil {
				return cli.Usage(err)
			}
			return watch.Watch{
				Dir: dir,
				Do: func(ctx context.Context, generation string) error {
					cli.Fprintf(cmd.ErrOrStderr(), "rotated: %s\n", generation)
					return act(ctx)
				},
				Failed: func(err error, wait time.Duration) {
					cli.Fprintf(cmd.ErrOrStderr(), "%v; trying again in %v\n", err, wait)
				},
			}.Run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "/etc/ecs/mtls", "the `DIRECTORY` where the certificates are mounted\n")
	cmd.Flags().StringVar(&signal, "signal", "", "the `SIGNAL` to send, such as HUP, to the\nprocess of --pid-file")
	cmd.Flags().StringVar(&pidFile, "pid-file", "", "the `FILE` with the number of the process")
	return cmd
}

// action returns what to do after a rotation.
func action(args []string, signal, pidFile string) (func(context.Context) error, error) {
	switch {
	case len(args) > 0 && signal+pidFile != "":
		return nil, errors.New("watch: want a command, or --signal with --pid-file, and not both")
	case len(args) > 0:
		return func(ctx context.Context) error { return runCommandLine(ctx, args) }, nil
	case signal == "" || pidFile == "":
		return nil, errors.New("watch: want a command after --, or --signal with --pid-file; " +
			"for example sevagent watch -- nginx -s reload")
	}
	number := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(signal), "SIG"))
	if number == 0 {
		return nil, fmt.Errorf("watch: --signal %s is no signal; want a name such as HUP", signal)
	}
	return func(context.Context) error { return signalProcess(pidFile, number) }, nil
}

func runCommandLine(ctx context.Context, args []string) error {
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr // the files, or we would wait for daemons that it starts to close them
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = stopGrace
	if err := c.Run(); err != nil {
		return fmt.Errorf("run %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// signalProcess reads the file each time, since a process may have been replaced.
func signalProcess(pidFile string, signal syscall.Signal) error {
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 0 {
		return fmt.Errorf("%s has no number of a process", pidFile)
	}
	if err := syscall.Kill(pid, signal); err != nil {
		return fmt.Errorf("send %s to process %d of %s: %w", unix.SignalName(signal), pid, pidFile, err)
	}
	return nil
}

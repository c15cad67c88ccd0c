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

const (
	// commandTimeout is how long a command may run: one that hangs would keep all later rotations from it.
	commandTimeout = 5 * time.Minute
	// stopGrace is how long it may take to end after SIGTERM.
	stopGrace = 10 * time.Second
)

func watchCommand() *cobra.Command {
	var dir, signal, pidFile string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "watch [-- COMMAND [ARG...]]",
		Short: "Run a command, or send a signal, after each rotation",
		Long: `In a container: run a command, or send a signal, after each rotation of the
certificates, once all files are there. What fails, or does not end in time, is
tried again. The program needs neither the agent's socket nor a configuration.`,
		Example: "  sevagent watch -- nginx -s reload\n  sevagent watch --signal HUP --pid-file /run/haproxy.pid",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			act, err := action(args, signal, pidFile, timeout)
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
	cmd.Flags().DurationVar(&timeout, "timeout", commandTimeout,
		"the `DURATION` after which a command is stopped;\n0: never\n")
	return cmd
}

// action returns what to do after a rotation.
func action(args []string, signal, pidFile string, timeout time.Duration) (func(context.Context) error, error) {
	switch {
	case timeout < 0:
		return nil, fmt.Errorf("watch: --timeout %v is negative; want a duration such as 30s, or 0 for none", timeout)
	case len(args) > 0 && signal+pidFile != "":
		return nil, errors.New("watch: want a command, or --signal with --pid-file, and not both")
	case len(args) > 0:
		return func(ctx context.Context) error { return runCommandLine(ctx, args, timeout) }, nil
	case signal == "" || pidFile == "":
		return nil, errors.New("watch: want a command after --, or --signal with --pid-file; " +
			"for example sevagent watch -- nginx -s reload")
	}
	number := parseSignal(signal)
	if number == 0 {
		return nil, fmt.Errorf("watch: --signal %s is no signal; want a name such as HUP, or its number", signal)
	}
	return func(context.Context) error { return signalProcess(pidFile, number) }, nil
}

// parseSignal accepts HUP, SIGHUP and 1, as kill(1) does; 0: it is no signal.
func parseSignal(text string) syscall.Signal {
	if n, err := strconv.Atoi(text); err == nil && unix.SignalName(syscall.Signal(n)) != "" {
		return syscall.Signal(n)
	}
	return unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(text), "SIG"))
}

// runCommandLine ends the command after a timeout; 0: it may take as long as it likes.
func runCommandLine(ctx context.Context, args []string, timeout time.Duration) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr // the files, or we would wait for daemons that it starts to close them
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = stopGrace
	err := c.Run()
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("it was stopped, since it did not end within %v; see --timeout", timeout)
	}
	if err != nil {
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
		return fmt.Errorf("%s does not contain a process ID", pidFile)
	}
	if err := syscall.Kill(pid, signal); err != nil {
		return fmt.Errorf("send %s to process %d of %s: %w", unix.SignalName(signal), pid, pidFile, err)
	}
	return nil
}

// Command sevagent is the daemon of a confidential ECS node, and the local command line to it.
//
// sevagent run proves at boot that the node is a working SEV-SNP guest, keeps the published certificates up to date, and
// serves containers on a Unix socket: it is package agent. The other commands ask the running
// agent through package client.
package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"sevagent/client"
	"sevagent/internal/agent"
	"sevagent/internal/attest"
	"sevagent/internal/cli"
	"sevagent/internal/config"
	"sevagent/internal/visible"
)

func main() { cli.Main("sevagent", run) }

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	return cli.Execute(ctx, command(), args, stdin, stdout, stderr)
}

// options are the flags that all commands share.
type options struct {
	config string // a directory or a file
	socket string // empty: that of the configuration
}

// Environment variables in the place of flags.
const (
	configVariable = "SEVAGENT_CONFIG"
	socketVariable = "SEVAGENT_SOCKET"
)

// fromEnvironment takes from the environment what the command line does not say.
func (o *options) fromEnvironment(cmd *cobra.Command) {
	for flag, v := range map[string]struct {
		value    *string
		variable string
	}{"config": {&o.config, configVariable}, "socket": {&o.socket, socketVariable}} {
		if text := os.Getenv(v.variable); text != "" && !cmd.Flags().Changed(flag) {
			*v.value = text
		}
	}
}

func command() *cobra.Command {
	o := new(options)
	root := &cobra.Command{
		Use: "sevagent", Short: "Attest a confidential ECS node and publish its certificates",
		PersistentPreRun: func(cmd *cobra.Command, _ []string) { o.fromEnvironment(cmd) },
	}
	root.PersistentFlags().StringVar(&o.config, "config", "/etc/sevagent",
		"the configuration's `PATH`: a directory with\nconfig.yaml and conf.d, or a file;\nor set "+configVariable+"\n")
	root.PersistentFlags().StringVar(&o.socket, "socket", "",
		"the agent's `SOCKET`; or set "+socketVariable+"\n(default: listen.socket of the configuration)")
	root.AddCommand(runCommand(o), checkCommand(o), statusCommand(o), evidenceCommand(o), refreshCommand(o),
		watchCommand(), bundleCommand(o))
	return root
}

func runCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the agent (what sevagent.service does)",
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := o.load()
			if err != nil {
				return err
			}
			if o.socket != "" {
				cfg.Listen.Socket = o.socket
			}
			level := new(slog.LevelVar)
			log := newLogger(cmd.ErrOrStderr(), cfg.Log, level)
			err = agent.Run(cmd.Context(), agent.Config{
				Config:     cfg,
				Path:       o.config,
				Log:        log,
				Level:      level,
				OpenDevice: testOnlyOpenDevice,
			})
			if err != nil {
				log.Error("stopped by a failure", "component", "agent", "err", err)
				return cli.Logged(err)
			}
			return nil
		},
	}
}

// testOnlyOpenDevice replaces the SNP device in this package's tests.
var testOnlyOpenDevice func() (attest.Transport, error)

// load reads the configuration; every mistake in it is a usage error.
func (o *options) load() (config.Config, error) {
	cfg, err := config.Load(o.config)
	if err != nil {
		return cfg, cli.Usage(err)
	}
	return cfg, nil
}

// client returns a client of the running agent. It works although the configuration has mistakes.
func (o *options) client() *client.Client {
	return client.New(o.socketPath())
}

func (o *options) socketPath() string {
	if o.socket != "" {
		return o.socket
	}
	return config.Socket(o.config)
}

// markUnreachable gives the error of an agent that does not answer its exit status.
func markUnreachable(err error) error {
	if _, silent := errors.AsType[*client.UnreachableError](err); silent {
		return cli.Unreachable(err)
	}
	return err
}

func newLogger(w io.Writer, cfg config.Log, level *slog.LevelVar) *slog.Logger {
	level.Set(cfg.SlogLevel())
	o := &slog.HandlerOptions{Level: level, ReplaceAttr: inWords}
	if cfg.Format == "text" || cfg.Format == "auto" && cli.IsTerminal(w) {
		return slog.New(slog.NewTextHandler(visible.Writer(w, visible.Lines), o))
	}
	return slog.New(slog.NewJSONHandler(w, o))
}

// inWords makes text of a duration, which JSON has in nanoseconds.
func inWords(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().Round(time.Millisecond).String())
	}
	return a
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"sevagent/client"
	"sevagent/internal/agent"
	"sevagent/internal/cli"
	"sevagent/internal/config"
)

func checkCommand(o *options) *cobra.Command {
	var configOnly bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the configuration, the SNP device and one attestation report",
		Long: `Check the configuration with its policy, then get and appraise one
attestation report: through the running agent, which holds the device, or
directly if none runs. Exit status 0 if all is well, 1 if a check fails, 2
if the configuration is wrong.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return check(cmd.Context(), o, configOnly, cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&configOnly, "config-only", false,
		"check the configuration only, neither the device\nnor the agent")
	return cmd
}

func check(ctx context.Context, o *options, configOnly bool, out io.Writer) error {
	cfg, err := o.load()
	if err != nil {
		return err
	}
	if cfg.Attestation.Mode != config.ModeOff {
		if _, err := config.LoadPolicy(cfg.Attestation.Policy); err != nil {
			return cli.Usage(err)
		}
	}
	if err := cfg.MTLS.CheckRoots(); err != nil {
		return cli.Usage(err)
	}
	cli.Fprintf(out, "configuration   ok (%s)\n", o.config)
	if configOnly {
		return nil
	}
	if cfg.Attestation.Mode == config.ModeOff {
		fmt.Fprintln(out, "attestation     off")
		return nil
	}
	health, err := o.client().Health(ctx)
	if _, down := errors.AsType[*client.UnreachableError](err); down {
		return checkDevice(ctx, o, cfg, out)
	}
	if err != nil {
		return err
	}
	newScreen(out, time.Now()).checks(health)
	if !health.Ready() {
		return errors.New("check the running agent: it is not ready; see above")
	}
	return nil
}

// checkDevice gets and appraises a report without an agent.
func checkDevice(ctx context.Context, o *options, cfg config.Config, out io.Writer) error {
	transport, verdict, err := agent.Prove(ctx, agent.Config{
		Config: cfg, Path: o.config, Log: slog.New(slog.DiscardHandler), OpenDevice: testOnlyOpenDevice,
	})
	if verdict != nil {
		cli.Fprintf(out, "device          ok (%s)\n", transport)
		cli.Fprintf(out, "report          %s\n", verdict)
	}
	return err
}

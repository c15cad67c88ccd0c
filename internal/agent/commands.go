package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"sevagent/client"
	"sevagent/internal/attest"
	"sevagent/internal/cli"
	"sevagent/internal/config"
	"sevagent/internal/evidence"
	"sevagent/internal/localapi"
)

// load reads the configuration; every mistake in it is a usage error.
func load(o *options) (config.Config, error) {
	cfg, err := config.Load(o.config)
	if err != nil {
		return cfg, cli.Usage(err)
	}
	return cfg, nil
}

func runCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the agent (what sevagent.service does)",
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := load(o)
			if err != nil {
				return err
			}
			if o.socket != "" {
				cfg.Listen.Socket = o.socket
			}
			return runAgent(cmd.Context(), cfg, o.config, cmd.ErrOrStderr())
		},
	}
}

func checkCommand(o *options) *cobra.Command {
	var configOnly bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the configuration, the SNP device and one attestation report",
		Long: `Check the configuration, then get and appraise one attestation report: through the running agent, which holds the
device, or directly where none runs. Exit status 0 if all is well, 1 if the node is not as it should be, 2 if the
configuration is wrong.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return check(cmd.Context(), o, configOnly, cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&configOnly, "config-only", false, "check the configuration alone, which needs neither the device nor the agent")
	return cmd
}

func check(ctx context.Context, o *options, configOnly bool, out io.Writer) error {
	cfg, err := load(o)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "configuration   ok (%s)\n", o.config)
	if configOnly {
		return nil
	}
	if cfg.Attestation.Mode == config.ModeOff {
		fmt.Fprintln(out, "attestation     off")
		return nil
	}
	health, ready, err := o.client().Ready(ctx)
	if _, down := errors.AsType[*client.UnreachableError](err); down {
		return checkDevice(ctx, cfg, out)
	}
	if err != nil {
		return err
	}
	var h localapi.Health
	if err := json.Unmarshal(health, &h); err != nil {
		return fmt.Errorf("read the agent's health: %w", err)
	}
	printHealth(out, &h)
	if !ready {
		return errors.New("check the running agent: it is not ready; see the failed entries above")
	}
	return nil
}

// checkDevice gets and appraises a report without an agent.
func checkDevice(ctx context.Context, cfg config.Config, out io.Writer) error {
	a, err := newAttestation(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		return err
	}
	defer a.transport.Close()
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { a.worker.Run(ctx) })
	if a.vceks != nil {
		running.Go(func() { a.vceks.Run(ctx) })
	}
	verdict, err := a.prove(ctx, cfg.Attestation, new(cloud))
	for patience := 30; errors.Is(err, attest.ErrVCEKPending) && patience > 0 && ctx.Err() == nil; patience-- {
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
			verdict, err = a.prove(ctx, cfg.Attestation, new(cloud))
		}
	}
	cancel()
	running.Wait()
	if verdict != nil {
		fmt.Fprintf(out, "device          ok (%s)\n", a.worker.Transport())
		fmt.Fprintf(out, "report          %s\n", verdictLine(verdict))
	}
	return describeAttestation(err)
}

// describeAttestation adds to an error of package attest what to do about it.
func describeAttestation(err error) error {
	if err == nil {
		return nil
	}
	if advice := attest.Advice(err); advice != "" {
		return fmt.Errorf("attest this node: %w; %s", err, advice)
	}
	return fmt.Errorf("attest this node: %w", err)
}

func bootClaims() evidence.Claims {
	nonce := make([]byte, 32)
	rand.Read(nonce)
	return evidence.Claims{Purpose: evidence.PurposeBoot, Nonce: nonce, Caller: evidence.Caller{UID: uint32(os.Getuid())}}
}

func statusCommand(o *options) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the running agent's state",
		RunE: func(cmd *cobra.Command, args []string) error {
			answer, err := o.client().Status(cmd.Context())
			if err != nil {
				return reached(err)
			}
			var s status
			if err := json.Unmarshal(answer, &s); err != nil {
				return fmt.Errorf("read the agent's status: %w", err)
			}
			if asJSON {
				var text bytes.Buffer
				if err := json.Indent(&text, answer, "", "  "); err != nil {
					return fmt.Errorf("read the agent's status: %w", err)
				}
				text.WriteTo(cmd.OutOrStdout())
			} else {
				printStatus(cmd.OutOrStdout(), &s)
			}
			if s.Health.Status == localapi.StatusFail {
				return errors.New("read the agent's status: the node is not ready")
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printHealth(out io.Writer, h *localapi.Health) {
	var names []string
	for name := range h.Checks {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for _, c := range h.Checks[name] {
			title := name
			if c.ComponentID != "" {
				title += " " + c.ComponentID
			}
			fmt.Fprintf(out, "%-4s  %s", c.Status, title)
			if c.Output != "" {
				fmt.Fprintf(out, ": %s", c.Output)
			}
			fmt.Fprintln(out)
		}
	}
}

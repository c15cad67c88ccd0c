// Command bootstrap runs once, from EC2 user data, and leaves either the machine that was asked for or none: it
// checks everything, then writes, then starts. Run again, it changes nothing.
//
// It reads the instance metadata by IMDSv2 only, configures sevagent, starts it and waits for its proof, writes
// /etc/ecs/ecs.config with attributes from the verified report, and starts the ECS agent.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Exit statuses.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 3
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bootstrap:", err)
		os.Exit(exitStatus(err))
	}
}

// usageError is a mistake in the command line or the environment.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// unreachableError means that the metadata service or the agent did not answer.
type unreachableError struct{ error }

func (e unreachableError) Unwrap() error { return e.error }

func exitStatus(err error) int {
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[unreachableError](err); ok {
		return exitUnreachable
	}
	return exitFailed
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var o options
	root := &cobra.Command{
		Use:   "bootstrap",
		Short: "Turn a fresh EC2 instance into an attested ECS node",
		Long: `Turn a fresh EC2 instance into an attested ECS node: configure and start sevagent, wait for its proof, write
/etc/ecs/ecs.config, start the ECS agent. Each flag can also be set by the environment: --cluster by
SEVAGENT_BOOTSTRAP_CLUSTER, and so on; lists are separated by commas there.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := fromEnvironment(cmd.Flags(), os.LookupEnv); err != nil {
				return usageError{err}
			}
			if err := o.check(); err != nil {
				return usageError{err}
			}
			return bootstrap(cmd.Context(), o, stdout)
		},
	}
	f := root.Flags()
	f.StringVar(&o.cluster, "cluster", "", "the ECS cluster to join (required)")
	f.StringArrayVar(&o.secrets, "mtls-secret", nil, "a secret with certificates to publish: ARN, name or file:///path; repeatable")
	f.StringArrayVar(&o.endpoints, "enclave-endpoint", nil, "an enclave server, host:port; repeatable")
	f.StringVar(&o.mtlsPath, "mtls-path", "", "where certificates are published (default: the agent's, /etc/ecs/mtls)")
	f.StringVar(&o.mode, "attestation-mode", "", "enforce, warn or off (default: the agent's, enforce)")
	f.StringVar(&o.configDir, "config-dir", "/etc/sevagent", "the agent's configuration directory; 50-bootstrap.yaml goes into its conf.d")
	f.StringVar(&o.ecsConfig, "ecs-config", "/etc/ecs/ecs.config", "the ECS agent's configuration, merged with what is there")
	f.StringVar(&o.socket, "socket", "/run/sevagent/sevagent.sock", "the agent's socket")
	f.StringVar(&o.services, "services", servicesSystemd, "systemd: start sevagent.service and ecs.service; none: whoever called does that")
	f.DurationVar(&o.timeout, "timeout", 10*time.Minute, "how long to wait for the agent's proof and the first certificates")
	root.AddCommand(&cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := fmt.Fprintf(stdout, "bootstrap %s %s %s/%s\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	})
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError{err} })
	if err := root.ExecuteContext(ctx); err != nil {
		if strings.HasPrefix(err.Error(), "unknown command") {
			return usageError{err}
		}
		return err
	}
	return nil
}

// fromEnvironment sets the flags that were not given from SEVAGENT_BOOTSTRAP_*.
func fromEnvironment(flags *pflag.FlagSet, lookup func(string) (string, bool)) (err error) {
	flags.VisitAll(func(f *pflag.Flag) {
		name := "SEVAGENT_BOOTSTRAP_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value, ok := lookup(name)
		if !ok || value == "" || f.Changed {
			return
		}
		values := []string{value}
		if f.Value.Type() == "stringArray" {
			values = strings.Split(value, ",")
		}
		for _, v := range values {
			if setErr := flags.Set(f.Name, strings.TrimSpace(v)); setErr != nil {
				err = errors.Join(err, fmt.Errorf("%s: %w", name, setErr))
			}
		}
	})
	return err
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

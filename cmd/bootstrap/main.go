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
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sevagent/internal/cli"
)

func main() { cli.Main("bootstrap", run) }

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	var o options
	root := &cobra.Command{
		Use:   "bootstrap",
		Short: "Turn a fresh EC2 instance into an attested ECS node",
		Long: `Turn a fresh EC2 instance into an attested ECS node: configure and start sevagent, wait for its proof, write
/etc/ecs/ecs.config, start the ECS agent. Each flag can also be set by the environment: --cluster by
SEVAGENT_BOOTSTRAP_CLUSTER, and so on; lists are separated by commas there.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := fromEnvironment(cmd.Flags(), os.LookupEnv); err != nil {
				return cli.Usage(err)
			}
			if err := o.check(); err != nil {
				return cli.Usage(err)
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
	return cli.Execute(ctx, root, args, stdin, stdout, stderr)
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

// Package bootstrap is the command bootstrap, which turns a fresh EC2 instance into an attested ECS node. Command bootstrap
// says how.
package bootstrap

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

// Run runs the command bootstrap with its arguments until it is done, or ctx ends.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	n := &node{out: stdout}
	root := newCommand(n)
	err := cli.Execute(ctx, root, args, stdin, stdout, stderr)
	if err == nil {
		return nil
	}
	if cmd, _, findErr := root.Find(args); findErr == nil && cmd != root {
		return err // of another command, which has reported what is to be reported
	}
	// A mistake in the flags is a failure like any other, and the stack may come from the environment.
	_ = fromEnvironment(root.Flags(), os.LookupEnv)
	return n.report(ctx, err)
}

// Command returns the command bootstrap with all below it.
func Command() *cobra.Command { return newCommand(&node{out: io.Discard}) }

func newCommand(n *node) *cobra.Command {
	root := &cobra.Command{
		Use:         "bootstrap",
		Annotations: map[string]string{cli.CalledAs: "/usr/libexec/sevagent/bootstrap"},
		Short:       "Turn a fresh EC2 instance into an attested ECS node",
		Long:        longHelp(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := fromEnvironment(cmd.Flags(), os.LookupEnv); err != nil {
				return failed("options", cli.Usage(err))
			}
			if err := n.check(); err != nil {
				return failed("options", cli.Usage(err))
			}
			return n.bootstrap(cmd.Context())
		},
	}
	addFlags(root.Flags(), &n.options)
	root.AddCommand(signalCommand(), mayJoinCommand())
	return root
}

// longHelp is the manual of what is set in ecs.config, too.
func longHelp() string {
	var b strings.Builder
	b.WriteString(`Turn a fresh EC2 instance into an attested ECS node: configure and start sevagent, wait for its proof, write
/etc/ecs/ecs.config, start the ECS agent. Each flag can also be set by the environment: --cluster by
SEVAGENT_BOOTSTRAP_CLUSTER, and so on; lists are separated by commas there. A flag comes first.

With --stack, any failure is signaled to --ready-resource and --update-resource of that CloudFormation stack, with the
step and the cause in the signal's unique ID. A resource that does not wait refuses, which is no error. Success is
signaled by 'bootstrap signal', which sevagent-signal.service runs once the ECS agent has been started.

ecs.config gets these keys unless it has them already; --ecs-option sets others or other values, whatever is there:

`)
	for _, h := range hardening {
		fmt.Fprintf(&b, "  %-43s %s\n", h.key+"="+h.value, h.why)
	}
	fmt.Fprintf(&b, "  %-43s %s\n", reservedPorts+"=[...]", "no task takes the ECS agent's ports or sevagent's")
	b.WriteString(`
Exit status: 0 done, 1 the node is not as it should be, 2 wrong usage or configuration, 3 AWS, the agent or the network
could not be reached.`)
	return b.String()
}

const (
	defaultConfigDir = "/etc/sevagent"
	defaultStateDir  = "/var/lib/sevagent"
	signalTimeout    = 5 * time.Minute
	stateDirHelp     = "where it is noted that the stack has been told"
	signalWaitHelp   = "how long to try to tell CloudFormation, and to wait for a resource that does not wait yet"
)

func addFlags(f *pflag.FlagSet, o *options) {
	f.StringVar(&o.cluster, "cluster", "", "the ECS cluster to join (required)")
	f.StringVar(&o.stack, "stack", "", "the CloudFormation stack to signal, by name or ID (default: none)")
	f.StringVar(&o.readyResource, "ready-resource", "", "logical ID of what the stack's creation waits for")
	f.StringVar(&o.updateResource, "update-resource", "", "logical ID of what a rolling update waits for, the Auto Scaling group")
	f.StringVar(&o.region, "region", "", "the stack's region (default: the instance's)")
	f.StringArrayVar(&o.secrets, "mtls-secret", nil, "a secret with certificates to publish: ARN, name or file:///path; repeatable, or separated by commas")
	f.StringArrayVar(&o.endpoints, "enclave-endpoint", nil, "an enclave server, host:port; repeatable, or separated by commas")
	f.StringVar(&o.mtlsPath, "mtls-path", "", "where certificates are published (default: the agent's, /etc/ecs/mtls)")
	f.StringVar(&o.mode, "attestation-mode", "", "enforce, warn or off (default: the agent's, enforce)")
	f.StringVar(&o.configDir, "config-dir", defaultConfigDir, "the agent's configuration directory; 50-bootstrap.yaml goes into its conf.d")
	f.StringVar(&o.stateDir, "state-dir", defaultStateDir, stateDirHelp)
	f.StringVar(&o.ecsConfig, "ecs-config", "/etc/ecs/ecs.config", "the ECS agent's configuration, merged with what is there")
	f.StringArrayVar(&o.ecsOptions, "ecs-option", nil, "KEY=VALUE for ecs.config, or KEY= to leave a key to the ECS agent; repeatable")
	f.StringVar(&o.socket, "socket", "/run/sevagent/sevagent.sock", "the agent's socket")
	f.StringVar(&o.services, "services", servicesSystemd, "systemd: start sevagent, ecs and sevagent-signal; none: whoever called does that")
	f.StringVar(&o.installECS, "install-ecs", installAuto, "auto: install Docker and amazon-ecs-init by apt where they are missing; never")
	f.StringVar(&o.ecsPackage, "ecs-package", "", "URL or path of amazon-ecs-init's deb, its signature beside it as .asc (default: Amazon's bucket in the region)")
	f.StringVar(&o.ecsKey, "ecs-key", "", "URL or path of the key that signed it, which must be "+ecsKeyFingerprint+" (default: from aws/amazon-ecs-agent)")
	f.DurationVar(&o.timeout, "timeout", 10*time.Minute, "how long to wait for the agent's proof and the first certificates")
	f.DurationVar(&o.signalTimeout, "signal-timeout", signalTimeout, signalWaitHelp)
}

func signalCommand() *cobra.Command {
	var o signalOptions
	cmd := &cobra.Command{
		Use:   "signal",
		Short: "Wait until the node has joined the cluster, and tell CloudFormation",
		Long: `Wait until the ECS agent has registered the node to its cluster, and signal SUCCESS to CloudFormation; FAILURE if it has
not in time. What to signal is in signal.json, which bootstrap writes. sevagent-signal.service runs this after ecs.service.
It signals once: started again, it does nothing.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := fromEnvironment(cmd.Flags(), os.LookupEnv); err != nil {
				return cli.Usage(err)
			}
			if err := o.check(); err != nil {
				return cli.Usage(err)
			}
			return signal(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.configDir, "config-dir", defaultConfigDir, "the directory with signal.json")
	f.StringVar(&o.stateDir, "state-dir", defaultStateDir, stateDirHelp)
	f.StringVar(&o.introspection, "introspection", "http://127.0.0.1:51678", "the ECS agent's introspection endpoint, on loopback")
	f.DurationVar(&o.timeout, "timeout", 5*time.Minute, "how long to wait for the registration")
	f.DurationVar(&o.signalTimeout, "signal-timeout", signalTimeout, signalWaitHelp)
	return cmd
}

// fromEnvironment sets the flags that were not given from SEVAGENT_BOOTSTRAP_*. Lists, those in flags too, are separated
// by commas.
func fromEnvironment(flags *pflag.FlagSet, lookup func(string) (string, bool)) (err error) {
	flags.VisitAll(func(f *pflag.Flag) {
		list, isList := f.Value.(pflag.SliceValue)
		if f.Changed {
			if isList {
				err = errors.Join(err, list.Replace(split(f.Name, list.GetSlice())))
			}
			return
		}
		name := "SEVAGENT_BOOTSTRAP_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value, ok := lookup(name)
		if !ok || value == "" {
			return
		}
		values := []string{value}
		if isList {
			values = split(f.Name, values)
		}
		for _, v := range values {
			if setErr := flags.Set(f.Name, strings.TrimSpace(v)); setErr != nil {
				err = errors.Join(err, fmt.Errorf("%s: %w", name, setErr))
			}
		}
	})
	return err
}

// split takes lists apart at their commas. In those of --ecs-option, a comma before anything but KEY= belongs to the value:
// ECS_RESERVED_PORTS=[22,9180],ECS_LOGLEVEL=warn are two.
func split(flag string, lists []string) (values []string) {
	for _, list := range lists {
		first := true
		for part := range strings.SplitSeq(list, ",") {
			key, _, assigns := strings.Cut(strings.TrimSpace(part), "=")
			switch {
			case flag == "ecs-option" && !first && !(assigns && optionKey.MatchString(key)):
				values[len(values)-1] += "," + part
			case strings.TrimSpace(part) != "":
				values = append(values, strings.TrimSpace(part))
				first = false
			}
		}
	}
	return values
}

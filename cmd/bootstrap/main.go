// Command bootstrap runs once, from EC2 user data, and leaves either the machine that was asked for or none: it checks
// everything, then writes, then starts. Run again, it changes nothing.
//
// It reads the instance metadata by IMDSv2 only, configures sevagent, starts it and waits for its proof, writes
// /etc/ecs/ecs.config with attributes from the verified report, and starts the ECS agent, which it first installs on
// Ubuntu. If any step fails, it signals CloudFormation at once, with the reason.
//
// It cannot wait for the node to join: on Amazon Linux the ECS agent starts only after the user data. So it leaves
// /etc/sevagent/signal.json and starts sevagent-signal.service without waiting. That runs 'bootstrap signal', which
// waits for the registration and signals CloudFormation.
//
// A node signals its stack once. What it sent is in /var/lib/sevagent/signaled.json, so that neither a reboot nor a
// second run disturbs a rolling update of other nodes.
//
// This folder is the command line. What the commands do is in package internal/bootstrap, whose Run lists the steps of
// the first boot.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sevagent/internal/bootstrap"
	"sevagent/internal/cli"
)

func main() { cli.Main("bootstrap", run) }

// run runs the command that args name until it is done, or ctx ends.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	var o bootstrap.Options
	began := false
	root := newCommand(&o, &began)
	err := cli.Execute(ctx, root, args, stdin, stdout, stderr)
	if err == nil || began || !firstBoot(args) {
		return err
	}
	// Nobody is there to see a mistake in the flags, and the stack to signal may come from the environment.
	_ = fromEnvironment(root.Flags(), os.LookupEnv)
	return bootstrap.Fail(ctx, o, stdout, err)
}

// firstBoot reports whether --first-boot is set for the command bootstrap itself, even if other flags are wrong.
func firstBoot(args []string) bool {
	if len(args) > 0 && slices.Contains([]string{"signal", "may-join"}, args[0]) {
		return false
	}
	fromEnv, _ := strconv.ParseBool(os.Getenv("SEVAGENT_BOOTSTRAP_FIRST_BOOT"))
	return fromEnv || slices.Contains(args, "--first-boot")
}

// newCommand returns the command bootstrap with all below it. It sets began once bootstrap.Run takes over.
func newCommand(o *bootstrap.Options, began *bool) *cobra.Command {
	root := &cobra.Command{
		Use:         "bootstrap",
		Annotations: map[string]string{cli.CalledAs: "/usr/libexec/sevagent/bootstrap"},
		Short:       "Turn a fresh EC2 instance into an attested ECS node",
		Long:        longHelp(),
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := fromEnvironment(cmd.Flags(), os.LookupEnv); err != nil {
				return cli.Usage(err)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			*began = true
			return bootstrap.Run(cmd.Context(), *o, cli.BestEffort(cmd.OutOrStdout()))
		},
	}
	addFlags(root.Flags(), o)
	root.AddCommand(signalCommand(), mayJoinCommand())
	return root
}

func signalCommand() *cobra.Command {
	var o bootstrap.SignalOptions
	cmd := &cobra.Command{
		Use:   "signal",
		Short: "Wait until the node has joined, and signal CloudFormation",
		Long: `Wait until the ECS agent has registered the node to its cluster, and signal
SUCCESS to CloudFormation, or FAILURE if it does not register in time. What to
signal is in signal.json, which bootstrap writes. sevagent-signal.service runs
this after ecs.service. It signals success once: started again, it does nothing.
While the instance is in a warm pool, it waits, and no time counts.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return bootstrap.Signal(cmd.Context(), o, cli.BestEffort(cmd.OutOrStdout()))
		},
	}
	f := cmd.Flags()
	dirFlags(f, &o.Dirs, "the `DIRECTORY` that holds\nsignal.json", "the `DIRECTORY` that records what was\nsignaled")
	f.StringVar(&o.Introspection, "introspection", "http://127.0.0.1:51678",
		"the ECS agent's introspection `URL`,\non loopback")
	f.DurationVar(&o.Timeout, "timeout", 5*time.Minute, "`DURATION` to wait for the\nregistration")
	signalTimeoutFlag(f, &o.SignalTimeout)
	return cmd
}

func mayJoinCommand() *cobra.Command {
	var dirs bootstrap.Dirs
	cmd := &cobra.Command{
		Use:   "may-join",
		Short: "Report whether the ECS agent may start on this machine",
		Long: `Report whether the ECS agent may start on this machine. ecs.service has this as
its condition: a node that bootstrap has begun joins the cluster only once
bootstrap has finished, on this instance, also after a reboot.

What bootstrap wrote to ecs.config and is lost there, by a script of the user
data for instance, is put back first: the cluster, sevagent's attributes, and
settings that are gone or mean nothing to the ECS agent. Other values stay.

Exit status 0: it may. Bootstrap has finished here, or was never used here,
because the node is configured in another way. Exit status 1: it may not, and
the reason is printed. --state-dir holds bootstrapped.json, which records how
far bootstrap has come. To configure a node in another way after bootstrap has
begun there, remove that file and 50-bootstrap.yaml.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return bootstrap.MayJoin(cmd.Context(), dirs, cli.BestEffort(cmd.OutOrStdout()))
		},
	}
	dirFlags(cmd.Flags(), &dirs,
		"the agent's configuration `DIRECTORY`;\n50-bootstrap.yaml in its conf.d means that\nbootstrap was used",
		"the `DIRECTORY` that records how far bootstrap has\ncome")
	return cmd
}

// longHelp also documents what bootstrap sets in ecs.config.
func longHelp() string {
	var b strings.Builder
	b.WriteString(`Turn a fresh EC2 instance into an attested ECS node: configure and start
sevagent, wait for its proof, write /etc/ecs/ecs.config, start the ECS agent.

Each flag can also be set by the environment: --cluster by
SEVAGENT_BOOTSTRAP_CLUSTER, and so on; lists are separated by commas there. A
flag takes precedence. User data sets --first-boot, so that a mistake in flags
or the environment keeps the node out and is signaled; else it changes nothing.

With --stack, any failure is signaled to --ready-resource and --update-resource
of that CloudFormation stack, with the step and the cause in the signal's unique
ID. A resource that does not wait refuses, which is no error. Success is
signaled by 'bootstrap signal', which sevagent-signal.service runs once the ECS
agent has been started.

Whatever may be late at boot is asked until its deadline: the metadata service
for --metadata-timeout, the agent for --timeout, CloudFormation and the role's
credentials for --signal-timeout. All but the signal ends after --deadline.

ecs.config gets these keys unless it has them already; --ecs-option sets others,
or other values, and replaces what is there. A value that the ECS agent would
not understand is refused or reported:

`)
	for _, s := range bootstrap.Hardening {
		fmt.Fprintf(&b, "  %s=%s\n      %s\n", s.Key, s.Value, s.Why)
	}
	b.WriteString(`
Exit status: 0 done, 1 the node is not as it should be, 2 wrong usage or
configuration, 3 AWS, the agent or the network could not be reached.`)
	return b.String()
}

func addFlags(f *pflag.FlagSet, o *bootstrap.Options) {
	f.StringVar(&o.Target.Cluster, "cluster", "", "the ECS cluster to join, by `NAME` (required)")
	f.StringVar(&o.Target.Stack, "stack", "", "the CloudFormation stack to signal, by `NAME`\nor ID (default: none)")
	f.StringVar(&o.Target.ReadyResource, "ready-resource", "",
		"logical `ID` of the resource that the stack's\ncreation waits for")
	f.StringVar(&o.Target.UpdateResource, "update-resource", "",
		"logical `ID` of the resource that a rolling\nupdate waits for, the Auto Scaling group")
	f.StringVar(&o.Target.Region, "region", "", "the stack's `REGION` (default: the\ninstance's)")
	f.StringArrayVar(&o.Secrets, "mtls-secret", nil,
		"a `SECRET` with certificates to publish: ARN,\nname or file:///path; repeatable, or\nseparated by commas")
	f.StringArrayVar(&o.Endpoints, "enclave-endpoint", nil,
		"an enclave server, `HOST:PORT`; repeatable,\nor separated by commas")
	f.StringVar(&o.MTLSPath, "mtls-path", "",
		"the `DIRECTORY` that certificates are\npublished in (default: the agent's,\n/etc/ecs/mtls)")
	f.StringVar(&o.MTLSOwner, "mtls-owner", "",
		"owner of the published files, `UID:GID`\n(default: the agent's, 0:0)")
	f.StringArrayVar(&o.Consumers, "mtls-consumer", nil,
		"a `CONSUMER`, which is a directory below that\nwith its own owner and fewer files:\n"+
			"NAME=UID:GID=FILE,FILE; repeatable, or\nseparated by commas")
	f.StringArrayVar(&o.Issue, "mtls-issue", nil,
		"an entry of mtls.issue as `JSON`: where a\ncertificate comes from whose key is made\non the node; repeatable")
	f.StringVar(&o.Mode, "attestation-mode", "",
		"`MODE` is enforce, warn or off (default: the\nagent's, enforce)")
	dirFlags(f, &o.Dirs, "the agent's configuration `DIRECTORY`;\n50-bootstrap.yaml goes into its\nconf.d",
		"the `DIRECTORY` that records how far\nbootstrap has come and what was\nsignaled")
	f.StringVar(&o.ECSConfig, "ecs-config", "/etc/ecs/ecs.config",
		"the `FILE` with the ECS agent's\nconfiguration, merged with what is\nthere")
	f.StringArrayVar(&o.ECSOptions, "ecs-option", nil,
		"`KEY=VALUE` for ecs.config, or KEY= to remove\na key and leave it to the ECS agent;\nrepeatable")
	f.StringVar(&o.ECSData, "ecs-data-dir", "/var/lib/ecs/data",
		"the `DIRECTORY` with the ECS agent's data,\nwhich names the cluster that it has\njoined")
	f.StringVar(&o.Socket, "socket", "/run/sevagent/sevagent.sock", "`PATH` of the socket of the agent's\nAPI")
	f.StringVar(&o.Services, "services", bootstrap.ServicesSystemd,
		"who starts sevagent, ecs and\nsevagent-signal; `WHO` is systemd, or none\nfor the caller")
	f.StringVar(&o.Install.When, "install-ecs", bootstrap.InstallAuto,
		"`WHEN` is auto: install Docker and\namazon-ecs-init by apt where they are\nmissing; or never")
	f.StringVar(&o.Install.Package, "ecs-package", "",
		"`URL` or path of amazon-ecs-init's deb, its\nsignature beside it as .asc (default:\n"+
			"Amazon's bucket in the region)")
	f.StringVar(&o.Install.Key, "ecs-key", "",
		"`URL` or path of Amazon's signing key, whose\nfingerprint is fixed (default: from\naws/amazon-ecs-agent)")
	f.DurationVar(&o.MetadataTimeout, "metadata-timeout", 2*time.Minute,
		"`DURATION` to wait for the instance metadata\nservice")
	f.DurationVar(&o.Timeout, "timeout", 10*time.Minute,
		"`DURATION` to wait for the agent's proof and\nthe first certificates")
	f.StringVar(&o.Provider, "capacity-provider", "",
		"wait until the cluster lists the capacity\nprovider `NAME` before the node joins\n(default: do not wait)")
	f.DurationVar(&o.ProviderTimeout, "provider-timeout", 10*time.Minute,
		"`DURATION` to wait for that")
	f.DurationVar(&o.Deadline, "deadline", 20*time.Minute,
		"`DURATION` of all of this together, after\nwhich bootstrap fails and signals\nthat")
	signalTimeoutFlag(f, &o.SignalTimeout)
	f.BoolVar(&o.FirstBoot, "first-boot", false,
		"user data's call: a mistake in the options,\ntoo, keeps the node out and is signaled")
}

func dirFlags(f *pflag.FlagSet, d *bootstrap.Dirs, config, state string) {
	f.StringVar(&d.Config, "config-dir", bootstrap.DefaultDirs.Config, config)
	f.StringVar(&d.State, "state-dir", bootstrap.DefaultDirs.State, state)
}

func signalTimeoutFlag(f *pflag.FlagSet, timeout *time.Duration) {
	f.DurationVar(timeout, "signal-timeout", 5*time.Minute,
		"`DURATION` to try to signal CloudFormation,\nand to wait for a resource that does not\nwait yet")
}

// Package bootstrap is what the first boot of a node does. Run turns the machine into an attested ECS node, step by
// step; Signal reports the node's registration to CloudFormation; MayJoin decides at every boot whether the ECS agent
// may start. The command line is cmd/bootstrap.
//
// Each file is one part of it: bootstrap.go has the steps, options.go what can be asked for, metadata.go the metadata
// service, proof.go the agent and its proof, provider.go the capacity provider, ecsconfig.go ecs.config, written.go
// what of it is put back later, agentdata.go the ECS agent's saved cluster, install.go the packages, systemd.go and
// unitfiles.go the units, cloudformation.go and reason.go what a stack is signaled, signal.go and ecslog.go the
// registration, progress.go how far bootstrap has come.
package bootstrap

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/coreos/go-systemd/v22/dbus"

	"sevagent/internal/atomicfile"
	"sevagent/internal/awsconfig"
	"sevagent/internal/cli"
)

// Run turns this machine into an attested ECS node. It checks everything, then writes, then starts; run again, it
// changes nothing. If a step fails, the node stays out of the cluster, and the stack gets the reason.
func Run(ctx context.Context, o Options, out io.Writer) error {
	return newNode(o, thisMachine(), out).run(ctx)
}

// Fail does what Run does when a step fails, for an error that came before the first, such as an unknown flag. It is
// for FirstBoot.
func Fail(ctx context.Context, o Options, out io.Writer, err error) error {
	return newNode(o, thisMachine(), out).fail(ctx, err)
}

// machine is where bootstrap finds things on the computer that it runs on.
type machine struct {
	dirs           Dirs   // those that the units use
	unitDir        string // an administrator's units, which come before those of packages
	instanceIDFile string // where cloud-init records, early at every boot, which instance it has set up
	ecsKey         string // fingerprint of the primary key that signs the ECS agent's package
	ecsLog         string // the ECS agent's
	connect        func(ctx context.Context) (systemd, error)
	aws            func(options ...func(*aws.Config)) (aws.Config, error)
	local          *http.Client // for the ECS agent's introspection endpoint
	proc           string
}

func thisMachine() machine {
	return machine{
		dirs:           DefaultDirs,
		unitDir:        "/etc/systemd/system",
		instanceIDFile: "/var/lib/cloud/data/instance-id",
		ecsKey:         ecsKeyFingerprint,
		ecsLog:         "/var/log/ecs/ecs-agent.log",
		connect:        func(ctx context.Context) (systemd, error) { return dbus.NewSystemConnectionContext(ctx) },
		aws:            awsconfig.Load,
		// Never through a proxy: Go bypasses it for 127.0.0.1, which is not documented for other loopback addresses.
		local: &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}},
		proc:  "/proc",
	}
}

// node is a run of bootstrap on a machine. Each step leaves there what later ones need.
type node struct {
	Options
	machine machine
	report  report
	units   units

	agentConfig []byte
	agentTCP    string // address of its local API, "" if it has none there
	agentMode   string // of its attestation
	agentTPM    string // its attestation.nitrotpm
	unitFiles   unitFiles
	ecs         *ecsConfig
	missing     []string // packages
	attributes  map[string]string

	touched      bool // the machine is, or may be, in another state than an earlier run left it
	agentChanged bool // its configuration or its unit
	ecsChanged   bool
}

func newNode(o Options, m machine, out io.Writer) *node {
	return &node{Options: o, machine: m, report: reportTo(out)}
}

// report prints a line about a step.
type report func(step, format string, args ...any)

func reportTo(out io.Writer) report {
	return func(step, format string, args ...any) {
		cli.Fprintf(out, "%-12s %s\n", step, fmt.Sprintf(format, args...))
	}
}

func (n *node) run(ctx context.Context) error {
	if err := n.checkUsage(); err != nil {
		if n.FirstBoot {
			return n.fail(ctx, err)
		}
		return err
	}
	defer func() { n.units.close() }()
	late := fmt.Errorf("bootstrap is not done within %v", n.Deadline)
	bounded, cancel := context.WithTimeoutCause(ctx, n.Deadline, late)
	defer cancel()
	for _, step := range []struct {
		name string
		do   func(ctx context.Context) error
	}{
		// Check everything first: after this, nothing fails that could have been known in advance.
		{"services", n.connectUnits},
		{"state", n.begin},
		{"metadata", n.identify},
		{"ecs.config", n.planECSConfig},
		{"install", n.planInstall},
		{"services", n.checkUnits},
		// Configure the agent, and wait for its proof.
		{"state", n.touch},
		{"agent configuration", n.writeAgentConfig},
		{"units", n.placeUnitFiles},
		{"start sevagent", n.startAgent},
		{"proof", n.waitForProof},
		{"provider", n.waitForProvider},
		// Join the cluster. The ECS agent is installed only now: before, nothing could have joined.
		{"ecs.config", n.writeECSConfig},
		{"install", n.install},
		{"signal", n.writeTarget},
		{"state", n.finish}, // or ecs.service would not start
		{"start ecs", n.startECS},
		{"start signal", n.startSignal},
	} {
		if err := step.do(bounded); err != nil {
			if context.Cause(bounded) == late && !errors.Is(err, late) {
				err = fmt.Errorf("%w: %w", late, err)
			}
			return n.fail(ctx, &stepError{step.name, err})
		}
	}
	n.report("done", "cluster %s", n.Target.Cluster)
	return nil
}

// checkUsage reports mistakes in the options, and in the agent's configuration with them.
func (n *node) checkUsage() error {
	if err := n.check(n.machine.dirs); err != nil {
		return failed("options", cli.Usage(err))
	}
	if err := n.checkECSOptions(); err != nil {
		return failed("options", cli.Usage(err))
	}
	return failed("agent configuration", n.planAgent())
}

func (n *node) connectUnits(ctx context.Context) (err error) {
	n.units, err = n.machine.units(ctx, n.Services)
	return err
}

// identify asks the metadata service which instance this is, and so which one signals.
func (n *node) identify(ctx context.Context) error {
	m, err := n.machine.identity(ctx, n.MetadataTimeout)
	if err != nil {
		return err
	}
	n.Target.InstanceID = m.InstanceID
	if n.Target.Region == "" {
		n.Target.Region = m.Region
	}
	n.report("metadata", "%s, %s in %s (IMDSv2)", m.InstanceID, m.InstanceType, m.Region)
	return nil
}

// checkUnits looks for the units that must exist already.
func (n *node) checkUnits(ctx context.Context) error {
	names := []string{agentUnit}
	if n.missing == nil {
		names = append(names, ecsUnit)
	}
	if n.Target.Stack != "" {
		names = append(names, signalUnit)
	}
	return n.units.check(ctx, names...)
}

func (n *node) placeUnitFiles(ctx context.Context) error {
	if n.Services != ServicesSystemd {
		return nil
	}
	changed, err := n.unitFiles.place(n.machine.unitDir, n.report)
	if err != nil || !changed {
		return err
	}
	n.agentChanged = true
	return n.units.reload(ctx)
}

func (n *node) startAgent(ctx context.Context) error {
	return n.units.startAgent(ctx, n.agentChanged, n.Timeout)
}

// writeTarget leaves what Signal needs. None of it is secret.
func (n *node) writeTarget(context.Context) error {
	if n.Target.Stack == "" {
		return nil
	}
	text, err := json.MarshalIndent(n.Target, "", "  ")
	if err != nil {
		panic(err) // text always marshals
	}
	_, err = n.write("signal", filepath.Join(n.Dirs.Config, signalFile), append(text, '\n'), 0o644)
	return err
}

func (n *node) startECS(ctx context.Context) error { return n.units.start(ctx, ecsUnit, n.ecsChanged) }

func (n *node) startSignal(ctx context.Context) error {
	if n.Target.Stack == "" {
		return nil
	}
	return n.units.start(ctx, signalUnit, false)
}

// fail keeps the node out of the cluster, signals the failure to CloudFormation if there is a stack, and returns the
// error to end with.
func (n *node) fail(ctx context.Context, err error) error {
	if refused := n.refuse(context.WithoutCancel(ctx)); refused != nil {
		err = fmt.Errorf("%w; and the ECS agent may start: %v", err, refused)
	}
	if n.Target.Stack == "" || n.checkSignal() != nil {
		return err
	}
	timeout := n.SignalTimeout
	if ctx.Err() != nil { // asked to stop: the machine goes down, or a person is waiting
		timeout = min(timeout, 30*time.Second)
	}
	ctx = context.WithoutCancel(ctx)
	if s, ok := errors.AsType[*stepError](err); n.Target.InstanceID == "" && !(ok && s.step == "metadata") {
		_ = n.identify(ctx) // a failure shows in what follows
	}
	if state := n.machine.warmPool(ctx); state != "" {
		n.report("signal", "none yet: the instance is in a warm pool, %s", state)
		return n.leaveSignal(ctx, err)
	}
	r := signaler{n.machine, n.Target, n.Dirs.State, timeout, n.report}
	return r.failure(ctx, err)
}

// leaveSignal leaves the signal of a failure to sevagent-signal.service: an instance in a warm pool is not waited for,
// and may be stopped there, until it goes into service.
func (n *node) leaveSignal(ctx context.Context, why error) error {
	n.Target.Failure = failureID(n.Target.InstanceID, why)
	err := n.writeTarget(ctx)
	if err == nil {
		var u units
		if u, err = n.machine.units(ctx, n.Services); err == nil {
			defer u.close()
			err = u.start(ctx, signalUnit, false)
		}
	}
	if err != nil {
		return fmt.Errorf("%w; and it will not be signaled: %v", why, err)
	}
	return why
}

// refuse keeps a node that is not what was asked for out of the cluster, at this boot and at later ones. A running ECS
// agent is left alone, and so is a node that an earlier run finished if this run changed nothing: it is a node, and a
// later run of bootstrap has failed.
func (n *node) refuse(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if !n.touched && n.wasFinished(ctx) {
		return nil
	}
	u, err := n.machine.units(ctx, n.Services)
	if err != nil {
		return errors.Join(err, n.note(begun))
	}
	defer u.close()
	if u.runsECS(ctx) {
		return nil
	}
	return errors.Join(n.note(begun), u.refuseECS(ctx))
}

// write writes a file unless it has the content already, and prints which.
func (n *node) write(step, path string, data []byte, perm fs.FileMode) (changed bool, err error) {
	changed, err = writeIfChanged(path, data, perm)
	if err == nil {
		n.report(step, "%s %s", path, wording(changed))
	}
	return changed, err
}

func wording(changed bool) string {
	if changed {
		return "written"
	}
	return "unchanged"
}

// writeIfChanged leaves a file alone that has the content already.
func writeIfChanged(path string, data []byte, perm fs.FileMode) (changed bool, err error) {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	return true, atomicfile.Write(path, data, perm)
}

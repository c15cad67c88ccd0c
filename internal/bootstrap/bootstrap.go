package bootstrap

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"sevagent/internal/atomicfile"
	"sevagent/internal/cli"
)

// options are the flags; command.go has the help text of each.
type options struct {
	cluster            string
	secrets, endpoints []string
	mtlsPath, mode     string
	configDir          string
	ecsConfig          string
	ecsOptions         []string
	socket             string
	services           string
	timeout            time.Duration

	stack, readyResource, updateResource, region string
	stateDir                                     string
	signalTimeout                                time.Duration

	installECS, ecsPackage, ecsKey string
}

// What ECS and CloudFormation accept.
var (
	clusterName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]{0,254}$`)
	stackName   = regexp.MustCompile(`^([a-zA-Z][-a-zA-Z0-9]{0,127}|arn:aws[a-z-]*:cloudformation:[-a-zA-Z0-9:/._+]+)$`)
	logicalID   = regexp.MustCompile(`^[A-Za-z0-9]{0,255}$`)
	regionName  = regexp.MustCompile(`^([a-z0-9]+(-[a-z0-9]+)+)?$`)
)

// check reports every mistake in the options that can be seen without the agent's own configuration.
func (o options) check() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !clusterName.MatchString(o.cluster) {
		wrong("--cluster is %q, want a letter followed by letters, digits, - and _, at most 255", o.cluster)
	}
	if o.services != servicesSystemd && o.services != servicesNone {
		wrong("--services is %q, want %s or %s", o.services, servicesSystemd, servicesNone)
	}
	if o.installECS != installAuto && o.installECS != installNever {
		wrong("--install-ecs is %q, want %s or %s", o.installECS, installAuto, installNever)
	}
	if o.timeout <= 0 {
		wrong("--timeout is %v, want more than nothing", o.timeout)
	}
	if _, _, err := o.ecsSettings(); err != nil {
		errs = append(errs, err)
	}
	// testOnlyConnect: a test has directories of its own.
	if o.services == servicesSystemd && testOnlyConnect == nil && (o.stateDir != defaultStateDir || o.configDir != defaultConfigDir) {
		wrong("--state-dir is %q and --config-dir %q: the units know %s and %s alone; use --services=%s with others", o.stateDir, o.configDir, defaultStateDir, defaultConfigDir, servicesNone)
	}
	if filepath.IsAbs(o.mtlsPath) && o.services == servicesSystemd { // of what is no path, the agent's configuration says more
		if _, err := unitPath(o.mtlsPath); err != nil {
			wrong("--mtls-path is %q: %w", o.mtlsPath, err)
		}
	}
	return errors.Join(append(errs, o.checkSignal(), checkSource("--ecs-package", o.ecsPackage), checkSource("--ecs-key", o.ecsKey))...)
}

// checkSignal is check for what is about CloudFormation.
func (o options) checkSignal() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	named := o.readyResource != "" || o.updateResource != ""
	switch {
	case o.stack == "" && named:
		wrong("--stack is missing: it has the resources to signal")
	case o.stack != "" && !named:
		wrong("--ready-resource or --update-resource is missing: a resource of stack %s to signal", o.stack)
	case o.stack != "" && !stackName.MatchString(o.stack):
		wrong("--stack is %q, want a stack's name or ID", o.stack)
	}
	for _, r := range [][2]string{{"--ready-resource", o.readyResource}, {"--update-resource", o.updateResource}} {
		if !logicalID.MatchString(r[1]) {
			wrong("%s is %q, want a logical ID: letters and digits", r[0], r[1])
		}
	}
	if !regionName.MatchString(o.region) {
		wrong("--region is %q, want a region such as us-east-2", o.region)
	}
	if o.signalTimeout <= 0 {
		wrong("--signal-timeout is %v, want more than nothing", o.signalTimeout)
	}
	return errors.Join(errs...)
}

// node is a run of bootstrap on this machine.
type node struct {
	options
	out    io.Writer
	target target
	units  units
	unitFiles
	touched bool // something is, or may be, another than an earlier run left it
}

func (n *node) say(step, format string, args ...any) {
	fmt.Fprintf(n.out, "%-12s %s\n", step, fmt.Sprintf(format, args...))
}

// identify asks who this machine is, and so who it is that signals.
func (n *node) identify(ctx context.Context) error {
	n.target = target{
		Cluster: n.cluster, Stack: n.stack, ReadyResource: n.readyResource, UpdateResource: n.updateResource, Region: n.region,
	}
	m, err := readMetadata(ctx)
	if err != nil {
		return err
	}
	n.target.InstanceID = m.InstanceID
	if n.region == "" {
		n.target.Region = m.Region
	}
	n.say("metadata", "%s, %s in %s (IMDSv2)", m.InstanceID, m.InstanceType, m.Region)
	return nil
}

// bootstrap does the steps in order; each error names its step.
func (n *node) bootstrap(ctx context.Context) error {
	var err error
	if n.units, err = connectUnits(ctx, n.services); err != nil {
		return failed("services", err)
	}
	defer n.units.close()
	if !n.units.runsECS(ctx) && !n.wasFinished(ctx) {
		if err := n.note(begun); err != nil {
			return failed("state", err)
		}
	}
	// Check everything first: after this, nothing that could have been known in advance fails.
	if err := n.identify(ctx); err != nil {
		return failed("metadata", err)
	}
	agentConfig, cfg, err := n.agentConfig()
	if err != nil {
		return failed("agent configuration", err)
	}
	if n.services == servicesSystemd {
		if n.unitFiles, err = unitFilesFor(cfg.MTLS); err != nil {
			return failed("agent configuration", cli.Usage(err))
		}
	}
	ecs, err := n.readECSConfig()
	if err != nil {
		return failed("ecs.config", err)
	}
	if _, err := ecs.merge(nil); err != nil {
		return failed("ecs.config", err)
	}
	missing, err := n.missingPackages(ctx)
	if err != nil {
		return failed("install", err)
	}
	if err := n.units.check(ctx, n.needed(missing)...); err != nil {
		return failed("services", err)
	}

	n.touched = true
	if !n.units.runsECS(ctx) {
		if err := n.note(begun); err != nil {
			return failed("state", err)
		}
	}
	if err := n.configure(ctx, agentConfig); err != nil {
		return err
	}
	attributes, err := waitForProof(ctx, n.options)
	if err != nil {
		return failed("proof", err)
	}
	n.say("proof", "attested=%s tcb=%s measurement=%.16s…", attributes[attrAttested], attributes[attrTCB], attributes[attrMeasurement])
	return n.join(ctx, ecs, attributes, missing)
}

// needed are the units that must be there already.
func (n *node) needed(missing []string) []string {
	names := []string{agentUnit}
	if missing == nil {
		names = append(names, ecsUnit)
	}
	if n.stack != "" {
		names = append(names, signalUnit)
	}
	return names
}

// configure writes and starts the agent.
func (n *node) configure(ctx context.Context, agentConfig []byte) error {
	file := filepath.Join(n.configDir, overlay)
	changed, err := writeIfChanged(file, agentConfig, 0o644)
	if err != nil {
		return failed("agent configuration", err)
	}
	n.say("agent", "%s %s", file, wording(changed))
	if n.services == servicesSystemd {
		granted, err := n.unitFiles.place(n.say)
		if err == nil && granted {
			err = n.units.reload(ctx)
		}
		if err != nil {
			return failed("units", err)
		}
		changed = changed || granted
	}
	return failed("start sevagent", n.units.startAgent(ctx, changed, n.timeout))
}

// join makes the proven node a part of the cluster. The ECS agent is installed only now: before, there was nothing that
// could have joined.
func (n *node) join(ctx context.Context, ecs *ecsConfig, attributes map[string]string, missing []string) error {
	merged, err := ecs.merge(attributes)
	if err != nil {
		return failed("ecs.config", err)
	}
	changed, err := writeIfChanged(n.ecsConfig, merged, ecs.mode)
	if err != nil {
		return failed("ecs.config", err)
	}
	n.say("ecs.config", "%s %s", n.ecsConfig, wording(changed))
	if ecs.portOpen != "" {
		n.say("ecs.config", "port %s is not among ECS_RESERVED_PORTS: a task can take it from sevagent", ecs.portOpen)
	}
	if missing != nil {
		if err := n.install(ctx, missing); err != nil {
			return failed("install", err)
		}
		n.say("install", "%v", missing)
	}
	if n.stack != "" {
		if err := n.leaveSignal(); err != nil {
			return failed("signal", err)
		}
	}
	if err := n.note(finished); err != nil { // or ecs.service would not start
		return failed("state", err)
	}
	if err := n.units.startECS(ctx, changed); err != nil {
		return failed("start ecs", err)
	}
	if n.stack != "" {
		if err := n.units.startSignal(ctx); err != nil {
			return failed("start signal", err)
		}
	}
	n.say("done", "cluster %s", n.cluster)
	return nil
}

// leaveSignal writes what 'bootstrap signal' needs to know. None of it is secret.
func (n *node) leaveSignal() error {
	text, err := json.MarshalIndent(n.target, "", "  ")
	if err != nil {
		panic(err) // of text: always marshals
	}
	file := filepath.Join(n.configDir, signalFile)
	changed, err := writeIfChanged(file, append(text, '\n'), 0o644)
	if err != nil {
		return err
	}
	n.say("signal", "%s %s", file, wording(changed))
	return nil
}

// refuse keeps a node that is not what was asked for out of the cluster, at this boot and at later ones. One that runs is
// left alone, and so is one that an earlier run has finished, if this one has changed nothing: this is a node, and it is a
// later run of bootstrap that has failed.
func (n *node) refuse(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if !n.touched && n.wasFinished(ctx) {
		return nil
	}
	u, err := connectUnits(ctx, n.services)
	if err != nil {
		return errors.Join(err, n.note(begun))
	}
	defer u.close()
	if u.runsECS(ctx) {
		return nil
	}
	return errors.Join(n.note(begun), u.refuseECS(ctx))
}

// report tells CloudFormation that a step has failed, if there is a stack to tell, and returns the error to end with.
func (n *node) report(ctx context.Context, err error) error {
	if refused := n.refuse(context.WithoutCancel(ctx)); refused != nil {
		err = fmt.Errorf("%w; and the ECS agent may start: %v", err, refused)
	}
	if n.stack == "" || n.checkSignal() != nil {
		return err
	}
	timeout := n.signalTimeout
	if ctx.Err() != nil { // told to stop: the machine goes down, or a person is waiting
		timeout = min(timeout, 30*time.Second)
	}
	ctx = context.WithoutCancel(ctx)
	if s, ok := errors.AsType[*stepError](err); n.target.InstanceID == "" && !(ok && s.step == "metadata") {
		_ = n.identify(ctx) // a failure shows in what follows
	}
	r := reporter{n.target, n.stateDir, timeout, n.say}
	if told := r.failure(ctx, err); told != nil {
		return fmt.Errorf("%w; and CloudFormation was not told: %v", err, told)
	}
	return err
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

package main

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
	"strings"
	"time"

	"sevagent/client"
	"sevagent/internal/atomicfile"
	"sevagent/internal/cli"
	"sevagent/internal/config"
	"sevagent/internal/ecsconfig"
)

// options are the flags; main.go has the help text of each.
type options struct {
	cluster            string
	secrets, endpoints []string
	mtlsPath, mode     string
	configDir          string
	ecsConfig          string
	socket             string
	services           string
	timeout            time.Duration
}

// clusterName is what ECS accepts.
var clusterName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]{0,254}$`)

// check reports every mistake in the options that can be seen without the agent's own configuration.
func (o options) check() error {
	var errs []error
	if !clusterName.MatchString(o.cluster) {
		errs = append(errs, fmt.Errorf("--cluster is %q, want a letter followed by letters, digits, - and _, at most 255", o.cluster))
	}
	if o.services != servicesSystemd && o.services != servicesNone {
		errs = append(errs, fmt.Errorf("--services is %q, want %s or %s", o.services, servicesSystemd, servicesNone))
	}
	if o.timeout <= 0 {
		errs = append(errs, fmt.Errorf("--timeout is %v, want more than nothing", o.timeout))
	}
	return errors.Join(errs...)
}

// bootstrap does the steps in order; each error names its step.
func bootstrap(ctx context.Context, o options, out io.Writer) error {
	say := func(step, format string, args ...any) {
		fmt.Fprintf(out, "%-12s %s\n", step, fmt.Sprintf(format, args...))
	}

	// Check everything first: after this, nothing that could have been known in advance fails.
	node, err := readMetadata(ctx)
	if err != nil {
		return fmt.Errorf("metadata: %w", err)
	}
	say("metadata", "%s, %s in %s (IMDSv2)", node.InstanceID, node.InstanceType, node.Region)
	agentConfig, err := o.agentConfig()
	if err != nil {
		return fmt.Errorf("agent configuration: %w", err)
	}
	before, err := readECSConfig(o.ecsConfig)
	if err != nil {
		return fmt.Errorf("ecs.config: %w", err)
	}
	if _, err := mergeECSConfig(before, o, nil); err != nil {
		return fmt.Errorf("ecs.config: %w", err)
	}
	units, err := connectUnits(ctx, o.services)
	if err != nil {
		return fmt.Errorf("services: %w", err)
	}
	defer units.close()

	file := filepath.Join(o.configDir, "conf.d", "50-bootstrap.yaml")
	changed, err := writeIfChanged(file, agentConfig, 0o644)
	if err != nil {
		return fmt.Errorf("agent configuration: %w", err)
	}
	say("agent", "%s %s", file, wording(changed))
	if err := units.startAgent(ctx, changed); err != nil {
		return fmt.Errorf("start sevagent: %w", err)
	}

	attributes, err := waitForProof(ctx, o)
	if err != nil {
		return fmt.Errorf("proof: %w", err)
	}
	say("proof", "attested=%s tcb=%s measurement=%.16s…", attributes[attrAttested], attributes[attrTCB], attributes[attrMeasurement])

	merged, err := mergeECSConfig(before, o, attributes)
	if err != nil {
		return fmt.Errorf("ecs.config: %w", err)
	}
	if changed, err = writeIfChanged(o.ecsConfig, merged, 0o644); err != nil {
		return fmt.Errorf("ecs.config: %w", err)
	}
	say("ecs.config", "%s %s", o.ecsConfig, wording(changed))
	if err := units.startECS(ctx); err != nil {
		return fmt.Errorf("start ecs: %w", err)
	}
	say("done", "cluster %s", o.cluster)
	return nil
}

func wording(changed bool) string {
	if changed {
		return "written"
	}
	return "unchanged"
}

// agentConfig is the content of 50-bootstrap.yaml. Values are JSON, which is YAML. It is checked by the agent's
// own loader together with what else is in the directory.
func (o options) agentConfig() ([]byte, error) {
	var b bytes.Buffer
	value := func(v any) string {
		text, err := json.Marshal(v)
		if err != nil {
			panic(err) // strings always marshal
		}
		return string(text)
	}
	b.WriteString("# Written by bootstrap; settings of your own go into config.yaml or a later file.\n")
	if o.mode != "" {
		fmt.Fprintf(&b, "attestation:\n  mode: %s\n", value(o.mode))
	}
	var mtls []string
	if o.mtlsPath != "" {
		mtls = append(mtls, "path: "+value(o.mtlsPath))
	}
	if o.secrets != nil {
		mtls = append(mtls, "secrets: "+value(o.secrets))
	}
	if o.endpoints != nil {
		mtls = append(mtls, "endpoints: "+value(o.endpoints))
	}
	if mtls != nil {
		fmt.Fprintf(&b, "mtls:\n  %s\n", strings.Join(mtls, "\n  "))
	}
	if err := config.Check(o.configDir, "conf.d/50-bootstrap.yaml", b.Bytes()); err != nil {
		return nil, cli.Usage(err)
	}
	return b.Bytes(), nil
}

// Attributes of the container instance; ECS takes them at its first registration only.
const (
	attrAttested    = "sevagent.attested"
	attrMeasurement = "sevagent.measurement"
	attrTCB         = "sevagent.tcb"
)

// agentStatus is what bootstrap needs of /v1/status.
type agentStatus struct {
	Attestation struct {
		Verdict     string `json:"verdict"`
		Measurement string `json:"measurement"`
		ReportedTCB string `json:"reported_tcb"`
		Roots       string `json:"roots"`
	} `json:"attestation"`
}

// waitForProof waits until the agent is ready, which means proof and first publication, and returns what the
// verified report says.
func waitForProof(ctx context.Context, o options) (map[string]string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("not ready within %v", o.timeout))
	defer cancel()
	agent := client.New(o.socket)
	last := errors.New("it has not answered yet")
	for {
		health, ready, err := agent.Ready(ctx)
		if err == nil && ready {
			break
		}
		if err == nil {
			err = errors.New(failedChecks(health))
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return nil, cli.Unreachable(fmt.Errorf("wait for the agent at %s: %w: %w; see 'journalctl -u sevagent'", o.socket, context.Cause(ctx), last))
		case <-time.After(100 * time.Millisecond):
		}
	}
	answer, err := agent.Status(ctx)
	if err != nil {
		return nil, err
	}
	var s agentStatus
	if err := json.Unmarshal(answer, &s); err != nil {
		return nil, fmt.Errorf("read the agent's status: %w", err)
	}
	// An attribute value has at most 128 characters; a measurement is 96 hex digits.
	attributes := map[string]string{attrAttested: "false"}
	if s.Attestation.Verdict == "pass" || s.Attestation.Verdict == "warn" {
		attributes[attrAttested] = "true"
		if s.Attestation.Roots != "amd" {
			attributes[attrAttested] = "simulated"
		}
		attributes[attrMeasurement] = s.Attestation.Measurement
		attributes[attrTCB] = s.Attestation.ReportedTCB
	}
	return attributes, nil
}

// failedChecks reads the reasons out of a health document.
func failedChecks(health []byte) string {
	var h struct {
		Checks map[string][]struct{ Status, Output string }
	}
	if json.Unmarshal(health, &h) != nil {
		return "it is not ready, and says not why"
	}
	var reasons []string
	for name, checks := range h.Checks {
		for _, c := range checks {
			if c.Status == "fail" {
				reasons = append(reasons, name+": "+c.Output)
			}
		}
	}
	return strings.Join(reasons, "; ")
}

func readECSConfig(path string) (*ecsconfig.File, error) {
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := ecsconfig.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// mergeECSConfig returns the file's content with the node's keys in it. attributes may be nil, for a rehearsal.
func mergeECSConfig(before *ecsconfig.File, o options, attributes map[string]string) ([]byte, error) {
	f := before.Clone()
	if err := errors.Join(f.Set("ECS_CLUSTER", o.cluster), f.SetAttributes(attributes)); err != nil {
		return nil, fmt.Errorf("%s: %w", o.ecsConfig, err)
	}
	data, err := f.Encode()
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read the same by systemd and ecs-init: %w; mend these lines", o.ecsConfig, err)
	}
	return data, nil
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

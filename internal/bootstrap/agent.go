package bootstrap

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"sevagent/client"
	"sevagent/internal/cli"
	"sevagent/internal/config"
)

// overlay is bootstrap's own file in the agent's configuration directory.
const overlay = "conf.d/50-bootstrap.yaml"

// agentConfig is the content of 50-bootstrap.yaml, and what the agent's configuration is with it. Values are JSON, which is
// YAML. It is checked by the agent's own loader together with what else is in the directory.
func (o options) agentConfig() ([]byte, config.Config, error) {
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
	cfg, err := config.Check(o.configDir, overlay, b.Bytes())
	if err != nil {
		return nil, cfg, cli.Usage(err)
	}
	return b.Bytes(), cfg, nil
}

// Attributes of the container instance; ECS takes them at its first registration only.
const (
	attrAttested    = "sevagent.attested"
	attrMeasurement = "sevagent.measurement"
	attrTCB         = "sevagent.tcb"
)

// waitForProof waits until the agent is ready, which means proof and first publication, and returns what the
// verified report says.
func waitForProof(ctx context.Context, o options) (map[string]string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("not ready within %v", o.timeout))
	defer cancel()
	agent := client.New(o.socket)
	last := errors.New("it has not answered yet")
	for {
		health, err := agent.Health(ctx)
		if err == nil && health.Ready() {
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
			err := cli.Unreachable(fmt.Errorf("wait for the agent at %s: %w: %w", o.socket, context.Cause(ctx), last))
			return nil, advised{err, "see 'journalctl -u sevagent'"}
		case <-time.After(100 * time.Millisecond):
		}
	}
	s, err := agent.Status(ctx)
	if err != nil {
		return nil, err
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

// failedChecks joins the reasons of the failed checks.
func failedChecks(health *client.Health) string {
	var reasons []string
	for _, name := range slices.Sorted(maps.Keys(health.Checks)) {
		for _, c := range health.Checks[name] {
			if c.Status == client.Fail {
				reasons = append(reasons, name+": "+c.Output)
			}
		}
	}
	if reasons == nil {
		return "not ready, and it gave no reason"
	}
	return strings.Join(reasons, "; ")
}

package bootstrap

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sevagent/client"
	"sevagent/internal/cli"
	"sevagent/internal/config"
)

// overlay is bootstrap's own file in the agent's configuration directory.
const overlay = "conf.d/50-bootstrap.yaml"

// planAgent makes the content of 50-bootstrap.yaml, and the unit files that the agent's configuration needs with it.
// The agent's own loader checks it, together with the other files of the directory and the files that these name.
func (n *node) planAgent() error {
	n.agentConfig = n.overlay()
	cfg, err := config.Check(n.Dirs.Config, overlay, n.agentConfig)
	n.agentTCP, n.agentMode, n.agentTPM = cfg.Listen.TCP, cfg.Attestation.Mode, cfg.Attestation.NitroTPM
	if err == nil && n.agentMode != config.ModeOff {
		_, err = config.LoadPolicy(cfg.Attestation.Policy)
	}
	if err == nil {
		err = cfg.MTLS.CheckRoots()
	}
	if err == nil && n.Services == ServicesSystemd {
		n.unitFiles, err = unitFilesFor(cfg.MTLS, os.Getenv)
	}
	if err != nil {
		return cli.Usage(err)
	}
	return nil
}

// overlay is the content of 50-bootstrap.yaml. Values are JSON, which is YAML.
func (o Options) overlay() []byte {
	var b bytes.Buffer
	b.WriteString("# Written by bootstrap; settings of your own go into config.yaml or a later file.\n")
	if o.Mode != "" {
		fmt.Fprintf(&b, "attestation:\n  mode: %s\n", toJSON(o.Mode))
	}
	var mtls []string
	if o.MTLSPath != "" {
		mtls = append(mtls, "path: "+toJSON(o.MTLSPath))
	}
	if o.Secrets != nil {
		mtls = append(mtls, "secrets: "+toJSON(o.Secrets))
	}
	if len(o.Issue) > 0 {
		mtls = append(mtls, "issue: ["+strings.Join(o.Issue, ", ")+"]")
	}
	if o.MTLSOwner != "" {
		mtls = append(mtls, "owner: "+toJSON(o.MTLSOwner))
	}
	if o.Consumers != nil {
		var list []consumer
		for _, text := range o.Consumers {
			c, _ := parseConsumer(text)
			list = append(list, c)
		}
		mtls = append(mtls, "consumers: "+toJSON(list))
	}
	if o.Endpoints != nil {
		mtls = append(mtls, "endpoints: "+toJSON(o.Endpoints))
	}
	if mtls != nil {
		fmt.Fprintf(&b, "mtls:\n  %s\n", strings.Join(mtls, "\n  "))
	}
	return b.Bytes()
}

// consumer is an entry of mtls.consumers.
type consumer struct {
	Name  string   `json:"name"`
	Owner string   `json:"owner"`
	Files []string `json:"files"`
}

// parseConsumer reads NAME=UID:GID=FILE,FILE. Whether these are names, numbers and files, the agent's loader says.
func parseConsumer(text string) (c consumer, ok bool) {
	part := strings.Split(text, "=")
	if len(part) != 3 || slices.Contains(part, "") {
		return consumer{}, false
	}
	return consumer{part[0], part[1], strings.Split(part[2], ",")}, true
}

// toJSON is for text, times, and lists and structs of them, which always marshal.
func toJSON(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}

func (n *node) writeAgentConfig(context.Context) (err error) {
	n.agentChanged, err = n.write("agent", filepath.Join(n.Dirs.Config, overlay), n.agentConfig, 0o644)
	return err
}

// Attributes of the container instance; ECS takes them at its first registration only.
const (
	attrPrefix      = "sevagent." // nobody else's: what is not proved now is removed
	attrAttested    = "sevagent.attested"
	attrMeasurement = "sevagent.measurement"
	attrTCB         = "sevagent.tcb"
	attrImage       = "sevagent.image" // what the node was booted from, by its NitroTPM
)

// waitForProof waits until the agent is ready, which means proof and first publication, and takes the node's attributes
// from the verified report.
func (n *node) waitForProof(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, n.Timeout, fmt.Errorf("not ready within %v", n.Timeout))
	defer cancel()
	agent, advice := client.New(n.Socket), "see 'journalctl -u sevagent'"
	next := ""
	err := retry(ctx, Pauses{100 * time.Millisecond, 100 * time.Millisecond}, func() (again bool, err error) {
		health, err := agent.Health(ctx)
		if err == nil && !health.Ready() {
			var text string
			text, next = failedChecks(health)
			err = errors.New(text)
		}
		return err != nil, err
	})
	if err != nil {
		err = cli.Unreachable(fmt.Errorf("wait for the agent at %s: %w", n.Socket, err))
		if next != "" {
			advice = next + "; " + advice
		}
		return advised{err, advice}
	}
	status, err := agent.Status(ctx)
	if err != nil {
		return err
	}
	n.attributes = attributesOf(status.Attestation)
	a := n.attributes
	n.report("proof", "attested=%s tcb=%s measurement=%.16s…", a[attrAttested], a[attrTCB], a[attrMeasurement])
	return nil
}

// attributesOf returns what the last verified report proves. A value has at most 128 characters; a measurement is 96
// hex digits.
func attributesOf(last client.Attestation) map[string]string {
	if last.Verdict != "pass" && last.Verdict != "warn" {
		return map[string]string{attrAttested: "false"}
	}
	attested := "true"
	if last.Roots != "amd" {
		attested = "simulated"
	}
	list := map[string]string{attrAttested: attested, attrMeasurement: last.Measurement, attrTCB: last.ReportedTCB}
	if n := last.NitroTPM; n != nil && n.Error == "" && n.Image != "" {
		list[attrImage] = n.Image
	}
	return list
}

// failedChecks joins the reasons of the failed checks, and returns the next step of the first that has one.
func failedChecks(health *client.Health) (text, next string) {
	var reasons []string
	for _, c := range health.Problems() {
		if c.Status == client.Fail {
			reasons = append(reasons, c.Name+": "+c.Output)
			next = cmp.Or(next, c.Next)
		}
	}
	if reasons == nil {
		return "not ready, and it gave no reason", ""
	}
	return strings.Join(reasons, "; "), next
}

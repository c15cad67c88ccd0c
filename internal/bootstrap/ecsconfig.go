package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"

	"sevagent/internal/ecsconfig"
)

// Setting is a key of ecs.config, and why it is set.
type Setting struct{ Key, Value, Why string }

// Hardening is what bootstrap sets in ecs.config unless a line there or an option sets the key. Names, meanings and
// defaults: aws/amazon-ecs-agent, README.md, "Environment Variables".
var Hardening = []Setting{
	{"ECS_ENABLE_TASK_IAM_ROLE", "true", "tasks get roles of their own, and so need not have the node's"},
	{"ECS_ENABLE_TASK_IAM_ROLE_NETWORK_HOST", "true", "the same for tasks in network mode host"},
	{"ECS_AWSVPC_BLOCK_IMDS", "true", "tasks in awsvpc mode cannot ask the metadata service for the node's role"},
	{"ECS_ENABLE_SPOT_INSTANCE_DRAINING", "true", "a Spot interruption drains the node"},
	{"ECS_IMAGE_CLEANUP_INTERVAL", "10m", "unused images go before the disk is full; the agent's default is 30m"},
	{"ECS_NUM_IMAGES_DELETE_PER_CYCLE", "10", "the same; the agent's default is 5"},
	{reservedPorts, "[...]", "no task takes the ECS agent's ports or sevagent's"},
}

const reservedPorts = "ECS_RESERVED_PORTS"

// agentPorts are those that the ECS agent reserves: ECS_RESERVED_PORTS replaces them, so they are listed again.
var agentPorts = []string{"22", "2375", "2376", "51678", "51679", "51680"}

// ECSKey is the form of a key of ecs.config; ecsconfig checks values.
var ECSKey = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// ecsSettings reads the options for ecs.config: keys to set, and keys that are left to the ECS agent.
func (o Options) ecsSettings() (set []Setting, leave []string, err error) {
	var m mistakes
	for _, option := range o.ECSOptions {
		key, value, ok := strings.Cut(option, "=")
		switch {
		case !ok || !ECSKey.MatchString(key):
			m.add("--ecs-option is %q, want KEY=VALUE, or KEY= to leave a key to the ECS agent", option)
		case key == "ECS_CLUSTER":
			m.add("--ecs-option ECS_CLUSTER: use --cluster")
		case value == "":
			leave = append(leave, key)
		default:
			set = append(set, Setting{Key: key, Value: value})
		}
	}
	return set, leave, errors.Join(m...)
}

// ecsConfig is ecs.config as it was, and what to set in it.
type ecsConfig struct {
	before *ecsconfig.File
	mode   fs.FileMode // stays: the file may hold a registry's password
	set    []Setting   // replaces what is there; the defaults follow, where nothing is there
	port   string      // of the agent's local API, "" if it has none
}

// planECSConfig reads ecs.config, and tries whether all but the attributes can be set in it.
func (n *node) planECSConfig(context.Context) error {
	e := &ecsConfig{mode: 0o644}
	data, err := os.ReadFile(n.ECSConfig)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if info, err := os.Stat(n.ECSConfig); err == nil {
		e.mode = info.Mode().Perm()
	}
	if e.before, err = ecsconfig.Parse(data); err != nil {
		return fmt.Errorf("%s: %w", n.ECSConfig, err)
	}
	set, leave, err := n.ecsSettings()
	if err != nil {
		return err
	}
	if n.agentTCP != "" {
		if _, e.port, err = net.SplitHostPort(n.agentTCP); err != nil {
			return err
		}
	}
	e.set = append([]Setting{{Key: "ECS_CLUSTER", Value: n.Target.Cluster}}, set...)
	for _, s := range Hardening {
		if s.Key == reservedPorts {
			if e.port == "" {
				continue
			}
			ports := agentPorts
			if !slices.Contains(ports, e.port) {
				ports = append(slices.Clone(ports), e.port)
			}
			s.Value = "[" + strings.Join(ports, ",") + "]"
		}
		_, there := e.before.Get(s.Key)
		asked := slices.ContainsFunc(set, func(other Setting) bool { return other.Key == s.Key })
		if !there && !asked && !slices.Contains(leave, s.Key) {
			e.set = append(e.set, s)
		}
	}
	n.ecs = e
	_, err = n.mergeECSConfig()
	return err
}

// mergeECSConfig returns ecs.config with the node's keys in it, and its attributes as soon as they are proved.
func (n *node) mergeECSConfig() (*ecsconfig.File, error) {
	f := n.ecs.before.Clone()
	var err error
	for _, s := range n.ecs.set {
		err = errors.Join(err, f.Set(s.Key, s.Value))
	}
	if err = errors.Join(err, f.SetAttributes(n.attributes)); err != nil {
		return nil, fmt.Errorf("%s: %w", n.ECSConfig, err)
	}
	if _, err := f.Encode(); err != nil {
		return nil, fmt.Errorf(
			"%s: systemd and ecs-init would read it differently: %w; fix these lines", n.ECSConfig, err)
	}
	return f, nil
}

func (n *node) writeECSConfig(context.Context) error {
	f, err := n.mergeECSConfig()
	if err != nil {
		return err
	}
	if n.ecsChanged, err = n.write("ecs.config", n.ECSConfig, f.Bytes(), n.ecs.mode); err != nil {
		return err
	}
	notDigit := func(c rune) bool { return c < '0' || c > '9' }
	ports, _ := f.Get(reservedPorts)
	if n.ecs.port != "" && !slices.Contains(strings.FieldsFunc(ports, notDigit), n.ecs.port) {
		n.report("ecs.config", "port %s is not in %s: a task can take it from sevagent", n.ecs.port, reservedPorts)
	}
	return nil
}

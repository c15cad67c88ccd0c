package bootstrap

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"

	"sevagent/internal/config"
	"sevagent/internal/ecsconfig"
)

// hardening is what bootstrap sets in ecs.config where neither a line there nor --ecs-option says otherwise. Names,
// meanings and defaults: aws/amazon-ecs-agent, README.md, "Environment Variables".
var hardening = []struct{ key, value, why string }{
	{"ECS_ENABLE_TASK_IAM_ROLE", "true", "tasks get roles of their own, and so need not have the node's"},
	{"ECS_ENABLE_TASK_IAM_ROLE_NETWORK_HOST", "true", "the same for tasks in network mode host"},
	{"ECS_AWSVPC_BLOCK_IMDS", "true", "tasks in network mode awsvpc cannot ask the metadata service for the node's role"},
	{"ECS_ENABLE_SPOT_INSTANCE_DRAINING", "true", "a Spot interruption drains the node"},
	{"ECS_IMAGE_CLEANUP_INTERVAL", "10m", "unused images go before the disk is full; the agent's default is 30m"},
	{"ECS_NUM_IMAGES_DELETE_PER_CYCLE", "10", "the same; the agent's default is 5"},
}

// agentPorts are those that the ECS agent reserves: ECS_RESERVED_PORTS replaces them, so they are said again.
var agentPorts = []string{"22", "2375", "2376", "51678", "51679", "51680"}

const reservedPorts = "ECS_RESERVED_PORTS"

// optionKey is the form of a key; ecsconfig checks values.
var optionKey = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// ecsSettings reads --ecs-option: keys to set, and keys that are left to the ECS agent.
func (o options) ecsSettings() (set [][2]string, leave []string, err error) {
	for _, option := range o.ecsOptions {
		key, value, ok := strings.Cut(option, "=")
		switch {
		case !ok || !optionKey.MatchString(key):
			err = errors.Join(err, fmt.Errorf("--ecs-option is %q, want KEY=VALUE, or KEY= to leave a key to the ECS agent", option))
		case key == "ECS_CLUSTER":
			err = errors.Join(err, errors.New("--ecs-option ECS_CLUSTER: use --cluster"))
		case value == "":
			leave = append(leave, key)
		default:
			set = append(set, [2]string{key, value})
		}
	}
	return set, leave, err
}

// ecsConfig is ecs.config as it was, and what is to be set in it.
type ecsConfig struct {
	before   *ecsconfig.File
	mode     fs.FileMode // stays: the file may hold a registry's password
	path     string
	cluster  string
	set      [][2]string // whatever is there
	defaults [][2]string // where nothing is there
	portOpen string      // the agent's port, if it is not reserved
}

func (o options) readECSConfig() (*ecsConfig, error) {
	e := &ecsConfig{path: o.ecsConfig, cluster: o.cluster, mode: 0o644}
	data, err := os.ReadFile(o.ecsConfig)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if info, err := os.Stat(o.ecsConfig); err == nil {
		e.mode = info.Mode().Perm()
	}
	if e.before, err = ecsconfig.Parse(data); err != nil {
		return nil, fmt.Errorf("%s: %w", o.ecsConfig, err)
	}
	set, leave, err := o.ecsSettings()
	if err != nil {
		return nil, err
	}
	e.set = set
	port, err := o.agentPort()
	if err != nil {
		return nil, err
	}
	add := func(key, value string) {
		if _, there := e.before.Get(key); !there && !slices.Contains(leave, key) {
			e.defaults = append(e.defaults, [2]string{key, value})
		}
	}
	for _, h := range hardening {
		add(h.key, h.value)
	}
	if port != "" {
		ports := agentPorts
		if !slices.Contains(ports, port) {
			ports = append(slices.Clone(ports), port)
		}
		add(reservedPorts, "["+strings.Join(ports, ",")+"]")
		e.portOpen = port
	}
	return e, nil
}

// agentPort is the TCP port of sevagent's local API, "" if it has none.
func (o options) agentPort() (string, error) {
	cfg, err := config.Load(o.configDir)
	if errors.Is(err, fs.ErrNotExist) {
		cfg, err = config.Default(), nil
	}
	if err != nil || cfg.Listen.TCP == "" {
		return "", err
	}
	_, port, err := net.SplitHostPort(cfg.Listen.TCP)
	return port, err
}

// merge returns the file's content with the node's keys in it. attributes may be nil, for a rehearsal.
func (e *ecsConfig) merge(attributes map[string]string) ([]byte, error) {
	f := e.before.Clone()
	err := f.Set("ECS_CLUSTER", e.cluster)
	for _, kv := range slices.Concat(e.set, e.defaults) {
		// An option comes first: a default does not follow it.
		if _, there := f.Get(kv[0]); there && slices.Contains(e.defaults, kv) {
			continue
		}
		err = errors.Join(err, f.Set(kv[0], kv[1]))
	}
	if err = errors.Join(err, f.SetAttributes(attributes)); err != nil {
		return nil, fmt.Errorf("%s: %w", e.path, err)
	}
	if ports, _ := f.Get(reservedPorts); slices.Contains(strings.FieldsFunc(ports, func(c rune) bool { return c < '0' || c > '9' }), e.portOpen) {
		e.portOpen = ""
	}
	data, err := f.Encode()
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read the same by systemd and ecs-init: %w; mend these lines", e.path, err)
	}
	return data, nil
}

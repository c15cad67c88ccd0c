package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"sevagent/internal/atomicfile"
	"sevagent/internal/config"
	"sevagent/internal/ecsconfig"
	"sevagent/internal/pattern"
)

// Setting is a key of ecs.config, and why it is set.
type Setting struct {
	Key   string `json:"key"`
	Value string `json:"value"`
	Why   string `json:"-"`
}

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

const (
	clusterKey    = "ECS_CLUSTER"
	reservedPorts = "ECS_RESERVED_PORTS"
)

// agentPorts are those that the ECS agent reserves: ECS_RESERVED_PORTS replaces them, so they are listed again.
var agentPorts = []string{"22", "2375", "2376", "51678", "51679", "51680"}

// ECSKey is the form of a key of ecs.config; ecsconfig checks values.
var ECSKey = pattern.New(`^[A-Za-z_][A-Za-z0-9_]*$`)

// ecsSettings reads the options for ecs.config: keys to set, and keys that are left to the ECS agent. Of two options
// for a key the last one counts.
func (o Options) ecsSettings() (set []Setting, leave []string, err error) {
	var m mistakes
	for _, option := range o.ECSOptions {
		option, crlf := strings.CutSuffix(option, "\r") // of a text from Windows, which a shell has read by line
		if crlf && option == "" {
			continue
		}
		key, value, ok := strings.Cut(option, "=")
		set = slices.DeleteFunc(set, func(s Setting) bool { return s.Key == key })
		leave = slices.DeleteFunc(leave, func(other string) bool { return other == key })
		switch {
		case !ok || !ECSKey.MatchString(key):
			m.add("--ecs-option is %q, want KEY=VALUE, or KEY= to leave a key to the ECS agent", option)
		case key == clusterKey:
			m.add("--ecs-option ECS_CLUSTER: use --cluster")
		case value == "":
			leave = append(leave, key)
		default:
			set = append(set, Setting{Key: key, Value: value})
		}
	}
	return set, leave, errors.Join(m...)
}

// checkECSOptions refuses options that ecs.config could not hold, or that would mean nothing to the ECS agent.
func (n *node) checkECSOptions() error {
	var m mistakes
	set, _, err := n.ecsSettings()
	if err != nil {
		return err
	}
	f, err := readECSFile(n.ECSConfig)
	if err != nil {
		f.File = new(ecsconfig.File) // what is wrong with the file is no mistake in the options
	}
	keys := make(map[string]bool)
	for _, s := range set {
		if err := new(ecsconfig.File).Set(s.Key, s.Value); err != nil {
			m.add("--ecs-option: %w", err)
		} else if f.Set(s.Key, s.Value) == nil {
			keys[s.Key] = true
		}
	}
	for _, found := range f.Findings() {
		if keys[found.Key] && refuses(found) {
			m.add("--ecs-option %s", found.Reason)
		}
	}
	return errors.Join(m...)
}

// ecsFile is an ecs.config on disk.
type ecsFile struct {
	*ecsconfig.File
	path     string      // of the file itself, if there is a symbolic link to it
	mode     fs.FileMode // stays: the file may hold a registry's password
	uid, gid int
}

// readECSFile reads the file, or none, which is empty. Anything but a regular file is left alone: replacing what a link
// leads to, as root, would destroy /dev/null, and reading a pipe would wait for ever.
func readECSFile(path string) (f ecsFile, err error) {
	f = ecsFile{path: path, mode: 0o644, uid: -1, gid: -1}
	if to, err := os.Readlink(path); err == nil { // replace the file, not the link
		if f.path, err = filepath.EvalSymlinks(path); err != nil {
			return f, fmt.Errorf("%s is a symbolic link to %s, which cannot be followed: %w", path, to, err)
		}
	}
	if info, err := os.Stat(f.path); err == nil {
		if !info.Mode().IsRegular() {
			return f, advised{fmt.Errorf("%s is not a regular file", f.path), "remove it"}
		}
		f.mode = info.Mode().Perm()
		if owner, ok := info.Sys().(*syscall.Stat_t); ok {
			f.uid, f.gid = int(owner.Uid), int(owner.Gid)
		}
	}
	data, err := os.ReadFile(f.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	if f.File, err = ecsconfig.Parse(data); err != nil {
		return f, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// replace writes the file anew unless it has the content already.
func (f ecsFile) replace(content *ecsconfig.File) (changed bool, err error) {
	if bytes.Equal(f.Bytes(), content.Bytes()) {
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(f.path), 0o755); err != nil {
		return false, err
	}
	return true, atomicfile.WriteOwned(f.path, content.Bytes(), f.mode, f.uid, f.gid)
}

// ecsConfig is ecs.config as it was, and what to set in it.
type ecsConfig struct {
	before ecsFile
	set    []Setting // replaces what is there; hardening is among it where the file has none
	leave  []string  // keys to remove
	keys   []string  // that bootstrap answers for: the cluster, options and hardening
	port   string    // of the agent's local API, "" if it has none
}

// planECSConfig reads ecs.config, and tries whether all can be set in it, whatever the proof will be.
func (n *node) planECSConfig(context.Context) error {
	if err := n.readECSConfig(); err != nil {
		return err
	}
	expected := map[string]string{attrAttested: "false"}
	if n.agentMode != config.ModeOff {
		expected = map[string]string{attrAttested: "true", attrMeasurement: "expected", attrTCB: "expected"}
		if n.agentTPM == config.NitroTPMRequire {
			expected[attrImage] = "expected"
		}
	}
	if _, _, err := n.mergeECSConfig(expected); err != nil {
		return fmt.Errorf("%s: %w", n.ECSConfig, err)
	}
	return savedElsewhere(n.ECSData, n.Target.InstanceID, n.Target.Cluster)
}

func (n *node) readECSConfig() (err error) {
	e := new(ecsConfig)
	if e.before, err = readECSFile(n.ECSConfig); err != nil {
		return err
	}
	set, leave, err := n.ecsSettings()
	if err != nil {
		return err
	}
	e.leave = leave
	e.set = append([]Setting{{Key: clusterKey, Value: n.Target.Cluster}}, set...)
	for _, s := range e.set {
		e.keys = append(e.keys, s.Key)
	}
	if n.agentTCP != "" {
		if _, e.port, err = net.SplitHostPort(n.agentTCP); err != nil {
			return err
		}
	}
	for _, s := range e.hardening() {
		if slices.Contains(leave, s.Key) || slices.Contains(e.keys, s.Key) {
			continue
		}
		e.keys = append(e.keys, s.Key)
		if value, _ := e.before.Get(s.Key); value == "" { // to the ECS agent, empty is not there
			e.set = append(e.set, s)
		}
	}
	n.ecs = e
	return nil
}

// hardening is Hardening with the ports of this node.
func (e *ecsConfig) hardening() (all []Setting) {
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
		all = append(all, s)
	}
	return all
}

// mergeECSConfig returns ecs.config with the node's keys and attributes in it, and what to say about it. It refuses
// what the ECS agent would not read as it is meant.
func (n *node) mergeECSConfig(attributes map[string]string) (f *ecsconfig.File, notes []string, err error) {
	f = n.ecs.before.Clone()
	for _, key := range n.ecs.leave {
		err = errors.Join(err, f.Unset(key))
	}
	for _, s := range n.ecs.set {
		err = errors.Join(err, f.Set(s.Key, s.Value))
	}
	if err = errors.Join(err, f.SetAttributes(attrPrefix, attributes)); err != nil {
		return nil, nil, err
	}
	if _, err := f.Encode(); err != nil {
		return nil, nil, fmt.Errorf("systemd and ecs-init would read it differently: %w; fix these lines", err)
	}
	notes, err = findings(f)
	for _, s := range n.ecs.set {
		old, _ := n.ecs.before.Get(s.Key)
		if key := ecsconfig.Inner(old); key != "" {
			notes = append(notes, fmt.Sprintf("%s had %s= in its value, which nothing reads there and is gone; "+
				"write one assignment a line", s.Key, key))
		}
	}
	return f, notes, err
}

// findings returns what the programs would not take as it is written: as an error if they would end, or do without what
// a key is meant to set, or without hardening that the file asks for.
func findings(f *ecsconfig.File) (notes []string, err error) {
	for _, found := range f.Findings() {
		if refuses(found) {
			err = errors.Join(err, errors.New(found.Reason))
		} else {
			notes = append(notes, found.Reason)
		}
	}
	if odd := f.OddTag(); odd != "" {
		notes = append(notes, fmt.Sprintf("ECS_CONTAINER_INSTANCE_TAGS has %q in a tag, which AWS's rules for tags "+
			"do not list; if ECS refuses it, the node cannot register", odd))
	}
	behavior, _ := f.Get("ECS_IMAGE_PULL_BEHAVIOR")
	disabled, _ := f.Get("ECS_DISABLE_IMAGE_CLEANUP")
	noCleanup, _ := strconv.ParseBool(strings.TrimSpace(disabled))
	var switched string
	switch {
	case behavior == "prefer-cached":
		switched = "ECS_IMAGE_PULL_BEHAVIOR=" + behavior
	case noCleanup:
		switched = "ECS_DISABLE_IMAGE_CLEANUP=" + disabled
	default:
		return notes, err
	}
	return append(notes, switched+" switches the cleanup of images off: "+
		"ECS_IMAGE_CLEANUP_INTERVAL and ECS_NUM_IMAGES_DELETE_PER_CYCLE have no effect"), err
}

func refuses(found ecsconfig.Finding) bool {
	return found.Refused || slices.ContainsFunc(Hardening, func(s Setting) bool { return s.Key == found.Key })
}

// writeECSConfig writes the file, and records what may-join is to find there. It reads it again first: minutes have
// passed since it was planned.
func (n *node) writeECSConfig(context.Context) error {
	if err := n.readECSConfig(); err != nil {
		return err
	}
	f, notes, err := n.mergeECSConfig(n.attributes)
	if err != nil {
		return fmt.Errorf("%s: %w", n.ECSConfig, err)
	}
	if n.ecsChanged, err = n.ecs.before.replace(f); err != nil {
		return err
	}
	n.report("ecs.config", "%s %s", n.ECSConfig, wording(n.ecsChanged))
	notDigit := func(c rune) bool { return c < '0' || c > '9' }
	ports, _ := f.Get(reservedPorts)
	if n.ecs.port != "" && !slices.Contains(strings.FieldsFunc(ports, notDigit), n.ecs.port) {
		notes = append(notes, fmt.Sprintf("port %s is not in %s: a task can take it from sevagent",
			n.ecs.port, reservedPorts))
	}
	for _, note := range notes {
		n.report("ecs.config", "%s", note)
	}
	return n.recordECSConfig(f)
}

func (n *node) recordECSConfig(f *ecsconfig.File) error {
	file, errFile := filepath.Abs(n.ECSConfig)
	data, errData := filepath.Abs(n.ECSData)
	if err := errors.Join(errFile, errData); err != nil {
		return err
	}
	w := written{File: file, Data: data, Attributes: n.attributes}
	for _, key := range n.ecs.keys {
		value, _ := f.Get(key)
		w.Settings = append(w.Settings, Setting{Key: key, Value: value})
	}
	return w.record(n.Dirs.State)
}

package bootstrap

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"sevagent/internal/ecsconfig"
)

// writtenFile, in the state directory, is what bootstrap wrote to ecs.config. Only root reads it: among the settings
// may be a registry's password.
const writtenFile = "ecs-config.json"

type written struct {
	File       string            `json:"file"`     // ecs.config
	Data       string            `json:"data_dir"` // the ECS agent's
	Settings   []Setting         `json:"settings"`
	Attributes map[string]string `json:"attributes"`
}

func (w written) record(dir string) error {
	_, err := writeIfChanged(filepath.Join(dir, writtenFile), []byte(toJSON(w)+"\n"), 0o600)
	return err
}

// readWritten returns nil if nothing is recorded: an earlier version of bootstrap has set the node up.
func readWritten(dir string) (*written, error) {
	w := new(written)
	err := readRecord(filepath.Join(dir, writtenFile), w)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && w.File == "" {
		err = errors.New("nothing is recorded")
	}
	if err != nil {
		return nil, fmt.Errorf("it is not known what bootstrap has written to ecs.config: %w", err)
	}
	return w, nil
}

// restore makes the ECS agent read what bootstrap has written: a script of the user data, for one, may have replaced
// ecs.config since. What was lost is restored; a setting with another value has it on purpose, unless it is the
// cluster or the value means nothing to the ECS agent. Attributes of others are kept. An error keeps the node out of
// the cluster.
func (w written) restore(instance string, report report) error {
	before, err := readECSFile(w.File)
	if err != nil {
		return err
	}
	f := before.Clone()
	lost, notes, err := w.settings(f)
	if err != nil {
		return fmt.Errorf("%s: %w", w.File, err)
	}
	names, err := w.attributes(f)
	if err != nil {
		return fmt.Errorf("%s: %w", w.File, err)
	}
	more, err := findings(f)
	if err != nil {
		return fmt.Errorf("%s: %w", w.File, err)
	}
	for _, p := range f.Problems() {
		more = append(more, "systemd and ecs-init would read it differently: "+p.String())
	}
	if _, err := before.replace(f); err != nil {
		return err
	}
	if lost = append(lost, names...); lost != nil {
		report("ecs.config", "%s was changed since bootstrap wrote it; put back: %s", w.File, strings.Join(lost, ", "))
	}
	for _, note := range append(notes, more...) {
		report("ecs.config", "%s", note)
	}
	cluster, _ := f.Get(clusterKey)
	return savedElsewhere(w.Data, instance, cluster)
}

// settings puts back those that are lost, and returns their keys.
func (w written) settings(f *ecsconfig.File) (lost, notes []string, err error) {
	var meaningless []string
	for _, found := range f.Findings() {
		meaningless = append(meaningless, found.Key)
	}
	for _, s := range w.Settings {
		value, _ := f.Get(s.Key)
		switch {
		case value == s.Value:
		case value == "", s.Key == clusterKey, slices.Contains(meaningless, s.Key):
			lost = append(lost, s.Key)
			err = errors.Join(err, f.Set(s.Key, s.Value))
		default:
			notes = append(notes, s.Key+" has another value than bootstrap found or set, which stays")
		}
	}
	return lost, notes, err
}

// attributes puts back those of sevagent that are lost or changed, removes others that claim to be its, and returns
// their names.
func (w written) attributes(f *ecsconfig.File) (names []string, err error) {
	there, err := f.Attributes()
	if err != nil {
		return nil, err
	}
	for name, value := range w.Attributes {
		if there[name] != value { // which is never empty
			names = append(names, name)
		}
	}
	for name := range there {
		if _, ours := w.Attributes[name]; !ours && strings.HasPrefix(name, attrPrefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, f.SetAttributes(attrPrefix, w.Attributes)
}

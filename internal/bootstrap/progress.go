package bootstrap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// progressFile, in the state directory, records how far bootstrap has come. It outlives a reboot, and a bootstrap that
// was killed.
const progressFile = "bootstrapped.json"

// States of a progress.
const (
	begun    = "begun"
	finished = "finished"
)

type progress struct {
	State string `json:"state"`
	// InstanceID is of the machine that it was on: an AMI that is made from a node has the node's files.
	InstanceID string `json:"instance_id,omitempty"`
}

// note records how far bootstrap has come.
func (n *node) note(state string) error {
	text := toJSON(progress{state, n.Target.InstanceID}) + "\n"
	_, err := writeIfChanged(filepath.Join(n.Dirs.State, progressFile), []byte(text), 0o644)
	return err
}

// begin records that bootstrap was here, unless the node is one already.
func (n *node) begin(ctx context.Context) error {
	if n.units.runsECS(ctx) || n.wasFinished(ctx) {
		return nil
	}
	return n.note(begun)
}

// touch comes before the first change. From here on even a node that an earlier run finished has to finish again.
func (n *node) touch(ctx context.Context) error {
	n.touched = true
	if n.units.runsECS(ctx) {
		return nil
	}
	return n.note(begun)
}

func (n *node) finish(context.Context) error { return n.note(finished) }

// wasFinished reports whether an earlier run finished, on this instance.
func (n *node) wasFinished(ctx context.Context) bool {
	_, err := os.Lstat(filepath.Join(n.Dirs.State, progressFile))
	return err == nil && n.machine.mayJoin(ctx, n.Dirs, reportTo(io.Discard)) == nil
}

// MayJoin returns nil if the ECS agent may start on this machine: bootstrap has finished here, or was never used here.
// Else its error has the reason.
func MayJoin(ctx context.Context, d Dirs, out io.Writer) error {
	return thisMachine().mayJoin(ctx, d, reportTo(out))
}

func (m machine) mayJoin(ctx context.Context, d Dirs, report report) error {
	file := filepath.Join(d.State, progressFile)
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(filepath.Join(d.Config, overlay)); errors.Is(err, fs.ErrNotExist) {
			report("may-join", "yes: bootstrap was never used here")
			return nil
		}
		data = []byte("{}") // bootstrap recorded nothing yet, or somebody has removed the file
	} else if err != nil {
		return refused("it is not known how far bootstrap has come: %v", err)
	}
	var p progress
	if err := json.Unmarshal(data, &p); err != nil {
		return refused("read %s: %v", file, err)
	}
	id, err := m.instanceID(ctx)
	switch {
	case p.State != finished && err != nil:
		return refused("bootstrap has not finished well on this machine")
	case p.State != finished:
		return refused("bootstrap has not finished well on %s", id)
	case err != nil:
		return refused("bootstrap has finished on %s, and it is not known whether this is it: %v", p.InstanceID, err)
	case p.InstanceID != id:
		return refused("bootstrap has finished on %s, and this is %s: the AMI was made from a node", p.InstanceID, id)
	}
	report("may-join", "yes: bootstrap has finished on %s", id)
	return nil
}

// refused returns why not, in one line with what to do.
func refused(format string, args ...any) error {
	return advised{fmt.Errorf("the ECS agent may not start: "+format, args...),
		"see 'journalctl -u cloud-final' and run bootstrap again"}
}

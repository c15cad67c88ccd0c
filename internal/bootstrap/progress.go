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
	"strings"

	"sevagent/internal/cli"
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

func (n *node) finish(context.Context) error {
	return errors.Join(noteRefusal(n.Dirs.State, nil), n.note(finished))
}

// wasFinished reports whether an earlier run finished, on this instance. Where none did, the metadata service, which
// may be late, is not asked.
func (n *node) wasFinished(ctx context.Context) bool {
	var p progress
	if err := readRecord(filepath.Join(n.Dirs.State, progressFile), &p); err != nil || p.State != finished {
		return false
	}
	_, err := n.machine.hasFinished(ctx, n.Dirs)
	return err == nil
}

// readRecord reads a file that bootstrap has written.
func readRecord(file string, into any) error {
	data, err := os.ReadFile(file)
	if err == nil && json.Unmarshal(data, into) != nil {
		err = fmt.Errorf("read %s: it is damaged", file)
	}
	return err
}

// MayJoin returns nil if the ECS agent may start on this machine: bootstrap was never used here, or has finished here,
// and ecs.config has what it wrote. What is missing there is restored first. Otherwise the error has the reason.
func MayJoin(ctx context.Context, d Dirs, out io.Writer) error {
	return thisMachine().mayJoin(ctx, d, reportTo(out))
}

func (m machine) mayJoin(ctx context.Context, d Dirs, report report) error {
	if err := d.check(); err != nil {
		return cli.Usage(err)
	}
	id, err := m.hasFinished(ctx, d)
	if err == nil && id != "" {
		err = restore(d, id, report)
	}
	switch {
	case err != nil:
	case id == "":
		report("may-join", "yes: bootstrap was never used here")
	default:
		report("may-join", "yes: bootstrap has finished on %s", id)
	}
	if e := noteRefusal(d.State, err); e != nil {
		report("may-join", "%v", e)
	}
	return err
}

// restore makes the ECS agent read what bootstrap has written, on the instance id.
func restore(d Dirs, id string, report report) error {
	w, err := readWritten(d.State)
	if err != nil {
		return refused("%v", err)
	}
	if w == nil {
		return nil
	}
	if err := w.restore(id, report); err != nil {
		return advised{fmt.Errorf("the ECS agent may not start: %w", err), "fix it and run 'systemctl start ecs'"}
	}
	return nil
}

// refusalFile, in the state directory, is why may-join keeps the ECS agent from starting, for the signal that waits for
// that agent.
const refusalFile = "refused.txt"

// noteRefusal records a refusal, or clears it with nil.
func noteRefusal(dir string, refusal error) error {
	file := filepath.Join(dir, refusalFile)
	if refusal != nil {
		_, err := writeIfChanged(file, []byte(withoutAdvice(refusal)+"\n"), 0o644)
		return err
	}
	if err := os.Remove(file); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// refusal returns why may-join has kept the ECS agent from starting, nil if it has not.
func refusal(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, refusalFile))
	if err != nil || len(text) == 0 {
		return nil
	}
	return errors.New(strings.TrimSpace(string(text)))
}

// hasFinished returns the ID of this instance if bootstrap has finished on it, and "" if it was never used here.
func (m machine) hasFinished(ctx context.Context, d Dirs) (id string, err error) {
	var p progress
	err = readRecord(filepath.Join(d.State, progressFile), &p)
	switch {
	case errors.Is(err, fs.ErrNotExist): // bootstrap recorded nothing yet, or somebody has removed the file
		if _, err := os.Lstat(filepath.Join(d.Config, overlay)); errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
	case err != nil:
		return "", refused("it is not known how far bootstrap has come: %v", err)
	case p.State == finished && p.InstanceID == "":
		return "", refused("it is not known on which instance bootstrap has finished")
	}
	id, err = m.instanceID(ctx)
	switch {
	case p.State != finished && err != nil:
		return "", refused("bootstrap has not finished well on this machine")
	case p.State != finished:
		return "", refused("bootstrap has not finished well on %s", id)
	case err != nil:
		return "", refused("bootstrap has finished on %s, and it is not known whether this is it: %v", p.InstanceID, err)
	case p.InstanceID != id:
		return "", refused("bootstrap has finished on %s, and this is %s: the AMI was made from a node", p.InstanceID, id)
	}
	return id, nil
}

// refused returns why not, in one line with what to do.
func refused(format string, args ...any) error {
	return advised{fmt.Errorf("the ECS agent may not start: "+format, args...),
		"see 'journalctl -u cloud-final' and run bootstrap again"}
}

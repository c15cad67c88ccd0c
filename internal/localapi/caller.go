package localapi

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"

	"sevagent/internal/cgroup"
	"sevagent/internal/evidence"
)

const maxProcFile = 64 << 10

// CallersConfig configures Callers.
type CallersConfig struct {
	// Proc is where procfs is mounted; empty means /proc.
	Proc string
	// Introspection is the URL of the ECS agent's introspection API, on a loopback address: http://127.0.0.1:51678 on a
	// container instance. Empty means that no task is looked up.
	Introspection string
	// Node returns where the node is, as far as that is known; nil: it is not.
	Node func() Node
	Log  *slog.Logger
}

// Callers finds out who is at the other end of a connection on the Unix socket: a process on the host, or one in a
// container and perhaps in an ECS task.
//
// Its results are the node's word, not the hardware's: the kernel's for uid, process and cgroup, and the ECS agent's
// for the task. An attestation report vouches for the guest that the agent runs in, and for its Caller only as far as
// that guest is trusted to run the genuine agent and to keep root from its containers: a process that is root on the
// node, or may write to the host's cgroups, can pose as any caller. A process that hands its open connection to
// another lends its name with it for as long as it lives.
type Callers struct {
	cfg   CallersConfig
	own   []byte // the agent's own /proc/self/cgroup
	tasks *tasks
}

// NewCallers returns Callers. Nothing is looked up before it is needed.
func NewCallers(cfg CallersConfig) *Callers {
	if cfg.Proc == "" {
		cfg.Proc = "/proc"
	}
	own, _ := os.ReadFile("/proc/self/cgroup")
	return &Callers{cfg: cfg, own: own, tasks: newTasks(cfg)}
}

// identify returns the caller at the other end of p, with its task where that is known.
func (c *Callers) identify(ctx context.Context, p *peer) evidence.Caller {
	switch place := c.place(p); place.Kind {
	case cgroup.Host:
		return evidence.HostCaller(p.uid)
	case cgroup.Container:
		arn := c.tasks.arn(ctx, place.ContainerID, place.TaskID)
		return evidence.ContainerCaller(p.uid, place.ContainerID, arn)
	}
	return evidence.Caller{Kind: evidence.CallerUnknown}
}

// place returns where the process is that opened p's connection. It is unknown unless the process is alive, the same
// from the first look to the last, and its cgroup one that proves something.
//
// The first thread has to be alive, too: once it has ended, though others go on, the kernel shows the cgroup of the
// whole process as the root's (cgroup v1), as it does for every process that has ended.
func (c *Callers) place(p *peer) cgroup.Place {
	before, ok := c.startTime(p.pid)
	if !ok {
		return cgroup.Place{}
	}
	text, err := c.procFile(p.pid, "cgroup")
	if err != nil {
		return cgroup.Place{}
	}
	place := cgroup.Of(text, c.own)
	if place.Kind == cgroup.Host && c.nested(p.pid) {
		return cgroup.Place{}
	}
	if after, ok := c.startTime(p.pid); !ok || after != before || !p.lives(c) {
		return cgroup.Place{}
	}
	return place
}

// nested reports whether a process is in a PID namespace below the agent's, or may be: proc_pid_status(5) has an NSpid
// for each level. A runtime that leaves its containers in the cgroup that it was started from (podman run
// --cgroups=disabled, for one) gives them a PID namespace all the same, unless it is told to share the host's.
func (c *Callers) nested(pid int32) bool {
	text, err := c.procFile(pid, "status")
	if err != nil {
		return true
	}
	for line := range bytes.Lines(text) {
		if pids, ok := bytes.CutPrefix(line, []byte("NSpid:")); ok {
			return len(bytes.Fields(pids)) != 1
		}
	}
	return true
}

// procFile returns a file of a process, whole or not at all.
func (c *Callers) procFile(pid int32, name string) ([]byte, error) {
	if pid <= 0 {
		return nil, errors.New("the caller's process is not visible in our PID namespace")
	}
	f, err := os.Open(filepath.Join(c.cfg.Proc, strconv.Itoa(int(pid)), name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readWhole(f, maxProcFile)
}

// startTime returns when a process was started, in clock ticks since boot; two processes that have the same pid one
// after the other differ in it. A process that has ended has none.
func (c *Callers) startTime(pid int32) (uint64, bool) {
	// Read that of the first thread: for the whole process the kernel adds up all threads, and a caller can have many
	// thousands.
	text, err := c.procFile(pid, filepath.Join("task", strconv.Itoa(int(pid)), "stat"))
	if err != nil {
		return 0, false
	}
	return parseStartTime(text)
}

// parseStartTime reads proc_pid_stat(5): "pid (comm) state …", where comm is the process's to choose, parentheses and
// spaces included. state is field 3, starttime field 22.
func parseStartTime(stat []byte) (uint64, bool) {
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return 0, false
	}
	fields := bytes.Fields(stat[i+1:])
	if len(fields) < 20 || string(fields[0]) == "Z" || string(fields[0]) == "X" {
		return 0, false
	}
	start, err := strconv.ParseUint(string(fields[19]), 10, 64)
	return start, err == nil
}

package localapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"sevagent/internal/evidence"
)

// Bounds of finding out who a caller is.
const (
	maxProcFile          = 64 << 10
	maxIntrospection     = 64 << 10
	introspectionTimeout = 500 * time.Millisecond
	maxTasks             = 1024
	unknownTaskTTL       = 5 * time.Second
)

// taskARN matches a task's ARN, with the cluster's name (the long form, since 2018) or without. Its length is bounded
// apart: counted repetitions take long to compile, at every start of every command.
var taskARN = regexp.MustCompile(`^arn:aws(?:-[a-z]+)*:ecs:[a-z0-9-]+:[0-9]+:task/(?:[A-Za-z0-9_-]+/)?[0-9a-f-]+$`)

const maxTaskARN = 400 // a cluster's name has at most 255 characters

// isContainerID reports whether s is what Docker names containers with: 64 lower-case hexadecimal digits.
func isContainerID(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// CallersConfig says where Callers looks.
type CallersConfig struct {
	// Proc is where procfs is mounted; empty means /proc.
	Proc string
	// Introspection is the URL of the ECS agent's introspection API, on loopback: http://127.0.0.1:51678 on a
	// container instance. Empty means that no task is looked up.
	Introspection string
	Log           *slog.Logger
}

// Callers finds the container and the ECS task of a process on the node.
//
// What it says is the node's word, not the hardware's: the kernel's for uid, process and cgroup, and the ECS agent's
// for the task. An attestation report vouches for the guest that the agent runs in, and for what its Caller says just
// as far as that guest is trusted to run the genuine agent and to keep root from its containers: who is root on the
// node, or may write to the host's cgroups, can be any caller. A process that hands its open connection to another
// lends its name with it.
type Callers struct {
	cfg    CallersConfig
	client *http.Client

	mu    sync.Mutex
	tasks map[string]*task // by container ID, at most maxTasks
}

// task is what the ECS agent said about a container.
type task struct {
	done chan struct{} // closed when the fields below are set
	arn  string        // empty: not told
	at   time.Time
}

// NewCallers returns Callers that has asked no one yet.
func NewCallers(cfg CallersConfig) *Callers {
	if cfg.Proc == "" {
		cfg.Proc = "/proc"
	}
	dialer := &net.Dialer{Control: loopbackOnly}
	return &Callers{
		cfg: cfg,
		client: &http.Client{
			Transport: &http.Transport{ // no Proxy: its environment variables must not lead elsewhere
				DialContext:            dialer.DialContext,
				DisableKeepAlives:      true,
				MaxResponseHeaderBytes: maxHeader,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		tasks: make(map[string]*task),
	}
}

func loopbackOnly(_, address string, _ syscall.RawConn) error {
	if to, err := netip.ParseAddrPort(address); err != nil || !to.Addr().IsLoopback() {
		return fmt.Errorf("%s is not a loopback address", address)
	}
	return nil
}

// Identify returns the caller with this uid, and with the container and task of the process pid where they can be
// told. A process that is not in a container, that has gone, or whose pid changes hands while we look has neither.
// That pid is the caller's to begin with is for the holder of the connection to know: see peer.lives.
func (c *Callers) Identify(ctx context.Context, pid int32, uid uint32) evidence.Caller {
	caller := evidence.Caller{UID: uid}
	before, ok := c.startTime(pid)
	if !ok {
		return caller
	}
	text, err := c.procFile(pid, "cgroup")
	if err != nil {
		return caller
	}
	if after, ok := c.startTime(pid); !ok || after != before {
		return caller
	}
	taskID, container := parseCgroup(text)
	if container == "" {
		return caller
	}
	caller.ContainerID = container
	// The port is an unprivileged one, which any local process can take while the ECS agent is down. Where the
	// cgroup names the task too, the two must agree.
	if arn := c.taskARN(ctx, container); taskID == "" || strings.HasSuffix(arn, "/"+taskID) {
		caller.TaskARN = arn
	}
	return caller
}

// procFile returns a file of a process, whole or not at all.
func (c *Callers) procFile(pid int32, name string) ([]byte, error) {
	if pid <= 0 {
		return nil, errors.New("the caller is in no PID namespace of ours")
	}
	f, err := os.Open(filepath.Join(c.cfg.Proc, strconv.Itoa(int(pid)), name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readWhole(f, maxProcFile)
}

// readWhole reads at most limit bytes; that there are more is an error.
func readWhole(r io.Reader, limit int64) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("more than %d bytes", limit)
	}
	return text, err
}

// startTime returns when a process was started, in clock ticks since boot; two processes that have the same pid one
// after the other differ in it. A process that has ended has none.
func (c *Callers) startTime(pid int32) (uint64, bool) {
	text, err := c.procFile(pid, "stat")
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

// parseCgroup returns the container, and if it is told the ECS task, of a process from its /proc/<pid>/cgroup: one
// line "hierarchy:controllers:path" for each hierarchy of cgroup v1, and "0::path" for cgroup v2. Lines that name
// different containers name none.
func parseCgroup(text []byte) (taskID, container string) {
	for line := range bytes.Lines(text) {
		parts := strings.SplitN(strings.TrimSuffix(string(line), "\n"), ":", 3)
		if len(parts) != 3 {
			continue
		}
		t, id := parseCgroupPath(parts[2])
		if id == "" {
			continue
		}
		if container != "" && (id != container || t != taskID) {
			return "", ""
		}
		taskID, container = t, id
	}
	return taskID, container
}

// parseCgroupPath knows the cgroups that dockerd makes, at the root or in slices:
//
//	/docker/<id>                                                     cgroupfs driver
//	/ecs/<task>/<id>                                                 the same, in a task's cgroup
//	/system.slice/docker-<id>.scope                                  systemd driver
//	/ecstasks.slice/ecstasks-<task>.slice/docker-<id>.scope          the same, in a task's cgroup
//
// The ECS agent makes /ecs/<task> with cgroup v1 and ecstasks-<task>.slice with v2 (aws/amazon-ecs-agent:
// agent/api/task/task_linux.go, BuildCgroupRoot). Each may begin with "/..", once or more: the kernel shows paths
// relative to the root of our own cgroup namespace (cgroup_namespaces(7)).
//
// The outermost name counts and nothing but slices may stand before it, because what is further in is not dockerd's:
// a container with a writable cgroup file system makes cgroups of any name below its own, and so does any user below
// user@<uid>.service.
func parseCgroupPath(path string) (taskID, container string) {
	rest, ok := strings.CutPrefix(path, "/")
	if !ok {
		return "", ""
	}
	for strings.HasPrefix(rest, "../") {
		rest = rest[len("../"):]
	}
	names := strings.Split(rest, "/")
	for len(names) > 1 && strings.HasSuffix(names[0], ".slice") {
		// systemd nests slices at dashes, so that a task ID with dashes takes several; the last has all of it.
		taskID = ""
		if id, ok := strings.CutPrefix(names[0], "ecstasks-"); ok {
			taskID = strings.TrimSuffix(id, ".slice")
		}
		names = names[1:]
	}
	switch {
	case strings.HasPrefix(names[0], "docker-") && strings.HasSuffix(names[0], ".scope"):
		container = strings.TrimSuffix(strings.TrimPrefix(names[0], "docker-"), ".scope")
	case names[0] == "docker" && len(names) > 1:
		container = names[1]
	case names[0] == "ecs" && len(names) > 2:
		taskID, container = names[1], names[2]
	}
	if !isContainerID(container) {
		return "", ""
	}
	return taskID, container
}

// taskARN returns the ARN of a container's task, or nothing.
func (c *Callers) taskARN(ctx context.Context, container string) string {
	if c.cfg.Introspection == "" {
		return ""
	}
	t, first := c.task(container, time.Now())
	if first {
		// Others wait for this answer: it must not fail because the first to ask has left.
		arn, err := c.askTask(context.WithoutCancel(ctx), container)
		if err != nil {
			c.cfg.Log.Debug("task of a container is not known", "container_id", container, "err", err)
		}
		t.arn, t.at = arn, time.Now()
		close(t.done)
	}
	select {
	case <-t.done:
		return t.arn
	case <-ctx.Done():
		return ""
	}
}

// task returns the entry of a container, and whether the answer is now for the caller to find.
func (c *Callers) task(container string, now time.Time) (t *task, first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t, ok := c.tasks[container]; ok && !t.stale(now) {
		return t, false
	}
	delete(c.tasks, container)
	for old := range c.tasks { // in no order: whoever is dropped is asked for again
		if len(c.tasks) < maxTasks {
			break
		}
		delete(c.tasks, old)
	}
	t = &task{done: make(chan struct{})}
	c.tasks[container] = t
	return t, true
}

// stale reports whether t should be asked for again. A container belongs to one task for all its life.
func (t *task) stale(now time.Time) bool {
	select {
	case <-t.done:
		return t.arn == "" && now.Sub(t.at) >= unknownTaskTTL
	default:
		return false
	}
}

// askTask asks the ECS agent: GET /v1/tasks?dockerid=<container ID>, answered by the task as JSON, or by 404
// (aws/amazon-ecs-agent: ecs-agent/introspection/v1/handlers).
func (c *Callers) askTask(ctx context.Context, container string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, introspectionTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(c.cfg.Introspection, "/")+"/v1/tasks?dockerid="+container, nil)
	if err != nil {
		return "", err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("ask the ECS agent: status %d", resp.StatusCode)
	}
	body, err := readWhole(resp.Body, maxIntrospection)
	if err != nil {
		return "", fmt.Errorf("read the ECS agent's answer: %w", err)
	}
	var answer struct{ Arn string }
	if err := json.Unmarshal(body, &answer); err != nil {
		return "", fmt.Errorf("read the ECS agent's answer: %w", err)
	}
	if len(answer.Arn) > maxTaskARN || !taskARN.MatchString(answer.Arn) {
		return "", errors.New("the ECS agent's answer has no task ARN")
	}
	return answer.Arn, nil
}

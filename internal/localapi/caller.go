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
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"sevagent/internal/cgroup"
	"sevagent/internal/evidence"
)

// Limits for identifying a caller.
const (
	maxProcFile          = 64 << 10
	maxIntrospection     = 64 << 10
	introspectionTimeout = 500 * time.Millisecond
	maxTasks             = 1024
	unknownTaskTTL       = 5 * time.Second
)

// CallersConfig configures Callers.
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
// Its results are the node's word, not the hardware's: the kernel's for uid, process and cgroup, and the ECS agent's
// for the task. An attestation report vouches for the guest that the agent runs in, and for its Caller only as far as
// that guest is trusted to run the genuine agent and to keep root from its containers: a process that is root on the
// node, or may write to the host's cgroups, can pose as any caller. A process that hands its open connection to
// another lends its name with it.
type Callers struct {
	cfg    CallersConfig
	client *http.Client
	own    string // the agent's own container; empty outside of containers

	mu    sync.Mutex
	tasks map[string]*task // by container ID, at most maxTasks
}

// task is what the ECS agent said about a container.
type task struct {
	done chan struct{} // closed when the fields below are set
	arn  string        // empty: unknown
	at   time.Time
}

// NewCallers returns Callers. Nothing is looked up before it is needed.
func NewCallers(cfg CallersConfig) *Callers {
	if cfg.Proc == "" {
		cfg.Proc = "/proc"
	}
	dialer := &net.Dialer{Control: loopbackOnly}
	self, _ := os.ReadFile("/proc/self/cgroup")
	_, own := cgroup.Parse(self)
	return &Callers{
		cfg: cfg,
		own: own,
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

// Identify returns the caller with this uid, and with the container and task of process pid where they are known. A
// process that is not in a container, that has ended, or whose pid changes hands while we look has neither. The holder
// of the connection must check that pid belongs to the caller: see peer.lives.
func (c *Callers) Identify(ctx context.Context, pid int32, uid uint32) evidence.Caller {
	caller := evidence.HostCaller(uid)
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
	taskID, container := cgroup.Parse(text)
	if container == "" {
		return caller
	}
	caller = evidence.ContainerCaller(uid, container, "")
	// The port is an unprivileged one, which any local process can take while the ECS agent is down. Where the
	// cgroup names the task too, the two must agree.
	if arn := c.taskARN(ctx, container); taskID == "" || strings.HasSuffix(arn, "/"+taskID) {
		caller.TaskARN = arn
	}
	return caller
}

// container returns the container of a running process: empty outside of containers, and in the agent's own.
func (c *Callers) container(pid int32) (id string, ok bool) {
	text, err := c.procFile(pid, "cgroup")
	if err != nil {
		return "", false
	}
	if _, ok := c.startTime(pid); !ok { // a process that has ended may be in the root cgroup
		return "", false
	}
	if _, id = cgroup.Parse(text); id == c.own {
		id = ""
	}
	return id, true
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

// readWhole reads at most limit bytes; more are an error.
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

// taskARN returns the ARN of a container's task, or nothing.
func (c *Callers) taskARN(ctx context.Context, container string) string {
	if c.cfg.Introspection == "" {
		return ""
	}
	t, first := c.task(container, time.Now())
	if first {
		// Others wait for this answer: it must not fail because the first caller has left.
		arn, err := c.askTask(context.WithoutCancel(ctx), container)
		if err != nil {
			c.cfg.Log.Debug("cannot look up the task of a container", "container_id", container, "err", err)
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

// task returns the entry of a container. If first is true, it is the caller who must look the answer up.
func (c *Callers) task(container string, now time.Time) (t *task, first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t, ok := c.tasks[container]; ok && !t.stale(now) {
		return t, false
	}
	delete(c.tasks, container)
	for old := range c.tasks { // in any order: a dropped one is looked up again
		if len(c.tasks) < maxTasks {
			break
		}
		delete(c.tasks, old)
	}
	t = &task{done: make(chan struct{})}
	c.tasks[container] = t
	return t, true
}

// stale reports whether t should be looked up again. A container belongs to one task all its life.
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
	address := strings.TrimSuffix(c.cfg.Introspection, "/") + "/v1/tasks?dockerid=" + container
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
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
	if !evidence.ValidTaskARN(answer.Arn) {
		return "", errors.New("the ECS agent's answer has no task ARN")
	}
	return answer.Arn, nil
}

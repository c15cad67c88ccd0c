package localapi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"sevagent/internal/evidence"
	"sevagent/internal/sockets"
)

// Limits for looking up tasks.
const (
	maxIntrospection     = 64 << 10
	introspectionTimeout = 500 * time.Millisecond
	maxTasks             = 1024
	// A task is looked up again after taskTTL, and where none was found after noTaskTTL. While the ECS agent does not
	// answer, its last answer is kept for taskKept.
	taskTTL   = 30 * time.Second
	noTaskTTL = 5 * time.Second
	taskKept  = 10 * time.Minute
	// The ECS agent restarts whenever this agent does, and listens once it is registered, after some five seconds. For
	// restartWait, a caller whose cgroup names a task waits for it, and asks every retryTask.
	restartWait = 6 * time.Second
	retryTask   = 250 * time.Millisecond
)

// Node is where the node is. Empty fields are unknown.
type Node struct {
	Region    string
	AccountID string
	Cluster   string // its name
}

// tasks finds the ECS task of a container by asking the ECS agent on the node.
//
// That agent's port is an unprivileged one: while it is down, any process on the node can listen there, and any in a
// container that shares the node's network. So an answer counts only from a socket of root's, for a task of the node's
// own region, account and cluster, and, where the caller's cgroup names the task, for that one. Root in a container
// with the node's network can still give another container a task of this cluster; docs/evidence.md says so.
type tasks struct {
	proc, url string
	at        netip.AddrPort // of url
	node      func() Node
	client    *http.Client
	log       *slog.Logger

	mu    sync.Mutex
	known map[string]*task // by container ID, at most maxTasks
	down  time.Time        // since when nothing listens there; zero: something does
}

// task is what is known of a container's task.
type task struct {
	done   chan struct{} // closed when the fields below are set
	arn    string        // empty: none, or unknown
	proved time.Time     // when the ECS agent last confirmed it
	until  time.Time     // then it is looked up again
	wait   bool          // the ECS agent may be about to listen
}

func newTasks(cfg CallersConfig) *tasks {
	t := &tasks{
		proc: cfg.Proc, url: strings.TrimSuffix(cfg.Introspection, "/"), node: cfg.Node, log: cfg.Log,
		client: &http.Client{
			Transport: &http.Transport{ // no Proxy: its environment variables must not lead elsewhere
				DialContext:            (&net.Dialer{Control: loopbackOnly}).DialContext,
				DisableKeepAlives:      true,
				MaxResponseHeaderBytes: maxHeader,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		known: make(map[string]*task),
	}
	if t.node == nil {
		t.node = func() Node { return Node{} }
	}
	if u, err := url.Parse(t.url); err == nil {
		t.at, _ = netip.ParseAddrPort(u.Host)
	}
	return t
}

func loopbackOnly(_, address string, _ syscall.RawConn) error {
	if to, err := netip.ParseAddrPort(address); err != nil || !to.Addr().IsLoopback() {
		return fmt.Errorf("%s is not a loopback address", address)
	}
	return nil
}

// arn returns the ARN of a container's task, or nothing. taskID is what the container's cgroup says of it, if anything:
// then the answer must agree.
func (t *tasks) arn(ctx context.Context, container, taskID string) string {
	for t.url != "" {
		now := time.Now()
		known, first := t.task(container, now)
		if first {
			// Others wait for this answer: it must not fail because the first caller has left.
			t.lookUp(context.WithoutCancel(ctx), container, known)
		}
		select {
		case <-known.done:
		case <-ctx.Done():
			return ""
		}
		switch {
		case taskID == "" || strings.HasSuffix(known.arn, "/"+taskID):
			return known.arn
		case known.arn != "" || !known.wait:
			return ""
		}
		select {
		case <-time.After(retryTask):
		case <-ctx.Done():
			return ""
		}
	}
	return ""
}

// task returns the entry of a container. If first is true, it is the caller who must look the answer up.
func (t *tasks) task(container string, now time.Time) (entry *task, first bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.known[container]
	if old != nil {
		select {
		case <-old.done:
		default:
			return old, false
		}
		if now.Before(old.until) {
			return old, false
		}
	}
	delete(t.known, container)
	for other := range t.known { // in any order: a dropped one is looked up again
		if len(t.known) < maxTasks {
			break
		}
		delete(t.known, other)
	}
	entry = &task{done: make(chan struct{})}
	if old != nil {
		entry.arn, entry.proved = old.arn, old.proved
	}
	t.known[container] = entry
	return entry, true
}

// lookUp asks the ECS agent for the task of a container, whose entry holds the last answer.
func (t *tasks) lookUp(ctx context.Context, container string, entry *task) {
	defer close(entry.done)
	ctx, cancel := context.WithTimeout(ctx, introspectionTimeout)
	defer cancel()
	arn, err := t.ask(ctx, container)
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	switch isDown := errors.Is(err, sockets.ErrNone) || errors.Is(err, syscall.ECONNREFUSED); {
	case !isDown:
		t.down = time.Time{}
	case t.down.IsZero():
		t.down = now
	}
	entry.wait = !t.down.IsZero() && now.Sub(t.down) < restartWait

	if err != nil {
		t.log.Debug("cannot look up the task of a container", "container_id", container, "err", err)
		if now.Sub(entry.proved) >= taskKept {
			entry.arn = ""
		}
	} else {
		entry.arn, entry.proved = arn, now
	}
	switch {
	case err == nil && arn != "":
		entry.until = now.Add(taskTTL)
	case entry.wait:
		entry.until = now.Add(retryTask)
	default:
		entry.until = now.Add(noTaskTTL)
	}
}

// ask asks the ECS agent for the task of a container: its ARN, or nothing if it has none that can be this node's.
func (t *tasks) ask(ctx context.Context, container string) (arn string, err error) {
	var task struct{ Arn string }
	var here Node
	err = sockets.AskRoot(t.proc, t.at, func() error {
		err := t.get(ctx, "/v1/tasks?dockerid="+container, &task)
		switch {
		case err != nil || task.Arn == "":
			return err
		case !evidence.ValidTaskARN(task.Arn):
			return errors.New("the ECS agent's answer has no task ARN")
		}
		here, err = t.here(ctx)
		return err
	})
	if err != nil {
		return "", err
	}
	if task.Arn != "" && !here.has(task.Arn) {
		t.log.Debug("the ECS agent names a task of another region, account or cluster", "task_arn", task.Arn)
		return "", nil
	}
	return task.Arn, nil
}

// here returns where the node is, all of it: what it does not know by itself, it asks the ECS agent.
func (t *tasks) here(ctx context.Context) (Node, error) {
	n := t.node()
	known := func() bool { return n.Region != "" && n.AccountID != "" && n.Cluster != "" }
	if known() {
		return n, nil
	}
	registered, err := t.registered(ctx)
	if err != nil {
		return n, err
	}
	n.Region = cmp.Or(n.Region, registered.Region)
	n.AccountID = cmp.Or(n.AccountID, registered.AccountID)
	n.Cluster = cmp.Or(n.Cluster, registered.Cluster)
	if !known() {
		return n, errors.New("neither the node nor the ECS agent says which region, account and cluster it is in")
	}
	return n, nil
}

// get asks the ECS agent: 200 and JSON, or 404 and the same JSON without values (aws/amazon-ecs-agent:
// ecs-agent/introspection/v1/handlers).
func (t *tasks) get(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.url+path, nil)
	if err != nil {
		return err
	}
	resp, err := t.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNotFound {
		return fmt.Errorf("ask the ECS agent: status %d", resp.StatusCode)
	}
	body, err := readWhole(resp.Body, maxIntrospection)
	if err == nil {
		err = json.Unmarshal(body, into)
	}
	if err != nil {
		return fmt.Errorf("read the ECS agent's answer: %w", err)
	}
	return nil
}

// registered returns the node as the ECS agent has registered it, as far as it says.
func (t *tasks) registered(ctx context.Context) (n Node, err error) {
	var metadata struct{ Cluster, ContainerInstanceArn string }
	if err := t.get(ctx, "/v1/metadata", &metadata); err != nil {
		return Node{}, err
	}
	if parts := strings.Split(metadata.ContainerInstanceArn, ":"); len(parts) == 6 {
		n.Region, n.AccountID = parts[3], parts[4]
	}
	n.Cluster = metadata.Cluster[strings.LastIndexByte(metadata.Cluster, '/')+1:] // of a name or an ARN
	return n, nil
}

// has reports whether a task's ARN can be of the node: arn:PARTITION:ecs:REGION:ACCOUNT:task/CLUSTER/ID, before 2018
// without the cluster.
func (n Node) has(arn string) bool {
	parts := strings.Split(arn, ":")
	cluster := n.Cluster
	if resource := strings.Split(parts[5], "/"); len(resource) == 3 {
		cluster = resource[1]
	}
	return n == Node{Region: parts[3], AccountID: parts[4], Cluster: cluster}
}

// readWhole reads at most limit bytes; more are an error.
func readWhole(r io.Reader, limit int64) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("more than %d bytes", limit)
	}
	return text, err
}

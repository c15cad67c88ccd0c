package localapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/internal/evidence"
	"sevagent/internal/must"
)

const (
	idA     = "4f3b1c0d9e8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c"
	idB     = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00"
	taskA   = "e95a40efbde84cbc8600660a109ec194"
	taskOld = "c09f0188-7f87-4b0f-bfc3-16296622b6fe"
	arnA    = "arn:aws:ecs:eu-west-1:123456789012:task/prod/" + taskA
)

// stat is a /proc/<pid>/stat. The rest is that of a real one, of Linux 6.18.
func stat(comm, state string, start uint64) string {
	const format = "4242 (%s) %s 1 4242 4242 0 -1 4194304 104 0 1 0 0 0 0 0 20 0 1 0 %d 2998272 431 18446744073709551615 0 0\n"
	return fmt.Sprintf(format, comm, state, start)
}

func TestParseStartTime(t *testing.T) {
	for _, c := range []struct {
		name, text string
		start      uint64
		ok         bool
	}{
		{"plain", stat("sh", "S", 700475), 700475, true},
		{"hostile name", stat("x) R 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 9 (", "S", 700475), 700475, true},
		{"zombie", stat("sh", "Z", 700475), 0, false},
		{"short", "4242 (sh) S 1 2 3\n", 0, false},
		{"empty", "", 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if start, ok := parseStartTime([]byte(c.text)); start != c.start || ok != c.ok {
				t.Errorf("parseStartTime = %d, %v, want %d, %v", start, ok, c.start, c.ok)
			}
		})
	}
}

// proc is a directory that stands for procfs.
type proc struct {
	t   *testing.T
	dir string
}

func (p proc) set(pid int, cgroup, stat string) {
	p.t.Helper()
	dir := filepath.Join(p.dir, fmt.Sprint(pid))
	must.Do(p.t, os.MkdirAll(filepath.Join(dir, "task", filepath.Base(dir)), 0o755), "make the directory of process %d",
		pid)
	for name, text := range map[string]string{"cgroup": cgroup, filepath.Join("task", filepath.Base(dir), "stat"): stat} {
		must.Do(p.t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644), "write %s of process %d", name, pid)
	}
}

// ecsAgent serves the introspection API, and counts the requests.
func ecsAgent(t *testing.T, handler http.HandlerFunc) (url string, asked *atomic.Int32) {
	asked = new(atomic.Int32)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		handler(w, r)
	}))
	t.Cleanup(server.Close)
	return server.URL, asked
}

func knows(container, arn string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/tasks" || r.URL.Query().Get("dockerid") != container {
			w.WriteHeader(http.StatusNotFound)
			arn = ""
		}
		const format = `{"Arn":%q,"KnownStatus":"RUNNING","Family":"web","Version":"3","Containers":[{"DockerId":%q,"Name":"web"}]}`
		fmt.Fprintf(w, format, arn, container)
	}
}

// unless fails requests while down is true.
func unless(down *atomic.Bool, handler http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if down.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		handler(w, r)
	}
}

func newCallers(t *testing.T, url string) (*Callers, proc) {
	p := proc{t, t.TempDir()}
	return NewCallers(CallersConfig{Proc: p.dir, Introspection: url, Log: slog.New(slog.DiscardHandler)}), p
}

func TestIdentify(t *testing.T) {
	url, _ := ecsAgent(t, knows(idA, arnA))
	callers, proc := newCallers(t, url)
	v2 := "0::/ecstasks.slice/ecstasks-" + taskA + ".slice/docker-" + idA + ".scope\n"
	proc.set(10, v2, stat("app", "S", 1))
	proc.set(11, "0::/docker/"+idA+"\n", stat("app", "S", 1))
	proc.set(12, "0::/docker/"+idB+"\n", stat("app", "S", 1))
	proc.set(13, "0::/system.slice/sshd.service\n", stat("sshd", "S", 1))
	proc.set(14, v2, stat("app", "Z", 1))
	proc.set(15, v2+strings.Repeat("\n", maxProcFile), stat("app", "S", 1))
	proc.set(16, strings.ReplaceAll(v2, taskA, "00000000000000000000000000000000"), stat("app", "S", 1))
	for _, c := range []struct {
		name string
		pid  int32
		want evidence.Caller
	}{
		{"task", 10, evidence.ContainerCaller(7, idA, arnA)},
		{"cgroup without the task", 11, evidence.ContainerCaller(7, idA, arnA)},
		{"container that is no task's", 12, evidence.ContainerCaller(7, idB, "")},
		{"not a container", 13, evidence.HostCaller(7)},
		{"zombie", 14, evidence.HostCaller(7)},
		{"cgroup file without end", 15, evidence.HostCaller(7)},
		{"ECS agent contradicts the cgroup", 16, evidence.ContainerCaller(7, idA, "")},
		{"gone", 17, evidence.HostCaller(7)},
		{"in another PID namespace", 0, evidence.HostCaller(7)},
		{"no pid", -1, evidence.HostCaller(7)},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := callers.Identify(t.Context(), c.pid, 7); got.String() != c.want.String() {
				t.Errorf("Identify = %+v, want %+v", got, c.want)
			}
		})
	}
}

// A pid that is given to another process between the two reads of its start time belongs to neither.
func TestPidThatChangesHands(t *testing.T) {
	callers, proc := newCallers(t, "")
	proc.set(10, "", stat("app", "S", 1))
	cgroup := filepath.Join(proc.dir, "10", "cgroup")
	must.Do(t, errors.Join(os.Remove(cgroup), unix.Mkfifo(cgroup, 0o600)), "replace the cgroup file by a pipe")
	got := make(chan evidence.Caller)
	go func() { got <- callers.Identify(context.WithoutCancel(t.Context()), 10, 7) }()
	w := must.Get(os.OpenFile(cgroup, os.O_WRONLY, 0))(t, "open the pipe") // returns once Identify reads the cgroup
	must.Do(t, os.WriteFile(filepath.Join(proc.dir, "10/task/10/stat"), []byte(stat("other", "S", 2)), 0o600),
		"give the pid to another process")
	fmt.Fprintf(w, "0::/docker/%s\n", idA)
	w.Close()
	if got := <-got; got.String() != evidence.HostCaller(7).String() {
		t.Errorf("Identify = %+v, want only the uid", got)
	}
}

func TestTaskARN(t *testing.T) {
	target, followed := ecsAgent(t, knows(idA, arnA))
	body := func(format string, args ...any) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, format, args...) }
	}
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
		want    string
	}{
		{"answer", knows(idA, arnA), arnA},
		{"short form", knows(idA, "arn:aws:ecs:us-east-1:123456789012:task/"+taskOld), "arn:aws:ecs:us-east-1:123456789012:task/" + taskOld},
		{"other partition", knows(idA, "arn:aws-us-gov:ecs:us-gov-west-1:123456789012:task/c/"+taskA), "arn:aws-us-gov:ecs:us-gov-west-1:123456789012:task/c/" + taskA},
		{"unknown container", knows(idB, arnA), ""},
		{"another kind of ARN", knows(idA, "arn:aws:ecs:us-east-1:123456789012:cluster/c"), ""},
		{"ARN with a newline", knows(idA, arnA+"\n"), ""},
		{"text around the ARN", knows(idA, "x "+arnA), ""},
		{"no ARN", body(`{"Arn":""}`), ""},
		{"list of tasks", body(`{"Tasks":[{"Arn":%q}]}`, arnA), ""},
		{"ARN that is no string", body(`{"Arn":1}`), ""},
		{"garbage", body("<html>"), ""},
		{"two values", body(`{"Arn":%q}{}`, arnA), ""},
		{"too large", body(`{"Arn":%q,"x":"%s"}`, arnA, strings.Repeat("x", maxIntrospection)), ""},
		{"server error", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprintf(w, `{"Arn":%q}`, arnA)
		}, ""},
		{"redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, target+r.URL.RequestURI(), http.StatusFound)
		}, ""},
		{"slow", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, ""},
		{"slow body", func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			url, _ := ecsAgent(t, c.handler)
			callers, _ := newCallers(t, url)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			if got := callers.taskARN(ctx, idA); got != c.want {
				t.Errorf("taskARN = %q, want %q", got, c.want)
			}
			if ctx.Err() != nil {
				t.Error("taskARN waits for as long as its caller lets it")
			}
		})
	}
	if n := followed.Load(); n != 0 {
		t.Errorf("a redirect was followed %d times", n)
	}
}

func TestTaskIsAskedForOnLoopbackOnly(t *testing.T) {
	for _, address := range []string{"169.254.169.254:80", "10.0.0.1:51678", "[2001:db8::1]:51678", "0.0.0.0:51678"} {
		if loopbackOnly("tcp", address, nil) == nil {
			t.Errorf("%s may be dialled", address)
		}
	}
	for _, url := range []string{"", "http://192.0.2.1:51678", "://", "ftp://127.0.0.1"} {
		callers, _ := newCallers(t, url)
		if got := callers.taskARN(t.Context(), idA); got != "" {
			t.Errorf("taskARN at %q = %q", url, got)
		}
	}
}

func TestTasksAreRemembered(t *testing.T) {
	var down atomic.Bool
	url, asked := ecsAgent(t, unless(&down, knows(idA, arnA)))
	callers, _ := newCallers(t, url)

	down.Store(true)
	for range 3 {
		if got := callers.taskARN(t.Context(), idA); got != "" {
			t.Fatalf("taskARN = %q from an ECS agent that is down", got)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times within %v, want once", n, unknownTaskTTL)
	}
	down.Store(false)
	callers.tasks[idA].at = time.Now().Add(-unknownTaskTTL)

	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			if got := callers.taskARN(t.Context(), idA); got != arnA {
				t.Errorf("taskARN = %q, want %q", got, arnA)
			}
		})
	}
	group.Wait()
	if n := asked.Load(); n != 2 {
		t.Errorf("asked %d times, want once more for all", n)
	}
	callers.tasks[idA].at = time.Now().Add(-24 * time.Hour)
	if got := callers.taskARN(t.Context(), idA); got != arnA || asked.Load() != 2 {
		t.Errorf("a known task was looked up again")
	}

	for i := range maxTasks + 50 {
		callers.task(fmt.Sprintf("%064x", i), time.Now())
	}
	if n := len(callers.tasks); n != maxTasks {
		t.Errorf("%d containers are remembered, want %d", n, maxTasks)
	}
}

func TestFirstToAskMayLeave(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	url, _ := ecsAgent(t, func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-release
		knows(idA, arnA)(w, r)
	})
	callers, _ := newCallers(t, url)
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan struct{})
	go func() {
		callers.taskARN(ctx, idA)
		close(left)
	}()
	<-entered
	cancel()
	close(release)
	if got := callers.taskARN(t.Context(), idA); got != arnA {
		t.Errorf("taskARN = %q, want %q", got, arnA)
	}
	<-left
}

func askEvidence(t *testing.T, client *http.Client) {
	t.Helper()
	body := strings.NewReader("{" + nonce + "}")
	resp := must.Get(client.Post("http://node/v1/evidence", "application/json", body))(t, "ask for evidence")
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("ask for evidence: status %d", resp.StatusCode)
	}
	io.Copy(io.Discard, resp.Body) // so that the connection is reused
}

func dialer(conn func(context.Context) (net.Conn, error)) *http.Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return conn(ctx) }
	return &http.Client{Transport: &http.Transport{DialContext: dial}}
}

func TestEvidenceNamesTheCaller(t *testing.T) {
	var down atomic.Bool
	url, asked := ecsAgent(t, unless(&down, knows(idA, arnA)))
	callers, proc := newCallers(t, url)
	proc.set(os.Getpid(), "0::/docker/"+idA+"\n", stat("app", "S", 5))
	n := newNode(t, callers)
	dials := 0
	client := dialer(func(ctx context.Context) (net.Conn, error) {
		dials++
		return new(net.Dialer).DialContext(ctx, "unix", n.socket)
	})
	defer client.CloseIdleConnections()
	if asked.Load() != 0 {
		t.Errorf("the ECS agent was asked before any caller wanted evidence")
	}

	// A task that is not known is looked up again on the same connection; what is known is kept.
	expect := func(when string, want evidence.Caller) {
		t.Helper()
		askEvidence(t, client)
		if got := n.claims.Caller; got.String() != want.String() {
			t.Errorf("%s: caller = %+v, want %+v", when, got, want)
		}
	}
	caller := evidence.ContainerCaller(uint32(os.Getuid()), idA, "")
	down.Store(true)
	expect("while the ECS agent is down", caller)
	down.Store(false)
	callers.tasks[idA].at = time.Now().Add(-unknownTaskTTL)
	caller.TaskARN = arnA
	expect("once it is up", caller)
	proc.set(os.Getpid(), "0::/docker/"+idB+"\n", stat("app", "S", 5))
	expect("on a connection whose caller is known", caller)
	if dials != 1 {
		t.Errorf("%d connections, want one", dials)
	}
}

// A caller that has ended, its connection left to another, has only its uid, although its pid is in use again.
func TestCallerThatHasGone(t *testing.T) {
	if socket := os.Getenv("SEVAGENT_TEST_CONNECT"); socket != "" {
		connectForParent(t, socket)
		return
	}
	callers, proc := newCallers(t, "")
	n := newNode(t, callers)
	pair := must.Get(unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))(t, "make a socket pair")
	theirs := os.NewFile(uintptr(pair[1]), "theirs")
	child := exec.Command(os.Args[0], "-test.run=^TestCallerThatHasGone$")
	child.Env = append(os.Environ(), "SEVAGENT_TEST_CONNECT="+n.socket)
	child.ExtraFiles = []*os.File{theirs}
	if out, err := child.CombinedOutput(); err != nil {
		t.Fatalf("connect from a child process: %v\n%s", err, out)
	}
	theirs.Close()
	proc.set(child.Process.Pid, "0::/docker/"+idB+"\n", stat("victim", "S", 9))

	oob := make([]byte, 64)
	_, size, _, _, err := unix.Recvmsg(pair[0], make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	must.Do(t, err, "receive the connection")
	unix.Close(pair[0])
	messages, err := unix.ParseSocketControlMessage(oob[:size])
	if err != nil || len(messages) != 1 {
		t.Fatalf("parse the message with the connection: %d messages, %v", len(messages), err)
	}
	fds := must.Get(unix.ParseUnixRights(&messages[0]))(t, "take the descriptor out of the message")
	f := os.NewFile(uintptr(fds[0]), "conn")
	conn, err := net.FileConn(f)
	f.Close()
	must.Do(t, err, "take over the connection")
	client := dialer(func(context.Context) (net.Conn, error) { return conn, nil })
	defer client.CloseIdleConnections()
	askEvidence(t, client)
	if got, want := n.claims.Caller, evidence.HostCaller(uint32(os.Getuid())); got.String() != want.String() {
		t.Errorf("caller = %+v, want %+v", got, want)
	}
}

func connectForParent(t *testing.T, socket string) {
	conn := must.Get(net.Dial("unix", socket))(t, "connect to the agent")
	raw := must.Get(conn.(*net.UnixConn).SyscallConn())(t, "reach the connection's descriptor")
	var err error
	raw.Control(func(fd uintptr) { err = unix.Sendmsg(3, []byte{0}, unix.UnixRights(int(fd)), nil, 0) })
	must.Do(t, err, "pass the connection on")
}

// Before Linux 6.5 only the start time tells processes apart.
func TestStartTimeTellsPeersApart(t *testing.T) {
	callers, proc := newCallers(t, "")
	proc.set(10, "", stat("app", "S", 5))
	proc.set(11, "", stat("app", "Z", 5))
	for _, c := range []struct {
		name string
		peer *peer
		want bool
	}{
		{"the same", &peer{pid: 10, start: 5}, true},
		{"a successor", &peer{pid: 10, start: 4}, false},
		{"gone before it was accepted", &peer{pid: 10}, false},
		{"zombie", &peer{pid: 11, start: 5}, false},
		{"gone", &peer{pid: 12, start: 5}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.peer.startedAsBefore(callers); got != c.want {
				t.Errorf("startedAsBefore = %v, want %v", got, c.want)
			}
		})
	}
}

func TestExited(t *testing.T) {
	child := exec.Command("cat")
	stdin := must.Get(child.StdinPipe())(t, "make the child's standard input")
	must.Do(t, child.Start(), "start the child")
	pidfd, err := unix.PidfdOpen(child.Process.Pid, 0)
	if err != nil {
		t.Skip(err)
	}
	defer unix.Close(pidfd)
	if exited(pidfd) {
		t.Error("a process that runs has exited")
	}
	stdin.Close()
	child.Wait()
	if !exited(pidfd) {
		t.Error("a process that was reaped has not exited")
	}
}

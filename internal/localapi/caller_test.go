package localapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"sevagent/internal/cgroup"
	"sevagent/internal/evidence"
	"sevagent/internal/must"
)

const (
	idA     = "4f3b1c0d9e8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c"
	idB     = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00"
	taskA   = "e95a40efbde84cbc8600660a109ec194"
	taskOld = "c09f0188-7f87-4b0f-bfc3-16296622b6fe"
	arnA    = "arn:aws:ecs:eu-west-1:123456789012:task/prod/" + taskA
	taskB   = "00000000000000000000000000000000"
	arnB    = "arn:aws:ecs:eu-west-1:123456789012:task/prod/" + taskB
)

const (
	service = "0::/system.slice/x.service\n"
	inTaskA = "0::/ecstasks.slice/ecstasks-" + taskA + ".slice/docker-" + idA + ".scope\n"
)

// stat is a /proc/<pid>/stat. The rest is that of a real one, of Linux 6.18.
func stat(comm, state string, start uint64) string {
	const format = "4242 (%s) %s 1 4242 4242 0 -1 4194304 104 0 1 0 0 0 0 0 20 0 1 0 %d 2998272 431 " +
		"18446744073709551615 0 0\n"
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

// proc is a directory that stands for procfs. Its sockets are the machine's.
type proc struct {
	t   *testing.T
	dir string
}

// set makes a process of the agent's PID namespace.
func (p proc) set(pid int, cgroup, stat string) {
	p.t.Helper()
	p.write(pid, "cgroup", cgroup)
	p.write(pid, fmt.Sprintf("task/%d/stat", pid), stat)
	p.write(pid, "status", fmt.Sprintf("Name:\tx\nNSpid:\t%d\nNSpgid:\t1\t2\n", pid))
}

func (p proc) write(pid int, name, text string) {
	p.t.Helper()
	path := filepath.Join(p.dir, fmt.Sprint(pid), name)
	must.Do(p.t, os.MkdirAll(filepath.Dir(path), 0o755), "make the directory of process %d", pid)
	must.Do(p.t, os.WriteFile(path, []byte(text), 0o644), "write %s of process %d", name, pid)
}

func newCallers(t *testing.T, url string) (*Callers, proc) {
	p := proc{t, t.TempDir()}
	must.Do(t, os.Symlink("/proc/self", filepath.Join(p.dir, "self")), "show the machine's sockets")
	callers := NewCallers(CallersConfig{Proc: p.dir, Introspection: url, Log: slog.New(slog.DiscardHandler)})
	callers.own = []byte("0::/system.slice/sevagent.service\n")
	return callers, p
}

// alive returns a connection whose other end is a process that lives: our own.
func alive(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l := must.Get(net.Listen("unix", path))(t, "listen")
	defer l.Close()
	other := must.Get(net.Dial("unix", path))(t, "connect")
	conn := must.Get(l.Accept())(t, "accept")
	t.Cleanup(func() { errors.Join(conn.Close(), other.Close()) })
	return conn.(*net.UnixConn)
}

func TestIdentify(t *testing.T) {
	url, _ := ecsAgent(t, knows(idA, arnA))
	callers, proc := newCallers(t, url)
	living := stat("app", "S", 1)
	proc.set(10, inTaskA, living)
	proc.set(11, "0::/docker/"+idA+"\n", living)
	proc.set(12, "0::/docker/"+idB+"\n", living)
	proc.set(13, service, living)
	proc.set(14, inTaskA, stat("app", "Z", 1))
	proc.set(15, inTaskA+strings.Repeat("\n", maxProcFile), living)
	proc.set(16, strings.ReplaceAll(inTaskA, taskA, taskB), living)
	proc.set(18, "0::/\n", living)
	proc.set(19, service, stat("app", "Z", 1))
	proc.set(20, service, living)
	proc.write(20, "status", "Name:\tx\nNSpid:\t20\t1\n")
	proc.set(21, service, living)
	proc.write(21, "status", "Name:\tx\n")
	proc.set(22, "0::/docker/"+idB+"\n", living)
	proc.write(22, "status", "Name:\tx\nNSpid:\t22\t1\n")
	proc.set(23, "0::/user.slice/user-7.slice/docker-"+idA+".scope\n", living)
	proc.set(24, "0::/../docker/"+idA+"\n", living)
	conn, unknown := alive(t), evidence.Caller{Kind: evidence.CallerUnknown}
	for _, c := range []struct {
		name string
		pid  int32
		want evidence.Caller
	}{
		{"task", 10, evidence.ContainerCaller(7, idA, arnA)},
		{"cgroup without the task", 11, evidence.ContainerCaller(7, idA, arnA)},
		{"container that is no task's", 12, evidence.ContainerCaller(7, idB, "")},
		{"service", 13, evidence.HostCaller(7)},
		{"container whose first thread has ended", 14, unknown},
		{"cgroup file without end", 15, unknown},
		{"ECS agent contradicts the cgroup", 16, evidence.ContainerCaller(7, idA, "")},
		{"gone", 17, unknown},
		{"in no unit and no container", 18, unknown},
		{"service whose first thread has ended", 19, unknown},
		{"container that stayed in a service's cgroup", 20, unknown},
		{"PID namespaces are not known", 21, unknown},
		{"container in its PID namespace", 22, evidence.ContainerCaller(7, idB, "")},
		{"foreign cgroup parent", 23, unknown},
		{"above the agent's cgroup namespace", 24, unknown},
		{"in another PID namespace", 0, unknown},
		{"no pid", -1, unknown},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := callers.identify(t.Context(), &peer{conn: conn, pid: c.pid, uid: 7, start: 1})
			if got.String() != c.want.String() {
				t.Errorf("caller is %s, want %s", got, c.want)
			}
		})
	}
}

// A pid that is given to another process between the two reads of its start time belongs to neither.
func TestPidThatChangesHands(t *testing.T) {
	callers, proc := newCallers(t, "")
	proc.set(10, "", stat("app", "S", 1))
	path := filepath.Join(proc.dir, "10", "cgroup")
	must.Do(t, errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)), "replace the cgroup file by a pipe")
	p := &peer{conn: alive(t), pid: 10, start: 1}
	got := make(chan cgroup.Place)
	go func() { got <- callers.place(p) }()
	w := must.Get(os.OpenFile(path, os.O_WRONLY, 0))(t, "open the pipe") // returns once the cgroup is read
	must.Do(t, os.WriteFile(filepath.Join(proc.dir, "10/task/10/stat"), []byte(stat("other", "S", 2)), 0o600),
		"give the pid to another process")
	fmt.Fprintf(w, "0::/docker/%s\n", idA)
	w.Close()
	if got := <-got; got.Kind != cgroup.Unknown {
		t.Errorf("its place is %+v, want unknown", got)
	}
}

// Refresh is for root of the host, and nobody passes for that who may be elsewhere.
func TestWhoMayRefresh(t *testing.T) {
	callers, proc := newCallers(t, "")
	server, conn := New(Config{Callers: callers}), alive(t)
	proc.set(10, service, stat("app", "S", 1))
	proc.set(11, inTaskA, stat("app", "S", 1))
	proc.set(12, "0::/x\n", stat("app", "S", 1))
	for _, c := range []struct {
		name string
		peer *peer
		want string // empty: it may
	}{
		{"root in a service", &peer{pid: 10}, ""},
		{"the agent's own user", &peer{pid: 10, uid: ownUID}, ""},
		{"another user", &peer{pid: 10, uid: ownUID + 1}, "not for uid"},
		{"root in a container", &peer{pid: 11}, "not of a container"},
		{"root elsewhere", &peer{pid: 12}, "neither in a systemd service nor in a login session"},
		{"root that has gone", &peer{pid: 13}, "neither in a systemd service nor in a login session"},
		{"nobody", nil, "the caller is unknown"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := t.Context()
			if c.peer != nil {
				c.peer.conn, c.peer.start = conn, 1
				ctx = context.WithValue(ctx, peerKey{}, c.peer)
			}
			reason, ok := server.mayRefresh(ctx)
			if ok != (c.want == "") || !strings.Contains(reason, c.want) {
				t.Errorf("mayRefresh = %q, %v, want %q", reason, ok, c.want)
			}
		})
	}
}

// The caller is found anew for each request, on whatever connection.
func TestEvidenceNamesTheCaller(t *testing.T) {
	var down atomic.Bool
	url, asked := ecsAgent(t, unless(&down, knows(idA, arnA)))
	callers, proc := newCallers(t, url)
	proc.set(os.Getpid(), "0::/docker/"+idA+"\n", stat("app", "S", 5))
	n := newNode(t, callers)
	conn := must.Get(net.Dial("unix", n.socket))(t, "connect to the agent")
	defer conn.Close()
	if asked.Load() != 0 {
		t.Errorf("the ECS agent was asked before any caller wanted evidence")
	}
	expect := func(when string, want evidence.Caller) {
		t.Helper()
		got := must.Get(requestEvidence(conn))(t, "request evidence %s", when)
		if got != asJSON(t, want) {
			t.Errorf("%s: caller is %s, want %s", when, got, want)
		}
	}
	uid := uint32(os.Getuid())
	down.Store(true)
	expect("while the ECS agent is down", evidence.ContainerCaller(uid, idA, ""))
	down.Store(false)
	callers.tasks.expire(idA)
	expect("once it is up", evidence.ContainerCaller(uid, idA, arnA))
	proc.set(os.Getpid(), service, stat("app", "S", 5))
	expect("outside of the container", evidence.HostCaller(uid))
	proc.set(os.Getpid(), service, stat("app", "Z", 5))
	expect("after its first thread has ended", evidence.Caller{Kind: evidence.CallerUnknown})
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

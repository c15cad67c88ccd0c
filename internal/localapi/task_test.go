package localapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/internal/must"
	"sevagent/internal/sim/simaws"
)

// ecsAgent serves the introspection API, and counts the requests for tasks.
func ecsAgent(t *testing.T, handler http.HandlerFunc) (url string, asked *atomic.Int32) {
	asked = new(atomic.Int32)
	server := httptest.NewServer(counting(asked, handler))
	t.Cleanup(server.Close)
	return server.URL, asked
}

func counting(asked *atomic.Int32, handler http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/tasks" {
			asked.Add(1)
		}
		handler(w, r)
	}
}

// instanceA is where the ECS agent of most tests is registered.
const instanceA = "arn:aws:ecs:eu-west-1:123456789012:container-instance/prod/0123456789abcdef"

// knows answers as the ECS agent does that is registered as instanceA and has one container.
func knows(container, arn string) http.HandlerFunc {
	return registeredIn("prod", instanceA, container, arn)
}

func registeredIn(cluster, instance, container, arn string) http.HandlerFunc {
	agent := new(simaws.ECSAgent)
	agent.Register(cluster, instance)
	agent.Run(container, arn)
	return agent.ServeHTTP
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

// expire has the task of a container looked up again.
func (t *tasks) expire(container string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known[container].until = time.Time{}
}

func TestTaskARN(t *testing.T) {
	target, followed := ecsAgent(t, knows(idA, arnA))
	body := func(format string, args ...any) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, format, args...) }
	}
	const short = "arn:aws:ecs:eu-west-1:123456789012:task/" + taskOld
	const china = "arn:aws-cn:ecs:cn-north-1:123456789012:task/prod/" + taskA
	inChina := strings.NewReplacer("aws:", "aws-cn:", "eu-west-1", "cn-north-1").Replace(instanceA)
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
		want    string
	}{
		{"answer", knows(idA, arnA), arnA},
		{"short form", knows(idA, short), short},
		{"other partition", registeredIn("prod", inChina, idA, china), china},
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
			if got := callers.tasks.arn(ctx, idA, ""); got != c.want {
				t.Errorf("task is %q, want %q", got, c.want)
			}
			if ctx.Err() != nil {
				t.Error("the lookup waits for as long as its caller lets it")
			}
		})
	}
	if n := followed.Load(); n != 0 {
		t.Errorf("a redirect was followed %d times", n)
	}
}

// A task of another region, account or cluster is not one that runs here, no matter who says so.
func TestTaskOfAnotherNode(t *testing.T) {
	here := Node{"eu-west-1", "123456789012", "prod"}
	elsewhere := func(old, new string) string { return strings.Replace(instanceA, old, new, 1) }
	const short = "arn:aws:ecs:eu-west-1:123456789012:task/" + taskA
	for _, c := range []struct {
		name              string
		node              Node
		cluster, instance string // of the ECS agent
		arn               string
		want              bool
	}{
		{"the node knows", here, "", "", arnA, true},
		{"nobody knows", Node{}, "", "", arnA, false},
		{"nobody knows the account", Node{"eu-west-1", "", "prod"}, "prod", "", arnA, false},
		{"nobody knows the cluster", Node{"eu-west-1", "123456789012", ""}, "", instanceA, short, false},
		{"another region", Node{"us-east-1", "123456789012", "prod"}, "", "", arnA, false},
		{"another account", Node{"eu-west-1", "210987654321", "prod"}, "", "", arnA, false},
		{"another cluster", Node{"eu-west-1", "123456789012", "dev"}, "", "", arnA, false},
		{"short form", here, "", "", short, true},
		{"short form of another account", Node{"eu-west-1", "210987654321", "prod"}, "", "", short, false},
		{"registered here", Node{}, "prod", instanceA, arnA, true},
		{"registered here, by ARN", Node{}, "arn:aws:ecs:eu-west-1:123456789012:cluster/prod", instanceA, arnA, true},
		{"the cluster by the ECS agent", Node{"eu-west-1", "123456789012", ""}, "prod", instanceA, arnA, true},
		{"another cluster by the ECS agent", Node{"eu-west-1", "123456789012", ""}, "dev", instanceA, arnA, false},
		{"registered in another region", Node{}, "prod", elsewhere("eu-west-1", "us-east-1"), arnA, false},
		{"registered in another account", Node{}, "prod", elsewhere("123456789012", "210987654321"), arnA, false},
		{"registered in another cluster", Node{}, "dev", instanceA, arnA, false},
		{"registered here, and the node is not", Node{"us-east-1", "", ""}, "prod", instanceA, arnA, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			url, _ := ecsAgent(t, registeredIn(c.cluster, c.instance, idA, c.arn))
			callers, _ := newCallers(t, url)
			callers.tasks.node = func() Node { return c.node }
			if got := callers.tasks.arn(t.Context(), idA, taskA); (got == c.arn) != c.want ||
				got != "" && got != c.arn {
				t.Errorf("task is %q, want %s believed: %v", got, c.arn, c.want)
			}
		})
	}
}

func TestTaskIsAskedForOnLoopbackOnly(t *testing.T) {
	for _, address := range []string{"169.254.169.254:80", "10.0.0.1:51678", "[2001:db8::1]:51678", "0.0.0.0:51678"} {
		if loopbackOnly("tcp", address, nil) == nil {
			t.Errorf("%s may be dialled", address)
		}
	}
	for _, url := range []string{"", "http://192.0.2.1:51678", "http://localhost:51678", "://", "ftp://127.0.0.1"} {
		callers, _ := newCallers(t, url)
		if got := callers.tasks.arn(t.Context(), idA, ""); got != "" {
			t.Errorf("task at %q is %q", url, got)
		}
	}
}

// While the ECS agent is down, any process can listen on its port. Nothing that it says counts, nor displaces what the
// agent has said.
func TestImpostorOfTheECSAgent(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to listen as another user")
	}
	for _, family := range []struct {
		name string
		id   int
	}{{"IPv4", unix.AF_INET}, {"IPv6 and IPv4", unix.AF_INET6}} {
		t.Run(family.name, func(t *testing.T) { testImpostor(t, family.id) })
	}
}

func testImpostor(t *testing.T, family int) {
	listen := func(uid int) (net.Listener, error) {
		runtime.LockOSThread() // until the goroutine ends, whose thread is not used again
		if err := unix.Setfsuid(uid); err != nil {
			return nil, err
		}
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		f := os.NewFile(uintptr(fd), "impostor")
		defer f.Close()
		if err := unix.Listen(fd, 16); err != nil { // on a port of the kernel's choice, of all addresses
			return nil, err
		}
		return net.FileListener(f)
	}
	var impostor net.Listener
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		impostor, err = listen(65534)
	}()
	<-done
	if errors.Is(err, unix.EAFNOSUPPORT) {
		t.Skip("no IPv6:", err)
	}
	must.Do(t, err, "listen as another user")
	asked := new(atomic.Int32)
	server := &http.Server{Handler: counting(asked, knows(idA, arnA))}
	go server.Serve(impostor)
	defer server.Close()

	url := fmt.Sprintf("http://127.0.0.1:%d", impostor.Addr().(*net.TCPAddr).Port)
	callers, _ := newCallers(t, url)
	for _, taskID := range []string{"", taskA} {
		if got := callers.tasks.arn(t.Context(), idA, taskID); got != "" || asked.Load() != 0 {
			t.Errorf("an impostor's task %q is believed, %d requests, want none", got, asked.Load())
		}
	}
	proved := callers.tasks.known[idA]
	proved.arn, proved.proved, proved.until = arnA, time.Now(), time.Time{}
	if got := callers.tasks.arn(t.Context(), idA, ""); got != arnA {
		t.Errorf("with an impostor there, the proved task is %q, want %s", got, arnA)
	}
}

// The answer of a socket that another has taken the place of, before the answer or after, is nobody's, and what was
// proved before stays.
func TestECSAgentThatChangesHands(t *testing.T) {
	for _, c := range []struct {
		name       string
		uid, inode int // of the socket that has taken its place
	}{
		{"root's by another of root's", 0, 78},
		{"root's by one that is not", 65534, 78},
		{"root's by none", -1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var another atomic.Bool
			var net *network
			url, _ := ecsAgent(t, func(w http.ResponseWriter, r *http.Request) {
				if another.Load() {
					net.listening(c.uid, c.inode)
				}
				knows(idA, arnA)(w, r)
			})
			net = newNetwork(t, url)
			net.listening(0, 77)
			another.Store(true)
			if got := net.tasks.arn(t.Context(), idA, ""); got != "" {
				t.Errorf("task is %q, by a socket that changed hands", got)
			}
			another.Store(false)
			net.listening(0, 77)
			net.tasks.expire(idA)
			if got := net.tasks.arn(t.Context(), idA, ""); got != arnA {
				t.Errorf("task is %q, by a socket that stayed, want %q", got, arnA)
			}
			net.listening(c.uid, c.inode)
			another.Store(true)
			net.tasks.expire(idA)
			if got := net.tasks.arn(t.Context(), idA, ""); got != arnA {
				t.Errorf("task is %q once another listens there, want the one that was proved", got)
			}
		})
	}
}

// network is tasks that see a table of sockets of the test's own.
type network struct {
	t     *testing.T
	dir   string // in place of procfs
	tasks *tasks
}

func newNetwork(t *testing.T, url string) *network {
	n := &network{t: t, dir: t.TempDir()}
	must.Do(t, os.MkdirAll(filepath.Join(n.dir, "self/net"), 0o755), "make a directory")
	n.tasks = newTasks(CallersConfig{Proc: n.dir, Introspection: url, Log: slog.New(slog.DiscardHandler)})
	return n
}

// listening has a socket of a user listen where the ECS agent does, on all addresses; uid -1: none.
func (n *network) listening(uid, inode int) {
	text := "  sl\n"
	if uid >= 0 {
		const line = "   0: 00000000:%04X 00000000:0000 0A 0:0 0:0 0 %d 0 %d 1\n"
		text += fmt.Sprintf(line, n.tasks.at.Port(), uid, inode)
	}
	must.Do(n.t, os.WriteFile(filepath.Join(n.dir, "self/net/tcp"), []byte(text), 0o644), "write the table of sockets")
}

func TestTasksAreRemembered(t *testing.T) {
	var down atomic.Bool
	agent := new(simaws.ECSAgent)
	agent.Register("prod", instanceA)
	agent.Run(idA, arnA)
	url, asked := ecsAgent(t, unless(&down, agent.ServeHTTP))
	callers, _ := newCallers(t, url)
	tasks := callers.tasks
	expect := func(when, want string, requests int32) {
		t.Helper()
		if got := tasks.arn(t.Context(), idA, ""); got != want {
			t.Errorf("%s: task is %q, want %q", when, got, want)
		}
		if n := asked.Swap(0); n != requests {
			t.Errorf("%s: asked %d times, want %d", when, n, requests)
		}
	}

	down.Store(true)
	expect("while the ECS agent is down", "", 1)
	expect("again, soon after", "", 0)
	down.Store(false)
	tasks.expire(idA)
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			if got := tasks.arn(t.Context(), idA, ""); got != arnA {
				t.Errorf("task is %q, want %q", got, arnA)
			}
		})
	}
	group.Wait()
	if n := asked.Swap(0); n != 1 {
		t.Errorf("asked %d times, want once for all", n)
	}
	expect("once known", arnA, 0)
	if ttl := time.Until(tasks.known[idA].until); ttl > taskTTL {
		t.Errorf("it is kept for %v, want at most %v", ttl, taskTTL)
	}
	tasks.expire(idA)
	expect("after its time", arnA, 1)

	down.Store(true)
	tasks.expire(idA)
	expect("while the ECS agent restarts", arnA, 1)
	tasks.known[idA].proved = time.Now().Add(-taskKept)
	tasks.expire(idA)
	expect("when it has been down for long", "", 1)
	down.Store(false)
	tasks.expire(idA)
	expect("when it is back", arnA, 1)
	for _, c := range []struct{ when, arn, want string }{
		{"when it names another task", arnB, arnB},
		{"when it names one of another cluster", strings.Replace(arnA, "prod", "dev", 1), ""},
		{"when it names the first again", arnA, arnA},
		{"when it names what is no task", "arn:aws:ecs:eu-west-1:123456789012:cluster/prod", arnA}, // no answer
	} {
		agent.Run(idA, c.arn)
		tasks.expire(idA)
		expect(c.when, c.want, 1)
	}
	agent.Forget(idA)
	tasks.expire(idA)
	expect("when it knows of none", "", 1)

	for i := range maxTasks + 50 {
		tasks.task(fmt.Sprintf("%064x", i), time.Now())
	}
	if n := len(tasks.known); n != maxTasks {
		t.Errorf("%d containers are remembered, want %d", n, maxTasks)
	}
}

// After a restart of both agents, the ECS agent does not listen for some seconds. A caller whose cgroup names the task
// waits for it, and no other does, nor for ever.
func TestTaskWhileTheECSAgentRestarts(t *testing.T) {
	for _, c := range []struct {
		name   string
		uid    int           // of the first listener; -1: nobody listens
		after  time.Duration // then the ECS agent does; 0: never
		taskID string
		leaves time.Duration // the caller does; 0: never
		want   string
		min    time.Duration
		max    time.Duration
	}{
		{"it is up", 0, 0, taskA, 0, arnA, 0, 0},
		{"it comes back", -1, 5 * time.Second, taskA, 0, arnA, 5 * time.Second, 5*time.Second + retryTask},
		{"it comes back, and the cgroup names no task", -1, 5 * time.Second, "", 0, "", 0, 0},
		{"it comes back, with another task", -1, time.Second, taskB, 0, "", time.Second, time.Second + retryTask},
		{"it does not come back", -1, 0, taskA, 0, "", restartWait, restartWait + retryTask},
		{"the caller leaves", -1, 5 * time.Second, taskA, time.Second, "", time.Second, time.Second},
		{"another listens there", 65534, 5 * time.Second, taskA, 0, "", 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(t, "http://127.0.0.1:51678")
				defer net.serve(knows(idA, arnA))()
				net.listening(c.uid, 77)
				if c.after > 0 {
					time.AfterFunc(c.after, func() { net.listening(0, 78) })
				}
				ctx, cancel := t.Context(), func() {}
				if c.leaves > 0 {
					ctx, cancel = context.WithTimeout(ctx, c.leaves)
				}
				defer cancel()
				began := time.Now()
				got := net.tasks.arn(ctx, idA, c.taskID)
				if took := time.Since(began); got != c.want || took < c.min || took > c.max {
					t.Errorf("task is %q after %v, want %q after %v to %v", got, took, c.want, c.min, c.max)
				}
				time.Sleep(time.Minute)
				began = time.Now()
				net.listening(-1, 0)
				net.tasks.expire(idA)
				net.tasks.arn(t.Context(), idA, "")
				if took := time.Since(began); took != 0 {
					t.Errorf("a caller whose cgroup names no task waits for %v", took)
				}
			})
		})
	}
}

// Nobody waits for another's answer, and nobody again once the ECS agent has been down for long.
func TestCallersWhileTheECSAgentRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, "http://127.0.0.1:51678")
		defer net.serve(knows(idA, arnA))()
		net.listening(-1, 0)
		took := func(id, taskID string) time.Duration {
			began := time.Now()
			net.tasks.arn(t.Context(), id, taskID)
			return time.Since(began)
		}
		var group sync.WaitGroup
		for i := range 50 {
			group.Go(func() {
				time.Sleep(time.Duration(i) * 100 * time.Millisecond)
				// The wait ends restartWait after the first, for all.
				if took := took(fmt.Sprintf("%064x", i), taskA); took > restartWait+retryTask {
					t.Errorf("caller %d waits for %v", i, took)
				}
			})
		}
		time.Sleep(time.Second)
		if took := took(idB, ""); took != 0 {
			t.Errorf("a caller whose cgroup names no task waits for %v beside those that do", took)
		}
		group.Wait()
		if took := took(idB, taskB); took != 0 {
			t.Errorf("the ECS agent has been down for long, and a caller waits for %v", took)
		}
	})
}

// serve has h answer without a network, which time in a bubble would wait for. A table of sockets without a listener
// refuses connections.
func (n *network) serve(h http.Handler) (stop func()) {
	l := pipes{make(chan net.Conn), make(chan struct{})}
	n.tasks.client.Transport = &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			here, there := net.Pipe()
			select {
			case l.conns <- there:
				return here, nil
			case <-l.closed:
				return nil, syscall.ECONNREFUSED
			}
		}}
	server := &http.Server{Handler: h}
	go server.Serve(l)
	return func() { server.Close() }
}

// pipes is a net.Listener within the process.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p pipes) Close() error   { close(p.closed); return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

func TestFirstToAskMayLeave(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	url, _ := ecsAgent(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/tasks" {
			close(entered)
			<-release
		}
		knows(idA, arnA)(w, r)
	})
	callers, _ := newCallers(t, url)
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan struct{})
	go func() {
		callers.tasks.arn(ctx, idA, "")
		close(left)
	}()
	<-entered
	cancel()
	close(release)
	if got := callers.tasks.arn(t.Context(), idA, ""); got != arnA {
		t.Errorf("task is %q, want %q", got, arnA)
	}
	<-left
}

package localapi

import (
	"context"
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
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/internal/must"
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

// knows answers as the ECS agent does: a container that it does not know has status 404 and a task without values.
func knows(container, arn string) http.HandlerFunc { return registeredIn(container, arn, `{}`) }

// registeredIn is knows, of an agent with this metadata.
func registeredIn(container, arn, metadata string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		arn := arn
		switch {
		case r.URL.Path == "/v1/metadata":
			fmt.Fprint(w, metadata)
			return
		case r.URL.Path != "/v1/tasks" || r.URL.Query().Get("dockerid") != container:
			w.WriteHeader(http.StatusNotFound)
			arn = ""
		}
		const format = `{"Arn":%q,"KnownStatus":"RUNNING","Family":"web","Version":"3",` +
			`"Containers":[{"DockerId":%q,"Name":"web"}]}`
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
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
		want    string
	}{
		{"answer", knows(idA, arnA), arnA},
		{"short form", knows(idA, "arn:aws:ecs:us-east-1:123456789012:task/"+taskOld),
			"arn:aws:ecs:us-east-1:123456789012:task/" + taskOld},
		{"other partition", knows(idA, "arn:aws-us-gov:ecs:us-gov-west-1:123456789012:task/c/"+taskA),
			"arn:aws-us-gov:ecs:us-gov-west-1:123456789012:task/c/" + taskA},
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
	const metadata = `{"Cluster":%q,"ContainerInstanceArn":%s}`
	const instance = `"arn:aws:ecs:eu-west-1:123456789012:container-instance/prod/0123456789abcdef"`
	here := Node{"eu-west-1", "123456789012", "prod"}
	for _, c := range []struct {
		name     string
		node     Node
		metadata string
		arn      string
		want     bool
	}{
		{"all is known", here, `{}`, arnA, true},
		{"nothing is known", Node{}, `{}`, arnA, true},
		{"another region", Node{Region: "us-east-1"}, `{}`, arnA, false},
		{"another account", Node{AccountID: "210987654321"}, `{}`, arnA, false},
		{"another cluster", Node{Cluster: "dev"}, `{}`, arnA, false},
		{"another cluster, short form", Node{Cluster: "dev"},
			`{}`, "arn:aws:ecs:eu-west-1:123456789012:task/" + taskA, true},
		{"registered here", Node{}, fmt.Sprintf(metadata, "prod", instance), arnA, true},
		{"registered here, by ARN", Node{},
			fmt.Sprintf(metadata, "arn:aws:ecs:eu-west-1:123456789012:cluster/prod", "null"), arnA, true},
		{"registered in another region", Node{},
			fmt.Sprintf(metadata, "prod", strings.Replace(instance, "eu-west-1", "us-east-1", 1)), arnA, false},
		{"registered in another account", Node{},
			fmt.Sprintf(metadata, "prod", strings.Replace(instance, "123456789012", "210987654321", 1)), arnA, false},
		{"registered in another cluster", Node{}, fmt.Sprintf(metadata, "dev", "null"), arnA, false},
		{"registered there, and it is not", Node{Region: "us-east-1"},
			fmt.Sprintf(metadata, "prod", instance), arnA, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			url, _ := ecsAgent(t, registeredIn(idA, c.arn, c.metadata))
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
	listen := func(uid int) (net.Listener, error) {
		runtime.LockOSThread() // until the goroutine ends, whose thread is not used again
		if err := unix.Setfsuid(uid); err != nil {
			return nil, err
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
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

// The answer of a socket that another has taken the place of, before the answer or after, is nobody's.
func TestECSAgentThatChangesHands(t *testing.T) {
	const table = "  sl\n   0: 0100007F:%04X 00000000:0000 0A 0:0 0:0 0 0 0 %d 1\n"
	dir := t.TempDir()
	must.Do(t, os.Mkdir(filepath.Join(dir, "net"), 0o755), "make a directory")
	var port int
	listening := func(inode int) {
		text := fmt.Sprintf(table, port, inode)
		must.Do(t, os.WriteFile(filepath.Join(dir, "net/tcp"), []byte(text), 0o644), "write the table of sockets")
	}
	var another atomic.Bool
	url, _ := ecsAgent(t, func(w http.ResponseWriter, r *http.Request) {
		if another.Load() {
			listening(78)
		}
		knows(idA, arnA)(w, r)
	})
	tasks := newTasks(CallersConfig{Proc: dir, Introspection: url, Log: slog.New(slog.DiscardHandler)})
	port = int(tasks.at.Port())
	listening(77)
	another.Store(true)
	if got := tasks.arn(t.Context(), idA, ""); got != "" {
		t.Errorf("task is %q, by a socket that changed hands", got)
	}
	another.Store(false)
	tasks.expire(idA)
	if got := tasks.arn(t.Context(), idA, ""); got != arnA {
		t.Errorf("task is %q, by a socket that stayed, want %q", got, arnA)
	}
}

func TestTasksAreRemembered(t *testing.T) {
	var down, other atomic.Bool
	url, asked := ecsAgent(t, unless(&down, func(w http.ResponseWriter, r *http.Request) {
		if other.Load() {
			knows(idB, arnA)(w, r)
			return
		}
		knows(idA, arnA)(w, r)
	}))
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
	other.Store(true)
	tasks.expire(idA)
	expect("when it knows of none", "", 1)

	for i := range maxTasks + 50 {
		tasks.task(fmt.Sprintf("%064x", i), time.Now())
	}
	if n := len(tasks.known); n != maxTasks {
		t.Errorf("%d containers are remembered, want %d", n, maxTasks)
	}
}

// While the ECS agent restarts, a caller whose cgroup names the task waits for it, and no other does, nor for ever.
func TestTaskWhileTheECSAgentRestarts(t *testing.T) {
	l := must.Get(net.Listen("tcp", "127.0.0.1:0"))(t, "find a free port")
	address := l.Addr().String()
	l.Close()
	callers, _ := newCallers(t, "http://"+address)
	tasks := callers.tasks
	if got := tasks.arn(t.Context(), idA, ""); got != "" {
		t.Errorf("task is %q, and nobody could have said so", got)
	}
	if entry := tasks.known[idA]; !entry.wait {
		t.Error("a caller whose cgroup names the task would not wait")
	}
	leaving, leave := context.WithCancel(t.Context())
	leave()
	if got := tasks.arn(leaving, idA, taskA); got != "" {
		t.Errorf("task is %q for a caller that leaves", got)
	}

	got := make(chan string)
	go func() { got <- tasks.arn(t.Context(), idB, taskA) }()
	for asked := false; !asked; time.Sleep(time.Millisecond) { // until it has asked in vain
		tasks.mu.Lock()
		if entry := tasks.known[idB]; entry != nil {
			select {
			case <-entry.done:
				asked = true
			default:
			}
		}
		tasks.mu.Unlock()
	}
	l = must.Get(net.Listen("tcp", address))(t, "listen there again")
	server := &http.Server{Handler: knows(idB, arnA)}
	go server.Serve(l)
	defer server.Close()
	if got := <-got; got != arnA {
		t.Errorf("task is %q once the ECS agent is back, want %q", got, arnA)
	}

	server.Close()
	tasks.mu.Lock()
	tasks.down = time.Now().Add(-restartWait)
	tasks.mu.Unlock()
	tasks.expire(idA)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if got := tasks.arn(ctx, idA, taskA); got != "" || ctx.Err() != nil {
		t.Errorf("task is %q, %v, want that nobody waits once the ECS agent has been down for long", got, ctx.Err())
	}
}

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

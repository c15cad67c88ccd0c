package reload

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
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"sevagent/internal/must"
)

const (
	idA  = "4f3b1c0d9e8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c"
	idB  = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00"
	gen1 = "..gen-20261124T024112.000000Z-3f9c1a2b"
	gen2 = "..gen-20261201T024112.000000Z-00aa11bb"
	path = "/etc/ecs/mtls"
)

// fakeDocker is the part of Docker that we use. It responds as Docker 25 does.
type fakeDocker struct {
	mu         sync.Mutex
	version    string // newest of the API
	minimum    int    // oldest: 1.minimum
	containers []container
	signals    []string // "<first of ID> <signal>"
	at         []time.Time
	listErr    error
	killErr    error
	killStatus int
	requests   int
	onKill     func() // before the signal is sent
}

func newFakeDocker(containers ...container) *fakeDocker {
	return &fakeDocker{version: "1.44", minimum: 24, containers: containers}
}

// labelled is a container with a label that mounts source.
func labelled(id, name, signal, source string) container {
	return container{ID: id, Names: []string{"/" + name}, Labels: map[string]string{label: signal},
		Mounts: []struct{ Source string }{{"/var/lib/x"}, {source}}}
}

func (d *fakeDocker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fail := func(status int, message string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(map[string]string{"message": message})
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.requests++
	w.Header().Set("Api-Version", d.version)
	if r.Method == http.MethodGet && r.URL.Path == "/_ping" {
		io.WriteString(w, "OK")
		return
	}
	var minor, newest int
	fmt.Sscanf(d.version, "1.%d", &newest)
	rest := r.URL.Path
	if _, err := fmt.Sscanf(rest, "/v1.%d/", &minor); err != nil || minor < d.minimum || minor > newest {
		fail(http.StatusBadRequest,
			fmt.Sprintf("client version 1.%d is too old. Minimum supported API version is 1.%d, "+
				"please upgrade your client to a newer version", minor, d.minimum))
		return
	}
	rest = strings.TrimPrefix(rest, fmt.Sprintf("/v1.%d", minor))
	switch id, kill := strings.CutSuffix(strings.TrimPrefix(rest, "/containers/"), "/kill"); {
	case r.Method == http.MethodGet && rest == "/containers/json":
		var filters map[string][]string
		err := json.Unmarshal([]byte(r.URL.Query().Get("filters")), &filters)
		want := map[string][]string{"label": {"io.sevagent.reload"}, "status": {"running"}}
		if diff := cmp.Diff(want, filters); err != nil || diff != "" {
			fail(http.StatusBadRequest, "filters: "+diff)
			return
		}
		json.NewEncoder(w).Encode(d.containers)
	case r.Method == http.MethodPost && kill:
		for _, c := range d.containers {
			switch {
			case c.ID != id:
			case d.killStatus != 0:
				fail(d.killStatus, "Container "+id+" is not running")
				return
			default:
				if d.onKill != nil {
					d.onKill()
				}
				d.signals = append(d.signals, id[:1]+" "+r.URL.Query().Get("signal"))
				d.at = append(d.at, time.Now())
				w.WriteHeader(http.StatusNoContent)
				return
			}
		}
		fail(http.StatusNotFound, "No such container: "+id)
	default:
		fail(http.StatusNotFound, "page not found")
	}
}

// RoundTrip answers without a network, for tests in a bubble.
func (d *fakeDocker) RoundTrip(r *http.Request) (*http.Response, error) {
	d.mu.Lock()
	err := map[bool]error{true: d.killErr, false: d.listErr}[r.Method == http.MethodPost]
	d.mu.Unlock()
	if err != nil && r.URL.Path != "/_ping" {
		return nil, err
	}
	w := httptest.NewRecorder()
	d.ServeHTTP(w, r)
	return w.Result(), nil
}

func (d *fakeDocker) set(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

// sent returns the signals since the last call, and when they were sent.
func (d *fakeDocker) sent() ([]string, []time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	signals, at := d.signals, d.at
	d.signals, d.at = nil, nil
	return signals, at
}

// bench is a Reloader that runs in a bubble.
type bench struct {
	*Reloader
	t        *testing.T
	docker   *fakeDocker
	registry *prometheus.Registry
	log      *bytes.Buffer // to be read after synctest.Wait
}

func inBubble(t *testing.T, s Settings, docker *fakeDocker, f func(b *bench)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, docker: docker, registry: prometheus.NewRegistry(), log: new(bytes.Buffer)}
		b.Reloader = New(Config{Path: path, Settings: s, Registerer: b.registry,
			Log: slog.New(slog.NewTextHandler(b.log, nil))})
		b.engine.client.Transport = docker
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- b.Run(ctx) }()
		f(b)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

// expect waits, and compares the signals sent since, in any order.
func (b *bench) expect(when string, wait time.Duration, want ...string) []time.Time {
	b.t.Helper()
	time.Sleep(wait)
	synctest.Wait()
	got, at := b.docker.sent()
	count := make(map[string]int)
	for _, s := range got {
		count[s]++
	}
	for _, s := range want {
		count[s]--
	}
	for _, n := range count {
		if n != 0 {
			b.t.Errorf("%s: signals %q, want %q", when, got, want)
			break
		}
	}
	return at
}

func (b *bench) metric(result string) (value float64) {
	b.t.Helper()
	families := must.Get(b.registry.Gather())(b.t, "gather the metrics")
	for _, m := range families[0].GetMetric() {
		if m.GetLabel()[0].GetValue() == result {
			value = m.GetCounter().GetValue()
		}
	}
	return value
}

var on = Settings{Enabled: true}

func TestSignals(t *testing.T) {
	docker := newFakeDocker(
		labelled(idA, "web", "SIGHUP", path), labelled(idB, "api", "usr1", path+"/..data"),
		labelled("1"+idA[1:], "one-file", "USR2", path+"/client.crt"),
		labelled("2"+idA[1:], "other", "HUP", "/etc/ecs/mtls2"),
		labelled("3"+idA[1:], "kill", "SIGKILL", path), labelled("5"+idA[1:], "empty", "", path))
	inBubble(t, on, docker, func(b *bench) {
		b.expect("before a publication", time.Hour)
		begin := time.Now()
		b.Published(gen1)
		synctest.Wait()
		if s := b.Status(); s.Pending != 3 || !s.Enabled {
			t.Errorf("Status = %+v, want 3 pending", s)
		}
		at := b.expect("after a publication", defaultSplay, "4 SIGHUP", "c SIGUSR1", "1 SIGUSR2")
		for i, t1 := range at {
			if t1.Sub(begin) >= defaultSplay || i > 0 && t1.Equal(at[i-1]) {
				t.Errorf("signals at %v, want each at its own moment", at)
			}
		}
		b.expect("later", time.Hour)
		s := b.Status()
		if len(s.Last) != 3 || s.Pending != 0 || s.Error != "" || s.Last[2].Generation != gen1 ||
			!s.Last[2].At.Equal(at[2]) || s.Last[2].Error != "" {
			t.Errorf("Status = %+v", s)
		}
		b.Published(gen2)
		b.expect("after another", defaultSplay, "4 SIGHUP", "c SIGUSR1", "1 SIGUSR2")
		if s := b.Status(); len(s.Last) != 3 || s.Last[0].Generation != gen2 {
			t.Errorf("Status = %+v, want the last outcomes", s)
		}
		for _, id := range []string{"2", "3", "5"} {
			if n := strings.Count(b.log.String(), `msg="container gets no signal" container_id=`+id+idA[1:]); n != 1 {
				t.Errorf("it is logged %d times that container %s… gets no signal, want once:\n%s", n, id, b.log)
			}
		}
		if n := b.metric(resultSent); n != 6 {
			t.Errorf("metric is %v, want 6", n)
		}
		families, _ := b.registry.Gather()
		if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
			t.Errorf("promlint: %v, %v", problems, err)
		}
	})
}

func TestOff(t *testing.T) {
	docker := newFakeDocker(labelled(idA, "web", "HUP", path))
	inBubble(t, Settings{}, docker, func(b *bench) {
		b.Published(gen1)
		b.expect("while off", time.Hour)
		if docker.requests != 0 {
			t.Errorf("%d requests to Docker while off", docker.requests)
		}
		b.Apply(on)
		b.expect("what was published before", time.Hour)
		b.Published(gen2)
		synctest.Wait()
		b.Apply(Settings{})
		b.expect("pending when switched off", time.Hour)
		if s := b.Status(); s.Pending != 0 || s.Enabled {
			t.Errorf("Status = %+v", s)
		}
	})
}

func TestPublicationsFold(t *testing.T) {
	docker := newFakeDocker(labelled(idA, "web", "HUP", path))
	inBubble(t, Settings{Enabled: true, Splay: time.Minute}, docker, func(b *bench) {
		begin := time.Now()
		for range 10 {
			b.Published(gen1)
			synctest.Wait()
		}
		b.Published(gen2)
		at := b.expect("while pending", time.Minute, "4 SIGHUP")
		if s := b.Status(); s.Last[0].Generation != gen2 {
			t.Errorf("outcome = %+v, want the last generation", s.Last[0])
		}
		b.expect("later", time.Hour)
		if at[0].Before(begin) {
			t.Error("signalled before it was published")
		}

		// A publication while a signal is sent: it is unknown which of the two the container saw.
		docker.set(func() { docker.onKill = func() { b.Published(gen2); docker.onKill = nil } })
		b.Published(gen1)
		b.expect("published while a signal is sent", time.Hour, "4 SIGHUP", "4 SIGHUP")
	})
}

func TestPublicationKeepsTheMoment(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name     string
		attempts int
		after    time.Duration // when the pending signal is due
		want     func(due time.Duration) bool
	}{
		{"soon", 0, time.Millisecond, func(due time.Duration) bool { return due == time.Millisecond }},
		{"late", 0, time.Hour, func(due time.Duration) bool { return due == time.Hour }},
		{"late, after a failure", 1, time.Hour, func(due time.Duration) bool { return due < time.Minute }},
		{"soon, after a failure", 1, -time.Second, func(due time.Duration) bool { return due == -time.Second }},
	} {
		r := New(Config{Path: path, Registerer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
		r.pending[idA] = &delivery{id: idA, attempts: c.attempts, due: now.Add(c.after)}
		web := labelled(idA, "web", "HUP", path)
		r.schedule(&web, []string{path}, want{publication: publication{2, gen2, now}})
		if d := r.pending[idA]; d.attempts != 0 || !c.want(d.due.Sub(now)) {
			t.Errorf("%s: due after %v, %d attempts", c.name, d.due.Sub(now), d.attempts)
		}
	}
}

// A signal sent while the containers could not be listed counts for the publication before it.
func TestSignalBeforeTheList(t *testing.T) {
	docker := newFakeDocker(labelled(idA, "web", "HUP", path))
	inBubble(t, Settings{Enabled: true, Splay: time.Millisecond}, docker, func(b *bench) {
		docker.set(func() { docker.killErr = errors.New("kill") })
		b.Published(gen1)
		b.expect("kill fails", 10*time.Millisecond)
		docker.set(func() { docker.killErr, docker.listErr = nil, errors.New("list") })
		b.Published(gen2)
		b.expect("kill succeeds, list fails", time.Second, "4 SIGHUP")
		docker.set(func() { docker.listErr = nil })
		b.expect("list succeeds", time.Hour)
		if s := b.Status(); s.Last[0].Generation != gen2 || s.Error != "" {
			t.Errorf("Status = %+v", s)
		}
	})
}

func TestContainerOfAfterThePublication(t *testing.T) {
	docker := newFakeDocker()
	inBubble(t, on, docker, func(b *bench) {
		before, after := labelled(idA, "before", "HUP", path), labelled(idB, "after", "HUP", path)
		before.Created, after.Created = time.Now().Unix(), time.Now().Unix()+1
		docker.set(func() { docker.containers = []container{before, after} })
		b.Published(gen1)
		b.expect("the first publication", time.Hour, "4 SIGHUP")
		b.Published(gen2)
		b.expect("the next", time.Hour, "4 SIGHUP", "c SIGHUP")
	})
}

func TestRetries(t *testing.T) {
	for _, c := range []struct {
		name        string
		fail, clear func(d *fakeDocker)
		clearAfter  time.Duration
		want        []string
		results     map[string]float64
		outcome     string // error of the container's
		status      string // error of the Status
		logged      int    // warnings and errors
	}{
		{"kill recovers", func(d *fakeDocker) { d.killErr = io.ErrUnexpectedEOF },
			func(d *fakeDocker) { d.killErr = nil }, 5 * time.Second,
			[]string{"4 SIGHUP"}, map[string]float64{resultSent: 1}, "", "", 1},
		{"kill never does", func(d *fakeDocker) { d.killErr = io.ErrUnexpectedEOF }, nil, 0,
			nil, map[string]float64{resultRetried: maxAttempts - 1, resultFailed: 1}, "unexpected EOF", "", 2},
		{"Docker fails", func(d *fakeDocker) { d.killStatus = http.StatusInternalServerError }, nil, 0,
			nil, map[string]float64{resultRetried: maxAttempts - 1, resultFailed: 1},
			"docker answers 500: Container " + idA + " is not running", "", 2},
		{"container is stopped", func(d *fakeDocker) { d.killStatus = http.StatusConflict }, nil, 0,
			nil, map[string]float64{resultGone: 1},
			"the container does not run: Container " + idA + " is not running", "", 0},
		{"list recovers", func(d *fakeDocker) { d.listErr = io.ErrUnexpectedEOF },
			func(d *fakeDocker) { d.listErr = nil }, 5 * time.Second,
			[]string{"4 SIGHUP"}, map[string]float64{resultSent: 1}, "", "", 1},
		{"list never does", func(d *fakeDocker) { d.listErr = io.ErrUnexpectedEOF }, nil, 0,
			nil, map[string]float64{resultUnlisted: 1}, "", "list containers: unexpected EOF", 2},
		{"list is no list", func(d *fakeDocker) { d.containers[0].ID = "../../images/x" }, nil, 0,
			nil, map[string]float64{resultUnlisted: 1}, "", `list containers: "../../images/x" is no container ID`, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			docker := newFakeDocker(labelled(idA, "web", "HUP", path))
			inBubble(t, Settings{Enabled: true, Splay: time.Second}, docker, func(b *bench) {
				docker.set(func() { c.fail(docker) })
				b.Published(gen1)
				time.Sleep(c.clearAfter)
				if c.clear != nil {
					docker.set(func() { c.clear(docker) })
				}
				b.expect("in the end", time.Hour, c.want...)
				requests := docker.requests
				time.Sleep(time.Hour)
				if docker.requests != requests || docker.requests > 3*maxAttempts {
					t.Errorf("%d requests, %d an hour later", requests, docker.requests)
				}
				for _, result := range []string{resultSent, resultFailed, resultGone, resultUnlisted, resultRetried} {
					if got, want := b.metric(result), c.results[result]; got != want &&
						(result != resultRetried || c.clear == nil) {
						t.Errorf("metric of %s is %v, want %v", result, got, want)
					}
				}
				s := b.Status()
				if s.Error != c.status || s.Pending != 0 || len(s.Last) > 0 && s.Last[0].Error != c.outcome ||
					len(s.Last) == 0 && c.status == "" {
					t.Errorf("Status = %+v, want error %q and outcome %q", s, c.status, c.outcome)
				}
				log := b.log.String()
				if got := strings.Count(log, "level=WARN") + strings.Count(log, "level=ERROR"); got != c.logged {
					t.Errorf("%d warnings and errors, want %d:\n%s", got, c.logged, b.log)
				}
			})
		})
	}
}

func TestOutcomesAreBounded(t *testing.T) {
	docker := newFakeDocker()
	for i := range maxOutcomes + 10 {
		docker.containers = append(docker.containers, labelled(fmt.Sprintf("%064x", i), "web", "HUP", path))
	}
	inBubble(t, on, docker, func(b *bench) {
		b.Published(gen1)
		time.Sleep(time.Minute)
		synctest.Wait()
		first := b.Status()
		if sent, _ := docker.sent(); len(first.Last) != maxOutcomes || len(sent) != maxOutcomes+10 {
			t.Errorf("%d outcomes of %d signals, want %d", len(first.Last), len(sent), maxOutcomes)
		}
		was := first.Last[0]
		docker.set(func() { docker.containers = nil })
		b.Published(gen2)
		time.Sleep(time.Minute)
		synctest.Wait()
		if first.Last[0] != was || len(b.done) != 0 {
			t.Errorf("a snapshot changed, or %d containers that have gone are remembered", len(b.done))
		}
	})
}

func TestPublishedNeverBlocks(t *testing.T) {
	r := New(Config{Registerer: prometheus.NewRegistry(), Settings: on})
	for range 100 {
		r.Published(gen1) // nobody runs it
		r.Apply(on)
	}
}

func TestParseSignal(t *testing.T) {
	for value, want := range map[string]string{
		"SIGHUP": "SIGHUP", "HUP": "SIGHUP", "sighup": "SIGHUP",
		"USR1": "SIGUSR1", "SIGUSR2": "SIGUSR2", "WINCH": "SIGWINCH",
		"": "", "SIG": "", "KILL": "", "SIGTERM": "", "INT": "", "1": "", "HUP&x=1": "", "SIGSIGHUP": "", " HUP": "",
	} {
		if got, err := parseSignal(value); got != want || (err == nil) != (want != "") {
			t.Errorf("parseSignal(%q) = %q, %v, want %q", value, got, err, want)
		}
	}
}

func TestMounts(t *testing.T) {
	dirs := []string{path, "/run/real"}
	for source, want := range map[string]bool{
		path: true, path + "/": true, path + "/client.crt": true, path + "/..data": true, "/run/real/ca.crt": true,
		"/etc/ecs": false, "/etc/ecs/mtls2": false, "/": false, "": false, path + "/../x": false,
	} {
		c := labelled(idA, "web", "HUP", source)
		if got := c.mounts(dirs); got != want {
			t.Errorf("mounts with source %q = %v, want %v", source, got, want)
		}
	}
}

func TestBackoff(t *testing.T) {
	for n, want := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 4: 8 * time.Second} {
		if low, high := backoff(n, 0), backoff(n, 1); low != want/2 || high != want {
			t.Errorf("backoff(%d) is from %v to %v, want from %v to %v", n, low, high, want/2, want)
		}
	}
}

// serve puts Docker on a socket.
func serve(t *testing.T, handler http.Handler) *engine {
	t.Helper()
	dir := must.Get(os.MkdirTemp("", "rl"))(t, "make a directory for the socket") // sockets have short paths
	socket := filepath.Join(dir, "s")
	listener := must.Get(net.Listen("unix", socket))(t, "listen on the socket")
	server := &http.Server{Handler: handler}
	done := make(chan struct{})
	go func() { server.Serve(listener); close(done) }()
	t.Cleanup(func() {
		server.Close()
		<-done
		os.RemoveAll(dir)
	})
	return newEngine(socket)
}

func TestEngine(t *testing.T) {
	for _, c := range []struct {
		version string // of the daemon
		minimum int
	}{{"1.44", 24}, {"1.52", 44}, {"1.41", 12}} {
		docker := newFakeDocker(labelled(idA, "web", "HUP", path))
		docker.version, docker.minimum = c.version, c.minimum
		e := serve(t, docker)
		list, err := e.list(t.Context())
		if diff := cmp.Diff(docker.containers, list); err != nil || diff != "" {
			t.Errorf("API %s: list: %v (-want +got):\n%s", c.version, err, diff)
		}
		if err := e.kill(t.Context(), idA, "SIGUSR1"); err != nil {
			t.Errorf("API %s: kill: %v", c.version, err)
		}
		if got, _ := docker.sent(); len(got) != 1 || got[0] != "4 SIGUSR1" {
			t.Errorf("API %s: signals %q", c.version, got)
		}
		if err := e.kill(t.Context(), idB, "SIGHUP"); !errors.Is(err, errGone) ||
			!strings.Contains(err.Error(), "No such container: "+idB) {
			t.Errorf("API %s: kill of none: %v", c.version, err)
		}
	}
}

// The answer to GET /v1.44/containers/json has many more fields: this is one of Docker 25's, shortened in its values.
const realList = `[{"Id":"` + idA + `","Names":["/ecs-web-3-web-a0b1"],"Image":"nginx:1.27","ImageID":"sha256:9bea9f2796e2","Command":"/docker-entrypoint.sh nginx","Created":1764000000,
"Ports":[{"PrivatePort":443,"Type":"tcp"}],"Labels":{"com.amazonaws.ecs.cluster":"prod","io.sevagent.reload":"SIGHUP"},"State":"running","Status":"Up 2 hours","HostConfig":{"NetworkMode":"default"},
"NetworkSettings":{"Networks":{"bridge":{"IPAMConfig":null,"Links":null,"IPAddress":"172.17.0.2"}}},"Mounts":[{"Type":"bind","Source":"/etc/ecs/mtls","Destination":"/etc/mtls","Mode":"ro","RW":false,"Propagation":"rprivate"}]}]`

func TestRealList(t *testing.T) {
	e := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.44")
		if r.URL.Path != "/_ping" {
			io.WriteString(w, realList)
		}
	}))
	list, err := e.list(t.Context())
	if err != nil || len(list) != 1 || list[0].name() != "ecs-web-3-web-a0b1" || list[0].Created != 1764000000 ||
		!list[0].mounts([]string{path}) {
		t.Errorf("list = %+v, %v", list, err)
	}
}

func TestEngineFailures(t *testing.T) {
	ping := func(version string, then http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/_ping" {
				w.Header().Set("Api-Version", version)
				return
			}
			then(w, r)
		}
	}
	body := func(status int, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status); io.WriteString(w, text) }
	}
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
		want    string
	}{
		{"message", ping("1.44", body(500, `{"message":"boom"}`)), "list containers: docker answers 500: boom"},
		{"no message", ping("1.44", body(502, "bad gateway\n")), "docker answers 502: bad gateway"},
		{"long message", ping("1.44", body(500, strings.Repeat("x", 1<<20))), strings.Repeat("x", maxShown)},
		{"no list", ping("1.44", body(404, `{"message":"page not found"}`)), "docker answers 404: page not found"},
		{"redirect", ping("1.44", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/_ping", http.StatusFound)
		}), "docker answers 302"},
		{"garbage", ping("1.44", body(200, "<html>")), "invalid character"},
		{"too large", ping("1.44", body(200, strings.Repeat(" ", maxList)+"[]")), "more than 8388608 bytes"},
		{"no version", ping("", nil), `API version ""`},
		{"another version", ping("2.0", nil), `API version "2.0"`},
		{"hostile version", ping("1.44/../x", nil), `API version "1.44/../x"`},
		{"ping fails", body(503, "starting"), "docker answers a ping with 503: starting"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := serve(t, c.handler).list(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 300 {
				t.Errorf("error is %v, want %q in it", err, c.want)
			}
		})
	}
	t.Run("no socket", func(t *testing.T) {
		_, err := newEngine(filepath.Join(t.TempDir(), "none")).list(t.Context())
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		e := serve(t, func() http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) { cancel(); <-r.Context().Done() }
		}())
		if err := e.kill(ctx, idA, "SIGHUP"); !errors.Is(err, context.Canceled) {
			t.Errorf("error is %v", err)
		}
	})
}

// A Docker that accepts and never responds costs five seconds an attempt.
func TestSilentDocker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEngine("")
		e.client.Transport = silent{}
		begin := time.Now()
		_, err := e.list(t.Context())
		if took := time.Since(begin); !errors.Is(err, context.DeadlineExceeded) || took != requestTimeout {
			t.Errorf("list ends after %v with %v, want %v", took, err, requestTimeout)
		}
	})
}

type silent struct{}

func (silent) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

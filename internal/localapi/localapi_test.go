package localapi

import (
	"context"
	"encoding/json"
	"io"
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
	"testing/synctest"
	"time"

	"sevagent/client"
	"sevagent/internal/appraise"
	"sevagent/internal/evidence"
	"sevagent/internal/look"
	"sevagent/internal/must"
	"sevagent/internal/promtext"
	"sevagent/internal/visible/visibletest"
)

// node is a server over fixed responses, on a socket and on loopback TCP, that can be made to fail.
type node struct {
	t                        *testing.T
	server                   *Server
	open                     int // pages that fill has opened
	socket                   string
	tcp                      string
	alive, evidence, refresh error
	health                   client.HealthStatus
	claims                   evidence.Claims // of the last request for evidence
}

// repair removes all failures.
func (n *node) repair() {
	n.alive, n.evidence, n.refresh = nil, nil, nil
	for ; n.open > 0; n.open-- {
		<-n.server.pages
	}
	n.health = client.Pass
}

// fill leaves no place for another page.
func (n *node) fill() {
	for {
		select {
		case n.server.pages <- struct{}{}:
			n.open++
		default:
			return
		}
	}
}

// newNode serves with callers, or such that know the machine's processes.
func newNode(t *testing.T, callers *Callers) *node {
	t.Helper()
	if callers == nil {
		callers = NewCallers(CallersConfig{Log: slog.New(slog.DiscardHandler)})
	}
	dir := must.Get(os.MkdirTemp("", "la"))(t, "make a directory for the socket") // sockets have short paths
	n := &node{t: t, socket: filepath.Join(dir, "s")}
	n.repair()
	socket := must.Get(net.Listen("unix", n.socket))(t, "listen on the socket")
	tcp := must.Get(net.Listen("tcp", "127.0.0.1:0"))(t, "listen on loopback")
	n.tcp = tcp.Addr().String()
	metrics := promtext.New()
	metrics.Gauge("sevagent_up", "One.").Set(1)
	health := func(time.Time) *client.Health {
		h := &client.Health{Version: "v1"}
		h.Add("x", client.Check{Status: client.Pass})
		h.Add("x", client.Check{Status: n.health, Output: "<b>reason</b>"})
		return h
	}
	n.server = New(Config{
		Version: "v1",
		Alive:   func(time.Time) error { return n.alive },
		Health:  health,
		Status: func(now time.Time) *client.Status {
			return &client.Status{Version: "<script>", Health: *health(now)}
		},
		Certificates: func() *client.Certificates { return &client.Certificates{Generation: "g1"} },
		Evidence: func(_ context.Context, c evidence.Claims) (*evidence.Document, *appraise.Verdict, error) {
			n.claims = c
			if n.evidence != nil {
				return nil, nil, n.evidence
			}
			doc, err := evidence.Build(c, 0, nil, nil, nil, nil, time.Unix(0, 0))
			return doc, nil, err
		},
		Callers:  callers,
		BoundKey: func(kind string) ([]byte, bool) { return make([]byte, 32), kind == "client" },
		Refresh: func(_ context.Context, renew string) (*client.Refresh, error) {
			if renew != "" && renew != "node" {
				return nil, ErrNoSource
			}
			return &client.Refresh{Generation: "g1"}, n.refresh
		},
		Metrics: metrics,
		Log:     slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.server.Run(ctx, socket, tcp) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		os.RemoveAll(dir)
	})
	return n
}

type reply struct {
	status int
	body   string
	header http.Header
}

func (a reply) code() string {
	var p client.Problem
	json.Unmarshal([]byte(a.body), &p)
	return p.Code
}

func (n *node) do(network, method, path, body string, header ...string) reply {
	n.t.Helper()
	address := n.socket
	if network == "tcp" {
		address = n.tcp
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		}}}
	req := must.Get(http.NewRequestWithContext(n.t.Context(), method, "http://127.0.0.1"+path,
		strings.NewReader(body)))(n.t, "make a request for %s %s", method, path)
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
		req.Header.Set(header[i], header[i+1])
	}
	resp := must.Get(client.Do(req))(n.t, "request %s %s over %s", method, path, network)
	defer resp.Body.Close()
	var content io.Reader = resp.Body
	if resp.Header.Get("Content-Type") == "text/event-stream" { // which has no end
		content = io.LimitReader(content, 100)
	}
	text := must.Get(io.ReadAll(content))(n.t, "read the answer to %s %s", method, path)
	return reply{resp.StatusCode, string(text), resp.Header}
}

const nonce = `"nonce": "AAECAwQFBgcICQoLDA0ODw"` // 16 bytes

func TestEvidenceOfTheSocketIsAClients(t *testing.T) {
	n := newNode(t, nil)
	n.do("unix", "POST", "/v1/evidence", "{"+nonce+"}")
	if n.claims.Purpose != evidence.PurposeClient {
		t.Errorf("purpose is %q, want %q", n.claims.Purpose, evidence.PurposeClient)
	}
}

// TestPageIsSelfContained: one style and one script, both by their digests; no address; and the status is escaped.
func TestPageIsSelfContained(t *testing.T) {
	n := newNode(t, nil)
	n.health = client.Warn
	reply := n.do("tcp", "GET", "/", "")
	for _, bad := range []string{"http:", "https:", "<b>", "{{", " style=", " onclick", " src="} {
		if strings.Contains(reply.body, bad) {
			t.Errorf("the page contains %q", bad)
		}
	}
	if !strings.Contains(reply.body, "&lt;b&gt;reason") {
		t.Error("the page lacks the escaped reason")
	}
	policy := reply.header.Get("Content-Security-Policy")
	for _, tag := range []string{"style", "script"} {
		_, inline, _ := strings.Cut(reply.body, "<"+tag+">")
		inline, _, _ = strings.Cut(inline, "</"+tag+">")
		if !strings.Contains(policy, tag+"-src "+look.Source(inline)) || strings.Count(reply.body, "<"+tag) != 1 {
			t.Errorf("the policy is %q, want the digest of the only %s", policy, tag)
		}
	}
	if strings.Contains(policy, "unsafe") || !strings.Contains(policy, "default-src 'none'") {
		t.Errorf("the policy is %q, want nothing by default", policy)
	}
}

// TestEvents: an open page gets what has changed, no more pages than there are places, and the end of the agent.
func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reason atomic.Value
		reason.Store("first")
		s := New(Config{Status: func(time.Time) *client.Status {
			status := new(client.Status)
			status.Health.Add("mtls:secret", client.Check{Status: client.Warn, Output: reason.Load().(string)})
			return status
		}})
		ctx, cancel := context.WithCancel(t.Context())
		open := func(ctx context.Context) *recorder {
			w := &recorder{ResponseRecorder: httptest.NewRecorder()}
			go s.events(w, httptest.NewRequestWithContext(ctx, "GET", "/v1/events", nil))
			synctest.Wait()
			return w
		}
		first := open(t.Context())
		for range maxPages - 1 {
			open(ctx)
		}
		if one := open(t.Context()); one.Code != http.StatusServiceUnavailable {
			t.Errorf("one page too many gets status %d, want 503", one.Code)
		}
		cancel()
		synctest.Wait()
		if one := open(t.Context()); one.Code != http.StatusOK {
			t.Errorf("once others have gone, a page gets status %d, want 200", one.Code)
		}
		time.Sleep(10 * pageTick)
		reason.Store("second")
		time.Sleep(2 * pageTick)
		synctest.Wait()
		text := first.text()
		if n := strings.Count(text, "event: node\n"); n != 2 || !strings.Contains(text, "second") {
			t.Errorf("%d events, want one at first and one for the change:\n%s", n, text)
		}
		time.Sleep(2 * keepAlive)
		close(s.stopping)
		synctest.Wait()
		if !strings.Contains(first.text(), ": still here\n\n") || len(s.pages) != 0 {
			t.Errorf("%d pages are open after the end, and the quiet one was left without a byte", len(s.pages))
		}
	})
}

// recorder is a response without deadlines, which can be read while it is written.
type recorder struct {
	*httptest.ResponseRecorder
	mu sync.Mutex
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ResponseRecorder.Write(p)
}

func (r *recorder) WriteString(s string) (int, error) { return r.Write([]byte(s)) }

func (r *recorder) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.Body.String()
}

func (r *recorder) SetReadDeadline(time.Time) error  { return nil }
func (r *recorder) SetWriteDeadline(time.Time) error { return nil }
func (r *recorder) FlushError() error                { return nil }

// TestHostilePage: neither a container, a server, a certificate nor a secret paints the page.
func TestHostilePage(t *testing.T) {
	status := new(client.Status)
	visibletest.Fill(status, visibletest.Hostile)
	page := httptest.NewRecorder()
	New(Config{Version: "v1", Status: func(time.Time) *client.Status { return status }}).page(page, nil)
	visibletest.Check(t, page.Body.String(), "verdict pass") // on a line of its own, which is none on a page
	if _, pre, _ := strings.Cut(page.Body.String(), "<pre"); strings.Contains(pre, "\nverdict pass") {
		t.Errorf("the data has made a line where lines count:\n%s", pre)
	}
}

// TestSlowClientsAreCutOff: a client that never ends its header delays no other, and is cut off after five seconds.
func TestSlowClientsAreCutOff(t *testing.T) {
	if testing.Short() {
		t.Skip("takes the header timeout, five seconds")
	}
	n := newNode(t, nil)
	n.do("unix", "GET", "/healthz", "") // the server is up, on both
	n.do("tcp", "GET", "/healthz", "")
	before := runtime.NumGoroutine()
	var conns []net.Conn
	for range 200 {
		c := must.Get(net.Dial("unix", n.socket))(t, "connect to the socket")
		defer c.Close()
		io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost:")
		conns = append(conns, c)
	}
	if got := n.do("unix", "GET", "/healthz", ""); got.status != 200 {
		t.Errorf("another caller gets status %d, want 200", got.status)
	}
	for i, c := range conns {
		c.SetReadDeadline(time.Now().Add(2 * time.Minute))
		must.Get(io.ReadAll(c))(t, "wait until connection %d is closed", i)
	}
	// They leave nothing behind.
	for deadline := time.Now().Add(2 * time.Minute); runtime.NumGoroutine() > before; time.Sleep(
		10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before the slow clients came", runtime.NumGoroutine(), before)
		}
	}
}

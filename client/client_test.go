package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sevagent/client"
	"sevagent/internal/appraise"
	"sevagent/internal/attest"
	"sevagent/internal/evidence"
	"sevagent/internal/localapi"
)

// listen returns a listener on a socket of its own; remove takes its directory away.
func listen() (l net.Listener, socket string, remove func()) {
	dir, err := os.MkdirTemp("", "cl") // sockets have short paths
	if err != nil {
		panic(err)
	}
	socket = filepath.Join(dir, "sevagent.sock")
	if l, err = net.Listen("unix", socket); err != nil {
		panic(err)
	}
	return l, socket, func() { os.RemoveAll(dir) }
}

// startAgent runs the local API over fixed answers; deviceErr is what asking for evidence comes to.
func startAgent(deviceErr error) (socket string, stop func()) {
	l, socket, remove := listen()
	server := localapi.New(localapi.Config{
		Alive: func(time.Time) error { return nil },
		Health: func(time.Time) *localapi.Health {
			h := new(localapi.Health)
			if deviceErr != nil {
				h.Add("device", localapi.Check{Status: localapi.StatusFail, Output: deviceErr.Error()})
			}
			h.Add("publication", localapi.Check{Status: localapi.StatusPass})
			return h
		},
		Status:       func(time.Time) any { return map[string]string{"version": "v1"} },
		Certificates: func() any { return map[string]any{"certificates": []any{}} },
		Evidence: func(_ context.Context, c evidence.Claims) (*evidence.Document, *appraise.Verdict, error) {
			if deviceErr != nil {
				return nil, nil, deviceErr
			}
			doc, err := evidence.Build(c, 0, nil, make([]byte, 1184), nil, nil, time.Unix(1780000000, 0))
			return doc, nil, err
		},
		BoundKey: func(kind string) ([]byte, bool) { return make([]byte, 32), kind == "client" },
		Refresh:  func(context.Context) (any, error) { return map[string]bool{"changed": false}, nil },
		Metrics:  prometheus.NewRegistry(),
		Log:      slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx, l, nil) }()
	return socket, func() {
		cancel()
		if err := <-done; err != nil {
			panic(err)
		}
		remove()
	}
}

func ExampleClient_Evidence() {
	socket, stop := startAgent(nil) // on a node: the default, ""
	defer stop()

	nonce := []byte("from the relying") // 16 bytes or more, fresh, chosen by whoever will verify
	doc, err := client.New(socket).Evidence(context.Background(), nonce, client.BindClient)
	if err != nil {
		fmt.Println(err)
		return
	}
	// Hand doc to the relying party as it is. This only shows what is in it.
	var shown struct {
		Nonce   string `json:"eat_nonce"`
		Purpose string `json:"purpose"`
		Binding struct {
			Kind string `json:"kind"`
		} `json:"binding"`
	}
	if err := json.Unmarshal(doc, &shown); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(shown.Nonce, shown.Purpose, shown.Binding.Kind)
	// Output: ZnJvbSB0aGUgcmVseWluZw client client
}

func ExampleProblem() {
	socket, stop := startAgent(attest.ErrThrottled)
	defer stop()

	_, err := client.New(socket).Evidence(context.Background(), make([]byte, 32), client.BindNone)
	if p, ok := errors.AsType[*client.Problem](err); ok {
		fmt.Println(p.Status, p.Code)
		if p.RetryAfter > 0 {
			fmt.Println("again in", p.RetryAfter)
		}
	}
	// Output:
	// 503 throttled
	// again in 10s
}

func ExampleUnreachableError() {
	_, err := client.New("/nonexistent/sevagent.sock").Status(context.Background())
	if u, ok := errors.AsType[*client.UnreachableError](err); ok {
		fmt.Println("no agent at", u.Socket)
	}
	// Output: no agent at /nonexistent/sevagent.sock
}

func agent(t *testing.T, deviceErr error) *client.Client {
	t.Helper()
	socket, stop := startAgent(deviceErr)
	t.Cleanup(stop)
	return client.New(socket)
}

// fake answers every request with a handler, to see what the real agent never sends.
func fake(t *testing.T, handler http.HandlerFunc) *client.Client {
	t.Helper()
	l, socket, remove := listen()
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() { srv.Serve(l); close(done) }()
	t.Cleanup(func() { srv.Close(); <-done; remove() })
	return client.New(socket)
}

func TestAnswers(t *testing.T) {
	c := agent(t, nil)
	for name, ask := range map[string]func(context.Context) ([]byte, error){
		`{"version":"v1"}`: c.Status, `{"certificates":[]}`: c.Certificates, `{"changed":false}`: c.Refresh,
	} {
		if got, err := ask(t.Context()); err != nil || strings.TrimSpace(string(got)) != name {
			t.Errorf("got %q, err %v, want %s", got, err, name)
		}
	}
}

func TestReady(t *testing.T) {
	for _, c := range []struct {
		err    error
		ready  bool
		status string
	}{{nil, true, `"status":"pass"`}, {attest.ErrNoDevice, false, `"status":"fail"`}} {
		health, ready, err := agent(t, c.err).Ready(t.Context())
		if err != nil || ready != c.ready || !strings.Contains(string(health), c.status) {
			t.Errorf("device %v: ready %v, err %v, %s", c.err, ready, err, health)
		}
	}
}

func TestProblem(t *testing.T) {
	for _, c := range []struct {
		name       string
		deviceErr  error
		nonce      int
		bind       string
		status     int
		code       string
		retryAfter time.Duration
	}{
		{"short nonce", nil, 15, client.BindNone, 400, "bad_request", 0},
		{"unknown bind", nil, 16, "peer", 400, "bad_request", 0},
		{"nothing to bind to", nil, 16, client.BindServer, 409, "no_certificate", 0},
		{"queue full", attest.ErrQueueFull, 16, client.BindNone, 429, "queue_full", time.Second},
		{"device missing", attest.ErrNoDevice, 16, client.BindNone, 503, "device_missing", 30 * time.Second},
		{"rejected", &appraise.Rejection{Code: appraise.CodePolicyRejected}, 16, client.BindNone, 503, "policy_rejected", 30 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := agent(t, c.deviceErr).Evidence(t.Context(), make([]byte, c.nonce), c.bind)
			p, ok := errors.AsType[*client.Problem](err)
			if !ok {
				t.Fatalf("err = %v, want a Problem", err)
			}
			if p.Status != c.status || p.Code != c.code || p.RetryAfter != c.retryAfter {
				t.Errorf("status %d, code %q, retry after %v, want %d, %q, %v", p.Status, p.Code, p.RetryAfter, c.status, c.code, c.retryAfter)
			}
			if !strings.Contains(err.Error(), c.code) || !strings.Contains(err.Error(), p.Detail) || !strings.HasSuffix(err.Error(), p.Advice) {
				t.Errorf("%q does not tell %+v", err, p)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	_, socket, remove := listen()
	remove()
	for name, c := range map[string]struct {
		client *client.Client
		cause  error
	}{
		"no socket": {client.New(socket), fs.ErrNotExist},
		"no answer": {fake(t, func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }), nil},
		"answer cut short": {fake(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "{")
		}), io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.client.Status(t.Context())
			u, ok := errors.AsType[*client.UnreachableError](err)
			if !ok || u.Socket == "" || u.Err == nil {
				t.Fatalf("err = %v, want an UnreachableError", err)
			}
			if c.cause != nil && !errors.Is(err, c.cause) {
				t.Errorf("err = %v, want one that wraps %v", err, c.cause)
			}
			if strings.Contains(err.Error(), "http://") {
				t.Errorf("%q shows the URL that the client made up", err)
			}
		})
	}
}

// TestCancel: a caller can leave at any time, and errors.Is tells that it has.
func TestCancel(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"before the answer": func(_ http.ResponseWriter, r *http.Request) {},
		"within the answer": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "{")
			http.NewResponseController(w).Flush()
			time.Sleep(20 * time.Millisecond) // until the client reads the body, most likely
		},
	} {
		t.Run(name, func(t *testing.T) {
			asked, answered := make(chan struct{}), make(chan struct{})
			c := fake(t, func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body) // else the server does not notice that the client leaves
				handler(w, r)
				close(asked)
				<-r.Context().Done()
				close(answered)
			})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() { <-asked; cancel() }()
			_, err := c.Evidence(ctx, make([]byte, 16), client.BindNone)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("err = %v, want one that wraps %v", err, context.Canceled)
			}
			select {
			case <-answered: // the agent has seen the caller leave
			case <-time.After(10 * time.Second):
				t.Error("the connection stays open")
			}
		})
	}

	t.Run("before the request", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := agent(t, nil).Status(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("err = %v, want one that wraps %v", err, context.Canceled)
		}
	})
	t.Run("deadline", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		c := fake(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		if _, err := c.Status(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("err = %v, want one that wraps %v", err, context.DeadlineExceeded)
		}
	})
}

// TestAnswerOverTheLimit: at most 1 MiB is read, of an answer that says how long it is and of one that does not end.
func TestAnswerOverTheLimit(t *testing.T) {
	const limit = 1 << 20
	answer := func(size int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, strings.Repeat("1", size)) }
	}
	if got, err := fake(t, answer(limit)).Status(t.Context()); err != nil || len(got) != limit {
		t.Errorf("an answer of the limit: %d bytes, err %v", len(got), err)
	}
	for name, handler := range map[string]http.HandlerFunc{
		"one byte more": answer(limit + 1),
		"without end": func(w http.ResponseWriter, _ *http.Request) {
			for chunk := strings.Repeat("1", 1<<16); ; {
				if _, err := io.WriteString(w, chunk); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			got, err := fake(t, handler).Status(ctx)
			if got != nil || err == nil || !strings.Contains(err.Error(), "more than 1048576 bytes") {
				t.Errorf("%d bytes, err %v", len(got), err)
			}
			if ctx.Err() != nil {
				t.Error("the client reads on until the caller's deadline")
			}
		})
	}
}

// TestNoProblemDocument: what is no agent's answer is an error that is neither a Problem nor an UnreachableError.
func TestNoProblemDocument(t *testing.T) {
	for name, body := range map[string]string{"text": "Internal Server Error\n", "empty": "", "JSON without a code": `{"status": 500}`, "JSON of another form": `{"code": 7}`} {
		c := fake(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(http.StatusInternalServerError)
			io.WriteString(w, body)
		})
		_, err := c.Status(t.Context())
		if err == nil || !strings.Contains(err.Error(), "/v1/status: status 500 Internal Server Error without a problem document") {
			t.Errorf("%s: err = %v", name, err)
		}
		if _, ok := errors.AsType[*client.Problem](err); ok {
			t.Errorf("%s: a Problem without a code", name)
		}
		if _, ok := errors.AsType[*client.UnreachableError](err); ok {
			t.Errorf("%s: an UnreachableError, but something has answered", name)
		}
	}
}

// TestRetryAfter: a date, or anything else that the agent does not send, is no time to wait.
func TestRetryAfter(t *testing.T) {
	for header, want := range map[string]time.Duration{"7": 7 * time.Second, "": 0, "soon": 0, "Fri, 31 Dec 2027 23:59:59 GMT": 0} {
		c := fake(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", header)
			w.WriteHeader(http.StatusServiceUnavailable)
			io.WriteString(w, `{"code": "throttled"}`)
		})
		_, err := c.Status(t.Context())
		if p, ok := errors.AsType[*client.Problem](err); !ok || p.RetryAfter != want {
			t.Errorf("Retry-After %q: err = %v, %+v, want %v", header, err, p, want)
		}
	}
}

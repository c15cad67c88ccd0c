package client_test

import (
	"context"
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

	"sevagent/client"
	"sevagent/internal/appraise"
	"sevagent/internal/attest"
	"sevagent/internal/evidence"
	"sevagent/internal/localapi"
	"sevagent/internal/promtext"
)

// listen returns a listener on a new socket; remove removes its directory.
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

// startAgent runs the local API over fixed responses; deviceErr is the error of asking for evidence.
func startAgent(deviceErr error) (socket string, stop func()) {
	l, socket, remove := listen()
	server := localapi.New(localapi.Config{
		Alive: func(time.Time) error { return nil },
		Health: func(time.Time) *client.Health {
			h := new(client.Health)
			if deviceErr != nil {
				h.Add("device", client.Check{Status: client.Fail, Output: deviceErr.Error()})
			}
			h.Add("publication", client.Check{Status: client.Pass})
			return h
		},
		Status:       func(time.Time) *client.Status { return &client.Status{Version: "v1"} },
		Certificates: func() *client.Certificates { return &client.Certificates{Path: "/etc/ecs/mtls"} },
		Evidence: func(_ context.Context, c evidence.Claims) (*evidence.Document, *appraise.Verdict, error) {
			if deviceErr != nil {
				return nil, nil, deviceErr
			}
			doc, err := evidence.Build(c, 0, nil, make([]byte, 1184), nil, nil, time.Unix(1780000000, 0))
			return doc, nil, err
		},
		BoundKey: func(kind string) ([]byte, bool) { return make([]byte, 32), kind == "client" },
		Refresh:  func(context.Context, string) (*client.Refresh, error) { return &client.Refresh{Changed: true}, nil },
		Metrics:  promtext.New(),
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

	nonce := []byte("from the relying") // 16 bytes or more, fresh, chosen by the verifier
	e, err := client.New(socket).Evidence(context.Background(), nonce, client.BindClient)
	if err != nil {
		fmt.Println(err)
		return
	}
	// Hand e.Raw to the relying party as it is. This only shows what is in it.
	fmt.Printf("%q %s %s\n", e.Document.Nonce, e.Document.Purpose, e.Document.Binding.Kind)
	// Output: "from the relying" client client
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

// fake serves every request with a handler, for responses that the real agent never sends.
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
	if s, err := c.Status(t.Context()); err != nil || s.Version != "v1" {
		t.Errorf("Status = %+v, %v, want version v1", s, err)
	}
	if l, err := c.Certificates(t.Context()); err != nil || l.Path != "/etc/ecs/mtls" {
		t.Errorf("Certificates = %+v, %v, want path /etc/ecs/mtls", l, err)
	}
	if r, err := c.Refresh(t.Context()); err != nil || !r.Changed {
		t.Errorf("Refresh = %+v, %v, want changed", r, err)
	}
}

// TestHealth: the health document has status 503 if the node is not ready, which is no error.
func TestHealth(t *testing.T) {
	for _, c := range []struct {
		device error
		status client.HealthStatus
		ready  bool
	}{{nil, client.Pass, true}, {attest.ErrNoDevice, client.Fail, false}} {
		h, err := agent(t, c.device).Health(t.Context())
		if err != nil || h.Status != c.status || h.Ready() != c.ready {
			t.Errorf("device %v: %+v, %v, want %s", c.device, h, err, c.status)
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
		{"rejected", &appraise.Rejection{Code: appraise.CodePolicyRejected},
			16, client.BindNone, 503, "policy_rejected", 30 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := agent(t, c.deviceErr).Evidence(t.Context(), make([]byte, c.nonce), c.bind)
			p, ok := errors.AsType[*client.Problem](err)
			if !ok {
				t.Fatalf("err = %v, want a Problem", err)
			}
			if p.Status != c.status || p.Code != c.code || p.RetryAfter != c.retryAfter {
				t.Errorf("status %d, code %q, retry after %v, want %d, %q, %v",
					p.Status, p.Code, p.RetryAfter, c.status, c.code,
					c.retryAfter)
			}
			if !strings.Contains(err.Error(), c.code) || !strings.Contains(err.Error(), p.Detail) ||
				!strings.HasSuffix(err.Error(), p.Advice) {
				t.Errorf("%q lacks a part of %+v", err, p)
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

// TestCancel: a caller can leave at any time, which errors.Is reports.
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
			case <-answered: // the agent has noticed that the caller left
			case <-time.After(2 * time.Minute):
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

// TestAnswerOverTheLimit: at most 1 MiB is read, of a response with a length and of one that does not end.
func TestAnswerOverTheLimit(t *testing.T) {
	const limit = 1 << 20
	answer := func(size int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, `{"version":"`+strings.Repeat("1", size-len(`{"version":""}`))+`"}`)
		}
	}
	if got, err := fake(t, answer(limit)).Status(t.Context()); err != nil || len(got.Version) < limit-20 {
		t.Errorf("an answer of the limit: err %v", err)
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
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			_, err := fake(t, handler).Status(ctx)
			if err == nil || !strings.Contains(err.Error(), "more than 1048576 bytes") {
				t.Errorf("err = %v, want that the answer is too large", err)
			}
			if ctx.Err() != nil {
				t.Error("the client reads on until the caller's deadline")
			}
		})
	}
}

// TestNoProblemDocument: a response that no agent sends is neither a Problem nor an UnreachableError.
func TestNoProblemDocument(t *testing.T) {
	for name, body := range map[string]string{"text": "Internal Server Error\n", "empty": "",
		"JSON without a code": `{"status": 500}`, "JSON of another form": `{"code": 7}`} {
		c := fake(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(http.StatusInternalServerError)
			io.WriteString(w, body)
		})
		_, err := c.Status(t.Context())
		if err == nil ||
			!strings.Contains(err.Error(), "/v1/status: status 500 Internal Server Error without a problem document") {
			t.Errorf("%s: err = %v", name, err)
		}
		if _, ok := errors.AsType[*client.Problem](err); ok {
			t.Errorf("%s: a Problem without a code", name)
		}
		if _, ok := errors.AsType[*client.UnreachableError](err); ok {
			t.Errorf("%s: an UnreachableError, although there was a response", name)
		}
	}
}

// TestRetryAfter: a date, or anything else that the agent never sends, gives no time to wait.
func TestRetryAfter(t *testing.T) {
	for header, want := range map[string]time.Duration{"7": 7 * time.Second, "": 0, "soon": 0,
		"Fri, 31 Dec 2027 23:59:59 GMT": 0} {
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

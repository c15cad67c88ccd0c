// Package localapi serves containers and operators on the node: HTTP/1.1 on a Unix socket, where peer credentials
// identify callers, and, for operational endpoints only, on loopback TCP.
//
// It promises bounded sizes and times for every request, errors as problem details with stable codes, and that
// nothing it serves contains a private key. The packages behind it decide what the responses mean.
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
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"sevagent/client"
	"sevagent/internal/appraise"
	"sevagent/internal/attest"
	"sevagent/internal/evidence"
	"sevagent/internal/promtext"
	"sevagent/internal/strictjson"
)

// Limits of a request.
const (
	maxBody         = 4 << 10
	maxHeader       = 8 << 10
	headerTimeout   = 5 * time.Second
	evidenceTimeout = 30 * time.Second
	refreshTimeout  = 60 * time.Second
	shutdownTimeout = time.Second
)

// Config holds what a Server serves. The functions are called from many goroutines.
type Config struct {
	Version string
	// Alive reports which loop is stuck; nil: none.
	Alive func(now time.Time) error
	// Health serves /readyz.
	Health func(now time.Time) *client.Health
	// Status serves /v1/status.
	Status func(now time.Time) *client.Status
	// Certificates serves /v1/certificates.
	Certificates func() *client.Certificates
	// Evidence serves /v1/evidence.
	Evidence func(context.Context, evidence.Claims) (*evidence.Document, *appraise.Verdict, error)
	// Callers identifies the callers on the Unix socket.
	Callers *Callers
	// BoundKey returns the SHA-256 of the published client's or server's SubjectPublicKeyInfo.
	BoundKey func(kind string) ([]byte, bool)
	// Refresh pulls the secrets now and returns what changed. With a name, it has that source of mtls.issue order a new
	// certificate instead; ErrNoSource: there is none of that name.
	Refresh func(ctx context.Context, renew string) (*client.Refresh, error)
	Metrics *promtext.Registry
	Log     *slog.Logger
}

// Server serves the local API.
type Server struct {
	cfg      Config
	stopping chan struct{} // closed when Run ends, for responses that have no end of their own
	pages    chan struct{} // holds one for each page that is kept up to date
}

// New returns a Server. Run starts it.
func New(cfg Config) *Server {
	if cfg.Callers == nil {
		cfg.Callers = NewCallers(CallersConfig{Log: cfg.Log})
	}
	return &Server{cfg: cfg, stopping: make(chan struct{}), pages: make(chan struct{}, maxPages)}
}

// Run serves on the listeners until ctx ends, then lets requests finish for a second. tcp may be nil. It closes
// both listeners; the socket file stays, so that clients of a restarted agent find it.
func (s *Server) Run(ctx context.Context, socket, tcp net.Listener) error {
	group, ctx := errgroup.WithContext(ctx)
	context.AfterFunc(ctx, func() { close(s.stopping) })
	ebb := newEbb()
	group.Go(func() error { ebb.run(ctx); return nil })
	serve := func(l net.Listener, handler http.Handler) {
		open := newDrain()
		srv := &http.Server{
			Handler: open.handler(handler),
			ConnState: func(conn net.Conn, state http.ConnState) {
				open.track(conn, state)
				ebb.track(state)
			},
			ReadHeaderTimeout: headerTimeout,
			ReadTimeout:       2 * headerTimeout,
			WriteTimeout:      refreshTimeout + headerTimeout,
			IdleTimeout:       time.Minute,
			MaxHeaderBytes:    maxHeader,
			ConnContext:       s.withPeer,
			ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
		}
		served := make(chan struct{})
		group.Go(func() error {
			defer close(served)
			if err := srv.Serve(l); ctx.Err() == nil {
				return fmt.Errorf("serve %s: %w", l.Addr(), err)
			}
			return nil
		})
		group.Go(func() error {
			<-ctx.Done()
			// Shutdown knows a connection only once Serve has registered it: one accepted in between would be cut off.
			l.Close()
			<-served
			open.wait(lingerTimeout, drainTimeout)
			graceful, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
			defer cancel()
			if srv.Shutdown(graceful) != nil {
				srv.Close()
			}
			return nil
		})
	}
	serve(newLimiter(frugal{socket}, s.cfg.Callers.limitKey, s.cfg.Log), s.socketHandler())
	if tcp != nil {
		serve(newLoopback(tcp, s.cfg.Callers.cfg.Proc, s.cfg.Log), s.tcpHandler())
	}
	return group.Wait()
}

// writeBuffer bounds what the kernel keeps of a response that is not read, in bytes: two pieces, each with its header
// in a page (the kernel takes twice this number, and pieces of half of that). Left alone it keeps 17 KB of evidence,
// and that counts as memory of the agent.
const writeBuffer = 3584

// frugal is a listener whose connections take little memory of the kernel.
type frugal struct{ net.Listener }

func (l frugal) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if c, ok := conn.(*net.UnixConn); ok {
		c.SetWriteBuffer(writeBuffer) // if not, it takes more
	}
	return conn, err
}

// How long a stopping server waits for requests: on idle connections, and on those that have sent nothing yet or are
// being served.
const (
	lingerTimeout = 100 * time.Millisecond
	drainTimeout  = 2 * time.Second
)

// drain lets a server stop without leaving a request unanswered. Shutdown alone does not: it closes a connection on
// which a request was just read, or is on its way (net/http: conn.serve). So for a moment the responses end the
// connections instead.
type drain struct {
	mu       sync.Mutex
	stopping bool
	busy     map[net.Conn]bool
	quieter  chan struct{} // size one: a connection is no longer busy
}

func newDrain() *drain {
	return &drain{busy: make(map[net.Conn]bool), quieter: make(chan struct{}, 1)}
}

func (d *drain) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.mu.Lock()
		stopping := d.stopping
		d.mu.Unlock()
		if stopping {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

func (d *drain) track(conn net.Conn, state http.ConnState) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if state == http.StateNew || state == http.StateActive {
		d.busy[conn] = true
		return
	}
	delete(d.busy, conn)
	select {
	case d.quieter <- struct{}{}:
	default:
	}
}

// wait returns once linger is over and no connection is busy, or at limit.
func (d *drain) wait(linger, limit time.Duration) {
	d.mu.Lock()
	d.stopping = true
	d.mu.Unlock()
	end := time.After(limit)
	<-time.After(linger)
	for d.count() > 0 {
		select {
		case <-d.quieter:
		case <-end:
			return
		}
	}
}

func (d *drain) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.busy)
}

func (s *Server) operational() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", s.healthz)
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", promtext.ContentType)
		s.cfg.Metrics.Write(w)
	})
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter,
		_ *http.Request) {
		writeJSON(w, s.cfg.Status(time.Now()))
	})
	mux.HandleFunc("GET /v1/certificates", func(w http.ResponseWriter,
		_ *http.Request) {
		writeJSON(w, s.cfg.Certificates())
	})
	mux.HandleFunc("GET /{$}", s.page)
	mux.HandleFunc("GET /v1/events", s.events)
	return mux
}

func (s *Server) socketHandler() http.Handler {
	mux := s.operational()
	mux.HandleFunc("POST /v1/evidence", s.evidence)
	mux.HandleFunc("POST /v1/refresh", s.refresh)
	return s.problems(mux)
}

// tcpHandler rejects what a browser could be tricked into sending: requests with a foreign Host (DNS rebinding) or a
// foreign Origin.
func (s *Server) tcpHandler() http.Handler {
	mux := s.problems(s.operational())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		origin, err := url.Parse(r.Header.Get("Origin"))
		if !loopbackHost(r.Host) || err != nil || r.Header.Get("Origin") != "" && !loopbackHost(origin.Host) {
			refuse(w, problem(http.StatusForbidden, "foreign_host",
				"the Host or Origin of the request is not this machine's loopback address"))
			return
		}
		if r.URL.Path == "/v1/evidence" || r.URL.Path == "/v1/refresh" {
			refuse(w, problem(http.StatusForbidden, "socket_only",
				"this is served on the Unix socket only, where callers are known"))
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func loopbackHost(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// problems gives the mux's own errors the form of all others.
func (s *Server) problems(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		if _, pattern := mux.Handler(r); pattern != "" {
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
			mux.ServeHTTP(w, r)
			return
		}
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			other := &http.Request{Method: method, URL: r.URL, Host: r.Host}
			if _, pattern := mux.Handler(other); pattern != "" {
				w.Header().Set("Allow", method)
				detail := fmt.Sprintf("%s accepts %s only", r.URL.Path, method)
				refuse(w, problem(http.StatusMethodNotAllowed, "method_not_allowed", detail))
				return
			}
		}
		refuse(w, problem(http.StatusNotFound, "not_found", "no such path"))
	})
}

func (s *Server) healthz(w http.ResponseWriter, r *http.Request) {
	if err := s.cfg.Alive(time.Now()); err != nil {
		refuse(w, problem(http.StatusServiceUnavailable, "stuck", err.Error()))
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	io.WriteString(w, "ok\n")
}

func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	h := s.cfg.Health(time.Now())
	h.Version = s.cfg.Version
	w.Header().Set("Content-Type", "application/health+json")
	if !h.Ready() {
		w.Header().Set("Retry-After", "5")
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	json.NewEncoder(w).Encode(h)
}

func (s *Server) evidence(w http.ResponseWriter, r *http.Request) {
	var body evidenceRequest
	if p := readJSON(r.Body, &body); p != nil {
		refuse(w, p)
		return
	}
	claims := evidence.Claims{
		Purpose: evidence.PurposeClient, Nonce: body.Nonce, Binding: evidence.Binding{Kind: evidence.BindNone},
		// The caller is looked up once everything else is in order.
		Caller: evidence.Caller{Kind: evidence.CallerUnknown},
	}
	bind := evidence.BindNone
	if body.Bind != nil {
		bind = *body.Bind
	}
	switch bind {
	case "", evidence.BindNone:
	case evidence.BindClient, evidence.BindServer:
		key, ok := s.cfg.BoundKey(bind)
		if !ok {
			detail := fmt.Sprintf("bind evidence: no %s certificate is published", bind)
			refuse(w, problem(http.StatusConflict, "no_certificate", detail))
			return
		}
		claims.Binding = evidence.Binding{Kind: bind, SPKISHA256: key}
	default:
		detail := fmt.Sprintf("bind is %q, want none, client or server", bind)
		refuse(w, problem(http.StatusBadRequest, "bad_request", detail))
		return
	}
	if err := claims.Check(); err != nil {
		refuse(w, problem(http.StatusBadRequest, "bad_request", err.Error()))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), evidenceTimeout)
	defer cancel()
	claims.Caller = s.caller(ctx)
	s.cfg.Log.Debug("evidence requested", "caller", claims.Caller.String())
	doc, _, err := s.cfg.Evidence(ctx, claims)
	if err != nil {
		refuse(w, attestProblem(err))
		return
	}
	own, shared, err := doc.Encode()
	if err != nil {
		refuse(w, notEncoded(err))
		return
	}
	startJSON(w, len(own)+len(shared))
	w.Write(own)
	w.Write(shared)
}

func attestProblem(err error) *client.Problem {
	status := http.StatusServiceUnavailable
	if errors.Is(err, attest.ErrQueueFull) {
		status = http.StatusTooManyRequests
	}
	p := problem(status, attest.Code(err), err.Error())
	p.Advice = attest.Advice(err)
	p.RetryAfter = attest.RetryAfter(err)
	return p
}

func (s *Server) refresh(w http.ResponseWriter, r *http.Request) {
	if reason, ok := s.mayRefresh(r.Context()); !ok {
		refuse(w, problem(http.StatusForbidden, "forbidden", reason))
		return
	}
	var ask client.RefreshRequest
	if r.ContentLength != 0 { // the body may be left out
		if p := readJSON(http.MaxBytesReader(w, r.Body, maxBody), &ask); p != nil {
			refuse(w, p)
			return
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), refreshTimeout)
	defer cancel()
	change, err := s.cfg.Refresh(ctx, ask.Renew)
	if errors.Is(err, ErrNoSource) {
		refuse(w, problem(http.StatusBadRequest, "bad_request", err.Error()))
		return
	}
	if err != nil {
		p := problem(http.StatusServiceUnavailable, "refresh_failed", err.Error())
		p.Advice = "see 'sevagent status' for each secret"
		refuse(w, p)
		return
	}
	writeJSON(w, change)
}

// ErrNoSource is that there is no source of certificates of a name.
var ErrNoSource = errors.New("mtls.issue has none of that name")

// evidenceRequest is client.EvidenceRequest as it may arrive: with bind, which may be empty, or without.
type evidenceRequest struct {
	Nonce evidence.B64URL `json:"nonce"`
	Bind  *string         `json:"bind,omitempty"`
}

// readJSON decodes exactly one JSON value, which nothing that reads it on its way can take for another.
func readJSON(body io.Reader, into any) *client.Problem {
	text, err := io.ReadAll(body)
	if err == nil {
		err = strictjson.Unmarshal(text, into)
	}
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return problem(http.StatusRequestEntityTooLarge, "bad_request",
			fmt.Sprintf("the body is larger than %d bytes", maxBody))
	}
	return problem(http.StatusBadRequest, "bad_request", "read the body: "+err.Error())
}

func writeJSON(w http.ResponseWriter, v any) {
	var text bytes.Buffer
	if err := json.NewEncoder(&text).Encode(v); err != nil {
		refuse(w, notEncoded(err))
		return
	}
	startJSON(w, text.Len())
	w.Write(text.Bytes())
}

func notEncoded(err error) *client.Problem {
	return problem(http.StatusInternalServerError, "internal", "encode the response: "+err.Error())
}

// startJSON begins a response of JSON. It sends the size, so that no client takes half of it for the whole.
func startJSON(w http.ResponseWriter, size int) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(size))
}

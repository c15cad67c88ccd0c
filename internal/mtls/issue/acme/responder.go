package acme

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"sync"
	"time"
)

// maxConnections are served at a time. The authority makes a few, from several places.
const maxConnections = 32

// responder answers http-01, and has its address open only while an order waits for that.
type responder struct {
	listen string
	open   time.Duration // after the last call of serve; an order that waits makes one at least every 30 s

	mu       sync.Mutex
	answers  map[string]string // by path
	server   *http.Server      // nil: closed
	listener net.Listener      // of server, which may not have got to it yet when it is closed
	timer    *time.Timer
}

func newResponder(listen string) *responder {
	return &responder{listen: listen, open: time.Minute}
}

// serve answers requests for a path until close, or until nobody has called for a while.
func (r *responder) serve(ctx context.Context, path, answer string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server == nil {
		var lc net.ListenConfig
		listener, err := lc.Listen(ctx, "tcp", r.listen)
		if err != nil {
			return err
		}
		r.answers, r.listener = make(map[string]string), listener
		r.server = &http.Server{
			Handler: r, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, MaxHeaderBytes: 8 << 10,
		}
		r.server.SetKeepAlivesEnabled(false)
		r.timer = time.AfterFunc(r.open, r.close)
		go r.server.Serve(&bounded{listener, make(chan struct{}, maxConnections)})
	}
	r.timer.Reset(r.open)
	r.answers[path] = answer
	return nil
}

// listenAdvice says what to do about an address that cannot be had.
func listenAdvice(err error) string {
	if errors.Is(err, fs.ErrPermission) {
		return "add CAP_NET_BIND_SERVICE to CapabilityBoundingSet in a drop-in of the unit, or change challenge_listen " +
			"to a port above 1023"
	}
	return "free the address, or change challenge_listen"
}

// close closes the address.
func (r *responder) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server != nil {
		r.timer.Stop()
		r.server.Close()
		r.listener.Close()
		r.server = nil
	}
}

// ServeHTTP answers a challenge. Nothing else is here.
func (r *responder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	answer, ok := r.answers[req.URL.Path]
	r.mu.Unlock()
	if !ok || req.Method != http.MethodGet {
		http.NotFound(w, req)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream") // RFC 8555 section 8.3
	io.WriteString(w, answer)
}

// bounded is a listener with at most cap(slots) connections at a time. Further ones wait in the kernel.
type bounded struct {
	net.Listener
	slots chan struct{}
}

func (b *bounded) Accept() (net.Conn, error) {
	b.slots <- struct{}{}
	conn, err := b.Listener.Accept()
	if err != nil {
		<-b.slots
		return nil, err
	}
	return &slot{Conn: conn, free: sync.OnceFunc(func() { <-b.slots })}, nil
}

type slot struct {
	net.Conn
	free func()
}

func (s *slot) Close() error {
	defer s.free()
	return s.Conn.Close()
}

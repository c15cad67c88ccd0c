package spiffe

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/binary"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/must"
)

const testID = "spiffe://example.org/node"

// offerOf is an SVID of a CA's with a bundle.
func offerOf(t testing.TB, id string, leaf *x509.Certificate, key crypto.Signer, bundle ...*x509.Certificate) offer {
	t.Helper()
	o := offer{id: id, chain: leaf.Raw, key: must.Get(x509.MarshalPKCS8PrivateKey(key))(t, "encode a key")}
	for _, c := range bundle {
		o.bundle = append(o.bundle, c.Raw...)
	}
	return o
}

// issue has a CA issue an SVID that is valid from now for a while.
func issue(t testing.TB, ca *mtlstest.CA, id string, life time.Duration) offer {
	t.Helper()
	leaf, key := ca.Leaf(t, "node", mtlstest.Valid(0, life), identifier(t, id))
	return offerOf(t, id, leaf, key, ca.Cert)
}

// identifier makes a certificate one for a SPIFFE ID.
func identifier(t testing.TB, id string) mtlstest.Change {
	t.Helper()
	u := must.Get(url.Parse(id))(t, "parse a SPIFFE ID")
	return func(c *x509.Certificate) { c.DNSNames, c.URIs = nil, []*url.URL{u} }
}

// field appends a field with a length.
func field(b []byte, number int, value []byte) []byte {
	b = binary.AppendUvarint(b, uint64(number)<<3|wireBytes)
	b = binary.AppendUvarint(b, uint64(len(value)))
	return append(b, value...)
}

// encodeOffers writes an X509SVIDResponse.
func encodeOffers(offers ...offer) (message []byte) {
	for _, o := range offers {
		var b []byte
		for i, value := range [][]byte{[]byte(o.id), o.chain, o.key, o.bundle, []byte(o.hint)} {
			if len(value) > 0 {
				b = field(b, i+1, value)
			}
		}
		message = field(message, 1, b)
	}
	return message
}

// frame puts a message into its frame.
func frame(message []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
}

// stream is a call that a test answers. Its methods work in the server's goroutine, which alone may.
type stream struct {
	t     *testing.T
	w     http.ResponseWriter
	r     *http.Request
	calls chan func()
	over  chan struct{} // closed when the call has ended, by whichever end
	ended bool
	alone bool // answered by the agent itself, while the test waits
}

// do calls f, and returns when the source has taken note of it.
func (c *stream) do(f func()) {
	if c.alone {
		f()
		return
	}
	select {
	case c.calls <- f:
	case <-c.over:
	}
	synctest.Wait()
}

// serve does what the test wants until the call ends.
func (c *stream) serve() {
	defer close(c.over)
	for !c.ended {
		select {
		case f := <-c.calls:
			f()
		case <-c.r.Context().Done():
			return
		}
	}
}

// push sends bytes as they are.
func (c *stream) push(b []byte) {
	c.do(func() {
		c.w.Write(b)
		if err := http.NewResponseController(c.w).Flush(); err != nil && c.r.Context().Err() == nil {
			c.t.Errorf("send a message: %v", err)
		}
	})
}

func (c *stream) offer(offers ...offer) { c.push(frame(encodeOffers(offers...))) }

// end ends the call with a status: as headers if nothing was sent, else as trailers.
func (c *stream) end(code int, message string) {
	c.do(func() {
		prefix := http.TrailerPrefix
		if c.w.Header().Get("Content-Type") == "" {
			prefix = ""
			c.w.Header().Set("Content-Type", "application/grpc")
		}
		c.w.Header().Set(prefix+"Grpc-Status", strconv.Itoa(code))
		c.w.Header().Set(prefix+"Grpc-Message", url.PathEscape(message))
		c.ended = true
	})
}

// close ends the call without a status.
func (c *stream) close() { c.do(func() { c.ended = true }) }

// begin sends the headers.
func (c *stream) begin() *stream {
	c.do(func() {
		c.w.Header().Set("Content-Type", "application/grpc")
		c.w.WriteHeader(http.StatusOK)
	})
	c.push(nil)
	return c
}

// world is a Source in a bubble, and what it talks to.
type world struct {
	t       *testing.T
	source  *Source
	streams chan *stream // calls that have come
	changed atomic.Int32
	dials   atomic.Int32

	accept chan net.Conn
	frozen chan struct{} // closed when the agent is to stop reading
	thawed chan struct{}

	mu     sync.Mutex
	refuse error // of a connection
	socket identity
	answer func(*stream) // of each call, unless the test does it
}

func (w *world) Accept() (net.Conn, error) {
	conn, ok := <-w.accept
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}

func (w *world) Close() error   { return nil }
func (w *world) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// setSocket has there be another socket, and connections fail with refuse.
func (w *world) setSocket(ino uint64, refuse error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refuse, w.socket = refuse, identity{ino: ino}
}

// setAnswer has the agent answer each further call by itself.
func (w *world) setAnswer(f func(*stream)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = f
}

// newWorld starts a Source and an agent.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, streams: make(chan *stream, 100), accept: make(chan net.Conn), socket: identity{ino: 1}}
	w.frozen, w.thawed = make(chan struct{}), make(chan struct{})
	server := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(w.serve)}
	server.Protocols.SetUnencryptedHTTP2(true)
	w.source = New(Config{
		Name: "issue/node", Socket: "/run/spire/api.sock", Gives: []string{"client", "server"},
		Changed: func() { w.changed.Add(1) }, Log: slog.New(slog.DiscardHandler),
		dial: w.dial,
		identify: func() identity {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.socket
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { server.Serve(w) })
	stopped := make(chan struct{})
	running.Go(func() {
		defer close(stopped)
		if err := w.source.Run(ctx); err != nil {
			t.Errorf("Run ended with %v, want nil when it is to end", err)
		}
	})
	t.Cleanup(func() {
		close(w.thawed)
		cancel()
		<-stopped
		close(w.accept)
		server.Close()
		running.Wait()
	})
	synctest.Wait()
	return w
}

// freezer is the agent's end of a connection.
type freezer struct {
	net.Conn
	w *world
}

func (f *freezer) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	select {
	case <-f.w.frozen:
		<-f.w.thawed
	default:
	}
	return n, err
}

func (w *world) dial(context.Context) (net.Conn, error) {
	w.dials.Add(1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refuse != nil {
		return nil, w.refuse
	}
	ours, theirs := net.Pipe()
	w.accept <- &freezer{theirs, w}
	return ours, nil
}

func (w *world) serve(rw http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/SpiffeWorkloadAPI/FetchX509SVID" || r.Header.Get("Workload.spiffe.io") != "true" ||
		r.Header.Get("Te") != "trailers" || r.Header.Get("Content-Type") != "application/grpc" {
		w.t.Errorf("call of %s with the headers %v, which SPIRE refuses", r.URL, r.Header)
	}
	rw.Header()["Date"] = nil
	w.mu.Lock()
	answer := w.answer
	w.mu.Unlock()
	c := &stream{t: w.t, w: rw, r: r, calls: make(chan func()), over: make(chan struct{}), alone: answer != nil}
	if answer != nil {
		answer(c)
	} else {
		w.streams <- c
	}
	c.serve()
}

// next returns the next call.
func (w *world) next() *stream {
	w.t.Helper()
	select {
	case c := <-w.streams:
		return c
	case <-time.After(time.Hour):
		w.t.Fatal("the source has not called for an hour")
		return nil
	}
}

// none fails the test if there has been a further call.
func (w *world) none() {
	w.t.Helper()
	select {
	case <-w.streams:
		w.t.Error("the source has called again, and there was no reason")
	default:
	}
}

// version is what Describe names, or empty.
func (w *world) version() string {
	v, err := w.source.Describe(w.t.Context())
	if err != nil && v.Current != "" {
		w.t.Errorf("Describe returned both %q and %v", v.Current, err)
	}
	return v.Current
}

// failure is Describe's error.
func (w *world) failure() error {
	_, err := w.source.Describe(w.t.Context())
	return err
}

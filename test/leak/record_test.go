//go:build node

package leak

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"sync"

	"sevagent/internal/must"
)

// place is something that is searched: streams of bytes, within which nothing is cut apart.
type place struct {
	mu      sync.Mutex
	streams []*stream
}

type stream struct {
	mu sync.Mutex
	bytes.Buffer
}

func (s *stream) Write(data []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Buffer.Write(data)
}

// stream returns a new one.
func (p *place) stream() *stream {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := new(stream)
	p.streams = append(p.streams, s)
	return s
}

// Write notes a stream that is complete.
func (p *place) Write(data []byte) (int, error) { return p.stream().Write(data) }

// at returns a place by its name.
func (p *proof) at(name string) *place {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.places[name] == nil {
		p.places[name] = new(place)
	}
	return p.places[name]
}

// serve has a handler answer on loopback, and notes what it is asked and answers. It returns its URL.
func (p *proof) serve(name string, h http.Handler) string { return p.serveTLS(name, h, nil) }

func (p *proof) serveTLS(name string, h http.Handler, config *tls.Config) string {
	to := p.at(name)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		head, _ := httputil.DumpRequest(r, false)
		body, _ := io.ReadAll(r.Body)
		to.Write(append(head, body...))
		r.Body = io.NopCloser(bytes.NewReader(body))
		h.ServeHTTP(&tee{w, to.stream()}, r)
	}))
	if server.TLS = config; config != nil {
		server.StartTLS()
	} else {
		server.Start()
	}
	p.t.Cleanup(server.Close)
	return server.URL
}

// tee notes what is answered.
type tee struct {
	http.ResponseWriter
	to io.Writer
}

func (t *tee) Write(data []byte) (int, error) {
	t.to.Write(data)
	return t.ResponseWriter.Write(data)
}

// proxy passes requests on.
func proxy(transport http.RoundTripper, to func(*http.Request) string) http.Handler {
	return &httputil.ReverseProxy{Transport: transport, Rewrite: func(r *httputil.ProxyRequest) {
		u, err := url.Parse(to(r.In))
		if err != nil {
			return // and the request fails
		}
		r.SetURL(u)
		r.Out.Host = r.In.Host
	}}
}

// relay listens at a socket for the Workload API, and notes what goes through.
func (n *node) relay(path string) {
	must.Do(n.t, os.MkdirAll(filepath.Dir(path), 0o755), "make a directory")
	l := must.Get(net.Listen("unix", path))(n.t, "listen for the Workload API")
	n.workload = l
	to := n.at(workloadAPI)
	go func() {
		for {
			down, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("unix", n.spire.Socket)
			if err != nil {
				down.Close()
				continue
			}
			pass := func(a, b net.Conn) {
				io.Copy(io.MultiWriter(a, to.stream()), b)
				a.Close()
				b.Close()
			}
			go pass(up, down)
			go pass(down, up)
		}
	}()
}

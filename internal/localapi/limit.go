package localapi

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"sevagent/internal/cgroup"
)

// maxConnections is how many connections one caller may have open on the Unix socket: a container, whichever of its
// processes connects, a user on the host, or all callers together that are unknown. maxCallers is how many counted
// connections may be open in total. With the agent's other files that stays below LimitNOFILE= of sevagent.service, so
// that a flood locks out neither root nor the agent itself.
const (
	maxConnections = 64
	maxCallers     = 6144
)

// limiter is a listener that rejects a caller who has maxConnections open.
type limiter struct {
	net.Listener
	key func(net.Conn) string // names the caller; empty: not counted
	log *slog.Logger

	mu    sync.Mutex
	open  map[string]int // by caller
	total int
}

func newLimiter(l net.Listener, key func(net.Conn) string, log *slog.Logger) *limiter {
	return &limiter{Listener: l, key: key, log: log, open: make(map[string]int)}
}

// counted is a connection that counts until it is closed.
type counted struct {
	net.Conn
	release func()
}

func (c *counted) Close() error {
	c.release()
	return c.Conn.Close()
}

func (l *limiter) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		caller := l.key(conn)
		if caller == "" {
			return conn, nil
		}
		if l.enter(caller) {
			return &counted{conn, sync.OnceFunc(func() { l.leave(caller) })}, nil
		}
		l.log.Debug("too many connections", "caller", caller)
		conn.Write(tooMany) // fits into the socket's buffer: nothing was written before
		conn.Close()
	}
}

func (l *limiter) enter(caller string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[caller] >= maxConnections || l.total >= maxCallers {
		return false
	}
	l.open[caller]++
	l.total++
	return true
}

func (l *limiter) leave(caller string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if l.open[caller]--; l.open[caller] == 0 {
		delete(l.open, caller)
	}
}

// limitKey names the caller on the Unix socket for the limit. Neither root of the host nor, there, the agent's own user
// is counted.
func (c *Callers) limitKey(conn net.Conn) string {
	p := newPeer(conn, c)
	if p == nil {
		return "unknown"
	}
	switch place := c.place(p); {
	case place.Kind == cgroup.Container:
		return "container " + place.ContainerID
	case place.Kind != cgroup.Host:
		return "unknown"
	case p.uid == 0 || p.uid == ownUID:
		return ""
	}
	return "uid " + strconv.FormatUint(uint64(p.uid), 10)
}

// tooMany is the response on a rejected connection, whatever its request.
var tooMany = func() []byte {
	p := problem(http.StatusTooManyRequests, "too_many_connections",
		fmt.Sprintf("too many connections: at most %d per container or user", maxConnections))
	p.Advice, p.RetryAfter = "try again later", time.Second
	var body answer
	refuse(&body, p)
	var text bytes.Buffer
	resp := http.Response{
		StatusCode: p.Status, ProtoMajor: 1, ProtoMinor: 1, Header: body.Header(),
		Body: io.NopCloser(&body.Buffer), ContentLength: int64(body.Len()), Close: true,
	}
	if err := resp.Write(&text); err != nil {
		panic(err)
	}
	return text.Bytes()
}()

// answer is an http.ResponseWriter in memory.
type answer struct {
	bytes.Buffer
	header http.Header
}

func (a *answer) Header() http.Header {
	if a.header == nil {
		a.header = make(http.Header)
	}
	return a.header
}

func (a *answer) WriteHeader(int) {}

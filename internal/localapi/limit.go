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

	"golang.org/x/sys/unix"
)

// maxConnections is how many connections one caller may have open: on the Unix socket a container, whoever its processes
// are, or outside of containers a user; on loopback all together. maxCallers is how many all may have that count. With what
// else the agent opens that stays below LimitNOFILE= of sevagent.service, so that no one keeps root of the node from the
// agent, nor the agent from its device and its files.
const (
	maxConnections = 64
	maxCallers     = 6144
)

// limiter is a listener that turns away who has maxConnections already.
type limiter struct {
	net.Listener
	who func(net.Conn) string // empty: not counted
	log *slog.Logger

	mu    sync.Mutex
	open  map[string]int // by caller
	total int
}

func newLimiter(l net.Listener, who func(net.Conn) string, log *slog.Logger) *limiter {
	return &limiter{Listener: l, who: who, log: log, open: make(map[string]int)}
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
		who := l.who(conn)
		if who == "" {
			return conn, nil
		}
		if l.enter(who) {
			return &counted{conn, sync.OnceFunc(func() { l.leave(who) })}, nil
		}
		l.log.Debug("too many connections", "caller", who)
		conn.Write(tooMany) // fits into the socket's buffer: nothing was written before
		conn.Close()
	}
}

func (l *limiter) enter(who string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[who] >= maxConnections || l.total >= maxCallers {
		return false
	}
	l.open[who]++
	l.total++
	return true
}

func (l *limiter) leave(who string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if l.open[who]--; l.open[who] == 0 {
		delete(l.open, who)
	}
}

// loopback is who calls on the loopback listener, where nobody can be told.
func loopback(net.Conn) string { return "loopback" }

// who names the caller on the Unix socket for the limit. Root outside of containers is not counted, nor is the agent's own
// user. A process that cannot be told, having ended say, is not taken for one outside of containers.
func (c *Callers) who(conn net.Conn) string {
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return "unknown"
	}
	cred := credentials(unixConn)
	if cred == nil {
		return "unknown"
	}
	container, ok := c.container(cred.Pid)
	switch {
	case !ok:
		return "unknown"
	case container != "":
		return "container " + container
	case cred.Uid == 0 || cred.Uid == ownUID:
		return ""
	}
	return "uid " + strconv.FormatUint(uint64(cred.Uid), 10)
}

// credentials returns who connected, or nil.
func credentials(conn *net.UnixConn) (cred *unix.Ucred) {
	if raw, err := conn.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { cred, _ = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	}
	return cred
}

// tooMany is the answer to who is turned away, whatever was asked.
var tooMany = func() []byte {
	p := problem(http.StatusTooManyRequests, "too_many_connections",
		fmt.Sprintf("too many connections: at most %d per container or user, and on loopback in total", maxConnections))
	p.Advice, p.RetryAfter = "try again later", time.Second
	var body answer
	refuse(&body, p)
	var text bytes.Buffer
	resp := http.Response{StatusCode: p.Status, ProtoMajor: 1, ProtoMinor: 1, Header: body.Header(), Body: io.NopCloser(&body.Buffer), ContentLength: int64(body.Len()), Close: true}
	if err := resp.Write(&text); err != nil {
		panic(err)
	}
	return text.Bytes()
}()

// answer is a http.ResponseWriter in memory.
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

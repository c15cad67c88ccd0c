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

// maxConnections is how many connections one caller may have open: a container, whoever its processes are, or outside
// of containers a user. All of a large node's containers together stay below LimitNOFILE= of sevagent.service, so that
// no one keeps others from the agent, nor the agent from its device and its files.
const maxConnections = 64

// limiter is a listener that turns away who has maxConnections already. Root outside of containers is not counted, nor
// is the agent's own user.
type limiter struct {
	*net.UnixListener
	callers *Callers
	log     *slog.Logger

	mu   sync.Mutex
	open map[string]int // by caller
}

// counted is a connection that counts until it is closed.
type counted struct {
	*net.UnixConn
	release func()
}

func (c *counted) Close() error {
	c.release()
	return c.UnixConn.Close()
}

func (l *limiter) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		who := l.who(conn)
		if who == "" {
			return conn, nil
		}
		l.mu.Lock()
		n := l.open[who]
		if n < maxConnections {
			l.open[who]++
		}
		l.mu.Unlock()
		if n < maxConnections {
			return &counted{conn, sync.OnceFunc(func() { l.leave(who) })}, nil
		}
		l.log.Debug("too many connections", "caller", who)
		conn.Write(tooMany) // fits into the socket's buffer: nothing was written before
		conn.Close()
	}
}

func (l *limiter) leave(who string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[who]--; l.open[who] == 0 {
		delete(l.open, who)
	}
}

// who names the caller for the limit; empty: there is none. A process that cannot be told, having ended say, is not
// taken for one outside of containers.
func (l *limiter) who(conn *net.UnixConn) string {
	cred := credentials(conn)
	if cred == nil {
		return "unknown"
	}
	container, ok := l.callers.container(cred.Pid)
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
	p := problem(http.StatusTooManyRequests, "too_many_connections", fmt.Sprintf("a container, or a user, may have %d connections", maxConnections))
	p.Advice, p.retryAfter = "try again later", time.Second
	var body answer
	p.write(&body)
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

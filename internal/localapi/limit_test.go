package localapi

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sevagent/internal/must"
)

// A container may have maxConnections, whichever process asks, and so may all callers together that are unknown; root
// on the host may have any number.
func TestConnectionsOfOneCaller(t *testing.T) {
	callers, proc := newCallers(t, "")
	callers.own = []byte("0::/docker/" + idB + "\n")
	path := filepath.Join(t.TempDir(), "s")
	socket := must.Get(net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"}))(t, "listen on the socket")
	l := newLimiter(socket, callers.limitKey, slog.New(slog.DiscardHandler))
	defer l.Close()
	accepted := make(chan net.Conn)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		t.Helper()
		c := must.Get(net.Dial("unix", path))(t, "connect")
		t.Cleanup(func() { c.Close() })
		return c
	}
	refused := func(caller string) {
		t.Helper()
		conn := dial()
		conn.SetReadDeadline(time.Now().Add(2 * time.Minute)) // who is not refused has no response
		resp := must.Get(http.ReadResponse(bufio.NewReader(conn), nil))(t, "read the response to %s", caller)
		body := must.Get(io.ReadAll(resp.Body))(t, "read the body for %s", caller)
		if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") != "1" ||
			!strings.Contains(string(body), `"too_many_connections"`) {
			t.Errorf("%s: %s, %q, want too_many_connections", caller, resp.Status, body)
		}
	}
	var held []net.Conn
	for _, x := range []struct {
		name, cgroup, state string
		limited             bool
	}{
		{"container", "0::/docker/" + idA + "\n", "S", true},
		{"process that has ended", "0::/system.slice/x.service\n", "Z", true},
		{"service", "0::/system.slice/x.service\n", "S", false},
		{"the agent's own container", "0::/docker/" + idB + "\n", "S", false},
	} {
		proc.set(os.Getpid(), x.cgroup, stat("app", x.state, 5))
		for range maxConnections {
			dial()
			held = append(held, <-accepted)
		}
		if !x.limited {
			dial()
			held = append(held, <-accepted)
			continue
		}
		refused(x.name)
		held[len(held)-1].Close()
		held[len(held)-1].Close() // counts once
		dial()
		held[len(held)-1] = <-accepted
		refused(x.name)
	}
	proc.set(os.Getpid(), "0::/x\n", stat("app", "S", 5))
	refused("unknown as the one that has ended")
	for _, c := range held {
		c.Close()
	}
	if len(l.open) != 0 || l.total != 0 {
		t.Errorf("closed connections are counted: %v, %d in total", l.open, l.total)
	}
}

// All callers together may have maxCallers.
func TestConnectionsOfAllCallers(t *testing.T) {
	l := newLimiter(nil, nil, nil)
	n := 0
	for caller := range 2 * maxCallers / maxConnections {
		for range maxConnections {
			if l.enter(fmt.Sprint(caller)) {
				n++
			}
		}
	}
	if n != maxCallers {
		t.Errorf("%d connections, want %d", n, maxCallers)
	}
	l.leave("0")
	if !l.enter("another") {
		t.Error("a freed place is not given to another")
	}
}

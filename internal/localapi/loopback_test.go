package localapi

import (
	"bufio"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"sevagent/internal/must"
)

// between is a connection between two addresses, and no more.
type between struct {
	net.Conn
	ends
}

func (b between) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(b.client) }
func (b between) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(b.server) }

func from(port uint16) ends {
	loopback := netip.MustParseAddr("127.0.0.1")
	return ends{netip.AddrPortFrom(loopback, port), netip.AddrPortFrom(loopback, 9180)}
}

// Of the connections of the user who has the most, the older half go.
func TestCrowd(t *testing.T) {
	users := func(of ...uint32) map[ends]uint32 {
		m := make(map[ends]uint32)
		for port, user := range of {
			if user != nobody {
				m[from(uint16(port))] = user
			}
		}
		return m
	}
	for _, c := range []struct {
		name  string
		users map[ends]uint32
		open  int
		want  []uint16 // ports of the clients
	}{
		{"one user", users(7, 7, 7, 7), 4, []uint16{0, 1}},
		{"one user, odd", users(7, 7, 7), 3, []uint16{0, 1}},
		{"most are a user's", users(0, 7, 7, 0, 7), 5, []uint16{1, 2}},
		{"most are root's", users(0, 7, 0, 0, 7), 5, []uint16{0, 2}},
		{"as many each, the oldest", users(7, 0, 8), 3, []uint16{0}},
		{"most are closed", users(7, nobody, nobody, 7, nobody), 5, []uint16{1, 2}},
		{"few are closed", users(7, nobody, 7, 7), 4, []uint16{0, 2}},
		{"users are unknown", nil, 4, []uint16{0, 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var open []*counted
			for port := range c.open {
				open = append(open, &counted{Conn: between{ends: from(uint16(port))}})
			}
			var got []uint16
			for _, old := range crowd(open, c.users) {
				got = append(got, endsOf(old).client.Port())
			}
			if len(got) != len(c.want) {
				t.Fatalf("clients %v have to go, want %v", got, c.want)
			}
			for i := range got {
				if got[i] != c.want[i] {
					t.Fatalf("clients %v have to go, want %v", got, c.want)
				}
			}
		})
	}
}

// A user who takes all places on loopback, idle or in the middle of a request, keeps nobody out: neither a newcomer of
// its own, nor one of another, whose connection stays.
func TestConnectionsOnLoopback(t *testing.T) {
	n := newNode(t, nil)
	kept := must.Get(net.Dial("tcp", n.tcp))(t, "connect over loopback")
	defer kept.Close()
	get := func(conn net.Conn, who string) {
		t.Helper()
		must.Get(io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"))(t,
			"send the request of %s", who)
		resp := must.Get(http.ReadResponse(bufio.NewReader(conn), nil))(t, "read the response to %s", who)
		if io.Copy(io.Discard, resp.Body); resp.StatusCode != http.StatusOK {
			t.Errorf("the response to %s is %s, want 200", who, resp.Status)
		}
	}
	get(kept, "root")

	dial := func() (net.Conn, error) { return net.Dial("tcp", n.tcp) }
	if os.Getuid() == 0 {
		dial = func() (net.Conn, error) { return dialAs(65534, n.tcp) }
	}
	for i := range 3 * maxLoopback {
		c := must.Get(dial())(t, "connect over loopback, number %d", i)
		defer c.Close()
		io.WriteString(c, []string{"", "GET /healthz HTTP/1.1\r\n"}[i%2])
		if i%16 == 0 {
			get(must.Get(dial())(t, "connect over loopback, at number %d", i), "a newcomer")
		}
	}
	newcomer := must.Get(net.Dial("tcp", n.tcp))(t, "connect over loopback")
	defer newcomer.Close()
	get(newcomer, "a newcomer at the end")
	if os.Getuid() == 0 {
		get(kept, "root, on the connection that it has had all the time")
	}
	if got := n.do("unix", "GET", "/healthz", ""); got.status != http.StatusOK {
		t.Errorf("on the socket at that time: %d, want 200", got.status)
	}
}

// dialAs connects with a socket that another user has made.
func dialAs(uid int, address string) (conn net.Conn, err error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread, which is another user's, ends with the goroutine
		if err = unix.Setfsuid(uid); err != nil {
			return
		}
		var fd int
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		f := os.NewFile(uintptr(fd), "conn")
		defer f.Close()
		if err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err == nil {
			conn, err = net.FileConn(f)
		}
	}()
	<-done
	return conn, err
}

// No more connections are open than there are places; each counts until it is closed, and once.
func TestPlacesOnLoopback(t *testing.T) {
	listener := must.Get(net.Listen("tcp", "127.0.0.1:0"))(t, "listen")
	l := newLoopback(listener, "/proc", slog.New(slog.DiscardHandler))
	defer l.Close()
	for range 3 {
		c := must.Get(net.Dial("tcp", l.Addr().String()))(t, "connect")
		defer c.Close()
		accepted := must.Get(l.Accept())(t, "accept")
		if len(l.open) != 1 {
			t.Errorf("%d connections are counted, want 1", len(l.open))
		}
		accepted.Close()
		accepted.Close()
		if len(l.open) != 0 {
			t.Errorf("%d closed connections are counted", len(l.open))
		}
	}
	for i := range 3 * maxLoopback {
		c := must.Get(net.Dial("tcp", l.Addr().String()))(t, "connect, number %d", i)
		defer c.Close()
		must.Get(l.Accept())(t, "accept number %d", i)
		if len(l.open) > maxLoopback {
			t.Fatalf("%d connections are open, want at most %d", len(l.open), maxLoopback)
		}
	}
}

package localapi

import (
	"log/slog"
	"math"
	"net"
	"net/netip"
	"sync"

	"sevagent/internal/sockets"
)

// maxLoopback is how many connections may be open on loopback.
const maxLoopback = 64

// loopback is a listener with places for maxLoopback connections, which never turns a newcomer away. When all places
// are taken, it closes the older half of the connections of the user who has the most, at work or not: one who holds
// many cannot keep out one who holds few, and among a user's own the newest are served.
//
// Whose a connection is, the kernel's table of sockets says, which is long, and is read for this alone: once for every
// few dozen connections of a flood. That table has the user who made the client's socket, not its holder now. It does
// not say which container that is in: root is one user in all that share the node's network.
type loopback struct {
	net.Listener
	proc string
	log  *slog.Logger

	mu   sync.Mutex
	open []*counted // oldest first
}

func newLoopback(l net.Listener, proc string, log *slog.Logger) *loopback {
	return &loopback{Listener: l, proc: proc, log: log}
}

func (l *loopback) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &counted{Conn: conn}
	c.release = func() { l.remove(c) }
	for _, old := range l.admit(c) {
		old.Close()
	}
	return c, nil
}

// admit adds a connection and returns those that have to go for it.
func (l *loopback) admit(c *counted) (crowded []*counted) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.open) >= maxLoopback {
		crowded = crowd(l.open, l.users())
		l.log.Debug("too many connections on loopback", "closed", len(crowded))
	}
	l.open = append(l.open, c)
	return crowded
}

func (l *loopback) remove(c *counted) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, other := range l.open {
		if other == c {
			l.open = append(l.open[:i], l.open[i+1:]...)
			return
		}
	}
}

// nobody stands for the users of clients whose socket is not in the table: its owner has closed it.
const nobody = math.MaxUint32

// ends are the addresses of a connection, as the client's socket has them.
type ends struct{ client, server netip.AddrPort }

func endsOf(c net.Conn) ends { return ends{addrPort(c.RemoteAddr()), addrPort(c.LocalAddr())} }

func addrPort(a net.Addr) netip.AddrPort {
	to, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
}

// users returns the users of the clients' sockets, or nil if the table cannot be read.
func (l *loopback) users() map[ends]uint32 {
	port := addrPort(l.Addr()).Port()
	users := make(map[ends]uint32)
	err := sockets.Each(l.proc, func(s sockets.Socket) (more bool, err error) {
		if s.Remote.Port() == port && s.Inode != 0 {
			users[ends{s.Local, s.Remote}] = s.UID
		}
		return true, nil
	})
	if err != nil {
		l.log.Debug("cannot tell whose the connections on loopback are", "err", err)
		return nil
	}
	return users
}

// crowd returns the older half of the connections of the user who has the most of open, which is ordered by age. Where
// users are unknown, all are of the same one.
func crowd(open []*counted, users map[ends]uint32) []*counted {
	groups := make(map[uint32][]*counted)
	most := uint32(nobody)
	for _, c := range open {
		user, ok := users[endsOf(c)]
		if !ok {
			user = nobody
		}
		groups[user] = append(groups[user], c)
		if len(groups[user]) > len(groups[most]) {
			most = user
		}
	}
	theirs := groups[most]
	return theirs[:(len(theirs)+1)/2]
}

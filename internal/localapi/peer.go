package localapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"sevagent/internal/cgroup"
	"sevagent/internal/evidence"
)

// ownUID lets an agent that does not run as root, in a test or a demonstration, be refreshed by its own user.
var ownUID = uint32(os.Getuid())

type peerKey struct{}

// peer is the process that opened a connection on the Unix socket.
type peer struct {
	conn  *net.UnixConn
	pid   int32 // in the agent's PID namespace; 0 if the process is not visible there
	uid   uint32
	start uint64 // of pid when the connection was accepted; 0: unknown
}

// newPeer returns the process at the other end of a connection that was just accepted, or nil.
func newPeer(conn net.Conn, callers *Callers) *peer {
	if c, ok := conn.(*counted); ok {
		conn = c.Conn
	}
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return nil
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil
	}
	var cred *unix.Ucred
	raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil || cred == nil {
		return nil
	}
	p := &peer{conn: socket, pid: cred.Pid, uid: cred.Uid}
	p.start, _ = callers.startTime(p.pid)
	return p
}

// withPeer records the process at the other end of a connection on the Unix socket.
func (s *Server) withPeer(ctx context.Context, c net.Conn) context.Context {
	if p := newPeer(c, s.cfg.Callers); p != nil {
		return context.WithValue(ctx, peerKey{}, p)
	}
	return ctx
}

// caller returns the caller that sent a request. It is found anew for each: the process that opened the connection may
// have ended and left it to another, and the ECS agent may know more by now.
func (s *Server) caller(ctx context.Context) evidence.Caller {
	if p, ok := ctx.Value(peerKey{}).(*peer); ok {
		return s.cfg.Callers.identify(ctx, p)
	}
	return evidence.Caller{Kind: evidence.CallerUnknown}
}

// mayRefresh reports whether a request comes from root of the node. If not, it returns the reason.
func (s *Server) mayRefresh(ctx context.Context) (reason string, ok bool) {
	p, ok := ctx.Value(peerKey{}).(*peer)
	if !ok {
		return "refresh is for root of the node, and the caller is unknown", false
	}
	if p.uid != 0 && p.uid != ownUID {
		return fmt.Sprintf("refresh is for root, not for uid %d", p.uid), false
	}
	switch s.cfg.Callers.place(p).Kind {
	case cgroup.Host:
		return "", true
	case cgroup.Container:
		return "refresh is for root of the node, not of a container", false
	}
	return "refresh is for root of the node, " +
		"and the caller is neither in a systemd service nor in a login session", false
}

// lives reports whether the process that connected still exists. If it does, its pid has been its own ever since, and
// what was read under that pid in the meantime is about it and not about a successor.
//
// Since Linux 6.5 the socket itself holds on to the process and returns a pidfd for it, which settles the question.
// Before that (Amazon Linux 2023 starts with 6.1) the start time must be what it was when the connection was accepted.
// That leaves a caller that has its pid reused between its connect and our accept: all of the kernel's pids, within
// the milliseconds that a connection waits, or for as long as it waits for an agent that does not run.
func (p *peer) lives(callers *Callers) bool {
	raw, err := p.conn.SyscallConn()
	if err != nil {
		return false
	}
	pidfd, sockErr := -1, error(nil)
	err = raw.Control(func(fd uintptr) {
		pidfd, sockErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	})
	if err != nil {
		return false
	}
	if errors.Is(sockErr, unix.ENOPROTOOPT) {
		return p.startedAsBefore(callers)
	}
	if sockErr != nil {
		return false // ESRCH or EINVAL: reaped
	}
	defer unix.Close(pidfd)
	return !exited(pidfd)
}

// startedAsBefore reports whether the process was started when the one that connected was: lives without a pidfd.
func (p *peer) startedAsBefore(callers *Callers) bool {
	start, ok := callers.startTime(p.pid)
	return ok && p.start != 0 && start == p.start
}

// exited reports whether the process of a pidfd has ended, reaped or not: the pidfd then polls as readable.
func exited(pidfd int) bool {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
		if !errors.Is(err, unix.EINTR) {
			return err != nil || n != 0
		}
	}
}

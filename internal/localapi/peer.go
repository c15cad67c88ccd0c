package localapi

import (
	"context"
	"errors"
	"math"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

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

	mu     sync.Mutex
	caller evidence.Caller
	known  bool // caller is final
}

// withPeer records the process at the other end of a connection on the Unix socket.
func (s *Server) withPeer(ctx context.Context, c net.Conn) context.Context {
	if l, ok := c.(*counted); ok {
		c = l.Conn
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	cred := credentials(conn)
	if cred == nil {
		return ctx
	}
	p := &peer{conn: conn, pid: cred.Pid, uid: cred.Uid}
	if s.cfg.Callers != nil {
		p.start, _ = s.cfg.Callers.startTime(p.pid)
	}
	return context.WithValue(ctx, peerKey{}, p)
}

// callerUID returns the user whose process sent a request. An unknown one gets nobody's rights.
func callerUID(ctx context.Context) uint32 {
	if p, ok := ctx.Value(peerKey{}).(*peer); ok {
		return p.uid
	}
	return math.MaxUint32
}

// inContainer reports whether a request may come from a container. It may if that is unknown.
func (s *Server) inContainer(ctx context.Context) bool {
	p, ok := ctx.Value(peerKey{}).(*peer)
	if !ok {
		return true
	}
	if s.cfg.Callers == nil {
		return false
	}
	container, ok := s.cfg.Callers.container(p.pid)
	return !ok || container != "" || !p.lives(s.cfg.Callers)
}

// hostOrUnknown returns the caller where no container is looked up.
func hostOrUnknown(ctx context.Context) evidence.Caller {
	if p, ok := ctx.Value(peerKey{}).(*peer); ok {
		return evidence.HostCaller(p.uid)
	}
	return evidence.Caller{Kind: evidence.CallerUnknown}
}

// caller returns the caller that sent a request, with container and task where they are known. They are looked up once
// for a connection; only a task that the ECS agent did not know is looked up again, with the connection's next request.
func (s *Server) caller(ctx context.Context) evidence.Caller {
	p, ok := ctx.Value(peerKey{}).(*peer)
	if !ok || s.cfg.Callers == nil {
		return hostOrUnknown(ctx)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.known {
		p.caller = s.cfg.Callers.Identify(ctx, p.pid, p.uid)
		if p.caller.ContainerID != "" && !p.lives(s.cfg.Callers) {
			p.caller = evidence.HostCaller(p.uid)
		}
		p.known = p.caller.ContainerID == "" || p.caller.TaskARN != ""
	}
	return p.caller
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

package localapi

import (
	"context"
	"math"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"sevagent/internal/evidence"
)

// ownUID lets an agent that does not run as root, in a test or a demonstration, be refreshed by its own user.
var ownUID = uint32(os.Getuid())

type peerKey struct{}

// withPeer notes who is at the other end of a connection on the Unix socket.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	if raw.Control(func(fd uintptr) { cred, _ = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }) != nil || cred == nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, evidence.Caller{UID: cred.Uid})
}

// caller returns who sent a request. One that is not known gets no one's rights.
func caller(ctx context.Context) evidence.Caller {
	if c, ok := ctx.Value(peerKey{}).(evidence.Caller); ok {
		return c
	}
	return evidence.Caller{UID: math.MaxUint32}
}

package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"

	"sevagent/internal/config"
)

// listen takes over the Unix socket that systemd passes, or makes one, and opens the loopback listener. tcp is nil if
// it is disabled.
func listen(cfg config.Listen) (socket, tcp net.Listener, err error) {
	handed, err := activation.Listeners()
	if err != nil {
		return nil, nil, fmt.Errorf("take over the sockets of systemd: %w", err)
	}
	for _, l := range handed {
		unix, ok := l.(*net.UnixListener)
		if !ok || socket != nil {
			return nil, nil, fmt.Errorf("take over the sockets of systemd: want one Unix socket, got also %v", l.Addr())
		}
		unix.SetUnlinkOnClose(false) // it belongs to systemd, and clients of the next agent wait on it
		socket = unix
	}
	if socket == nil {
		if socket, err = listenUnix(cfg.Socket); err != nil {
			return nil, nil, err
		}
	}
	if cfg.TCP != "" {
		if tcp, err = net.Listen("tcp", cfg.TCP); err != nil {
			socket.Close()
			return nil, nil, fmt.Errorf("listen on listen.tcp: %w; is another agent running?", err)
		}
	}
	return socket, tcp, nil
}

// listenUnix makes the socket, open to every local user: mounting it into a container is the grant. It replaces a
// socket that a dead agent left behind, but neither one that accepts connections nor anything else.
func listenUnix(path string) (net.Listener, error) {
	// One directory, and not those above: they would hide a misspelt path.
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make the directory of listen.socket: %w; check the path", err)
	}
	l, err := net.Listen("unix", path)
	if errors.Is(err, syscall.EADDRINUSE) {
		if fi, statErr := os.Lstat(path); statErr != nil || fi.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("listen on listen.socket: %s exists and is not a socket; move it away", path)
		}
		if c, dialErr := net.Dial("unix", path); dialErr == nil {
			c.Close()
			return nil, fmt.Errorf("listen on listen.socket: %s is in use; is another agent running?", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove the stale %s: %w", path, err)
		}
		l, err = net.Listen("unix", path)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on listen.socket: %w", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, fmt.Errorf("open listen.socket to local users: %w", err)
	}
	return l, nil
}

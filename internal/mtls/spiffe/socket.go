package spiffe

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"sevagent/internal/cgroup"
	"sevagent/internal/mtls/source"
)

// identity tells one socket from the next one of the same path, which may get the same inode. Its zero value stands for
// no socket.
type identity struct {
	dev, ino uint64
	made     syscall.Timespec
}

func identityOf(path string) identity {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return identity{}
	}
	return identity{uint64(st.Dev), st.Ino, st.Ctim}
}

// connect connects to the socket, unless somebody else may have put it there.
func (s *Source) connect(ctx context.Context) (net.Conn, error) {
	path := s.cfg.Socket
	if err := s.cfg.checkPath(path); errors.Is(err, fs.ErrNotExist) {
		return nil, s.error(source.Transient, source.Advise(err, "start the SPIRE agent, which makes its socket "+
			"once it is attested, and have sevagent.service see it by BindReadOnlyPaths="+
			filepath.Dir(path)+" in a drop-in"))
	} else if err != nil {
		return nil, s.error(source.Persistent, err)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if errors.Is(err, fs.ErrPermission) {
		return nil, s.error(source.Persistent, source.Advise(err, "let this process write to the socket"))
	} else if err != nil {
		return nil, s.error(source.Transient, source.Advise(err, "see whether the SPIRE agent runs"))
	}
	if err := s.cfg.checkPeer(conn.(*net.UnixConn)); err != nil {
		conn.Close()
		return nil, s.error(source.Persistent, err)
	}
	return conn, nil
}

// believes reports whether a user's word is taken for the SPIRE agent's.
func (c *Config) believes(uid uint32) bool {
	return uid == 0 || uid == c.Owner || uid == uint32(os.Geteuid())
}

// checkPath returns why somebody who is not believed can have made the socket, or can replace it.
func (c *Config) checkPath(path string) error {
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	steps := ancestors(path)
	for _, step := range ancestors(resolved) {
		if !slices.Contains(steps, step) {
			steps = append(steps, step)
		}
	}
	for _, step := range steps {
		fi, err := os.Lstat(step)
		if err != nil {
			return err
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok || !c.believes(st.Uid) {
			err := fmt.Errorf("%s belongs to the user %d, who could put another socket there", step, st.Uid)
			return source.Advise(err, "give it to root")
		}
		const othersWrite = 0o022
		if fi.IsDir() && fi.Mode().Perm()&othersWrite != 0 && fi.Mode()&fs.ModeSticky == 0 {
			err := fmt.Errorf("%s may be written to by others than its owner, who could put another socket there", step)
			return source.Advise(err, "take that from them: chmod go-w "+step)
		}
	}
	if fi, err := os.Lstat(resolved); err != nil {
		return err
	} else if fi.Mode().Type() != fs.ModeSocket {
		return source.Advise(fmt.Errorf("%s is not a socket", path), "correct its path")
	}
	return nil
}

// ancestors returns path, and the directories that lead to it.
func ancestors(path string) []string {
	steps := []string{path}
	for path != filepath.Dir(path) {
		path = filepath.Dir(path)
		steps = append(steps, path)
	}
	return steps
}

// checkPeer returns why the process that listens cannot be the SPIRE agent. Ownership alone does not show it: root in a
// container that has the socket's directory mounted is root here, too. A process that got the number of one that has
// ended is taken for it.
func (c *Config) checkPeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *syscall.Ucred
	if controlErr := raw.Control(func(fd uintptr) {
		peer, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); controlErr != nil {
		return controlErr
	}
	switch {
	case err != nil:
		return fmt.Errorf("find out who listens: %w", err)
	case !c.believes(peer.Uid):
		err := fmt.Errorf("process %d of the user %d listens there", peer.Pid, peer.Uid)
		return source.Advise(err, "run the SPIRE agent as root")
	case !c.Contained && !onHost(peer.Pid):
		err := fmt.Errorf("process %d listens there, which is in a container, or not in a unit of the host's", peer.Pid)
		advice := "run the SPIRE agent as a unit, and mount " + filepath.Dir(c.Socket) + " into containers read-only"
		return source.Advise(err, advice)
	}
	return nil
}

// onHost reports whether a process is in a unit or session of the host's, or in our own cgroup, and in no PID namespace
// below ours.
func onHost(pid int32) bool {
	if pid <= 0 { // in a PID namespace that is not ours or below
		return false
	}
	dir := filepath.Join("/proc", strconv.Itoa(int(pid)))
	groups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	if err != nil {
		return false
	}
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return false
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	return err == nil && cgroup.Of(groups, own).Kind == cgroup.Host && !nested(string(status))
}

// nested reports whether a process is, or may be, in a PID namespace below ours: proc_pid_status(5) has an NSpid for
// each level.
func nested(status string) bool {
	for line := range strings.Lines(status) {
		if pids, ok := strings.CutPrefix(line, "NSpid:"); ok {
			return len(strings.Fields(pids)) != 1
		}
	}
	return true
}

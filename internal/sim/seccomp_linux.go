package sim

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A seccomp filter diverts the three ioctls of /dev/sev-guest from an unmodified program to a PSP in another process.
// The program opens any file in place of the device, and its other system calls are not affected but for one. This
// needs no privileges: the filter requires no_new_privs, and the program's memory is accessible to an ancestor of the
// same user, since a call of PR_SET_DUMPABLE succeeds without an effect.

// seccomp user notification: include/uapi/linux/seccomp.h.
const (
	filterNewListener  = 1 << 3
	filterWaitKillable = 1 << 5
	setModeFilter      = 1
	retUserNotif       = 0x7fc00000
	retErrno           = 0x00050000 // with errno 0, success
	retAllow           = 0x7fff0000

	notifSize      = 80 // struct seccomp_notif: id u64, pid u32, flags u32, struct seccomp_data
	notifRespSize  = 24 // struct seccomp_notif_resp: id u64, val i64, error i32, flags u32
	ioctlRecv      = 0xc0502100
	ioctlSend      = 0xc0182101
	ioctlIDIsValid = 0x40082102
)

// ExecUnderFilter connects to a PSP's socket, hands it the notifications of a filter on the calling thread, and
// becomes the program argv: same process, same descriptors. It returns only if that fails.
func ExecUnderFilter(socket string, argv, env []string) error {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return fmt.Errorf("connect to the simulated device: %w", err)
	}
	defer conn.Close()
	file, err := conn.(*net.UnixConn).File()
	if err != nil {
		return err
	}
	defer file.Close()
	runtime.LockOSThread() // the filter is on this thread, which the program inherits
	listener, err := installFilter()
	if err != nil {
		return fmt.Errorf("install a seccomp filter: %w", err)
	}
	defer unix.Close(listener)
	unix.CloseOnExec(listener)
	if err := unix.Sendmsg(int(file.Fd()), []byte{0}, unix.UnixRights(listener), nil, 0); err != nil {
		return fmt.Errorf("hand over the seccomp listener: %w", err)
	}
	return fmt.Errorf("run %s: %w", path, syscall.Exec(path, argv, env))
}

func installFilter() (listener int, err error) {
	arch := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]
	if arch == 0 {
		return -1, fmt.Errorf("no filter for %s", runtime.GOARCH)
	}
	// struct seccomp_data: nr u32 at 0, arch u32 at 4, args from 16; the command of an ioctl is the low half of args[1].
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 4},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: arch, Jf: 6},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_IOCTL, Jf: 5},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 24},
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: cmdGetReport, Jf: 2},
		{Code: unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K, K: cmdGetExtReport, Jt: 1},
		{Code: unix.BPF_RET, K: retUserNotif},
		{Code: unix.BPF_RET, K: retAllow},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_PRCTL, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 16},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.PR_SET_DUMPABLE, Jf: 1},
		{Code: unix.BPF_RET, K: retErrno},
		{Code: unix.BPF_RET, K: retAllow},
	}
	fprog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return -1, err
	}
	// Killable waits came with Linux 5.19; without them a signal may repeat a request, which is harmless here.
	for _, flags := range []uintptr{filterNewListener | filterWaitKillable, filterNewListener} {
		fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, setModeFilter, flags, uintptr(unsafe.Pointer(&fprog)))
		if errno == 0 {
			return int(fd), nil
		}
		err = errno
	}
	return -1, err
}

// ServeIoctl accepts programs from ExecUnderFilter and serves their ioctls until ctx ends. It closes l. When it
// returns, nothing of it is left running, whatever the programs do.
func (p *PSP) ServeIoctl(ctx context.Context, l *net.UnixListener) error {
	ctx, cancel := context.WithCancel(ctx)
	var programs sync.WaitGroup
	defer programs.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer func() {
		if stop() {
			l.Close()
		}
	}()
	for {
		conn, err := l.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("serve the simulated device: %w", err)
		}
		programs.Go(func() {
			if fd, err := receiveFD(conn); err == nil { // else the program died before it sent anything
				p.serveProgram(ctx, fd)
			}
		})
	}
}

// receiveFD receives the descriptor that ExecUnderFilter sends first.
func receiveFD(conn *net.UnixConn) (int, error) {
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return -1, err
	}
	b, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4)) // room for one descriptor; the kernel drops more
	_, n, _, _, err := conn.ReadMsgUnix(b, oob)
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return -1, errors.Join(err, io.ErrUnexpectedEOF)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1, errors.Join(err, io.ErrUnexpectedEOF)
	}
	return fds[0], nil
}

// serveProgram answers the notifications of one program until the program or ctx ends.
func (p *PSP) serveProgram(ctx context.Context, listener int) {
	defer unix.Close(listener)
	// The end of ctx closes this pipe, which wakes up the poll.
	ended, end, err := os.Pipe()
	if err != nil {
		return
	}
	defer ended.Close()
	ctx, cancel := context.WithCancel(ctx)
	closed := make(chan struct{})
	context.AfterFunc(ctx, func() { end.Close(); close(closed) })
	var answers sync.WaitGroup
	defer func() {
		cancel() // the answers are no longer needed
		answers.Wait()
		<-closed
	}()
	for {
		polled := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}, {Fd: int32(ended.Fd())}}
		if _, err := unix.Poll(polled, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if polled[1].Revents != 0 {
			return
		}
		if polled[0].Revents&unix.POLLIN == 0 {
			if polled[0].Revents != 0 { // POLLHUP: the last process under the filter has ended
				return
			}
			continue
		}
		var notification [notifSize]byte
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), ioctlRecv, uintptr(unsafe.Pointer(&notification)))
		if errno == unix.EINTR || errno == unix.ENOENT { // the caller died in between
			continue
		}
		if errno != 0 {
			return
		}
		answers.Go(func() { p.answer(ctx, listener, notification) })
	}
}

// aliveStep is how often a long request checks whether its caller still waits.
const aliveStep = 20 * time.Millisecond

func (p *PSP) answer(ctx context.Context, listener int, notification [notifSize]byte) {
	le := binary.LittleEndian
	id, pid := le.Uint64(notification[0:]), int(le.Uint32(notification[8:]))
	cmd, arg := uint32(le.Uint64(notification[40:])), le.Uint64(notification[48:])
	mem := processMemory{pid: pid, valid: func() bool {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), ioctlIDIsValid, uintptr(unsafe.Pointer(&id)))
		return errno == 0
	}}
	ctx, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		for pause(ctx, aliveStep) == nil {
			if !mem.valid() {
				cancel() // free the device for others
			}
		}
	})
	var response [notifRespSize]byte
	le.PutUint64(response[0:], id)
	if errno := p.Ioctl(ctx, cmd, arg, mem); errno != 0 {
		le.PutUint32(response[16:], uint32(-int32(errno)))
	}
	cancel()
	watch.Wait()
	// It fails if the program has died in the meantime, which needs no report.
	unix.Syscall(unix.SYS_IOCTL, uintptr(listener), ioctlSend, uintptr(unsafe.Pointer(&response)))
}

// processMemory is the memory of another process. valid reports whether it is still the process that asked: its pid may
// have been reused.
type processMemory struct {
	pid   int
	valid func() bool
}

func (m processMemory) Read(address uint64, into []byte) error {
	local := []unix.Iovec{{Base: &into[0], Len: uint64(len(into))}}
	n, err := unix.ProcessVMReadv(m.pid, local, []unix.RemoteIovec{{Base: uintptr(address), Len: len(into)}}, 0)
	return m.check(n, len(into), err)
}

func (m processMemory) Write(address uint64, data []byte) error {
	if !m.valid() {
		return unix.ESRCH
	}
	local := []unix.Iovec{{Base: &data[0], Len: uint64(len(data))}}
	n, err := unix.ProcessVMWritev(m.pid, local, []unix.RemoteIovec{{Base: uintptr(address), Len: len(data)}}, 0)
	return m.check(n, len(data), err)
}

// Reserve does nothing: Write finds out.
func (processMemory) Reserve(uint64, int) error { return nil }

func (m processMemory) check(n, want int, err error) error {
	if err != nil {
		return err
	}
	if n != want || !m.valid() {
		return unix.EFAULT
	}
	return nil
}

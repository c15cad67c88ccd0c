package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the test has put there before: see sandbox_test.go.
const (
	state   = "/var/lib/sevagent"
	markers = "marker"
	self    = "/usr/libexec/sevagent/attempt"
)

// attempts are what a sandbox forbids to the process in it. Each returns nil if it succeeded.
var attempts = map[string]func() error{
	"write to /usr":                        func() error { return create("/usr/attempt") },
	"write to /etc":                        func() error { return create("/etc/attempt") },
	"write to /var/lib":                    func() error { return create("/var/lib/attempt") },
	"write to the state directory":         func() error { return create(state + "/attempt") },
	"write to the published files":         func() error { return create("/etc/ecs/mtls/attempt") },
	"ask for a report by configfs":         askConfigfs,
	"make a file for all":                  umask,
	"share the mounts of PID 1":            func() error { return sameAs("mnt") },
	"connect to D-Bus":                     func() error { return dial("/run/dbus/system_bus_socket") },
	"connect to systemd":                   func() error { return dial("/run/systemd/private") },
	"connect to Docker":                    func() error { return dial("/run/docker.sock") },
	"write to /run":                        func() error { return create("/run/attempt") },
	"see where systemd is told":            func() error { return stat("/run/systemd/notify") },
	"replace where systemd is told":        func() error { return os.Chmod("/run/systemd/notify", 0o777) },
	"open /dev/kmsg":                       func() error { return open("/dev/kmsg", os.O_RDONLY) },
	"open /dev/fuse":                       func() error { return open("/dev/fuse", os.O_RDWR) },
	"open the SNP device":                  func() error { return open("/dev/sev-guest", os.O_RDWR) },
	"open the TPM's manager":               func() error { return open("/dev/tpmrm0", os.O_RDWR) },
	"open the TPM":                         func() error { return open("/dev/tpm0", os.O_RDWR) },
	"open a node for /dev/fuse":            func() error { return open(state+"/fuse", os.O_RDWR) },
	"open a node for a disk":               func() error { return open(state+"/disk", os.O_RDONLY) },
	"make a node for a disk":               func() error { return mknod(state + "/attempted-disk") },
	"change an owner":                      func() error { return os.Chown(state+"/owned", 1234, 1234) },
	"become another user":                  func() error { return thread(setuid) },
	"read another user's file":             func() error { return open(state+"/private", os.O_RDONLY) },
	"kill another user's process":          func() error { return unix.Kill(victim(), 0) },
	"trace another user's process":         func() error { return thread(trace) },
	"take a privileged port":               port,
	"make a file immutable":                immutable,
	"gain privileges by a file":            setuidFile,
	"run /bin/true":                        func() error { return execute("/bin/true") },
	"run a copy in the state directory":    func() error { return runCopy(state) },
	"run a copy in /tmp":                   func() error { return runCopy("/tmp") },
	"run a copy in /var/tmp":               func() error { return runCopy("/var/tmp") },
	"run a copy in /dev/shm":               func() error { return runCopy("/dev/shm") },
	"run a copy among the published files": func() error { return runCopy("/etc/ecs/mtls") },
	"run what may be run":                  func() error { return execute(self, "euid") },
	"run the agent":                        func() error { return execute("/usr/bin/sevagent", "version") },
	"read a home":                          func() error { return open("/root/"+markers, os.O_RDONLY) },
	"read /tmp":                            func() error { return open("/tmp/"+markers, os.O_RDONLY) },
	"see System V shared memory":           sharedMemory,
	"set a kernel parameter":               func() error { return open("/proc/sys/net/ipv4/ip_forward", os.O_WRONLY) },
	"read the kernel's modules":            func() error { return open("/usr/lib/modules/"+markers, os.O_RDONLY) },
	"load a module":                        loadModule,
	"read the kernel's log":                readLog,
	"make a cgroup":                        makeCgroup,
	"set the clock":                        setClock,
	"set the host's name":                  setHostname,
	"find a key of the user":               findKey,
	"open a netlink socket":                func() error { return openSocket(unix.AF_NETLINK, unix.SOCK_RAW) },
	"open a packet socket":                 func() error { return openSocket(unix.AF_PACKET, unix.SOCK_RAW) },
	"open an internet socket":              func() error { return openSocket(unix.AF_INET6, unix.SOCK_STREAM) },
	"make a user namespace":                func() error { return execNamespace(unix.CLONE_NEWUSER) },
	"make a UTS namespace":                 func() error { return execNamespace(unix.CLONE_NEWUTS) },
	"run in real time":                     func() error { return thread(realtime) },
	"make a file setuid":                   func() error { return raw(unix.SYS_CHMOD, path(state+"/owned"), 0o4755) },
	"change the personality":               func() error { return thread(personality) },
	"map memory to write and execute":      writeExecute,
	"call the 32-bit kernel":               func() error { return execute(self, "int80") },
	"mount":                                func() error { return unix.Mount("none", state+"/absent", "tmpfs", 0, "") },
	"load a BPF program":                   func() error { return raw(unix.SYS_BPF, 5, 0, 0) },
	"account processes":                    func() error { return raw(unix.SYS_ACCT, path(state+"/absent")) },
	"set a priority":                       func() error { return unix.Setpriority(unix.PRIO_PROCESS, 0, 0) },
	"allow core files":                     allowCores,
	"find core files allowed":              coreAllowed,
	"open 9000 files":                      manyFiles,
	"see another user's process":           func() error { return stat(fmt.Sprintf("/proc/%d", victim())) },
	"read /proc/cpuinfo":                   func() error { return open("/proc/cpuinfo", os.O_RDONLY) },
}

// attempt makes all attempts and writes how they went.
func attempt(file string) error {
	result := make(map[string]string)
	for name, try := range attempts {
		if name == "open 9000 files" {
			continue // last: nothing else works while it runs
		}
		result[name] = outcome(try())
	}
	result["open 9000 files"] = outcome(manyFiles())
	text, err := json.Marshal(result)
	if err != nil {
		return err
	}
	if file == "-" {
		_, err = fmt.Println(string(text))
		return err
	}
	return os.WriteFile(file, text, 0o644)
}

func outcome(err error) string {
	if err == nil {
		return "ok"
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

func create(file string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	return os.Remove(file)
}

func open(file string, flags int) error {
	fd, err := unix.Open(file, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func stat(file string) error {
	_, err := os.Stat(file)
	return err
}

func dial(socket string) error {
	c, err := net.Dial("unix", socket)
	if err == nil {
		c.Close()
	}
	return err
}

func raw(call uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, errno := unix.RawSyscall6(call, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
		return errno
	}
	return nil
}

// path is a pointer to a string for the kernel, which stays where it is.
func path(text string) uintptr {
	b, err := unix.BytePtrFromString(text)
	if err != nil {
		panic(err)
	}
	kept = append(kept, b)
	return uintptr(unsafe.Pointer(b))
}

var kept []*byte

// thread does something to a thread that is not used again.
func thread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

func execute(program string, args ...string) error {
	err := exec.Command(program, args...).Run()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		if e.ExitCode() == threadKilled {
			return errors.New("thread killed")
		}
		if status := e.Sys().(syscall.WaitStatus); status.Signaled() {
			return fmt.Errorf("%s", unix.SignalName(status.Signal()))
		}
	}
	return err
}

// runCopy makes a program where it can, and runs it.
func runCopy(dir string) error {
	program, err := os.ReadFile(self)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "copy")
	defer os.Remove(file)
	if err := os.WriteFile(file, program, 0o700); err != nil {
		return err
	}
	return execute(file, "euid")
}

// execNamespace asks for a namespace in a new process: this one has threads.
func execNamespace(flag uintptr) error {
	if flag == unix.CLONE_NEWUSER {
		cmd := exec.Command(self, "euid")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flag}
		return cmd.Run()
	}
	return thread(func() error { return unix.Unshare(int(flag)) })
}

func askConfigfs() error {
	dir := "/sys/kernel/config/tsm/report/attempt"
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	return os.Remove(dir)
}

func umask() error {
	file := filepath.Join(state, "shared")
	fd, err := unix.Open(file, unix.O_CREAT|unix.O_WRONLY|unix.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	defer os.Remove(file)
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&0o077 == 0 {
		return errors.New("for its owner only")
	}
	return nil
}

// sameAs compares a namespace with that of PID 1, as the environment has it.
func sameAs(kind string) error {
	own, err := os.Readlink("/proc/self/ns/" + kind)
	if err != nil {
		return err
	}
	if own != os.Getenv("ATTEMPT_NS_"+strings.ToUpper(kind)) {
		return errors.New("another")
	}
	return nil
}

func victim() int {
	pid, err := strconv.Atoi(os.Getenv("ATTEMPT_VICTIM"))
	if err != nil {
		panic(err)
	}
	return pid
}

func trace() error {
	if err := unix.PtraceAttach(victim()); err != nil {
		return err
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(victim(), &status, unix.WALL, nil); err != nil {
		return err
	}
	return unix.PtraceDetach(victim())
}

func mknod(file string) error {
	if err := unix.Mknod(file, unix.S_IFBLK|0o600, int(unix.Mkdev(7, 0))); err != nil {
		return err
	}
	return os.Remove(file)
}

func port() error {
	l, err := net.Listen("tcp", "127.0.0.1:81")
	if err == nil {
		l.Close()
	}
	return err
}

func immutable() error {
	f, err := os.Create("/etc/ecs/mtls/immutable")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	const immutableFlag = 0x10 // FS_IMMUTABLE_FL
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, immutableFlag); err != nil {
		return err
	}
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0)
}

// setuidFile runs a copy of this that is setuid to user 1234.
func setuidFile() error {
	out, err := exec.Command("/usr/libexec/sevagent/attempt-setuid", "euid").Output()
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(out)) != "1234" {
		return errors.New("nothing gained")
	}
	return nil
}

func sharedMemory() error {
	text, err := os.ReadFile("/proc/sysvipc/shm")
	if err != nil {
		return err
	}
	if strings.Count(string(text), "\n") < 2 {
		return errors.New("none")
	}
	return nil
}

func loadModule() error {
	return unix.InitModule([]byte("no module"), "")
}

func makeCgroup() error {
	dir := "/sys/fs/cgroup/attempt"
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return os.Remove(dir)
}

// setClock asks for an invalid time, which is refused also to a process that may set the clock.
func setClock() error {
	ts := unix.Timespec{Nsec: -1}
	return raw(unix.SYS_CLOCK_SETTIME, unix.CLOCK_REALTIME, uintptr(unsafe.Pointer(&ts)))
}

func setHostname() error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	return unix.Sethostname([]byte(name))
}

const keyName = "sevagent-lab"

// putKey puts a key into the user's keyring, for a minute.
func putKey() error {
	id, err := unix.AddKey("user", keyName, []byte("key"), unix.KEY_SPEC_USER_KEYRING)
	if err != nil {
		return err
	}
	_, err = unix.KeyctlInt(unix.KEYCTL_SET_TIMEOUT, id, 60, 0, 0)
	return err
}

func findKey() error {
	_, err := unix.KeyctlSearch(unix.KEY_SPEC_SESSION_KEYRING, "user", keyName, 0)
	return err
}

func openSocket(family, kind int) error {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func realtime() error {
	param := struct{ priority int32 }{1}
	return raw(unix.SYS_SCHED_SETSCHEDULER, 0, unix.SCHED_FIFO, uintptr(unsafe.Pointer(&param)))
}

func writeExecute() error {
	m, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	return unix.Munmap(m)
}

func setuid() error { return raw(unix.SYS_SETUID, 1234) }

func personality() error { return raw(unix.SYS_PERSONALITY, 0x0008) } // PER_LINUX32

func readLog() error {
	_, err := unix.Klogctl(unix.SYSLOG_ACTION_SIZE_BUFFER, nil)
	return err
}

func allowCores() error { return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1}) }

func coreAllowed() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return err
	}
	if limit.Max == 0 {
		return errors.New("none")
	}
	return nil
}

func manyFiles() error {
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for range 9000 {
		fd, err := unix.Dup(1)
		if err != nil {
			return err
		}
		fds = append(fds, fd)
	}
	return nil
}

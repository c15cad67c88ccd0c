package localapi

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/internal/evidence"
	"sevagent/internal/must"
)

// A caller is this program, run again, to ask in a way that blurs who asks.
const wayVariable, socketVariable, cgroupVariable = "SEVAGENT_TEST_WAY", "SEVAGENT_TEST_SOCKET", "SEVAGENT_TEST_CGROUP"

func TestMain(m *testing.M) {
	way, ok := ways[os.Getenv(wayVariable)]
	if !ok {
		os.Exit(m.Run())
	}
	if dir := os.Getenv(cgroupVariable); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Unsetenv(cgroupVariable)
	}
	if err := way(os.Getenv(socketVariable)); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

var ways = map[string]func(socket string) error{
	"plain":          plain,
	"dead-connector": deadConnector,
	"dead-leader":    deadLeader,
	"hand-over":      handOver,
}

func plain(socket string) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	return askAll(conn)
}

// deadConnector asks on the connection of a child that has ended.
func deadConnector(socket string) error {
	conn, _, err := takeOver(socket)
	if err != nil {
		return err
	}
	return askAll(conn)
}

// takeOver returns a connection that a child opened, and the child's process ID, which nobody has any more.
func takeOver(socket string) (conn net.Conn, pid int, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, 0, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), wayVariable+"=hand-over", socketVariable+"="+socket)
	child.ExtraFiles = []*os.File{theirs}
	if out, err := child.CombinedOutput(); err != nil {
		return nil, 0, fmt.Errorf("connect from a child: %w: %s", err, out)
	}
	oob := make([]byte, 64)
	_, size, _, _, err := unix.Recvmsg(pair[0], make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, 0, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:size])
	if err != nil || len(messages) != 1 {
		return nil, 0, fmt.Errorf("%d messages: %w", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, 0, err
	}
	f := os.NewFile(uintptr(fds[0]), "conn")
	defer f.Close()
	conn, err = net.FileConn(f)
	return conn, child.Process.Pid, err
}

// handOver connects and passes the connection on.
func handOver(socket string) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return err
	}
	raw.Control(func(fd uintptr) { err = unix.Sendmsg(3, []byte{0}, unix.UnixRights(int(fd)), nil, 0) })
	return err
}

// deadLeader asks from another thread once the process's first has ended.
func deadLeader(socket string) error {
	first := fmt.Sprintf("/proc/self/task/%d/stat", os.Getpid())
	for {
		go func() {
			runtime.LockOSThread()
			if unix.Gettid() == os.Getpid() {
				syscall.Syscall(unix.SYS_EXIT, 0, 0, 0)
			}
			select {} // keeps this thread, so that the next goroutine gets another
		}()
		time.Sleep(time.Millisecond)
		text, err := os.ReadFile(first)
		if err != nil {
			return err
		}
		if strings.Contains(string(text), ") Z ") {
			return plain(socket)
		}
	}
}

// askAll prints the caller that evidence names, and how a request to refresh is answered.
func askAll(conn net.Conn) error {
	caller, err := requestEvidence(conn)
	if err != nil {
		return err
	}
	resp, err := post(conn, "/v1/refresh", "")
	if err != nil {
		return err
	}
	_, err = fmt.Println(caller, resp.StatusCode)
	return err
}

// requestEvidence returns the caller that evidence names.
func requestEvidence(conn net.Conn) (caller string, err error) {
	resp, err := post(conn, "/v1/evidence", "{"+nonce+"}")
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s: %w", resp.Status, body, err)
	}
	var document struct{ Caller json.RawMessage }
	err = json.Unmarshal(body, &document)
	return string(document.Caller), err
}

func post(conn net.Conn, path, body string) (*http.Response, error) {
	req, err := http.NewRequest(http.MethodPost, "http://node"+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	return http.ReadResponse(bufio.NewReader(conn), req)
}

func asJSON(t *testing.T, c evidence.Caller) string {
	t.Helper()
	return string(must.Get(json.Marshal(c))(t, "encode a caller"))
}

// run asks in a way, in a cgroup where one is given, and returns what the answers say.
func run(t *testing.T, n *node, way, cgroup string, attributes *syscall.SysProcAttr) (answer string, err error) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), wayVariable+"="+way, socketVariable+"="+n.socket, cgroupVariable+"="+cgroup)
	cmd.SysProcAttr = attributes
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

const unknownCaller = `{"kind":"unknown"}`

// A process beside the agent is on the host. One that has ended, and left its connection to another, is unknown, and so
// is one whose first thread has ended: neither passes for the host's root, who may refresh.
func TestCallerThatBlursWhoAsks(t *testing.T) {
	n := newNode(t, nil)
	for way, want := range map[string]string{
		"plain":          asJSON(t, evidence.HostCaller(ownUID)) + " 200",
		"dead-connector": unknownCaller + " 403",
		"dead-leader":    unknownCaller + " 403",
	} {
		got := must.Get(run(t, n, way, "", nil))(t, "ask in the way %s", way)
		if got != want {
			t.Errorf("%s: answered %s, want %s", way, got, want)
		}
	}
}

// A process that has the ID of the one that connected, which has ended, is not the caller.
func TestProcessIDThatIsUsedAgain(t *testing.T) {
	callers, proc := newCallers(t, "")
	n := newNode(t, callers)
	conn, pid, err := takeOver(n.socket)
	must.Do(t, err, "take over a child's connection")
	defer conn.Close()
	for _, cgroup := range []string{service, "0::/docker/" + idB + "\n"} {
		proc.set(pid, cgroup, stat("victim", "S", 9))
		if got := must.Get(requestEvidence(conn))(t, "request evidence"); got != unknownCaller {
			t.Errorf("with a process in %q there, the caller is %s, want %s", cgroup, got, unknownCaller)
		}
	}
}

// A process in a PID namespace of its own, which its cgroup does not tell of, may be a container's.
func TestCallerInAPIDNamespace(t *testing.T) {
	n := newNode(t, nil)
	got, err := run(t, n, "plain", "", &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID})
	if err != nil && got == "" {
		t.Skip("cannot make a PID namespace:", err)
	}
	if want := unknownCaller + " 403"; err != nil || got != want {
		t.Errorf("answered %s, %v, want %s", got, err, want)
	}
}

// The same in cgroups that the kernel keeps: what is named like a container's, and what is not quite.
func TestCallerInACgroup(t *testing.T) {
	n := newNode(t, nil)
	id := make([]byte, 32)
	rand.Read(id)
	container := hex.EncodeToString(id)
	named := asJSON(t, evidence.ContainerCaller(ownUID, container, "")) + " 403"
	const unknown = unknownCaller + " 403"
	for _, hierarchy := range []string{"", "unified", "pids", "memory"} {
		root := filepath.Join("/sys/fs/cgroup", hierarchy)
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
			continue
		}
		for _, c := range []struct{ way, path, want string }{
			{"plain", "docker/" + container, named},
			{"plain", "docker/" + container + "/docker/" + strings.Repeat("0", 64), named},
			{"dead-connector", "docker/" + container, unknown},
			{"dead-leader", "docker/" + container, unknown},
			{"plain", "user.slice/user-0.slice/docker-" + container + ".scope", unknown},
			{"plain", "machine.slice/docker-" + container + ".scope", unknown},
			{"plain", "x.slice/ecstasks-" + taskA + ".slice/docker-" + container + ".scope", unknown},
			{"plain", "lab/docker/" + container, unknown},
		} {
			t.Run(hierarchy+" "+c.way+" "+c.path, func(t *testing.T) {
				got, err := run(t, n, c.way, makeCgroup(t, root, c.path), nil)
				if err != nil {
					t.Skipf("cannot enter a cgroup here: %s", got)
				}
				if got != c.want {
					t.Errorf("answered %s, want %s", got, c.want)
				}
			})
		}
	}
}

// makeCgroup makes a cgroup, and those around it that there are not yet, until the test ends.
func makeCgroup(t *testing.T, root, path string) (dir string) {
	t.Helper()
	dir = root
	for part := range strings.SplitSeq(path, "/") {
		dir = filepath.Join(dir, part)
		err := os.Mkdir(dir, 0o755)
		if os.IsExist(err) {
			continue
		}
		if err != nil {
			t.Skip("cannot make a cgroup:", err)
		}
		made := dir
		t.Cleanup(func() {
			for range 100 { // what was in it may take a moment to leave
				if os.Remove(made) == nil {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
			t.Error("cannot remove", made)
		})
	}
	return dir
}

func TestExited(t *testing.T) {
	child := exec.Command("cat")
	stdin := must.Get(child.StdinPipe())(t, "make the child's standard input")
	must.Do(t, child.Start(), "start the child")
	pidfd, err := unix.PidfdOpen(child.Process.Pid, 0)
	if err != nil {
		t.Skip(err)
	}
	defer unix.Close(pidfd)
	if exited(pidfd) {
		t.Error("a process that runs has exited")
	}
	stdin.Close()
	child.Wait()
	if !exited(pidfd) {
		t.Error("a process that was reaped has not exited")
	}
}

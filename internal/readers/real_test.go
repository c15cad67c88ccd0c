package readers

import (
	"bufio"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"sevagent/client"
	"sevagent/internal/must"
	"sevagent/internal/promtext"
)

// TestRealMounts runs itself in two roles: as the node, in a mount namespace of its own with a tmpfs, and as a
// container, in a namespace made from the node's. Their mounts end with them.
const (
	roleEnv   = "SEVAGENT_TEST_ROLE"
	dirEnv    = "SEVAGENT_TEST_DIR"
	targetEnv = "SEVAGENT_TEST_TARGET"
)

func TestRealMounts(t *testing.T) {
	switch os.Getenv(roleEnv) {
	case "node":
		testOnNode(t)
		return
	case "container":
		beContainer(t)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("mount namespaces take root")
	}
	base := t.TempDir()
	node := inRole("node", dirEnv+"="+base)
	out, err := node.CombinedOutput()
	if errors.Is(err, unix.EPERM) {
		t.Skip("mount namespaces are not allowed here: ", err)
	}
	if err != nil || !strings.Contains(string(out), "PASS") {
		t.Fatalf("%v\n%s", err, out)
	}
	if text, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(text), base) {
		t.Errorf("a mount is left behind, %v", err)
	}
}

// inRole runs this test in a role, in a new mount namespace. Package syscall makes its mounts private.
func inRole(role string, env ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], "-test.run=^TestRealMounts$", "-test.v")
	cmd.Env = append(append(os.Environ(), roleEnv+"="+role, "GORACE=atexit_sleep_ms=0"), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	return cmd
}

func testOnNode(t *testing.T) {
	base := os.Getenv(dirEnv)
	must.Do(t, unix.Mount("tmpfs", base, "tmpfs", 0, "size=1m"), "mount a tmpfs")
	for _, c := range []struct{ name, dir string }{
		{"the tmpfs is the published directory", base},
		{"the tmpfs is above it", filepath.Join(base, "m tls")},
	} {
		t.Run(c.name, func(t *testing.T) { testRotation(t, c.dir) })
	}
}

func testRotation(t *testing.T, dir string) {
	for _, gen := range []string{gen1, gen2} {
		must.Do(t, errors.Join(os.MkdirAll(filepath.Join(dir, gen), 0o755),
			os.WriteFile(filepath.Join(dir, gen, "client.crt"), []byte(gen), 0o644)), "write generation %s", gen)
	}
	data := filepath.Join(dir, "..data")
	must.Do(t, errors.Join(os.Symlink(gen1, data), os.Symlink("..data/client.crt", filepath.Join(dir, "client.crt"))),
		"publish the first generation")
	target := t.TempDir()
	current := gen1
	var log logLines
	w := New(Config{Path: dir, Current: func(string) string { return current }, Registerer: promtext.New(),
		Log: slog.New(slog.NewTextHandler(&log, nil))})
	expect := func(when string, want ...client.StaleMount) {
		t.Helper()
		w.update()
		s := w.Status()
		var wantReaders []client.StaleReader
		if len(want) > 0 {
			wantReaders = []client.StaleReader{{Files: want}}
		}
		if diff := cmp.Diff(wantReaders, append([]client.StaleReader(nil), s.Stale...), ignoreProcess); diff != "" ||
			s.Error != "" {
			t.Errorf("%s: error %q, stale (-want +got):\n%s", when, s.Error, diff)
		}
	}

	container := inRole("container", dirEnv+"="+dir, targetEnv+"="+target)
	stdin := must.Get(container.StdinPipe())(t, "make the container's standard input")
	stdout := must.Get(container.StdoutPipe())(t, "make the container's standard output")
	must.Do(t, container.Start(), "start the container")
	lines := bufio.NewScanner(stdout)
	for lines.Scan() && lines.Text() != "mounted" {
		t.Log(lines.Text())
	}
	// Two mounts never change; that of the whole directory follows.
	file := client.StaleMount{MountPoint: filepath.Join(target, "x.crt"), File: "client.crt", Generation: gen1}
	whole := client.StaleMount{MountPoint: filepath.Join(target, "gen"), Generation: gen1}
	expect("while all is current")

	// As mtls does: the link first, the old generation much later.
	must.Do(t, errors.Join(os.Symlink(gen2, data+"_tmp"), os.Rename(data+"_tmp", data)),
		"switch to the second generation")
	current = gen2
	expect("after a rotation", file, whole)
	if got, want := w.Status().Stale[0].PID, container.Process.Pid; got != want {
		t.Errorf("pid %d, want the container's, %d", got, want)
	}
	withoutPtrace(t, func() { expect("without CAP_SYS_PTRACE", file, whole) })
	must.Do(t, os.RemoveAll(filepath.Join(dir, gen1)), "remove the first generation")
	file.Deleted, whole.Deleted = true, true
	expect("after the old generation was deleted", file, whole)

	stdin.Close()
	for lines.Scan() {
		t.Log(lines.Text())
	}
	must.Do(t, container.Wait(), "wait for the container to end")
	expect("after the container was stopped")
	// Three times: without the capability, a namespace that is no container's has another name.
	if log.count(msgCame) != 3 || log.count(msgWent) != 3 {
		t.Errorf("it did not come and go three times:\n%s", log.b.String())
	}
}

// withoutPtrace runs f on a thread that may not inspect processes with more capabilities, as in a unit with an empty
// CapabilityBoundingSet=.
func withoutPtrace(t *testing.T, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var all [2]unix.CapUserData
	must.Do(t, unix.Capget(&header, &all[0]), "read the thread's capabilities")
	less := all
	less[0].Effective &^= 1 << unix.CAP_SYS_PTRACE
	must.Do(t, unix.Capset(&header, &less[0]), "drop CAP_SYS_PTRACE")
	if _, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(os.Getppid()), "ns/mnt")); !errors.Is(err,
		os.ErrPermission) {
		t.Errorf("the mount namespace of a process with more capabilities: %v, want a refusal", err)
	}
	f()
	must.Do(t, unix.Capset(&header, &all[0]), "restore the capabilities")
}

// beContainer mounts what docker -v would, and runs until stdin is closed.
func beContainer(t *testing.T) {
	dir, target := os.Getenv(dirEnv), os.Getenv(targetEnv)
	bind := func(source, point string) {
		source = must.Get(filepath.EvalSymlinks(source))(t, "resolve what to mount") // as dockerd does
		must.Do(t, unix.Mount(source, filepath.Join(target, point), "", unix.MS_BIND, ""), "bind it to %s", point)
	}
	err := os.WriteFile(filepath.Join(target, "x.crt"), nil, 0o644)
	for _, dir := range []string{"gen", "mtls"} {
		err = errors.Join(err, os.Mkdir(filepath.Join(target, dir), 0o755))
	}
	must.Do(t, err, "make the mount points")
	bind(filepath.Join(dir, "client.crt"), "x.crt")
	bind(filepath.Join(dir, "..data"), "gen")
	bind(dir, "mtls")
	os.Stdout.WriteString("mounted\n")
	io.Copy(io.Discard, os.Stdin)
	// What this package is about: the file is still the old one, the directory has the new one.
	for name, want := range map[string]string{"x.crt": gen1, "mtls/client.crt": gen2} {
		if got, err := os.ReadFile(filepath.Join(target, name)); err != nil || string(got) != want {
			t.Errorf("%s in the container is of %q, %v, want %q", name, got, err, want)
		}
	}
}

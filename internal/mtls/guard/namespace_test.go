package guard

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/client"
)

const inside = "GUARD_TEST_INSIDE"

// isolated runs the test again in a process of its own with namespaces of its own, so that nothing stays mounted or
// limited, and reports whether this is that process.
func isolated(t *testing.T, attr *syscall.SysProcAttr) bool {
	if os.Getenv(inside) == t.Name() {
		return true
	}
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"="+t.Name())
	cmd.SysProcAttr = attr
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) {
		t.Skip("may not make a namespace: ", err)
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

func TestMounts(t *testing.T) {
	// Go makes all mounts private in the new namespace: see exec_linux.go.
	if !isolated(t, &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}) {
		return
	}
	resolve := func(t *testing.T, path string) string { // for the end, when the links may lead elsewhere
		path, err := filepath.EvalSymlinks(path)
		check(t, err)
		return path
	}
	bind := func(t *testing.T, source, target string) {
		target = resolve(t, target)
		check(t, unix.Mount(source, target, "", unix.MS_BIND, ""))
		t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
	}
	evil := func(t *testing.T, o *owner) string {
		check(t, os.WriteFile(o.outside("evil"), nil, 0o444))
		return o.outside("evil")
	}
	evilDir := func(t *testing.T, o *owner) string {
		check(t, os.Mkdir(o.outside("evil"), 0o755))
		return o.outside("evil")
	}
	tmpfs := func(t *testing.T, target string) {
		target = resolve(t, target)
		check(t, unix.Mount("tmpfs", target, "tmpfs", 0, ""))
		t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
	}
	// overLink mounts on the link itself; by its path, it would be followed.
	overLink := func(t *testing.T, source, link string) {
		fd, err := unix.Open(link, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		check(t, err)
		defer unix.Close(fd)
		check(t, unix.Mount(source, "/proc/self/fd/"+strconv.Itoa(fd), "", unix.MS_BIND, ""))
		t.Cleanup(func() { unix.Unmount(link, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) })
	}
	for _, a := range []action{
		{name: "file over a file", path: "GEN/client.key", what: client.FoundMount, do: func(t *testing.T, o *owner) { bind(t, evil(t, o), o.at("GEN/client.key")) }},
		{name: "file over a file by its link", path: "GEN/client.key", what: client.FoundMount, do: func(t *testing.T, o *owner) { bind(t, evil(t, o), o.at("client.key")) }},
		{name: "of another file system", path: "GEN/client.key", what: client.FoundMount, do: func(t *testing.T, o *owner) { bind(t, "/dev/null", o.at("client.key")) }},
		{name: "file over a link", path: "client.key", what: client.FoundMount, beyond: true, do: func(t *testing.T, o *owner) { overLink(t, evil(t, o), o.at("client.key")) }},
		{name: "file over ..data", path: "..data", what: client.FoundMount, beyond: true, do: func(t *testing.T, o *owner) { overLink(t, evil(t, o), o.at("..data")) }},
		{name: "directory over the generation", path: "GEN", what: client.FoundMount, do: func(t *testing.T, o *owner) { bind(t, evilDir(t, o), o.at("GEN")) }},
		{name: "tmpfs over the generation", path: "GEN", what: client.FoundMount, do: func(t *testing.T, o *owner) { tmpfs(t, o.at("..data")) }},
		{name: "directory over the directory", path: ".", what: client.FoundMount, beyond: true, do: func(t *testing.T, o *owner) { bind(t, evilDir(t, o), o.path) }},
		{name: "tmpfs over the directory", path: ".", what: client.FoundMount, beyond: true, do: func(t *testing.T, o *owner) { tmpfs(t, o.path) }},
		{name: "tmpfs above the directory", path: ".", what: client.FoundRemoved, beyond: true, do: func(t *testing.T, o *owner) { tmpfs(t, o.outside("")) }},
	} {
		t.Run(a.name, a.test)
	}

	t.Run("unmounted", func(t *testing.T) {
		o := newOwner(t)
		tmpfs(t, o.path)
		g := start(t, o)
		check(t, unix.Unmount(o.path, unix.MNT_DETACH))
		await(t, g, time.Second)
		if found := g.Verify(); len(found) != 1 || found[0].What != client.FoundOtherDirectory || found[0].Repairable {
			t.Errorf("found %v, want %s", found, client.FoundOtherDirectory)
		}
	})
	// It hides nothing: the files are the same.
	t.Run("directory over itself", func(t *testing.T) {
		o := newOwner(t)
		g := start(t, o)
		bind(t, o.path, o.path)
		await(t, g, time.Second)
		if found := g.Verify(); found != nil {
			t.Error(found)
		}
		// The directory that is watched now is the one on top.
		drain(g)
		check(t, os.Chmod(o.at("client.key"), 0o600))
		await(t, g, time.Second)
		if found := g.Verify(); len(found) != 1 || found[0].What != client.FoundMode {
			t.Errorf("found %v, want %s", found, client.FoundMode)
		}
	})
	t.Run("gone again", func(t *testing.T) {
		o := newOwner(t)
		g := start(t, o)
		check(t, unix.Mount("tmpfs", o.path, "tmpfs", 0, ""))
		await(t, g, time.Second)
		check(t, unix.Unmount(o.path, unix.MNT_DETACH))
		await(t, g, time.Second)
		if found := g.Verify(); found != nil {
			t.Error(found)
		}
		check(t, os.Link(o.at("GEN/client.key"), o.outside("link"))) // seen by the watch of the file
		await(t, g, time.Second)
		if found := g.Verify(); len(found) != 1 || found[0].What != client.FoundHardLink {
			t.Errorf("found %v, want %s", found, client.FoundHardLink)
		}
	})
}

func drain(g *Guard) {
	select {
	case <-g.Changed():
	default:
	}
}

// The limits of a user namespace are its own.
func TestWithoutInotify(t *testing.T) {
	root := []syscall.SysProcIDMap{{Size: 1}}
	if !isolated(t, &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: root, GidMappings: root}) {
		return
	}
	for _, name := range []string{"instances", "watches"} {
		t.Run(name, func(t *testing.T) {
			limit := func(n string) {
				check(t, os.WriteFile("/proc/sys/user/max_inotify_"+name, []byte(n), 0))
			}
			limit("0")
			defer limit("1000")
			o := newOwner(t)
			g := start(t, o)
			if g.Limit() == nil {
				t.Error("the guard does not say that it has no watches")
			}
			t.Log(g.Limit())
			check(t, os.Chmod(o.at("client.key"), 0o600))
			if found := g.Verify(); len(found) != 1 {
				t.Errorf("found %v, want the mode", found)
			}
			limit("1000")
			g.Expect(o.publish(t))
			await(t, g, giveUp)
			if err := g.Limit(); err != nil {
				t.Error(err)
			}
			check(t, os.Chmod(o.at("client.key"), 0o600))
			await(t, g, time.Second)
		})
	}
}

package guard

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

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
		t.Errorf("the test in its own namespace: %v\n%s", err, out)
	}
	return false
}

func TestMounts(t *testing.T) {
	// Go makes all mounts private in the new namespace: see exec_linux.go.
	if !isolated(t, &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}) {
		return
	}
	mount := func(o *owner, source, target, fstype string, flags uintptr) error {
		target, err := filepath.EvalSymlinks(target) // for the end, when the links may lead elsewhere
		if err == nil {
			err = unix.Mount(source, target, fstype, flags, "")
			o.t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
		}
		return err
	}
	bind := func(o *owner, source, target string) error { return mount(o, source, target, "", unix.MS_BIND) }
	tmpfs := func(o *owner, target string) error { return mount(o, "tmpfs", target, "tmpfs", 0) }
	evil := func(o *owner, target string, bind func(o *owner, source, target string) error) error {
		return errors.Join(os.WriteFile(o.outside("evil"), nil, 0o444), bind(o, o.outside("evil"), target))
	}
	evilDir := func(o *owner, target string) error {
		return errors.Join(os.Mkdir(o.outside("evil"), 0o755), bind(o, o.outside("evil"), target))
	}
	// overLink mounts on the link itself; by its path, it would be followed.
	overLink := func(o *owner, source, link string) error {
		fd, err := unix.Open(link, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		o.t.Cleanup(func() { unix.Unmount(link, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) })
		return unix.Mount(source, "/proc/self/fd/"+strconv.Itoa(fd), "", unix.MS_BIND, "")
	}
	mounted := client.FoundMount
	for _, a := range []action{
		{"file over a file", "GEN/client.key", mounted, 0,
			func(o *owner) error { return evil(o, o.at("GEN/client.key"), bind) }},
		{"file over a file by its link", "GEN/client.key", mounted, 0,
			func(o *owner) error { return evil(o, o.at("client.key"), bind) }},
		{"of another file system", "GEN/client.key", mounted, 0,
			func(o *owner) error { return bind(o, "/dev/null", o.at("client.key")) }},
		{"file over a link", "client.key", mounted, beyond,
			func(o *owner) error { return evil(o, o.at("client.key"), overLink) }},
		{"file over ..data", "..data", mounted, beyond,
			func(o *owner) error { return evil(o, o.at("..data"), overLink) }},
		{"directory over the generation", "GEN", mounted, 0, func(o *owner) error { return evilDir(o, o.at("GEN")) }},
		{"tmpfs over the generation", "GEN", mounted, 0, func(o *owner) error { return tmpfs(o, o.at("..data")) }},
		{"directory over the directory", ".", mounted, beyond, func(o *owner) error { return evilDir(o, o.path) }},
		{"tmpfs over the directory", ".", mounted, beyond, func(o *owner) error { return tmpfs(o, o.path) }},
		{"tmpfs above the directory", ".", client.FoundRemoved, beyond,
			func(o *owner) error { return tmpfs(o, o.outside("")) }},
	} {
		t.Run(a.name, a.test)
	}

	t.Run("unmounted", func(t *testing.T) {
		o := newOwner(t)
		check(t, tmpfs(o, o.path))
		g := start(t, o)
		check(t, unix.Unmount(o.path, unix.MNT_DETACH))
		await(t, g)
		if found := g.Verify(); len(found) != 1 || found[0].What != client.FoundOtherDirectory || found[0].Repairable {
			t.Errorf("found %v, want %s", found, client.FoundOtherDirectory)
		}
	})
	// It hides nothing: the files are the same.
	t.Run("directory over itself", func(t *testing.T) {
		o := newOwner(t)
		g := start(t, o)
		check(t, bind(o, o.path, o.path))
		await(t, g)
		if found := g.Verify(); found != nil {
			t.Errorf("found %v, want nothing", found)
		}
		// The directory that is watched now is the one on top.
		drain(g)
		check(t, os.Chmod(o.at("client.key"), 0o600))
		await(t, g)
		if found := g.Verify(); len(found) != 1 || found[0].What != client.FoundMode {
			t.Errorf("found %v, want %s", found, client.FoundMode)
		}
	})
	t.Run("gone again", func(t *testing.T) {
		o := newOwner(t)
		g := start(t, o)
		check(t, unix.Mount("tmpfs", o.path, "tmpfs", 0, ""))
		await(t, g)
		check(t, unix.Unmount(o.path, unix.MNT_DETACH))
		await(t, g)
		if found := g.Verify(); found != nil {
			t.Errorf("found %v, want nothing", found)
		}
		check(t, os.Link(o.at("GEN/client.key"), o.outside("link"))) // seen by the watch of the file
		await(t, g)
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
			await(t, g)
			if err := g.Limit(); err != nil {
				t.Errorf("with watches again: %v", err)
			}
			check(t, os.Chmod(o.at("client.key"), 0o600))
			await(t, g)
		})
	}
}

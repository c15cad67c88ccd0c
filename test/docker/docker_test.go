//go:build node

package docker

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/client"
	"sevagent/internal/must"
	"sevagent/test/lab"
)

// readOnly binds something published into a container, at a place of the same name.
func readOnly(source, target string) string { return "--volume=" + source + ":" + target + ":ro" }

// whole binds everything that is published, at its own place.
var whole = readOnly(lab.Published, lab.Published)

// TestWatch: a container beside a program signals it after each rotation. It shares the program's processes, as the
// containers of a task do with pidMode "task".
func TestWatch(t *testing.T) {
	a := startAgent(t, "")
	program := startContainer(t, image, whole)
	pidFile := filepath.Join(t.TempDir(), "pid")
	lab.Write(t, pidFile, "1\n")
	sidecar := must.Get(docker(nil, "run", "--detach", "--network", "none", "--pid", "container:"+program.id, whole,
		readOnly(lab.Bin("sevagent"), "/sevagent"), readOnly(pidFile, "/pid"), "--entrypoint", "/sevagent", image,
		"watch", "--signal", "HUP", "--pid-file", "/pid"))(t, "start the container beside it")
	t.Cleanup(func() { must.Get(docker(nil, "rm", "-f", sidecar))(t, "remove a container") })

	for n := 1; n <= 3; n++ {
		generation := a.rotate()
		lab.Until(t, "the signal after "+generation, func() error {
			if got := program.ask("signals").Signals; len(got) != n || got[n-1].Signal != "SIGHUP" {
				return fmt.Errorf("got %v, want %d times SIGHUP; the container beside it printed %s", got, n,
					must.Get(docker(nil, "logs", sidecar))(t, "read its log"))
			}
			return nil
		})
	}
}

// TestEveryGeneration: containers that bind the directory, and were started while it was rotated, see every generation
// as soon as it is published, and none that does not fit together.
func TestEveryGeneration(t *testing.T) {
	const rotations, containers = 20, 3
	a := startAgent(t, "")
	stop, stopped := make(chan struct{}), make(chan error, 1)
	meanwhile := 0
	go func() {
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			if _, err := a.publish(); err != nil {
				stopped <- err
				return
			}
			meanwhile++
		}
	}()
	var all []*container
	func() {
		defer func() {
			close(stop)
			if err := <-stopped; err != nil {
				t.Error("rotate while containers start:", err)
			}
			t.Logf("%d rotations while the containers were started", meanwhile)
		}()
		for i := range containers {
			all = append(all, startContainer(t, image, whole))
			all[i].ask("read")
		}
	}()
	for range rotations {
		generation := a.rotate()
		for _, c := range all {
			want := loaded{generation, a.subject(), a.subject()}
			if got := c.ask("load").Loaded; *got != want {
				t.Errorf("after a rotation a container has %+v, want %+v", *got, want)
			}
		}
	}
	for _, c := range all {
		s := c.ask("tally").Tally
		t.Logf("%d loads of %d generations", s.Loads, s.Generations)
		if s.Bad != 0 || s.Loads < rotations {
			t.Errorf("of %d loads %d were bad: %s", s.Loads, s.Bad, s.First)
		}
	}
}

// TestStaleReader: a container that binds one file is reported after a rotation, and no more when it has gone.
func TestStaleReader(t *testing.T) {
	const metric = "sevagent_mtls_stale_readers"
	a := startAgent(t, "")
	first := a.status().MTLS.Generation
	file := startContainer(t, image, readOnly(lab.Published+"/client.crt", "/x.crt"))
	startContainer(t, image, whole)
	old := file.ask("cat /x.crt").Text

	a.rotate()
	if file.ask("cat /x.crt").Text != old {
		t.Fatal("a bound file shows a rotation: there is nothing to tell of")
	}
	lab.Until(t, "a stale reader", func() error {
		if s := a.status().Readers; s.StaleCount == 0 {
			return fmt.Errorf("readers are %+v", s)
		}
		return nil
	})
	s := a.status().Readers
	if s.StaleCount != 1 || len(s.Stale) != 1 || s.Error != "" {
		t.Fatalf("readers are %+v, want one", s)
	}
	r := s.Stale[0]
	if r.ContainerID != file.id || r.TaskID != task || len(r.Files) != 1 {
		t.Fatalf("stale is %+v, want container %s of task %s", r, file.id, task)
	}
	if f := r.Files[0]; f.MountPoint != "/x.crt" || f.File != "client.crt" || f.Generation != first || f.Deleted {
		t.Errorf("stale is %+v, want client.crt of %s at /x.crt", f, first)
	}
	if n := a.metric(metric); n != 1 {
		t.Errorf("%s is %v, want 1", metric, n)
	}

	file.remove()
	a.rotate() // or a minute would pass until it looks again
	lab.Until(t, "no stale reader", func() error {
		if s := a.status().Readers; s.StaleCount != 0 || len(s.Stale) != 0 {
			return fmt.Errorf("readers are %+v", s)
		}
		return nil
	})
	if n := a.metric(metric); n != 0 {
		t.Errorf("%s is %v, want 0", metric, n)
	}
}

// TestRootOfContainer: with the directory writable, a container's root cannot touch what is published, and what it
// does to the names that lead there is put back.
func TestRootOfContainer(t *testing.T) {
	a := startAgent(t, "")
	c := startContainer(t, image, "--volume="+lab.Published+":"+lab.Published)
	if !a.status().MTLS.Guard.Immutable {
		if err := setAttribute(t, filepath.Join(lab.Published, "mine"), immutable); err != nil {
			t.Skipf("this kernel's tmpfs knows no immutable files, those of Linux 6.6 do: %v", err)
		}
		t.Fatal("what is published is not immutable, and could be")
	}
	before := a.status().MTLS.Generation
	content := files(t, before)

	attempts := c.ask("attack").Attempts
	for _, x := range attempts {
		if !strings.HasSuffix(x.Err, "operation not permitted") {
			t.Errorf("in a container, root's attempt to %s: %q, want operation not permitted", x.What, x.Err)
		}
	}
	t.Logf("%d attempts on %d files", len(attempts), len(content))
	if len(content) < 5 || len(attempts) < 12*len(content) {
		t.Errorf("%d attempts on %d files are too few", len(attempts), len(content))
	}
	for name, text := range files(t, before) {
		if text != content[name] {
			t.Errorf("%s was changed", name)
		}
	}
	if s := a.status().MTLS; s.Generation != before || s.Guard.Repairs != 0 {
		t.Errorf("after that, generation %s has become %s, and the guard is %+v", before, s.Generation, s.Guard)
	}

	guard := func(want client.GuardState) {
		t.Helper()
		lab.Until(t, "the guard's state "+string(want), func() error {
			if s := a.status().MTLS.Guard; s.State != want {
				return fmt.Errorf("guard is %+v", s)
			}
			return nil
		})
	}
	guard(client.GuardOK)
	c.ask("drop evil.crt")
	guard(client.GuardWarning)
	if s := a.status().MTLS.Guard; len(s.Findings) != 1 || s.Findings[0].Path != "evil.crt" {
		t.Errorf("of a foreign file the guard says %+v", s)
	}
	for i, x := range []struct{ link, to, want string }{
		{"client.crt", "evil.crt", "..data/client.crt"},
		{"..data", ".", "..gen-"},
	} {
		began := c.ask("point " + x.link + " " + x.to).At
		lab.Until(t, x.link+" to be put back", func() error {
			got, err := os.Readlink(filepath.Join(lab.Published, x.link))
			if err == nil && !strings.HasPrefix(got, x.want) {
				err = fmt.Errorf("it leads to %s", got)
			}
			return err
		})
		t.Logf("%s was put back within %v", x.link, time.Since(began).Round(time.Millisecond))
		lab.Until(t, "the repair of "+x.link, func() error {
			if s := a.status().MTLS.Guard; s.Repairs != i+1 {
				return fmt.Errorf("guard is %+v", s)
			}
			return nil
		})
	}
	if got := c.ask("cat " + lab.Published + "/client.crt").Text; got != content["client.crt"] {
		t.Errorf("after the repairs, client.crt in the container is\n%s", got)
	}
	c.ask("remove evil.crt")
	guard(client.GuardOK)
}

// immutable is FS_IMMUTABLE_FL of linux/fs.h.
const immutable = 0x10

// setAttribute reports whether a new file can have an attribute.
func setAttribute(t *testing.T, path string, flags int) error {
	f := must.Get(os.Create(path))(t, "make a file")
	defer f.Close()
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags)
}

// files returns the content of a generation.
func files(t *testing.T, generation string) map[string]string {
	t.Helper()
	dir, content := filepath.Join(lab.Published, generation), make(map[string]string)
	for _, e := range must.Get(os.ReadDir(dir))(t, "list a generation") {
		content[e.Name()] = lab.Read(t, filepath.Join(dir, e.Name()))
	}
	return content
}

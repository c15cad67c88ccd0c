package guard

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"sevagent/client"
	"sevagent/internal/must"
)

// giveUp is for failures only.
const giveUp = 2 * time.Minute

var published = []string{"ca.crt", "client.crt", "client.key", "client.pem", "evidence.json", "manifest.json",
	"server.crt", "server.key"}

// owner publishes as package mtls does.
type owner struct {
	t     testing.TB
	path  string
	count int
}

// newOwner has a directory on a tmpfs, as on a node. What should be outside can be put above it.
func newOwner(t testing.TB) *owner {
	var fs unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		t.Skip("needs a tmpfs at /dev/shm")
	}
	above, err := os.MkdirTemp("/dev/shm", "guard")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(above); os.RemoveAll(above + "-away") })
	o := &owner{t: t, path: filepath.Join(above, "mtls")}
	check(t, os.Mkdir(o.path, 0o755))
	return o
}

func (o *owner) publish(t testing.TB) *Tree {
	t.Helper()
	previous := o.gen()
	o.count++
	l := Layout{Generation: o.gen(), Links: map[string]string{"..data": o.gen()}, Allowed: []string{"app"}}
	dir := filepath.Join(o.path, l.Generation)
	check(t, os.Mkdir(dir, 0o700))
	for _, name := range published {
		f := File{Name: name, Mode: 0o444, UID: os.Getuid(), GID: os.Getgid(), Size: 3000}
		content := []byte(strings.Repeat(fmt.Sprintf("%-10.10s", name), f.Size/10))
		f.SHA256 = sha256.Sum256(content)
		check(t, os.WriteFile(filepath.Join(dir, name), content, 0o600))
		check(t, os.Chmod(filepath.Join(dir, name), f.Mode))
		l.Files = append(l.Files, f)
		l.Links[name] = "..data/" + name
	}
	check(t, os.Chmod(dir, 0o755))
	if o.count > 1 {
		l.Links["..prev"] = previous
		check(t, relink(previous, filepath.Join(o.path, "..prev")))
	}
	check(t, relink(l.Generation, filepath.Join(o.path, "..data")))
	for _, name := range published {
		check(t, relink("..data/"+name, filepath.Join(o.path, name)))
		// For readers that watch files, if it is still there and not something of the host's that was put in its place.
		old := filepath.Join(o.path, previous, name)
		if fi, err := os.Lstat(old); err == nil && fi.Mode().IsRegular() {
			check(t, os.Chmod(old, 0o444))
		}
	}
	tree, err := Capture(o.path, l)
	check(t, err)
	return tree
}

func (o *owner) gen() string { return fmt.Sprintf("..gen-%d", o.count) }

// at is a path below the directory; "GEN" stands for the generation.
func (o *owner) at(name string) string {
	return filepath.Join(o.path, strings.Replace(name, "GEN", o.gen(), 1))
}

func (o *owner) outside(name string) string { return filepath.Join(filepath.Dir(o.path), name) }

func relink(target, name string) error {
	os.Remove(name + "_tmp")
	return errors.Join(os.Symlink(target, name+"_tmp"), os.Rename(name+"_tmp", name))
}

func check(t testing.TB, err error) {
	t.Helper()
	must.Do(t, err, "prepare the test")
}

// start runs a guard that has all its watches, and no request to look pending.
func start(t *testing.T, o *owner) *Guard {
	t.Helper()
	g := New(Config{Path: o.path, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			check(t, err)
		case <-time.After(giveUp):
			t.Error("Run does not end with its context")
		}
	})
	await(t, g) // at the start
	g.Expect(o.publish(t))
	await(t, g) // with the tree
	if found := g.Verify(); found != nil {
		t.Fatalf("an untouched directory has findings: %v", found)
	}
	return g
}

// await waits until the guard asks for a look. TestLoop says how long that may take.
func await(t *testing.T, g *Guard) {
	t.Helper()
	select {
	case <-g.Changed():
	case <-time.After(giveUp):
		t.Fatalf("nothing on Changed for %v", giveUp)
	}
}

// action is what somebody does to the directory.
type action struct {
	name string
	path string // of the finding; GEN stands for the generation
	what client.FindingKind
	kind int // of the action
	do   func(o *owner) error
}

// The kinds of action, which can be combined.
const (
	silent   = 1 << iota // no sensor sees it
	beyond               // no publication repairs it
	warning              // it misleads no reader
	withRoot             // only root can do it
)

func (a action) test(t *testing.T) {
	if a.kind&withRoot != 0 && os.Getuid() != 0 {
		t.Skip("needs root")
	}
	o := newOwner(t)
	g := start(t, o)
	if err := a.do(o); errors.Is(err, unix.ENOTSUP) {
		t.Skip("the file system has no such thing: ", err)
	} else {
		check(t, err)
	}
	if a.kind&silent == 0 {
		await(t, g)
	}
	want := strings.Replace(a.path, "GEN", o.gen(), 1)
	found := g.Verify()
	for _, f := range found {
		if f.What != a.what || f.Path != want {
			continue
		}
		if f.Repairable != (a.kind&beyond == 0) || f.Warning != (a.kind&warning != 0) {
			t.Errorf("%v: repairable %v, warning %v; want the opposite", f, f.Repairable, f.Warning)
		}
		if len(found) > 2 {
			t.Errorf("one action has %d findings: %v", len(found), found)
		}
		if f.Repairable && !f.Warning {
			g.Expect(o.publish(t))
			if found := g.Verify(); found != nil {
				t.Errorf("after a new publication: %v", found)
			}
		}
		return
	}
	t.Errorf("found %v, want %s: %s", found, want, a.what)
}

// write changes a few bytes of a file in place, and calls then before it is closed.
func write(path string, then ...func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, do := range then {
		err = errors.Join(err, do(f))
	}
	if len(then) == 0 {
		_, err = f.WriteAt([]byte("evil"), 7)
	}
	return err
}

func TestActions(t *testing.T) {
	evil := func(o *owner) error { return os.WriteFile(o.outside("evil"), nil, 0o444) }
	away := func(o *owner) error { return os.Rename(o.path, o.outside("away")) }
	for _, a := range []action{
		{"write", "GEN/client.key", client.FoundContent, 0, func(o *owner) error { return write(o.at("client.key")) }},
		{"append", "GEN/ca.crt", client.FoundContent, 0, func(o *owner) error {
			return write(o.at("ca.crt"),
				func(f *os.File) error { _, err := f.WriteAt([]byte("evil"), 3000); return err })
		}},
		{"truncate", "GEN/ca.crt", client.FoundContent, 0,
			func(o *owner) error { return os.Truncate(o.at("ca.crt"), 0) }},
		{"grow without bound", "GEN/ca.crt", client.FoundContent, 0, func(o *owner) error {
			return os.Truncate(o.at("ca.crt"), 1<<40)
		}},
		{"hard link", "GEN/client.key", client.FoundHardLink, 0, func(o *owner) error {
			return os.Link(o.at("GEN/client.key"), o.outside("link"))
		}},
		{"write through a hard link", "GEN/client.key", client.FoundContent, 0, func(o *owner) error {
			return errors.Join(os.Link(o.at("GEN/client.key"), o.outside("link")), write(o.outside("link")))
		}},
		{"write through a hard link that is gone", "GEN/client.key", client.FoundContent, 0, func(o *owner) error {
			link := o.outside("link")
			return errors.Join(os.Link(o.at("GEN/client.key"), link), write(link), os.Remove(link))
		}},
		{"store through a mapping", "GEN/client.crt", client.FoundContent, silent, func(o *owner) error {
			return write(o.at("client.crt"), func(f *os.File) error {
				m, err := unix.Mmap(int(f.Fd()), 0, 3000, unix.PROT_WRITE, unix.MAP_SHARED)
				if err != nil {
					return err
				}
				m[5] = 0
				return unix.Munmap(m)
			})
		}},
		{"chmod", "GEN/client.key", client.FoundMode, 0,
			func(o *owner) error { return os.Chmod(o.at("client.key"), 0o666) }},
		{"chmod of the generation", "GEN", client.FoundMode,
			0, func(o *owner) error { return os.Chmod(o.at("GEN"), 0o777) }},
		{"chmod of the directory", ".", client.FoundMode, beyond,
			func(o *owner) error { return os.Chmod(o.path, 0o777) }},
		{"access control list", "GEN/client.key", client.FoundMode, 0, func(o *owner) error {
			// Version 2; user::r, user:1000:r, group::r, mask::r, other::r. See acl(5) and linux/posix_acl_xattr.h.
			acl := []byte{2, 0, 0, 0, 1, 0, 4, 0, 255, 255, 255,
				255, 2, 0, 4, 0, 0xe8, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255,
				0x10, 0, 4, 0, 255, 255, 255, 255, 0x20, 0, 4, 0, 255, 255, 255, 255}
			return unix.Setxattr(o.at("client.key"), "system.posix_acl_access", acl, 0)
		}},
		{"chown", "GEN/client.key", client.FoundOwner, withRoot, func(o *owner) error {
			return os.Chown(o.at("client.key"), 1000, 1000)
		}},
		{"rename over a file", "GEN/client.key", client.FoundReplaced, 0, func(o *owner) error {
			content, err := os.ReadFile(o.at("client.key"))
			return errors.Join(err, os.WriteFile(o.outside("evil"), content, 0o444),
				os.Rename(o.outside("evil"), o.at("GEN/client.key")))
		}},
		{"FIFO", "GEN/client.key", client.FoundReplaced, 0, func(o *owner) error {
			return errors.Join(os.Remove(o.at("GEN/client.key")), unix.Mkfifo(o.at("GEN/client.key"), 0o444))
		}},
		{"link for a file", "GEN/client.key", client.FoundReplaced, 0, func(o *owner) error {
			return relink("/dev/zero", o.at("GEN/client.key"))
		}},
		{"rename over a link", "client.key", client.FoundReplaced, 0, func(o *owner) error {
			return errors.Join(evil(o), os.Rename(o.outside("evil"), o.at("client.key")))
		}},
		{"FIFO for the generation", "GEN", client.FoundReplaced, 0, func(o *owner) error {
			return errors.Join(os.RemoveAll(o.at("GEN")), unix.Mkfifo(o.at("GEN"), 0o444))
		}},
		{"generation made again", "GEN", client.FoundReplaced, 0, func(o *owner) error {
			return errors.Join(os.RemoveAll(o.at("GEN")), os.Mkdir(o.at("GEN"), 0o755))
		}},
		{"link re-pointed", "client.key", client.FoundRetargeted, 0, func(o *owner) error {
			return relink("/tmp/evil", o.at("client.key"))
		}},
		{"..data re-pointed", "..data", client.FoundRetargeted, 0,
			func(o *owner) error { return relink(o.gen()+"x", o.at("..data")) }},
		{"directory for ..data", "..data", client.FoundReplaced, beyond, func(o *owner) error {
			return errors.Join(os.Remove(o.at("..data")), os.Mkdir(o.at("..data"), 0o755))
		}},
		{"file removed", "GEN/client.key", client.FoundRemoved, 0,
			func(o *owner) error { return os.Remove(o.at("GEN/client.key")) }},
		{"link removed", "client.key", client.FoundRemoved, 0,
			func(o *owner) error { return os.Remove(o.at("client.key")) }},
		{"generation removed", "GEN", client.FoundRemoved, 0,
			func(o *owner) error { return os.RemoveAll(o.at("GEN")) }},
		{"file in the generation", "GEN/evil.crt", client.FoundExtra, 0, func(o *owner) error {
			return os.WriteFile(o.at("GEN/evil.crt"), nil, 0o444)
		}},
		{"file in the directory", "evil.crt", client.FoundExtra, warning | beyond, func(o *owner) error {
			return os.WriteFile(o.at("evil.crt"), nil, 0o444)
		}},
		{"directory moved away", ".", client.FoundRemoved, beyond, away},
		{"directory recreated", ".", client.FoundOtherDirectory, beyond, func(o *owner) error {
			return errors.Join(away(o), os.Mkdir(o.path, 0o755))
		}},
		{"FIFO for the directory", ".", client.FoundOtherDirectory, beyond, func(o *owner) error {
			return errors.Join(away(o), unix.Mkfifo(o.path, 0o755))
		}},
		{"directory above moved away", ".", client.FoundRemoved, beyond, func(o *owner) error {
			return os.Rename(filepath.Dir(o.path), filepath.Dir(o.path)+"-away")
		}},
	} {
		t.Run(a.name, a.test)
	}
}

// What the owner may do, and what it allows others.
func TestNothingFound(t *testing.T) {
	o := newOwner(t)
	g := start(t, o)
	check(t, os.Mkdir(o.at("app"), 0o755))
	check(t, os.Mkdir(o.at("..gen-other"), 0o700))
	check(t, os.Symlink("x", o.at("..data_tmp")))
	await(t, g)
	if found := g.Verify(); found != nil {
		t.Errorf("found %v, want nothing", found)
	}
	for range 5 {
		g.Expect(o.publish(t))
		await(t, g)
		if found := g.Verify(); found != nil {
			t.Errorf("found %v, want nothing", found)
		}
	}
	g.Expect(nil)
	check(t, os.RemoveAll(o.path))
	await(t, g)
	if found := g.Verify(); found != nil {
		t.Errorf("found %v, want nothing", found)
	}
}

// The new generation is watched as the first one was, and so is a directory that was recreated and accepted.
func TestWatchesFollow(t *testing.T) {
	o := newOwner(t)
	g := start(t, o)
	for range 2 {
		g.Expect(o.publish(t))
		settle(t, g)
		check(t, os.Link(o.at("GEN/client.key"), o.outside("link"))) // only a watch of the file sees it
		await(t, g)
		if found := g.Verify(); len(found) != 1 {
			t.Errorf("found %v, want the link", found)
		}
		check(t, os.Remove(o.outside("link")))
		check(t, os.Rename(o.path, o.outside("away")))
		check(t, os.Mkdir(o.path, 0o755))
		check(t, os.RemoveAll(o.outside("away")))
		settle(t, g)
		o.count = 0
	}
}

// settle waits until nothing is asked for any more.
func settle(t *testing.T, g *Guard) {
	for await(t, g); ; {
		select {
		case <-g.Changed():
		case <-time.After(2 * patience):
			return
		}
	}
}

func TestPublicationKeepsModeOfDirectory(t *testing.T) {
	o := newOwner(t)
	g := New(Config{Path: o.path})
	g.Expect(o.publish(t))
	check(t, os.Chmod(o.path, 0o777))
	g.Expect(o.publish(t))
	if found := g.Verify(); len(found) != 1 || found[0].What != client.FoundMode || found[0].Repairable {
		t.Errorf("found %v, want the mode of the directory", found)
	}
}

func TestManyExtras(t *testing.T) {
	o := newOwner(t)
	g := New(Config{Path: o.path})
	g.Expect(o.publish(t))
	for i := range 2 * maxEntries {
		check(t, os.WriteFile(o.at(fmt.Sprintf("GEN/%d", i)), nil, 0o444))
	}
	if found := g.Verify(); len(found) != maxExtra+1 || !found[maxExtra].Repairable {
		t.Errorf("%d findings, want %d that can be repaired: %v", len(found), maxExtra+1, found)
	}
}

func TestCaptureFails(t *testing.T) {
	o := newOwner(t)
	o.publish(t)
	for _, l := range []Layout{
		{Generation: "..gen-0"},
		{Generation: "..data"}, // a link
		{Generation: o.gen(), Files: []File{{Name: "none"}}},
	} {
		if _, err := Capture(o.path, l); err == nil {
			t.Errorf("captured %v", l)
		} else {
			t.Log(err)
		}
	}
}

// Only the overflow tells: all events that fit are of the directory's neighbours.
func TestOverflow(t *testing.T) {
	o := newOwner(t)
	tree := o.publish(t)
	stir := make(chan struct{}, 1)
	s := &sensors{path: o.path, stir: stir}
	w, err := fsnotify.NewWatcher()
	check(t, err)
	s.watcher = w
	check(t, s.renewFiles(tree))
	defer s.close()
	for i := range 10_000 {
		name := o.outside(fmt.Sprint(i))
		check(t, os.Symlink("x", name))
		check(t, os.Remove(name))
	}
	s.work.Go(func() { s.pump(w) })
	select {
	case <-stir:
	case <-time.After(giveUp):
		t.Error("an overflow goes unnoticed")
	}
}

// A file that is moved and then removed makes fsnotify report an error while it holds its lock.
func TestMovedAndRemoved(t *testing.T) {
	o := newOwner(t)
	tree := o.publish(t)
	s := &sensors{path: o.path, stir: make(chan struct{}, 1)}
	defer s.close()
	for range 500 {
		check(t, s.renew(tree))
		name := o.at("GEN/client.key")
		check(t, os.Rename(name, o.outside("moved")))
		check(t, os.Remove(o.outside("moved")))
		check(t, s.renew(tree))
		check(t, os.WriteFile(name, nil, 0o600))
	}
}

func TestRunLeavesNothing(t *testing.T) {
	count := func() (int, int) {
		fds, err := os.ReadDir("/proc/self/fd")
		check(t, err)
		return runtime.NumGoroutine(), len(fds)
	}
	goroutines, fds := count()
	t.Run("run", func(t *testing.T) { start(t, newOwner(t)) })
	for deadline := time.Now().Add(giveUp); ; runtime.Gosched() {
		g, f := count()
		if g <= goroutines && f <= fds {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines and %d descriptors, before %d and %d", g, f, goroutines, fds)
		}
	}
}

// A stream of events does not put off the look, nor does it starve it.
func TestLoop(t *testing.T) {
	for _, tt := range []struct {
		name     string
		events   time.Duration // between two of them; 0: none
		count    int
		limit    error
		min, max time.Duration // until Changed
	}{
		{name: "one event", events: time.Millisecond, count: 1, min: 51 * time.Millisecond, max: 51 * time.Millisecond},
		{name: "a few", events: 10 * time.Millisecond, count: 5,
			min: 100 * time.Millisecond, max: 100 * time.Millisecond},
		{name: "a storm", events: time.Millisecond, count: 1e6,
			min: 251 * time.Millisecond, max: 251 * time.Millisecond},
		{name: "none", min: 24 * time.Second, max: 36 * time.Second},
		{name: "none, and some cannot come", limit: errors.New("too many open files"), min: 4 * time.Second,
			max: 6 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := New(Config{Path: "/nowhere", Log: slog.New(slog.DiscardHandler)})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go g.loop(ctx, func(*Tree) error { return tt.limit })
				<-g.Changed()
				if g.Limit() != tt.limit {
					t.Errorf("limit %v, want %v", g.Limit(), tt.limit)
				}
				start := time.Now()
				if tt.events > 0 {
					go func() {
						for tick := time.Tick(tt.events); tt.count > 0; tt.count-- {
							select {
							case <-tick:
								signal(g.stir)
							case <-ctx.Done():
								return
							}
						}
					}()
				}
				<-g.Changed()
				if d := time.Since(start); d < tt.min || d > tt.max {
					t.Errorf("asked after %v, want %v to %v", d, tt.min, tt.max)
				}
			})
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	o := newOwner(b)
	g := New(Config{Path: o.path})
	g.Expect(o.publish(b))
	for b.Loop() {
		if found := g.Verify(); found != nil {
			b.Fatalf("found %v, want nothing", found)
		}
	}
}

package mtls

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"sevagent/internal/sim"
)

// published is a published directory under test.
type published struct {
	t testing.TB
	*publisher
	evidence []byte
	was      *generation // what was published last by mustPublish
}

func newDirectory(t testing.TB) *published {
	return &published{t, &publisher{path: filepath.Join(memoryDir(t), "mtls"), allowDisk: true, log: testLog(t)}, nil, nil}
}

// memoryDir is t.TempDir in memory where there is one to be had: the tests flush a lot.
func memoryDir(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "sevagent-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := sim.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// ours are settings that need no privileges.
var ours = access{Owner{os.Getuid(), os.Getgid()}, 0o440, 0o444}

func (d *published) publish(s *set, bundles []*bundle) (*generation, error) {
	return d.publisher.publish(s, bundles, d.evidence, ours, d.was, time.Now())
}

func (d *published) mustPublish(s *set, bundles []*bundle) *generation {
	d.t.Helper()
	g, err := d.publish(s, bundles)
	if err != nil {
		d.t.Fatal(err)
	}
	d.was = g
	return g
}

// recover does what the next start does.
func (d *published) recover() (*generation, error) {
	d.t.Helper()
	root, err := openDir(d.path, d.allowDisk)
	if err != nil {
		d.t.Fatal(err)
	}
	defer root.Close()
	return d.publisher.recover(root, time.Now())
}

// read returns what a consumer reads, by the names of the links.
func (d *published) read() map[string]string {
	d.t.Helper()
	files := make(map[string]string)
	for _, name := range d.list() {
		if strings.HasPrefix(name, "..") {
			continue
		}
		content, err := os.ReadFile(filepath.Join(d.path, name))
		if err != nil {
			d.t.Fatal(err)
		}
		files[name] = string(content)
	}
	return files
}

func (d *published) list() (names []string) {
	d.t.Helper()
	entries, err := os.ReadDir(d.path)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// holds fails the test unless consumers read exactly s.
func (d *published) holds(s *set) {
	d.t.Helper()
	if diff := cmp.Diff(contents(s), withoutManifest(d.read())); diff != "" {
		d.t.Errorf("published files (-want +got):\n%s", diff)
	}
}

func contents(s *set) map[string]string {
	files := make(map[string]string)
	for _, f := range s.files {
		files[f.name] = string(f.content)
	}
	return files
}

func withoutManifest(files map[string]string) map[string]string {
	delete(files, manifestFile)
	delete(files, evidenceFile)
	return files
}

func TestPublish(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077)) // must not matter
	ca := newCA(t, "ca", nil)
	d := newDirectory(t)
	d.evidence = []byte("evidence")
	s, bundles := mustSet(t, ca.clientSecret(t, "node"), []byte(keyPEM(t, ca.key)))
	g := d.mustPublish(s, bundles)
	d.holds(s)

	files := []string{"ca.crt", "cert-1.pem", "client.crt", "client.key", "client.pem", evidenceFile, manifestFile}
	if diff := cmp.Diff(slices.Concat([]string{"..data", g.name()}, files), d.list()); diff != "" {
		t.Errorf("directory (-want +got):\n%s", diff)
	}
	if got, _ := os.Readlink(filepath.Join(d.path, "..data")); got != g.name() {
		t.Errorf("..data leads to %s, want the relative name %s", got, g.name())
	}
	for _, name := range files {
		if got, _ := os.Readlink(filepath.Join(d.path, name)); got != "..data/"+name {
			t.Errorf("%s leads to %s, want ..data/%s", name, got, name)
		}
		want := fs.FileMode(0o444)
		if name == "client.key" || name == "client.pem" || name == "cert-1.pem" {
			want = 0o440
		}
		if fi, err := os.Stat(filepath.Join(d.path, name)); err != nil || fi.Mode() != want {
			t.Errorf("%s has mode %v, %v; want %v", name, fi.Mode(), err, want)
		}
	}
	for _, name := range []string{".", g.name()} {
		if fi, err := os.Stat(filepath.Join(d.path, name)); err != nil || fi.Mode().Perm() != 0o755 {
			t.Errorf("%s has mode %v, %v; want 0755", name, fi.Mode(), err)
		}
	}
	read := d.read()
	if read[evidenceFile] != "evidence" {
		t.Errorf("evidence is %q", read[evidenceFile])
	}
	var m manifest
	if err := json.Unmarshal([]byte(read[manifestFile]), &m); err != nil {
		t.Fatal(err)
	}
	if m.Generation != g.name() || !m.NotAfter.Equal(s.leaves[kindClient].NotAfter) || len(m.Files) != 6 || len(m.Secrets) != 2 {
		t.Errorf("manifest: %+v", m)
	}
	for _, e := range m.Files {
		if err := e.checkContent([]byte(read[e.File])); err != nil {
			t.Errorf("manifest: %v", err)
		}
	}
	if strings.Contains(read[manifestFile], "PRIVATE") {
		t.Error("the manifest holds a key")
	}
}

// A consumer who has nothing to do with this program can use what it publishes.
func TestPublishedFilesWithOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	root := newCA(t, "root", nil)
	lower := newCA(t, "lower", root)
	cert, key := lower.leaf(t, "node")
	d := newDirectory(t)
	s, bundles := mustSet(t, secretJSON(t, map[string]any{
		clientCert: certPEM(lower.cert, cert), clientKey: keyPEM(t, key), serverCert: certPEM(cert, lower.cert), serverKey: keyPEM(t, key), caCert: certPEM(root.cert),
	}))
	d.mustPublish(s, bundles)
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(openssl, args...)
		cmd.Dir = d.path
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	run("verify", "-CAfile", "ca.crt", "-untrusted", "client.crt", "-purpose", "sslclient", "client.crt")
	run("verify", "-CAfile", "ca.crt", "-untrusted", "server.pem", "-purpose", "sslserver", "server.crt")
	for _, f := range []string{"client.crt", "client.pem", "server.pem"} {
		if got := run("x509", "-in", f, "-noout", "-subject", "-nameopt", "RFC2253"); strings.TrimSpace(got) != "subject=CN=node" {
			t.Errorf("the first certificate of %s is %s", f, got)
		}
	}
	pub := run("x509", "-in", "client.crt", "-noout", "-pubkey")
	for _, f := range []string{"client.key", "client.pem"} {
		if got := run("pkey", "-in", f, "-pubout"); got != pub {
			t.Errorf("the key in %s has public key\n%s\nwant\n%s", f, got, pub)
		}
	}
}

func TestPublishNext(t *testing.T) {
	ca := newCA(t, "ca", nil)
	d := newDirectory(t)
	pair, pairBundles := mustSet(t, ca.clientSecret(t, "first"), []byte(certPEM(ca.cert)))
	first := d.mustPublish(pair, pairBundles)
	inode := stat(t, d.path).Ino
	sim.Soften(d.path)
	monthAgo := time.Now().Add(-30 * 24 * time.Hour)
	if err := os.Chtimes(filepath.Join(d.path, first.name()), monthAgo, monthAgo); err != nil {
		t.Fatal(err)
	}

	// The way that certwatcher and others watch: the file, through the links.
	watcher, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watcher)
	if _, err := unix.InotifyAddWatch(watcher, filepath.Join(d.path, "client.crt"), unix.IN_ATTRIB); err != nil {
		t.Fatal(err)
	}

	next, bundles := mustSet(t, ca.clientSecret(t, "second"))
	second := d.mustPublish(next, bundles)
	d.holds(next) // so cert-1.pem is gone

	if got, _ := os.Readlink(filepath.Join(d.path, "..prev")); got != first.name() {
		t.Errorf("..prev leads to %s, want %s", got, first.name())
	}
	old := filepath.Join(d.path, first.name(), "client.crt")
	if got, err := os.ReadFile(old); err != nil || string(got) != pair.file("client.crt") {
		t.Errorf("the previous generation is not there any more: %v", err)
	}
	if n, err := unix.Read(watcher, make([]byte, 4096)); err != nil || n < unix.SizeofInotifyEvent || stat(t, old).Mode&0o777 != 0o444 {
		t.Errorf("who watches the previous generation's file has not heard of the switch: %d, %v (mode %o)", n, err, stat(t, old).Mode)
	}
	if stat(t, d.path).Ino != inode {
		t.Error("the published directory was replaced")
	}

	third := d.mustPublish(next, bundles)
	d.holds(next)
	if third.name() <= second.name() {
		t.Errorf("generation %s comes after %s", third.name(), second.name())
	}
	// The time since it was replaced counts, however old it is. ..prev stays until the next rotation.
	root, err := openDir(d.path, true)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, c := range []struct {
		after time.Duration
		want  []string
	}{
		{grace - time.Minute, []string{first.name(), second.name(), third.name()}},
		{grace + time.Minute, []string{second.name(), third.name()}},
	} {
		if err := collect(root, maxRetired, time.Now().Add(c.after)); err != nil {
			t.Fatal(err)
		}
		got := slices.DeleteFunc(d.list(), func(name string) bool { return !strings.HasPrefix(name, genPrefix) })
		if !slices.Equal(got, c.want) {
			t.Errorf("%v later there are %v, want %v", c.after, got, c.want)
		}
	}
}

// Rotations that come too fast for the grace period do not fill the tmpfs.
func TestRetiredGenerationsAreBounded(t *testing.T) {
	ca := newCA(t, "ca", nil)
	d := newDirectory(t)
	s, bundles := mustSet(t, ca.clientSecret(t, "node"))
	for range maxRetired + 20 {
		d.mustPublish(s, bundles)
	}
	n := 0
	for _, name := range d.list() {
		if strings.HasPrefix(name, genPrefix) {
			n++
		}
	}
	if n > maxRetired+2 || n < maxRetired/2 {
		t.Errorf("%d generations, want %d to %d", n, maxRetired/2, maxRetired+2)
	}
	d.holds(s)
}

func TestRestart(t *testing.T) {
	ca := newCA(t, "ca", nil)
	d := newDirectory(t)
	if g, err := d.recover(); g != nil || !errors.Is(err, errNothing) {
		t.Errorf("in an empty directory: %v, %v", g, err)
	}
	s, bundles := mustSet(t, ca.clientSecret(t, "node"), []byte(keyPEM(t, ca.key)))
	want := d.mustPublish(s, bundles)
	names := d.list()

	g, err := d.recover()
	if err != nil {
		t.Fatal(err)
	}
	if g.name() != want.name() || !g.manifest.describes(s, ours) || dump(g.set) != dump(s) || g.damaged {
		t.Errorf("recovered %s, want %s with the same files and modes", g.name(), want.name())
	}
	if diff := cmp.Diff(names, d.list()); diff != "" {
		t.Errorf("a restart changes the directory (-before +after):\n%s", diff)
	}
}

// What was changed while the agent was away is found at the next start.
func TestRestartFindsDamage(t *testing.T) {
	ca := newCA(t, "ca", nil)
	for name, c := range map[string]struct {
		damage func(dir, gen string) error
		intact bool // the content, so that it need not be fetched again
	}{
		"mode": {func(dir, gen string) error { return os.Chmod(filepath.Join(gen, "client.key"), 0o444) }, true},
		"link": {func(dir, gen string) error { return os.Remove(filepath.Join(dir, "client.crt")) }, true},
		"content": {func(dir, gen string) error {
			return replaceFile(filepath.Join(gen, "client.key"), []byte(keyPEM(t, ca.key)))
		}, false},
		"file missing":     {func(dir, gen string) error { return os.Remove(filepath.Join(gen, "client.pem")) }, false},
		"manifest missing": {func(dir, gen string) error { return os.Remove(filepath.Join(gen, manifestFile)) }, false},
		"manifest garbled": {func(dir, gen string) error { return replaceFile(filepath.Join(gen, manifestFile), []byte("{")) }, false},
		"hard link": {func(dir, gen string) error {
			return os.Link(filepath.Join(gen, "client.key"), filepath.Join(filepath.Dir(dir), "copy"))
		}, false},
		"generation is a link": {func(dir, gen string) error {
			return errors.Join(os.Rename(gen, dir+"-elsewhere"), os.Symlink(dir+"-elsewhere", gen))
		}, false},
		"..data missing": {func(dir, gen string) error { return os.Remove(filepath.Join(dir, "..data")) }, false},
		"..data leads out": {func(dir, gen string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "..data")), os.Symlink("/etc", filepath.Join(dir, "..data")))
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDirectory(t)
			s, bundles := mustSet(t, ca.clientSecret(t, "node"))
			g := d.mustPublish(s, bundles)
			sim.Soften(d.path)
			if err := c.damage(d.path, filepath.Join(d.path, g.name())); err != nil {
				t.Fatal(err)
			}
			got, err := d.recover()
			if (got != nil) != c.intact {
				t.Fatalf("content found intact: %v, want %v (%v)", got != nil, c.intact, err)
			}
			if c.intact && name != "link" && (err == nil || !got.damaged) {
				t.Errorf("nothing was noticed: %v", err)
			}
			d.mustPublish(s, bundles)
			d.holds(s)
		})
	}
}

func replaceFile(path string, content []byte) error {
	return errors.Join(os.Remove(path), os.WriteFile(path, content, 0o444))
}

// Before every step of the first and of a later publication the program is killed. Consumers find the old set or the
// new one, whole, at once and after the next start, which leaves nothing else behind; then publication works.
func TestCrash(t *testing.T) {
	ca := newCA(t, "ca", nil)
	first, firstBundles := mustSet(t, ca.clientSecret(t, "first"), []byte(certPEM(ca.cert)))
	next, nextBundles := mustSet(t, ca.clientSecret(t, "second"))

	for _, later := range []bool{false, true} {
		setUp := func(t *testing.T) *published {
			d := newDirectory(t)
			if later {
				d.mustPublish(first, firstBundles)
			}
			return d
		}
		var steps []string
		d := setUp(t)
		d.testOnlyBefore = func(step string) error { steps = append(steps, step); return nil }
		d.mustPublish(next, nextBundles)
		if len(steps) < 15 {
			t.Fatalf("steps: %q", steps)
		}
		for i, step := range steps {
			t.Run(fmt.Sprintf("later=%v/%02d before %s", later, i, strings.Fields(step)[0]), func(t *testing.T) {
				d := setUp(t)
				n := 0
				killed := errors.New("killed")
				d.testOnlyBefore = func(string) error {
					if n++; n > i {
						return killed
					}
					return nil
				}
				if _, err := d.publish(next, nextBundles); err != killed {
					t.Fatal(err)
				}
				d.testOnlyBefore = nil

				var old *set
				if later {
					old = first
				}
				d.holdsEither(old, next, "right after the kill")
				g, err := d.recover()
				if g == nil && !errors.Is(err, errNothing) || g != nil && err != nil {
					t.Errorf("next start: %v", err)
				}
				got := d.holdsEither(old, next, "after the next start")
				if got != nil {
					d.holds(got)
				}
				wantGenerations := map[bool]int{false: 0, true: 1}[later]
				if got == next {
					wantGenerations++
				}
				for _, name := range d.list() {
					if isTmpName(name) {
						t.Errorf("%s is left over", name)
					}
					if strings.HasPrefix(name, genPrefix) {
						wantGenerations--
					}
				}
				if wantGenerations != 0 {
					t.Errorf("generations left over or missing: %v", d.list())
				}
				d.mustPublish(next, nextBundles)
				d.holds(next)
			})
		}
	}
}

// holdsEither checks by reading through ..data, as a consumer does who follows the rule, and returns which set it is.
func (d *published) holdsEither(old, next *set, when string) *set {
	d.t.Helper()
	gen, err := filepath.EvalSymlinks(filepath.Join(d.path, "..data"))
	if err != nil {
		if old != nil || !errors.Is(err, fs.ErrNotExist) {
			d.t.Errorf("%s: %v", when, err)
		}
		return nil
	}
	for _, s := range []*set{old, next} {
		if s == nil {
			continue
		}
		complete := true
		for _, f := range s.files {
			content, err := os.ReadFile(filepath.Join(gen, f.name))
			complete = complete && err == nil && bytes.Equal(content, f.content)
		}
		if complete {
			return s
		}
	}
	d.t.Errorf("%s: neither the old set nor the new one is complete", when)
	return nil
}

// What cannot be loaded after the switch is taken back.
func TestSelfTestFails(t *testing.T) {
	ca := newCA(t, "ca", nil)
	first, firstBundles := mustSet(t, ca.clientSecret(t, "first"), []byte(certPEM(ca.cert)))
	next, nextBundles := mustSet(t, ca.clientSecret(t, "second"))
	for name, sabotage := range map[string]func(dir string) error{
		"file changed": func(dir string) error {
			return replaceFile(filepath.Join(dir, "..data", "client.key"), []byte(keyPEM(t, ca.key)))
		},
		"file removed": func(dir string) error { return os.Remove(filepath.Join(dir, "..data", "ca.crt")) },
		"link moved": func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "client.crt")), os.Symlink("..prev/client.crt", filepath.Join(dir, "client.crt")))
		},
		"directory replaced": func(dir string) error { return errors.Join(os.Rename(dir, dir+"-old"), os.Mkdir(dir, 0o755)) },
	} {
		for _, later := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/later=%v", name, later), func(t *testing.T) {
				if name == "link moved" && !later {
					t.Skip("there is nothing to move it to")
				}
				d := newDirectory(t)
				if later {
					d.mustPublish(first, firstBundles)
				}
				d.testOnlyBefore = func(step string) error {
					if step == "load what was published" {
						sim.Soften(d.path)
						return sabotageOnce(sabotage(d.path))
					}
					return nil
				}
				_, err := d.publish(next, nextBundles)
				if !errors.Is(err, errRolledBack) {
					t.Fatalf("error %v, want that it went back", err)
				}
				if name == "directory replaced" {
					d.path += "-old"
				}
				d.testOnlyBefore = nil
				if later {
					d.holds(first)
				} else if files := d.read(); len(files) != 0 {
					t.Errorf("published: %v", files)
				}
				d.mustPublish(next, nextBundles)
				d.holds(next)
			})
		}
	}
}

// sabotageOnce lets a hook report its own failure without looking like a crash.
func sabotageOnce(err error) error {
	if err != nil {
		return fmt.Errorf("sabotage: %w", err)
	}
	return nil
}

// The disk is full at every possible moment. The old set stays, and nothing half-made.
func TestDiskFull(t *testing.T) {
	ca := newCA(t, "ca", nil)
	first, firstBundles := mustSet(t, ca.clientSecret(t, "first"))
	next, nextBundles := mustSet(t, ca.clientSecret(t, "second"), []byte(certPEM(ca.cert)))
	failed := 0
	for _, limit := range []string{"nr_inodes=%d", "nr_blocks=%d"} {
		for n := 10; ; n++ {
			d := newDirectory(t)
			if err := os.Mkdir(d.path, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Mount("tmpfs", d.path, "tmpfs", 0, fmt.Sprintf(limit, n)); err != nil {
				t.Skipf("needs to mount a small tmpfs: %v", err)
			}
			t.Cleanup(func() { syscall.Unmount(d.path, syscall.MNT_DETACH) })
			if _, err := d.publish(first, firstBundles); err != nil {
				continue // not even room for that
			}
			before := d.list()
			_, err := d.publish(next, nextBundles)
			if err == nil {
				d.holds(next)
				break
			}
			failed++
			if !errors.Is(err, syscall.ENOSPC) {
				t.Errorf(limit+": error %v, want no space", n, err)
			}
			d.holds(first)
			after := slices.DeleteFunc(d.list(), func(s string) bool { return s == prevLink })
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf(limit+": directory after the failure (-before +after):\n%s", n, diff)
			}
			if g, err := d.recover(); g == nil || err != nil {
				t.Errorf(limit+": next start: %v", n, err)
			}
		}
	}
	if failed < 8 {
		t.Errorf("only %d limits made the publication fail", failed)
	}
}

func TestReadOnlyFileSystem(t *testing.T) {
	ca := newCA(t, "ca", nil)
	s, bundles := mustSet(t, ca.clientSecret(t, "node"))
	d := newDirectory(t)
	d.mustPublish(s, bundles)
	if err := syscall.Mount(d.path, d.path, "", syscall.MS_BIND, ""); err != nil {
		t.Skipf("needs to mount: %v", err)
	}
	defer syscall.Unmount(d.path, syscall.MNT_DETACH)
	if err := syscall.Mount("", d.path, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Skipf("needs to remount: %v", err)
	}
	next, nextBundles := mustSet(t, ca.clientSecret(t, "second"))
	if _, err := d.publish(next, nextBundles); !errors.Is(err, syscall.EROFS) {
		t.Errorf("error %v, want read-only file system", err)
	}
	d.holds(s)
}

func TestOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to give files away")
	}
	ca := newCA(t, "ca", nil)
	s, bundles := mustSet(t, ca.clientSecret(t, "node"))
	d := newDirectory(t)
	if _, err := d.publisher.publish(s, bundles, nil, access{Owner{1234, 5678}, 0o400, 0o404}, nil, time.Now()); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]uint32{"client.key": 0o400, "client.pem": 0o400, "client.crt": 0o404, manifestFile: 0o404} {
		if st := stat(t, filepath.Join(d.path, name)); st.Uid != 1234 || st.Gid != 5678 || st.Mode&0o777 != mode {
			t.Errorf("%s is %d:%d %o, want 1234:5678 %o", name, st.Uid, st.Gid, st.Mode&0o777, mode)
		}
	}
	if g, err := d.recover(); err != nil || g.access.owner != (Owner{1234, 5678}) {
		t.Errorf("recovered %v", err)
	}
}

// Private keys go to memory, and nowhere else unless told to.
func TestOnlyTmpfs(t *testing.T) {
	ca := newCA(t, "ca", nil)
	s, bundles := mustSet(t, ca.clientSecret(t, "node"))

	disk := newDirectory(t)
	disk.path, disk.allowDisk = filepath.Join(t.TempDir(), "mtls"), false
	for _, made := range []bool{false, true} {
		if made {
			if err := os.Mkdir(disk.path, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := disk.publish(s, bundles); err == nil {
			t.Skip("the test's own directory is on a tmpfs")
		} else if !strings.Contains(err.Error(), "is not on a tmpfs") {
			t.Errorf("error %q, want one that says why", err)
		}
		if _, err := os.Stat(disk.path); !made && err == nil {
			t.Error("the directory was made all the same")
		}
	}
	if names := disk.list(); len(names) != 0 {
		t.Errorf("written to disk: %v", names)
	}
	for _, name := range []string{"a.pem", "b.pem"} { // a mount would have hidden them
		if err := os.WriteFile(filepath.Join(disk.path, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := disk.publish(s, bundles); err == nil || !strings.Contains(err.Error(), "that it has, a.pem and 1 more: move them away") {
		t.Errorf("error %v, want one that says what is in the way", err)
	}

	memory := newDirectory(t)
	memory.allowDisk = false
	dir := memoryDir(t)
	if err := checkFileSystem(dir, false); err != nil {
		t.Skipf("no tmpfs at /dev/shm: %v", err)
	}
	memory.path = filepath.Join(dir, "etc", "mtls")
	memory.mustPublish(s, bundles)
	memory.holds(s)
}

// What is in the way of a link is replaced if nobody can miss it.
func TestLinksMakeRoom(t *testing.T) {
	ca := newCA(t, "ca", nil)
	s, bundles := mustSet(t, ca.clientSecret(t, "node"))
	d := newDirectory(t)
	make := func(name string, err error) {
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	at := func(name string) string { return filepath.Join(d.path, name) }
	make("the directory", os.MkdirAll(at("client.crt"), 0o755)) // as Docker does for a bind of a missing file
	make("an older agent's file", os.WriteFile(at("client.key"), []byte("x"), 0o644))
	make("a link to elsewhere", os.Symlink("/etc/hostname", at("ca.crt")))
	make("a user's own file", os.WriteFile(at("README"), []byte("mine"), 0o644))
	d.mustPublish(s, bundles)
	if got, err := os.ReadFile(at("README")); err != nil || string(got) != "mine" {
		t.Errorf("a file that is not ours was touched: %q, %v", got, err)
	}
	make("remove it", os.Remove(at("README")))
	d.holds(s)

	// Where a link of ours has been, a directory with something in it was put by someone else: it goes out of the way.
	make("a directory with something in it", errors.Join(os.Remove(at("client.pem")), os.MkdirAll(at("client.pem/x"), 0o755)))
	make("one at a temporary name", os.MkdirAll(at(tmpName(dataLink)+"/x"), 0o755))
	d.mustPublish(s, bundles)
	d.holds(s)
	if aside, err := filepath.Glob(at(asidePrefix + "client.pem-*/x")); err != nil || len(aside) != 1 {
		t.Errorf("what was in the way: %v, %v; want that it is kept", aside, err)
	}
}

// A directory that was not ours may be somebody's: one with something in it is in the way, and nothing is done.
func TestLinksFindNoRoom(t *testing.T) {
	ca := newCA(t, "ca", nil)
	s, bundles := mustSet(t, ca.clientSecret(t, "node"))
	d := newDirectory(t)
	if err := os.MkdirAll(filepath.Join(d.path, "client.pem/x"), 0o755); err != nil {
		t.Fatal(err)
	}
	before := d.list()
	if _, err := d.publish(s, bundles); err == nil || !strings.Contains(err.Error(), "client.pem") {
		t.Errorf("error %v, want one that names client.pem", err)
	}
	if diff := cmp.Diff(before, d.list()); diff != "" {
		t.Errorf("directory (-before +after):\n%s", diff)
	}
}

// A generation that readers have been using is the previous one, wherever ..data leads by now.
func TestPreviousIsWhatReadersUsed(t *testing.T) {
	ca := newCA(t, "ca", nil)
	d := newDirectory(t)
	first, bundles := mustSet(t, ca.clientSecret(t, "first"))
	g := d.mustPublish(first, bundles)
	if err := os.Remove(filepath.Join(d.path, dataLink)); err != nil {
		t.Fatal(err)
	}
	next, bundles := mustSet(t, ca.clientSecret(t, "second"))
	if _, err := d.publisher.publish(next, bundles, nil, ours, g, time.Now()); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.Readlink(filepath.Join(d.path, prevLink)); got != g.name() {
		t.Errorf("%s leads to %q, want %s", prevLink, got, g.name())
	}
}

// A publication that fails leaves ..prev where it was, and the current generation as protected as it was.
func TestFailureRestores(t *testing.T) {
	ca := newCA(t, "ca", nil)
	for _, failing := range []string{"switch ..data", "flush the switch", "load what was published"} {
		d := newDirectory(t)
		var generations []*generation
		for _, name := range []string{"first", "second"} {
			s, bundles := mustSet(t, ca.clientSecret(t, name))
			generations = append(generations, d.mustPublish(s, bundles))
		}
		s, bundles := mustSet(t, ca.clientSecret(t, "third"))
		d.testOnlyFail = func(step string) error {
			if step == failing {
				return errTest
			}
			return nil
		}
		if _, err := d.publish(s, bundles); !errors.Is(err, errTest) {
			t.Fatalf("%s: %v", failing, err)
		}
		d.testOnlyFail = nil
		if got, _ := os.Readlink(filepath.Join(d.path, prevLink)); got != generations[0].name() {
			t.Errorf("%s: %s leads to %q, want %s", failing, prevLink, got, generations[0].name())
		}
		if got, _ := os.Readlink(filepath.Join(d.path, dataLink)); got != generations[1].name() {
			t.Errorf("%s: %s leads to %q, want %s", failing, dataLink, got, generations[1].name())
		}
		key := filepath.Join(d.path, "client.key")
		if err := os.Chmod(key, 0o400); generations[1].immutable && err == nil {
			t.Errorf("%s: the current generation is not immutable any more", failing)
		}
	}
}

// Links that a crash has left half-made do not get in the way, even before the next start (they do with Kubernetes'
// AtomicWriter).
func TestStaleTemporaryLinks(t *testing.T) {
	ca := newCA(t, "ca", nil)
	s, bundles := mustSet(t, ca.clientSecret(t, "node"))
	d := newDirectory(t)
	d.mustPublish(s, bundles)
	for _, name := range []string{dataLink, prevLink, "client.crt"} {
		if err := os.Symlink("nowhere", filepath.Join(d.path, tmpName(name))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(d.path, "client.crt")); err != nil {
		t.Fatal(err)
	}
	d.mustPublish(s, bundles)
	d.holds(s)
}

// A container that may write here cannot lead the agent to write elsewhere.
func TestPlantedLinks(t *testing.T) {
	ca := newCA(t, "ca", nil)
	s, bundles := mustSet(t, ca.clientSecret(t, "node"))
	d := newDirectory(t)
	outside := t.TempDir()
	d.testOnlyBefore = func(step string) error {
		if name, ok := strings.CutPrefix(step, "seal "); ok {
			return errors.Join(os.Rename(filepath.Join(d.path, name), filepath.Join(d.path, "aside")), os.Symlink(outside, filepath.Join(d.path, name)))
		}
		return nil
	}
	if _, err := d.publish(s, bundles); err == nil {
		t.Error("a generation that is a link was published")
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 0 {
		t.Errorf("written outside: %v, %v", entries, err)
	}
}

func stat(t testing.TB, path string) *syscall.Stat_t {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Sys().(*syscall.Stat_t)
}

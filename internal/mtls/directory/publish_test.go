package directory

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
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

	"sevagent/internal/mtls/certset"
	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/must"
	"sevagent/internal/sim"
)

// published is a published directory under test.
type published struct {
	*Directory
	t        testing.TB
	evidence []byte
}

func newDirectory(t testing.TB) *published {
	return newDirectoryIn(t, mtlstest.MemoryDir(t))
}

func newDirectoryIn(t testing.TB, dir string) *published {
	return &published{&Directory{path: filepath.Join(dir, "mtls"), allowDisk: true, log: mtlstest.Log(t)}, t, nil}
}

// ours are settings that need no privileges.
var ours = Access{Owner{os.Getuid(), os.Getgid()}, 0o440, 0o444}

func (d *published) publish(s *certset.Set) (*Generation, error) {
	return d.Directory.publish(s, d.evidence, ours, time.Now())
}

func (d *published) mustPublish(s *certset.Set) *Generation {
	d.t.Helper()
	d.current = must.Get(d.publish(s))(d.t, "publish")
	return d.current
}

// restore does what the next start does.
func (d *published) restore() (*Generation, error) {
	d.t.Helper()
	root := must.Get(d.open())(d.t, "open the directory")
	defer root.Close()
	return d.Directory.restore(root)
}

// mustSet assembles secrets named a, b, c … in version 1.
func mustSet(t testing.TB, secrets ...[]byte) *certset.Set {
	t.Helper()
	var bundles []*certset.Bundle
	for i, content := range secrets {
		b, err := certset.Parse(string(rune('a'+i)), "1", content, certset.Reading{})
		bundles = append(bundles, must.Get(b, err)(t, "parse a secret"))
	}
	return must.Get(certset.Assemble(bundles, nil, time.Now(), nil))(t, "assemble a set")
}

// read returns what a consumer reads, by the names of the links.
func (d *published) read() map[string]string {
	d.t.Helper()
	files := make(map[string]string)
	for _, name := range d.list() {
		if strings.HasPrefix(name, "..") {
			continue
		}
		files[name] = mtlstest.Read(d.t, filepath.Join(d.path, name))
	}
	return files
}

func (d *published) list() (names []string) {
	d.t.Helper()
	for _, e := range must.Get(os.ReadDir(d.path))(d.t, "list the directory") {
		names = append(names, e.Name())
	}
	return names
}

// holds fails the test unless consumers read exactly s.
func (d *published) holds(s *certset.Set) {
	d.t.Helper()
	if diff := cmp.Diff(contents(s), withoutManifest(d.read())); diff != "" {
		d.t.Errorf("published files (-want +got):\n%s", diff)
	}
}

func contents(s *certset.Set) map[string]string {
	files := make(map[string]string)
	for _, f := range s.Files {
		files[f.Name] = string(f.Content)
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
	ca := mtlstest.NewCA(t, "ca", nil)
	d := newDirectory(t)
	d.evidence = []byte("evidence")
	s := mustSet(t, ca.ClientSecret(t, "node"), []byte(mtlstest.KeyPEM(t, ca.Key)))
	g := d.mustPublish(s)
	d.holds(s)

	files := []string{"ca.crt", "cert-1.pem", "client.crt", "client.key", "client.pem", evidenceFile, manifestFile}
	if diff := cmp.Diff(slices.Concat([]string{"..data", g.Name()}, files), d.list()); diff != "" {
		t.Errorf("directory (-want +got):\n%s", diff)
	}
	if got, _ := os.Readlink(filepath.Join(d.path, "..data")); got != g.Name() {
		t.Errorf("..data leads to %s, want the relative name %s", got, g.Name())
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
	for _, name := range []string{".", g.Name()} {
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
		t.Fatalf("the manifest does not decode: %v", err)
	}
	if m.Generation != g.Name() || !m.NotAfter.Equal(s.Leaves["client"].NotAfter) || len(m.Files) != 6 ||
		len(m.Secrets) != 2 {
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
	root := mtlstest.NewCA(t, "root", nil)
	lower := mtlstest.NewCA(t, "lower", root)
	cert, key := lower.Leaf(t, "node")
	d := newDirectory(t)
	s := mustSet(t, mtlstest.Fields{
		"client_cert": mtlstest.CertPEM(lower.Cert, cert), "client_key": mtlstest.KeyPEM(t, key),
		"server_cert": mtlstest.CertPEM(cert, lower.Cert), "server_key": mtlstest.KeyPEM(t, key),
		"ca_cert": mtlstest.CertPEM(root.Cert),
	}.JSON(t))
	d.mustPublish(s)
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
		got := run("x509", "-in", f, "-noout", "-subject", "-nameopt", "RFC2253")
		if strings.TrimSpace(got) != "subject=CN=node" {
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
	ca := mtlstest.NewCA(t, "ca", nil)
	d := newDirectory(t)
	pair := mustSet(t, ca.ClientSecret(t, "first"), []byte(mtlstest.CertPEM(ca.Cert)))
	first := d.mustPublish(pair)
	inode := mtlstest.Stat(t, d.path).Ino
	sim.ClearImmutable(d.path)
	monthAgo := time.Now().Add(-30 * 24 * time.Hour)
	must.Do(t, os.Chtimes(filepath.Join(d.path, first.Name()), monthAgo, monthAgo), "age the generation")

	// The way that certwatcher and others watch: the file, through the links.
	watcher, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	must.Do(t, err, "make a watcher")
	defer unix.Close(watcher)
	_, err = unix.InotifyAddWatch(watcher, filepath.Join(d.path, "client.crt"), unix.IN_ATTRIB)
	must.Do(t, err, "watch a file")

	next := mustSet(t, ca.ClientSecret(t, "second"))
	second := d.mustPublish(next)
	d.holds(next) // so cert-1.pem is gone

	if got, _ := os.Readlink(filepath.Join(d.path, "..prev")); got != first.Name() {
		t.Errorf("..prev leads to %s, want %s", got, first.Name())
	}
	old := filepath.Join(d.path, first.Name(), "client.crt")
	if got, err := os.ReadFile(old); err != nil || string(got) != contents(pair)["client.crt"] {
		t.Errorf("the previous generation is not there any more: %v", err)
	}
	if n, err := unix.Read(watcher, make([]byte, 4096)); err != nil || n < unix.SizeofInotifyEvent ||
		mtlstest.Stat(t, old).Mode&0o777 != 0o444 {
		t.Errorf("who watches the previous generation's file has not heard of the switch: %d, %v (mode %o)", n, err,
			mtlstest.Stat(t, old).Mode)
	}
	if mtlstest.Stat(t, d.path).Ino != inode {
		t.Error("the published directory was replaced")
	}

	third := d.mustPublish(next)
	d.holds(next)
	if third.Name() <= second.Name() {
		t.Errorf("generation %s comes after %s", third.Name(), second.Name())
	}
	// The time since it was replaced counts, however old it is. ..prev stays until the next rotation.
	root := must.Get(d.open())(t, "open the directory")
	defer root.Close()
	for _, c := range []struct {
		after time.Duration
		want  []string
	}{
		{grace - time.Minute, []string{first.Name(), second.Name(), third.Name()}},
		{grace + time.Minute, []string{second.Name(), third.Name()}},
	} {
		must.Do(t, collect(root, maxRetired, time.Now().Add(c.after)), "collect")
		got := slices.DeleteFunc(d.list(), func(name string) bool { return !strings.HasPrefix(name, genPrefix) })
		if !slices.Equal(got, c.want) {
			t.Errorf("%v later there are %v, want %v", c.after, got, c.want)
		}
	}
}

// Rotations that come too fast for the grace period do not fill the tmpfs.
func TestRetiredGenerationsAreBounded(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	d := newDirectory(t)
	s := mustSet(t, ca.ClientSecret(t, "node"))
	for range maxRetired + 20 {
		d.mustPublish(s)
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
	ca := mtlstest.NewCA(t, "ca", nil)
	d := newDirectory(t)
	if g, err := d.restore(); g != nil || !errors.Is(err, errEmpty) {
		t.Errorf("in an empty directory: %v, %v", g, err)
	}
	s := mustSet(t, ca.ClientSecret(t, "node"), []byte(mtlstest.KeyPEM(t, ca.Key)))
	want := d.mustPublish(s)
	names := d.list()

	g, err := d.restore()
	if err != nil {
		t.Fatalf("an untouched directory is not restored: %v", err)
	}
	if g.Name() != want.Name() || !g.manifest.describes(s, ours) ||
		!cmp.Equal(contents(g.Set), contents(s)) || g.Damaged {
		t.Errorf("recovered %s, want %s with the same files and modes", g.Name(), want.Name())
	}
	if diff := cmp.Diff(names, d.list()); diff != "" {
		t.Errorf("a restart changes the directory (-before +after):\n%s", diff)
	}
}

// What was changed while the agent was away is found at the next start.
func TestRestartFindsDamage(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	for name, c := range map[string]struct {
		damage func(dir, gen string) error
		intact bool // the content, so that it need not be fetched again
	}{
		"mode": {func(dir, gen string) error { return os.Chmod(filepath.Join(gen, "client.key"), 0o444) }, true},
		"link": {func(dir, gen string) error { return os.Remove(filepath.Join(dir, "client.crt")) }, true},
		"content": {func(dir, gen string) error {
			return replaceFile(filepath.Join(gen, "client.key"), []byte(mtlstest.KeyPEM(t, ca.Key)))
		}, false},
		"file missing":     {func(dir, gen string) error { return os.Remove(filepath.Join(gen, "client.pem")) }, false},
		"manifest missing": {func(dir, gen string) error { return os.Remove(filepath.Join(gen, manifestFile)) }, false},
		"manifest garbled": {func(dir, gen string) error {
			return replaceFile(filepath.Join(gen, manifestFile),
				[]byte("{"))
		}, false},
		"hard link": {func(dir, gen string) error {
			return os.Link(filepath.Join(gen, "client.key"), filepath.Join(filepath.Dir(dir), "copy"))
		}, false},
		"generation is a link": {func(dir, gen string) error {
			return errors.Join(os.Rename(gen, dir+"-elsewhere"), os.Symlink(dir+"-elsewhere", gen))
		}, false},
		"..data missing": {func(dir, gen string) error { return os.Remove(filepath.Join(dir, "..data")) }, false},
		"..data leads out": {func(dir, gen string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "..data")),
				os.Symlink("/etc", filepath.Join(dir, "..data")))
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDirectory(t)
			s := mustSet(t, ca.ClientSecret(t, "node"))
			g := d.mustPublish(s)
			sim.ClearImmutable(d.path)
			must.Do(t, c.damage(d.path, filepath.Join(d.path, g.Name())), "damage what is published")
			got, err := d.restore()
			if (got != nil) != c.intact {
				t.Fatalf("content found intact: %v, want %v (%v)", got != nil, c.intact, err)
			}
			if c.intact && name != "link" && (err == nil || !got.Damaged) {
				t.Errorf("nothing was noticed: %v", err)
			}
			d.mustPublish(s)
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
	ca := mtlstest.NewCA(t, "ca", nil)
	first := mustSet(t, ca.ClientSecret(t, "first"), []byte(mtlstest.CertPEM(ca.Cert)))
	next := mustSet(t, ca.ClientSecret(t, "second"))

	for _, later := range []bool{false, true} {
		setUp := func(t *testing.T) *published {
			d := newDirectory(t)
			if later {
				d.mustPublish(first)
			}
			return d
		}
		var steps []string
		d := setUp(t)
		d.testOnlyBefore = func(step string) error { steps = append(steps, step); return nil }
		d.mustPublish(next)
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
				if _, err := d.publish(next); err != killed {
					t.Fatalf("publish returned %v, want that it was killed", err)
				}
				d.testOnlyBefore = nil

				var old *certset.Set
				if later {
					old = first
				}
				d.holdsEither(old, next, "right after the kill")
				g, err := d.restore()
				if g == nil && !errors.Is(err, errEmpty) || g != nil && err != nil {
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
				d.mustPublish(next)
				d.holds(next)
			})
		}
	}
}

// holdsEither checks by reading through ..data, as a consumer does who follows the rule, and returns which set it is.
func (d *published) holdsEither(old, next *certset.Set, when string) *certset.Set {
	d.t.Helper()
	gen, err := filepath.EvalSymlinks(filepath.Join(d.path, "..data"))
	if err != nil {
		if old != nil || !errors.Is(err, fs.ErrNotExist) {
			d.t.Errorf("%s: %v", when, err)
		}
		return nil
	}
	for _, s := range []*certset.Set{old, next} {
		if s == nil {
			continue
		}
		complete := true
		for _, f := range s.Files {
			content, err := os.ReadFile(filepath.Join(gen, f.Name))
			complete = complete && err == nil && bytes.Equal(content, f.Content)
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
	ca := mtlstest.NewCA(t, "ca", nil)
	first := mustSet(t, ca.ClientSecret(t, "first"), []byte(mtlstest.CertPEM(ca.Cert)))
	next := mustSet(t, ca.ClientSecret(t, "second"))
	for name, sabotage := range map[string]func(dir string) error{
		"file changed": func(dir string) error {
			return replaceFile(filepath.Join(dir, "..data", "client.key"), []byte(mtlstest.KeyPEM(t, ca.Key)))
		},
		"file removed": func(dir string) error { return os.Remove(filepath.Join(dir, "..data", "ca.crt")) },
		"link moved": func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "client.crt")),
				os.Symlink("..prev/client.crt", filepath.Join(dir, "client.crt")))
		},
		"directory replaced": func(dir string) error {
			return errors.Join(os.Rename(dir, dir+"-old"), os.Mkdir(dir, 0o755))
		},
	} {
		for _, later := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/later=%v", name, later), func(t *testing.T) {
				if name == "link moved" && !later {
					t.Skip("there is nothing to move it to")
				}
				d := newDirectory(t)
				if later {
					d.mustPublish(first)
				}
				d.testOnlyBefore = func(step string) error {
					if step == "load what was published" {
						sim.ClearImmutable(d.path)
						return sabotageOnce(sabotage(d.path))
					}
					return nil
				}
				_, err := d.publish(next)
				if !errors.Is(err, ErrRolledBack) {
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
				d.mustPublish(next)
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
	ca := mtlstest.NewCA(t, "ca", nil)
	first := mustSet(t, ca.ClientSecret(t, "first"))
	next := mustSet(t, ca.ClientSecret(t, "second"), []byte(mtlstest.CertPEM(ca.Cert)))
	failed := 0
	for _, limit := range []string{"nr_inodes=%d", "nr_blocks=%d"} {
		for n := 10; ; n++ {
			d := newDirectory(t)
			must.Do(t, os.Mkdir(d.path, 0o755), "make the directory")
			if err := syscall.Mount("tmpfs", d.path, "tmpfs", 0, fmt.Sprintf(limit, n)); err != nil {
				t.Skipf("needs to mount a small tmpfs: %v", err)
			}
			t.Cleanup(func() { syscall.Unmount(d.path, syscall.MNT_DETACH) })
			if _, err := d.publish(first); err != nil {
				continue // not even room for that
			}
			before := d.list()
			_, err := d.publish(next)
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
			if g, err := d.restore(); g == nil || err != nil {
				t.Errorf(limit+": next start: %v", n, err)
			}
		}
	}
	if failed < 8 {
		t.Errorf("only %d limits made the publication fail", failed)
	}
}

func TestOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to give files away")
	}
	ca := mtlstest.NewCA(t, "ca", nil)
	s := mustSet(t, ca.ClientSecret(t, "node"))
	d := newDirectory(t)
	if _, err := d.Directory.publish(s, nil, Access{Owner{1234, 5678}, 0o400, 0o404}, time.Now()); err != nil {
		t.Fatalf("publish for another owner: %v", err)
	}
	for name, mode := range map[string]uint32{"client.key": 0o400, "client.pem": 0o400, "client.crt": 0o404,
		manifestFile: 0o404} {
		if st := mtlstest.Stat(t, filepath.Join(d.path, name)); st.Uid != 1234 ||
			st.Gid != 5678 || st.Mode&0o777 != mode {
			t.Errorf("%s is %d:%d %o, want 1234:5678 %o", name, st.Uid, st.Gid, st.Mode&0o777, mode)
		}
	}
	if g, err := d.restore(); err != nil || g.access.Owner != (Owner{1234, 5678}) {
		t.Errorf("recovered %v", err)
	}
}

// Private keys go to memory, and nowhere else unless told to.
func TestOnlyTmpfs(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	s := mustSet(t, ca.ClientSecret(t, "node"))

	disk := newDirectory(t)
	disk.path, disk.allowDisk = filepath.Join(t.TempDir(), "mtls"), false
	for _, made := range []bool{false, true} {
		if made {
			must.Do(t, os.Mkdir(disk.path, 0o755), "make the directory")
		}
		if _, err := disk.publish(s); err == nil {
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
		must.Do(t, os.WriteFile(filepath.Join(disk.path, name), nil, 0o600), "write a file")
	}
	if _, err := disk.publish(s); err == nil || !strings.Contains(err.Error(),
		"that it has, a.pem and 1 more: move them away") {
		t.Errorf("error %v, want one that says what is in the way", err)
	}

	memory := newDirectory(t)
	memory.allowDisk = false
	dir := mtlstest.MemoryDir(t)
	if err := checkFileSystem(dir, false); err != nil {
		t.Skipf("no tmpfs at /dev/shm: %v", err)
	}
	memory.path = filepath.Join(dir, "etc", "mtls")
	memory.mustPublish(s)
	memory.holds(s)
}

// What is in the way of a link is replaced if nobody can miss it.
func TestLinksMakeRoom(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	s := mustSet(t, ca.ClientSecret(t, "node"))
	d := newDirectory(t)
	make := func(what string, err error) { must.Do(t, err, "%s", what) }
	at := func(name string) string { return filepath.Join(d.path, name) }
	make("the directory", os.MkdirAll(at("client.crt"), 0o755)) // as Docker does for a bind of a missing file
	make("an older agent's file", os.WriteFile(at("client.key"), []byte("x"), 0o644))
	make("a link to elsewhere", os.Symlink("/etc/hostname", at("ca.crt")))
	make("a user's own file", os.WriteFile(at("README"), []byte("mine"), 0o644))
	d.mustPublish(s)
	if got, err := os.ReadFile(at("README")); err != nil || string(got) != "mine" {
		t.Errorf("a file that is not ours was touched: %q, %v", got, err)
	}
	make("remove it", os.Remove(at("README")))
	d.holds(s)

	// Where a link of ours has been, a directory with something in it was put by someone else: it goes out of the way.
	make("a directory with something in it", errors.Join(os.Remove(at("client.pem")),
		os.MkdirAll(at("client.pem/x"), 0o755)))
	// Nor do links get in the way that a crash has left half-made (they do with Kubernetes' AtomicWriter).
	make("one at a temporary name", os.MkdirAll(at(tmpName(dataLink)+"/x"), 0o755))
	make("temporary links", errors.Join(os.Symlink("nowhere", at(tmpName(prevLink))),
		os.Symlink("nowhere", at(tmpName("client.pem")))))
	d.mustPublish(s)
	d.holds(s)
	if aside, err := filepath.Glob(at(asidePrefix + "client.pem-*/x")); err != nil || len(aside) != 1 {
		t.Errorf("what was in the way: %v, %v; want that it is kept", aside, err)
	}
}

// A directory that was not ours may be somebody's: one with something in it is in the way, and nothing is done.
func TestLinksFindNoRoom(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	s := mustSet(t, ca.ClientSecret(t, "node"))
	d := newDirectory(t)
	must.Do(t, os.MkdirAll(filepath.Join(d.path, "client.pem/x"), 0o755), "put something in the way")
	before := d.list()
	if _, err := d.publish(s); err == nil || !strings.Contains(err.Error(), "client.pem") {
		t.Errorf("error %v, want one that names client.pem", err)
	}
	if diff := cmp.Diff(before, d.list()); diff != "" {
		t.Errorf("directory (-before +after):\n%s", diff)
	}
}

var errTest = errors.New("told to fail")

// A publication that fails leaves ..prev where it was, and the current generation as protected as it was.
func TestFailureRestores(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	for _, failing := range []string{"switch ..data", "flush the switch", "load what was published"} {
		d := newDirectory(t)
		var generations []*Generation
		for _, name := range []string{"first", "second"} {
			s := mustSet(t, ca.ClientSecret(t, name))
			generations = append(generations, d.mustPublish(s))
		}
		s := mustSet(t, ca.ClientSecret(t, "third"))
		d.testOnlyFail = func(step string) error {
			if step == failing {
				return errTest
			}
			return nil
		}
		if _, err := d.publish(s); !errors.Is(err, errTest) {
			t.Fatalf("%s: %v", failing, err)
		}
		d.testOnlyFail = nil
		if got, _ := os.Readlink(filepath.Join(d.path, prevLink)); got != generations[0].Name() {
			t.Errorf("%s: %s leads to %q, want %s", failing, prevLink, got, generations[0].Name())
		}
		if got, _ := os.Readlink(filepath.Join(d.path, dataLink)); got != generations[1].Name() {
			t.Errorf("%s: %s leads to %q, want %s", failing, dataLink, got, generations[1].Name())
		}
		key := filepath.Join(d.path, "client.key")
		if err := os.Chmod(key, 0o400); generations[1].Immutable && err == nil {
			t.Errorf("%s: the current generation is not immutable any more", failing)
		}
	}
}

// A container that may write here cannot lead the agent to write elsewhere.
func TestPlantedLinks(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	s := mustSet(t, ca.ClientSecret(t, "node"))
	d := newDirectory(t)
	outside := t.TempDir()
	d.testOnlyBefore = func(step string) error {
		if name, ok := strings.CutPrefix(step, "seal "); ok {
			return errors.Join(os.Rename(filepath.Join(d.path, name), filepath.Join(d.path, "aside")),
				os.Symlink(outside, filepath.Join(d.path, name)))
		}
		return nil
	}
	if _, err := d.publish(s); err == nil {
		t.Error("a generation that is a link was published")
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 0 {
		t.Errorf("written outside: %v, %v", entries, err)
	}
}

// Whatever is in the place of the current generation, of its links and of ..prev, the next publication goes through.
func TestPublishOverRubble(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	for name, damage := range map[string]func(dir, gen string) error{
		"file for the generation": func(dir, gen string) error {
			return errors.Join(os.RemoveAll(gen), os.WriteFile(gen, nil, 0o644))
		},
		"link for the generation": func(dir, gen string) error {
			return errors.Join(os.RemoveAll(gen),
				os.Symlink("/etc", gen))
		},
		"no generation, and a directory for a link": func(dir, gen string) error {
			link := filepath.Join(dir, "client.crt")
			return errors.Join(os.RemoveAll(gen), os.Remove(link), os.MkdirAll(filepath.Join(link, "x"), 0o755))
		},
		"no ..data": func(dir, gen string) error { return os.Remove(filepath.Join(dir, dataLink)) },
		"directory for ..prev": func(dir, gen string) error {
			return os.MkdirAll(filepath.Join(dir, prevLink, "x"), 0o755)
		},
		"directory for ..data": func(dir, gen string) error {
			data := filepath.Join(dir, dataLink)
			return errors.Join(os.Remove(data), os.MkdirAll(filepath.Join(data, "x"), 0o755))
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDirectory(t)
			first := mustSet(t, ca.ClientSecret(t, "first"))
			g := d.mustPublish(first)
			sim.ClearImmutable(d.path)
			must.Do(t, damage(d.path, filepath.Join(d.path, g.Name())), "damage what is published")
			next := mustSet(t, ca.ClientSecret(t, "second"))
			d.mustPublish(next)
			d.holds(next)
			// What readers have been using is the previous generation, wherever ..data led.
			if got, _ := os.Readlink(filepath.Join(d.path, prevLink)); name == "no ..data" && got != g.Name() {
				t.Errorf("%s leads to %q, want %s", prevLink, got, g.Name())
			}
		})
	}
}

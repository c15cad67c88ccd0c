//go:build node

package docker

import (
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sevagent/client"
	"sevagent/test/lab"
)

// The parts that run in containers.

// tamper tries whatever changes a file system on the two directories that containers mount, and returns each attempt.
func tamper() ([]attempt, error) {
	var list attempts
	var paths []string
	socketDir := filepath.Dir(client.DefaultSocket)
	for _, dir := range []string{lab.Published, socketDir} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && path != dir {
				paths = append(paths, path)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		evil := filepath.Join(dir, "evil")
		list.try("create "+evil, open(evil, os.O_WRONLY|os.O_CREATE))
		list.try("mkdir "+evil, os.Mkdir(evil, 0o755))
		list.try("symlink "+evil, os.Symlink("/", evil))
		list.try("make a FIFO "+evil, unix.Mkfifo(evil, 0o666))
		list.try("make a socket "+evil, unix.Mknod(evil, unix.S_IFSOCK|0o666, 0))
		list.try("make a device "+evil, unix.Mknod(evil, unix.S_IFCHR|0o666, 1<<8|3))
		list.try("bind a socket "+evil, bind(evil))
		list.try("chmod "+dir, os.Chmod(dir, 0o777))
		list.try("chown "+dir, os.Chown(dir, 1000, 1000))
		list.try("setxattr "+dir, unix.Setxattr(dir, "user.evil", []byte("1"), 0))
	}
	for _, path := range paths {
		fi, err := os.Lstat(path)
		if err != nil {
			return nil, err
		}
		aside := filepath.Join(filepath.Dir(path), "aside")
		list.try("remove "+path, unix.Unlinkat(unix.AT_FDCWD, path, map[bool]int{true: unix.AT_REMOVEDIR}[fi.IsDir()]))
		list.try("rename "+path, unix.Rename(path, aside))
		list.try("lchown "+path, os.Lchown(path, 1000, 1000))
		list.try("touch "+path, unix.Lutimes(path, make([]unix.Timeval, 2)))
		if !fi.IsDir() {
			list.try("link "+path, os.Link(path, aside))
		}
		if fi.Mode()&fs.ModeSymlink != 0 {
			list.try("point elsewhere "+path, unix.Symlinkat("/", unix.AT_FDCWD, aside))
			continue
		}
		list.try("chmod "+path, os.Chmod(path, 0o777))
		list.try("setxattr "+path, unix.Setxattr(path, "user.evil", []byte("1"), 0))
		if !fi.Mode().IsRegular() {
			continue
		}
		list.try("truncate "+path, unix.Truncate(path, 0))
		list.try("open and truncate "+path, open(path, os.O_WRONLY|os.O_TRUNC))
		list.try("write "+path, open(path, os.O_WRONLY))
		list.try("append to "+path, open(path, os.O_WRONLY|os.O_APPEND))
	}
	for _, dir := range []string{lab.Published, socketDir} {
		list.try("remount "+dir, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND, ""))
		list.try("unmount "+dir, unix.Unmount(dir, unix.MNT_DETACH))
		list.try("mount over "+dir, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	}
	return list, nil
}

// bind makes a socket.
func bind(path string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Bind(fd, &unix.SockaddrUnix{Name: path})
}

// readAll reads every file in the published directory that a path leads to, of every generation, and returns each
// attempt.
func readAll() (list attempts, err error) {
	err = filepath.WalkDir(lab.Published, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasPrefix(d.Name(), "..") {
			return err
		}
		_, err = os.ReadFile(path)
		list.try(path, err)
		return nil
	})
	return list, err
}

// escape looks for files of the node's own set from a mount of a consumer's directory: by paths, and by handles, for
// which no path is needed.
func escape(names []string) (list attempts, err error) {
	generation, err := os.Readlink(filepath.Join(lab.Published, "..data"))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		for _, path := range []string{name, "../" + name, "../../" + name, "..data/" + name, "..data/../" + name,
			"..data/../../" + name,
			"..data/../../..data/" + name, "..prev/" + name, generation + "/" + name, generation + "/../../" + name} {
			_, err := os.ReadFile(lab.Published + "/" + path) // Join would resolve the dots
			list.try("read "+path, err)
		}
	}
	dir, err := os.Open(lab.Published)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, lab.Published, 0)
	if err == nil {
		var fd int
		if fd, err = unix.OpenByHandleAt(int(dir.Fd()), handle, unix.O_RDONLY); err == nil {
			unix.Close(fd)
		}
	}
	list.try("open by handle", err)
	return list, nil
}

// TestReadOnly: by mounts that are read-only nobody in a container changes anything, root or not, and the socket can be
// used all the same, though not for a refresh.
func TestReadOnly(t *testing.T) {
	a := startAttesting(t, "rate: 50, burst: 64",
		`consumers: [{name: web, owner: "1000:1000", files: [client.pem, ca.crt]}]`)
	a.rotate() // for ..prev
	before := a.status().MTLS
	for _, user := range []string{"0:0", "1000:1000"} {
		c := startContainer(t, image, append([]string{"--user=" + user}, withAll...)...)
		attempts := c.ask("tamper").Attempts
		denied := 0
		for _, x := range attempts {
			verb, _, _ := strings.Cut(x.What, " ")
			switch {
			case strings.HasSuffix(x.Err, unix.EROFS.Error()):
			// The kernel asks for the right to write to the file, and whether it is immutable, before the mount.
			case (verb == "write" || verb == "append" || verb == "truncate") &&
				(strings.HasSuffix(x.Err, unix.EACCES.Error()) || strings.HasSuffix(x.Err, unix.EPERM.Error())):
				denied++
			case (verb == "remount" || verb == "unmount" || verb == "mount" ||
				strings.HasPrefix(x.What, "make a device")) && strings.HasSuffix(x.Err, unix.EPERM.Error()):
				denied++
			default:
				t.Errorf("uid:gid %s of a container: attempt to %s: %q, want %v", user, x.What, x.Err, unix.EROFS)
			}
		}
		t.Logf("%s: %d attempts, of which %d were denied before it mattered that the mount is read-only", user,
			len(attempts), denied)
		if len(attempts) < 200 {
			t.Errorf("%d attempts are too few", len(attempts))
		}
		nonce := newNonce()
		r := c.ask("evidence " + nonce)
		if r.Refused != nil {
			t.Fatalf("%s: evidence is refused: %+v", user, *r.Refused)
		}
		if _, err := verify(t, r.Text, nonce); err != nil {
			t.Errorf("%s: verify the evidence: %v", user, err)
		}
		want := refusal{Status: http.StatusForbidden, Code: "forbidden"}
		if got := c.ask("refresh").Refused; got == nil || *got != want {
			t.Errorf("%s: refresh is answered with %+v, want %+v", user, got, want)
		}
	}
	after := a.status().MTLS
	if after.Generation != before.Generation || after.Guard.Repairs != 0 || len(after.Guard.Findings) != 0 {
		t.Errorf("generation %s has become %s, and the guard is %+v", before.Generation, after.Generation, after.Guard)
	}
}

// TestOwner: keys are for their owner alone, certificates for everyone.
func TestOwner(t *testing.T) {
	a := startAgent(t, `owner: "101:101", key_mode: "0440"`)
	a.rotate() // for ..prev
	for _, x := range []struct {
		user   string
		secret bool // it may read keys
	}{
		{"101:101", true}, {"1000:101", true}, {"1000:1000", false},
	} {
		c := startContainer(t, image, "--user="+x.user, whole)
		seen := make(map[string]bool)
		for _, r := range c.ask("read-all").Attempts {
			seen[filepath.Base(r.What)] = true
			key := strings.HasSuffix(r.What, ".key") || strings.HasSuffix(r.What, ".pem")
			if want := !key || x.secret; (r.Err == "") != want || r.Err != "" &&
				!strings.HasSuffix(r.Err, unix.EACCES.Error()) {
				t.Errorf("%s reads %s: %q, want it to succeed: %v", x.user, r.What, r.Err, want)
			}
		}
		for _, name := range []string{"client.crt", "client.key", "client.pem", "ca.crt", "manifest.json"} {
			if !seen[name] {
				t.Errorf("%s does not see %s at all", x.user, name)
			}
		}
	}
}

// TestConsumer: a container that mounts a consumer's directory has the consumer's files, sees their rotations, and does
// not get at anything else, not even as root.
func TestConsumer(t *testing.T) {
	a := startAgent(t, `consumers: [{name: web, owner: "101:101", files: [client.pem, ca.crt]},`+
		` {name: other, owner: "102:102", files: [ca.crt]}]`)
	for _, user := range []string{"0:0", "101:101", "102:102"} {
		c := startContainer(t, image, "--user="+user, readOnly(lab.Published+"/web", lab.Published))
		for range 2 {
			names := c.ask("list " + lab.Published).Names
			names = slices.DeleteFunc(names, func(name string) bool { return strings.HasPrefix(name, "..") })
			if want := []string{"ca.crt", "client.pem", "manifest.json"}; !slices.Equal(names, want) {
				t.Errorf("%s sees %q, want %q", user, names, want)
			}
			for _, r := range c.ask("read-all").Attempts {
				if want := user != "102:102" || !strings.HasSuffix(r.What, ".pem"); (r.Err == "") != want {
					t.Errorf("%s reads %s: %q, want it to succeed: %v", user, r.What, r.Err, want)
				}
			}
			for _, r := range c.ask("escape client.key client.crt other/ca.crt web/ca.crt").Attempts {
				want := error(unix.ENOENT)
				if r.What == "open by handle" {
					want = unix.EPERM
				}
				if !strings.HasSuffix(r.Err, want.Error()) {
					t.Errorf("%s's attempt to %s: %q, want %v", user, r.What, r.Err, want)
				}
			}
			old := c.ask("cat " + lab.Published + "/ca.crt").Text
			a.rotate()
			if c.ask("cat "+lab.Published+"/ca.crt").Text == old {
				t.Errorf("%s does not see a rotation", user)
			}
		}
	}
}

// TestRecipes: the recipes of docs/reading-certificates.md for containers that are not root let exactly those read keys
// that they are for. A container has no /etc/passwd that knows its user, as many have: a bare user ID gets group 0.
func TestRecipes(t *testing.T) {
	type reader struct {
		user, dir string // below the published one; empty: that itself
		keys      bool   // it may read them
	}
	for recipe, readers := range map[string][]reader{
		"": { // the default
			{"0", "", true}, {"1000", "", false}, {"1000:1000", "", false},
		},
		"bare-user": {
			{"1000", "api", true}, {"1000:1000", "api", true}, {"1001", "api", false}, {"1000", "", false},
		},
		"credential-bundle": {
			{"1000", "api", true}, {"1001", "api", false},
		},
		"group": {
			{"1001:5000", "", true}, {"1002:5000", "", true}, {"1001", "", false}, {"5000", "", false},
		},
		"separate": {
			{"1001", "orders", true}, {"1002", "billing", true}, {"1001", "billing", false}, {"1002", "orders", false},
			{"1001", "", false},
		},
	} {
		t.Run(recipe, func(t *testing.T) {
			if recipe != "" {
				file := filepath.Join(lab.ConfigDir, "conf.d/60-recipe.yaml")
				lab.Write(t, file, lab.Recipes(t)[recipe])
				defer os.Remove(file)
			}
			a := startAgent(t, "")
			for _, r := range readers {
				mounted := readOnly(filepath.Join(lab.Published, r.dir), lab.Published)
				c := startContainer(t, image, "--user="+r.user, mounted)
				for range 2 {
					c.readsKeys(r.keys)
					a.rotate()
				}
			}
		})
	}
}

// readsKeys checks whether a container can read the keys at the top of what it mounts, and everything else there.
func (c *container) readsKeys(want bool) {
	c.t.Helper()
	keys := 0
	for _, r := range c.ask("read-all").Attempts {
		if name, _ := filepath.Rel(lab.Published, r.What); strings.Contains(name, "/") {
			continue // a consumer's
		}
		isKey := strings.HasSuffix(r.What, ".key") || strings.HasSuffix(r.What, ".pem")
		if isKey {
			keys++
		}
		if want := !isKey || want; (r.Err == "") != want ||
			r.Err != "" && !strings.HasSuffix(r.Err, unix.EACCES.Error()) {
			c.t.Errorf("%s reads %s: %q, want it to succeed: %v", c.name, r.What, r.Err, want)
		}
	}
	if keys == 0 {
		c.t.Errorf("%s sees no key at all", c.name)
	}
}

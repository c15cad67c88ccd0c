package readers

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"sevagent/client"
	"sevagent/internal/must"
	"sevagent/internal/promtext"
	"sevagent/internal/promtext/promtexttest"
)

const (
	idA   = "4f3b1c0d9e8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c"
	idB   = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00"
	taskA = "e95a40efbde84cbc8600660a109ec194"
	gen1  = "..gen-20261124T024112.000000Z-3f9c1a2b"
	gen2  = "..gen-20261201T024112.000000Z-00aa11bb"
)

func inTask(id string) string {
	return "0::/ecstasks.slice/ecstasks-" + taskA + ".slice/docker-" + id + ".scope\n"
}

// line is one of mountinfo. Fields after the fifth vary in number.
func line(device, root, point string) string {
	return fmt.Sprintf("1530 1520 %s %s %s ro,relatime master:7 - tmpfs tmpfs rw,size=16384k\n", device, root, point)
}

func TestPinned(t *testing.T) {
	for _, c := range []struct {
		name, root, text string
		want             []client.StaleMount
	}{
		{"file", "/", line("0:50", "/"+gen1+"/client.crt", "/x.crt"),
			[]client.StaleMount{{MountPoint: "/x.crt", File: "client.crt", Generation: gen1}}},
		{"file that is deleted", "/", line("0:50", "/"+gen1+"/client.crt//deleted", "/x.crt"),
			[]client.StaleMount{{MountPoint: "/x.crt", File: "client.crt", Generation: gen1, Deleted: true}}},
		{"generation", "/", line("0:50", "/"+gen1, "/mtls"),
			[]client.StaleMount{{MountPoint: "/mtls", Generation: gen1}}},
		{"generation that is deleted", "/", line("0:50", "/"+gen1+"//deleted", "/mtls"),
			[]client.StaleMount{{MountPoint: "/mtls", Generation: gen1, Deleted: true}}},
		{"directory below the tmpfs", "/mtls", line("0:50", "/mtls/"+gen1+"/client.crt", "/x"),
			[]client.StaleMount{{MountPoint: "/x", File: "client.crt", Generation: gen1}}},
		{"file of a consumer", "/mtls", line("0:50", "/mtls/web/"+gen1+"/client.pem", "/x"),
			[]client.StaleMount{{MountPoint: "/x", Consumer: "web", File: "client.pem", Generation: gen1}}},
		{"generation of a consumer", "/", line("0:50", "/web/"+gen1, "/x"),
			[]client.StaleMount{{MountPoint: "/x", Consumer: "web", Generation: gen1}}},
		{"consumer's directory", "/", line("0:50", "/web", "/x"), nil},
		{"escapes", "/m tls", line("0:50", `/m\040tls/`+gen1+`/a\134b`, `/my\040keys\011\012\043`),
			[]client.StaleMount{{MountPoint: "/my keys\t\n#", File: `a\b`, Generation: gen1}}},
		{"directory that was replaced", "/mtls", line("0:50", "/mtls//deleted", "/mtls"),
			[]client.StaleMount{{MountPoint: "/mtls", Deleted: true}}},
		{"two", "/", line("0:50", "/"+gen1+"/a", "/a") + line("0:50", "/"+gen2+"/b", "/b"),
			[]client.StaleMount{{MountPoint: "/a", File: "a", Generation: gen1},
				{MountPoint: "/b", File: "b", Generation: gen2}}},
		{"no optional fields", "/", "36 35 0:50 /" + gen1 + "/a /a rw - tmpfs tmpfs rw",
			[]client.StaleMount{{MountPoint: "/a", File: "a", Generation: gen1}}},

		{"whole directory", "/", line("0:50", "/", "/mtls"), nil},
		{"whole directory below the tmpfs", "/mtls", line("0:50", "/mtls", "/mtls"), nil},
		{"whole tmpfs", "/mtls", line("0:50", "/", "/run"), nil},
		{"another directory of the tmpfs", "/mtls", line("0:50", "/mtls2/"+gen1+"/a", "/a"), nil},
		{"another directory that is deleted", "/mtls", line("0:50", "/other//deleted", "/a"), nil},
		{"not in the published directory", "/mtls", line("0:50", "/"+gen1+"/a", "/a"), nil},
		{"another file system", "/", line("0:51", "/"+gen1+"/a", "/a"), nil},
		{"another file in the directory", "/", line("0:50", "/..tmp", "/a"), nil},
		{"namespace", "/", line("0:4", "mnt:[4026532621]", "/run/ns"), nil},
		{"short line", "/", "36 35 0:50 /" + gen1 + "/a /a\n", nil},
		{"empty", "/", "\n\n", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, omitted := pinned([]byte(c.text), place{"0:50", c.root})
			if diff := cmp.Diff(c.want, got); diff != "" || omitted != 0 {
				t.Errorf("pinned (-want +got), %d omitted:\n%s%s", omitted, diff, c.text)
			}
		})
	}
}

func TestPinnedIsBounded(t *testing.T) {
	var b strings.Builder
	for i := range maxFiles + 5 {
		b.WriteString(line("0:50", "/"+gen1+"/a", fmt.Sprint("/", i, strings.Repeat("x", 2*maxText))))
	}
	files, omitted := pinned([]byte(b.String()), place{"0:50", "/"})
	if len(files) != maxFiles || omitted != 5 || len(files[0].MountPoint) > maxText+len("…") {
		t.Errorf("%d files, %d omitted, a mount point of %d bytes", len(files), omitted, len(files[0].MountPoint))
	}
}

func TestLocate(t *testing.T) {
	root := line("254:0", "/", "/")
	for _, c := range []struct {
		name, text, path, device, want string
	}{
		{"mounted there", root + line("0:50", "/", "/etc/ecs/mtls"), "/etc/ecs/mtls", "0:50", "/"},
		{"mounted above", root + line("0:50", "/", "/run"), "/run/sev/mtls", "0:50", "/sev/mtls"},
		{"on the root file system", root, "/etc/ecs/mtls", "254:0", "/etc/ecs/mtls"},
		{"bound from elsewhere", root + line("0:50", "/a/b", "/run"), "/run/mtls", "0:50", "/a/b/mtls"},
		{"bound onto itself, as ReadWritePaths= does", root +
			line("0:50", "/", "/etc/ecs/mtls") + line("0:50", "/", "/etc/ecs/mtls"), "/etc/ecs/mtls", "0:50", "/"},
		{"mounted over", root + line("0:50", "/x", "/run") + line("0:50", "/y", "/run"), "/run", "0:50", "/y"},
		{"name that begins the same", root + line("254:0", "/x", "/etc/ec"), "/etc/ecs", "254:0", "/etc/ecs"},
		{"space", line("0:50", "/", `/a\040b`), "/a b/c", "0:50", "/c"},
		{"not there", root, "/etc/ecs/mtls", "0:50", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := locate([]byte(c.text), c.path, c.device)
			if got.root != c.want || ok != (c.want != "") {
				t.Errorf("locate = %q, %v, want %q", got.root, ok, c.want)
			}
		})
	}
}

// escape is what the kernel does: mangle_path of " \t\n\\#".
func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if strings.IndexByte(" \t\n\\#", s[i]) >= 0 {
			fmt.Fprintf(&b, `\%03o`, s[i])
		} else {
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

func FuzzMount(f *testing.F) {
	f.Add("/"+gen1+"/a b", "/x\ty", true)
	f.Add("/", `/\040`, false)
	f.Fuzz(func(t *testing.T, root, point string, deleted bool) {
		text := root
		if deleted {
			text += "//deleted"
		}
		pinned([]byte(text), place{"0:50", "/"})
		if root == "" || strings.HasSuffix(root, "//deleted") {
			return
		}
		m, ok := parseMount([]byte(line("0:50", escape(text), escape(point))))
		if want := (mount{"0:50", root, point, deleted}); !ok || m != want {
			t.Errorf("parseMount = %+v, %v, want %+v", m, ok, want)
		}
	})
}

// fakeProc is a directory that stands for procfs, and a published directory.
type fakeProc struct {
	t              *testing.T
	dir, published string
	device         string
}

func newFakeProc(t *testing.T) *fakeProc {
	t.Helper()
	published := must.Get(filepath.EvalSymlinks(t.TempDir()))(t, "resolve the published directory")
	var st unix.Stat_t
	must.Do(t, unix.Stat(published, &st), "stat the published directory")
	p := &fakeProc{t, t.TempDir(), published, fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))}
	p.set(1, "4026531841", "0::/init.scope\n", line(p.device, "/", "/"))
	must.Do(t, os.Symlink("1", filepath.Join(p.dir, "self")), "link /proc/self")
	return p
}

// file is a line of mountinfo for something below the published directory.
func (p *fakeProc) file(name, point string) string {
	return line(p.device, filepath.Join(p.published, name), point)
}

func (p *fakeProc) set(pid int, namespace, cgroup, mountinfo string) {
	p.t.Helper()
	dir := filepath.Join(p.dir, fmt.Sprint(pid))
	must.Do(p.t, os.MkdirAll(filepath.Join(dir, "ns"), 0o755), "make the directory of process %d", pid)
	must.Do(p.t, os.Symlink("mnt:["+namespace+"]", filepath.Join(dir, "ns/mnt")), "link its mount namespace")
	for name, text := range map[string]string{"cgroup": cgroup, "mountinfo": mountinfo,
		"comm": fmt.Sprint("app", pid, "\n")} {
		p.write(pid, name, text)
	}
}

func (p *fakeProc) write(pid int, name, text string) {
	p.t.Helper()
	must.Do(p.t, os.WriteFile(filepath.Join(p.dir, fmt.Sprint(pid), name), []byte(text), 0o644),
		"write %s of process %d",
		name, pid)
}

func (p *fakeProc) remove(pid int, name string) {
	p.t.Helper()
	must.Do(p.t, os.RemoveAll(filepath.Join(p.dir, fmt.Sprint(pid), name)), "remove %s of process %d", name, pid)
}

func (p *fakeProc) scan() ([]reader, error) {
	p.t.Helper()
	dir := must.Get(placeOf(p.dir, p.published))(p.t, "locate the published directory")
	own := must.Get(ownNamespace(p.dir))(p.t, "read our own namespace")
	return scan(p.dir, own, dir)
}

func TestScan(t *testing.T) {
	p := newFakeProc(t)
	pin := p.file(gen1+"/client.crt", "/x.crt")
	file := client.StaleMount{MountPoint: "/x.crt", File: "client.crt", Generation: gen1}
	p.set(2, "4026531841", "0::/init.scope\n", pin) // ours: not looked at

	p.set(10, "10", "0::/system.slice/docker.service\n", pin) // nsenter -m, with a low pid
	p.set(11, "10", inTask(idA), "must not be read twice\n")
	p.set(12, "10", inTask(idB), "")
	p.set(13, "13", inTask(idA), pin+p.file(gen1, "/gen")) // the same container, another namespace

	p.set(20, "20", "0::/system.slice/nginx.service\n", pin)
	p.set(30, "30", inTask(idB), p.file("", "/etc/mtls")) // as it should be

	p.set(40, "40", "0::/docker/"+idB+"\n", pin) // gone, but for its directory
	p.remove(40, "mountinfo")
	p.set(41, "41", "0::/docker/"+idB+"\n", pin) // gone a little later; another of its namespace is there
	p.remove(41, "comm")
	p.set(42, "41", "0::/docker/"+idB+"\n", pin)
	p.set(43, "43", "0::/docker/"+idB+"\n", pin)
	p.remove(43, "")

	got := must.Get(p.scan())(t, "scan")
	want := []reader{
		{StaleReader: client.StaleReader{ContainerID: idA, TaskID: taskA, PID: 11,
			Comm: "app11", Files: []client.StaleMount{file, {MountPoint: "/gen", Generation: gen1}}}, key: idA},
		{StaleReader: client.StaleReader{ContainerID: idB, PID: 42, Comm: "app42", Files: []client.StaleMount{file}},
			key: idB},
		{StaleReader: client.StaleReader{PID: 20, Comm: "app20", Files: []client.StaleMount{file}}, key: "mnt:[20]"},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(reader{})); diff != "" {
		t.Errorf("scan (-want +got):\n%s", diff)
	}
}

func TestScanIsBounded(t *testing.T) {
	p := newFakeProc(t)
	long := strings.Repeat(line("0:4", "/", "/x"), maxMountinfo/60)
	p.set(10, "10", inTask(idA), p.file(gen1+"/a", "/a")+long)
	got, err := p.scan()
	if len(got) != 1 || err == nil || !strings.Contains(err.Error(), "process 10") {
		t.Errorf("of a long mountinfo: %v, %v, want a reader and an error", got, err)
	}
	if pids, err := bound(make([]int, maxProcesses+2)); len(pids) != maxProcesses || err == nil ||
		err.Error() != "looked at 10000 of 10002 processes" {
		t.Errorf("of too many processes: %d, %v", len(pids), err)
	}
}

func TestStaleOf(t *testing.T) {
	pinned := []reader{
		{StaleReader: client.StaleReader{PID: 1, Files: []client.StaleMount{{Generation: gen1}, {Generation: gen2}}}},
		{StaleReader: client.StaleReader{PID: 2, Files: []client.StaleMount{{Generation: gen2}}}},
		{StaleReader: client.StaleReader{PID: 3, Files: []client.StaleMount{{Generation: gen2, Deleted: true}}}},
		{StaleReader: client.StaleReader{PID: 4, Files: []client.StaleMount{{Deleted: true}}}},
	}
	for _, c := range []struct {
		current string
		want    []int
	}{
		{gen2, []int{1, 3, 4}},
		{gen1, []int{1, 2, 3, 4}},
		{"", []int{3, 4}},
	} {
		var got []int
		for _, r := range staleOf(pinned, func(string) string { return c.current }) {
			got = append(got, r.PID)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("stale while %q is current (-want +got):\n%s", c.current, diff)
		}
	}
	if len(pinned[0].Files) != 2 {
		t.Error("staleOf changed its argument")
	}
}

// logLines collects messages.
type logLines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logLines) count(message string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), message)
}

const (
	msgCame = "will until it is restarted"
	msgWent = "container that held an old generation is gone"
)

func TestRun(t *testing.T) {
	p := newFakeProc(t)
	synctest.Test(t, func(t *testing.T) {
		var log logLines
		var mu sync.Mutex
		current := gen1
		registry := promtext.New()
		w := New(Config{Path: p.published, Proc: p.dir, Registerer: registry,
			Log:     slog.New(slog.NewJSONHandler(&log, nil)),
			Current: func(string) string { mu.Lock(); defer mu.Unlock(); return current }})
		expect := func(when string, stale, came, went int) {
			t.Helper()
			synctest.Wait()
			s, metric := w.Status(), gauge(t, registry)
			if s.StaleCount != stale || metric != float64(stale) ||
				log.count(msgCame) != came || log.count(msgWent) != went {
				t.Errorf("%s: %d stale, %v in the metric, %d came, %d went; want %d, %d, %d; error %q", when,
					s.StaleCount, metric, log.count(msgCame), log.count(msgWent), stale, came, went, s.Error)
			}
		}
		if w.Status().Stale == nil || !w.Status().Checked.IsZero() {
			t.Errorf("Status before Run = %+v", w.Status())
		}
		done := make(chan error)
		go func() { done <- w.Run(t.Context()) }()

		p.set(10, "10", inTask(idA), p.file(gen1+"/client.crt", "/x.crt"))
		expect("current generation", 0, 0, 0)
		mu.Lock()
		current = gen2
		mu.Unlock()
		w.Hint()
		w.Hint()
		time.Sleep(settle - time.Millisecond)
		w.Hint() // does not postpone it
		expect("before programs had time", 0, 0, 0)
		time.Sleep(time.Millisecond)
		expect("soon after a publication", 1, 1, 0)
		first := w.Status()
		time.Sleep(3 * defaultInterval)
		expect("later", 1, 1, 0)
		if !w.Status().Checked.After(first.Checked) {
			t.Error("no scan has followed within three intervals")
		}

		// What cannot be seen is not taken for gone.
		must.Do(t, os.Rename(filepath.Join(p.dir, "self"), filepath.Join(p.dir, "other")), "take /proc/self away")
		time.Sleep(2 * defaultInterval)
		expect("without a view", 1, 1, 0)
		if s := w.Status(); s.Error == "" || log.count("cannot be seen") != 1 {
			t.Errorf("without a view: error %q, logged %d times", s.Error, log.count("cannot be seen"))
		}
		must.Do(t, os.Rename(filepath.Join(p.dir, "other"), filepath.Join(p.dir, "self")), "put /proc/self back")

		for i := range maxReaders {
			p.set(100+i, fmt.Sprint(100+i), "0::/\n", p.file(gen1+"/a", "/a"))
		}
		time.Sleep(defaultInterval)
		expect("many", 1+maxReaders, 1+maxReaders, 0)
		if s := w.Status(); len(s.Stale) != maxReaders || s.Error != "" {
			t.Errorf("%d reported, error %q", len(s.Stale), s.Error)
		}
		for i := range maxReaders {
			p.remove(100+i, "")
		}
		p.remove(10, "")
		time.Sleep(defaultInterval)
		expect("gone", 0, 1+maxReaders, 1+maxReaders)
		promtexttest.Lint(t, registry)
		go func() {
			if err := <-done; err != nil {
				t.Errorf("Run = %v", err)
			}
		}()
	})
}

// gauge returns the only metric of a registry.
func gauge(t *testing.T, registry *promtext.Registry) float64 {
	t.Helper()
	families := promtexttest.Families(t, registry)
	if len(families) != 1 || families[0].GetName() != "sevagent_mtls_stale_readers" {
		t.Fatalf("metrics are %v", families)
	}
	return families[0].GetMetric()[0].GetGauge().GetValue()
}

func TestNothingPublished(t *testing.T) {
	p := newFakeProc(t)
	current := ""
	w := New(Config{Path: filepath.Join(p.published, "none"), Proc: p.dir, Registerer: promtext.New(),
		Log: slog.New(slog.DiscardHandler), Current: func(string) string { return current }})
	w.update()
	if s := w.Status(); s.Error != "" || s.Checked.IsZero() {
		t.Errorf("before the directory is made: %+v", s)
	}
	current = gen1
	w.update()
	if s := w.Status(); s.Error == "" {
		t.Error("no error for a published directory that is missing")
	}
}

var ignoreProcess = cmpopts.IgnoreFields(client.StaleReader{}, "PID", "Comm", "ContainerID", "TaskID")

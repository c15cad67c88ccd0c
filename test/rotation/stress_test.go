//go:build node

package rotation

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"
)

// noticeWithin is when a watcher must have seen a rotation, on a machine that is busy with ten other readers.
const noticeWithin = 2 * time.Second

// process is a reader.
type process struct {
	name  string
	stdin io.Closer
	lines chan string // all but the tally; closed at the end
	tally chan tally  // one, if it has come to its end in order

	noticed, rotations int // of a watcher
}

// readerSpec says what a reader is held to.
type readerSpec struct {
	role     string
	contract bool
	watches  bool
	note     string
}

var readers = []readerSpec{
	{role: "go", contract: true, note: "resolves ..data, up to 12 ms between the opens"},
	{role: "go-slow", contract: true, note: "resolves ..data, 50 ms between the opens"},
	{role: "go-one-file", contract: true, note: "client.pem, opened once"},
	{role: "python", contract: true, note: "resolves ..data, load_cert_chain and a handshake"},
	{role: "curl", contract: true, note: "resolves ..data, against the server"},
	{role: "server", contract: true, note: "resolves ..data at each handshake"},
	{role: "watch-file", contract: true, watches: true, note: "fsnotify on ..data/client.crt"},
	{role: "watch-dir", contract: true, watches: true, note: "fsnotify on the directory"},
	{role: "go-path", note: "by path, 6 ms between the opens"},
	{role: "python-path", note: "client.pem by path, which is opened twice"},
}

// TestRotation rotates a real agent's only secret under readers that are processes of their own.
func TestRotation(t *testing.T) {
	if os.Getenv("SEVAGENT_ROTATION_DIR") == "" {
		t.Skip("run test/rotation/run, which makes the namespaces")
	}
	rotations := 10_000
	if text := os.Getenv("SEVAGENT_ROTATIONS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("SEVAGENT_ROTATIONS=%q: want a number of rotations", text)
		}
		rotations = n
	}
	binary, trouble := buildAgent(t)
	if binary == "" {
		t.Fatal(trouble)
	}

	work := t.TempDir()
	published, container, anchors := filepath.Join(work, "published"), filepath.Join(work, "container"), filepath.Join(work, "anchors.pem")
	for _, dir := range []string{published, container} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mount("tmpfs", published, "tmpfs", syscall.MS_NODEV|syscall.MS_NOSUID|syscall.MS_NOEXEC, "size=16m,mode=0755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(published, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	secrets, err := os.MkdirTemp("/dev/shm", "rotation")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(secrets) })

	versions := newMaterial(t, 64)
	var all strings.Builder
	for _, m := range versions {
		all.WriteString(m.anchor)
	}
	if err := os.WriteFile(anchors, []byte(all.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(secrets, "secret.json")
	n := 0
	put := func() material {
		m := versions[n%len(versions)]
		n++
		if err := os.WriteFile(secret+".new", []byte(m.secret), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(secret+".new", secret); err != nil {
			t.Fatal(err)
		}
		return m
	}
	put()
	a := startAgent(t, binary, published, "file://"+secret, "24h")
	current, err := a.refresh()
	if err != nil {
		t.Fatal(err)
	}
	var refreshes []time.Duration
	rotate := func() string {
		put()
		began := time.Now()
		generation, err := a.refresh()
		if err != nil {
			t.Fatalf("rotation %d: %v", len(refreshes)+1, err)
		}
		refreshes = append(refreshes, time.Since(began))
		if generation == current {
			t.Fatalf("rotation %d changed nothing", len(refreshes))
		}
		current = generation
		return generation
	}

	started := make(map[string]*process)
	server := ""
	for _, role := range []string{"server", "go", "go-slow", "go-one-file", "python", "curl", "watch-file", "watch-dir", "go-path", "python-path"} {
		p := startReader(t, role,
			publishedVariable+"="+published, containerVariable+"="+container, anchorsVariable+"="+anchors, serverVariable+"="+server)
		started[role] = p
		switch role {
		case "server":
			server = p.line(t)
		case "watch-file", "watch-dir":
			if got := p.line(t); got != current {
				t.Fatalf("%s begins with %s, want %s", role, got, current)
			}
		}
	}
	before := resources(t, a.pid)

	// Each rotation waits for both watchers, so that two of them cannot be seen as one.
	began := time.Now()
	for range rotations {
		generation := rotate()
		for _, role := range []string{"watch-file", "watch-dir"} {
			started[role].await(t, generation)
		}
	}
	paced := time.Since(began)
	pacedRefreshes := refreshes

	// Then as fast as the agent answers: nobody waits for a reader.
	began, refreshes = time.Now(), nil
	more := (rotations + 9) / 10
	for range more {
		rotate()
	}
	fast := time.Since(began)
	after := resources(t, a.pid)

	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "reader\tloads\tmismatches\tmissing\tfailures\tnoticed\t")
	for _, spec := range readers {
		p := started[spec.role]
		got, ok := p.stop()
		if !ok {
			t.Errorf("%s did not come to its end", spec.role)
			continue
		}
		noticed := ""
		if spec.watches {
			noticed = fmt.Sprintf("%d/%d", p.noticed, p.rotations)
			if p.noticed != rotations {
				t.Errorf("%s noticed %d of %d rotations within %v", spec.role, p.noticed, rotations, noticeWithin)
			}
		}
		bad := got.Mismatches + got.Missing
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%.3f %%\t%s\t  %s\n", spec.role, got.Loads, got.Mismatches, got.Missing,
			100*float64(bad)/float64(max(1, got.Loads)), noticed, spec.note)
		switch {
		case spec.contract && bad > 0:
			t.Errorf("%s follows the contract and had %d mismatches and %d missing files; the first: %s", spec.role, got.Mismatches, got.Missing, got.First)
		case got.Loads == 0:
			t.Errorf("%s has loaded nothing", spec.role)
		}
	}
	w.Flush()
	t.Logf("%d rotations, each waiting for the watchers, in %.1f s: refresh p50 %.2f ms, p99 %.2f ms, max %.2f ms\n"+
		"%d more, as fast as they go, in %.1f s: refresh p50 %.2f ms, p99 %.2f ms, max %.2f ms\n"+
		"the agent before: %s\nthe agent after:  %s\n%s",
		rotations, paced.Seconds(), percentile(pacedRefreshes, 50), percentile(pacedRefreshes, 99), percentile(pacedRefreshes, 100),
		more, fast.Seconds(), percentile(refreshes, 50), percentile(refreshes, 99), percentile(refreshes, 100),
		before, after, table.String())
	if err := a.shows(versions[(n-1)%len(versions)]); err != nil {
		t.Error(err)
	}
}

// startReader runs this binary as a reader, in a mount namespace of its own.
func startReader(t *testing.T, role string, env ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), append(env, roleVariable+"="+role)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = in
	start(t, role, cmd)
	in.Close()
	p := &process{name: role, stdin: stdin, lines: make(chan string, 1000), tally: make(chan tally, 1)}
	go func() {
		defer out.Close()
		defer close(p.tally)
		defer close(p.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			if !strings.HasPrefix(s.Text(), "{") {
				p.lines <- s.Text()
				continue
			}
			var sum tally
			if json.Unmarshal(s.Bytes(), &sum) == nil {
				p.tally <- sum
			}
		}
	}()
	return p
}

// line returns the next line that a reader prints.
func (p *process) line(t *testing.T) string {
	t.Helper()
	select {
	case line, ok := <-p.lines:
		if ok {
			return line
		}
		t.Fatalf("%s has ended", p.name)
	case <-time.After(time.Minute):
		t.Fatalf("%s says nothing", p.name)
	}
	return ""
}

// await waits until a watcher has noticed a generation, and counts.
func (p *process) await(t *testing.T, generation string) {
	p.rotations++
	timeout := time.NewTimer(noticeWithin)
	defer timeout.Stop()
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				t.Fatalf("%s has ended", p.name)
			}
			if line == generation {
				p.noticed++
				return
			}
		case <-timeout.C:
			t.Logf("%s has not noticed rotation %d", p.name, p.rotations)
			return
		}
	}
}

// stop tells a reader to end and returns its tally.
func (p *process) stop() (sum tally, ok bool) {
	p.stdin.Close()
	for range p.lines {
	}
	sum, ok = <-p.tally
	return sum, ok
}

// resources of a process, for a look at what grows.
func resources(t *testing.T, pid int) string {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d/", pid)
	fds, err := os.ReadDir(proc + "fd")
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("%d descriptors", len(fds))
	for line := range strings.Lines(string(status)) {
		if name, value, _ := strings.Cut(line, ":"); name == "VmRSS" || name == "VmHWM" || name == "Threads" {
			text += fmt.Sprintf(", %s %s", name, strings.TrimSpace(value))
		}
	}
	return text
}

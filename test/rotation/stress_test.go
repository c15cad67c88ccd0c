//go:build node

package rotation

import (
	"bufio"
	"encoding/json"
	"errors"
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

	"sevagent/internal/must"
	"sevagent/test/lab"
)

// process is a reader.
type process struct {
	name  string
	stdin io.Closer
	lines chan string // all but the tally; closed at the end
	tally chan tally  // one, if it has come to its end in order

	noticed int // rotations, by a watcher
}

// readerSpec says what a reader has to fulfil.
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
	{role: "watch-file", contract: true, watches: true, note: "fsnotify on ..data/client.crt"},
	{role: "watch-dir", contract: true, watches: true, note: "fsnotify on the directory"},
	{role: "go-path", note: "by path, 6 ms between the opens"},
}

// TestRotation rotates a real agent's only secret under readers that are processes of their own. Readers in other
// languages, and servers, are test/readers' part.
func TestRotation(t *testing.T) {
	if lab.Work() == "" {
		t.Skip("run test/run rotation, which makes the namespaces")
	}
	rotations := 10_000
	if text := os.Getenv("SEVAGENT_ROTATIONS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("SEVAGENT_ROTATIONS=%q: want a number of rotations", text)
		}
		rotations = n
	}

	work := t.TempDir()
	published, container := filepath.Join(work, "published"), filepath.Join(work, "container")
	must.Do(t, errors.Join(os.Mkdir(published, 0o755), os.Mkdir(container, 0o755)), "make directories")
	lab.Mount(t, published)
	const secret = "/run/secret.json"
	lab.Write(t, lab.ConfigDir+"/config.yaml", fmt.Sprintf(`
attestation: {mode: "off"}
mtls: {path: %q, secrets: ["file://%s"], poll_interval: 24h, owner: "0:0"}
listen: {tcp: ""}
`, published, secret))

	versions := newMaterial(t, 64)
	n := 0
	put := func() {
		must.Do(t, lab.Replace(secret, versions[n%len(versions)].secret), "replace the secret")
		n++
	}
	put()
	a := lab.StartAgent(t, "", exec.Command(lab.Bin("sevagent"), "run"))
	current := must.Get(a.Refresh())(t, "publish the first version")
	var refreshes []time.Duration
	rotate := func() string {
		put()
		began := time.Now()
		generation := must.Get(a.Refresh())(t, "rotation %d", len(refreshes)+1)
		refreshes = append(refreshes, time.Since(began))
		if generation == current {
			t.Fatalf("rotation %d changed nothing", len(refreshes))
		}
		current = generation
		return generation
	}

	started := make(map[string]*process)
	for _, spec := range readers {
		p := startReader(t, spec.role, publishedVariable+"="+published, containerVariable+"="+container)
		started[spec.role] = p
		if spec.watches {
			if got := p.line(t); got != current {
				t.Fatalf("%s begins with %s, want %s", spec.role, got, current)
			}
		}
	}
	before := resources(t, a.Pid)

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
	after := resources(t, a.Pid)

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
			noticed = fmt.Sprintf("%d/%d", p.noticed, rotations)
			if p.noticed != rotations {
				t.Errorf("%s noticed %d of %d rotations", spec.role, p.noticed, rotations)
			}
		}
		bad := got.Mismatches + got.Missing
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%.3f %%\t%s\t  %s\n", spec.role, got.Loads, got.Mismatches, got.Missing,
			100*float64(bad)/float64(max(1, got.Loads)), noticed, spec.note)
		switch {
		case spec.contract && bad > 0:
			t.Errorf("%s follows the contract and had %d mismatches and %d missing files; the first: %s", spec.role,
				got.Mismatches, got.Missing, got.First)
		case got.Loads == 0:
			t.Errorf("%s has loaded nothing", spec.role)
		}
	}
	w.Flush()
	t.Logf("%d rotations, each waiting for the watchers, in %.1f s: refresh p50 %.2f ms, p99 %.2f ms, max %.2f ms\n"+
		"%d more, as fast as they go, in %.1f s: refresh p50 %.2f ms, p99 %.2f ms, max %.2f ms\n"+
		"the agent before: %s\nthe agent after:  %s\n%s",
		rotations, paced.Seconds(), percentile(pacedRefreshes, 50), percentile(pacedRefreshes, 99),
		percentile(pacedRefreshes, 100),
		more, fast.Seconds(), percentile(refreshes, 50), percentile(refreshes, 99), percentile(refreshes, 100),
		before, after, table.String())
	for _, f := range versions[(n-1)%len(versions)].files {
		if f.name == "manifest.json" {
			continue
		}
		got := lab.Read(t, filepath.Join(published, f.name))
		if strings.TrimSpace(got) != strings.TrimSpace(string(f.content)) {
			t.Errorf("%s is not that of the last version", f.name)
		}
	}
}

// startReader runs this binary as a reader, in a mount namespace of its own.
func startReader(t *testing.T, role string, env ...string) *process {
	t.Helper()
	cmd := exec.Command(must.Get(os.Executable())(t, "find this program"))
	cmd.Env = append(os.Environ(), append(env, roleVariable+"="+role)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	stdin := must.Get(cmd.StdinPipe())(t, "make a pipe")
	out, in, err := os.Pipe()
	must.Do(t, err, "make a pipe")
	cmd.Stdout = in
	lab.Start(t, role, cmd)
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
	case <-time.After(lab.Hang):
		t.Fatalf("%s prints nothing", p.name)
	}
	return ""
}

// await waits until a watcher has noticed a generation, and counts.
func (p *process) await(t *testing.T, generation string) {
	for p.line(t) != generation {
	}
	p.noticed++
}

// stop ends a reader and returns its tally.
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
	fds := must.Get(os.ReadDir(proc+"fd"))(t, "list the agent's descriptors")
	status := lab.Read(t, proc+"status")
	text := fmt.Sprintf("%d descriptors", len(fds))
	for line := range strings.Lines(status) {
		if name, value, _ := strings.Cut(line, ":"); name == "VmRSS" || name == "VmHWM" || name == "Threads" {
			text += fmt.Sprintf(", %s %s", name, strings.TrimSpace(value))
		}
	}
	return text
}

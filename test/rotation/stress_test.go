//go:build node

package rotation

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"sevagent/internal/must"
	"sevagent/test/lab"
)

// pause is between two loads, up to twice as long, of readers that are not dense; gap between two opens of a load.
const (
	pause = 50 * time.Millisecond
	gap   = 6 * time.Millisecond
)

// reader loads what is published all the time or, if it watches, at each change that it notices.
type reader struct {
	name     string
	note     string
	contract bool // what it does is in the contract: it may not fail
	dense    bool // without a pause between two loads
	load     func(dir string) error
	watch    func(w *fsnotify.Watcher, dir string) (look func(fsnotify.Event) (bool, error), err error)

	tally
	noticed chan string // generations, if it watches
	err     error       // that ended it
}

func newReaders() []*reader {
	now := func(dir string) error { return loadResolved(dir, 0) }
	all := []*reader{
		{name: "go", contract: true, note: "resolves ..data, up to 12 ms between the opens",
			load: func(dir string) error { return loadResolved(dir, rand.N(2*gap)) }},
		// with many rotations between them
		{name: "go-slow", contract: true, note: "resolves ..data, 50 ms between the opens",
			load: func(dir string) error { return loadResolved(dir, 50*time.Millisecond) }},
		{name: "go-one-file", contract: true, note: "client.pem, opened once", load: loadOne},
		{name: "watch-file", contract: true, note: "fsnotify on ..data/client.crt", load: now, watch: watchFile},
		{name: "watch-dir", contract: true, note: "fsnotify on the directory", load: now, watch: watchDir},
	}
	for _, r := range all {
		r.noticed = make(chan string, 1000)
	}
	return append(all, newPathReaders("")...)
}

// newPathReaders are those that no strategy can keep from a mixed set. The agent makes it rare.
func newPathReaders(suffix string) []*reader {
	return []*reader{
		{name: "go-path" + suffix, note: "by path, 6 ms between the opens",
			load: func(dir string) error { return lab.Load(dir, gap) }},
		{name: "go-dense" + suffix, note: "by path, 1 ms between the opens, all the time", dense: true,
			load: func(dir string) error { return lab.Load(dir, time.Millisecond) }},
	}
}

// run reads until ctx ends, on a thread with a mount namespace of its own, as in a container: what is published appears
// at container, read-only, and disappears from where the agent writes it.
func (r *reader) run(ctx context.Context, published, container string) error {
	runtime.LockOSThread() // for good: the thread ends with the goroutine
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := errors.Join(
		unix.Mount(published, container, "", unix.MS_BIND, ""),
		unix.Mount("", container, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""),
		unix.Unmount(published, 0),
	); err != nil {
		return fmt.Errorf("mount what is published: %w", err)
	}
	if r.watch != nil {
		return r.follow(ctx, container)
	}
	for {
		wait := rand.N(2 * pause)
		if r.dense {
			wait = 0
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
			r.tally.note(r.load(container))
		}
	}
}

// follow loads the generation that is current whenever it is another one than last.
func (r *reader) follow(ctx context.Context, dir string) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	look, err := r.watch(w, dir)
	if err != nil {
		return err
	}
	last := ""
	for changed := true; ; {
		if generation, err := lab.Current(dir); changed && (err != nil || generation != last) {
			if err == nil {
				err = r.load(dir)
			}
			r.tally.note(err)
			last = generation
			select {
			case r.noticed <- filepath.Base(generation):
			case <-ctx.Done():
				return nil
			}
		}
		select {
		case e := <-w.Events:
			if changed, err = look(e); err != nil {
				return fmt.Errorf("watch %s after %s: %w", dir, e, err)
			}
		case err := <-w.Errors:
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

// watchFile watches one file by its path, as controller-runtime's certwatcher does: handleEvent there.
func watchFile(w *fsnotify.Watcher, dir string) (look func(fsnotify.Event) (bool, error), err error) {
	return func(e fsnotify.Event) (bool, error) {
		switch {
		case e.Has(fsnotify.Write), e.Has(fsnotify.Create):
			return true, nil
		case e.Has(fsnotify.Chmod), e.Has(fsnotify.Remove):
			return true, w.Add(e.Name) // it may be another file by now
		}
		return false, nil
	}, w.Add(filepath.Join(dir, "..data/client.crt"))
}

// watchDir watches the directory for a new ..data, as Envoy does.
func watchDir(w *fsnotify.Watcher, dir string) (look func(fsnotify.Event) (bool, error), err error) {
	return func(e fsnotify.Event) (bool, error) {
		return filepath.Base(e.Name) == "..data" && e.Has(fsnotify.Create), nil
	}, w.Add(dir)
}

// await waits until a watcher has noticed a generation.
func (r *reader) await(t *testing.T, generation string) {
	t.Helper()
	for hang := time.After(lab.Hang); ; {
		select {
		case got := <-r.noticed:
			if got == generation {
				return
			}
		case <-hang:
			t.Fatalf("%s has not noticed %s", r.name, generation)
		}
	}
}

// TestRotation rotates a real agent's only secret under readers, each in a mount namespace of its own, and beside it a
// directory that is switched by a plain swap of its link, for a comparison. Readers in other languages, and servers,
// are test/readers' part.
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
	published, swapped, container := work+"/published", work+"/swapped", work+"/container"
	for _, dir := range []string{published, swapped, container} {
		must.Do(t, os.Mkdir(dir, 0o755), "make a directory")
	}
	lab.Mount(t, published)
	lab.Mount(t, swapped)
	const secret = "/run/secret.json"
	lab.Write(t, lab.ConfigDir+"/config.yaml", fmt.Sprintf(`
attestation: {mode: "off"}
mtls: {path: %q, secrets: ["file://%s"], poll_interval: 24h, owner: "0:0"}
listen: {tcp: ""}
`, published, secret))

	versions := newMaterial(t, 64)
	n := 0
	put := func() material {
		m := versions[n%len(versions)]
		must.Do(t, lab.Replace(secret, m.secret), "replace the secret")
		n++
		return m
	}
	must.Do(t, swapWithoutRetention(swapped, put().files), "publish the first version by a swap")
	a := lab.StartAgent(t, "", exec.Command(lab.Bin("sevagent"), "run"))
	current := must.Get(a.Refresh())(t, "publish the first version")
	var refreshes []time.Duration
	rotate := func() {
		m := put()
		began := time.Now()
		generation := must.Get(a.Refresh())(t, "rotation %d", len(refreshes)+1)
		refreshes = append(refreshes, time.Since(began))
		if generation == current {
			t.Fatalf("rotation %d changed nothing", len(refreshes))
		}
		current = generation
		must.Do(t, swapWithoutRetention(swapped, m.files), "swap %d", len(refreshes))
	}

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var running sync.WaitGroup
	readers, swapReaders := newReaders(), newPathReaders(", swap")
	for _, r := range swapReaders {
		running.Go(func() { r.err = r.run(ctx, swapped, container) })
	}
	for _, r := range readers {
		running.Go(func() { r.err = r.run(ctx, published, container) })
		if r.watch != nil {
			r.await(t, current)
		}
	}
	before := resources(t, a.Pid)

	// Each rotation waits for both watchers, so that two of them cannot be seen as one.
	began := time.Now()
	for range rotations {
		rotate()
		for _, r := range readers {
			if r.watch != nil {
				r.await(t, current)
			}
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
	stop()
	running.Wait()

	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "reader\tloads\tmismatches\tmissing\tfailures\t")
	for _, r := range append(readers, swapReaders...) {
		bad := r.bad()
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%.3f %%\t  %s\n", r.name, r.Loads, r.Mismatches, r.Missing,
			100*float64(bad)/float64(max(1, r.Loads)), r.note)
		switch {
		case r.err != nil:
			t.Errorf("%s: %v", r.name, r.err)
		case r.contract && bad > 0:
			t.Errorf("%s follows the contract and had %d mismatches and %d missing files; the first: %s", r.name,
				r.Mismatches, r.Missing, r.First)
		case r.Loads == 0:
			t.Errorf("%s has loaded nothing", r.name)
		}
	}
	w.Flush()
	for i, r := range readers[len(readers)-len(swapReaders):] {
		// Both are counts of rare events in the same number of rotations: by chance they differ by a few roots of their sum.
		ours, swap := r.bad(), swapReaders[i].bad()
		if margin := 10 + 6*math.Sqrt(float64(ours+swap)); float64(ours-swap) > margin {
			t.Errorf("%s had %d mixed loads, and %d where a link is swapped at any moment", r.name, ours, swap)
		}
	}
	t.Logf("%d rotations, each noticed by both watchers, in %.1f s: refresh %s\n"+
		"%d more, as fast as they go, in %.1f s: "+
		"refresh %s\nthe agent before: %s\nthe agent after:  %s\n%s", rotations, paced.Seconds(),
		figures(pacedRefreshes), more, fast.Seconds(), figures(refreshes), before, after, table.String())
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

func figures(took []time.Duration) string {
	return fmt.Sprintf("p50 %.2f ms, p99 %.2f ms, max %.2f ms", percentile(took, 50), percentile(took, 99),
		percentile(took, 100))
}

// resources of a process, for a look at what grows.
func resources(t *testing.T, pid int) string {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d/", pid)
	fds := must.Get(os.ReadDir(proc+"fd"))(t, "list the agent's descriptors")
	text := fmt.Sprintf("%d descriptors", len(fds))
	for line := range strings.Lines(lab.Read(t, proc+"status")) {
		if name, value, _ := strings.Cut(line, ":"); name == "VmRSS" || name == "VmHWM" || name == "Threads" {
			text += fmt.Sprintf(", %s %s", name, strings.TrimSpace(value))
		}
	}
	return text
}

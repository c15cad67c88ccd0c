// Package readers finds the containers that a rotation does not reach.
//
// A container that mounts the published directory sees every generation. One that mounts a single file of it, as
// docker -v /etc/ecs/mtls/client.crt:/x.crt does, holds that file of that generation for as long as it runs: the path
// is resolved once, when the container starts, and the mount keeps what was found there. So does a mount of ..data,
// which is a link to a generation. Nothing in the container can tell; the certificate there simply expires.
//
// The host can tell, by /proc/<pid>/mountinfo, and this package does. It only reports: the owner of the task definition
// decides what to do, and a restart of the container repairs it.
//
// It does not see: a program that read a file once and never again, a copy of a file, a published
// directory whose tmpfs was mounted after the container started or was mounted anew, and file systems, such as btrfs,
// whose mounts show another device than their files.
package readers

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"sevagent/client"
	"sevagent/internal/promtext"
)

const (
	defaultInterval = time.Minute
	// settle is how long after a publication we scan: by then containers may have begun to restart.
	settle = 2 * time.Second
	// maxReaders bounds Readers.Stale.
	maxReaders = 64
)

// Config is what a Watcher needs.
type Config struct {
	// Path is the published directory: mtls.path.
	Path string
	// Proc is where procfs is mounted; empty means /proc.
	Proc string
	// Current returns the published generation of a consumer's directory or, with an empty name, of the node's own;
	// empty means that there is none.
	Current func(consumer string) (generation string)
	// Interval between two scans; zero means one minute.
	Interval time.Duration
	// Registerer takes sevagent_mtls_stale_readers.
	Registerer *promtext.Registry
	Log        *slog.Logger
}

// Watcher finds containers that hold an old generation.
type Watcher struct {
	cfg    Config
	hint   chan struct{}
	status atomic.Pointer[client.Readers]
	stale  *promtext.Gauge

	// Owned by Run.
	known  map[string]reader // those that were logged, by key
	failed bool              // the last scan was incomplete, which was logged
}

// New returns a Watcher that has not scanned yet.
func New(cfg Config) *Watcher {
	if cfg.Proc == "" {
		cfg.Proc = "/proc"
	}
	if cfg.Interval == 0 {
		cfg.Interval = defaultInterval
	}
	w := &Watcher{
		cfg:   cfg,
		hint:  make(chan struct{}, 1),
		known: make(map[string]reader),
		stale: cfg.Registerer.Gauge("sevagent_mtls_stale_readers",
			"Containers that hold an old generation of the published directory, and will until they are restarted."),
	}
	w.status.Store(&client.Readers{Stale: []client.StaleReader{}})
	return w
}

// Status returns the result of the last scan.
func (w *Watcher) Status() *client.Readers { return w.status.Load() }

// Hint reports that a generation was published. It never blocks.
func (w *Watcher) Hint() {
	select {
	case w.hint <- struct{}{}:
	default:
	}
}

// Run scans at once, in every interval, and soon after a Hint. It returns nil when ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	for {
		w.update()
		if !w.wait(ctx) {
			return nil
		}
	}
}

// wait waits for the next scan. It returns false once ctx has ended.
func (w *Watcher) wait(ctx context.Context) bool {
	next := time.Now().Add(w.cfg.Interval)
	timer := time.NewTimer(w.cfg.Interval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case <-w.hint:
			if soon := time.Now().Add(settle); soon.Before(next) {
				next = soon
				timer.Reset(settle)
			}
		}
	}
}

// update scans once, and logs and publishes what has changed.
func (w *Watcher) update() {
	pinned, seen, err := w.scan()
	s := *w.status.Load()
	if seen {
		stale := staleOf(pinned, w.cfg.Current)
		w.logChanges(stale, err == nil)
		w.stale.Set(float64(len(stale)))
		s = client.Readers{
			Stale:      make([]client.StaleReader, min(len(stale), maxReaders)),
			StaleCount: len(stale),
			Checked:    time.Now(),
		}
		for i := range s.Stale {
			s.Stale[i] = stale[i].StaleReader
		}
	}
	s.Error = ""
	if err != nil {
		s.Error = err.Error()
	}
	switch failed := err != nil; {
	case failed && !w.failed:
		w.cfg.Log.Warn("some readers of the published directory cannot be seen", "err", err)
	case !failed && w.failed:
		w.cfg.Log.Info("all readers of the published directory can be seen again")
	}
	w.failed = err != nil
	w.status.Store(&s)
}

// scan returns the readers that pin something. If seen is true, they are valid, even with an error.
func (w *Watcher) scan() (pinned []reader, seen bool, err error) {
	dir, err := placeOf(w.cfg.Proc, w.cfg.Path)
	if errors.Is(err, fs.ErrNotExist) && w.cfg.Current("") == "" {
		return nil, true, nil // not made yet
	}
	if err != nil {
		return nil, false, err
	}
	own, err := ownNamespace(w.cfg.Proc)
	if err != nil {
		return nil, false, err
	}
	pinned, err = scan(w.cfg.Proc, own, dir)
	return pinned, pinned != nil || err == nil, err
}

// staleOf returns the readers of anything but the current generation, and what they read. A mount of a generation that
// was current during the scan, and is not current now, is stale: call current after the scan.
func staleOf(pinned []reader, current func(consumer string) string) []reader {
	stale := []reader{}
	for _, r := range pinned {
		r.Files = slices.DeleteFunc(slices.Clone(r.Files), func(f client.StaleMount) bool {
			now := current(f.Consumer)
			return !f.Deleted && (now == "" || f.Generation == now)
		})
		if len(r.Files) > 0 {
			stale = append(stale, r)
		}
	}
	return stale
}

// logChanges logs new readers and, if the scan was complete, those that are gone.
func (w *Watcher) logChanges(stale []reader, complete bool) {
	here := make(map[string]bool, len(stale))
	for _, r := range stale {
		here[r.key] = true
		if _, ok := w.known[r.key]; ok {
			continue
		}
		w.known[r.key] = r
		w.cfg.Log.Warn("container holds an old generation of the published directory, and will until it is restarted",
			append(r.attrs(), "files", fileNames(r.Files), "advice",
				"mount "+w.cfg.Path+" itself, not a file in it, and restart the container")...)
	}
	if !complete {
		return
	}
	for key, r := range w.known {
		if !here[key] {
			delete(w.known, key)
			w.cfg.Log.Info("container that held an old generation is gone", r.attrs()...)
		}
	}
}

func (r *reader) attrs() []any {
	return []any{"container_id", r.ContainerID, "task_id", r.TaskID, "pid", r.PID, "comm", r.Comm}
}

// fileNames describes files in a log line: where in the container, what, and of which generation.
func fileNames(files []client.StaleMount) []string {
	var names []string
	for _, f := range files {
		names = append(names, f.MountPoint+" = "+filepath.Join(f.Consumer, f.Generation, f.File))
	}
	return names
}

// ownNamespace returns the mount namespace that we are in.
func ownNamespace(proc string) (string, error) {
	return os.Readlink(filepath.Join(proc, "self/ns/mnt"))
}

// Package guard notices that a published directory is not as its owner left it.
//
// The owner says what should be there (Expect). Run listens to the kernel's events, and asks the owner to look again
// (Changed). The owner compares (Verify), in its own goroutine, so that it never mistakes a half-done publication of
// its own for somebody else's work. Nothing is repaired here, and no event is held back because the owner may have
// caused it: looking once too often costs less than a quarter of a millisecond.
//
// What is noticed, and when:
//
//   - within a quarter of a second: writes, attribute changes, second names, links re-pointed, entries that come and
//     go, by inotify; mounts, by the poll of /proc/self/mountinfo;
//   - at the next sweep: stores through a shared mapping, since inotify does not report them.
//
// Content is compared by its SHA-256 and not by time stamps, which can be set. A mount in a mount namespace that does
// not propagate to this process is invisible here; it misleads only the processes in that namespace.
package guard

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync/atomic"
	"time"
)

const (
	// quiet is how long there must be no event before the owner is asked to look: a tool that replaces a file causes
	// half a dozen events, and the state between them does not matter.
	quiet = 50 * time.Millisecond
	// patience is how long a stream of events may delay that. Verify then takes 0.1 % of a processor.
	patience = 250 * time.Millisecond

	// sweep is the time between two looks without an event; limitedSweep that where some events cannot come.
	sweep        = 30 * time.Second
	limitedSweep = 5 * time.Second
)

// Config says what to guard.
type Config struct {
	Path string       // the directory; absolute. It and what is in it need not exist
	Log  *slog.Logger // with a component
}

// Guard watches one directory. Nothing comes on Changed unless Run runs; Verify works without it.
type Guard struct {
	path    string
	log     *slog.Logger
	tree    atomic.Pointer[Tree]
	limit   atomic.Pointer[error]
	stir    chan struct{} // size one: a sensor saw something
	renew   chan struct{} // size one: Expect was called
	changed chan struct{} // size one
}

// New returns a Guard that expects nothing yet.
func New(c Config) *Guard {
	return &Guard{
		path:    filepath.Clean(c.Path),
		log:     c.Log,
		stir:    make(chan struct{}, 1),
		renew:   make(chan struct{}, 1),
		changed: make(chan struct{}, 1),
	}
}

// Changed receives when the owner should call Verify: soon after something happened to the directory, after Expect, and
// at intervals. Requests fold into one while the owner is busy.
func (g *Guard) Changed() <-chan struct{} { return g.changed }

// Expect sets what should be there; nil: nothing is expected, and nothing is watched. The owner calls it after each
// publication, from the goroutine that calls Verify.
//
// A publication does not replace the directory itself: as long as it is the same one, its owner and mode stay what they
// were in the first tree, or a publication would make someone's chmod the new normal.
func (g *Guard) Expect(t *Tree) {
	if old := g.tree.Load(); old != nil && t != nil && old.dir.id == t.dir.id {
		same := *t
		same.dir = old.dir
		t = &same
	}
	g.tree.Store(t)
	signal(g.renew)
}

// Verify compares the directory with what is expected. It returns nil if they agree or if nothing is expected. It
// follows no link that others may have planted, reads no more of a file than should be there, and names at most
// maxExtra foreign entries of a directory.
func (g *Guard) Verify() []Finding {
	t := g.tree.Load()
	if t == nil {
		return nil
	}
	return t.verify(g.path)
}

// Limit returns why some changes are noticed only by the sweep, which then comes every 5 s; nil if none are.
// On a busy node that is "too many open files": containers that run as root share root's inotify instances.
func (g *Guard) Limit() error {
	if err := g.limit.Load(); err != nil {
		return *err
	}
	return nil
}

// Run watches until ctx ends, and then returns nil. It never fails: what cannot be watched is swept.
func (g *Guard) Run(ctx context.Context) error {
	s := &sensors{path: g.path, stir: g.stir}
	defer s.close()
	g.loop(ctx, s.renew)
	return nil
}

// loop asks the owner to look. It renews all watches before it does: a directory may have been replaced by another of
// the same name, and inotify would go on watching the old one. A change between the end of the old watch and the start
// of the new one is found by the look that follows.
func (g *Guard) loop(ctx context.Context, renew func(*Tree) error) {
	settled := time.NewTimer(quiet)
	settled.Stop()
	sweep := time.NewTimer(0)
	defer settled.Stop()
	defer sweep.Stop()
	var since time.Time // when the first event came that has not been answered
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.stir:
			now := time.Now()
			if since.IsZero() {
				since = now
			}
			settled.Reset(min(quiet, since.Add(patience).Sub(now)))
			continue
		case <-settled.C:
		case <-g.renew:
		case <-sweep.C:
		}
		settled.Stop()
		since = time.Time{}
		g.note(renew(g.tree.Load()))
		sweep.Reset(nextSweep(g.Limit() != nil, rand.Float64()))
		signal(g.changed)
	}
}

// note records whether everything can be watched, and logs the first failure and the recovery.
func (g *Guard) note(err error) {
	before := g.Limit()
	switch {
	case err == nil && before != nil:
		g.log.Info("directory is watched again", "path", g.path)
	case err != nil && before == nil:
		g.log.Warn("directory is not fully watched, looking at intervals",
			"path", g.path, "interval", limitedSweep, "err", err)
	}
	if err == nil {
		g.limit.Store(nil)
	} else {
		g.limit.Store(&err)
	}
}

// nextSweep returns the interval, give or take a fifth. Random is from [0, 1).
func nextSweep(limited bool, random float64) time.Duration {
	d := sweep
	if limited {
		d = limitedSweep
	}
	return time.Duration(float64(d) * (0.8 + 0.4*random))
}

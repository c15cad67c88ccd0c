package mtls

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sevagent/client"
	"sevagent/internal/mtls/guard"
)

const (
	// requestTimeout bounds one call of a Source, evidenceTimeout one of Config.Evidence.
	requestTimeout  = 10 * time.Second
	evidenceTimeout = 20 * time.Second
	// minIdle is how long the loop sleeps at least; requests wake it.
	minIdle = 20 * time.Millisecond
	// heartbeat is how often the loop turns with nothing to do.
	heartbeat = 5 * time.Second
	// collectInterval is how often retired generations are looked for.
	collectInterval = time.Minute
)

// MaxStall is the age that Progress does not reach while the loop turns, whatever it waits for.
const MaxStall = 30 * time.Second

// Rotator keeps the published directory equal to what its secrets say. New makes one, Run works.
type Rotator struct {
	log       *slog.Logger
	metrics   *metrics
	evidence  func(context.Context, Binding) ([]byte, error) // nil: there is to be none
	onPublish func(generation string)
	ready     chan struct{} // closed at the first complete publication
	stopped   chan struct{} // closed when Run returns
	path      string
	allowDisk bool
	wake      chan struct{} // size one: look at requests
	alarm     chan struct{} // size one: a directory is suspect
	running   sync.WaitGroup
	progress  atomic.Int64 // Unix time in ns
	status    atomic.Pointer[snapshot]

	mu       sync.Mutex
	requests requests

	// All below is owned by Run.
	settings    Settings
	secrets     []*secret
	dirs        []*directory // the node's own first
	newGuard    func(path string) sentinel
	hints       hints
	clock       clock
	dirty       bool                 // there may be something new to publish
	blocked     error                // why the secrets give nothing to publish
	noEvidence  bool                 // the last time it was asked for, there was to be none
	leaving     map[string]time.Time // anchors that were first missed: until when they stay, by SHA-256
	nextCollect time.Time
}

// requests are what others want of Run. Those made while one is pending fold into it.
type requests struct {
	settings *Settings
	look     bool // at every secret, now
	waiters  []chan<- outcome
}

type outcome struct {
	change client.Refresh
	err    error
}

// attempt follows something that may fail several times in a row.
type attempt struct {
	err      error
	failures int
	next     time.Time
}

// errStopped answers a Refresh that Run does not live to see.
var errStopped = errors.New("the rotation of certificates has stopped")

// New returns a Rotator that has not started. Until Run has looked at the directory, Status shows nothing.
func New(c Config) *Rotator {
	r := &Rotator{
		log:     c.Log.With("component", "mtls"),
		metrics: newMetrics(c.Registerer),
		ready:   make(chan struct{}),
		stopped: make(chan struct{}),
		wake:    make(chan struct{}, 1),
		alarm:   make(chan struct{}, 1),
		leaving: make(map[string]time.Time),
	}
	if c.Evidence != nil {
		r.evidence = func(ctx context.Context, b Binding) ([]byte, error) {
			ctx, cancel := context.WithTimeout(ctx, evidenceTimeout)
			defer cancel()
			return await(ctx, r, func(ctx context.Context) ([]byte, error) { return c.Evidence(ctx, b) })
		}
	}
	r.clock.log = r.log
	r.path, r.allowDisk, r.onPublish = c.Path, c.AllowDisk, c.Published
	r.newGuard = func(path string) sentinel { return guard.New(guard.Config{Path: path, Log: r.log}) }
	r.dirs = []*directory{r.newDirectory(Consumer{})}
	r.apply(c.Settings)
	r.turned(time.Now())
	r.show()
	return r
}

// newDirectory returns the directory of a consumer, or the node's own.
func (r *Rotator) newDirectory(c Consumer) *directory {
	d := &directory{
		consumer: c,
		log:      r.log,
		opens:    newOpens(),
		guard:    r.newGuard(filepath.Join(r.path, c.Name)),
		state:    client.GuardStatus{State: client.GuardOff},
	}
	d.pub = r.newPublisher(c.Name)
	d.pub.quiet = func() { d.opens.settle() }
	return d
}

func (r *Rotator) newPublisher(consumer string) *publisher {
	return &publisher{path: filepath.Join(r.path, consumer), allowDisk: r.allowDisk, consumer: consumer, log: r.log}
}

// Run publishes, and keeps at it, until ctx ends. No failure ends it.
func (r *Rotator) Run(ctx context.Context) error {
	defer close(r.stopped)
	defer func() {
		for _, d := range r.dirs {
			d.close()
		}
		r.running.Wait()
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.alarm:
			r.answerAlarm()
			continue
		case <-r.wake:
		case <-timer.C:
		}
		r.turn(ctx)
		now := time.Now()
		r.turned(now)
		timer.Reset(r.idle(now))
	}
}

// Hint says that a secret may have changed. It does not wait. Hints are looked into at once, ten of them; those above
// one in ten seconds have to wait, and fold into one.
func (r *Rotator) Hint() { r.request(func(q *requests) { q.look = true }) }

// Apply replaces the settings, without waiting. Secrets of the same name keep what is known of them.
func (r *Rotator) Apply(s Settings) { r.request(func(q *requests) { q.settings = &s }) }

// Refresh is a Hint that waits: it looks at every secret, publishes what has changed, and tells what came of it. The error joins the
// reasons of the secrets that could not be brought up to date; the Refresh is good in any case.
func (r *Rotator) Refresh(ctx context.Context) (client.Refresh, error) {
	done := make(chan outcome, 1)
	r.request(func(q *requests) {
		q.look = true
		q.waiters = append(q.waiters, done)
	})
	select {
	case o := <-done:
		return o.change, o.err
	case <-ctx.Done():
		return client.Refresh{}, ctx.Err()
	case <-r.stopped:
		return client.Refresh{}, errStopped
	}
}

func (r *Rotator) request(ask func(*requests)) {
	r.mu.Lock()
	ask(&r.requests)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// Ready is closed when a complete, valid set is published, be it by an earlier run.
func (r *Rotator) Ready() <-chan struct{} { return r.ready }

// Status returns the latest snapshot.
func (r *Rotator) Status() *client.Publication { return &r.status.Load().Publication }

// Progress is when the loop last turned. While it does, Progress is never older than MaxStall.
func (r *Rotator) Progress() time.Time { return time.Unix(0, r.progress.Load()) }

func (r *Rotator) turned(now time.Time) { r.progress.Store(now.UnixNano()) }

// SPKI returns the SHA-256 of the SubjectPublicKeyInfo of the published certificate of a kind, "client" or "server".
func (r *Rotator) SPKI(kind string) (sum [sha256.Size]byte, ok bool) {
	sum, ok = r.status.Load().keys[kind]
	return sum, ok
}

// take returns the requests that may be seen to now, and keeps the rest.
func (r *Rotator) take(now time.Time) requests {
	r.mu.Lock()
	defer r.mu.Unlock()
	q := r.requests
	r.requests = requests{}
	// Local files cost nothing to look at.
	remote := slices.ContainsFunc(r.secrets, func(s *secret) bool { _, local := s.source.(FileSource); return !local })
	if q.look && q.settings == nil && remote && !r.hints.allow(now) {
		r.requests.look, r.requests.waiters = true, q.waiters
		q.look, q.waiters = false, nil
	}
	return q
}

// turn does all that is due.
func (r *Rotator) turn(ctx context.Context) {
	q := r.take(time.Now())
	before := r.main().generation()
	if q.settings != nil {
		r.apply(*q.settings)
	}
	busy := q.settings != nil || q.look
	r.tend(ctx)
	for _, d := range r.dirs {
		now := time.Now()
		if !d.repair.next.IsZero() && !now.Before(d.repair.next) {
			r.inspect(d, now)
			busy = true
		}
	}
	if len(r.secrets) > 0 {
		busy = r.work(ctx, q.look) || busy
	}
	if ctx.Err() != nil {
		return
	}
	if r.complete() {
		r.beReady()
	}
	if !busy {
		return
	}
	r.show()
	o := outcome{client.Refresh{Generation: r.main().generation(), Secrets: r.Status().Secrets}, r.troubles()}
	if o.change.Generation != before {
		o.change.Changed, o.change.Previous = true, before
	}
	for _, w := range q.waiters {
		w <- o
	}
}

// work opens, looks and publishes, as far as that is due, and reports whether it has done anything.
func (r *Rotator) work(ctx context.Context, look bool) (busy bool) {
	for _, d := range r.dirs {
		if now := time.Now(); !d.opened && (look || !now.Before(d.publish.next)) {
			busy = true
			if err := d.open(now); err != nil {
				r.publishFailed(d, err, now)
				continue
			}
			r.dirty = true
			if d == r.main() {
				r.recall()
				r.withdrawForgotten()
			}
		}
	}
	if busy && r.complete() { // no need to wait for the sources, which may be out of reach
		r.beReady()
	}
	for _, s := range r.secrets {
		if now := time.Now(); look || !now.Before(s.next) {
			r.check(ctx, s)
			busy = true
		}
		if ctx.Err() != nil {
			return busy
		}
	}
	if now := time.Now(); r.main().opened && (r.due(now) || look && r.failing()) {
		r.bringUp(ctx, now)
		busy = true
	}
	if now := time.Now(); !now.Before(r.nextCollect) {
		r.collect(now)
	}
	return busy
}

// idle is how long the loop may sleep.
func (r *Rotator) idle(now time.Time) time.Duration {
	wait := heartbeat
	until := func(t time.Time) {
		if !t.IsZero() {
			wait = min(wait, t.Sub(now))
		}
	}
	for _, s := range r.secrets {
		until(s.next)
		if s.candidate != nil {
			until(s.heldUntil)
		}
	}
	for _, d := range r.dirs {
		until(d.repair.next)
		switch {
		case len(r.secrets) == 0: // nothing is published
		case d.publish.err != nil || !d.opened:
			until(d.publish.next)
		case d.current != nil && d.current.set != nil:
			for _, c := range d.current.set.carried {
				until(c.Until)
			}
		}
	}
	r.mu.Lock()
	if r.requests.look {
		until(r.hints.next())
	}
	r.mu.Unlock()
	// What is overdue was either done a moment ago or cannot be done: neither is worth a busy loop.
	return max(minIdle, wait)
}

// apply takes over settings and keeps what is known of secrets that stay.
func (r *Rotator) apply(s Settings) {
	known := make(map[string]*secret)
	for _, k := range r.secrets {
		known[k.name] = k
	}
	r.secrets = nil
	for _, n := range s.Secrets {
		k := known[n.Name]
		delete(known, n.Name)
		if k == nil {
			k = &secret{name: n.Name}
		}
		k.source = n.Source
		k.next = time.Time{}
		r.secrets = append(r.secrets, k)
	}
	r.settings = s
	r.dirty = true

	dirs := map[string]*directory{"": r.main()}
	for _, d := range r.dirs[1:] {
		dirs[d.consumer.Name] = d
	}
	r.dirs = nil
	for _, c := range append([]Consumer{{Owner: s.Owner}}, s.Consumers...) {
		d := dirs[c.Name]
		delete(dirs, c.Name)
		if d == nil {
			d = r.newDirectory(c)
		}
		d.consumer, d.access = c, access{c.Owner, s.KeyMode, s.CertMode}
		r.dirs = append(r.dirs, d)
	}
	r.main().allowed = nil
	for _, c := range s.Consumers {
		r.main().allowed = append(r.main().allowed, c.Name)
	}
	r.main().allow()
	for _, d := range dirs {
		d.close()
		r.withdraw(d.pub)
	}
}

// main is the node's own directory.
func (r *Rotator) main() *directory { return r.dirs[0] }

// recall takes over what an earlier run has published.
func (r *Rotator) recall() {
	g := r.main().current
	if g == nil {
		return
	}
	for _, s := range r.secrets {
		for _, b := range g.bundles {
			if b.secret == s.name && b.version != "" && s.published == nil {
				s.published = b
			}
		}
	}
}

// complete: is every secret in what is published, everywhere, and that as it should be?
func (r *Rotator) complete() bool {
	if len(r.secrets) == 0 {
		return true
	}
	if !r.main().intact() || slices.ContainsFunc(r.dirs[1:], func(d *directory) bool { return d.current == nil || d.current.damaged }) {
		return false
	}
	return !slices.ContainsFunc(r.secrets, func(s *secret) bool { return s.published == nil })
}

// failing: is there a directory that the last attempt to publish has failed for?
func (r *Rotator) failing() bool {
	return slices.ContainsFunc(r.dirs, func(d *directory) bool { return d.publish.err != nil })
}

func (r *Rotator) isReady() bool {
	select {
	case <-r.ready:
		return true
	default:
		return false
	}
}

func (r *Rotator) beReady() {
	if !r.isReady() {
		close(r.ready)
		r.show()
	}
}

func (r *Rotator) collect(now time.Time) {
	r.nextCollect = now.Add(collectInterval)
	for _, d := range r.dirs {
		if !d.opened {
			continue
		}
		root, err := d.pub.open()
		if err == nil {
			err = collect(root, maxRetired, now)
			root.Close()
		}
		if err != nil {
			r.log.Warn("old generations stay", "path", d.pub.path, "err", err)
		}
	}
}

// troubles joins the reasons why what is published is not what the secrets say.
func (r *Rotator) troubles() error {
	var errs []error
	add := func(err error) {
		if err != nil && !slices.ContainsFunc(errs, func(e error) bool { return e.Error() == err.Error() }) {
			errs = append(errs, err)
		}
	}
	add(r.blocked)
	for _, d := range r.dirs {
		add(d.publish.err)
	}
	for _, s := range r.secrets {
		add(s.look.err)
		if _, held := errors.AsType[*HeldError](s.reason); !held {
			add(s.reason)
		}
	}
	return errors.Join(errs...)
}

package mtls

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// requestTimeout bounds one call of a Source, evidenceTimeout one of Config.Evidence.
	requestTimeout  = 10 * time.Second
	evidenceTimeout = 20 * time.Second
	// heartbeat is how often the loop turns with nothing to do.
	heartbeat = 5 * time.Second
	// collectInterval is how often retired generations are looked for.
	collectInterval = time.Minute
)

// MaxStall is the age that Progress does not reach while the loop turns, whatever it waits for.
const MaxStall = 30 * time.Second

// Rotator keeps the published directory equal to what its secrets say. New makes one, Run works.
type Rotator struct {
	log      *slog.Logger
	metrics  *metrics
	pub      *publisher
	ready    chan struct{} // closed at the first complete publication
	stopped  chan struct{} // closed when Run returns
	wake     chan struct{} // size one: look at requests
	progress atomic.Int64  // Unix time in ns
	status   atomic.Pointer[Status]

	mu       sync.Mutex
	requests requests

	// All below is owned by Run.
	interval    time.Duration
	access      access
	secrets     []*secret
	opened      bool        // recover has run
	current     *generation // nil: nothing that may be served
	dirty       bool        // there may be something new to publish
	blocked     error       // why the secrets give nothing to publish
	publish     attempt     // of what they give
	nextCollect time.Time
}

// requests are what others want of Run. Those made while one is pending fold into it.
type requests struct {
	settings *Settings
	look     bool // at every secret, now
	waiters  []chan<- outcome
}

type outcome struct {
	change Change
	err    error
}

// attempt follows something that may fail several times in a row.
type attempt struct {
	err      error
	failures int
	next     time.Time
}

// Change is what a Refresh has come to.
type Change struct {
	Changed    bool           `json:"changed"`
	Generation string         `json:"generation,omitempty"` // current now
	Previous   string         `json:"previous,omitempty"`   // current before, if Changed
	Secrets    []SecretStatus `json:"secrets"`
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
	}
	r.pub = &publisher{path: c.Path, allowDisk: c.AllowDisk, log: r.log}
	if c.Evidence != nil {
		r.pub.evidence = func(ctx context.Context, b Binding) ([]byte, error) {
			ctx, cancel := context.WithTimeout(ctx, evidenceTimeout)
			defer cancel()
			return c.Evidence(ctx, b)
		}
	}
	r.apply(c.Settings)
	r.turned(time.Now())
	r.show()
	return r
}

// Run publishes, and keeps at it, until ctx ends. No failure ends it.
func (r *Rotator) Run(ctx context.Context) error {
	defer close(r.stopped)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-timer.C:
		}
		r.turn(ctx)
		now := time.Now()
		r.turned(now)
		timer.Reset(r.idle(now))
	}
}

// Hint says that a secret may have changed. It does not wait.
func (r *Rotator) Hint() { r.request(func(q *requests) { q.look = true }) }

// Apply replaces the settings, without waiting. Secrets of the same name keep what is known of them.
func (r *Rotator) Apply(s Settings) { r.request(func(q *requests) { q.settings = &s }) }

// Refresh looks at every secret now, publishes what has changed, and tells what came of it. The error joins the
// reasons of the secrets that could not be brought up to date; the Change is good in any case.
func (r *Rotator) Refresh(ctx context.Context) (Change, error) {
	done := make(chan outcome, 1)
	r.request(func(q *requests) {
		q.look = true
		q.waiters = append(q.waiters, done)
	})
	select {
	case o := <-done:
		return o.change, o.err
	case <-ctx.Done():
		return Change{}, ctx.Err()
	case <-r.stopped:
		return Change{}, errStopped
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
func (r *Rotator) Status() *Status { return r.status.Load() }

// Progress is when the loop last turned. While it does, Progress is never older than MaxStall.
func (r *Rotator) Progress() time.Time { return time.Unix(0, r.progress.Load()) }

func (r *Rotator) turned(now time.Time) { r.progress.Store(now.UnixNano()) }

// SPKI returns the SHA-256 of the SubjectPublicKeyInfo of the published certificate of a kind, "client" or "server".
func (r *Rotator) SPKI(kind string) (sum [sha256.Size]byte, ok bool) {
	sum, ok = r.Status().keys[kind]
	return sum, ok
}

// turn does all that is due.
func (r *Rotator) turn(ctx context.Context) {
	r.mu.Lock()
	q := r.requests
	r.requests = requests{}
	r.mu.Unlock()

	before := r.generation()
	if q.settings != nil {
		r.apply(*q.settings)
	}
	busy := q.settings != nil || q.look
	if len(r.secrets) > 0 {
		if !r.opened && (q.look || !time.Now().Before(r.publish.next)) {
			r.open(time.Now())
			busy = true
			if r.complete() { // no need to wait for the sources, which may be out of reach
				r.beReady()
			}
		}
		for _, s := range r.secrets {
			if now := time.Now(); q.look || !now.Before(s.next) {
				r.check(ctx, s)
				busy = true
			}
			if ctx.Err() != nil {
				return
			}
		}
		if now := time.Now(); r.opened && (r.due(now) || q.look && r.publish.err != nil) {
			r.bringUp(ctx, now)
			busy = true
		}
		if now := time.Now(); r.opened && !now.Before(r.nextCollect) {
			r.collect(now)
		}
	}
	if r.complete() {
		r.beReady()
	}
	if !busy {
		return
	}
	r.show()
	o := outcome{Change{Generation: r.generation(), Secrets: r.Status().Secrets}, r.troubles()}
	if o.change.Generation != before {
		o.change.Changed, o.change.Previous = true, before
	}
	for _, w := range q.waiters {
		w <- o
	}
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
	if r.publish.err != nil || !r.opened && len(r.secrets) > 0 {
		until(r.publish.next)
	}
	return max(0, wait)
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
	r.interval = s.PollInterval
	r.access = access{s.Owner, s.KeyMode, s.CertMode}
	r.dirty = true
}

// open looks at the directory for the first time.
func (r *Rotator) open(now time.Time) {
	root, err := openDir(r.pub.path, r.pub.allowDisk)
	if err != nil {
		r.publishFailed(fmt.Errorf("publish to %s: %w", r.pub.path, err), now)
		return
	}
	defer root.Close()
	r.opened = true
	r.publish = attempt{}
	g, err := r.pub.recover(root, now)
	switch {
	case g == nil && errors.Is(err, errNothing):
		r.log.Info("starting with an empty directory", "path", r.pub.path)
		return
	case g == nil:
		r.log.Warn("what an earlier run has published is of no use", "path", r.pub.path, "err", err)
		return
	case g.damaged:
		r.log.Warn("what an earlier run has published was changed, it will be published afresh", "generation", g.name(), "err", err)
	default:
		r.log.Info("serving what an earlier run has published", "generation", g.name(), "not_after", g.manifest.NotAfter)
	}
	r.current = g
	for _, s := range r.secrets {
		for _, b := range g.bundles {
			if b.secret == s.name && b.version != "" && s.published == nil {
				s.published = b
			}
		}
	}
}

// complete: is every secret in what is published, and that as it should be?
func (r *Rotator) complete() bool {
	if len(r.secrets) > 0 && (r.current == nil || r.current.damaged) {
		return false
	}
	for _, s := range r.secrets {
		if s.published == nil {
			return false
		}
	}
	return true
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

func (r *Rotator) generation() string {
	if r.current == nil {
		return ""
	}
	return r.current.name()
}

func (r *Rotator) collect(now time.Time) {
	r.nextCollect = now.Add(collectInterval)
	root, err := openDir(r.pub.path, r.pub.allowDisk)
	if err == nil {
		defer root.Close()
		err = collect(root, now)
	}
	if err != nil {
		r.log.Warn("old generations stay", "err", err)
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
	add(r.publish.err)
	for _, s := range r.secrets {
		add(s.look.err)
		if _, held := errors.AsType[*HeldError](s.reason); !held {
			add(s.reason)
		}
	}
	return errors.Join(errs...)
}

// show publishes a new snapshot.
func (r *Rotator) show() {
	s := &Status{
		Ready:        r.isReady(),
		Path:         r.pub.path,
		Certificates: []Certificate{},
		Secrets:      []SecretStatus{},
		keys:         make(map[string][sha256.Size]byte),
	}
	if g := r.current; g != nil {
		s.Generation, s.PublishedAt, s.NotAfter = g.name(), g.manifest.Published, g.set.notAfter()
		s.Certificates, s.Warnings = certificates(g.set), g.set.warnings
		for kind, leaf := range g.set.leaves {
			s.keys[kind] = spki(leaf)
		}
	}
	if err := cmp.Or(r.publish.err, r.blocked); err != nil {
		s.Error = err.Error()
	}
	for _, k := range r.secrets {
		s.Secrets = append(s.Secrets, k.status())
	}
	r.status.Store(s)
	r.metrics.show(s)
}

package mtls

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"sevagent/client"
	"sevagent/internal/config"
	"sevagent/internal/mtls/certset"
	"sevagent/internal/mtls/directory"
	"sevagent/internal/mtls/guard"
)

const (
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
	config    Config
	log       *slog.Logger
	metrics   *metrics
	onPublish []func(generation string)
	ready     chan struct{} // closed at the first complete publication
	stopped   chan struct{} // closed when Run returns
	inbox     *inbox
	caller    *caller
	status    atomic.Pointer[snapshot]

	// All below is owned by Run.
	settings    Settings
	secrets     secrets
	targets     []*target // the node's own first
	clock       clock
	overlap     certset.Overlap
	changed     bool      // something other than a secret, such as the settings, may call for a publication
	composed    time.Time // when the secrets were last put together
	blocked     error     // why the secrets give nothing to publish
	renewals    []*renewal
	noEvidence  bool // the last time that evidence was asked for, there was to be none
	nextCollect time.Time
	warned      map[client.Expiry]int // the stages that have been logged
}

// UnknownError says that no secret of a name issues certificates.
type UnknownError struct{ Name string }

func (e *UnknownError) Error() string {
	return fmt.Sprintf("renew %s: mtls.issue has none of that name", e.Name)
}

// errStopped answers a Refresh that Run does not live to serve.
var errStopped = errors.New("the rotation of certificates has stopped")

// New returns a Rotator that has not started. Until Run has looked at the directory, Status shows nothing.
func New(c Config) *Rotator {
	log := c.Log.With("component", "mtls")
	if c.newGuard == nil {
		c.newGuard = func(path string) sentinel { return guard.New(guard.Config{Path: path, Log: log}) }
	}
	m := newMetrics(c.Registerer)
	r := &Rotator{
		config:  c,
		log:     log,
		metrics: m,
		ready:   make(chan struct{}),
		stopped: make(chan struct{}),
		inbox:   newInbox(),
		clock:   clock{log: log},
	}
	r.caller = &caller{metrics: m, alarm: make(chan struct{}, 1), onAlarm: r.answerAlarms, verifying: c.verifying}
	r.apply(c.Settings)
	r.caller.movedOn(time.Now())
	r.updateStatus()
	return r
}

// OnPublish has f called after there are new generations, of Path or of a consumer's directory, with the current
// generation of Path. f must not wait for anything. OnPublish is called before Run.
func (r *Rotator) OnPublish(f func(generation string)) { r.onPublish = append(r.onPublish, f) }

// Run publishes, and keeps at it, until ctx ends. No failure ends it.
func (r *Rotator) Run(ctx context.Context) error {
	defer close(r.stopped)
	defer func() {
		for _, t := range r.targets {
			t.close()
		}
		r.caller.running.Wait()
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.caller.alarm:
			r.answerAlarms()
			continue
		case <-r.inbox.wake:
		case <-timer.C:
		}
		r.runDue(ctx)
		now := time.Now()
		r.warnOfExpiry(now)
		r.caller.movedOn(now)
		timer.Reset(r.idle(now))
	}
}

// warnOfExpiry logs each stage of a certificate's end once.
func (r *Rotator) warnOfExpiry(now time.Time) {
	stages := make(map[client.Expiry]int)
	for _, e := range r.Status().Expiry {
		stage := e.Stage(now)
		stages[e] = stage
		if stage <= r.warned[e] {
			continue
		}
		advice := "store a renewed one in the secret"
		if k := r.secrets.find(e.Secret); k != nil && k.issuing() != nil {
			advice = "it should have been renewed; see the status of its source"
		}
		attrs := []any{
			"file", e.File, "subject", e.Subject, "not_after", e.NotAfter.UTC(), "secret", e.Secret, "advice", advice,
		}
		if stage == client.Expired {
			r.log.Error("a published certificate has expired", attrs...)
		} else {
			attrs = append(attrs, "left", e.Left(now))
			r.log.Warn("a published certificate expires", attrs...)
		}
	}
	r.warned = stages
}

// Hint says that a secret may have changed. It does not wait. Up to ten hints are served at once, then one per ten
// seconds; the rest coalesce.
func (r *Rotator) Hint() { r.inbox.add(func(q *requests) { q.look = true }) }

// Apply replaces the settings, without waiting. What is known of secrets whose names stay is kept.
func (r *Rotator) Apply(s Settings) { r.inbox.add(func(q *requests) { q.settings = &s }) }

// Refresh is a Hint that waits: it looks at every secret, publishes what has changed, and returns the outcome. The
// error joins the reasons of the secrets that could not be brought up to date; the Refresh is valid in any case.
func (r *Rotator) Refresh(ctx context.Context) (client.Refresh, error) {
	done := make(chan outcome, 1)
	r.inbox.add(func(q *requests) {
		q.look = true
		q.waiters = append(q.waiters, done)
	})
	return r.wait(ctx, done)
}

// Pushed says that a source has something new. It does not wait.
func (r *Rotator) Pushed(name string) {
	r.inbox.add(func(q *requests) {
		if !slices.Contains(q.pushed, name) {
			q.pushed = append(q.pushed, name)
		}
	})
}

// Renew has a secret that issues certificates order another one, and returns the outcome once that is published or
// cannot be.
func (r *Rotator) Renew(ctx context.Context, name string) (client.Refresh, error) {
	w := &renewal{name: name, done: make(chan outcome, 1)}
	r.inbox.add(func(q *requests) { q.renewals = append(q.renewals, w) })
	return r.wait(ctx, w.done)
}

// wait returns the outcome of a request.
func (r *Rotator) wait(ctx context.Context, done <-chan outcome) (client.Refresh, error) {
	select {
	case o := <-done:
		return o.refresh, o.err
	case <-ctx.Done():
		return client.Refresh{}, ctx.Err()
	case <-r.stopped:
		return client.Refresh{}, errStopped
	}
}

// Ready is closed when a complete, valid set is published, by this run or an earlier one.
func (r *Rotator) Ready() <-chan struct{} { return r.ready }

// Status returns the latest snapshot, which never changes.
func (r *Rotator) Status() *client.Publication { return &r.status.Load().Publication }

// Progress returns when the loop last moved on. While it does, Progress is never older than MaxStall.
func (r *Rotator) Progress() time.Time { return time.Unix(0, r.caller.progress.Load()) }

// SPKI returns the SHA-256 of the SubjectPublicKeyInfo of the published certificate of a kind, "client" or "server".
func (r *Rotator) SPKI(kind string) (sum [sha256.Size]byte, ok bool) {
	sum, ok = r.status.Load().keys[kind]
	return sum, ok
}

// runDue does everything that is due, and answers the refreshes that wait for it.
func (r *Rotator) runDue(ctx context.Context) {
	q := r.inbox.take(time.Now(), !slices.ContainsFunc(r.secrets, func(s *secret) bool { return !s.local() }))
	before := r.main().Generation()
	if q.settings != nil {
		r.apply(*q.settings)
	}
	r.takeRequests(q)
	busy := q.settings != nil || q.look
	for _, t := range r.targets {
		t.startGuard(ctx, r.caller)
	}
	for _, t := range r.targets {
		if now := time.Now(); !t.state.retry.next.IsZero() && !now.Before(t.state.retry.next) {
			busy = true
			if t.inspect(now) {
				r.notify()
			}
		}
	}
	if len(r.secrets) > 0 {
		busy = r.rotate(ctx, q.look) || busy
	}
	if ctx.Err() != nil {
		return
	}
	r.readyIfComplete()
	if !busy {
		return
	}
	r.updateStatus()
	o := outcome{client.Refresh{Generation: r.main().Generation(), Secrets: r.Status().Secrets}, r.failures()}
	if o.refresh.Generation != before {
		o.refresh.Changed, o.refresh.Previous = true, before
	}
	for _, w := range q.waiters {
		w <- o
	}
	r.answerRenewals(o.refresh, time.Now())
}

// takeRequests has the secrets that requests name looked at.
func (r *Rotator) takeRequests(q requests) {
	for _, name := range q.pushed {
		if s := r.secrets.find(name); s != nil {
			s.next = time.Time{}
		}
	}
	for _, w := range q.renewals {
		s := r.secrets.find(w.name)
		if s == nil || s.issuing() == nil {
			w.done <- outcome{err: &UnknownError{w.name}}
			continue
		}
		s.issuing().Renew()
		s.next = time.Time{}
		if s.published != nil {
			w.was = s.published.Version
		}
		r.renewals = append(r.renewals, w)
	}
}

// patience is how long a renewal waits for what is not under way yet.
const patience = 30 * time.Second

// answerRenewals answers the renewals that have come to an end.
func (r *Rotator) answerRenewals(done client.Refresh, now time.Time) {
	r.renewals = slices.DeleteFunc(r.renewals, func(w *renewal) bool {
		o := outcome{refresh: done}
		s := r.secrets.find(w.name)
		switch {
		case s == nil:
			o.err = &UnknownError{w.name}
		case s.published != nil && s.published.Version != w.was:
			o.refresh.Changed = true
		case s.look.err != nil:
			o.err = s.look.err
		case s.reason != nil:
			o.err = s.reason
		case s.next.Sub(now) > patience:
			o.err = fmt.Errorf("renew %s: there is no newer certificate, and none is ordered before %s: six were within an "+
				"hour, or the source renews by itself", w.name, s.next.UTC().Format(time.RFC3339))
		default:
			return false
		}
		w.done <- o
		return true
	})
}

// rotate opens directories, looks at secrets and publishes, as far as that is due or asked for, and reports whether it
// has done anything.
func (r *Rotator) rotate(ctx context.Context, asked bool) (busy bool) {
	for _, t := range r.targets {
		if now := time.Now(); !t.Opened() && (asked || !now.Before(t.attempt.next)) {
			r.open(t, now)
			busy = true
		}
	}
	if busy { // no need to wait for the sources, which may be out of reach
		r.readyIfComplete()
	}
	for _, s := range r.secrets {
		if now := time.Now(); asked || !now.Before(s.next) {
			r.look(ctx, s)
			busy = true
		}
		if ctx.Err() != nil {
			return busy
		}
	}
	if now := time.Now(); r.main().Opened() && (r.due(now) || asked && r.failing()) {
		r.publishAll(ctx, now)
		busy = true
	}
	if now := time.Now(); !now.Before(r.nextCollect) {
		r.collect(now)
	}
	return busy
}

// open looks at a directory for the first time.
func (r *Rotator) open(t *target, now time.Time) {
	if err := t.open(now); err != nil {
		t.publishFailed(err, now)
		return
	}
	r.changed = true
	if t != r.main() {
		return
	}
	if g := t.Current(); g != nil {
		r.secrets.takeOver(g.Set)
	}
	for _, name := range t.Consumers() { // dropped while the agent did not run
		if !slices.Contains(t.allowed, name) {
			r.withdraw(config.Consumer{Name: name})
		}
	}
}

// withdraw removes the directory of a dropped consumer.
func (r *Rotator) withdraw(c config.Consumer) {
	d := directory.New(r.config.directoryOf(c, r.log))
	defer d.Close()
	if err := d.Withdraw(); err != nil {
		r.log.Error("could not remove a dropped consumer's directory; remove it by hand", "path", d.Path(), "err", err)
		return
	}
	r.log.Info("removed a dropped consumer's directory", "path", d.Path())
}

// look looks at a secret, fetches a version that is not known yet, and decides when to look again.
func (r *Rotator) look(ctx context.Context, s *secret) {
	err := s.refresh(ctx, r.caller, &r.clock)
	if err == nil && s.fetchPending(ctx, r.caller) {
		r.verifyPending(s.preflight.at) // it may be what another one was waiting for
	}
	now := time.Now()
	if ctx.Err() != nil {
		return
	}
	r.caller.movedOn(now)
	o := Outlook{
		Interval:     r.settings.PollInterval,
		NextRotation: s.latest.NextRotation,
		Pending:      s.latest.Pending != "" && s.latest.Pending != s.latest.Current,
	}
	if g := r.main().Current(); g != nil {
		for _, f := range g.Set.Files {
			if f.Ends != nil && (o.NotAfter.IsZero() || f.Ends.NotAfter.Before(o.NotAfter)) {
				o.NotBefore, o.NotAfter = f.Ends.NotBefore, f.Ends.NotAfter
			}
		}
	}
	s.schedule(err, o, !r.isReady(), now)
}

// answerAlarms inspects the directories whose guards have seen something.
func (r *Rotator) answerAlarms() {
	changed := false
	for _, t := range r.targets {
		if !t.suspect.Swap(false) {
			continue
		}
		state := t.state.State
		if t.inspect(time.Now()) {
			r.notify()
			changed = true
		}
		changed = changed || t.state.State != state
	}
	if changed {
		r.updateStatus()
	}
}

// notify calls what OnPublish was given.
func (r *Rotator) notify() {
	for _, f := range r.onPublish {
		f(r.main().Generation())
	}
}

// idle returns how long the loop may sleep.
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
	for _, t := range r.targets {
		until(t.state.retry.next)
		switch {
		case len(r.secrets) == 0: // nothing is published
		case t.attempt.err != nil || !t.Opened():
			until(t.attempt.next)
		default:
			until(t.overlapEnds())
		}
	}
	if len(r.secrets) > 0 {
		until(r.nextExpiry())
	}
	until(r.inbox.next())
	// What is overdue was either done a moment ago or cannot be done: neither is worth a busy loop.
	return max(minIdle, wait)
}

// apply takes over settings, and keeps what is known of secrets and directories that stay.
func (r *Rotator) apply(s Settings) {
	known := make(map[string]*secret)
	for _, k := range r.secrets {
		known[k.name] = k
	}
	before := r.secrets
	r.secrets = nil
	for _, n := range s.Secrets {
		k := known[n.Name]
		delete(known, n.Name)
		if k == nil {
			k = &secret{name: n.Name, log: r.log, metrics: r.metrics}
		}
		k.configure(n.Source, s.reading(n.Name))
		r.secrets = append(r.secrets, k)
	}
	r.secrets.replace(slices.DeleteFunc(before, func(k *secret) bool { return known[k.name] == nil }))
	r.settings = s
	r.changed = true

	targets := make(map[string]*target)
	for _, t := range r.targets {
		targets[t.consumer.Name] = t
	}
	r.targets = nil
	var names []string
	for _, c := range append([]config.Consumer{{Owner: s.Owner}}, s.Consumers...) {
		t := targets[c.Name]
		delete(targets, c.Name)
		if t == nil {
			t = newTarget(&r.config, c, r.metrics, r.log)
		}
		t.consumer = c
		t.access = directory.Access{Owner: directory.Owner(c.Owner), KeyMode: s.KeyMode, CertMode: s.CertMode}
		r.targets = append(r.targets, t)
		if c.Name != "" {
			names = append(names, c.Name)
		}
	}
	r.main().allow(names)
	for _, t := range targets {
		t.close()
		r.withdraw(t.consumer)
	}
}

// main is the node's own directory.
func (r *Rotator) main() *target { return r.targets[0] }

// due reports whether there may be something new to publish.
func (r *Rotator) due(now time.Time) bool {
	if expiry := r.nextExpiry(); !expiry.IsZero() && now.After(expiry) {
		return true
	}
	return r.changed || r.secrets.due(now) || slices.ContainsFunc(r.targets, func(t *target) bool { return t.due(now) })
}

// nextExpiry returns when the first certificate expires of those that were valid when the published set was put
// together; zero: none does. Then another path may be left, or an anchor be in the way of OpenSSL.
func (r *Rotator) nextExpiry() (t time.Time) {
	if s := r.current(); s != nil {
		t = s.NextExpiry(r.composed)
	}
	return t
}

// failing reports whether the last attempt to publish to a directory has failed.
func (r *Rotator) failing() bool {
	return slices.ContainsFunc(r.targets, func(t *target) bool { return t.attempt.err != nil })
}

// complete reports whether every directory is intact and contains every secret.
func (r *Rotator) complete() bool {
	if len(r.secrets) == 0 {
		return true
	}
	return !slices.ContainsFunc(r.targets, func(t *target) bool { return !t.intact() }) &&
		!slices.ContainsFunc(r.secrets, func(s *secret) bool { return s.published == nil })
}

func (r *Rotator) isReady() bool {
	select {
	case <-r.ready:
		return true
	default:
		return false
	}
}

// readyIfComplete closes ready once everything is published.
func (r *Rotator) readyIfComplete() {
	if !r.isReady() && r.complete() {
		close(r.ready)
		r.updateStatus()
	}
}

// collect removes old generations.
func (r *Rotator) collect(now time.Time) {
	r.nextCollect = now.Add(collectInterval)
	for _, t := range r.targets {
		if !t.Opened() {
			continue
		}
		if err := t.Collect(now); err != nil {
			r.log.Warn("cannot remove old generations", "path", t.Path(), "err", err)
		}
	}
}

// failures joins the reasons why what is published is not what the secrets say.
func (r *Rotator) failures() error {
	var errs []error
	add := func(err error) {
		if err != nil && !slices.ContainsFunc(errs, func(e error) bool { return e.Error() == err.Error() }) {
			errs = append(errs, err)
		}
	}
	add(r.blocked)
	for _, t := range r.targets {
		add(t.attempt.err)
	}
	for _, s := range r.secrets {
		add(s.look.err)
		if !isHeld(s.reason) {
			add(s.reason)
		}
	}
	return errors.Join(errs...)
}

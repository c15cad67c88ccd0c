// Package reload sends containers the signal that they ask for when a generation is published.
//
// A server that reads its certificates only when it starts or is told to misses a rotation. Most such servers reload at
// a signal: nginx, HAProxy and Envoy's wrapper at SIGHUP, others at SIGUSR1 or SIGUSR2. A container with
// the label io.sevagent.reload=SIGHUP gets that signal after every publication, from Docker, to its first process, if
// it mounts the published directory or something in it. An image's own label counts as the container's.
//
// The promises:
//
//   - Off by default. Publication never waits for it, and never fails because of it.
//   - Every such container gets a signal after the last publication, and not two for one. Publications that come while
//     signals are pending fold into them.
//   - The containers of a node do not reload at once: each gets its signal at a random moment within Splay.
//   - Only signals that by custom mean "reload" are sent. A process that has no handler for one may be ended by it,
//     unless it is the container's first: check that before you set the label.
//
// What fails is retried a few times, then left until the next publication. Signals that are pending when the agent
// stops are lost. A container made after a publication began with it and gets no signal for it. A mount counts as one
// of the published directory by the path that Docker was given: a named volume, or a directory above, does not.
package reload

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"sevagent/client"
)

const (
	defaultDocker = "/var/run/docker.sock"
	defaultSplay  = 10 * time.Second
	// maxAttempts bounds the attempts to send one signal, and to list the containers.
	maxAttempts = 5
	retryMin    = time.Second // doubled at each attempt
	// maxOutcomes bounds Status.Last.
	maxOutcomes = 64
)

// Config is what a Reloader needs for its life.
type Config struct {
	// Path is the published directory: mtls.path.
	Path string
	// Docker is the Engine API's socket; empty means /var/run/docker.sock. Access to it amounts to root on the node.
	Docker string
	// Settings are the initial ones.
	Settings Settings
	// Registerer takes sevagent_mtls_reload_signals_total.
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Settings can be changed while a Reloader runs, by Apply.
type Settings struct {
	// Enabled turns signals on. While it is off, pending ones are dropped.
	Enabled bool
	// Splay is the time over which the signals of a publication are spread; zero means 10 s.
	Splay time.Duration
}

// Results, the values of the metric's label.
const (
	resultSent     = "sent"
	resultRetried  = "retried"  // failed, to be retried
	resultFailed   = "failed"   // given up
	resultGone     = "gone"     // the container was stopped
	resultUnlisted = "unlisted" // given up, for all containers: they could not be listed
)

// Reloader sends the signals.
type Reloader struct {
	cfg     Config
	engine  *engine
	signals *prometheus.CounterVec // result
	wake    chan struct{}
	status  atomic.Pointer[client.Reload]

	mu   sync.Mutex
	want want

	// Owned by Run.
	listed  listing
	pending map[string]*delivery // by container ID
	done    map[string]uint64    // by container ID: the publication after which it had its signal
	refused map[string]string    // by container ID: why it gets none, which was logged
	last    []client.ReloadOutcome
}

// want is what Run is to do.
type want struct {
	settings Settings
	publication
}

// publication has a number, from 1; 0 is none.
type publication struct {
	number     uint64
	generation string
	at         time.Time
}

// listing is the state of listing the containers for a publication.
type listing struct {
	number   uint64 // of the publication
	finished bool   // listed, or given up
	attempts int
	due      time.Time
	err      error // of the last attempt
}

// delivery is a signal to be sent to a container.
type delivery struct {
	id, name, signal string
	due              time.Time
	attempts         int
}

// New returns a Reloader that sends nothing before Run.
func New(cfg Config) *Reloader {
	r := &Reloader{
		cfg:    cfg,
		engine: newEngine(cmp.Or(cfg.Docker, defaultDocker)),
		signals: promauto.With(cfg.Registerer).NewCounterVec(prometheus.CounterOpts{
			Name: "sevagent_mtls_reload_signals_total",
			Help: "Signals to containers after a publication, by result: sent, retried, failed, " +
				"gone (the container was stopped), or unlisted (Docker did not list the containers).",
		}, []string{"result"}),
		wake:    make(chan struct{}, 1),
		want:    want{settings: cfg.Settings},
		listed:  listing{finished: true},
		pending: make(map[string]*delivery),
		done:    make(map[string]uint64),
		refused: make(map[string]string),
	}
	for _, result := range []string{resultSent, resultRetried, resultFailed, resultGone, resultUnlisted} {
		r.signals.WithLabelValues(result)
	}
	r.publishStatus(cfg.Settings)
	return r
}

// Published reports that a generation was published. It never blocks.
func (r *Reloader) Published(generation string) {
	r.mu.Lock()
	r.want.publication = publication{r.want.number + 1, generation, time.Now()}
	r.mu.Unlock()
	r.wakeRun()
}

// Apply changes the settings. It never blocks. What was published while signals were off is not signalled later.
func (r *Reloader) Apply(s Settings) {
	r.mu.Lock()
	r.want.settings = s
	r.mu.Unlock()
	r.wakeRun()
}

func (r *Reloader) wakeRun() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// wanted returns what Run is to do now.
func (r *Reloader) wanted() want {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.want
}

// Status returns what was done last.
func (r *Reloader) Status() *client.Reload { return r.status.Load() }

// Run sends signals until ctx ends, and then returns nil.
func (r *Reloader) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		w := r.wanted()
		due := r.step(ctx, w)
		r.publishStatus(w.settings)
		var timer <-chan time.Time
		if !due.IsZero() {
			timer = time.After(time.Until(due))
		}
		select {
		case <-ctx.Done():
		case <-r.wake:
		case <-timer:
		}
	}
	return nil
}

// step takes the first action that is due by now, and returns when the next one is due; zero: never.
func (r *Reloader) step(ctx context.Context, w want) (due time.Time) {
	if !w.settings.Enabled {
		clear(r.pending)
		r.listed = listing{number: w.number, finished: true}
		return time.Time{}
	}
	now := time.Now()
	if w.number != r.listed.number {
		r.listed = listing{number: w.number, due: now}
	}
	// List before sending: a container signalled after this publication needs no other signal for it.
	if !r.listed.finished && !r.listed.due.After(now) {
		r.list(ctx, w)
	} else if d := r.first(); d != nil && !d.due.After(now) {
		r.send(ctx, d)
	}
	if !r.listed.finished {
		due = r.listed.due
	}
	if d := r.first(); d != nil && (due.IsZero() || d.due.Before(due)) {
		due = d.due
	}
	return due
}

// first returns the delivery that is due first; nil: there is none.
func (r *Reloader) first() *delivery {
	var first *delivery
	for _, d := range r.pending {
		if first == nil || d.due.Before(first.due) {
			first = d
		}
	}
	return first
}

// list finds the containers to signal for the publication.
func (r *Reloader) list(ctx context.Context, w want) {
	containers, err := r.engine.list(ctx)
	if ctx.Err() != nil {
		return
	}
	l := &r.listed
	l.attempts++
	if err != nil {
		l.due = time.Now().Add(backoff(l.attempts, rand.Float64()))
		l.finished = l.attempts == maxAttempts
		switch {
		case l.finished:
			r.cfg.Log.Error("containers that want a signal got none: giving up listing them",
				"generation", w.generation,
				"err", err)
			r.signals.WithLabelValues(resultUnlisted).Inc()
		case l.err == nil:
			r.cfg.Log.Warn("cannot list the containers that want a signal", "generation", w.generation, "err", err)
		}
		l.err = err
		return
	}
	l.finished, l.err = true, nil

	dirs := []string{filepath.Clean(r.cfg.Path)}
	if real, err := filepath.EvalSymlinks(r.cfg.Path); err == nil && real != dirs[0] {
		dirs = append(dirs, real)
	}
	here := make(map[string]bool, len(containers))
	for _, c := range containers {
		here[c.ID] = true
		r.schedule(&c, dirs, w)
	}
	notHere := func(id string) bool { return !here[id] }
	maps.DeleteFunc(r.pending, func(id string, _ *delivery) bool { return notHere(id) })
	maps.DeleteFunc(r.done, func(id string, _ uint64) bool { return notHere(id) })
	maps.DeleteFunc(r.refused, func(id, _ string) bool { return notHere(id) })
}

// schedule makes a container's signal pending, unless it must get none.
func (r *Reloader) schedule(c *container, dirs []string, w want) {
	signal, err := parseSignal(c.Labels[label])
	if err == nil && !c.mounts(dirs) {
		err = errors.New("the container does not mount " + dirs[0])
	}
	if err != nil {
		if r.refused[c.ID] != err.Error() {
			r.refused[c.ID] = err.Error()
			r.cfg.Log.Warn("container gets no signal", "container_id", c.ID, "name", c.name(), "err", err)
		}
		return
	}
	switch {
	case r.done[c.ID] >= w.number: // signalled while listing failed
		return
	case time.Unix(c.Created, 0).After(w.at):
		return
	}
	due := time.Now().Add(time.Duration(rand.Float64() * float64(cmp.Or(w.settings.Splay, defaultSplay))))
	// A pending one keeps its time, unless that was set after a failure and is later.
	if d := r.pending[c.ID]; d != nil && (d.attempts == 0 || d.due.Before(due)) {
		due = d.due
	}
	r.pending[c.ID] = &delivery{id: c.ID, name: c.name(), signal: signal, due: due}
}

// send sends a signal. It counts for all publications up to now, whichever of them it was scheduled for.
func (r *Reloader) send(ctx context.Context, d *delivery) {
	now := r.wanted().publication
	err := r.engine.kill(ctx, d.id, d.signal)
	if ctx.Err() != nil {
		return
	}
	d.attempts++
	log := r.cfg.Log.With("container_id", d.id, "name", d.name, "signal", d.signal, "generation", now.generation)
	switch {
	case err == nil:
		r.done[d.id] = now.number
		r.finish(d, now, resultSent, nil)
		log.Info("sent a container its signal", "attempts", d.attempts)
	case errors.Is(err, errGone):
		r.finish(d, now, resultGone, err)
		log.Info("container that wanted a signal is gone", "err", err)
	case d.attempts >= maxAttempts:
		r.finish(d, now, resultFailed, err)
		log.Error("cannot send a container its signal: giving up", "attempts", d.attempts, "err", err)
	default:
		wait := backoff(d.attempts, rand.Float64())
		d.due = time.Now().Add(wait)
		r.signals.WithLabelValues(resultRetried).Inc()
		if d.attempts == 1 {
			log.Warn("cannot send a container its signal", "err", err, "retry_in", wait)
		}
	}
}

// finish records the outcome of a delivery.
func (r *Reloader) finish(d *delivery, p publication, result string, err error) {
	delete(r.pending, d.id)
	r.signals.WithLabelValues(result).Inc()
	o := client.ReloadOutcome{
		ContainerID: d.id, Name: d.name, Signal: d.signal, Generation: p.generation, At: time.Now(),
	}
	if err != nil {
		o.Error = err.Error()
	}
	last := slices.DeleteFunc(slices.Clone(r.last),
		func(old client.ReloadOutcome) bool { return old.ContainerID == d.id })
	r.last = append(last, o)
	r.last = r.last[max(0, len(r.last)-maxOutcomes):]
}

func (r *Reloader) publishStatus(s Settings) {
	last := append([]client.ReloadOutcome{}, r.last...)
	status := &client.Reload{Enabled: s.Enabled, Pending: len(r.pending), Last: last}
	if err := r.listed.err; err != nil {
		status.Error = err.Error()
	}
	r.status.Store(status)
}

// backoff returns how long to wait after the nth failure, n from 1: from half to all of 1 s, 2 s, 4 s and so on.
func backoff(n int, random float64) time.Duration {
	return time.Duration(float64(retryMin<<(n-1)) * (0.5 + 0.5*random))
}

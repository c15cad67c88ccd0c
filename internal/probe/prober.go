package probe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sevagent/client"
	"sevagent/internal/promtext"
)

const (
	// timeout bounds a probe, name lookup included.
	timeout = 5 * time.Second
	// linger is how long the nearest possible server has to reject our certificate after the handshake.
	linger = 250 * time.Millisecond
	// maxRunning is how many probes run at once.
	maxRunning = 4
	// jitter spreads probes by ±20 %: a fleet boots together and must not stay together.
	jitter = 0.2
	// hintSpread is the time over which a hint spreads its probes, and the least time between two probes of one
	// endpoint, however many hints there are.
	hintSpread = 5 * time.Second
)

// Config is what a Prober needs for its life. What an operator may change while it runs is in Settings.
type Config struct {
	// Material returns the published client certificate, with its chain, and the anchors a server is verified by.
	// It is called for every probe, by several goroutines. Nil for either, or an error, means that there is nothing
	// to probe with yet.
	Material func() (cert *tls.Certificate, roots *x509.CertPool, err error)
	// Settings are the initial ones.
	Settings Settings
	// Registerer takes the sevagent_mtls_probe_ metrics.
	Registerer *promtext.Registry
	Log        *slog.Logger
}

// Settings can be changed while a Prober runs, by Apply.
type Settings struct {
	// Endpoints to probe, host:port: mtls.endpoints. Each is a label in metrics. With none, nothing is probed.
	Endpoints []string
	// Interval between two probes of an endpoint: mtls.probe_interval. It is jittered by ±20 %. Less than a second
	// counts as one.
	Interval time.Duration
}

// Prober probes the endpoints periodically. New makes one, Run works.
type Prober struct {
	material func() (*tls.Certificate, *x509.CertPool, error)
	log      *slog.Logger
	metrics  *metrics
	phase    float64       // this node's own: see slot
	wake     chan struct{} // size one: look at requests
	status   atomic.Pointer[[]client.Endpoint]

	// Tests replace these before Run.
	dial            func(ctx context.Context, network, address string) (net.Conn, error)
	timeout, linger time.Duration

	mu       sync.Mutex
	requests requests

	// All below is owned by Run.
	interval  time.Duration
	endpoints []*endpoint
}

// requests are for Run to serve. Those made while one is pending fold into it.
type requests struct {
	settings *Settings
	hint     bool
}

// endpoint is a configured one.
type endpoint struct {
	result  client.Endpoint
	next    time.Time // of the next probe; zero: to be scheduled
	started time.Time // the last probe; zero: there was none
	running bool
	warned  bool // the log has a failure without a recovery
}

// New returns a Prober that has not started. Until it has, all endpoints are pending.
func New(c Config) *Prober {
	p := &Prober{
		material: c.Material,
		log:      c.Log.With("component", "probe"),
		metrics:  newMetrics(c.Registerer),
		phase:    rand.Float64(),
		wake:     make(chan struct{}, 1),
		dial:     new(net.Dialer).DialContext,
		timeout:  timeout,
		linger:   linger,
	}
	p.configure(c.Settings)
	p.publishStatus()
	return p
}

// Status returns what is known of each endpoint, in the order of the settings. The slice belongs to the Prober.
func (p *Prober) Status() []client.Endpoint { return *p.status.Load() }

// Hint reports that other certificates were published: all endpoints are probed within a few seconds. It does not wait.
func (p *Prober) Hint() { p.request(func(q *requests) { q.hint = true }) }

// Apply replaces the settings, without waiting. Endpoints that stay keep what is known of them.
func (p *Prober) Apply(s Settings) { p.request(func(q *requests) { q.settings = &s }) }

func (p *Prober) request(ask func(*requests)) {
	p.mu.Lock()
	ask(&p.requests)
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default: // Run is to wake already
	}
}

// Run probes until ctx ends, and returns when the last probe has.
func (p *Prober) Run(ctx context.Context) error {
	type ended struct {
		endpoint *endpoint
		result   client.Endpoint
	}
	results := make(chan ended, maxRunning)
	var probes sync.WaitGroup
	defer probes.Wait()
	running := 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
		case <-p.wake:
		case <-timer.C:
		case r := <-results:
			running--
			if ctx.Err() == nil { // else the probe was aborted
				p.record(r.endpoint, r.result)
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		now := time.Now()
		p.serveRequests(now)
		timer.Stop()
		for running < maxRunning { // else a result comes first
			e := p.first()
			if e == nil {
				break
			}
			if now.Before(e.next) {
				timer.Reset(e.next.Sub(now))
				break
			}
			e.running, e.started, e.next = true, now, now.Add(wait(p.interval, rand.Float64()))
			running++
			name := e.result.Endpoint
			probes.Go(func() { results <- ended{e, p.probe(ctx, name)} })
		}
	}
}

// first returns the endpoint that is due first; nil: none waits.
func (p *Prober) first() *endpoint {
	var first *endpoint
	for _, e := range p.endpoints {
		if !e.running && (first == nil || e.next.Before(first.next)) {
			first = e
		}
	}
	return first
}

// serveRequests takes over new settings, serves hints, and schedules every endpoint.
func (p *Prober) serveRequests(now time.Time) {
	p.mu.Lock()
	q := p.requests
	p.requests = requests{}
	p.mu.Unlock()

	if q.settings != nil {
		p.configure(*q.settings)
		p.publishStatus()
	}
	n := len(p.endpoints)
	for i, e := range p.endpoints {
		if e.next.IsZero() {
			e.next = later(now.Add(slot(p.interval, i, n, p.phase)), e.started.Add(wait(p.interval, rand.Float64())))
		}
		if !q.hint {
			continue
		}
		// A running probe may have the old certificates, so it does not count.
		if at := later(now.Add(slot(hintSpread, i, n, p.phase)), e.started.Add(hintSpread)); at.Before(e.next) {
			e.next = at
		}
	}
}

// configure makes the list of endpoints agree with the settings. New ones, and all if the interval changed, are to be
// scheduled.
func (p *Prober) configure(s Settings) {
	old, interval := p.endpoints, max(s.Interval, time.Second)
	p.endpoints = nil
	for _, name := range s.Endpoints {
		named := func(e *endpoint) bool { return e.result.Endpoint == name }
		if slices.ContainsFunc(p.endpoints, named) {
			continue
		}
		e := &endpoint{result: client.Endpoint{Endpoint: name, Result: client.ProbePending}}
		if i := slices.IndexFunc(old, named); i >= 0 {
			e = old[i]
		}
		if interval != p.interval {
			e.next = time.Time{}
		}
		p.endpoints = append(p.endpoints, e)
	}
	p.interval = interval
	for _, e := range old {
		if !slices.Contains(p.endpoints, e) {
			p.metrics.drop(e.result.Endpoint)
		}
	}
}

// record takes over the result of a probe.
func (p *Prober) record(e *endpoint, r client.Endpoint) {
	e.running = false
	if !slices.Contains(p.endpoints, e) {
		return // dropped while the probe ran
	}
	last := e.result
	r.Since, r.LastSuccess, r.Failures = last.Since, last.LastSuccess, last.Failures+1
	if r.Result != last.Result {
		r.Since = r.LastProbe
	}
	if r.OK() {
		r.LastSuccess, r.Failures = time.Now().UTC(), 0
	}
	e.result = r
	p.metrics.record(r)
	p.publishStatus()
	switch {
	case r.OK() && e.warned:
		p.log.Info("endpoint is ok again", "endpoint", r.Endpoint, "failures", last.Failures)
		e.warned = false
	case !r.OK() && !e.warned && r.Result != client.ProbeNoMaterial: // which the rotator reports
		p.log.Warn("endpoint fails", "endpoint", r.Endpoint, "result", r.Result, "reason", r.Reason)
		e.warned = true
	}
}

func (p *Prober) publishStatus() {
	list := make([]client.Endpoint, len(p.endpoints))
	for i, e := range p.endpoints {
		list[i] = e.result
	}
	p.status.Store(&list)
}

// slot returns when, within a spread, number i of n is due. phase, from [0, 1), is one node's own and does not change:
// otherwise repeated hints would draw all probes to the front.
func slot(spread time.Duration, i, n int, phase float64) time.Duration {
	_, part := math.Modf(phase + float64(i)/float64(n))
	return time.Duration(part * float64(spread))
}

// wait returns the time from the start of one probe to that of the next. random is from [0, 1).
func wait(interval time.Duration, random float64) time.Duration {
	return time.Duration(float64(interval) * (1 - jitter + 2*jitter*random))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

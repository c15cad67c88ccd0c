// Package attest is the sole owner of the SNP guest device. It turns requests for evidence into as few
// attestation reports as it can, and promises that
//
//   - the device is asked by one worker, one request at a time, no more often than the configured rate;
//   - requests that wait together share one report through a Merkle tree (package evidence);
//   - a caller may leave at any time, which never disturbs the device;
//   - no report is passed on unless it carries the REPORT_DATA that was asked for and has been appraised.
//
// The kernel destroys the guest's key if a request takes longer than a minute, which happens when the host
// throttles; the rate and a pause after each slow request are there to stay clear of that.
package attest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"sevagent/client"
	"sevagent/internal/appraise"
	"sevagent/internal/evidence"
	"sevagent/internal/nitro"
	"sevagent/internal/promtext"
	"sevagent/internal/snp"
)

// The most requests that wait, and that share a report.
const (
	maxQueue = 16384
	maxBatch = 8192
)

// slowReport is a duration that no report takes unless the host throttles: the kernel waits 2 s between its
// attempts, and an undisturbed report takes 8 ms. After one, the device rests for restAfterSlow, one of the
// host's throttling windows as measured on another cloud (10.2 s) and a margin.
const (
	slowReport    = 1500 * time.Millisecond
	restAfterSlow = 12 * time.Second
)

// Config is what a Worker needs.
type Config struct {
	// Transport is the device; the Worker is its only user, but does not close it.
	Transport Transport
	// Verifier appraises each report.
	Verifier *appraise.Verifier
	// Enforce refuses to pass on a report whose verdict is fail. A report too new to appraise is passed on.
	Enforce bool
	// Rate is the number of device requests a second that are sustained, Burst how many may come at once.
	Rate  float64
	Burst int
	// VCEKs has the certificates that the host does not add to reports signed by a VCEK; nil: nobody has.
	VCEKs *VCEKs
	// Second is the proof beside the report.
	Second Second
	Log    *slog.Logger
	// Metrics is where the Worker registers its metrics.
	Metrics *promtext.Registry
}

// Worker serves evidence. New makes one, Run runs it.
type Worker struct {
	cfg     Config
	limiter *rate.Limiter
	queue   *queue
	wake    chan struct{} // size one: something waits
	// maxBatch is the constant of that name, but for benchmarks.
	maxBatch int
	metrics  *metrics
	state    atomic.Pointer[State]
	// verifier is swapped by SetVerifier while requests run.
	verifier atomic.Pointer[appraise.Verifier]
	// busySince is when the running device request began, zero if none runs. Unix nanoseconds.
	busySince atomic.Int64
	// restUntil is when the device may be asked again after a slow request. Unix nanoseconds.
	restUntil   atomic.Int64
	secondState atomic.Pointer[SecondState]
	booted      *nitro.Document // the first document of the NitroTPM, nil before; owned by Run

	failing string // code of the failure last logged; owned by Run
	stage   string // of the endorsement certificate's expiry, as last logged; owned by Run
	// first and last are what the first and the last genuine report showed, nil before; owned by Run.
	first, last *observation
}

// State is what the last device request showed. It does not change.
type State struct {
	// At is when the last request ended, well or not; zero: there was none.
	At time.Time
	// Err is nil or why the last request gave nothing.
	Err error
	// Verdict of the last report that arrived, at ReportAt, is kept over later failures.
	Verdict  *appraise.Verdict
	ReportAt time.Time
	// NotAfter is when the last endorsement certificate that led to a root expires, kept over later failures.
	NotAfter time.Time
	// Drift has the last changes from one genuine report to the next, oldest first; SinceStart has what the last one
	// showed otherwise than the first.
	Drift, SinceStart []client.Drift
}

// request is one caller's wait.
type request struct {
	ctx    context.Context
	claims evidence.Claims
	done   chan answer // size one
}

type answer struct {
	doc     *evidence.Document
	verdict *appraise.Verdict
	err     error
}

// New returns a Worker that nothing runs yet.
func New(cfg Config) *Worker {
	w := &Worker{
		cfg:      cfg,
		limiter:  rate.NewLimiter(rate.Limit(cfg.Rate), cfg.Burst),
		queue:    newQueue(maxQueue),
		wake:     make(chan struct{}, 1),
		maxBatch: maxBatch,
	}
	w.state.Store(&State{})
	w.secondState.Store(&SecondState{})
	w.verifier.Store(cfg.Verifier)
	w.metrics = newMetrics(cfg.Metrics, w)
	return w
}

// SetVerifier replaces the verifier after a policy file has changed.
func (w *Worker) SetVerifier(v *appraise.Verifier) { w.verifier.Store(v) }

// State returns what the last device request showed.
func (w *Worker) State() *State { return w.state.Load() }

// Waiting returns how many requests wait for a report.
func (w *Worker) Waiting() int { return w.queue.len() }

// Transport names the transport in use.
func (w *Worker) Transport() string { return w.cfg.Transport.Name() }

// Busy returns for how long the running device request has been under way, zero if none is.
func (w *Worker) Busy(now time.Time) time.Duration {
	since := w.busySince.Load()
	if since == 0 {
		return 0
	}
	return now.Sub(time.Unix(0, since))
}

// Evidence waits for a report that commits to claims. It refuses at once what cannot be served: a full queue,
// or a deadline of ctx before the device may be asked again.
func (w *Worker) Evidence(ctx context.Context, claims evidence.Claims) (*evidence.Document, *appraise.Verdict, error) {
	if err := claims.Check(); err != nil {
		return nil, nil, fmt.Errorf("ask for evidence: %w", err)
	}
	if deadline, ok := ctx.Deadline(); ok && time.Now().Add(w.delay()).After(deadline) {
		w.metrics.refused.With("deadline").Inc()
		return nil, nil, fmt.Errorf("ask for evidence: %w", ErrDeadline)
	}
	r := &request{ctx: ctx, claims: claims, done: make(chan answer, 1)}
	if err := w.queue.add(r); err != nil {
		w.metrics.refused.With(Code(err)).Inc()
		return nil, nil, fmt.Errorf("ask for evidence: %w", err)
	}
	select {
	case w.wake <- struct{}{}:
	default: // it will look anyway
	}
	select {
	case a := <-r.done:
		return a.doc, a.verdict, a.err
	case <-ctx.Done():
		return nil, nil, fmt.Errorf("wait for evidence: %w", ctx.Err())
	}
}

// delay estimates how long it takes until the device may be asked.
func (w *Worker) delay() time.Duration {
	missing := max(0, 1-w.limiter.Tokens())
	return max(time.Until(time.Unix(0, w.restUntil.Load())), time.Duration(missing/w.cfg.Rate*float64(time.Second)))
}

// Run serves requests until ctx ends. A device request that is under way then is waited for: the kernel would
// hold the process until it ends anyway.
func (w *Worker) Run(ctx context.Context) error {
	defer func() {
		for _, r := range w.queue.close() {
			r.done <- answer{err: fmt.Errorf("wait for evidence: %w", ErrStopped)}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.wake:
		}
		for w.queue.len() > 0 {
			if !w.mayAsk(ctx) {
				return nil
			}
			if batch := w.queue.take(w.maxBatch); len(batch) > 0 {
				w.serve(batch)
			}
		}
	}
}

// mayAsk waits for the rate, and for the end of a rest. It reports false when ctx ends.
func (w *Worker) mayAsk(ctx context.Context) bool {
	if rest := time.Until(time.Unix(0, w.restUntil.Load())); rest > 0 {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(rest):
		}
	}
	return w.limiter.Wait(ctx) == nil
}

// serve gets one report for a batch and answers everyone in it.
func (w *Worker) serve(batch []*request) {
	leaves := make([][evidence.Size]byte, len(batch))
	for i, r := range batch {
		leaves[i] = r.claims.Leaf()
	}
	tree := evidence.NewTree(leaves)
	report, certs, verdict, err := w.ask(tree.Root())
	w.metrics.batch.Observe(float64(len(batch)))
	w.note(verdict, err)
	var nitroTPM []byte
	if err == nil {
		nitroTPM, err = w.second(report)
	}
	var shared *evidence.Shared
	if err == nil {
		shared, err = evidence.Share(report, nitroTPM, certs, verdict, time.Now())
	}
	for i, r := range batch {
		a := answer{verdict: verdict, err: err}
		if err == nil {
			a.doc, a.err = shared.Document(r.claims, i, tree.Path(i))
		}
		r.done <- a
	}
}

// ask makes one device request, checks the answer and has it appraised.
func (w *Worker) ask(root [evidence.Size]byte) (report []byte, certs [][]byte, verdict *appraise.Verdict, err error) {
	began := time.Now()
	w.busySince.Store(began.UnixNano())
	quote, err := w.cfg.Transport.Report(root)
	w.busySince.Store(0)
	took := time.Since(began)
	w.metrics.report.Observe(took.Seconds())
	if took > slowReport || errors.Is(err, ErrThrottled) {
		w.restUntil.Store(time.Now().Add(restAfterSlow).UnixNano())
		w.metrics.throttled.Inc()
	}
	if err != nil {
		return nil, nil, nil, err
	}
	r, err := snp.ParseReport(quote.Report)
	if err != nil {
		return nil, nil, nil, err
	}
	if r.ReportData != root {
		return nil, nil, nil, fmt.Errorf("check the report: %w", ErrReportDataMismatch)
	}
	table, err := snp.ParseCertTable(quote.CertTable)
	if err != nil {
		return nil, nil, nil, &appraise.Rejection{Code: appraise.CodeCertificateMalformed, Reason: err.Error()}
	}
	keys := []snp.GUID{snp.GUIDVLEK, snp.GUIDVCEK}
	if r.SigningKey == snp.SignedByVCEK {
		slices.Reverse(keys) // a document begins with the signing key's certificate
	}
	for _, id := range keys {
		if der := table.Find(id); der != nil {
			certs = append(certs, der)
		}
	}
	if v := w.cfg.VCEKs; v != nil && r.SigningKey == snp.SignedByVCEK && table.Find(snp.GUIDVCEK) == nil {
		if der, ok := v.Find(r); ok {
			certs = slices.Insert(certs, 0, der)
		} else if v.Want(r) {
			return nil, nil, nil, fmt.Errorf("find the report's endorsement: %w", ErrVCEKPending)
		}
	}
	began = time.Now()
	verdict = w.verifier.Load().Appraise(began, quote.Report, certs)
	w.metrics.verify.Observe(time.Since(began).Seconds())
	if verdict.Status == appraise.Fail && w.cfg.Enforce {
		return nil, nil, verdict, verdict.Err()
	}
	return quote.Report, certs, verdict, nil
}

// note keeps the outcome of a device request for State, metrics and log. A failure is logged when it begins
// and when it ends.
func (w *Worker) note(verdict *appraise.Verdict, err error) {
	next := *w.state.Load()
	next.At, next.Err = time.Now(), err
	if verdict != nil {
		next.Verdict, next.ReportAt = verdict, next.At
	}
	w.watch(&next, verdict)
	w.state.Store(&next)
	w.metrics.note(verdict, err)
	code := ""
	if err != nil {
		code = Code(err)
	}
	switch {
	case code == w.failing:
	case code != "":
		w.cfg.Log.Error("attestation failed", "code", code, "err", err, "advice", Advice(err))
	default:
		w.cfg.Log.Info("attestation works again", "transport", w.Transport())
	}
	w.failing = code
}

package mtls

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"sevagent/client"
	"sevagent/internal/config"
	"sevagent/internal/mtls/certset"
	"sevagent/internal/mtls/directory"
	"sevagent/internal/mtls/guard"
)

// target is one directory to publish into, the node's own or that of a consumer below it, with its guard. Owned by Run.
type target struct {
	*directory.Directory
	consumer config.Consumer // Name is empty for the node's own, which has every file
	access   directory.Access
	log      *slog.Logger
	metrics  *metrics

	attempt attempt  // to publish, since the last one that succeeded
	missing []string // of the consumer's files

	guard   sentinel // nil: none
	tree    *guard.Tree
	state   guardState
	allowed []string // names of consumers' directories in it

	stopGuard context.CancelFunc // nil: guard does not run
	suspect   atomic.Bool        // guard wants it looked at
}

func newTarget(c *Config, consumer config.Consumer, m *metrics, log *slog.Logger) *target {
	d := directory.New(c.directoryOf(consumer, log))
	return &target{
		Directory: d,
		consumer:  consumer,
		log:       log,
		metrics:   m,
		guard:     c.newGuard(d.Path()),
		state:     guardState{GuardStatus: client.GuardStatus{State: client.GuardOff}},
	}
}

// close ends what watches and protects the directory.
func (t *target) close() {
	if t.stopGuard != nil {
		t.stopGuard()
	}
	t.Close()
}

// open looks at the directory for the first time.
func (t *target) open(now time.Time) error {
	if err := t.Open(); err != nil {
		return err
	}
	t.attempt = attempt{}
	t.expect(now) // if the generation is damaged, the guard finds what is wrong
	return nil
}

// intact reports whether the directory is known to match its manifest.
func (t *target) intact() bool { return t.Current() != nil && !t.Current().Damaged }

// holds reports whether the directory has the files of s already, and evidence if that is wanted.
func (t *target) holds(s *certset.Set, withEvidence bool) bool {
	return t.Current() != nil && t.Current().Holds(s, t.access, withEvidence)
}

// publish makes s the current generation.
func (t *target) publish(s *certset.Set, evidence []byte, now time.Time) error {
	if err := t.Publish(s, evidence, t.access, now); err != nil {
		return err
	}
	t.expect(now)
	return nil
}

// expect lets the guard know what should be there, which is what lies there now.
func (t *target) expect(now time.Time) {
	if t.guard == nil || t.Current() == nil {
		return
	}
	tree, err := t.Capture(t.allowed)
	if err != nil {
		t.log.Warn("cannot guard the published files", "path", t.Path(), "err", err)
		t.state.State, t.state.Error = client.GuardAlarm, err.Error()
		t.state.retry.next = now.Add(retryMin)
	}
	if t.tree != nil && tree != nil && !tree.SameDirectory(t.tree) {
		t.state.lost = true
		t.state.State = client.GuardAlarm
		t.log.Error(msgLost, "path", t.Path())
	}
	t.tree = tree
	t.guard.Expect(tree)
}

// allow sets the names of consumers' directories. Nothing else changes for the guard: looking at the files again could
// make a change by someone else what is expected.
func (t *target) allow(names []string) {
	t.allowed = names
	if t.guard != nil && t.tree != nil {
		t.tree = t.tree.Allow(names)
		t.guard.Expect(t.tree)
	}
}

// startGuard starts the guard if it does not run. Its alarms go to alarm, which others share.
func (t *target) startGuard(ctx context.Context, c *caller) {
	if t.guard == nil || t.stopGuard != nil {
		return
	}
	ctx, t.stopGuard = context.WithCancel(ctx)
	c.running.Go(func() {
		if err := t.guard.Run(ctx); err != nil {
			t.log.Error("published files are not watched", "path", t.Path(), "err", err)
		}
	})
	c.running.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.guard.Changed():
				t.suspect.Store(true)
				select {
				case c.alarm <- struct{}{}:
				default: // the loop will look anyway
				}
			}
		}
	})
}

// inspect compares what lies in the directory with what was published there, and puts back what was changed. It reports
// whether there is a new generation.
func (t *target) inspect(now time.Time) (published bool) {
	if t.guard == nil || t.Current() == nil || t.Current().Set == nil {
		return false
	}
	t.state.captured, t.state.damaged = t.tree != nil, t.Current().Damaged
	var findings []guard.Finding
	if t.tree != nil {
		findings = t.guard.Verify()
	}
	var act action
	t.state, act = next(t.state, findings, now)
	if act.count {
		for _, f := range findings {
			t.metrics.tampering.With(string(f.What)).Inc()
		}
	}
	if act.message != "" {
		t.report(act.level, act.message, len(findings) > 0)
	}
	return act.repair && t.repair(act.count, now)
}

// repair publishes what is in memory as a new generation: a file put back in place might still be held open by whatever
// has changed it. It reports whether that has succeeded.
func (t *target) repair(report bool, now time.Time) bool {
	was := t.Current()
	err := t.publish(was.Set, was.Evidence, now)
	if err == nil && t.tree == nil {
		err = errors.New(t.state.Error)
	}
	if err != nil {
		wait := Backoff(t.state.retry.failures+1, rand.Float64())
		t.state = t.state.notRepaired(err, wait, now)
		t.metrics.repairs.With("failed").Inc()
		if report {
			t.report(slog.LevelError, msgNotRepaired, t.state.captured, "err", err, "retry_in", wait)
		}
		return t.Current() != was
	}
	t.state = t.state.repaired(now)
	t.metrics.repairs.With("repaired").Inc()
	if report {
		t.report(slog.LevelError, msgRepaired, t.state.captured, "generation", t.Generation())
	}
	if t.state.lost {
		t.report(slog.LevelError, msgLost, false)
	}
	return true
}

func (t *target) report(level slog.Level, message string, withFindings bool, attrs ...any) {
	attrs = append([]any{"path", t.Path()}, attrs...)
	if withFindings {
		attrs = append(attrs, "findings", describe(t.state.Findings))
	}
	switch level {
	case slog.LevelError:
		t.log.Error(message, attrs...)
	case slog.LevelWarn:
		t.log.Warn(message, attrs...)
	default:
		t.log.Info(message, attrs...)
	}
}

// publishFailed notes why a publication that should work did not, and when to try again.
func (t *target) publishFailed(err error, now time.Time) {
	result := "failed"
	if errors.Is(err, directory.ErrRolledBack) {
		result = "rolled_back"
	}
	t.metrics.publications.With(result).Inc()
	wait := Backoff(t.attempt.failures+1, rand.Float64())
	t.attempt.failed(err, wait, now)
	if t.attempt.failures == 1 {
		t.log.Error("cannot publish; the last good set stays", "err", err, "retry_in", wait)
	}
}

// publishWorks notes that nothing keeps the directory from being what it should be.
func (t *target) publishWorks() {
	if t.attempt.err != nil {
		t.log.Info("publishing works again", "path", t.Path(), "failures", t.attempt.failures)
	}
	t.attempt = attempt{}
}

// due reports whether the directory has to be published to although no secret has changed.
func (t *target) due(now time.Time) bool {
	if t.attempt.err != nil {
		return !now.Before(t.attempt.next)
	}
	return !t.overlapEnds().IsZero() && !now.Before(t.overlapEnds())
}

// overlapEnds returns when the next anchor has to leave ca.crt. Zero: none has to.
func (t *target) overlapEnds() (first time.Time) {
	if t.Current() == nil || t.Current().Set == nil {
		return first
	}
	for _, c := range t.Current().Set.Carried {
		if first.IsZero() || c.Until.Before(first) {
			first = c.Until
		}
	}
	return first
}

func (t *target) guardStatus() client.GuardStatus {
	s := t.state.GuardStatus
	s.Immutable = t.Current() != nil && t.Current().Immutable
	return s
}

func (t *target) status() client.ConsumerStatus {
	s := client.ConsumerStatus{
		Name: t.consumer.Name, Path: t.Path(), Generation: t.Generation(),
		Files: []string{}, Missing: t.missing, Guard: t.guardStatus(),
	}
	if g := t.Current(); g != nil {
		s.PublishedAt = g.Published()
		s.Files = append(s.Files, g.Files()...)
	}
	if err := t.attempt.err; err != nil {
		s.Error = err.Error()
	}
	return s
}

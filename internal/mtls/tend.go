package mtls

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"sevagent/client"
	"sevagent/internal/mtls/guard"
)

// What is put back when someone changes it is bounded: whoever changes it five times in ten minutes is no accident, and
// a race against them would only disturb readers.
const (
	maxRepairs   = 5
	repairWindow = 10 * time.Minute
)

// inspect compares what lies in a directory with what was published there, and puts back what was changed.
func (r *Rotator) inspect(d *directory, now time.Time) {
	if d.guard == nil || d.current == nil || d.current.set == nil {
		return
	}
	if d.tree == nil { // it could not be captured
		if d.state.State != client.GuardQuarantined && !now.Before(d.repair.next) {
			r.putBack(d, now, func(message string, attrs ...any) {
				r.log.Error(message, append([]any{"path", d.pub.path}, attrs...)...)
			})
		}
		return
	}
	findings := d.guard.Verify()
	d.opens.drain() // the guard's own, and what has come since the last time
	if len(findings) == 0 {
		d.repair = attempt{}
		r.settled(d)
		return
	}
	known := slices.Equal(findings, d.found) && d.state.State != client.GuardOK
	d.found, d.state.Findings, d.state.At = findings, nil, now.UTC()
	for _, f := range findings {
		d.state.Findings = append(d.state.Findings, f.Finding)
	}
	report := func(message string, attrs ...any) {
		if !known {
			r.log.Error(message, append([]any{"path", d.pub.path, "findings", describe(findings)}, attrs...)...)
		}
	}
	harmless, repairable := true, true
	for _, f := range findings {
		if !known {
			r.metrics.tampering.WithLabelValues(string(f.What)).Inc()
		}
		if f.Warning {
			continue
		}
		harmless = false
		// Into another directory one can publish: that serves those who come, and not the containers that hold the old.
		d.lost = d.lost || isLost(f)
		repairable = repairable && (f.Repairable || isLost(f))
	}
	waiting := now.Before(d.repair.next)
	if harmless || !repairable || d.state.State == client.GuardQuarantined {
		d.repair = attempt{} // there is nothing to try again
	}
	d.repairs = slices.DeleteFunc(d.repairs, func(t time.Time) bool { return now.Sub(t) >= repairWindow })
	switch {
	case d.state.State == client.GuardQuarantined:
		report("published files were changed by someone else again, and are not put back any more")
	case harmless:
		r.settled(d)
		if d.state.State == client.GuardOK {
			d.state.State = client.GuardWarning
		}
		if !known {
			r.log.Warn("files that are not ours lie beside the published ones", "path", d.pub.path, "findings", describe(findings))
		}
	case !repairable:
		d.state.State = client.GuardAlarm
		report("published files were changed by someone else in a way that cannot be put back; find who did it, and restart the containers that mount them")
	case len(d.repairs) >= maxRepairs:
		d.state.State = client.GuardQuarantined
		known = false
		report("published files were changed by someone else again and again, and are not put back any more; find who does it, and restart sevagent", "repairs", maxRepairs, "within", repairWindow)
	case waiting:
		d.state.State = client.GuardAlarm
	default:
		r.putBack(d, now, report)
	}
}

// settled notes that nothing is wrong any more, as far as that can be.
func (r *Rotator) settled(d *directory) {
	switch {
	case d.state.State == client.GuardQuarantined || d.tree == nil || d.current.damaged:
		return
	case d.lost:
		d.state.State = client.GuardAlarm // until a restart, which follows that of the containers
		return
	case d.state.State == client.GuardAlarm || d.state.State == client.GuardWarning:
		r.log.Info("published files are as they should be again", "path", d.pub.path)
	}
	d.state.State, d.state.Error = client.GuardOK, ""
}

// putBack publishes what is in memory as a new generation: in place of a file, one would never know who holds it open.
func (r *Rotator) putBack(d *directory, now time.Time, report func(string, ...any)) {
	g := d.current
	err := d.switchTo(g.set, g.bundles, g.evidence, now)
	if err == nil && d.tree == nil {
		err = errors.New(d.state.Error)
	}
	if err != nil {
		d.repair.err = err
		d.repair.failures++
		d.repair.next = now.Add(backoff(d.repair.failures, rand.Float64()))
		d.state.State, d.state.Error = client.GuardAlarm, err.Error()
		r.metrics.repairs.WithLabelValues("failed").Inc()
		report("published files were changed by someone else, and cannot be put back", "err", err, "retry_in", d.repair.next.Sub(now))
		return
	}
	d.repair = attempt{}
	d.repairs = append(d.repairs, now)
	d.state.State, d.state.Error = client.GuardOK, ""
	d.state.Repairs++
	r.metrics.repairs.WithLabelValues("repaired").Inc()
	report("published files were changed by someone else, and are put back", "generation", d.generation())
	if d.lost {
		r.log.Error("the published directory was replaced: containers that mount it hold the old one; restart them", "path", d.pub.path)
	}
	r.settled(d)
	r.published()
}

// isLost: is the directory itself another one, or gone? Running containers hold the one that was there when they
// started, whatever is published in its place.
func isLost(f guard.Finding) bool {
	return f.What == client.FoundOtherDirectory || f.What == client.FoundRemoved && f.Path == "."
}

func describe(findings []guard.Finding) string {
	var list []string
	for _, f := range findings {
		list = append(list, f.String())
	}
	return strings.Join(list, "; ")
}

// tend starts the guards of directories that have none running. Their alarms come together in r.alarm.
func (r *Rotator) tend(ctx context.Context) {
	for _, d := range r.dirs {
		if d.guard == nil || d.watched {
			continue
		}
		ctx, stop := context.WithCancel(ctx)
		d.watched, d.stop = true, stop
		r.running.Go(func() {
			if err := d.guard.Run(ctx); err != nil {
				r.log.Error("published files are not watched", "path", d.pub.path, "err", err)
			}
		})
		r.running.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case <-d.guard.Changed():
					d.suspect.Store(true)
					select {
					case r.alarm <- struct{}{}:
					default: // it will look anyway
					}
				}
			}
		})
	}
}

// answerAlarm inspects the directories whose guards have called.
func (r *Rotator) answerAlarm() {
	changed := false
	for _, d := range r.dirs {
		if d.suspect.Swap(false) {
			before, state := d.generation(), d.state.State
			r.inspect(d, time.Now())
			changed = changed || d.generation() != before || d.state.State != state
		}
	}
	if changed {
		r.show()
	}
}

// await makes a call that may take long, and looks after the published directories meanwhile: that AWS takes ten
// seconds to answer is no reason to leave a changed key file for as long.
func await[T any](ctx context.Context, r *Rotator, call func(context.Context) (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	r.running.Go(func() {
		v, err := call(ctx)
		done <- result{v, err}
	})
	for {
		select {
		case answer := <-done:
			return answer.value, answer.err
		case <-r.alarm:
			r.answerAlarm()
		}
	}
}

package mtls

import (
	"log/slog"
	"slices"
	"strings"
	"time"

	"sevagent/client"
	"sevagent/internal/mtls/guard"
)

// What is put back when someone changes it is bounded: five changes in ten minutes are no accident, and a race would
// only disturb readers.
const (
	maxRepairs   = 5
	repairWindow = 10 * time.Minute
)

// guardState is what is known of changes by others to a published directory.
type guardState struct {
	client.GuardStatus
	found    []guard.Finding // what Findings shows
	captured bool            // it is known what should be there
	damaged  bool            // the current generation will be published again anyway
	lost     bool            // the directory itself was replaced: containers hold another one
	retry    attempt         // of a repair, since the last one that succeeded
	repairs  []time.Time     // that succeeded, in the last repairWindow
}

// action is what next asks for.
type action struct {
	repair  bool       // publish the generation again
	count   bool       // the findings are new: count them, and report what becomes of the repair
	level   slog.Level // of message
	message string     // to log, with the findings that are new; empty: nothing
}

// Messages about changes by others.
const (
	msgForeign     = "foreign files lie beside the published ones"
	msgAsPublished = "published files are as they should be again"
	msgRepaired    = "published files were changed by someone else, and are put back"
	msgNotRepaired = "published files were changed by someone else, and cannot be put back"
	msgBeyond      = "published files were changed by someone else in a way that cannot be put back; " +
		"find who did it, and restart the containers that mount them"
	msgQuarantine = "published files were changed by someone else again and again, and are no longer put back; " +
		"find who does it, and restart sevagent"
	msgQuarantined = "published files were changed by someone else again, and are no longer put back"
	msgLost        = "the published directory was replaced: containers that mount it hold the old one; restart them"
)

// next decides what follows from the findings of a look at a published directory. Where it is not known what should be
// there, there are no findings to go by.
func next(s guardState, findings []guard.Finding, now time.Time) (guardState, action) {
	waiting := now.Before(s.retry.next)
	switch {
	case !s.captured:
		// What is captured now could be what someone has made of it: it is published again instead.
		return s, action{repair: s.State != client.GuardQuarantined && !waiting, count: true}
	case len(findings) == 0:
		s.retry = attempt{}
		return s.clear()
	}

	known := slices.Equal(findings, s.found) && s.State != client.GuardOK
	s.found, s.Findings, s.At = findings, nil, now.UTC()
	harmless, repairable := true, true
	for _, f := range findings {
		s.Findings = append(s.Findings, f.Finding)
		if f.Warning {
			continue
		}
		harmless = false
		// One can publish into another directory: that serves new containers, and not those that hold the old one.
		s.lost = s.lost || isLost(f)
		repairable = repairable && (f.Repairable || isLost(f))
	}
	s.repairs = slices.DeleteFunc(slices.Clone(s.repairs), func(t time.Time) bool { return now.Sub(t) >= repairWindow })
	if harmless || !repairable || s.State == client.GuardQuarantined {
		s.retry = attempt{} // there is nothing to retry
	}

	act := action{count: !known}
	report := func(level slog.Level, message string) {
		if !known {
			act.level, act.message = level, message
		}
	}
	switch {
	case s.State == client.GuardQuarantined:
		report(slog.LevelError, msgQuarantined)
	case harmless:
		s.State, s.Error = client.GuardWarning, ""
		if s.lost {
			s.State = client.GuardAlarm
		}
		report(slog.LevelWarn, msgForeign)
	case !repairable:
		s.State = client.GuardAlarm
		report(slog.LevelError, msgBeyond)
	case len(s.repairs) >= maxRepairs:
		s.State = client.GuardQuarantined
		act.level, act.message = slog.LevelError, msgQuarantine
	case waiting:
		s.State = client.GuardAlarm
	default:
		act.repair = true
	}
	return s, act
}

// clear notes that there is nothing wrong any more, as far as that can be.
func (s guardState) clear() (guardState, action) {
	var act action
	switch {
	case s.State == client.GuardQuarantined || s.damaged:
	case s.lost:
		s.State = client.GuardAlarm // until a restart, which follows that of the containers
	default:
		if s.State == client.GuardAlarm || s.State == client.GuardWarning {
			act.level, act.message = slog.LevelInfo, msgAsPublished
		}
		s.State, s.Error = client.GuardOK, ""
	}
	return s, act
}

// repaired notes that the generation was published again.
func (s guardState) repaired(now time.Time) guardState {
	s.retry = attempt{}
	s.repairs = append(slices.Clone(s.repairs), now)
	s.Repairs++
	s.State, s.Error = client.GuardOK, ""
	if s.lost {
		s.State = client.GuardAlarm
	}
	return s
}

// notRepaired notes that it could not be, and when to try again.
func (s guardState) notRepaired(err error, wait time.Duration, now time.Time) guardState {
	s.retry.failed(err, wait, now)
	s.State, s.Error = client.GuardAlarm, err.Error()
	return s
}

// isLost reports whether the directory itself is another one, or gone. Running containers hold the one that was there
// when they started, whatever is published in its place.
func isLost(f guard.Finding) bool {
	return f.What == client.FoundOtherDirectory || f.What == client.FoundRemoved && f.Path == "."
}

func describe(findings []client.Finding) string {
	var list []string
	for _, f := range findings {
		list = append(list, f.String())
	}
	return strings.Join(list, "; ")
}

package mtls

import (
	"errors"
	"slices"
	"testing"
	"time"

	"sevagent/client"
	"sevagent/internal/mtls/guard"
)

func TestNext(t *testing.T) {
	now := time.Date(2027, 1, 1, 12, 0, 0, 0, time.UTC)
	replaced := guard.Finding{Finding: client.Finding{Path: ".", What: client.FoundOtherDirectory}}
	state := func(s client.GuardState, change ...func(*guardState)) guardState {
		g := guardState{GuardStatus: client.GuardStatus{State: s}, captured: true}
		for _, c := range change {
			c(&g)
		}
		return g
	}
	found := func(f ...guard.Finding) func(*guardState) { return func(g *guardState) { g.found = f } }
	retry := func(in time.Duration) func(*guardState) {
		return func(g *guardState) { g.retry.failed(errors.New("no space"), in, now); g.Error = "no space" }
	}
	repaired := func(n int, ago time.Duration) func(*guardState) {
		return func(g *guardState) {
			for range n {
				g.repairs = append(g.repairs, now.Add(-ago))
			}
		}
	}
	lost := func(g *guardState) { g.lost = true }
	damaged := func(g *guardState) { g.damaged = true }
	uncaptured := func(g *guardState) { g.captured = false }

	const (
		repair = 1 << iota
		count
	)
	off, ok, warning := client.GuardOff, client.GuardOK, client.GuardWarning
	alarm, quarantined := client.GuardAlarm, client.GuardQuarantined
	of := func(f ...guard.Finding) []guard.Finding { return f }
	for name, c := range map[string]struct {
		state    guardState
		findings []guard.Finding
		want     client.GuardState
		action   int
		message  string
	}{
		"nothing, at first":          {state(off), nil, ok, 0, ""},
		"nothing":                    {state(ok), nil, ok, 0, ""},
		"nothing, after an alarm":    {state(alarm, found(mounted)), nil, ok, 0, msgAsPublished},
		"nothing, after a warning":   {state(warning, found(foreign)), nil, ok, 0, msgAsPublished},
		"nothing, lost":              {state(alarm, lost), nil, alarm, 0, ""},
		"nothing, quarantined":       {state(quarantined), nil, quarantined, 0, ""},
		"nothing, to be republished": {state(off, damaged), nil, off, 0, ""},

		"changed":                  {state(ok), of(changed), ok, repair | count, ""},
		"changed again, as before": {state(ok, found(changed)), of(changed), ok, repair | count, ""},
		"changed, retry due":       {state(alarm, found(changed), retry(-time.Second)), of(changed), alarm, repair, ""},
		"changed, retry not due":   {state(alarm, found(changed), retry(time.Second)), of(changed), alarm, 0, ""},
		"changed too often": {state(ok, repaired(maxRepairs, time.Minute)), of(changed), quarantined, count,
			msgQuarantine},
		"changed often, but long ago": {state(ok, repaired(maxRepairs, repairWindow)),
			of(changed), ok, repair | count, ""},
		"changed in quarantine":       {state(quarantined), of(changed), quarantined, count, msgQuarantined},
		"still changed in quarantine": {state(quarantined, found(changed)), of(changed), quarantined, 0, ""},

		"foreign file":           {state(ok), of(foreign), warning, count, msgForeign},
		"still the foreign file": {state(warning, found(foreign)), of(foreign), warning, 0, ""},
		"foreign file, lost":     {state(alarm, lost), of(foreign), alarm, count, msgForeign},
		"foreign file and a change": {state(warning, found(foreign)),
			of(foreign, changed), warning, repair | count, ""},
		"foreign file, after a loss": {state(alarm, retry(time.Hour)), of(foreign), warning, count, msgForeign},
		"mounted over":               {state(ok), of(changed, mounted), alarm, count, msgBeyond},
		"still mounted over":         {state(alarm, found(mounted), retry(time.Hour)), of(mounted), alarm, 0, ""},
		"directory replaced":         {state(ok), of(replaced), ok, repair | count, ""},

		"nothing to go by": {state(alarm, uncaptured, retry(-time.Second)),
			nil, alarm, repair | count, ""},
		"nothing to go by, not due":     {state(alarm, uncaptured, retry(time.Second)), nil, alarm, count, ""},
		"nothing to go by, quarantined": {state(quarantined, uncaptured), nil, quarantined, count, ""},
	} {
		before := slices.Clone(c.state.repairs)
		got, act := next(c.state, c.findings, now)
		wantRepair, wantCount := c.action&repair != 0, c.action&count != 0
		if got.State != c.want || act.repair != wantRepair || act.count != wantCount || act.message != c.message {
			t.Errorf("%s: state %s, %+v; want %s, repair %v, count %v, message %q",
				name, got.State, act, c.want, wantRepair, wantCount, c.message)
		}
		if c.findings != nil && (!slices.Equal(got.found, c.findings) || !got.At.Equal(now)) {
			t.Errorf("%s: noted %+v, want the findings and the time", name, got)
		}
		if got.lost != (c.state.lost || slices.ContainsFunc(c.findings, isLost)) {
			t.Errorf("%s: lost is %v", name, got.lost)
		}
		if !slices.Equal(c.state.repairs, before) {
			t.Errorf("%s: the state before was changed", name)
		}
	}
}

// A look that leaves nothing to retry ends the retries: they would be a loop.
func TestNextEndsRetries(t *testing.T) {
	now := time.Date(2027, 1, 1, 12, 0, 0, 0, time.UTC)
	for name, findings := range map[string][]guard.Finding{"nothing": nil, "foreign file": {foreign},
		"mounted over": {mounted}} {
		s := guardState{GuardStatus: client.GuardStatus{State: client.GuardOK}, captured: true}
		s = s.notRepaired(errors.New("no space"), time.Minute, now)
		if s, _ = next(s, findings, now); !s.retry.next.IsZero() || s.retry.failures != 0 {
			t.Errorf("%s: a retry is due at %v", name, s.retry.next)
		}
	}
}

func TestRepaired(t *testing.T) {
	now := time.Date(2027, 1, 1, 12, 0, 0, 0, time.UTC)
	s := guardState{GuardStatus: client.GuardStatus{State: client.GuardOK}, captured: true}
	s = s.notRepaired(errors.New("no space"), time.Minute, now)
	if s.State != client.GuardAlarm || s.Error != "no space" || !s.retry.next.Equal(now.Add(time.Minute)) ||
		s.Repairs != 0 {
		t.Errorf("after a failure: %+v, want an alarm and a retry in a minute", s)
	}
	s = s.repaired(now)
	if s.State != client.GuardOK || s.Error != "" || s.Repairs != 1 || len(s.repairs) != 1 || s.retry.failures != 0 {
		t.Errorf("after a success: %+v, want one repair and no retry", s)
	}
	s.lost = true
	if s = s.repaired(now); s.State != client.GuardAlarm || s.Repairs != 2 {
		t.Errorf("in another directory: %+v, want that the alarm stays", s)
	}
}

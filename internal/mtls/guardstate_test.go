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

	for name, c := range map[string]struct {
		state    guardState
		findings []guard.Finding
		want     client.GuardState
		repair   bool
		count    bool
		message  string
	}{
		"nothing, at first":          {state(client.GuardOff), nil, client.GuardOK, false, false, ""},
		"nothing":                    {state(client.GuardOK), nil, client.GuardOK, false, false, ""},
		"nothing, after an alarm":    {state(client.GuardAlarm, found(mounted)), nil, client.GuardOK, false, false, msgAsPublished},
		"nothing, after a warning":   {state(client.GuardWarning, found(foreign)), nil, client.GuardOK, false, false, msgAsPublished},
		"nothing, lost":              {state(client.GuardAlarm, lost), nil, client.GuardAlarm, false, false, ""},
		"nothing, quarantined":       {state(client.GuardQuarantined), nil, client.GuardQuarantined, false, false, ""},
		"nothing, to be republished": {state(client.GuardOff, damaged), nil, client.GuardOff, false, false, ""},

		"changed":                     {state(client.GuardOK), []guard.Finding{changed}, client.GuardOK, true, true, ""},
		"changed again, as before":    {state(client.GuardOK, found(changed)), []guard.Finding{changed}, client.GuardOK, true, true, ""},
		"changed, retry due":          {state(client.GuardAlarm, found(changed), retry(-time.Second)), []guard.Finding{changed}, client.GuardAlarm, true, false, ""},
		"changed, retry not due":      {state(client.GuardAlarm, found(changed), retry(time.Second)), []guard.Finding{changed}, client.GuardAlarm, false, false, ""},
		"changed too often":           {state(client.GuardOK, repaired(maxRepairs, time.Minute)), []guard.Finding{changed}, client.GuardQuarantined, false, true, msgQuarantine},
		"changed often, but long ago": {state(client.GuardOK, repaired(maxRepairs, repairWindow)), []guard.Finding{changed}, client.GuardOK, true, true, ""},
		"changed in quarantine":       {state(client.GuardQuarantined), []guard.Finding{changed}, client.GuardQuarantined, false, true, msgQuarantined},
		"still changed in quarantine": {state(client.GuardQuarantined, found(changed)), []guard.Finding{changed}, client.GuardQuarantined, false, false, ""},

		"foreign file":               {state(client.GuardOK), []guard.Finding{foreign}, client.GuardWarning, false, true, msgForeign},
		"still the foreign file":     {state(client.GuardWarning, found(foreign)), []guard.Finding{foreign}, client.GuardWarning, false, false, ""},
		"foreign file, lost":         {state(client.GuardAlarm, lost), []guard.Finding{foreign}, client.GuardAlarm, false, true, msgForeign},
		"foreign file and a change":  {state(client.GuardWarning, found(foreign)), []guard.Finding{foreign, changed}, client.GuardWarning, true, true, ""},
		"foreign file, after a loss": {state(client.GuardAlarm, retry(time.Hour)), []guard.Finding{foreign}, client.GuardWarning, false, true, msgForeign},
		"mounted over":               {state(client.GuardOK), []guard.Finding{changed, mounted}, client.GuardAlarm, false, true, msgBeyond},
		"still mounted over":         {state(client.GuardAlarm, found(mounted), retry(time.Hour)), []guard.Finding{mounted}, client.GuardAlarm, false, false, ""},
		"directory replaced":         {state(client.GuardOK), []guard.Finding{replaced}, client.GuardOK, true, true, ""},

		"nothing to go by":              {state(client.GuardAlarm, uncaptured, retry(-time.Second)), nil, client.GuardAlarm, true, true, ""},
		"nothing to go by, not due":     {state(client.GuardAlarm, uncaptured, retry(time.Second)), nil, client.GuardAlarm, false, true, ""},
		"nothing to go by, quarantined": {state(client.GuardQuarantined, uncaptured), nil, client.GuardQuarantined, false, true, ""},
	} {
		before := slices.Clone(c.state.repairs)
		got, act := next(c.state, c.findings, now)
		if got.State != c.want || act.repair != c.repair || act.count != c.count || act.message != c.message {
			t.Errorf("%s: state %s, %+v; want %s, repair %v, count %v, message %q", name, got.State, act, c.want, c.repair, c.count, c.message)
		}
		if len(c.findings) > 0 && (!slices.Equal(got.found, c.findings) || len(got.Findings) != len(c.findings) || !got.At.Equal(now)) {
			t.Errorf("%s: noted %+v, want the findings and the time", name, got)
		}
		if got.lost != (c.state.lost || slices.ContainsFunc(c.findings, isLost)) {
			t.Errorf("%s: lost is %v", name, got.lost)
		}
		if act.repair != (got.retry.next.Equal(c.state.retry.next)) && got.State == client.GuardOK && !got.retry.next.IsZero() {
			t.Errorf("%s: another look is due at %v", name, got.retry.next)
		}
		if !slices.Equal(c.state.repairs, before) {
			t.Errorf("%s: the state before was changed", name)
		}
	}
}

// A look that leaves nothing to retry ends the retries: they would be a loop.
func TestNextEndsRetries(t *testing.T) {
	now := time.Date(2027, 1, 1, 12, 0, 0, 0, time.UTC)
	for name, findings := range map[string][]guard.Finding{"nothing": nil, "foreign file": {foreign}, "mounted over": {mounted}} {
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
	if s.State != client.GuardAlarm || s.Error != "no space" || !s.retry.next.Equal(now.Add(time.Minute)) || s.Repairs != 0 {
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

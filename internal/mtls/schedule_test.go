package mtls

import (
	"testing"
	"time"
)

func TestNextPoll(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	const day = 24 * time.Hour
	leaf := func(age, left time.Duration) Outlook {
		return Outlook{Interval: time.Hour, NotBefore: now.Add(-age), NotAfter: now.Add(left)}
	}
	rotation := func(in time.Duration) Outlook {
		return Outlook{Interval: time.Hour, NextRotation: now.Add(in)}
	}
	for name, c := range map[string]struct {
		o    Outlook
		want time.Duration // in the middle of the jitter
	}{
		"nothing known":     {Outlook{Interval: 5 * time.Minute}, 5 * time.Minute},
		"young certificate": {leaf(10*day, 80*day), time.Hour},
		"last third":        {leaf(61*day, 29*day), 5 * time.Minute},
		"last tenth":        {leaf(82*day, 8*day), time.Minute},
		"expired":           {leaf(91*day, -day), time.Minute},
		"short interval stays": {Outlook{Interval: 5 * time.Second, NotBefore: now.Add(-9 * day),
			NotAfter: now.Add(day)}, 5 * time.Second},
		"rotation far off":         {rotation(10 * day), time.Hour},
		"window opens":             {rotation(5 * time.Minute), 30 * time.Second},
		"rotation overdue":         {rotation(-30 * time.Minute), 30 * time.Second},
		"rotation did not happen":  {rotation(-2 * time.Hour), time.Hour},
		"does not sleep past that": {rotation(25 * time.Minute), 20*time.Minute + 15*time.Second},
		"version pending":          {Outlook{Interval: time.Hour, Pending: true}, 30 * time.Second},
		"pending in an aging world": {Outlook{Interval: time.Hour,
			NotBefore: now.Add(-89 * day), NotAfter: now.Add(day),
			Pending: true}, 30 * time.Second},
	} {
		if got := c.o.NextPoll(now, 0.5); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	o := Outlook{Interval: 100 * time.Second}
	if got, want := o.NextPoll(now, 0), 80*time.Second; got != want {
		t.Errorf("shortest %v, want %v", got, want)
	}
	if got, want := o.NextPoll(now, 0.999999), 120*time.Second; got > want || got < want-time.Second {
		t.Errorf("longest %v, want just below %v", got, want)
	}
}

func TestBackoff(t *testing.T) {
	for n, want := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second,
		9: 256 * time.Second, 10: 5 * time.Minute, 5000: 5 * time.Minute} {
		if got := Backoff(n, 1); got != want {
			t.Errorf("backoff %d is at most %v, want %v", n, got, want)
		}
		if got := Backoff(n, 0); got != 100*time.Millisecond {
			t.Errorf("backoff %d is at least %v, want 100ms", n, got)
		}
	}
	for _, c := range []struct {
		interval time.Duration
		n        int
		want     time.Duration
	}{
		{5 * time.Minute, 1, 5 * time.Minute},
		{5 * time.Minute, 2, 10 * time.Minute},
		{5 * time.Minute, 3, 15 * time.Minute},
		{5 * time.Second, 3, 20 * time.Second},
		{5 * time.Second, 5000, 15 * time.Minute},
		{time.Hour, 7, time.Hour},
	} {
		if got := deniedBackoff(c.interval, c.n, 0.5); got != c.want {
			t.Errorf("denied %d times at %v: %v, want %v", c.n, c.interval, got, c.want)
		}
	}
}

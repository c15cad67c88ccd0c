package mtls

import (
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sevagent/client"
)

func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, "ca", nil)
		s := newFake(ca.clientSecret(t, "first"))
		s.ahead = new(time.Duration)
		n := start(t, filepath.Join(memoryDir(t), "mtls"), map[string]Source{"a": s})
		if c := n.Status().Clock; c.Error != "" || c.SkewSeconds < -1 || c.SkewSeconds > 1 || c.Checked.IsZero() {
			t.Errorf("a clock that is right: %+v", c)
		}

		// The node is an hour ahead: what seems to have expired has not.
		*s.ahead = -time.Hour
		s.put("version-2", ca.clientSecret(t, "second", valid(-2*time.Hour, -30*time.Minute)))
		n.after(6 * time.Minute)
		if got := n.subject(t); got != "second" {
			t.Errorf("published %q: a certificate was judged by a clock that is wrong (%+v)", got, n.secret("a"))
		}
		if c := n.Status().Clock; !strings.Contains(c.Error, "ahead by 1h") {
			t.Errorf("%+v, want that the clock is ahead", c)
		}
		if now := time.Now(); Now(n.Status(), now).Sub(now).Round(time.Minute) != -time.Hour {
			t.Errorf("expiry is judged by %v at %v", Now(n.Status(), now), now)
		}
		s.put("version-3", ca.clientSecret(t, "third", valid(-9*time.Hour, -2*time.Hour)))
		n.after(6 * time.Minute)
		if got := n.subject(t); got != "second" || n.secret("a").State != client.SecretRejected {
			t.Errorf("published %q: what has expired by both clocks has expired", got)
		}

		// And what begins in the future of the world is held until then, by whichever clock.
		s.put("version-3b", ca.clientSecret(t, "not yet", valid(-20*time.Minute, 24*time.Hour)))
		n.after(6 * time.Minute)
		if got := n.secret("a"); got.State != client.SecretHeld || got.HeldUntil.Before(time.Now().Add(20*time.Minute)) || got.HeldUntil.After(time.Now().Add(time.Hour)) {
			t.Errorf("state %s until %v, want held until the world is there, at %v", got.State, got.HeldUntil, time.Now())
		}
		s.put("version-3", ca.clientSecret(t, "third", valid(-9*time.Hour, -2*time.Hour)))
		n.after(6 * time.Minute)

		// The node is an hour behind: its readers would not accept what has begun for the rest of the world.
		*s.ahead = time.Hour
		s.put("version-4", ca.clientSecret(t, "fourth", valid(30*time.Minute, 48*time.Hour)))
		n.after(6 * time.Minute)
		if got := n.secret("a"); got.State != client.SecretHeld {
			t.Errorf("state %s, want held until the node's clock is there", got.State)
		}
		if c := n.Status().Clock; !strings.Contains(c.Error, "behind by 1h") {
			t.Errorf("%+v, want that the clock is behind", c)
		}
		n.after(30 * time.Minute)
		if got := n.subject(t); got != "fourth" {
			t.Errorf("published %q, want the fourth", got)
		}

		// Failures tell the time too, and a clock that is right again ends it.
		*s.ahead = 0
		s.fail(&SourceError{Kind: Transient, Err: errTest, Date: time.Now()})
		n.after(6 * time.Minute)
		s.fail(&SourceError{Kind: Transient, Err: errTest, Date: time.Now()})
		n.after(6 * time.Minute)
		if c := n.Status().Clock; strings.Contains(c.Error, "behind by 1h") {
			t.Errorf("%+v, want another difference than an hour", c)
		}
	})
}

func TestHints(t *testing.T) {
	var h hints
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	allowed := func(seconds int) (n int) {
		for h.allow(now.Add(time.Duration(seconds) * time.Second)) {
			n++
		}
		return n
	}
	for _, c := range []struct{ at, want int }{{0, 10}, {9, 0}, {10, 1}, {35, 2}, {36, 0}, {1000, 10}} {
		if got := allowed(c.at); got != c.want {
			t.Errorf("at %d s %d are allowed, want %d", c.at, got, c.want)
		}
	}
}

// A loop that refreshes is slowed down, and all who wait get an answer.
func TestRefreshIsLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, "ca", nil)
		s := newFake(ca.clientSecret(t, "first"))
		n := start(t, filepath.Join(memoryDir(t), "mtls"), map[string]Source{"a": s})
		s.counts()
		began := time.Now()
		for range 20 {
			if _, err := n.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took < 90*time.Second || took > 110*time.Second {
			t.Errorf("20 refreshes took %v, want 10 at once and then one in ten seconds", took)
		}
		if describes, _ := s.counts(); describes > 22 {
			t.Errorf("%d describes", describes)
		}
	})
}

func TestEstimate(t *testing.T) {
	for _, c := range []struct {
		secrets  int
		interval time.Duration
		calls    int
	}{
		{0, time.Minute, 0},
		{1, 5 * time.Minute, 8759},
		{2, 5 * time.Minute, 2 * 8759},
		{1, 30 * time.Second, 86402},
		{1, 24 * time.Hour, 162},
	} {
		got := estimate(c.secrets, c.interval)
		if got.CallsPerMonth != c.calls || got.USDPerMonth != float64(c.calls)*0.000005 {
			t.Errorf("%d secrets every %v: %+v, want %d calls", c.secrets, c.interval, got, c.calls)
		}
	}
}

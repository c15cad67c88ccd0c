package mtls

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sevagent/client"
	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/mtls/source"
)

// The difference from the service's clock is a warning, and no more: what is published goes by the node's clock.
func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := mtlstest.NewCA(t, "ca", nil)
		s := newFake(ca.ClientSecret(t, "first"))
		s.ahead = new(time.Duration)
		n := start(t, filepath.Join(mtlstest.MemoryDir(t), "mtls"), map[string]source.Source{"a": s})
		if c := n.Status().Clock; c.Error != "" || c.SkewSeconds < -1 || c.SkewSeconds > 1 || c.Checked.IsZero() {
			t.Errorf("a clock that is right: %+v", c)
		}
		for i, c := range []struct {
			service time.Duration // how far its clock is ahead of the node's
			want    string
		}{
			{-time.Hour, "the clock is ahead by 1h"}, {-50 * time.Second, ""}, {time.Hour, "the clock is behind by 1h"},
		} {
			*s.ahead = c.service
			s.put(fmt.Sprintf("expired-%d", i),
				ca.ClientSecret(t, "expired", mtlstest.Valid(-2*time.Hour, -30*time.Minute)))
			n.after(6 * time.Minute)
			if got := n.Status().Clock; !strings.HasPrefix(got.Error, c.want) || (got.Error == "") != (c.want == "") {
				t.Errorf("the service is %v ahead: %+v, want %q", c.service, got, c.want)
			}
			if got := n.metric(t, "clock_skew_seconds"); got < -c.service.Seconds()-1 || got > -c.service.Seconds()+1 {
				t.Errorf("the service is %v ahead: the metric is %v", c.service, got)
			}
			if got := n.secret("a"); got.State != client.SecretRejected || n.subject(t) != "first" {
				t.Errorf("the service is %v ahead: secret %+v, want that it has expired by the node's clock",
					c.service, got)
			}
		}

		// A failure carries the service's date, too.
		s.fail(&source.Error{Kind: source.Transient, Err: errTest, Date: time.Now()})
		n.Refresh(t.Context())
		if c := n.Status().Clock; c.Error != "" {
			t.Errorf("%+v, want that the clock is right again", c)
		}
	})
}

func TestHints(t *testing.T) {
	var h hints
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	allowed := func(seconds int) (n int) {
		for h.spend(now.Add(time.Duration(seconds) * time.Second)) {
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
	withNode(t, func(t *testing.T, ca *mtlstest.CA, s *fakeSecret, n *node) {
		s.counts()
		began := time.Now()
		for range 20 {
			if _, err := n.Refresh(t.Context()); err != nil {
				t.Fatalf("refresh: %v", err)
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
		got := Estimate(c.secrets, c.interval)
		if got.CallsPerMonth != c.calls || got.USDPerMonth != float64(c.calls)*0.000005 {
			t.Errorf("%d secrets every %v: %+v, want %d calls", c.secrets, c.interval, got, c.calls)
		}
	}
}

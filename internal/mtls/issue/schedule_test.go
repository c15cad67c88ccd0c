package issue

import (
	"crypto/x509"
	"fmt"
	"testing"
	"time"
)

// TestRenewAt: the moment follows from the certificate, lies in the same part of every life, and spreads a fleet.
func TestRenewAt(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct{ backdated, life time.Duration }{
		{time.Hour, 24 * time.Hour}, {0, time.Hour}, {time.Hour, 365 * 24 * time.Hour}, {2 * time.Hour, time.Hour},
	} {
		first, last, sum := 1.0, 0.0, 0.0
		const fleet = 1000
		for i := range fleet {
			leaf := &x509.Certificate{
				Raw: fmt.Append(nil, i), NotBefore: begin.Add(-c.backdated), NotAfter: begin.Add(c.life),
			}
			from := issued(leaf, c.backdated)
			at := renewAt(leaf, c.backdated)
			if again := renewAt(leaf, c.backdated); !again.Equal(at) {
				t.Fatalf("renewed at %v and at %v", at, again)
			}
			part := float64(at.Sub(from)) / float64(leaf.NotAfter.Sub(from))
			first, last, sum = min(first, part), max(last, part), sum+part
			if left, life := leaf.NotAfter.Sub(at), leaf.NotAfter.Sub(leaf.NotBefore); left < life/3 && c.life > time.Hour {
				t.Fatalf("%v of %v are left, of which readiness warns", left, life)
			}
		}
		if first < renewFrom || first > renewFrom+0.005 || last > renewTo || last < renewTo-0.005 {
			t.Errorf("%v: renewed from %.3f to %.3f of their lives", c.life, first, last)
		}
		if mean := sum / fleet; mean < 0.56 || mean > 0.58 {
			t.Errorf("%v: renewed at %.3f of their lives in the mean, want about 0.57", c.life, mean)
		}
	}
}

// TestBackoff: without a certificate the waits double from a second to a quarter of an hour; with one they grow faster,
// up to a quarter of what is left of it.
func TestBackoff(t *testing.T) {
	for _, c := range []struct {
		left time.Duration
		n    int
		want time.Duration
	}{
		{0, 1, time.Second},
		{0, 2, 2 * time.Second},
		{0, 5000, 15 * time.Minute},
		{9 * time.Hour, 1, 2 * time.Minute},
		{9 * time.Hour, 2, 8 * time.Minute},
		{9 * time.Hour, 3, 32 * time.Minute},
		{9 * time.Hour, 4, 2 * time.Hour},
		{90 * 24 * time.Hour, 5000, 2 * time.Hour},
		{3 * time.Hour, 4, 45 * time.Minute},
		{time.Minute, 4, 15 * time.Minute},
	} {
		if got := Backoff(c.left, c.n, 1); got != c.want {
			t.Errorf("failure %d with %v left: at most %v, want %v", c.n, c.left, got, c.want)
		}
		if got := Backoff(c.left, c.n, 0); got != c.want/2 {
			t.Errorf("failure %d with %v left: at least %v, want %v", c.n, c.left, got, c.want/2)
		}
	}
}

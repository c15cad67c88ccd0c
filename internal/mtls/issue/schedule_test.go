package issue

import (
	"container/heap"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
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

// attempts are the next attempts of nodes, by time in seconds.
type attempts []attempt

type attempt struct {
	at       float64
	failures int
}

func (a attempts) Len() int           { return len(a) }
func (a attempts) Less(i, j int) bool { return a[i].at < a[j].at }
func (a attempts) Swap(i, j int)      { a[i], a[j] = a[j], a[i] }
func (a *attempts) Push(v any)        { *a = append(*a, v.(attempt)) }
func (a *attempts) Pop() any {
	last := (*a)[len(*a)-1]
	*a = (*a)[:len(*a)-1]
	return last
}

// TestFleetAfterOutage: ten thousand nodes that became due while the authority was down are certified within a quarter
// of an hour of its return, with one call each, and stay below Private CA's quotas, of which 20 a second for the CA's
// own certificate is the lowest.
func TestFleetAfterOutage(t *testing.T) {
	const nodes, quota, outage = 10_000, 20.0, 4 * 3600.0
	for seed := range uint64(5) {
		random := rand.New(rand.NewPCG(seed, 1))
		var queue attempts
		for range nodes { // due at some time of the outage but its last hour
			heap.Push(&queue, attempt{at: random.Float64() * (outage - 3600)})
		}
		tokens, last := quota, 0.0
		calls, done, throttled, end := 0, 0, 0, 0.0
		for queue.Len() > 0 {
			a := heap.Pop(&queue).(attempt)
			tokens, last = min(quota, tokens+(a.at-last)*quota), a.at
			if a.at >= outage {
				calls++
				if tokens >= 1 {
					tokens--
					done, end = done+1, a.at-outage
					continue
				}
				throttled++
			}
			a.failures++
			a.at += backoff(retryPublished, a.failures, random.Float64()).Seconds()
			heap.Push(&queue, a)
		}
		if done != nodes || end > retryMax.Seconds() || calls > nodes*101/100 {
			t.Errorf("seed %d: %d nodes certified %.0f s after the outage, with %d calls, of which %d were throttled",
				seed, done, end, calls, throttled)
		}
	}
}

package mtls

import (
	"sync"
	"time"

	"sevagent/client"
)

// Hints come from people and from EventBridge, and both can get into a loop. Up to ten are served at once, then one per
// ten seconds; the rest coalesce.
const (
	hintBurst = 10
	hintEvery = 10 * time.Second
)

// hints is a token bucket.
type hints struct {
	spent int
	at    time.Time // of the last refill
}

// spend reports whether another hint may be served now, and counts it if so.
func (h *hints) spend(now time.Time) bool {
	if n := int(now.Sub(h.at) / hintEvery); n > 0 {
		h.spent = max(0, h.spent-n)
		h.at = h.at.Add(time.Duration(n) * hintEvery)
	}
	if h.spent == 0 {
		h.at = now
	}
	if h.spent >= hintBurst {
		return false
	}
	h.spent++
	return true
}

// requests are what others want of Run. Those made while one is pending fold into it.
type requests struct {
	settings *Settings
	look     bool // at every secret, now
	waiters  []chan<- outcome
	pushed   []string // secrets whose sources have something new
	renewals []*renewal
}

// renewal waits for a new certificate of a secret that issues them.
type renewal struct {
	name string
	was  string // the version published before
	done chan outcome
}

// outcome answers a Refresh.
type outcome struct {
	refresh client.Refresh
	err     error
}

// inbox collects requests until Run takes them.
type inbox struct {
	wake chan struct{} // size one: there are requests

	mu       sync.Mutex
	requests requests
	hints    hints
}

func newInbox() *inbox { return &inbox{wake: make(chan struct{}, 1)} }

// add puts a request in, and never waits.
func (b *inbox) add(ask func(*requests)) {
	b.mu.Lock()
	ask(&b.requests)
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default: // Run will look anyway
	}
}

// take returns the requests that may be served now, and keeps the rest. Hints are limited unless free: local files cost
// nothing to look at.
func (b *inbox) take(now time.Time, free bool) requests {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.requests
	b.requests = requests{}
	if q.look && q.settings == nil && !free && !b.hints.spend(now) {
		b.requests.look, b.requests.waiters = true, q.waiters
		q.look, q.waiters = false, nil
	}
	return q
}

// next returns when hints that were kept may be served; zero: there are none.
func (b *inbox) next() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.requests.look {
		return time.Time{}
	}
	return b.hints.at.Add(hintEvery)
}

package mtls

import "time"

// Hints are for people and for EventBridge, and both can get into a loop. Ten may come at once.
const (
	hintBurst = 10
	hintEvery = 10 * time.Second
)

// hints is a token bucket.
type hints struct {
	spent int
	at    time.Time // of the last refill
}

// allow reports whether another hint may be looked into now.
func (h *hints) allow(now time.Time) bool {
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

// next is when one that was not allowed will be.
func (h *hints) next() time.Time { return h.at.Add(hintEvery) }

package mtls

import (
	"time"

	"sevagent/client"
)

// skewTold is from which difference between the node's clock and AWS's on it is worth telling. From maxSkew on AWS
// refuses signatures, and expiry is judged by its clock.
const skewTold = time.Minute

// skew is how far the node's clock is ahead of the secrets' service's, as last heard.
type skew struct {
	ahead time.Duration
	heard time.Time // by the node's clock; zero: never
}

// clock is the time by which a set is judged. They differ only where the node's clock is off.
type clock struct {
	node time.Time // readers go by this one: what begins in its future is of no use to them
	real time.Time // what has expired by this one has expired
}

func at(t time.Time) clock { return clock{t, t} }

func (k skew) clock(now time.Time) clock {
	if k.ahead.Abs() <= maxSkew {
		return at(now)
	}
	return clock{now, now.Add(-k.ahead)}
}

// heardTime notes what a service's clock said when it answered, between asked and now.
func (r *Rotator) heardTime(date, asked, now time.Time) {
	if date.IsZero() {
		return
	}
	// The answer's date has whole seconds, cut off: half a second is the best guess at the rest.
	middle := asked.Add(now.Sub(asked) / 2)
	was := r.skew
	r.skew = skew{ahead: middle.Sub(date.Add(time.Second / 2)), heard: now}
	if said := was.ahead.Abs() > skewTold; said != (r.skew.ahead.Abs() > skewTold) {
		if said {
			r.log.Info("the clock is right again")
		} else {
			r.log.Warn("the clock is wrong", "ahead_by", r.skew.ahead.Round(time.Second), "advice", advice)
		}
	}
	if was.clock(now) != r.skew.clock(now) {
		r.dirty = true // versions were judged by it
	}
}

const advice = "check chronyd and its route to 169.254.169.123"

func (k skew) status() client.ClockStatus {
	s := client.ClockStatus{SkewSeconds: float64(k.ahead.Milliseconds()) / 1000, Checked: k.heard.UTC()}
	switch {
	case k.ahead > skewTold:
		s.Error = "the clock is ahead by " + k.ahead.Round(time.Second).String() + "; " + advice
	case k.ahead < -skewTold:
		s.Error = "the clock is behind by " + (-k.ahead).Round(time.Second).String() + "; " + advice
	}
	return s
}

// Now is the time by which expiry is judged: the node's, unless AWS's differs from it too much.
func Now(s *client.Publication, node time.Time) time.Time {
	k := skew{ahead: time.Duration(s.Clock.SkewSeconds * float64(time.Second))}
	return k.clock(node).real
}

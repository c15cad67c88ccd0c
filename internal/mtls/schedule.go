package mtls

import (
	"math"
	"time"
)

const (
	// jitter spreads polls by ±20 %: a fleet boots together and must not stay together.
	jitter = 0.2
	// rotationLead and rotationWindow bound the time around a due rotation in which the new version is expected.
	rotationLead   = 5 * time.Minute
	rotationWindow = time.Hour
	// rotationPoll is the interval within that window, and while a version is pending.
	rotationPoll = 30 * time.Second
	// agingPoll is the interval in the last third of a certificate's life, expiringPoll in its last tenth.
	agingPoll    = 5 * time.Minute
	expiringPoll = time.Minute
)

// Outlook is what decides when to look at a secret again. Zero times are unknown.
type Outlook struct {
	Interval            time.Duration
	NotBefore, NotAfter time.Time // of the leaf that expires first
	NextRotation        time.Time
	Pending             bool
}

// NextPoll returns how long to wait after a successful look. random is from [0, 1).
func (o Outlook) NextPoll(now time.Time, random float64) time.Duration {
	wait := o.Interval
	if !o.NotAfter.IsZero() {
		life, left := o.NotAfter.Sub(o.NotBefore), o.NotAfter.Sub(now)
		if left < life/3 {
			wait = min(wait, agingPoll)
		}
		if left < life/10 {
			wait = min(wait, expiringPoll)
		}
	}
	opens := o.NextRotation.Add(-rotationLead)
	inWindow := !o.NextRotation.IsZero() && !now.Before(opens) && now.Before(o.NextRotation.Add(rotationWindow))
	if o.Pending || inWindow {
		wait = min(wait, rotationPoll)
	}
	wait = scale(wait, 1-jitter+2*jitter*random)
	// Do not sleep past the opening; all nodes know the same moment, so each adds a little of its own.
	if untilOpen := opens.Sub(now); !o.NextRotation.IsZero() && untilOpen > 0 {
		wait = min(wait, untilOpen+scale(rotationPoll, random))
	}
	return wait
}

const (
	retryMin = time.Second
	retryMax = 5 * time.Minute
	// deniedMax bounds the wait after a failure that needs someone to act.
	deniedMax = 15 * time.Minute
)

// Backoff returns how long to wait after the nth failure in a row, n from 1, that goes away by itself: full jitter
// from 1 s to 5 min, never quite nothing.
func Backoff(n int, random float64) time.Duration {
	ceiling := min(float64(retryMax), float64(retryMin)*math.Pow(2, float64(n-1)))
	return max(retryMin/10, scale(time.Duration(ceiling), random))
}

// deniedBackoff is that for a failure that does not: the interval, doubled up to a quarter of an hour.
func deniedBackoff(interval time.Duration, n int, random float64) time.Duration {
	wait := min(float64(max(deniedMax, interval)), float64(interval)*math.Pow(2, float64(n-1)))
	return scale(time.Duration(wait), 1-jitter+2*jitter*random)
}

func scale(d time.Duration, factor float64) time.Duration {
	return time.Duration(float64(d) * factor)
}

package mtls

import (
	"errors"
	"log/slog"
	"time"

	"sevagent/client"
	"sevagent/internal/mtls/source"
)

// maxClockSkew is the difference between the node's clock and the service's above which we warn. Certificates are
// verified by the node's clock all the same, since that is the one that their readers on the node go by. Above five
// minutes AWS refuses signatures.
const maxClockSkew = time.Minute

const clockAdvice = "check chronyd and its route to 169.254.169.123"

// clock is how far the node's clock is ahead of that of the service that holds the secrets, as last heard.
type clock struct {
	log   *slog.Logger
	ahead time.Duration
	heard time.Time // by the node's clock; zero: never
}

// hear notes the date of an answer that came between asked and now. A zero date says nothing.
func (c *clock) hear(date, asked, now time.Time) {
	if date.IsZero() {
		return
	}
	wasWrong := c.wrong()
	// The answer's date has whole seconds, cut off: half a second is the best guess at the rest.
	middle := asked.Add(now.Sub(asked) / 2)
	c.ahead, c.heard = middle.Sub(date.Add(time.Second/2)), now
	switch {
	case wasWrong && !c.wrong():
		c.log.Info("the clock is right again")
	case !wasWrong && c.wrong():
		c.log.Warn("the clock is wrong", "ahead_by", c.ahead.Round(time.Second), "advice", clockAdvice)
	}
}

// hearError is hear for a failure, if it has a date.
func (c *clock) hearError(err error, asked, now time.Time) {
	if e, ok := errors.AsType[*source.Error](err); ok {
		c.hear(e.Date, asked, now)
	}
}

// wrong reports whether the difference is worth a warning.
func (c *clock) wrong() bool { return c.ahead.Abs() > maxClockSkew }

func (c *clock) status() client.ClockStatus {
	s := client.ClockStatus{SkewSeconds: float64(c.ahead.Milliseconds()) / 1000, Checked: c.heard.UTC()}
	if c.wrong() {
		direction := "ahead"
		if c.ahead < 0 {
			direction = "behind"
		}
		s.Error = "the clock is " + direction + " by " + c.ahead.Abs().Round(time.Second).String()
	}
	return s
}

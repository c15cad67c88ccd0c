package cli

import (
	"fmt"
	"time"
)

// Duration returns a length of time in words, in the largest unit of which there are two: "10 years", "90 minutes",
// "60 ms".
func Duration(d time.Duration) string {
	const day = 24 * time.Hour
	d = d.Abs()
	for _, unit := range []struct {
		length time.Duration
		name   string
	}{{365 * day, "years"}, {day, "days"}, {time.Hour, "hours"}, {time.Minute, "minutes"}, {time.Second, "seconds"}} {
		if d >= 2*unit.length {
			return fmt.Sprintf("%d %s", d/unit.length, unit.name)
		}
	}
	if d >= time.Second {
		return "a second"
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}

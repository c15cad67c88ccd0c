package cli

import (
	"testing"
	"time"
)

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 ms", 60 * time.Millisecond: "60 ms", time.Second: "a second", 1999 * time.Millisecond: "a second",
		2 * time.Second: "2 seconds", 119 * time.Second: "119 seconds", 2 * time.Minute: "2 minutes",
		90 * time.Minute: "90 minutes", 47 * time.Hour: "47 hours", 48 * time.Hour: "2 days",
		729 * 24 * time.Hour: "729 days", 3652 * 24 * time.Hour: "10 years",
		-time.Hour: "60 minutes",
	} {
		if got := Duration(d); got != want {
			t.Errorf("Duration(%v) = %q, want %q", d, got, want)
		}
	}
}

package suggest

import (
	"strings"
	"testing"
)

func TestClosest(t *testing.T) {
	known := []string{"log", "mtls", "level", "attestation", "status", "json", "poll_interval"}
	for word, want := range map[string]string{
		"stauts": "status", "jsn": "json", "Level": "level", "levle": "level", "attestaton": "attestation",
		"pol_interval": "poll_interval", "pollinterwal": "poll_interval", "logs": "log",
		"foo": "", "lg": "", "": "", "colour": "", "lvl": "", strings.Repeat("log", 30): "",
	} {
		if got := Closest(word, known); got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}

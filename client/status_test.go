package client

import (
	"slices"
	"testing"
	"time"
)

// Problems come worst first, of the same severity the oldest first, and what passes is none.
func TestProblems(t *testing.T) {
	at := time.Date(2026, 12, 1, 9, 0, 0, 0, time.UTC)
	h := new(Health)
	for i, c := range []NamedCheck{
		{"a", Check{Status: Pass}},
		{"b", Check{ComponentID: "2", Status: Warn, Since: at}},
		{"b", Check{ComponentID: "1", Status: Warn, Since: at}},
		{"c", Check{Status: Warn, Since: at.Add(-time.Hour)}},
		{"d", Check{Status: Fail, Since: at.Add(time.Hour)}},
		{"e", Check{Status: Fail, Since: at}},
	} {
		c.Time = at.Add(time.Duration(i))
		h.Add(c.Name, c.Check)
	}
	var got []string
	for _, c := range h.Problems() {
		got = append(got, c.Name+c.ComponentID)
	}
	if want := []string{"e", "d", "c", "b1", "b2"}; !slices.Equal(got, want) {
		t.Errorf("Problems = %q, want %q", got, want)
	}
}

func TestNamedCheckString(t *testing.T) {
	c := NamedCheck{"mtls:secret", Check{ComponentID: "node/mtls", Output: "denied: no", Next: "allow it"}}
	if got, want := c.String(), "mtls:secret node/mtls: denied: no; allow it"; got != want {
		t.Errorf("String = %q, want %q", got, want)
	}
	if got := (NamedCheck{Name: "configuration"}).String(); got != "configuration" {
		t.Errorf("String of a bare check = %q", got)
	}
}

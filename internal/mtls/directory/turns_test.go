package directory

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// A reader opens files in turn, the first of them at start, each of the others gap after the one before, and the first
// again pause after the last.
type turnsReader struct {
	files             string
	start, gap, pause time.Duration
}

// inside reports whether r has opened some files of a set at a time, and not all.
func (r turnsReader) inside(at time.Duration) bool {
	set := time.Duration(len(strings.Fields(r.files))-1) * r.gap
	return at >= r.start && (at-r.start)%(set+r.pause) < set
}

type turnsOpen struct {
	at   time.Duration
	name string
}

func turnsOpens(readers []turnsReader) (all []turnsOpen) {
	for _, r := range readers {
		for at := r.start; at < quietMax; at += r.pause {
			for i, name := range strings.Fields(r.files) {
				if i > 0 {
					at += r.gap
				}
				if at >= 0 { // it was at it before anyone watched
					all = append(all, turnsOpen{at, name})
				}
			}
		}
	}
	slices.SortFunc(all, func(a, b turnsOpen) int { return int(a.at - b.at) })
	return all
}

func TestTurns(t *testing.T) {
	const ms, us = time.Millisecond, time.Microsecond
	const pair, three = "client.crt client.key", "client.crt client.key ca.crt"
	const server = "server.crt server.key"
	for name, test := range map[string]struct {
		readers []turnsReader
		never   bool
	}{
		"one reader, short gap": {readers: []turnsReader{{pair, 0, 200 * us, 150 * us}}},
		"one reader, long gap":  {readers: []turnsReader{{pair, 0, 5 * ms, 150 * us}}},
		"inside a set at first": {readers: []turnsReader{{pair, -1 * ms, 5 * ms, 150 * us}}},
		"a server's":            {readers: []turnsReader{{server, -1 * ms, 3 * ms, ms}}},
		"the anchors last":      {readers: []turnsReader{{three, -1 * ms, 2 * ms, 300 * us}}},
		"two readers":           {readers: []turnsReader{{pair, -1 * ms, 2 * ms, 3 * ms}, {pair, 0, ms, 4100 * us}}},
		"client and server":     {readers: []turnsReader{{pair, 0, ms, 3 * ms}, {server, 0, ms, 3700 * us}}},
		"beside whole files":    {readers: []turnsReader{{pair, 0, 3 * ms, ms}, {"client.pem", 0, 0, 700 * us}}},
		"whole files only":      {readers: []turnsReader{{"client.pem", 0, 0, ms}}, never: true},
		"the certificate only":  {readers: []turnsReader{{"client.crt", 0, 0, ms}}, never: true},
		"without a certificate": {readers: []turnsReader{{"ca.crt server.pem", 0, ms, ms}}, never: true},
		"three readers": {readers: []turnsReader{
			{pair, -1 * ms, ms, 3 * ms}, {pair, 0, ms, 5100 * us}, {pair, us, ms, 4300 * us},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var turns turns
			for _, o := range turnsOpens(test.readers) {
				if !turns.opened(o.name, o.at) {
					continue
				}
				if test.never {
					t.Fatalf("the open of %s after %v is said to end a set", o.name, o.at)
				}
				if o.at < turnsPeriod {
					t.Errorf("it answers after %v: readers inside a set at the start may still be there", o.at)
				}
				for _, r := range test.readers {
					if r.inside(o.at) {
						t.Errorf("after %v, reader %s is inside a set", o.at, fmt.Sprint(r))
					}
				}
				return
			}
			if !test.never {
				t.Errorf("no gap is found within %v", quietMax)
			}
		})
	}
}

// The kernel reports two opens of one file as one if nobody has read the first. That must not matter for longer than a
// period or two.
func TestTurnsMerged(t *testing.T) {
	var turns turns
	at := time.Duration(0)
	open := func(name string) bool {
		at += time.Millisecond
		return turns.opened(name, at)
	}
	for range 20 {
		open("client.crt")
		open("client.key")
	}
	open("client.crt") // one of two readers', whose keys are then reported as one
	for began := at; at-began < 3*turnsPeriod; {
		open("client.crt")
		if open("client.key") {
			return
		}
	}
	t.Error("after an open that was merged, no gap is found any more")
}

package directory

import (
	"strings"
	"time"
)

const (
	// quietFor is how long no file of the current generation must have been opened for a switch to be safe at any
	// moment. A reader that opens client.crt and then client.key by path gets two that do not match if the switch falls
	// between the two; most such readers take less than this. Every switch is later by quietFor at least.
	quietFor = 8 * time.Millisecond

	// turnsPeriod is how long turns watches before it answers: twice as long as most readers take for a set, so that
	// those which were inside one when it began have left it.
	turnsPeriod = 2 * quietFor
)

// turns finds the moments at which no reader is inside a set of files, from nothing but the order in which they are
// opened by readers that cannot be told apart. It supposes that a reader opens the certificate first, as TLS libraries
// ask for it, and learns which file comes last.
type turns struct {
	previous fileKind         // opened
	ends     map[fileKind]int // how often a certificate was opened next
	last     fileKind         // of a set: the one with most ends

	// inside counts certificates opened less last files opened. It is off by how many readers were inside a set at the
	// start, and by opens that the kernel has merged, so that it says something only beside the least of a period.
	inside  int
	least   int           // in the period before
	lowest  int           // so far in this period
	until   time.Duration // end of this period
	periods int           // begun with this last file
}

type fileKind string

const (
	certificateKind fileKind = "certificate"
	keyKind         fileKind = "key"
	anchorsKind     fileKind = "anchors"
)

// kindOf returns what a file is in a set of files. Empty: it is read alone.
func kindOf(name string) fileKind {
	switch {
	case name == "ca.crt":
		return anchorsKind
	case strings.HasSuffix(name, ".crt"):
		return certificateKind
	case strings.HasSuffix(name, ".key"):
		return keyKind
	}
	return ""
}

// opened notes that name was opened, at a time since the start, and reports whether right after it is the moment to
// switch: it is the last file of a set, and no more readers are inside one than there were at the best moment of the
// period before.
func (t *turns) opened(name string, at time.Duration) (between bool) {
	kind := kindOf(name)
	switch kind {
	case "":
		return false
	case certificateKind:
		t.inside++
		t.ended(t.previous)
	case t.last:
		t.inside--
	}
	t.previous = kind
	if at >= t.until {
		t.until = at + turnsPeriod
		t.least, t.lowest = t.lowest, t.inside
		t.periods++
	}
	t.lowest = min(t.lowest, t.inside)
	return kind == t.last && t.periods > 1 && t.inside <= t.least
}

// ended notes that a set was begun after a file of this kind. Another last file makes what was counted meaningless.
func (t *turns) ended(kind fileKind) {
	if kind == "" || kind == certificateKind {
		return
	}
	if t.ends == nil {
		t.ends = make(map[fileKind]int)
	}
	t.ends[kind]++
	if kind != t.last && t.ends[kind] > t.ends[t.last] {
		*t = turns{previous: t.previous, ends: t.ends, last: kind, inside: 1}
	}
}

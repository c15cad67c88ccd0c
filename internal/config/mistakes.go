package config

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// place is where a key was set.
type place struct {
	file  string
	order int // of the file in the sequence that is read, from 1
	line  int
}

func (p place) String() string {
	if p.file == "" {
		return "default"
	}
	return fmt.Sprintf("%s:%d", p.file, p.line)
}

// mistake is one thing that is wrong. Its error is `file:line: key: what is wrong`.
type mistake struct {
	place place
	text  string
}

func (m mistake) Error() string { return m.place.String() + ": " + m.text }

// mistakes collects what is wrong in all files, so that it is reported at once.
type mistakes struct {
	places map[string]place // where each key was set last, by key: "mtls.path", "mtls.secrets[0]"
	failed map[string]bool  // keys whose value could not be decoded, which is reported once
	found  []mistake
}

// at records a mistake at a place.
func (m *mistakes) at(p place, key, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if key != "" {
		text = key + ": " + text
	}
	m.found = append(m.found, mistake{p, text})
}

// bad records a mistake in a value that could be decoded, at the place where the key was set, or the section that
// lacks it.
func (m *mistakes) bad(key, format string, args ...any) {
	if m.failed[key] {
		return
	}
	at, ok := m.places[key]
	for section := key; !ok && section != ""; {
		section = section[:max(strings.LastIndexByte(section, '.'), 0)]
		at, ok = m.places[section]
	}
	m.at(at, key, format, args...)
}

// errors returns the mistakes in the order of the files and lines, whatever found them.
func (m *mistakes) errors() (errs []error) {
	slices.SortStableFunc(m.found, func(a, b mistake) int {
		return cmp.Or(cmp.Compare(a.place.order, b.place.order), cmp.Compare(a.place.line, b.place.line))
	})
	for i, e := range m.found {
		if i == maxReported {
			e.text = fmt.Sprintf("and %d more mistakes from here on", len(m.found)-i)
			return append(errs, e)
		}
		errs = append(errs, e)
	}
	return errs
}

// maxReported is how many mistakes are reported; a file with more of them is not a configuration.
const maxReported = 200

// maxQuoted is how much of a wrong value is repeated, in bytes: a whole path or ARN, not a whole certificate.
const maxQuoted = 512

// quote makes a value fit for one line of text, however long it is and whatever is in it.
func quote(s string) string {
	if len(s) > maxQuoted {
		return strconv.Quote(s[:maxQuoted]) + "…"
	}
	return strconv.Quote(s)
}

package ecsconfig

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"unicode/utf8"

	"sevagent/internal/pattern"
)

// Problem is a line to fix: the two readers read it, or lines after it, differently, and it matters.
type Problem struct {
	Line   int    // from 1
	Reason string // what each of them reads, for people
}

func (p Problem) String() string { return fmt.Sprintf("line %d: %s", p.Line, p.Reason) }

// Encode returns the content if both readers read what counts the same. If not, its error has a line for every Problem.
func (f *File) Encode() ([]byte, error) {
	var errs []error
	for _, p := range f.Problems() {
		errs = append(errs, errors.New(p.String()))
	}
	data := f.Bytes()
	if len(data) > maxSize {
		errs = append(errs, fmt.Errorf("encode: %d bytes, at most %d are allowed", len(data), maxSize))
	}
	// The law itself, in case the look at each line has missed something.
	if errs == nil && !agree(data) {
		errs = append(errs, errors.New("encode: systemd and ecs-init would read the file differently"))
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	return data, nil
}

// agree reports whether both readers read the same keys, and the same values where systemd's reading counts, whatever
// the version of systemd.
func agree(data []byte) bool {
	counts := func(env map[string]string) map[string]string {
		maps.DeleteFunc(env, func(key, _ string) bool { return isComment(key) })
		for key := range env {
			if !ruleOf(key).environment {
				env[key] = ""
			}
		}
		return env
	}
	env := counts(ReadECSInit(data))
	return maps.Equal(env, counts(readSystemd(data, before254))) && maps.Equal(env, counts(readSystemd(data, since254)))
}

// Problems returns what to fix before both readers read what counts the same, by line. A line that systemd
// takes for a part of an earlier one is reported there. Values of keys that may hold a secret are not shown.
func (f *File) Problems() []Problem {
	var problems []Problem
	data := f.Bytes()
	older, newer := byLine(scanSystemd(data, before254)), byLine(scanSystemd(data, since254))
	var inOlder, inNewer int // lines below are a part of an earlier statement
	for i := range f.lines {
		reason := f.compare(i, older[i], i < inOlder)
		if r := f.compare(i, newer[i], i < inNewer); reason == "" {
			reason = r
		}
		if reason != "" {
			problems = append(problems, Problem{i + 1, reason})
		}
		for _, s := range older[i] {
			inOlder = s.last + 1
		}
		for _, s := range newer[i] {
			inNewer = s.last + 1
		}
	}
	return problems
}

func byLine(all []statement) map[int][]statement {
	m := make(map[int][]statement)
	for _, s := range all {
		m[s.first] = append(m[s.first], s)
	}
	return m
}

// compare returns what is wrong with line i, "" if nothing is. statements are those that systemd begins there; inside
// means that it takes the start of the line for a part of an earlier one.
func (f *File) compare(i int, statements []statement, inside bool) string {
	key, value, ok := cutECSInit(f.lines[i].text)
	if isComment(key) {
		ok = false
	}
	var systemd []statement
	for _, s := range statements {
		if s.comment {
			if n := f.swallowed(s); n > 0 {
				return fmt.Sprintf("a comment that ends in a backslash: "+
					"before version 254 systemd takes line %d for a part of it, ecs-init does not", n+1)
			}
			continue
		}
		if !validUTF8(s.key) || !validUTF8(s.value) {
			return "not UTF-8: systemd drops the whole file, ecs-init does not"
		}
		if s.last > s.first {
			return fmt.Sprintf("systemd reads the value of %s on to line %d, ecs-init ends it here",
				showKey(s.key), s.last+1)
		}
		if validName(s.key) {
			systemd = append(systemd, s)
		}
	}
	switch {
	case inside && len(systemd) == 0:
		return "" // reported where it begins
	case !ok && len(systemd) == 0:
		return ""
	case ok && len(systemd) == 1 && systemd[0].key == key && (systemd[0].value == value || !ruleOf(key).environment):
		return ""
	case len(systemd) == 0:
		key, _, _ = strings.Cut(f.lines[i].text, "=") // not trimmed: the blank may be what is wrong
		return fmt.Sprintf("%s is not the name of a variable%s: systemd ignores the line, ecs-init passes it on",
			showKey(key), hint(key))
	}
	reads := "nothing"
	if ok {
		reads = show(key, value)
	}
	var parts []string
	for _, s := range systemd {
		parts = append(parts, show(s.key, s.value))
	}
	return fmt.Sprintf("ecs-init reads %s, systemd reads %s", reads, strings.Join(parts, " and "))
}

// swallowed returns the first line in a comment's continuation that ecs-init takes for an assignment, or 0.
func (f *File) swallowed(s statement) int {
	for i := s.first + 1; i <= s.last; i++ {
		if key, _, ok := cutECSInit(f.lines[i].text); ok && !isComment(key) {
			return i
		}
	}
	return 0
}

// hint names the mistake behind a key, if it is a known one.
func hint(key string) string {
	switch {
	case strings.HasPrefix(key, "\ufeff"):
		return " (a byte order mark precedes it)"
	case strings.HasPrefix(key, "export "):
		return " (no shell reads this file)"
	}
	return ""
}

// Problems go to logs and to CloudFormation's events, and the file may hold credentials of registries
// (ECS_ENGINE_AUTH_DATA), of which a part can stand where a key is expected. So only a key is shown that looks like
// one, which no base64 does, and only a value that neither its key nor the value itself makes suspect.
var (
	plainKey = pattern.New(`^[\s\v\pZ]*\x{feff}?(export\s+)?([A-Z0-9_.-]{1,60}|[a-z0-9_.-]{1,60})[\s\v\pZ]*$`)
	suspect  = pattern.New(`(?i)auth|secret|token|pass|pwd|cred|key|@`)
)

func showKey(key string) string {
	if !plainKey.MatchString(key) {
		return fmt.Sprintf("a key of %d bytes", len(key))
	}
	if validName(key) {
		return key
	}
	return fmt.Sprintf("%#q", key)
}

func show(key, value string) string {
	const most = 60
	switch {
	case !plainKey.MatchString(key) || suspect.MatchString(key) || suspect.MatchString(value):
		return fmt.Sprintf("%s with %d bytes", showKey(key), len(value))
	case utf8.RuneCountInString(value) > most:
		return fmt.Sprintf("%s=%#q…", showKey(key), string([]rune(value)[:most]))
	}
	return fmt.Sprintf("%s=%#q", showKey(key), value)
}

package ecsconfig

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// maxSize bounds the file in bytes.
const maxSize = 256 << 10

// managed introduces the keys that Set has added.
const managed = "# Set by sevagent's bootstrap:"

// File is the content of an ecs.config, line by line.
type File struct {
	lines []string // each with its newline, the last perhaps without
}

// Parse reads a file. It accepts odd lines: Encode is the one to refuse them.
func Parse(data []byte) (*File, error) {
	if len(data) > maxSize {
		return nil, fmt.Errorf("%d bytes, at most %d are allowed", len(data), maxSize)
	}
	if i := bytes.IndexByte(data, 0); i >= 0 {
		return nil, fmt.Errorf("line %d: a NUL byte", 1+bytes.Count(data[:i], []byte("\n")))
	}
	f := new(File)
	if len(data) > 0 {
		f.lines = strings.SplitAfter(string(data), "\n")
		if last := len(f.lines) - 1; f.lines[last] == "" {
			f.lines = f.lines[:last]
		}
	}
	return f, nil
}

// Bytes returns the content as it stands.
func (f *File) Bytes() []byte { return []byte(strings.Join(f.lines, "")) }

// Clone returns a copy that can be changed apart.
func (f *File) Clone() *File { return &File{lines: slices.Clone(f.lines)} }

// Get returns the value of a key as ecs-init reads it; systemd does too if Encode accepts the file.
func (f *File) Get(key string) (value string, ok bool) {
	value, ok = ReadECSInit(f.Bytes())[key]
	return value, ok
}

// Set gives a key a value: in the line that sets it last, or in a new line at the end. Earlier lines that set the
// key have no effect and go.
func (f *File) Set(key, value string) error {
	if !validName(key) {
		return fmt.Errorf("set %q: not the name of a variable: letters, digits and _, and no digit first", key)
	}
	if reason := refuse(value); reason != "" {
		return fmt.Errorf("set %s: %s", key, reason)
	}
	line := key + "=" + value + "\n"
	sets := func(l string) bool { return lineKey(l) == key }
	for i, old := range slices.Backward(f.lines) {
		if sets(old) {
			f.lines = slices.Concat(slices.DeleteFunc(slices.Clone(f.lines[:i]), sets), []string{line}, f.lines[i+1:])
			return nil
		}
	}
	if n := len(f.lines); n > 0 && !strings.HasSuffix(f.lines[n-1], "\n") {
		f.lines[n-1] += "\n"
	}
	if !slices.Contains(f.lines, managed+"\n") {
		f.lines = append(f.lines, managed+"\n")
	}
	f.lines = append(f.lines, line)
	return nil
}

// lineKey is the key that either reader takes a line to set, or "".
func lineKey(line string) string {
	key, _, ok := strings.Cut(strings.Trim(line, systemdBlanks), "=")
	key = strings.TrimRight(key, systemdBlanks)
	if !ok || !validName(key) {
		return ""
	}
	return key
}

// refuse says why the two readers would read a value differently, or "" if they read it the same.
func refuse(value string) string {
	for i, c := range value {
		switch {
		case c == '\n' || c == '\r':
			return fmt.Sprintf("a line break at character %d: a value has one line", i)
		case c == 0:
			return fmt.Sprintf("a NUL byte at character %d", i)
		case c == '\\':
			return fmt.Sprintf("a backslash at character %d: systemd takes it for an escape, ecs-init as it stands", i)
		case (c == '"' || c == '\'') && i == 0:
			return "a quote at the start: systemd removes it, ecs-init does not"
		}
	}
	if strings.TrimSpace(value) != value {
		return "a blank at the start or the end: it would be lost"
	}
	if !validValue(value) {
		return "a control character, or not UTF-8: systemd would drop the variable"
	}
	return ""
}

// Problem is a line that the two readers read differently.
type Problem struct {
	Line int // from 1
	Text string
	// Reason says what each of them sees.
	Reason string
}

func (p Problem) String() string { return fmt.Sprintf("line %d: %s", p.Line, p.Reason) }

// Problems lists the lines that the two readers read differently.
func (f *File) Problems() (problems []Problem) {
	for i, line := range f.lines {
		text := strings.TrimSuffix(line, "\n")
		if reason := compare(text); reason != "" {
			problems = append(problems, Problem{Line: i + 1, Text: text, Reason: reason})
		}
	}
	return problems
}

// compare says what the two readers see in one line if that differs, else "".
func compare(line string) string {
	trimmed := strings.Trim(line, systemdBlanks)
	if strings.HasPrefix(trimmed, "#") || strings.HasPrefix(trimmed, ";") {
		// The state after the comment decides, so look at what becomes of a line behind it.
		if _, ok := ReadSystemd([]byte(line + "\nNEXT=1"))["NEXT"]; !ok {
			return "a comment that ends in a backslash: systemd takes the next line for a part of it, ecs-init does not"
		}
		if strings.ContainsRune(trimmed, '\r') {
			return "a carriage return within a comment: systemd reads what follows, ecs-init does not"
		}
		return ""
	}
	ecs, systemd := named(ReadECSInit([]byte(line))), ReadSystemd([]byte(line))
	if !maps.Equal(ecs, systemd) {
		return fmt.Sprintf("ecs-init reads %s, systemd reads %s", show(ecs), show(systemd))
	}
	if key, _, ok := strings.Cut(trimmed, "="); ok && !validName(key) {
		return fmt.Sprintf("%q is not the name of a variable: both ignore it", key)
	}
	return ""
}

// named keeps what is a variable.
func named(env map[string]string) map[string]string {
	maps.DeleteFunc(env, func(key, _ string) bool { return !validName(key) })
	return env
}

func show(env map[string]string) string {
	if len(env) == 0 {
		return "nothing"
	}
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(env)) {
		parts = append(parts, fmt.Sprintf("%s=%q", key, env[key]))
	}
	return strings.Join(parts, " and ")
}

// Encode returns the content if both readers read it the same. If not, it names every line and what each sees.
func (f *File) Encode() ([]byte, error) {
	var errs []error
	for _, p := range f.Problems() {
		errs = append(errs, errors.New(p.String()))
	}
	data := f.Bytes()
	if errs == nil && !maps.Equal(named(ReadECSInit(data)), ReadSystemd(data)) {
		errs = append(errs, errors.New("the two readers of the file would read it differently as a whole"))
	}
	if len(data) > maxSize {
		errs = append(errs, fmt.Errorf("%d bytes, at most %d are allowed", len(data), maxSize))
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	return data, nil
}

// Package ecsconfig owns the syntax of /etc/ecs/ecs.config: parse what is there, set keys, encode.
//
// Two programs read that file and disagree about it. systemd reads it as an EnvironmentFile=, where quotes,
// backslashes, carriage returns and comments have a meaning, and passes it to ecs-init as environment. ecs-init reads
// it again, splits each line at the first '=', takes the rest as it stands, and passes that to the ECS agent.
//
// Which reading counts depends on the key: keys.go has the table. Most are the ECS agent's alone, such as
// ECS_ENGINE_AUTH_DATA, whose JSON may hold backslashes; some ecs-init takes from its environment.
//
// The package promises: of a file that [File.Encode] accepts, both read the same keys, and the same values where
// systemd's reading counts, whatever the version of systemd; a refusal names the line, and what each of them would read
// there; a line that was not to be changed keeps its bytes; and setting the same keys again changes nothing.
// [File.Findings] has the values that the programs would not take as they are written. The package does no I/O: the
// caller reads the file and replaces it.
package ecsconfig

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxSize bounds the file in bytes. The kernel accepts no longer environment variable (MAX_ARG_STRLEN, 128 KiB), so
// that every line of the file can be one.
const maxSize = 128<<10 - 1

// managed is the line above the keys that Set has added. It has no '=', so that ecs-init makes no variable of it.
const managed = "# Set by sevagent's bootstrap:"

// File is the content of an ecs.config.
type File struct {
	lines []line
}

// line is a line without its end, and the end: "\n", "\r\n", or "" if the file ends there.
type line struct {
	text, end string
}

// Parse accepts odd lines, too: Encode refuses them. It refuses only what is not text.
func Parse(data []byte) (*File, error) {
	if len(data) > maxSize {
		return nil, fmt.Errorf("parse: %d bytes, at most %d are allowed", len(data), maxSize)
	}
	i := bytes.IndexByte(data, 0)
	if bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")) || i == 0 || i == 1 {
		return nil, errors.New("the text is UTF-16; save it as UTF-8")
	}
	if i >= 0 {
		line := 1 + bytes.Count(data[:i], []byte("\n"))
		return nil, fmt.Errorf("line %d: a NUL byte: systemd drops the whole file", line)
	}
	f := new(File)
	for text := range strings.Lines(string(data)) {
		bare := strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")
		if !strings.HasSuffix(text, "\n") {
			bare = text // a carriage return that ends no line is a part of it
		}
		f.lines = append(f.lines, line{bare, text[len(bare):]})
	}
	return f, nil
}

// Bytes returns the content as it stands, even if the readers disagree about it.
func (f *File) Bytes() []byte {
	var b bytes.Buffer
	for _, l := range f.lines {
		b.WriteString(l.text)
		b.WriteString(l.end)
	}
	return b.Bytes()
}

// Clone returns a copy that can be changed independently.
func (f *File) Clone() *File { return &File{lines: slices.Clone(f.lines)} }

// Get returns the value of a key as ecs-init, and so the ECS agent, reads it.
func (f *File) Get(key string) (value string, ok bool) {
	value, ok = ReadECSInit(f.Bytes())[key]
	return value, ok
}

// Set gives a key a value, in place of the assignment that was in effect; it removes others of the same key, which had
// no effect. A new key goes below the others that Set has added, at first to the end of the file. Set refuses, and
// changes nothing, if the readers would read the value differently, or if it might change another key as well.
func (f *File) Set(key, value string) error {
	if !validName(key) {
		return fmt.Errorf("set %q: a name has letters, digits and _, and no digit first", key)
	}
	if reason := refusal(key, value); reason != "" {
		return fmt.Errorf("set %s: %s", key, reason)
	}
	next := f.Clone()
	if err := next.set(key, value); err != nil {
		return fmt.Errorf("set %s: %w", key, err)
	}
	// A backslash that ends the file is harmless only until a line comes after it.
	if len(f.Problems()) == 0 {
		if problems := next.Problems(); len(problems) > 0 {
			return fmt.Errorf("set %s: %s", key, problems[0])
		}
	}
	f.lines = next.lines
	return nil
}

func (f *File) set(key, value string) error {
	places, err := f.places(key)
	if err != nil {
		return err
	}
	if len(places) == 0 {
		f.add(key + "=" + value)
		return nil
	}
	last := places[len(places)-1]
	old := []byte(f.lines[last].text)
	if !holds(ReadECSInit(old), key, value) || ruleOf(key).environment && !holds(ReadSystemd(old), key, value) {
		f.lines[last].text = key + "=" + value
	}
	for _, i := range slices.Backward(places[:len(places)-1]) {
		f.lines = slices.Delete(f.lines, i, i+1)
	}
	return nil
}

// Unset removes the assignments of a key. Like Set it refuses, and changes nothing, if that might change another key.
func (f *File) Unset(key string) error {
	places, err := f.places(key)
	if err != nil {
		return fmt.Errorf("remove %s: %w", key, err)
	}
	for _, i := range slices.Backward(places) {
		f.lines = slices.Delete(f.lines, i, i+1)
	}
	return nil
}

func holds(env map[string]string, key, value string) bool {
	got, ok := env[key]
	return ok && got == value
}

// places returns the lines, from 0, that assign a key for at least one reader. It fails unless systemd, too, takes each
// for a line of its own, so that replacing it changes no other key.
func (f *File) places(key string) ([]int, error) {
	var places []int
	for i, l := range f.lines {
		if k, _, ok := cutECSInit(l.text); ok && strings.TrimSpace(k) == key {
			places = append(places, i)
		}
	}
	for _, s := range scanSystemd(f.Bytes(), before254) {
		if s.comment || s.key != key {
			continue
		}
		if s.last > s.first {
			return nil, fmt.Errorf("line %d: systemd reads its value on to line %d; make it one line",
				s.first+1, s.last+1)
		}
		places = append(places, s.first)
	}
	slices.Sort(places)
	places = slices.Compact(places)
	for _, i := range places {
		if strings.Contains(f.lines[i].text, "\r") {
			return nil, fmt.Errorf("line %d: a carriage return within the line; make it two lines, or one", i+1)
		}
	}
	return places, nil
}

// add inserts a new line below those that were added before.
func (f *File) add(text string) {
	at := len(f.lines)
	if i := slices.IndexFunc(f.lines, func(l line) bool { return l.text == managed }); i >= 0 {
		for at = i + 1; at < len(f.lines) && !f.lines[at].closes(); {
			at++
		}
	}
	if at > 0 && f.lines[at-1].end == "" {
		f.lines[at-1].end = "\n"
	}
	if !slices.ContainsFunc(f.lines, func(l line) bool { return l.text == managed }) {
		f.lines = append(f.lines, line{managed, "\n"})
		at = len(f.lines)
	}
	f.lines = slices.Insert(f.lines, at, line{text, "\n"})
}

// closes reports whether a line ends the managed block: a blank line, or another comment.
func (l line) closes() bool {
	text := strings.TrimSpace(l.text)
	return text == "" || isComment(text)
}

// refusal returns why no line with that value reads as it is meant to, "" if one does.
func refusal(key, value string) string {
	escapes := ruleOf(key).environment
	n := 0
	for i, c := range value {
		n++
		size := len(string(c))
		if _, got := utf8.DecodeRuneInString(value[i:]); got != size || isNoncharacter(c) {
			return fmt.Sprintf("character %d of the value is not UTF-8 to systemd, which then drops the whole file", n)
		}
		at := fmt.Sprintf("character %d of the value, %q, ", n, c)
		switch {
		case isNewline(int(c)):
			return at + "ends the line"
		case c == '\\' && escapes:
			return at + "is an escape to systemd and itself to ecs-init"
		case c == '\\' && i+1 == len(value):
			return at + "joins the next line to this one for systemd"
		case i == 0 && (c == '"' || c == '\''):
			return at + "opens a quote to systemd and is itself to ecs-init"
		case unicode.IsControl(c) && c != '\t':
			return at + "is a control character"
		case unicode.IsSpace(c) && (i == 0 || i+size == len(value)):
			return at + "is white space at an end, which the readers trim differently"
		}
	}
	return ""
}

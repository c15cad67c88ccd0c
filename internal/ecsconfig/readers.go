// Package ecsconfig owns the syntax of /etc/ecs/ecs.config: parse what exists, set keys, encode.
//
// Two programs read that file and disagree about it. systemd reads it as an EnvironmentFile=, where quotes,
// backslashes and comments have meaning; ecs-init splits each trimmed line at the first '=' and takes the rest as
// it stands (aws/amazon-ecs-agent, ecs-init/docker). The package promises that what Encode accepts, both read the
// same, that what it refuses is named with what each of them would see, and that lines it was not asked to change
// keep their bytes. It does no I/O.
package ecsconfig

import (
	"strings"
	"unicode/utf8"
)

// ReadECSInit returns what ecs-init sees. A comment is a key that begins with '#' to it, which harms nobody.
func ReadECSInit(data []byte) map[string]string {
	env := make(map[string]string)
	for line := range strings.SplitSeq(string(data), "\n") {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			env[key] = value
		}
	}
	return env
}

// ReadSystemd returns what systemd sees: its parser of environment files as of version 252 (src/basic/env-file.c),
// followed by its filter of names and values that cannot be in an environment.
func ReadSystemd(data []byte) map[string]string {
	p := systemdParser{env: make(map[string]string), state: preKey}
	for _, c := range data {
		p.state = p.state(&p, c)
	}
	p.end()
	return p.env
}

// systemdParser is a state machine over bytes; each state is a function that returns the next.
type systemdParser struct {
	env        map[string]string
	state      systemdState
	key, value []byte
	// trim is the length of value without the blanks that an unquoted value may end in.
	trim  int
	inKey bool // within a key that no '=' has followed yet
}

type systemdState func(p *systemdParser, c byte) systemdState

const systemdBlanks = " \t\n\r"

func isBlank(c byte) bool   { return strings.IndexByte(systemdBlanks, c) >= 0 }
func isNewline(c byte) bool { return c == '\n' || c == '\r' }

func preKey(p *systemdParser, c byte) systemdState {
	switch {
	case c == '#' || c == ';':
		return comment
	case isBlank(c):
		return preKey
	}
	p.key, p.value, p.trim, p.inKey = append(p.key[:0], c), p.value[:0], 0, true
	return key
}

func key(p *systemdParser, c byte) systemdState {
	switch {
	case isNewline(c):
		p.inKey = false
		return preKey
	case c == '=':
		p.inKey = false
		return preValue
	}
	p.key = append(p.key, c)
	return key
}

func preValue(p *systemdParser, c byte) systemdState {
	switch {
	case isNewline(c):
		p.push()
		return preKey
	case c == '\'':
		return singleQuoted
	case c == '"':
		return doubleQuoted
	case c == '\\':
		return escaped
	case isBlank(c):
		return preValue
	}
	p.keep(c)
	return value
}

func value(p *systemdParser, c byte) systemdState {
	switch {
	case isNewline(c):
		p.push()
		return preKey
	case c == '\\':
		p.trim = len(p.value)
		return escaped
	case isBlank(c):
		p.value = append(p.value, c) // dropped unless something follows
		return value
	}
	p.keep(c)
	return value
}

// escaped follows a backslash outside of quotes: the next byte stands for itself, a newline for nothing.
func escaped(p *systemdParser, c byte) systemdState {
	if !isNewline(c) {
		p.keep(c)
	}
	return value
}

func singleQuoted(p *systemdParser, c byte) systemdState {
	if c == '\'' {
		return preValue
	}
	p.keep(c)
	return singleQuoted
}

func doubleQuoted(p *systemdParser, c byte) systemdState {
	switch c {
	case '"':
		return preValue
	case '\\':
		return doubleQuotedEscape
	}
	p.keep(c)
	return doubleQuoted
}

func doubleQuotedEscape(p *systemdParser, c byte) systemdState {
	switch {
	case strings.IndexByte("\"\\`$", c) >= 0:
		p.keep(c)
	case c != '\n':
		p.keep('\\')
		p.keep(c)
	}
	return doubleQuoted
}

func comment(p *systemdParser, c byte) systemdState {
	switch {
	case c == '\\':
		return commentEscape
	case isNewline(c):
		return preKey
	}
	return comment
}

// commentEscape swallows whatever follows a backslash in a comment, the end of the line too.
func commentEscape(*systemdParser, byte) systemdState { return comment }

// keep adds a byte that is not trimmed.
func (p *systemdParser) keep(c byte) {
	p.value = append(p.value, c)
	p.trim = len(p.value)
}

// push sets the variable, unless its name or value cannot be in an environment.
func (p *systemdParser) push() {
	name, text := strings.TrimRight(string(p.key), systemdBlanks), string(p.value[:p.trim])
	if validName(name) && validValue(text) {
		p.env[name] = text
	}
	p.key = p.key[:0]
}

// end is the end of the file: an assignment without a newline counts, a quote that is open is closed.
func (p *systemdParser) end() {
	if len(p.key) > 0 && !p.inKey {
		p.push()
	}
}

// validName: src/basic/env-util.c, env_name_is_valid.
func validName(name string) bool {
	if name == "" || name[0] >= '0' && name[0] <= '9' {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if !(c == '_' || c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z') {
			return false
		}
	}
	return true
}

// validValue: src/basic/env-util.c, env_value_is_valid: UTF-8 without control characters but tab and newline.
func validValue(value string) bool {
	if !utf8.ValidString(value) {
		return false
	}
	for i := range len(value) {
		if c := value[i]; c < ' ' && c != '\t' && c != '\n' || c == 0x7f {
			return false
		}
	}
	return true
}

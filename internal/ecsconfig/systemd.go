package ecsconfig

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

// ReadSystemd returns what systemd 252, that of Amazon Linux 2023, reads in the file as an EnvironmentFile=: nothing at
// all if one variable is not UTF-8 or there is a NUL byte, since systemd then drops the whole file.
func ReadSystemd(data []byte) map[string]string {
	return readSystemd(data, before254)
}

func readSystemd(data []byte, d dialect) map[string]string {
	env := make(map[string]string)
	if bytes.IndexByte(data, 0) >= 0 {
		return env
	}
	for _, s := range scanSystemd(data, d) {
		if s.comment {
			continue
		}
		if !validUTF8(s.key) || !validUTF8(s.value) {
			clear(env)
			return env
		}
		if validName(s.key) {
			env[s.key] = s.value
		}
	}
	return env
}

// dialect is the one difference between the versions of systemd that ECS nodes run (Ubuntu 22.04: 249, Amazon
// Linux 2023: 252, Ubuntu 24.04: 255): whether a comment that ends in a backslash continues in the next line.
// https://github.com/systemd/systemd/issues/27975
type dialect bool

const (
	before254 dialect = true
	since254  dialect = false
)

// statement is a comment or an assignment, with its first and its last line. Lines count from 0.
type statement struct {
	first, last int
	comment     bool
	key, value  string
}

// scanSystemd splits data into systemd's statements. A line without '=' is none. It does not check names.
func scanSystemd(data []byte, d dialect) []statement {
	s := scanner{rest: data, dialect: d}
	lines := bytes.Count(data, []byte("\n")) // a newline at the end of the file begins no line
	if bytes.HasSuffix(data, []byte("\n")) {
		lines--
	}
	var all []statement
	for {
		for isBlank(s.peek()) {
			s.take()
		}
		st := statement{first: s.line}
		switch c := s.peek(); {
		case c == end:
			return all
		case c == '#' || c == ';':
			st.comment, st.last = true, s.skipComment()
		default:
			key, ok := s.takeKey()
			if !ok {
				continue
			}
			st.key = key
			st.value, st.last = s.takeValue()
		}
		st.last = min(st.last, lines)
		all = append(all, st)
	}
}

// end is what a scanner returns after the last byte.
const end = -1

// scanner reads an environment file as systemd's src/basic/env-file.c does. To it a carriage return ends a line as
// a newline does; line counts newlines only, as ecs-init and people do.
type scanner struct {
	rest []byte
	line int
	dialect
}

func (s *scanner) peek() int {
	if len(s.rest) == 0 {
		return end
	}
	return int(s.rest[0])
}

func (s *scanner) take() int {
	c := s.peek()
	if c != end {
		s.rest = s.rest[1:]
	}
	if c == '\n' {
		s.line++
	}
	return c
}

func isBlank(c int) bool   { return c == ' ' || c == '\t' || isNewline(c) }
func isNewline(c int) bool { return c == '\n' || c == '\r' }

// skipComment returns the comment's last line.
func (s *scanner) skipComment() int {
	for {
		line := s.line
		switch c := s.take(); {
		case c == end || isNewline(c):
			return line
		case c == '\\':
			if s.dialect == before254 || !isNewline(s.peek()) {
				s.take() // whatever it is
			}
		}
	}
}

// takeKey takes what comes before a '=', or a line that has none. The first byte belongs to the key even if it is a
// '='.
func (s *scanner) takeKey() (key string, ok bool) {
	b := []byte{byte(s.take())}
	for {
		switch c := s.take(); {
		case c == end || isNewline(c):
			return "", false
		case c == '=':
			return strings.TrimRight(string(b), " \t"), true
		default:
			b = append(b, byte(c))
		}
	}
}

// takeValue returns a value and its last line. Quoted parts may follow each other; blanks around them are dropped.
// The first character outside of quotes ends that: from then on quotes stand for themselves.
func (s *scanner) takeValue() (value string, last int) {
	var b []byte
	for {
		switch c := s.peek(); {
		case c == end || isNewline(c):
			return string(b), s.endLine()
		case c == '\'' || c == '"':
			s.take()
			b = s.takeQuoted(b, c)
		case isBlank(c):
			s.take()
		default:
			return s.takeBare(b)
		}
	}
}

// takeBare takes the rest of a value, where only the backslash has a meaning: the next character stands for itself,
// a newline for nothing. Blanks at the end are dropped, unless a backslash stands before or after them.
func (s *scanner) takeBare(b []byte) (value string, last int) {
	keep := len(b)
	for {
		c := s.peek()
		if c == end || isNewline(c) {
			return string(b[:keep]), s.endLine()
		}
		s.take()
		switch {
		case c == '\\':
			if c = s.take(); c != end && !isNewline(c) {
				b = append(b, byte(c))
			}
			keep = len(b)
		case isBlank(c):
			b = append(b, byte(c))
		default:
			b = append(b, byte(c))
			keep = len(b)
		}
	}
}

// takeQuoted takes up to the closing quote, over any number of lines. In double quotes a backslash is dropped before
// a character that needs it, with a newline, and at the end; elsewhere it stays.
func (s *scanner) takeQuoted(b []byte, quote int) []byte {
	for {
		c := s.take()
		if c == end || c == quote {
			return b
		}
		if c == '\\' && quote == '"' {
			switch c = s.take(); c {
			case end, '\n':
				continue
			case '"', '\\', '`', '$':
			default:
				b = append(b, '\\')
			}
		}
		b = append(b, byte(c))
	}
}

// endLine takes the end of the line and returns the line that ended.
func (s *scanner) endLine() int {
	line := s.line
	s.take()
	return line
}

// validName reports whether systemd lets a name into an environment (src/basic/env-util.c, env_name_is_valid).
func validName(name string) bool {
	for i, c := range []byte(name) {
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}

// validUTF8 is stricter than Go: systemd refuses noncharacters (src/basic/utf8.c, unichar_is_valid).
func validUTF8(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, isNoncharacter)
}

func isNoncharacter(r rune) bool {
	return r >= 0xfdd0 && r <= 0xfdef || r&0xfffe == 0xfffe
}

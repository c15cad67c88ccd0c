package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"sevagent/internal/visible/visibletest"
)

type name string

func TestFprintf(t *testing.T) {
	evil := errors.New("a\x1b[2J\nb")
	for _, c := range []struct {
		format string
		args   []any
		want   string
	}{
		{"%s: %d of %v\n\x1b[m", []any{"a\nb", 3, true}, "a\\nb: 3 of true\n\x1b[m"},
		{"%-6s|%6s|%*s", []any{"\x1b", name("\x1b"), 6, "é"}, `\x1b  |  \x1b|     é`},
		{"%v %s %q", []any{evil, evil, "\x1b"}, `a\x1b[2J\nb a\x1b[2J\nb "\\x1b"`},
		{"%s %.1f %x %v", []any{2 * time.Second, 1.25, []byte{27}, []string{"\u202e"}}, `2s 1.2 1b [\u202e]`},
		{"%s%s%s", []any{Sequence("\x1b[32m"), name("pass"), Sequence("\x1b[0m")}, "\x1b[32mpass\x1b[0m"},
		{"%v", []any{nil}, "<nil>"},
	} {
		var b strings.Builder
		Fprintf(&b, c.format, c.args...)
		if b.String() != c.want {
			t.Errorf("Fprintf(%q, %q) = %q, want %q", c.format, c.args, b.String(), c.want)
		}
	}
}

func TestExplain(t *testing.T) {
	evil := errors.New(visibletest.Hostile)
	one, two := errors.New("first"), errors.New("second\nline")
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"one line", one, "first"},
		{"joined", errors.Join(one, two), "first\nsecond\\nline"},
		{"joined and wrapped", fmt.Errorf("load: %w, twice", Usage(errors.Join(one, two))),
			"load: first\nsecond\\nline, twice"},
		{"two in one", fmt.Errorf("%w: %w", one, two), `first: second\nline`},
		{"a line feed between two", fmt.Errorf("a\n%w", one), `a\nfirst`},
		{"another text than the cause's", renamed{two}, `renamed\n`},
		{"twice the same", errors.Join(two, two), "second\\nline\nsecond\\nline"},
		{"a cause that repeats the data before it", fmt.Errorf("x\nfirst: %w", one), `x\nfirst: first`},
	} {
		if got := explain(c.err); got != c.want {
			t.Errorf("%s: explain = %q, want %q", c.name, got, c.want)
		}
	}
	visibletest.Check(t, explain(fmt.Errorf("ask: %w", Unreachable(errors.Join(evil, evil)))))
}

type renamed struct{ error }

func (renamed) Error() string   { return "renamed\n" }
func (r renamed) Unwrap() error { return r.error }

// What a signal has ended is interrupted; a failure that has another cause is not.
func TestInterrupted(t *testing.T) {
	cause := errors.New("interrupt signal received")
	for _, c := range []struct {
		err, cause error
		want       bool
	}{
		{context.Canceled, cause, true},
		{Unreachable(fmt.Errorf("ask the agent: %w; is sevagent running?", context.Canceled)), cause, true},
		{fmt.Errorf("wait for a reader: %w", cause), cause, true},
		{errors.New("disk full"), cause, false},
		{context.Canceled, nil, false},
		{context.DeadlineExceeded, nil, false},
	} {
		if got := interrupted(c.err, c.cause); got != c.want {
			t.Errorf("interrupted(%v, %v) = %v, want %v", c.err, c.cause, got, c.want)
		}
	}
}

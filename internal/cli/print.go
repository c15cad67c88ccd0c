package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"

	"sevagent/internal/visible"
)

// Visible returns text so that it can be printed: what is not printable in it is spelled out, line feeds too. See
// package visible.
func Visible(text string) string { return visible.Text(text) }

// Sequence is an argument of Fprintf that is ours, and printed as it is: the colours of a terminal.
type Sequence string

// Fprintf is fmt.Fprintf for what people read: each argument is made Visible. The line feeds are those of the format.
func Fprintf(w io.Writer, format string, args ...any) (int, error) {
	if false {
		return fmt.Fprintf(w, format, args...) // for go vet, which checks the arguments of what calls it
	}
	safe := make([]any, len(args))
	for i, arg := range args {
		switch v := arg.(type) {
		case int: // which may be a width
			safe[i] = v
		case Sequence:
			safe[i] = string(v)
		case error, fmt.Stringer, fmt.Formatter:
			safe[i] = formatted{v}
		default:
			safe[i] = formatted{v}
			if s := reflect.ValueOf(v); s.Kind() == reflect.String {
				safe[i] = Visible(s.String()) // before it is padded
			}
		}
	}
	return fmt.Fprintf(w, format, safe...)
}

// formatted is a value that is made Visible once it is text.
type formatted struct{ value any }

func (f formatted) Format(s fmt.State, verb rune) {
	io.WriteString(s, Visible(fmt.Sprintf(fmt.FormatString(s, verb), f.value)))
}

// JSON returns an encoder whose output can be printed too; it encodes the same values.
func JSON(w io.Writer) *json.Encoder {
	enc := json.NewEncoder(visible.Writer(w, visible.JSON))
	enc.SetEscapeHTML(false)
	return enc
}

// explain returns the text of an error. It has line feeds only where errors.Join has put them, which is how several
// mistakes in a file become several lines.
func explain(err error) string {
	var parts []error
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		parts = []error{e.Unwrap()}
	case interface{ Unwrap() []error }:
		parts = e.Unwrap()
	}
	var b strings.Builder
	rest := err.Error()
	for i, part := range parts {
		if part == nil {
			continue
		}
		before, after, found := strings.Cut(rest, part.Error())
		if !found {
			break
		}
		if i > 0 && before == "\n" {
			b.WriteString(before)
		} else {
			b.WriteString(Visible(before))
		}
		b.WriteString(explain(part))
		rest = after
	}
	return b.String() + Visible(rest)
}

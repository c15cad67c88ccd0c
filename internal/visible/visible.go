// Package visible makes text of others fit for people. A container's name, a certificate's subject, a tag or the reason
// that a server gives may hold what moves a terminal's cursor, reverses the direction of a page, or hides from the eye.
// All of that is shown, spelled as in a Go string, and none of it is sent.
//
// Whatever prints text that is not its own escapes it here. Printable text stays as it is, backslashes too: the result
// is for reading, and is not turned back.
package visible

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Text returns s as one line of visible characters: \n, \x1b, \u202e, \xff.
func Text(s string) string { return escape(s, "", goSpelling) }

// Lines is Text for a text whose line feeds are its author's.
func Lines(s string) string { return escape(s, "\n", goSpelling) }

// JSON returns the encoding of a JSON value so that it can be printed too: what is not visible in its strings is
// spelled as JSON has it, and the value stays the same.
func JSON(s string) string { return escape(s, "\t\n\r", jsonSpelling) }

// Writer returns a writer to w that makes visible what is written, by one of the functions above. No character may be
// split between two writes.
func Writer(w io.Writer, by func(string) string) io.Writer { return writer{w, by} }

type writer struct {
	to io.Writer
	by func(string) string
}

func (w writer) Write(p []byte) (int, error) {
	if _, err := io.WriteString(w.to, w.by(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// shown reports whether a person sees r, where it stands. unicode.IsPrint leaves no control or format character, and no
// space but U+0020; the tables have the letters and marks that have no shape, such as the Hangul fillers.
func shown(r rune) bool {
	return unicode.IsPrint(r) && !unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

// escape has spell write what is neither shown nor one of kept, which are ASCII: a character, or an invalid byte.
func escape(s, kept string, spell func(string) string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		raw := s[i : i+size]
		i += size
		switch {
		case r == utf8.RuneError && size == 1:
			b.WriteString(spell(raw))
		case shown(r), strings.Contains(kept, raw):
			b.WriteString(raw)
		default:
			b.WriteString(spell(raw))
		}
	}
	return b.String()
}

func goSpelling(raw string) string {
	quoted := strconv.QuoteToASCII(raw)
	return quoted[1 : len(quoted)-1]
}

func jsonSpelling(raw string) (spelled string) {
	for _, unit := range utf16.Encode([]rune(raw)) {
		spelled += fmt.Sprintf(`\u%04x`, unit)
	}
	return spelled
}

package cli

import (
	"io"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"
)

// leastWidth is the narrowest terminal that text is wrapped for, in columns.
const leastWidth = 40

// Width returns the number of columns that lines written to w have, or 0 if they may have any length: COLUMNS if that
// is set, or else the width of w if it is a terminal.
func Width(w io.Writer) int {
	columns, err := strconv.Atoi(os.Getenv("COLUMNS"))
	if err != nil || columns <= 0 {
		columns = 0
		if f, ok := BestEffort(w).(*os.File); ok {
			columns, _ = terminalSize(f)
		}
	}
	if columns <= 0 {
		return 0
	}
	return max(columns, leastWidth)
}

// Height returns the number of lines of the terminal w, or 0 if it is not a terminal.
func Height(w io.Writer) (lines int) {
	if f, ok := BestEffort(w).(*os.File); ok {
		_, lines = terminalSize(f)
	}
	return lines
}

// Wrap breaks text between words into lines of at most width columns, or not at all if width is 0. The first line has
// room for what is printed before it, first columns; the others begin with rest blanks. A word that fits no line is
// broken.
func Wrap(text string, width, first, rest int) string {
	if width <= 0 {
		return text
	}
	var b strings.Builder
	at, empty := first, true // empty: this line has no word yet
	feed := func() {
		b.WriteString("\n" + strings.Repeat(" ", rest))
		at, empty = rest, true
	}
	for _, word := range strings.Split(text, " ") {
		length := utf8.RuneCountInString(word)
		if !empty && at+1+length > width || empty && at > rest && at+length > width && rest+length <= width {
			feed()
		}
		if !empty {
			b.WriteByte(' ')
			at++
		}
		for at+length > width && (at > rest || width > rest) {
			if at >= width {
				feed()
				continue
			}
			head := string([]rune(word)[:width-at])
			word = word[len(head):]
			length -= width - at
			b.WriteString(head)
			feed()
		}
		b.WriteString(word)
		at, empty = at+length, false
	}
	return b.String()
}

// Wrapped is Wrap of a text that is made Visible first; Fprintf prints it as it is.
func Wrapped(text string, width, first, rest int) Sequence {
	return Sequence(Wrap(Visible(text), width, first, rest))
}

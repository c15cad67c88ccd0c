package cli

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"sevagent/internal/must"
)

func TestWrap(t *testing.T) {
	for _, c := range []struct {
		name, text         string
		width, first, rest int
		want               string
	}{
		{"no limit", "one two three", 0, 5, 5, "one two three"},
		{"fits", "one two", 7, 0, 0, "one two"},
		{"does not fit", "one two", 6, 0, 0, "one\ntwo"},
		{"behind other text", "one two three", 12, 5, 2, "one two\n  three"},
		{"first word on the next line", "threescore", 12, 8, 2, "\n  threescore"},
		{"letters, not bytes", "ééé ééé", 7, 0, 0, "ééé ééé"},
		{"a word that fits no line", "abcdefghij kl", 6, 2, 2, "abcd\n  efgh\n  ij\n  kl"},
		{"no room at all", "ab cd", 4, 8, 8, "ab\n        cd"},
		{"empty", "", 10, 2, 2, ""},
	} {
		if got := Wrap(c.text, c.width, c.first, c.rest); got != c.want {
			t.Errorf("%s: Wrap = %q, want %q", c.name, got, c.want)
		}
	}
}

// FuzzWrap: nothing is lost, and no line is too long.
func FuzzWrap(f *testing.F) {
	f.Add("a few words, and onelongerthanthelines", uint8(20), uint8(9), uint8(4))
	f.Fuzz(func(t *testing.T, text string, width, first, rest uint8) {
		text = Visible(text)
		rest %= leastWidth
		limit := leastWidth + int(width)
		got := Wrap(text, limit, int(first), int(rest))
		same := func(s string) string { return strings.NewReplacer(" ", "", "\n", "").Replace(s) }
		if same(got) != same(text) {
			t.Fatalf("Wrap(%q) = %q", text, got)
		}
		for i, line := range strings.Split(got, "\n") {
			if columns := utf8.RuneCountInString(line); i > 0 && columns > limit {
				t.Fatalf("Wrap(%q, %d) has a line of %d columns: %q", text, limit, columns, line)
			}
		}
	})
}

func TestWidth(t *testing.T) {
	file := must.Get(os.Create(filepath.Join(t.TempDir(), "file")))(t, "create a file")
	defer file.Close()
	for columns, want := range map[string]int{"": 0, "80": 80, "7": leastWidth, "0": 0, "-1": 0, "wide": 0} {
		t.Setenv("COLUMNS", columns)
		for _, w := range []io.Writer{file, io.Discard, &output{Writer: file}} {
			if got := Width(w); got != want {
				t.Errorf("with COLUMNS=%q, %T has %d columns, want %d", columns, w, got, want)
			}
		}
	}
}

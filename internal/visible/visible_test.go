package visible_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"sevagent/internal/must"
	"sevagent/internal/visible"
	"sevagent/internal/visible/visibletest"
)

func TestText(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"nothing", "", ""},
		{"printable", `orders-api "1" C:\x1b é 日本語 🙂 <&>`, `orders-api "1" C:\x1b é 日本語 🙂 <&>`},
		{"combining marks", "e\u0301 \u0928\u093f", "e\u0301 \u0928\u093f"},
		{"replacement character", "\ufffd", "\ufffd"},
		{"escape", "\x1b[2J", `\x1b[2J`},
		{"C0", "\x00\a\b\t\n\v\f\r\x1f", `\x00\a\b\t\n\v\f\r\x1f`},
		{"DEL", "\x7f", `\x7f`},
		{"C1", "\u0080\u009b\u009f", `\u0080\u009b\u009f`},
		{"C1 as a byte", "\x9b31m", `\x9b31m`},
		{"bidirectional", "\u061c\u200e\u200f\u202a\u202e\u2066\u2069", `\u061c\u200e\u200f\u202a\u202e\u2066\u2069`},
		{"zero width", "\u200b\u200c\u200d\u2060\ufeff\u00ad\u034f", `\u200b\u200c\u200d\u2060\ufeff\u00ad\u034f`},
		{"separators", "\u2028\u2029", `\u2028\u2029`},
		{"other spaces", "\u00a0\u2003\u3000", `\u00a0\u2003\u3000`},
		{"without a shape", "\u115f\u3164\uffa0\ufe0f\U000e0100", `\u115f\u3164\uffa0\ufe0f\U000e0100`},
		{"tags", "\U000e0041", `\U000e0041`},
		{"private and unassigned", "\ue000\U0010ffff\u0378", `\ue000\U0010ffff\u0378`},
		{"no UTF-8", "a\xffb\xc3(\xed\xa0\x80", `a\xffb\xc3(\xed\xa0\x80`},
	} {
		if got := visible.Text(c.text); got != c.want {
			t.Errorf("%s: Text(%+q) = %+q, want %+q", c.name, c.text, got, c.want)
		}
	}
}

func TestLines(t *testing.T) {
	const text = "one\n\ttwo\r\n\x1b"
	if got, want := visible.Lines(text), "one\n\\ttwo\\r\n\\x1b"; got != want {
		t.Errorf("Lines(%q) = %q, want %q", text, got, want)
	}
	var b bytes.Buffer
	n := must.Get(visible.Writer(&b, visible.Lines).Write([]byte(text)))(t, "write")
	if n != len(text) || b.String() != visible.Lines(text) {
		t.Errorf("Writer wrote %d bytes and %q, want %d and %q", n, b.String(), len(text), visible.Lines(text))
	}
}

func FuzzVisible(f *testing.F) {
	f.Add(visibletest.Hostile)
	f.Add("orders-api")
	f.Fuzz(func(t *testing.T, text string) {
		got := visible.Text(text)
		for i, r := range got {
			if !unicode.IsPrint(r) || unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
				t.Fatalf("Text(%+q) has %U at byte %d", text, r, i)
			}
		}
		if !utf8.ValidString(got) || visible.Text(got) != got {
			t.Fatalf("Text(%+q) = %+q, which is not its own Text", text, got)
		}
		if joined := strings.ReplaceAll(visible.Lines(text), "\n", `\n`); joined != got {
			t.Fatalf("Lines and Text of %+q differ in more than line feeds: %+q, %+q", text, joined, got)
		}

		encoded := must.Get(json.MarshalIndent(map[string]string{text: text}, "", "\t"))(t, "encode")
		var before, after map[string]string
		must.Do(t, json.Unmarshal(encoded, &before), "decode what was encoded")
		must.Do(t, json.Unmarshal([]byte(visible.JSON(string(encoded))), &after), "decode what was made visible")
		for key := range before {
			if after[key] != before[key] || len(after) != 1 {
				t.Fatalf("JSON changed %+q to %+q", before, after)
			}
		}
		for _, r := range visible.JSON(string(encoded)) {
			if !unicode.IsPrint(r) && r != '\n' && r != '\t' {
				t.Fatalf("JSON(%+q) has %U", encoded, r)
			}
		}
	})
}

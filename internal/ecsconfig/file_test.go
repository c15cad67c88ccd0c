package ecsconfig

import (
	"bytes"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sevagent/internal/must"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestGolden applies NAME.set to NAME.in and wants NAME.out, on files as operators have them. A line of NAME.set is
// KEY=VALUE, or @NAME=VALUE for an attribute.
func TestGolden(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.in")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, input := range inputs {
		base := strings.TrimSuffix(input, ".in")
		t.Run(filepath.Base(base), func(t *testing.T) {
			in := readFile(t, input)
			set := readFile(t, base+".set")
			got, refused := apply(t, in, set)
			if *update {
				if err := os.WriteFile(base+".out", got, 0o644); err != nil {
					t.Fatalf("update the golden file: %v", err)
				}
			}
			if diff := cmp.Diff(string(readFile(t, base+".out")), string(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if refused {
				return
			}
			if again, _ := apply(t, got, set); !bytes.Equal(again, got) {
				t.Errorf("applied twice, it changes again (-first +second):\n%s", cmp.Diff(string(got), string(again)))
			}
		})
	}
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("read a golden file: %v", err)
	}
	return data
}

func parse(t *testing.T, text string) *File {
	t.Helper()
	f, err := Parse([]byte(text))
	if err != nil {
		t.Fatalf("Parse(%q): %v", text, err)
	}
	return f
}

// apply returns the file after the sets, or why it is refused.
func apply(t *testing.T, in, set []byte) (out []byte, refused bool) {
	t.Helper()
	f := parse(t, string(in))
	var err error
	attributes := make(map[string]string)
	for text := range strings.Lines(string(set)) {
		key, value, _ := strings.Cut(strings.TrimSuffix(text, "\n"), "=")
		if name, ok := strings.CutPrefix(key, "@"); ok {
			attributes[name] = value
		} else if err == nil {
			err = f.Set(key, value)
		}
	}
	if err == nil {
		err = f.SetAttributes("sevagent.", attributes)
	}
	if err == nil {
		out, err = f.Encode()
	}
	if err != nil {
		return []byte("refused\n" + err.Error() + "\n"), true
	}
	return out, false
}

func TestSetRefuses(t *testing.T) {
	for _, c := range []struct{ name, key, value, want string }{
		{"empty key", "", "a", `set "": a name has`},
		{"digit first", "1X", "a", `set "1X": a name has`},
		{"blank in a key", "A B", "a", `set "A B": a name has`},
		{"key with a =", "A=B", "a", `set "A=B": a name has`},
		{"key with a letter that is not ASCII", "Ä", "a", `set "Ä": a name has`},
		{"newline", "X", "a\nb", `set X: character 2 of the value, '\n', ends the line`},
		{"carriage return", "X", "é\rb", `set X: character 2 of the value, '\r', ends the line`},
		{"NUL", "X", "a\x00", `set X: character 2 of the value, '\x00', is a control`},
		{"escape", "X", "\x1b[0m", `set X: character 1 of the value, '\x1b', is a control`},
		{"C1 control", "X", "a\u0085b", `set X: character 2 of the value, '\u0085', is a control`},
		{"backslash", "X", `ab\c`, `set X: character 3 of the value, '\\', is an escape`},
		{"backslash at the end", "ECS_X", `ab\`, `set ECS_X: character 3 of the value, '\\', joins the next line`},
		{"double quote first", "X", `"a"`, `set X: character 1 of the value, '"', opens a quote`},
		{"single quote first", "X", "'a", `set X: character 1 of the value, '\'', opens a quote`},
		{"blank first", "X", " a", `set X: character 1 of the value, ' ', is white space`},
		{"tab last", "X", "a\t", `set X: character 2 of the value, '\t', is white space`},
		{"no-break space last", "X", "a\u00a0", `set X: character 2 of the value, '\u00a0', is white space`},
		{"only a blank", "X", " ", `set X: character 1 of the value, ' ', is white space`},
		{"not UTF-8", "X", "a\xff", "set X: character 2 of the value is not UTF-8"},
		{"noncharacter", "X", "a\ufffe", "set X: character 2 of the value is not UTF-8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := parse(t, "X=old\n")
			if err := f.Set(c.key, c.value); err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("Set(%q, %q) = %v, want %s…", c.key, c.value, err, c.want)
			}
			if got := string(f.Bytes()); got != "X=old\n" {
				t.Errorf("after the refusal, the file is %q", got)
			}
		})
	}
}

// TestSetAccepts has values that look as if they had a meaning, and have none to either reader.
func TestSetAccepts(t *testing.T) {
	for _, value := range []string{
		"", `{"a":"R\u0026D \"b\" c\\"}`, "a", "a b", "a\tb", "#a", ";a",
		"a # b", "a=b", "=", `a"b`, `a 'b'`, "$A ${B} %n",
		"`a`", "ü", "\ufffd", "\ufeffa",
		`{"a":"b c"}`, `["json-file","awslogs"]`,
	} {
		f := parse(t, "# comment\nA=1")
		if err := f.Set("ECS_X", value); err != nil {
			t.Errorf("%q: %v", value, err)
			continue
		}
		data, err := f.Encode()
		if err != nil {
			t.Errorf("%q: %v", value, err)
		}
		if got := ReadECSInit(data)["ECS_X"]; got != value {
			t.Errorf("ecs-init reads %q, want %q", got, value)
		}
		if err := f.Set("X", value); err != nil {
			if !strings.Contains(value, `\`) {
				t.Errorf("%q: %v", value, err)
			}
			continue
		}
		if got := ReadSystemd(f.Bytes()); got["A"] != "1" || got["X"] != value {
			t.Errorf("%q: systemd reads %q", value, got)
		}
	}
}

// TestSetRefusesPlace: Set does not touch a line where it would change another key as well.
func TestSetRefusesPlace(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"continuation", "A=1\nX=a\\\nB=2\n", "set X: line 2: systemd reads its value on to line 3"},
		{"open quote", "X='a\nB=2\nC=3", "set X: line 1: systemd reads its value on to line 3"},
		{"open quote in an assignment without effect", "X='a\n'\nX=b\n",
			"set X: line 1: systemd reads its value on to line 2"},
		{"carriage return", "X=a\rB=2\n", "set X: line 1: a carriage return"},
		{"carriage return before", "B='\n'\rX=a\n", "set X: line 2: a carriage return"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := parse(t, c.text)
			if err := f.Set("X", "v"); err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("Set = %v, want %s…", err, c.want)
			}
			if got := string(f.Bytes()); got != c.text {
				t.Errorf("after the refusal, the file is %q", got)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"NUL", []byte("A=1\nB=\x00\n"), "line 2: a NUL byte"},
		{"UTF-16 of PowerShell", []byte("\xff\xfeA\x00=\x001\x00"), "UTF-16; save it as UTF-8"},
		{"UTF-16, big end first", []byte("\xfe\xff\x00A"), "UTF-16; save it as UTF-8"},
		{"UTF-16 without a mark", []byte("A\x00=\x00"), "UTF-16; save it as UTF-8"},
		{"the other without a mark", []byte("\x00A\x00="), "UTF-16; save it as UTF-8"},
		{"size", make([]byte, maxSize+1), "131072 bytes, at most 131071"},
	} {
		if _, err := Parse(c.data); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	if _, err := Parse(bytes.Repeat([]byte("a"), maxSize)); err != nil {
		t.Errorf("largest file: %v", err)
	}
}

func TestUnset(t *testing.T) {
	f := parse(t, "A=1\nB=2\n# A=0\n A=3\n")
	must.Do(t, f.Unset("A"), "remove A")
	must.Do(t, f.Unset("C"), "remove what is not there")
	if got := string(f.Bytes()); got != "B=2\n# A=0\n" {
		t.Errorf("the file is %q", got)
	}
	f = parse(t, "A=1\\\nB=2\n")
	const want = "remove A: line 1: systemd reads its value on"
	if err := f.Unset("A"); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("Unset = %v, want a refusal", err)
	}
}

func TestClone(t *testing.T) {
	f := parse(t, "A=1\nA=2\n")
	g := f.Clone()
	if err := g.Set("A", "3"); err != nil {
		t.Fatalf("Set(A, 3): %v", err)
	}
	if got := string(f.Bytes()); got != "A=1\nA=2\n" {
		t.Errorf("a change to the clone left %q", got)
	}
	if got, ok := g.Get("A"); got != "3" || !ok {
		t.Errorf("Get = %q, %v, want 3", got, ok)
	}
}

// FuzzParse: what parses gives the same bytes back, and nothing panics.
func FuzzParse(f *testing.F) {
	seed(f, func(text string) { f.Add([]byte(text)) })
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Parse(data)
		if err != nil {
			return
		}
		if got := file.Bytes(); !bytes.Equal(got, data) {
			t.Errorf("parsed %q, got %q back", data, got)
		}
		problems := file.Problems()
		for i, p := range problems {
			if p.Line < 1 || p.Line > len(file.lines) || p.Reason == "" || i > 0 && p.Line <= problems[i-1].Line {
				t.Errorf("problem %d of %q: %v", i, data, p)
			}
		}
	})
}

// FuzzEncode: both readers read a file the same that Encode accepts, and that is what was set and what was there. Set
// again, nothing changes.
func FuzzEncode(f *testing.F) {
	seed(f, func(text string) {
		f.Add([]byte(text), "A", "1")
		f.Add([]byte("A=0\n"), "A", text)
	})
	f.Fuzz(func(t *testing.T, data []byte, key, value string) {
		file, err := Parse(data)
		if err != nil {
			return
		}
		_, broken := file.Encode()
		if broken == nil && !agree(data) {
			t.Errorf("accepted %q: ecs-init reads %q, systemd %q", data, ReadECSInit(data), ReadSystemd(data))
		}
		if err := file.Set(key, value); err != nil {
			if got := file.Bytes(); !bytes.Equal(got, data) {
				t.Errorf("refused, Set(%q, %q) left %q", key, value, got)
			}
			return
		}
		first := file.Bytes()
		if err := file.Set(key, value); err != nil || !bytes.Equal(file.Bytes(), first) {
			t.Errorf("Set(%q, %q) again: %v, %q after %q", key, value, err, file.Bytes(), first)
		}
		out, err := file.Encode()
		if err != nil {
			if broken == nil && len(out) <= maxSize {
				t.Errorf("Set(%q, %q) broke %q: %v", key, value, data, err)
			}
			return
		}
		if again, err := Parse(out); err != nil || again.Set(key, value) != nil || !bytes.Equal(again.Bytes(), out) {
			t.Errorf("read again, Set(%q, %q) changes %q: %v", key, value, out, err)
		}
		other := ruleOf(key).environment && !holds(ReadSystemd(out), key, value)
		if !agree(out) || other || !holds(ReadECSInit(out), key, value) {
			t.Errorf("Set(%q, %q) of %q: ecs-init reads %q, systemd %q",
				key, value, data, ReadECSInit(out), ReadSystemd(out))
		}
		for _, read := range []func([]byte) map[string]string{ReadECSInit, ReadSystemd} {
			before, after := read(data), read(out)
			if len(before) == 0 {
				continue // nothing there, or dropped for the line that Set has replaced
			}
			same := func(k, _ string) bool { return strings.TrimSpace(k) == key }
			maps.DeleteFunc(before, same)
			maps.DeleteFunc(after, same)
			if !maps.Equal(before, after) {
				t.Errorf("Set(%q, %q) of %q changed other keys:\n%s", key, value, data, cmp.Diff(before, after))
			}
		}
	})
}

// seed passes the texts that mean something to add.
func seed(f *testing.F, add func(text string)) {
	f.Helper()
	for _, c := range readerTests {
		add(c.text)
	}
	inputs, err := filepath.Glob("testdata/*.in")
	if err != nil || len(inputs) == 0 {
		f.Fatalf("no golden files: %v", err)
	}
	for _, input := range inputs {
		add(string(readFile(f, input)))
	}
}

package strictjson_test

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os/exec"
	"reflect"
	"strings"
	"testing"

	"sevagent/internal/must"
	"sevagent/internal/strictjson"
)

// document has a member of every kind that the module reads.
type document struct {
	Name    string            `json:"name"`
	Count   int64             `json:"count"`
	Small   uint8             `json:"small"`
	On      bool              `json:"on"`
	Raw     []byte            `json:"raw"`
	Hex     hexText           `json:"hex"`
	Inner   inner             `json:"inner"`
	List    []inner           `json:"list"`
	Numbers map[string]int    `json:"numbers"`
	Free    json.RawMessage   `json:"free"`
	UID     *uint32           `json:"uid,omitempty"`
	Note    string            `json:"note,omitempty"`
	More    *inner            `json:"more,omitempty"`
	Zero    inner             `json:"zero,omitzero"`
	Own     map[string]string `json:"own,omitempty"`
}

type inner struct {
	Kind string `json:"kind"`
	In   *inner `json:"in,omitempty"`
}

// hexText takes capitals, as encoding/hex does.
type hexText []byte

func (h hexText) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h), nil }

func (h *hexText) UnmarshalText(text []byte) (err error) {
	*h, err = hex.AppendDecode(nil, text)
	return err
}

const good = `{"name":"n","count":-7,"small":255,"on":true,"raw":"AAE=","hex":"00ff","inner":{"kind":"k"},` +
	`"list":[{"kind":"a"},{"kind":"b"}],"numbers":{"x":0},"free":{"a":[1,"two",true,{}]}}`

// change returns good with its one occurrence of old replaced.
func change(t testing.TB, old, new string) string {
	t.Helper()
	if strings.Count(good, old) != 1 {
		t.Fatalf("%q stands %d times in the document, want once", old, strings.Count(good, old))
	}
	return strings.Replace(good, old, new, 1)
}

// more returns good with a member added.
func more(member string) string { return strings.TrimSuffix(good, "}") + "," + member + "}" }

// cases are texts with what Unmarshal says; "" if it accepts. python reports whether a reader without a schema, which
// follows the rules that need none, accepts the text, too.
func cases(t testing.TB) []struct {
	name, text, want string
	python           bool
} {
	nested := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	return []struct {
		name, text, want string
		python           bool
	}{
		{"good", good, "", true},
		{"blanks", "\r\n\t " + strings.ReplaceAll(good, ":", " :\n") + " \n\t", "", true},
		{"another order", `{"free":{},` +
			strings.Replace(good[1:], `,"free":{"a":[1,"two",true,{}]}`, "", 1), "", true},
		{"escapes", change(t, `"name":"n"`, `"na\u006de":"\u003c\ud83d\ude00\/\\ud800"`), "", true},
		{"optional members", more(`"uid":0,"note":"x","more":{"kind":""},"zero":{"kind":"z"},"own":{"a":"b"}`),
			"", true},
		{"largest integer", change(t, `"count":-7`, `"count":9007199254740991`), "", true},
		{"smallest integer", change(t, `"count":-7`, `"count":-9007199254740991`), "", true},

		{"nothing", "", "not one JSON value", false},
		{"blanks alone", " \n", "not one JSON value", false},
		{"cut off", good[:len(good)-1], "not one JSON value", false},
		{"second value", good + "{}", "not one JSON value", false},
		{"comma behind", strings.TrimSuffix(good, "}") + ",}", "not one JSON value", false},
		{"comment", good + "// x", "not one JSON value", false},
		{"not a number", change(t, "-7", "NaN"), "not one JSON value", false},
		{"infinite", change(t, "-7", "-Infinity"), "not one JSON value", false},
		{"leading zero", change(t, "-7", "-07"), "not one JSON value", false},
		{"control character", change(t, `"n"`, "\"\x1b\""), "not one JSON value", false},
		{"byte order mark", "\ufeff" + good, "not one JSON value", false},
		{"other blanks", good + "\u00a0", "not one JSON value", false},
		{"not UTF-8", change(t, `"n"`, "\"\xff\""), "not valid UTF-8", false},
		{"surrogate in UTF-8", change(t, `"n"`, "\"\xed\xa0\x80\""), "not valid UTF-8", false},
		{"first half of a pair", change(t, `"n"`, `"\ud83d"`), "half a surrogate pair", false},
		{"first half, then a letter", change(t, `"n"`, `"\ud83d\u0041"`), "half a surrogate pair", false},
		{"two first halves", change(t, `"n"`, `"\ud83d\ud83d\ude00"`), "half a surrogate pair", false},
		{"two second halves", change(t, `"n"`, `"\ude00\ude00"`), "half a surrogate pair", false},
		{"first half, then one above", change(t, `"n"`, `"\ud83d\uffff"`), "half a surrogate pair", false},
		{"second half of a pair", change(t, `"n"`, `"\ude00"`), "half a surrogate pair", false},
		{"half a pair in free JSON", change(t, `"two"`, `"\uDFFF"`), "half a surrogate pair", false},

		{"twice", more(`"name":"m"`), "member name stands twice", false},
		{"twice, escaped", more(`"\u006eame":"n"`), "member name stands twice", false},
		{"twice, inside", change(t, `{"kind":"k"}`, `{"kind":"k","kind":"k"}`),
			"inner: member kind stands twice", false},
		{"twice, in a list", change(t, `{"kind":"b"}`, `{"kind":"b","kind":"b"}`),
			"list[1]: member kind stands twice", false},
		{"twice, in a map", change(t, `{"x":0}`, `{"x":0,"x":0}`), "numbers: member x stands twice", false},
		{"twice, in free JSON", change(t, `{}`, `{"Z":1,"Z":1}`), `free.a[3]: member "Z" stands twice`, false},
		{"twice, one unknown", more(`"zz":0,"zz":0`), "member zz stands twice", false},

		{"capital", change(t, `"name"`, `"Name"`), `unknown or empty member "Name"`, true},
		{"capital besides", more(`"Name":"m"`), `unknown or empty member "Name"`, true},
		{"long s", change(t, `"small"`, `"ſmall"`), `unknown or empty member "\u017fmall"`, true},
		{"Kelvin sign", change(t, `{"kind":"k"}`, "{\"\u212aind\":\"k\"}"),
			`inner: unknown or empty member "\u212aind"`, true},
		{"dotless i", more(`"ınner":{"kind":"x"}`), `unknown or empty member "\u0131nner"`, true},
		{"the field's name", change(t, `"on"`, `"On"`), `unknown or empty member "On"`, true},
		{"unknown", more(`"extra":1`), "unknown or empty member extra", true},
		{"unknown inside", change(t, `{"kind":"k"}`, `{"kind":"k","a":{}}`), "inner: unknown or empty member a", true},
		{"unknown further inside", change(t, `{"kind":"b"}`, `{"kind":"b","in":{"kind":"c","a":0}}`),
			"list[1].in: unknown or empty member a", true},
		{"unknown, empty name", more(`"":1`), `unknown or empty member ""`, true},
		{"missing", change(t, `"count":-7,`, ""), "missing member count", true},
		{"missing inside", change(t, `{"kind":"k"}`, `{}`), "inner: missing member kind", true},
		{"missing list", change(t, `"list":[{"kind":"a"},{"kind":"b"}],`, ""), "missing member list", true},
		{"missing free JSON", change(t, `,"free":{"a":[1,"two",true,{}]}`, ""), "missing member free", true},
		{"empty, to be left out", more(`"note":""`), "unknown or empty member note", true},
		{"zero, to be left out", more(`"zero":{"kind":""}`), "unknown or empty member zero", true},
		{"empty map, to be left out", more(`"own":{}`), "unknown or empty member own", true},

		{"null text", change(t, `"n"`, "null"), "name: a null", false},
		{"null list", change(t, `[{"kind":"a"},{"kind":"b"}]`, "null"), "list: a null", false},
		{"null pointer", more(`"uid":null`), "uid: a null", false},
		{"null free JSON", change(t, `{"a":[1,"two",true,{}]}`, "null"), "free: a null", false},
		{"null in free JSON", change(t, `"two"`, "null"), "free.a[1]: a null", false},
		{"null alone", "null", "a null", false},

		{"fraction", change(t, "-7", "1.0"), "count: a number that is not an integer", false},
		{"exponent", change(t, "-7", "1e5"), "count: a number that is not an integer", false},
		{"zero with exponent", change(t, "-7", "0e5"), "count: a number that is not an integer", false},
		{"minus zero", change(t, "-7", "-0"), "count: a number that is not an integer", false},
		{"54 bits", change(t, "-7", "9007199254740992"), "count: a number that is not an integer", false},
		{"54 bits, negative", change(t, "-7", "-9007199254740992"), "count: a number that is not an integer", false},
		{"endless number", change(t, "-7", strings.Repeat("9", 5000)), "count: a number that is not an integer", false},
		{"fraction in free JSON", change(t, `[1,`, `[1.5,`), "free.a[0]: a number that is not an integer", false},
		{"does not fit", change(t, "255", "256"), "small: unexpected number 256", true},
		{"negative without sign", change(t, "255", "-1"), "small: unexpected number -1", true},
		{"number for text", change(t, `"n"`, "1"), "name: unexpected number", true},
		{"text for number", change(t, "-7", `"7"`), "count: unexpected string", true},
		{"number for bool", change(t, `true,"raw"`, `1,"raw"`), "on: unexpected number", true},
		{"object for list", change(t, `[{"kind":"a"},{"kind":"b"}]`, "{}"), "list: unexpected object", true},
		{"list for object", change(t, `{"kind":"k"}`, "[]"), "inner: unexpected array", true},
		{"list alone", "[]", "unexpected array", true},

		{"base64 with line breaks", change(t, `"AAE="`, `"AA\r\nE="`), "raw: not in canonical form", true},
		{"base64 with loose bits", change(t, `"AAE="`, `"AAF="`), "raw: not in canonical form", true},
		{"base64 without padding", change(t, `"AAE="`, `"AAE"`), "illegal base64", true},
		{"base64 of the other alphabet", change(t, `"AAE="`, `"_-8="`), "illegal base64", true},
		{"bytes as a list", change(t, `"AAE="`, `[0,1]`), "raw: ", true},
		{"hex in capitals", change(t, `"00ff"`, `"00FF"`), "hex: not in canonical form", true},

		{"deepest", change(t, `{}`, nested(strictjson.MaxDepth-3)), "", true},
		{"too deep", change(t, `{}`, nested(strictjson.MaxDepth-2)), "nested more than 16 deep", false},
		{"far too deep", change(t, `{}`, nested(9000)), "nested more than 16 deep", false},
	}
}

func TestUnmarshal(t *testing.T) {
	for _, c := range cases(t) {
		t.Run(c.name, func(t *testing.T) {
			err := strictjson.Unmarshal([]byte(c.text), new(document))
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("Unmarshal = %v, want %q", err, c.want)
			}
		})
	}
}

func TestUnmarshalDecodes(t *testing.T) {
	var got document
	must.Do(t, strictjson.Unmarshal([]byte(more(`"uid":0`)), &got), "read the document")
	uid := uint32(0)
	want := document{
		Name: "n", Count: -7, Small: 255, On: true, Raw: []byte{0, 1}, Hex: hexText{0, 0xff}, Inner: inner{Kind: "k"},
		List: []inner{{Kind: "a"}, {Kind: "b"}}, Numbers: map[string]int{"x": 0},
		Free: json.RawMessage(`{"a":[1,"two",true,{}]}`), UID: &uid,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("Unmarshal gives %+v, want %+v", got, want)
	}
}

// python is a reader of the rules that need no schema, by another decoder: it gets texts in base64, a line each, and
// answers 1 for each that it accepts and 0 for each that it refuses.
const python = `
import base64, json, sys
def unique(pairs):
    assert len(dict(pairs)) == len(pairs), "a name stands twice"
    return dict(pairs)
def integer(text):
    assert len(text) < 18 and str(int(text)) == text and abs(int(text)) < 1 << 53, text
    return int(text)
def refuse(text): raise ValueError(text)
def walk(value, depth=1):
    assert value is not None
    if isinstance(value, str): value.encode()
    if isinstance(value, (dict, list)):
        assert depth <= 16
        for item in value: walk(value[item] if isinstance(value, dict) else item, depth + 1)
        if isinstance(value, dict): "".join(value).encode()
for line in sys.stdin:
    try:
        walk(json.loads(base64.b64decode(line).decode(), object_pairs_hook=unique, parse_int=integer,
                        parse_float=refuse, parse_constant=refuse))
        print(1)
    except Exception: print(0)
`

// TestPythonAgrees: what needs no schema, another decoder judges alike.
func TestPythonAgrees(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skipf("needs python3: %v", err)
	}
	var lines strings.Builder
	for _, c := range cases(t) {
		fmt.Fprintln(&lines, base64.StdEncoding.EncodeToString([]byte(c.text)))
	}
	cmd := exec.CommandContext(t.Context(), "python3", "-c", python)
	cmd.Stdin = strings.NewReader(lines.String())
	out := must.Get(cmd.Output())(t, "run python3")
	answers := strings.Fields(string(out))
	if len(answers) != len(cases(t)) {
		t.Fatalf("%d answers for %d texts", len(answers), len(cases(t)))
	}
	for i, c := range cases(t) {
		if got := answers[i] == "1"; got != c.python {
			t.Errorf("%s: accepted by Python: %t, want %t", c.name, got, c.python)
		}
		var free any
		if err := strictjson.Unmarshal([]byte(c.text), &free); (err == nil) != c.python {
			t.Errorf("%s: read without a schema: %v, accepted by Python: %t", c.name, err, c.python)
		}
	}
}

// members counts the members of all objects in a value that encoding/json decoded.
func members(value any) (n int) {
	switch value := value.(type) {
	case map[string]any:
		for _, item := range value {
			n += 1 + members(item)
		}
	case []any:
		for _, item := range value {
			n += members(item)
		}
	}
	return n
}

// colons counts the colons outside of strings in valid JSON: one for each member.
func colons(data []byte) (n int) {
	inString := false
	for i := 0; i < len(data); i++ {
		switch {
		case inString && data[i] == '\\':
			i++
		case data[i] == '"':
			inString = !inString
		case data[i] == ':' && !inString:
			n++
		}
	}
	return n
}

// FuzzUnmarshal: whatever is accepted holds no member that a decoder drops, and says after it was decoded and written
// again what it said to a reader without a schema. What encoding/json writes for it is accepted.
func FuzzUnmarshal(f *testing.F) {
	for _, c := range cases(f) {
		f.Add([]byte(c.text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var d document
		if strictjson.Unmarshal(data, &d) != nil {
			return
		}
		var plain document
		must.Do(t, json.Unmarshal(data, &plain), "decode what was accepted")
		if !reflect.DeepEqual(plain, d) {
			t.Errorf("encoding/json decodes %+v, Unmarshal %+v", plain, d)
		}
		var free, again any
		must.Do(t, json.Unmarshal(data, &free), "decode what was accepted without a schema")
		if got, want := colons(data), members(free); got != want {
			t.Errorf("the text has %d members, a decoder sees %d", got, want)
		}
		text := must.Get(json.Marshal(d))(t, "encode what was decoded")
		must.Do(t, json.Unmarshal(text, &again), "decode what was encoded")
		if !reflect.DeepEqual(free, again) {
			t.Errorf("read without a schema, the text is %v, and written again %v", free, again)
		}
		must.Do(t, strictjson.Unmarshal(text, new(document)), "read what was written")
	})
}

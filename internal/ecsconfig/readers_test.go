package ecsconfig

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type env = map[string]string

// readerTests are lines as people write them, and the corners of systemd's parser. What systemd reads was taken from
// systemd 252; TestReadSystemdIsFaithful holds the model to that.
var readerTests = []struct {
	name, text   string
	ecs, systemd env
}{
	{"plain", "ECS_CLUSTER=prod\n", env{"ECS_CLUSTER": "prod"}, env{"ECS_CLUSTER": "prod"}},
	{"no newline", "A=1", env{"A": "1"}, env{"A": "1"}},
	{"indented", " \tA=1 \t\n", env{"A": "1"}, env{"A": "1"}},
	{"empty value", "A=\n", env{"A": ""}, env{"A": ""}},
	{"twice", "A=1\nA=2\n", env{"A": "2"}, env{"A": "2"}},
	{"more than one =", "A=b=c=\n", env{"A": "b=c="}, env{"A": "b=c="}},
	{"JSON", `X={"sev-snp":"verified"}`, env{"X": `{"sev-snp":"verified"}`}, env{"X": `{"sev-snp":"verified"}`}},
	{"quotes after a bare word", `A=b "c" 'd'`, env{"A": `b "c" 'd'`}, env{"A": `b "c" 'd'`}},
	{"comment behind a value", "A=b # c ; d", env{"A": "b # c ; d"}, env{"A": "b # c ; d"}},
	{"value that looks like a comment", "A=#b\nB=;c", env{"A": "#b", "B": ";c"}, env{"A": "#b", "B": ";c"}},
	{"dollar", "A=$B ${C} %n", env{"A": "$B ${C} %n"}, env{"A": "$B ${C} %n"}},
	{"CRLF", "A=1\r\nB=2\r\n", env{"A": "1", "B": "2"}, env{"A": "1", "B": "2"}},
	{"no =", "junk\nA=1\njunk\n", env{"A": "1"}, env{"A": "1"}},
	{"not ASCII", "A=grün\n", env{"A": "grün"}, env{"A": "grün"}},

	{"comment", "#A=1\n;B=2\n # C=3", env{"#A": "1", ";B": "2", "# C": "3"}, env{}},
	{"comment with a backslash", "# a\\\nX=1\nY=2\n", env{"X": "1", "Y": "2"}, env{"Y": "2"}},
	{"comment with a backslash, CRLF", "# a\\\r\nX=1\n", env{"X": "1"}, env{"X": "1"}},
	{"carriage return in a comment", "# a\rX=1\n", env{"# a\rX": "1"}, env{"X": "1"}},
	{"carriage return", "A=1\rB=2\n", env{"A": "1\rB=2"}, env{"A": "1", "B": "2"}},

	{"double quotes", `A="prod"`, env{"A": `"prod"`}, env{"A": "prod"}},
	{"single quotes", `X='{"a":"b"}'`, env{"X": `'{"a":"b"}'`}, env{"X": `{"a":"b"}`}},
	{"quotes in a row", `A="b" 'c'  d "e"`, env{"A": `"b" 'c'  d "e"`}, env{"A": `bcd "e"`}},
	{"escapes in double quotes", `A="\$\a\"\\"`, env{"A": `"\$\a\"\\"`}, env{"A": `$\a"\`}},
	{"open quote", "A=\"1\nB=2\n", env{"A": `"1`, "B": "2"}, env{"A": "1\nB=2\n"}},
	{"open quote that ends in a backslash", `A="1\`, env{"A": `"1\`}, env{"A": "1"}},
	{"backslash", `X={"tag":"a\"b"}`, env{"X": `{"tag":"a\"b"}`}, env{"X": `{"tag":"a"b"}`}},
	{"continuation", "A=pr\\\nod\n", env{"A": `pr\`}, env{"A": "prod"}},
	{"continuation in double quotes", "A=\"pr\\\nod\"\n", env{"A": `"pr\`}, env{"A": "prod"}},
	{"blank that a backslash keeps", "A=b \\\nB=\\ \n", env{"A": "b \\", "B": `\`}, env{"A": "b B= "}},
	{"backslash at the end", "A=b \\", env{"A": "b \\"}, env{"A": "b "}},

	{"blanks around =", "A = b", env{"A ": " b"}, env{"A": "b"}},
	{"export", "export A=1", env{"export A": "1"}, env{}},
	{"not a name", "1A=1\nB-C=2\n=3\n=D=4\n", env{"1A": "1", "B-C": "2", "": "D=4"}, env{}},
	{"byte order mark", "\ufeffA=1\nB=2\n", env{"\ufeffA": "1", "B": "2"}, env{"B": "2"}},
	{"no-break space", "\u00a0A=1\nB=2\u00a0\n", env{"A": "1", "B": "2"}, env{"B": "2\u00a0"}},
	{"vertical tab", "A=1\v\n", env{"A": "1"}, env{"A": "1\v"}},
	{"control characters", "A=a\x01\x1b[0m\x7fb\n", env{"A": "a\x01\x1b[0m\x7fb"}, env{"A": "a\x01\x1b[0m\x7fb"}},
	{"not UTF-8", "A=1\nB=\xff\n", env{"A": "1", "B": "\xff"}, env{}},
	{"not UTF-8 in a key", "A=1\nB\xff=2\n", env{"A": "1", "B\xff": "2"}, env{}},
	{"not UTF-8 in a comment", "#\xff\nA=1\n\xff\n", env{"A": "1"}, env{"A": "1"}},
	{"surrogate", "A=\xed\xa0\x80\n", env{"A": "\xed\xa0\x80"}, env{}},
	{"noncharacter", "A=\ufffe\nB=2\n", env{"A": "\ufffe", "B": "2"}, env{}},
	{"noncharacter, Arabic", "A=\ufdd0\nB=2\n", env{"A": "\ufdd0", "B": "2"}, env{}},
	{"replacement character", "A=\ufffd\n", env{"A": "\ufffd"}, env{"A": "\ufffd"}},
	{"NUL", "A=1\nB=\x00\n", env{"A": "1", "B": "\x00"}, env{}},
}

func TestReaders(t *testing.T) {
	for _, c := range readerTests {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.ecs, ReadECSInit([]byte(c.text))); diff != "" {
				t.Errorf("ecs-init (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.systemd, ReadSystemd([]byte(c.text))); diff != "" {
				t.Errorf("systemd (-want +got):\n%s", diff)
			}
		})
	}
}

// TestReadSystemdSince254: systemd 254 ended comments at the end of their line.
func TestReadSystemdSince254(t *testing.T) {
	for text, want := range map[string]env{
		"# a\\\nX=1\n":  {"X": "1"},
		"# a\\\rX=1\n":  {"X": "1"},
		"# a\\bX=1\n":   {},
		"# a\\\\\nX=1":  {"X": "1"},
		"; a\\":         {},
		"X=1\\\n#Y=2\n": {"X": "1#Y=2"},
	} {
		if diff := cmp.Diff(want, readSystemd([]byte(text), since254)); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	}
}

// TestReadSystemdIsFaithful compares the model with systemd's own code, on the table, the golden files and random
// text made of pieces that mean something to either reader.
func TestReadSystemdIsFaithful(t *testing.T) {
	var texts []string
	for _, c := range readerTests {
		texts = append(texts, c.text)
	}
	inputs, err := filepath.Glob("testdata/*.in")
	if err != nil {
		t.Fatalf("list the golden files: %v", err)
	}
	for _, input := range inputs {
		texts = append(texts, string(readFile(t, input)))
	}
	const all = "A,B=,=,=,A=,#,;,\\,\\,\",\",', , ,\t,\r,\n,\n,\r\n,$,`,x,é,\u00a0,\ufeff,\v,{\"a\":1}"
	pieces := strings.Split(all, ",")
	rare := []string{"\xff", "\x00", "\x01", "\ufffe"} // each ends a text's interest early
	random := rand.New(rand.NewPCG(1, 2))
	for range 5_000 {
		var b strings.Builder
		for range random.IntN(24) {
			b.WriteString(pieces[random.IntN(len(pieces))])
		}
		if random.IntN(20) == 0 {
			b.WriteString(rare[random.IntN(len(rare))])
		}
		texts = append(texts, b.String())
	}
	answers, d := loadEnvFiles(t, texts)
	for i, text := range texts {
		if diff := cmp.Diff(answers[i], readSystemd([]byte(text), d)); diff != "" {
			t.Errorf("%q (-systemd +model):\n%s", text, diff)
		}
	}
}

// loadEnvFiles has systemd's own library read texts, and returns the dialect that it reads.
func loadEnvFiles(t *testing.T, texts []string) ([]env, dialect) {
	t.Helper()
	var in bytes.Buffer
	for _, text := range texts {
		binary.Write(&in, binary.LittleEndian, int32(len(text)))
		in.WriteString(text)
	}
	cmd := exec.CommandContext(t.Context(), "python3", "testdata/load_env_file.py")
	cmd.Stdin = &in
	out, err := cmd.Output()
	exit, ended := errors.AsType[*exec.ExitError](err)
	if errors.Is(err, exec.ErrNotFound) || ended && exit.ExitCode() == 77 {
		t.Skipf("needs python3 and systemd's shared library: %v", err)
	}
	if err != nil {
		t.Fatalf("load_env_file.py: %v", err)
	}
	r := bytes.NewReader(out)
	number := func() (n int32) {
		if err := binary.Read(r, binary.LittleEndian, &n); err != nil {
			t.Fatalf("load_env_file.py: short answer: %v", err)
		}
		return n
	}
	d := dialect(number() < 254)
	answers := make([]env, len(texts))
	for i := range answers {
		answers[i] = env{}
		for range number() {
			assignment := make([]byte, number())
			io.ReadFull(r, assignment)
			key, value, _ := strings.Cut(string(assignment), "=")
			answers[i][key] = value
		}
	}
	if r.Len() > 0 {
		t.Fatalf("load_env_file.py: %d bytes too many", r.Len())
	}
	return answers, d
}

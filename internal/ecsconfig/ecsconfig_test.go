package ecsconfig_test

import (
	"bytes"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sevagent/internal/ecsconfig"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestReaders holds the two models to what was measured: systemd 252 itself, ecs-init from its source.
func TestReaders(t *testing.T) {
	type env = map[string]string
	for _, c := range []struct {
		name, text   string
		ecs, systemd env
	}{
		{"plain", "ECS_CLUSTER=prod\n", env{"ECS_CLUSTER": "prod"}, env{"ECS_CLUSTER": "prod"}},
		{"quotes", `ECS_CLUSTER="prod"`, env{"ECS_CLUSTER": `"prod"`}, env{"ECS_CLUSTER": "prod"}},
		{"blanks around", "ECS_CLUSTER = prod", env{"ECS_CLUSTER ": " prod"}, env{"ECS_CLUSTER": "prod"}},
		{"export", "export ECS_CLUSTER=prod", env{"export ECS_CLUSTER": "prod"}, env{}},
		{"comment", "#ECS_CLUSTER=old", env{"#ECS_CLUSTER": "old"}, env{}},
		{"trailing comment", "ECS_CLUSTER=prod # main", env{"ECS_CLUSTER": "prod # main"}, env{"ECS_CLUSTER": "prod # main"}},
		{"JSON", `X={"sev-snp":"verified"}`, env{"X": `{"sev-snp":"verified"}`}, env{"X": `{"sev-snp":"verified"}`}},
		{"quoted JSON", `X='{"a":"b"}'`, env{"X": `'{"a":"b"}'`}, env{"X": `{"a":"b"}`}},
		{"escaped JSON", `X={"tag":"a\"b"}`, env{"X": `{"tag":"a\"b"}`}, env{"X": `{"tag":"a"b"}`}},
		{"continuation", "ECS_CLUSTER=pr\\\nod\n", env{"ECS_CLUSTER": `pr\`}, env{"ECS_CLUSTER": "prod"}},
		{"comment with a backslash", "# a\\\nX=1\nY=2\n", env{"X": "1", "Y": "2"}, env{"Y": "2"}},
		{"BOM", "\ufeffX=1", env{"\ufeffX": "1"}, env{}},
		{"twice", "X=1\nX=2\n", env{"X": "2"}, env{"X": "2"}},
		{"empty value", "X=\n", env{"X": ""}, env{"X": ""}},
		{"CRLF", "X=1\r\nY=2\r\n", env{"X": "1", "Y": "2"}, env{"X": "1", "Y": "2"}},
		{"open quote", "X=\"1\nY=2\n", env{"X": `"1`, "Y": "2"}, env{"X": "1\nY=2\n"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.ecs, ecsconfig.ReadECSInit([]byte(c.text))); diff != "" {
				t.Errorf("ecs-init (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.systemd, ecsconfig.ReadSystemd([]byte(c.text))); diff != "" {
				t.Errorf("systemd (-want +got):\n%s", diff)
			}
		})
	}
}

// TestGolden sets the keys of a node in files as operators have them.
func TestGolden(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.in")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, input := range inputs {
		t.Run(filepath.Base(input), func(t *testing.T) {
			in, err := os.ReadFile(input)
			if err != nil {
				t.Fatal(err)
			}
			got := setNode(t, in)
			golden := strings.TrimSuffix(input, ".in") + ".out"
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if again := setNode(t, got); !bytes.Equal(again, got) && !bytes.HasPrefix(got, []byte("refused")) {
				t.Errorf("set again, it changes (-first +second):\n%s", cmp.Diff(string(got), string(again)))
			}
		})
	}
}

// setNode returns the file after a bootstrap, or the text of the refusal.
func setNode(t *testing.T, in []byte) []byte {
	t.Helper()
	f, err := ecsconfig.Parse(in)
	if err != nil {
		return []byte("refused\n" + err.Error() + "\n")
	}
	old, _ := f.Get("ECS_INSTANCE_ATTRIBUTES")
	attributes, err := ecsconfig.MergeAttributes(old, map[string]string{"sevagent.attested": "true", "sevagent.tcb": "4.0.29.222"})
	if err != nil {
		return []byte("refused\n" + err.Error() + "\n")
	}
	for _, kv := range [][2]string{{"ECS_CLUSTER", "prod"}, {"ECS_INSTANCE_ATTRIBUTES", attributes}} {
		if err := f.Set(kv[0], kv[1]); err != nil {
			t.Fatal(err)
		}
	}
	out, err := f.Encode()
	if err != nil {
		return []byte("refused\n" + err.Error() + "\n")
	}
	return out
}

func TestSetRefuses(t *testing.T) {
	for _, c := range []struct{ key, value, want string }{
		{"1X", "a", "not the name"},
		{"A B", "a", "not the name"},
		{"", "a", "not the name"},
		{"X", "a\nb", "a line break at character 1"},
		{"X", "a\rb", "a line break at character 1"},
		{"X", "a\x00", "NUL"},
		{"X", `a\b`, "a backslash at character 1"},
		{"X", " a", "a blank at the start or the end"},
		{"X", "a\u00a0", "a blank at the start or the end"},
		{"X", `"a"`, "a quote at the start"},
		{"X", "'a", "a quote at the start"},
		{"X", "a\x01", "a control character"},
		{"X", "\xff", "not UTF-8"},
	} {
		f, _ := ecsconfig.Parse(nil)
		err := f.Set(c.key, c.value)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.key) {
			t.Errorf("Set(%q, %q) = %v, want one that says %q", c.key, c.value, err, c.want)
		}
	}
}

func TestMergeAttributes(t *testing.T) {
	got, err := ecsconfig.MergeAttributes(`{"team":"payments","sevagent.attested":"false"}`, map[string]string{"sevagent.attested": "true"})
	if want := `{"sevagent.attested":"true","team":"payments"}`; err != nil || got != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
	for _, c := range []struct{ existing, name, value, want string }{
		{"not JSON", "a", "b", "not a JSON object"},
		{`{"a":1}`, "a", "b", "not a JSON object"},
		{"", strings.Repeat("n", 129), "b", "1 to 128"},
		{"", "a", strings.Repeat("v", 129), "1 to 128"},
		{"", "a", `b"c`, "value"},
		{"", "a", "", "value"},
		{"", "a", " b", "value"},
	} {
		if got, err := ecsconfig.MergeAttributes(c.existing, map[string]string{c.name: c.value}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("MergeAttributes(%q, %q=%q) = %q, %v, want an error that says %q", c.existing, c.name, c.value, got, err, c.want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	if _, err := ecsconfig.Parse([]byte("X=1\nY=\x00\n")); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("a NUL byte: err = %v", err)
	}
	if _, err := ecsconfig.Parse(make([]byte, 256<<10+1)); err == nil {
		t.Error("a file over the limit parses")
	}
}

// FuzzEncode: what Encode accepts, both readers read the same; and what Parse accepts, Bytes gives back.
func FuzzEncode(f *testing.F) {
	f.Add([]byte("# comment\nECS_CLUSTER=prod\n"), "prod")
	f.Add([]byte("X=\"a\nb\"\\\n'"), `{"a":"b"}`)
	f.Add([]byte("a=b\\\nX=1\r\r\n;x\\\nY=2"), "a'b\"c")
	f.Fuzz(func(t *testing.T, data []byte, value string) {
		file, err := ecsconfig.Parse(data)
		if err != nil {
			return
		}
		if !bytes.Equal(file.Bytes(), data) {
			t.Fatal("parsed, and changed")
		}
		same := func(out []byte) map[string]string {
			ecs, systemd := ecsconfig.ReadECSInit(out), ecsconfig.ReadSystemd(out)
			for key := range ecs {
				if _, ok := systemd[key]; !ok && key != "" && !strings.ContainsAny(key, "#; \ufeff") && isName(key) {
					t.Fatalf("only ecs-init reads %q in %q", key, out)
				}
			}
			for key, v := range systemd {
				if ecs[key] != v {
					t.Fatalf("%s: ecs-init reads %q, systemd %q in %q", key, ecs[key], v, out)
				}
			}
			return systemd
		}
		if out, err := file.Encode(); err == nil {
			same(out)
		}
		before := maps.Clone(ecsconfig.ReadSystemd(data))
		if file.Set("ECS_FUZZED", value) != nil {
			return
		}
		out, err := file.Encode()
		if err != nil {
			return
		}
		env := same(out)
		if env["ECS_FUZZED"] != value {
			t.Fatalf("set to %q, read as %q in %q", value, env["ECS_FUZZED"], out)
		}
		for key, v := range before {
			if key != "ECS_FUZZED" && env[key] != v {
				t.Fatalf("%s was %q and is %q", key, v, env[key])
			}
		}
	})
}

func isName(s string) bool {
	return strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_") == "" && (s[0] < '0' || s[0] > '9')
}

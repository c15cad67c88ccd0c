package ecsconfig

import (
	"strings"
	"testing"
)

func TestMergeAttributes(t *testing.T) {
	for _, c := range []struct {
		name, existing string
		add            env
		want           string
	}{
		{"none there", "", env{"b": "2", "a": "1"}, `{"a":"1","b":"2"}`},
		{"others stay", `{"team":"payments","a":"0"}`, env{"a": "1"}, `{"a":"1","team":"payments"}`},
		{"nothing new", `{ "b":"2", "a":"1" }`, env{"a": "1"}, `{ "b":"2", "a":"1" }`},
		{"nothing at all", "", nil, ""},
		{"others that need an escape", `{"x":"a\"b"}`, env{"a": "1"}, `{"a":"1","x":"a\"b"}`},
		{"not proved any more", `{"a":"0","a.tcb":"4","b":"2"}`, env{"a": "1"}, `{"a":"1","b":"2"}`},
		{"nothing proved", `{"a":"0"}`, nil, `{}`},
		{"ten", `{"1":"","2":"","3":"","4":"","5":"","6":"","7":"","8":"","9":"","a.":""}`, env{"a": "1"},
			`{"1":"","2":"","3":"","4":"","5":"","6":"","7":"","8":"","9":"","a":"1"}`},
		{"null", "null", env{"a": "1"}, `{"a":"1"}`},
		{"others that ECS may refuse", `{"x y":"","<>&":"ü"}`, env{"a": "1"}, `{"<>&":"ü","a":"1","x y":""}`},
		{"escape that is not needed", `{"b":"\u0041"}`, env{"a": "1"}, `{"a":"1","b":"A"}`},
		{"all characters", "", env{"azAZ09-_./": "azAZ09-_./@: x"}, `{"azAZ09-_./":"azAZ09-_./@: x"}`},
		{"longest", "", env{strings.Repeat("n", 128): strings.Repeat("v", 128)},
			`{"` + strings.Repeat("n", 128) + `":"` + strings.Repeat("v", 128) + `"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := mergeAttributes(c.existing, "a", c.add)
			if err != nil || got != c.want {
				t.Errorf("got %s, %v, want %s", got, err, c.want)
			}
		})
	}
}

func TestMergeAttributesRefuses(t *testing.T) {
	for _, c := range []struct{ name, existing, key, value, want string }{
		{"not JSON", "a", "a", "b", "ECS_INSTANCE_ATTRIBUTES wants a JSON object of strings"},
		{"quoted", `'{"a":"b"}'`, "a", "b", "ECS_INSTANCE_ATTRIBUTES wants a JSON object of strings"},
		{"list", `["a"]`, "a", "b", "ECS_INSTANCE_ATTRIBUTES wants a JSON object of strings"},
		{"number", `{"a":1}`, "a", "b", "ECS_INSTANCE_ATTRIBUTES wants a JSON object of strings"},
		{"not UTF-8", "{\"a\":\"\xff\"}", "a", "b", "not UTF-8"},
		{"eleven", `{"1":"","2":"","3":"","4":"","5":"","6":"","7":"","8":"","9":"","0":""}`, "a", "b",
			"10 attributes besides 1 of sevagent, ECS accepts 10 together"},
		{"empty name", "", "", "b", "a name has 1 to 128"},
		{"long name", "", strings.Repeat("n", 129), "b", "a name has 1 to 128"},
		{"blank in a name", "", "a b", "b", "a name has 1 to 128"},
		{"newline after a name", "", "a\n", "b", "a name has 1 to 128"},
		{"empty value", "", "a", "", `attribute "a": value "": 1 to 128`},
		{"long value", "", "a", strings.Repeat("v", 129), "1 to 128"},
		{"quote", "", "a", `b"c`, "1 to 128"},
		{"blank first", "", "a", " b", "1 to 128"},
		{"blank last", "", "a", "b ", "1 to 128"},
		{"not ASCII", "", "a", "ü", "1 to 128"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := mergeAttributes(c.existing, "a", env{c.key: c.value})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %s, %v, want an error that says %q", got, err, c.want)
			}
		})
	}
}

// TestSetAttributesRefuses: attributes of others are never lost silently.
func TestSetAttributesRefuses(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"quoted", `ECS_INSTANCE_ATTRIBUTES='{"a":"b"}'`,
			"ECS_INSTANCE_ATTRIBUTES wants a JSON object of strings, without quotes around it"},
		{"blanks around =", "# x\nECS_INSTANCE_ATTRIBUTES = {\"a\":\"b\"}\n",
			"set ECS_INSTANCE_ATTRIBUTES: line 2: ecs-init reads"},
		{"over two lines", "ECS_INSTANCE_ATTRIBUTES={\"a\":\\\n\"b\"}\n",
			"set ECS_INSTANCE_ATTRIBUTES: line 1: systemd reads its value on"},
		{"not JSON", "ECS_INSTANCE_ATTRIBUTES=a\n", "ECS_INSTANCE_ATTRIBUTES wants a JSON object of strings"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := parse(t, c.text)
			if err := f.SetAttributes("x", env{"x": "y"}); err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got %v, want %s…", err, c.want)
			}
			if got := string(f.Bytes()); got != c.text {
				t.Errorf("after the refusal, the file is %q", got)
			}
		})
	}
}

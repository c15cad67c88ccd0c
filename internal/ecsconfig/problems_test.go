package ecsconfig

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestProblems(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []Problem
	}{
		{"none", "# a=b\n\nA=1\r\n;c\\\n# d\njunk\n  B=\"2\" 3\" \n", []Problem{{7, "ecs-init reads B=`\"2\" 3\"`, systemd reads B=`23\"`"}}},
		{"quotes", `ECS_CLUSTER="prod"`, []Problem{{1, "ecs-init reads ECS_CLUSTER=`\"prod\"`, systemd reads ECS_CLUSTER=`prod`"}}},
		{"blanks around =", "\nA = 1\n", []Problem{{2, "ecs-init reads `A `=` 1`, systemd reads A=`1`"}}},
		{"backslash", `A=b\c`, []Problem{{1, "ecs-init reads A=`b\\c`, systemd reads A=`bc`"}}},
		{"continuation", "A=b\\\nc\n", []Problem{{1, "systemd reads the value of A on to line 2, ecs-init ends it here"}}},
		{"open quote", "A='b\nB=1\nC='2\n", []Problem{{1, "systemd reads the value of A on to line 3, ecs-init ends it here"}}},
		{"export", "export A=1", []Problem{{1, "`export A` is not the name of a variable (no shell reads this file): systemd ignores the line, ecs-init passes it on"}}},
		{"byte order mark", "\ufeffA=1", []Problem{{1, "\"\\ufeffA\" is not the name of a variable (a byte order mark precedes it): systemd ignores the line, ecs-init passes it on"}}},
		{"byte order mark before a comment", "\ufeff# a\nA=1\n", nil},
		{"vertical tab", "\vA=1", []Problem{{1, "\"\\vA\" is not the name of a variable: systemd ignores the line, ecs-init passes it on"}}},
		{"no key", "=1", []Problem{{1, "a key of 0 bytes is not the name of a variable: systemd ignores the line, ecs-init passes it on"}}},
		{"carriage return", "A=1\rB=2\n", []Problem{{1, "ecs-init reads A=\"1\\rB=2\", systemd reads A=`1` and B=`2`"}}},
		{"carriage return in a comment", "# a\rB=2\n", []Problem{{1, "ecs-init reads nothing, systemd reads B=`2`"}}},
		{"not UTF-8", "A=\xff", []Problem{{1, "not UTF-8: systemd drops the whole file, ecs-init does not"}}},
		{"comment that swallows", "# a \\\n#b\\\nA=1\nB=2\n", []Problem{{1, "a comment that ends in a backslash: before version 254 systemd takes line 3 for a part of it, ecs-init does not"}}},
		{"comment that hides a line from the older only", "# a\\\rB=2\n", []Problem{{1, "ecs-init reads nothing, systemd reads B=`2`"}}},
		{"several", "A=1\nexport B=2\nC='3'\n", []Problem{
			{2, "`export B` is not the name of a variable (no shell reads this file): systemd ignores the line, ecs-init passes it on"},
			{3, "ecs-init reads C=`'3'`, systemd reads C=`3`"},
		}},
		{"long", "A='" + strings.Repeat("b", 100) + "'", []Problem{
			{1, fmt.Sprintf("ecs-init reads A=`'%s`…, systemd reads A=`%s`…", strings.Repeat("b", 59), strings.Repeat("b", 60))},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := Parse([]byte(c.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, f.Problems()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			_, err = f.Encode()
			var want []string
			for _, p := range c.want {
				want = append(want, fmt.Sprintf("line %d: %s", p.Line, p.Reason))
			}
			if got := fmt.Sprint(err); err != nil && got != strings.Join(want, "\n") || (err == nil) != (c.want == nil) {
				t.Errorf("Encode: %s, want %q", got, want)
			}
		})
	}
}

// What is wrong with the file is logged; what is in it may be a secret.
func TestProblemsKeepSecrets(t *testing.T) {
	for _, text := range []string{
		`ECS_ENGINE_AUTH_DATA='{"https://index.docker.io/v1/":{"password":"hunter2"}}'`,
		`ECS_ENGINE_AUTH_DATA = hunter2`,
		"ECS_ENGINE_AUTH_DATA=\"{\n\"auth\":\"hunter2\"}\n",
		"A=1\rAWS_SECRET_ACCESS_KEY=hunter2",
		`"https://index.docker.io":{"auth":"hunter2=="}`,
		"  aHVudGVyMg hunter2==",
		`HTTP_PROXY="http://user:hunter2@proxy"`,
		`HTTPS_PROXY="user:hunter2@proxy"`,
		`X='{"password":"hunter2"}'`,
	} {
		f, err := Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		problems := fmt.Sprint(f.Problems())
		if problems == "[]" || strings.Contains(problems, "hunter2") {
			t.Errorf("%q: %s", text, problems)
		}
	}
}

func TestEncodeBoundsSize(t *testing.T) {
	f, err := Parse([]byte("#" + strings.Repeat("a", maxSize-1)))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Set("A", "1"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Encode(); err == nil || !strings.Contains(err.Error(), "at most 131071") {
		t.Errorf("got %v, want a limit", err)
	}
}

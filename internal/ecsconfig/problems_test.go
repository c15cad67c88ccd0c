package ecsconfig

import (
	"fmt"
	"strings"
	"testing"
)

func TestProblems(t *testing.T) {
	const notAName = " is not the name of a variable"
	const ignored = ": systemd ignores the line, ecs-init passes it on"
	for _, c := range []struct{ name, text, want string }{
		{"none but the last", "# a=b\n\nA=1\r\n;c\\\n# d\njunk\n  B=\"2\" 3\" \n",
			"line 7: ecs-init reads B=`\"2\" 3\"`, systemd reads B=`23\"`"},
		{"escapes in a key of the agent's", `ECS_ENGINE_AUTH_DATA={"a":"R\u0026D","b":"https:\/\/c","d":"\"e\""}`, ""},
		{"quotes in a key of the agent's", `ECS_AVAILABLE_LOGGING_DRIVERS='["syslog"]'`, ""}, // Findings has it
		{"key of the agent's that changes the next line", "ECS_UPDATE_DOWNLOAD_DIR=C:\\\nA=1\n",
			"line 1: systemd reads the value of ECS_UPDATE_DOWNLOAD_DIR on to line 2, ecs-init ends it here"},
		{"escape in a key of ecs-init's", `ECS_LOG_OPTS={"tag":"a\"b"}`,
			"line 1: ecs-init reads ECS_LOG_OPTS=`{\"tag\":\"a\\\"b\"}`, " +
				"systemd reads ECS_LOG_OPTS=`{\"tag\":\"a\"b\"}`"},
		{"escape in a key of a library's", `HTTPS_PROXY=http://a\b`,
			"line 1: ecs-init reads HTTPS_PROXY=`http://a\\b`, systemd reads HTTPS_PROXY=`http://ab`"},
		{"quotes", `A="prod"`, "line 1: ecs-init reads A=`\"prod\"`, systemd reads A=`prod`"},
		{"blanks around =", "\nA = 1\n", "line 2: ecs-init reads `A `=` 1`, systemd reads A=`1`"},
		{"backslash", `A=b\c`, "line 1: ecs-init reads A=`b\\c`, systemd reads A=`bc`"},
		{"continuation", "A=b\\\nc\n", "line 1: systemd reads the value of A on to line 2, ecs-init ends it here"},
		{"open quote", "A='b\nB=1\nC='2\n", "line 1: systemd reads the value of A on to line 3, ecs-init ends it here"},
		{"export", "export A=1", "line 1: `export A`" + notAName + " (no shell reads this file)" + ignored},
		{"byte order mark", "\ufeffA=1",
			"line 1: \"\\ufeffA\"" + notAName + " (a byte order mark precedes it)" + ignored},
		{"byte order mark before a comment", "\ufeff# a\nA=1\n", ""},
		{"vertical tab", "\vA=1", "line 1: \"\\vA\"" + notAName + ignored},
		{"no key", "=1", "line 1: a key of 0 bytes" + notAName + ignored},
		{"carriage return", "A=1\rB=2\n", "line 1: ecs-init reads A=\"1\\rB=2\", systemd reads A=`1` and B=`2`"},
		{"carriage return in a comment", "# a\rB=2\n", "line 1: ecs-init reads nothing, systemd reads B=`2`"},
		{"not UTF-8", "A=\xff", "line 1: not UTF-8: systemd drops the whole file, ecs-init does not"},
		{"comment that swallows", "# a \\\n#b\\\nA=1\nB=2\n", "line 1: a comment that ends in a backslash: " +
			"before version 254 systemd takes line 3 for a part of it, ecs-init does not"},
		{"comment that hides a line from the older only", "# a\\\rB=2\n",
			"line 1: ecs-init reads nothing, systemd reads B=`2`"},
		{"several", "A=1\nexport B=2\nC='3'\n",
			"line 2: `export B`" + notAName + " (no shell reads this file)" + ignored +
				"\nline 3: ecs-init reads C=`'3'`, systemd reads C=`3`"},
		{"long", "A='" + strings.Repeat("b", 100) + "'", "line 1: ecs-init reads A=`'" + strings.Repeat("b", 59) +
			"`…, systemd reads A=`" + strings.Repeat("b", 60) + "`…"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := parse(t, c.text)
			var problems []string
			for _, p := range f.Problems() {
				problems = append(problems, p.String())
			}
			if got := strings.Join(problems, "\n"); got != c.want {
				t.Errorf("the problems are\n%s\nwant\n%s", got, c.want)
			}
			_, err := f.Encode()
			if err == nil != (c.want == "") || err != nil && err.Error() != c.want {
				t.Errorf("Encode: %v\nwant\n%s", err, c.want)
			}
		})
	}
}

// TestProblemsKeepSecrets: problems are logged, and the file may hold secrets.
func TestProblemsKeepSecrets(t *testing.T) {
	for _, text := range []string{
		`AWS_SECRET_ACCESS_KEY='hunter2'`,
		`ECS_ENGINE_AUTH_DATA = hunter2`,
		"ECS_ENGINE_AUTH_DATA=\"{\n\"auth\":\"hunter2\"}\n",
		"A=1\rAWS_SECRET_ACCESS_KEY=hunter2",
		`"https://index.docker.io":{"auth":"hunter2=="}`,
		"  aHVudGVyMg hunter2==",
		`HTTP_PROXY="http://user:hunter2@proxy"`,
		`HTTPS_PROXY="user:hunter2@proxy"`,
		`X='{"password":"hunter2"}'`,
	} {
		f := parse(t, text)
		problems := fmt.Sprint(f.Problems())
		if problems == "[]" || strings.Contains(problems, "hunter2") {
			t.Errorf("%q: %s", text, problems)
		}
	}
}

func TestEncodeBoundsSize(t *testing.T) {
	f := parse(t, "#"+strings.Repeat("a", maxSize-1))
	if err := f.Set("A", "1"); err != nil {
		t.Fatalf("Set(A, 1): %v", err)
	}
	if _, err := f.Encode(); err == nil || !strings.Contains(err.Error(), "at most 131071") {
		t.Errorf("got %v, want a limit", err)
	}
}

package bootstrap

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"sevagent/internal/cli"
)

func TestFailureID(t *testing.T) {
	const instance = "i-0123456789abcdef0"
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"short", failed("proof", errors.New("no device")), "9abcdef0:proof: no device"},
		{"no step", errors.New("unknown flag: --nope"), "9abcdef0:bootstrap: unknown flag: --nope"},
		{"end of a chain", failed("start ecs", errors.New("dial the bus: read unix /run/dbus: connection refused")),
			"9abcdef0:start ecs: read unix /run/dbus: connection refused"},
		{"advice",
			failed("proof", cli.Unreachable(advised{errors.New("not ready: " + strings.Repeat("x", 20)), "see"})),
			"9abcdef0:proof: not ready: xxxxxxxxxxxxxxxxxxxx"},
		{"AWS", failed("signal", errors.New("operation error CloudFormation: SignalResource, https response error "+
			"StatusCode: 403, RequestID: 1, api error AccessDenied: User: arn:aws:sts::1:assumed-role/node is "+
			"not authorized")),
			"9abcdef0:signal: AccessDenied: User: arn:aws:sts::1:assumed-r..."},
		{"lines", failed("options", errors.New("one\ntwo\tthree")), "9abcdef0:options: one two three"},
		{"long step", failed(strings.Repeat("step ", 20), errors.New("cause")),
			"9abcdef0:step step step step ste" + "cause"},
		{"one long word", failed("proof", errors.New(strings.Repeat("ü€", 60))),
			"9abcdef0:proof: " + strings.Repeat("?", 45) + "..."},
		{"not UTF-8", failed("proof", errors.New("a\xffb…")), "9abcdef0:proof: a?b~"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := failureID(instance, c.err); got != c.want {
				t.Errorf("the unique ID is %q, want %q", got, c.want)
			}
		})
	}
}

// FuzzFailureID holds every reason to what the API takes.
func FuzzFailureID(f *testing.F) {
	f.Add("i-0123456789abcdef0", "proof", "a: b: c")
	f.Add("", "", "")
	f.Add("ü", "…", strings.Repeat("€: ", 40)+"api error ")
	f.Fuzz(func(t *testing.T, instance, step, cause string) {
		id := failureID(instance, failed(step, errors.New(cause)))
		if n := len(id); n < 1 || n > maxUniqueID || !utf8.ValidString(id) {
			t.Errorf("%q has %d bytes, want 1 to 64", id, n)
		}
		if i := strings.IndexFunc(id, func(c rune) bool { return c < ' ' || c > '~' }); i >= 0 {
			t.Errorf("%q has something unprintable at %d", id, i)
		}
	})
}

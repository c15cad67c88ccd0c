package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/aws/smithy-go"

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
		{"end of a chain", failed("start ecs", errors.New("connect to systemd: dial the system bus: read unix /run/dbus: connection refused")),
			"9abcdef0:start ecs: read unix /run/dbus: connection refused"},
		{"advice", failed("proof", cli.Unreachable(advised{errors.New("not ready: " + strings.Repeat("x", 20)), "see 'journalctl -u sevagent'"})),
			"9abcdef0:proof: not ready: xxxxxxxxxxxxxxxxxxxx"},
		{"AWS", failed("signal", errors.New("operation error CloudFormation: SignalResource, https response error StatusCode: 403, RequestID: 1, api error AccessDenied: User: arn:aws:sts::1:assumed-role/node is not authorized")),
			"9abcdef0:signal: AccessDenied: User: arn:aws:sts::1:assumed-r..."},
		{"lines", failed("options", errors.New("one\ntwo\tthree")), "9abcdef0:options: one two three"},
		{"long step", failed(strings.Repeat("step ", 20), errors.New("cause")), "9abcdef0:step step step step ste" + "cause"},
		{"one long word", failed("proof", errors.New(strings.Repeat("ü€", 60))), "9abcdef0:proof: " + strings.Repeat("?", 45) + "..."},
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

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		message           string
		notWaiting, final bool
		code              string
	}{
		{"Stack arn:aws:cloudformation:us-east-1:1:stack/prod/1 is in CREATE_COMPLETE state and cannot be signaled", true, true, "ValidationError"},
		{"Stack arn:aws:cloudformation:us-east-1:1:stack/prod/1 is in UPDATE_COMPLETE_CLEANUP_IN_PROGRESS state and cannot be signaled", true, true, "ValidationError"},
		{"Resource Group is in CREATE_COMPLETE state and cannot be signaled", true, true, "ValidationError"},
		{"Resource Group is in UPDATE_IN_PROGRESS state and cannot be signaled", true, false, "ValidationError"},
		{"Resource NodesReady is in CREATE_PENDING state and cannot be signaled.", true, false, "ValidationError"},
		{"Resource NodesReady is in CREATE_FAILED state and can not be signaled", true, true, "ValidationError"},
		{"Resource NodesReady is not in CREATE_IN_PROGRESS", true, false, "ValidationError"},
		{"something that nobody has seen", true, false, "ValidationError"},
		{"Resource NodesReady does not exist for stack prod", true, false, "ValidationError"},
		{"Stack 'prod' does not exist", false, false, "ValidationError"},
		{"Stack prod is in CREATE_COMPLETE state and cannot be signaled", false, false, "AccessDenied"},
	} {
		message, final := refusalOf(fmt.Errorf("signal: %w", &smithy.GenericAPIError{Code: c.code, Message: c.message}))
		if (message != "") != c.notWaiting || final != c.final {
			t.Errorf("%s %q: not waiting %v, final %v; want %v, %v", c.code, c.message, message != "", final, c.notWaiting, c.final)
		}
	}
}

func TestSplit(t *testing.T) {
	for _, c := range []struct {
		flag string
		in   []string
		want []string
	}{
		{"mtls-secret", []string{"a, b", "c"}, []string{"a", "b", "c"}},
		{"mtls-secret", []string{""}, nil},
		{"ecs-option", []string{`A=[1,2], B={"x":"y","z":"w"},C=`}, []string{"A=[1,2]", `B={"x":"y","z":"w"}`, "C="}},
		{"ecs-option", []string{"A=1", "nonsense"}, []string{"A=1", "nonsense"}},
	} {
		if got := split(c.flag, c.in); !slices.Equal(got, c.want) {
			t.Errorf("split(%s, %q) = %q, want %q", c.flag, c.in, got, c.want)
		}
	}
}

func TestSignedBy(t *testing.T) {
	const primary, other = "F34C3DDAE72926B079BEAEC6BCE9D9A42D51784F", "0000000000000000000000000000000000000000"
	line := func(fingerprint string) []byte {
		return []byte("[GNUPG:] NEWSIG\n[GNUPG:] VALIDSIG D64BB6F90CF377E9B5FB346F50DECCC4710E61AF 2026-01-01 1767225600 0 4 0 1 8 00 " + fingerprint + "\n")
	}
	if !signedBy(line(primary), primary) {
		t.Error("a signature by a subkey of the pinned key is refused")
	}
	if signedBy(line(other), primary) || signedBy([]byte("[GNUPG:] GOODSIG "+primary), primary) {
		t.Error("a signature by another key is accepted")
	}
}

func TestECSPackageURL(t *testing.T) {
	for region, want := range map[string]string{
		"us-east-2":  "https://s3.us-east-2.amazonaws.com/amazon-ecs-agent-us-east-2/amazon-ecs-init-latest.amd64.deb",
		"cn-north-1": "https://s3.cn-north-1.amazonaws.com.cn/amazon-ecs-agent-cn-north-1/amazon-ecs-init-latest.amd64.deb",
	} {
		if got := ecsPackageURL(region); got != want {
			t.Errorf("the package for %s is at %s, want %s", region, got, want)
		}
	}
}

// TestDownload breaks the server once, and redirects where nothing may be fetched from.
func TestDownload(t *testing.T) {
	calls := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch calls++; {
		case r.URL.Path == "/away":
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
		case r.URL.Path == "/gone":
			http.NotFound(w, r)
		case calls == 1:
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			fmt.Fprint(w, "content")
		}
	}))
	defer server.Close()
	to := filepath.Join(t.TempDir(), "file")
	if err := download(t.Context(), server.URL+"/file", to, 7); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(to); err != nil || string(data) != "content" {
		t.Errorf("downloaded %q, %v", data, err)
	}
	for path, want := range map[string]string{"/file": "more than 6 bytes", "/gone": "HTTP status 404"} {
		if err := download(t.Context(), server.URL+path, to, 6); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", path, err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := download(ctx, server.URL+"/away", to, 6); err == nil {
		t.Error("a canceled download succeeds")
	}
}

// FuzzFingerprint: what comes from outside as a key is refused, or has a fingerprint; it never panics.
func FuzzFingerprint(f *testing.F) {
	f.Add([]byte{0x99, 0, 4, 4, 0, 0, 0})
	f.Add([]byte{0xc6, 192, 0, 4})
	f.Add([]byte("-----BEGIN PGP PUBLIC KEY BLOCK-----\nVersion: 1\n\nmQAEBAAAAA==\n=abcd\n-----END PGP PUBLIC KEY BLOCK-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		ring, err := dearmor(data)
		if err != nil {
			return
		}
		if got, err := fingerprint(ring); err == nil && len(got) != len(ecsKeyFingerprint) {
			t.Errorf("fingerprint %q", got)
		}
	})
}

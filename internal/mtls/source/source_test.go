package source

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	s := File(path)
	if _, err := s.Describe(t.Context()); KindOf(err) != Persistent || !IsMissing(err) {
		t.Errorf("missing file: %v, want a persistent error that says so", err)
	}
	write := func(content string) (version string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatalf("write the secret's file: %v", err)
		}
		v, err := s.Describe(t.Context())
		if err != nil {
			t.Errorf("describe a file of %d bytes: %v", len(content), err)
		}
		return v.Current
	}

	one := write("one")
	if got, err := s.Fetch(t.Context(), one, Current); err != nil || string(got()) != "one" {
		t.Errorf("fetch of what was described: %v, want its content", err)
	}
	if two := write("two"); two == one {
		t.Error("the version does not follow the content")
	}
	if _, err := s.Fetch(t.Context(), one, Current); KindOf(err) != Moved {
		t.Errorf("fetch of what has changed: %v, want that the label moved", err)
	}

	write(strings.Repeat("x", maxFileBytes))
	if err := os.WriteFile(path, make([]byte, maxFileBytes+1), 0o600); err != nil {
		t.Fatalf("write a large file: %v", err)
	}
	if _, err := s.Describe(t.Context()); KindOf(err) != Persistent || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("large file: %v, want a persistent error that says so", err)
	}
	if _, err := File(filepath.Dir(path)).Describe(t.Context()); KindOf(err) != Persistent || IsMissing(err) {
		t.Errorf("directory: %v, want a persistent error", err)
	}
}

// Advice is part of an error's text, and can be told from its cause at any depth.
func TestExplain(t *testing.T) {
	plain := errors.New("denied")
	advised := &Error{Kind: Persistent, Err: plain, Advice: "allow it"}
	for _, c := range []struct {
		err                 error
		text, cause, advice string
	}{
		{plain, "denied", "denied", ""},
		{&Error{Err: plain}, "denied", "denied", ""},
		{advised, "denied; allow it", "denied", "allow it"},
		{&Error{Err: fmt.Errorf("order: %w", advised)}, "order: denied; allow it", "order: denied", "allow it"},
		{Advise(plain, "ask"), "denied; ask", "denied", "ask"},
		{&Error{Err: fmt.Errorf("read: %w", Advise(plain, "ask"))}, "read: denied; ask", "read: denied", "ask"},
		{fmt.Errorf("a: %w (HTTP 400)", advised), "a: denied; allow it (HTTP 400)", "a: denied (HTTP 400)", "allow it"},
	} {
		cause, advice := Explain(c.err)
		if c.err.Error() != c.text || cause != c.cause || advice != c.advice {
			t.Errorf("%q is %q and %q, want %q and %q", c.err, cause, advice, c.cause, c.advice)
		}
	}
}

func TestSecretIsNotPrinted(t *testing.T) {
	s := NewSecret([]byte("hunter2"))
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		if got := fmt.Sprintf(verb, struct{ S any }{s}); strings.Contains(got, "hunter2") ||
			strings.Contains(got, "68756e746572") {
			t.Errorf("%s prints %s", verb, got)
		}
	}
}

package source

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	s := File(path)
	if _, err := s.Describe(t.Context()); KindOf(err) != Persistent {
		t.Errorf("missing file: %v, want a persistent error", err)
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
	if _, err := File(filepath.Dir(path)).Describe(t.Context()); KindOf(err) != Persistent {
		t.Errorf("directory: %v, want a persistent error", err)
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

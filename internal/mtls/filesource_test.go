package mtls

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFileSource(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	s := FileSource(path)
	if _, err := s.Describe(t.Context()); kindOf(err) != Persistent {
		t.Errorf("missing file: %v, want a persistent error", err)
	}
	write := func(content string) string {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		v, err := s.Describe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return v.Current
	}
	one := write("one")
	if got, err := s.Fetch(t.Context(), one, LabelCurrent); err != nil || string(got()) != "one" {
		t.Errorf("fetch: %v", err)
	}
	if two := write("two"); two == one {
		t.Error("the version does not follow the content")
	}
	if _, err := s.Fetch(t.Context(), one, LabelCurrent); kindOf(err) != LabelMoved {
		t.Errorf("fetch of what has changed: %v, want that the label moved", err)
	}
	write(strings.Repeat("x", maxSecretBytes))
	if err := os.WriteFile(path, make([]byte, maxSecretBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Describe(t.Context()); kindOf(err) != Persistent || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("large file: %v", err)
	}
	if _, err := FileSource(filepath.Dir(path)).Describe(t.Context()); kindOf(err) != Persistent {
		t.Errorf("directory: %v, want a persistent error", err)
	}
}

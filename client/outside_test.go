package client_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sevagent/internal/must"
)

// TestOutside follows docs/go.md: a module of somebody else, beside a clone, builds without the network.
func TestOutside(t *testing.T) {
	page := must.Get(os.ReadFile("../docs/go.md"))(t, "read the page")
	repository := must.Get(filepath.Abs(".."))(t, "find the repository")
	parent := t.TempDir()
	module := filepath.Join(parent, "orders")
	must.Do(t, os.Mkdir(module, 0o755), "make the module's directory")
	must.Do(t, os.Symlink(repository, filepath.Join(parent, "sevagent")), "put the clone beside the module")

	var commands, programs int
	for _, block := range regexp.MustCompile("(?ms)^```(sh|go)\n(.*?)^```$").FindAllStringSubmatch(string(page), -1) {
		language, text := block[1], block[2]
		if language == "go" {
			programs++
			must.Do(t, os.WriteFile(filepath.Join(module, "main.go"), []byte(text), 0o644), "write the program")
			continue
		}
		commands++
		cmd := exec.CommandContext(t.Context(), "sh", "-euc", text)
		cmd.Dir = module
		cmd.Env = append(os.Environ(), "GOFLAGS=", "GOPROXY=off", "GOWORK=off", "GOMODCACHE="+filepath.Join(parent, "empty"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("docs/go.md, block %d of commands: %v\n%s%s", commands, err, text, out)
		}
	}
	if fences := strings.Count(string(page), "```"); programs != 1 || fences != 2*(programs+commands) {
		t.Errorf("docs/go.md has %d fences, %d programs and %d blocks of commands: some block was not tried",
			fences, programs, commands)
	}
	must.Get(os.Stat(filepath.Join(module, "orders")))(t, "find the program that go build made")
}

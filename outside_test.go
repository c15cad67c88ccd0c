package sevagent_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sevagent/internal/must"
)

// TestOutside follows docs/go.md: modules of somebody else, beside a clone, build without the network. What a container
// needs, needs no module but this repository's; a program that only verifies is small.
func TestOutside(t *testing.T) {
	page := string(must.Get(os.ReadFile("docs/go.md"))(t, "read the page"))
	repository := must.Get(filepath.Abs("."))(t, "find the repository")
	blocks := regexp.MustCompile("(?ms)^```(sh|go)\n(.*?)^```$")
	tried := 0
	for _, module := range []struct {
		title, name string
		cache       string // empty: the one with the modules that this repository needs
		size        int64  // in bytes, at most
	}{
		{"In a container", "orders", filepath.Join(t.TempDir(), "empty"), 0},
		{"As a relying party", "gate", "", 9e6},
	} {
		t.Run(module.name, func(t *testing.T) {
			_, section, ok := strings.Cut(page, "\n## "+module.title+"\n")
			if !ok {
				t.Fatalf("docs/go.md has no section %q", module.title)
			}
			section, _, _ = strings.Cut(section, "\n## ")
			parent := t.TempDir()
			dir := filepath.Join(parent, module.name)
			must.Do(t, os.Mkdir(dir, 0o755), "make the module's directory")
			must.Do(t, os.Symlink(repository, filepath.Join(parent, "sevagent")), "put the clone beside the module")
			environment := append(os.Environ(), "GOFLAGS=", "GOPROXY=off", "GOSUMDB=off", "GOWORK=off")
			if module.cache != "" {
				environment = append(environment, "GOMODCACHE="+module.cache)
			}
			for _, block := range blocks.FindAllStringSubmatch(section, -1) {
				tried++
				if block[1] == "go" {
					must.Do(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte(block[2]), 0o644),
						"write the program")
					continue
				}
				cmd := exec.CommandContext(t.Context(), "sh", "-euc", block[2])
				cmd.Dir, cmd.Env = dir, environment
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("docs/go.md, commands: %v\n%s%s", err, block[2], out)
				}
			}
			program := must.Get(os.Stat(filepath.Join(dir, module.name)))(t, "find the program that go build made")
			if module.size > 0 && program.Size() > module.size {
				t.Errorf("the program has %d bytes, want at most %d", program.Size(), module.size)
			}
		})
	}
	if fences := strings.Count(page, "```"); fences != 2*tried || tried == 0 {
		t.Errorf("docs/go.md has %d fences, of which %d blocks were tried: some block was not", fences, tried)
	}
}

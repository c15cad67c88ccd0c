package lab

import (
	"path/filepath"
	"strings"
	"testing"
)

// Recipes returns the code in docs/reading-certificates.md by the name in each block's info string: ```sh recipe=curl.
// Blocks that are no recipe are text, or say that they are not run.
func Recipes(t testing.TB) map[string]string {
	t.Helper()
	text := Read(t, filepath.Join(Repository(), "docs/reading-certificates.md"))
	found := make(map[string]string)
	var name string
	var code strings.Builder
	inside := false
	for line := range strings.Lines(text) {
		info, fence := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "```")
		switch {
		case fence && !inside:
			inside = true
			language, rest, _ := strings.Cut(info, " ")
			var ok bool
			if name, ok = strings.CutPrefix(rest, "recipe="); !ok && language != "text" && rest != "not-run" {
				t.Errorf("a block begins with ```%s: give it recipe=NAME and a test, or say not-run", info)
			}
			if !ok {
				name = ""
			}
			code.Reset()
		case fence:
			inside = false
			if _, twice := found[name]; twice {
				t.Errorf("there are two recipes %s", name)
			}
			if name != "" {
				found[name] = code.String()
			}
		case inside:
			code.WriteString(line)
		}
	}
	return found
}

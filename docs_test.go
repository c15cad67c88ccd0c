package sevagent_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sevagent/internal/must"
)

// TestDocumentLinks: links between the documents lead to a file and, with an anchor, to a heading in it.
func TestDocumentLinks(t *testing.T) {
	pages := slices.Concat(must.Get(filepath.Glob("*.md"))(t, "list the pages"),
		must.Get(filepath.Glob("docs/*.md"))(t, "list docs"),
		must.Get(filepath.Glob("docs/*/*.md"))(t, "list the folders of docs"))
	heading := regexp.MustCompile(`(?m)^#+ (.*)$`)
	punctuation := regexp.MustCompile("[^a-z0-9 _-]")
	links := 0
	for _, page := range pages {
		text := string(must.Get(os.ReadFile(page))(t, "read a page"))
		for _, m := range regexp.MustCompile(`\]\(([^)]+)\)`).FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			links++
			file, anchor, _ := strings.Cut(m[1], "#")
			target := filepath.Join(filepath.Dir(page), file)
			if file == "" {
				target = page
			}
			content, err := os.ReadFile(target)
			if err != nil {
				t.Errorf("%s links to %s: %v", page, m[1], err)
				continue
			}
			found := anchor == "" || slices.ContainsFunc(heading.FindAllStringSubmatch(string(content), -1),
				func(h []string) bool {
					name := punctuation.ReplaceAllString(strings.ToLower(h[1]), "")
					return strings.ReplaceAll(name, " ", "-") == anchor
				})
			if !found {
				t.Errorf("%s links to %s, and %s has no such heading", page, m[1], target)
			}
		}
	}
	if links < 30 {
		t.Errorf("found %d links in %d pages: this test does not recognize them any more", links, len(pages))
	}
}

// TestArchitecture: docs/architecture.md says of each package what it owns.
func TestArchitecture(t *testing.T) {
	text := string(must.Get(os.ReadFile("docs/architecture.md"))(t, "read the page"))
	_, rows, ok := strings.Cut(text, "\n## Who owns what\n")
	rows, _, _ = strings.Cut(rows, "\n## ")
	if !ok {
		t.Fatal("docs/architecture.md has no section \"Who owns what\"")
	}
	for name := range table {
		if below(name, "examples") || below(name, "internal/sim") {
			continue
		}
		if !strings.Contains(rows, "`"+name+"`") {
			t.Errorf("docs/architecture.md does not say what %s owns", name)
		}
	}
}

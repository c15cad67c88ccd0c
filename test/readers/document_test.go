//go:build node

// Package readers runs the recipes of docs/reading-certificates.md as they stand there. See run.
package readers

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sevagent/internal/must"
	"sevagent/test/lab"
)

// recipes returns the code of the document by the name in each block's info string: ```sh recipe=curl. Blocks that are
// no recipe are text, or say that they are not run.
func recipes(t *testing.T) map[string]string {
	t.Helper()
	text := lab.Read(t, filepath.Join(lab.Repository(), "docs/reading-certificates.md"))
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

// TestDocument looks that no recipe is without a test.
func TestDocument(t *testing.T) {
	tested := []string{"consumer", "task-definition", "watch"}
	for _, r := range readers {
		tested = append(tested, r.name)
	}
	for name := range recipes(t) {
		if !slices.Contains(tested, name) {
			t.Errorf("recipe %s has no test", name)
		}
	}
}

// TestTaskDefinition looks that what the task mounts is what the consumer's recipe publishes, as a directory.
func TestTaskDefinition(t *testing.T) {
	all := recipes(t)
	var task struct {
		Volumes []struct {
			Name string
			Host struct{ SourcePath string }
		}
		ContainerDefinitions []struct {
			MountPoints []struct {
				SourceVolume, ContainerPath string
				ReadOnly                    bool
			}
		}
	}
	must.Do(t, json.Unmarshal([]byte(all["task-definition"]), &task), "decode the task definition")
	if len(task.Volumes) != 1 || len(task.ContainerDefinitions) != 1 ||
		len(task.ContainerDefinitions[0].MountPoints) != 1 {
		t.Fatalf("want one volume in one container: %+v", task)
	}
	volume, container := task.Volumes[0], task.ContainerDefinitions[0]
	mount := container.MountPoints[0]
	if volume.Host.SourcePath != consumerDir || mount.SourceVolume != volume.Name ||
		mount.ContainerPath != lab.Published || !mount.ReadOnly {
		t.Errorf("mounts %+v as %+v, want %s, read-only, at %s", volume, mount, consumerDir, lab.Published)
	}
}

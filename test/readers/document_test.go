//go:build node

// Package readers runs the recipes of docs/reading-certificates.md as they stand there. See run.
package readers

import (
	"encoding/json"
	"slices"
	"testing"

	"sevagent/internal/must"
	"sevagent/test/lab"
)

// TestDocument looks that no recipe is without a test.
func TestDocument(t *testing.T) {
	tested := []string{"consumer", "task-definition", "watch",
		"bare-user", "group", "separate", "credential-bundle"} // these four in test/docker
	for _, r := range readers {
		tested = append(tested, r.name)
	}
	for name := range lab.Recipes(t) {
		if !slices.Contains(tested, name) {
			t.Errorf("recipe %s has no test", name)
		}
	}
}

// TestTaskDefinition looks that what the task mounts is what the consumer's recipe publishes, as a directory.
func TestTaskDefinition(t *testing.T) {
	all := lab.Recipes(t)
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

// Package cgroup finds the container and the ECS task of a process from the names of its cgroups.
//
// It only reads text. Whether to trust it, and whether the process is still the same, is for the caller to check: a
// process that may write to the host's cgroups can give a process any name.
package cgroup

import (
	"bytes"
	"strings"
)

// IsContainerID reports whether s has the form of Docker's container IDs: 64 lower-case hexadecimal digits.
func IsContainerID(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// Parse returns the container, and the ECS task if it is named, of a process from its /proc/<pid>/cgroup: one line
// "hierarchy:controllers:path" for each hierarchy of cgroup v1, and "0::path" for cgroup v2. It returns neither if the
// lines name different containers.
func Parse(text []byte) (taskID, containerID string) {
	for line := range bytes.Lines(text) {
		parts := strings.SplitN(strings.TrimSuffix(string(line), "\n"), ":", 3)
		if len(parts) != 3 {
			continue
		}
		t, id := parsePath(parts[2])
		if id == "" {
			continue
		}
		if containerID != "" && (id != containerID || t != taskID) {
			return "", ""
		}
		taskID, containerID = t, id
	}
	return taskID, containerID
}

// parsePath knows the cgroups that dockerd makes, at the root or in slices:
//
//	/docker/<id>                                                     cgroupfs driver
//	/ecs/<task>/<id>                                                 the same, in a task's cgroup
//	/system.slice/docker-<id>.scope                                  systemd driver
//	/ecstasks.slice/ecstasks-<task>.slice/docker-<id>.scope          the same, in a task's cgroup
//
// The ECS agent makes /ecs/<task> with cgroup v1 and ecstasks-<task>.slice with v2 (aws/amazon-ecs-agent:
// agent/api/task/task_linux.go, BuildCgroupRoot). Each may begin with "/..", once or more: the kernel shows paths
// relative to the root of our own cgroup namespace (cgroup_namespaces(7)).
//
// The outermost name counts, and only slices may precede it, because dockerd does not choose the names further in: a
// container with a writable cgroup file system makes cgroups of any name below its own, and so does any user below
// user@<uid>.service.
func parsePath(path string) (taskID, container string) {
	rest, ok := strings.CutPrefix(path, "/")
	if !ok {
		return "", ""
	}
	for strings.HasPrefix(rest, "../") {
		rest = rest[len("../"):]
	}
	names := strings.Split(rest, "/")
	for len(names) > 1 && strings.HasSuffix(names[0], ".slice") {
		// systemd nests slices at dashes, so that a task ID with dashes takes several; the last has all of it.
		taskID = ""
		if id, ok := strings.CutPrefix(names[0], "ecstasks-"); ok {
			taskID = strings.TrimSuffix(id, ".slice")
		}
		names = names[1:]
	}
	switch {
	case strings.HasPrefix(names[0], "docker-") && strings.HasSuffix(names[0], ".scope"):
		container = strings.TrimSuffix(strings.TrimPrefix(names[0], "docker-"), ".scope")
	case names[0] == "docker" && len(names) > 1:
		container = names[1]
	case names[0] == "ecs" && len(names) > 2:
		taskID, container = names[1], names[2]
	}
	if !IsContainerID(container) {
		return "", ""
	}
	return taskID, container
}

// Package cgroup decides from the names of a process's cgroups whether the process is in a container, and in which, or
// in a unit or session of the host's systemd.
//
// It only reads text. Whether to trust it, and whether the process is still the same, is for the caller to check: a
// process that may write to the host's cgroups can give a process any name, and the kernel shows the root's cgroup for
// a process that has ended.
package cgroup

import (
	"bytes"
	"slices"
	"strings"

	"sevagent/internal/pattern"
)

// Kind is where a process is.
type Kind int

// The kinds. A name that is not recognised proves nothing, neither that a process is in a container nor that it is not.
const (
	Unknown   Kind = iota
	Host           // in a unit or session of the host's systemd, or in the reader's own cgroup
	Container      // in a container of Docker's
)

// Place is where a process is. Only a Container has a ContainerID, and only one that the ECS agent started a TaskID.
type Place struct {
	Kind        Kind
	TaskID      string
	ContainerID string
}

// isContainerID reports whether s has the form of Docker's container IDs: 64 lower-case hexadecimal digits.
func isContainerID(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// Of returns the place of a process from its /proc/<pid>/cgroup: one line "hierarchy:controllers:path" for each
// hierarchy of cgroup v1, and "0::path" for cgroup v2. own is the reader's own such file, or empty.
//
// Every line has to agree:
//   - Host: all lines are the reader's own. One who may put a process beside the reader may as well replace it. On a
//     node that is sevagent.service; elsewhere, without systemd, often the root.
//   - Host: systemd's hierarchy names a unit or session, and each other line the same or a group around it: systemd
//     makes groups in a controller's hierarchy only where they are needed.
//   - Container: one line or more name it, and each other line a group in which Docker leaves its containers where it
//     does not manage the hierarchy: the root, a unit (dockerd's), or the reader's own.
func Of(text, own []byte) Place {
	groups, ok := parse(text)
	if !ok {
		return Place{}
	}
	ours, ok := parse(own)
	if ok && slices.Equal(groups, ours) {
		return Place{Kind: Host}
	}
	for _, g := range groups {
		if p := name(g.path); p.Kind == Container {
			return inContainer(p, groups, ours)
		}
	}
	return inUnit(systemd(groups), groups)
}

func inContainer(container Place, groups, ours []group) Place {
	for _, g := range groups {
		p := name(g.path)
		if p != container && p.Kind != Host && g.path != "/" && !slices.Contains(ours, g) {
			return Place{}
		}
	}
	return container
}

func inUnit(unit string, groups []group) Place {
	for _, g := range groups {
		if g.path != "/" && g.path != unit && !strings.HasPrefix(unit, g.path+"/") {
			return Place{}
		}
	}
	return name(unit)
}

// group is a line of /proc/<pid>/cgroup.
type group struct{ hierarchy, controllers, path string }

// parse splits the lines. It reports false if one of them is not a line that the kernel writes, or of a group that is
// deleted, or leads outside of our own cgroup namespace: such paths begin with "/.." and are relative to a root that is
// not the host's (cgroup_namespaces(7)), so that the names further in mean nothing.
func parse(text []byte) (groups []group, ok bool) {
	for line := range bytes.Lines(text) {
		parts := strings.SplitN(strings.TrimSuffix(string(line), "\n"), ":", 3)
		if len(parts) != 3 {
			return nil, false
		}
		g := group{parts[0], parts[1], parts[2]}
		if g.path != "/" {
			rest, absolute := strings.CutPrefix(g.path, "/")
			for part := range strings.SplitSeq(rest, "/") {
				absolute = absolute && part != "" && part != "." && part != ".."
			}
			if !absolute || strings.HasSuffix(g.path, " (deleted)") {
				return nil, false
			}
		}
		groups = append(groups, g)
	}
	return groups, len(groups) > 0
}

// systemd returns the path in the hierarchy that systemd names units in: its own with cgroup v1, which is empty where
// it is not that of the systemd that runs, else that of v2.
func systemd(groups []group) (path string) {
	for _, g := range groups {
		if g.controllers == "name=systemd" && g.path != "/" {
			return g.path
		}
		if g.hierarchy == "0" {
			path = g.path
		}
	}
	return path
}

// isTaskID reports whether s has the form of an ECS task's ID: hexadecimal digits, 32 of them, or a UUID before 2018.
func isTaskID(s string) bool {
	return len(s) >= 32 && len(s) <= 64 && strings.Trim(s, "0123456789abcdef-") == ""
}

// userSlice and session match the names that logind gives (systemd: src/login/logind-user.c, logind-session-dbus.c). A
// session that is not audited has a c before its number.
var (
	userSlice = pattern.New(`^user-[0-9]+$`)
	session   = pattern.New(`^session-c?[0-9]+\.scope$`)
)

// name knows the groups that Docker makes for a container, alone or in a task of ECS's:
//
//	/docker/<id>                                                     cgroupfs driver
//	/ecs/<task>/<id>                                                 the same, in a task
//	/system.slice/docker-<id>.scope                                  systemd driver
//	/ecstasks.slice/ecstasks-<task>.slice/docker-<id>.scope          the same, in a task
//
// The ECS agent has /ecs/<task> as the parent with cgroup v1, and ecstasks-<task>.slice with v2 (aws/amazon-ecs-agent:
// agent/api/task/task_linux.go, BuildCgroupRoot); dockerd's own parent is /docker or system.slice (moby/moby:
// daemon/daemon_unix.go, getCgroupParent and the spec's cgroupsPath). The outermost names alone count: a container
// with a writable cgroup file system makes groups of any name below its own. Any other parent is an operator's, and
// what is in it may be of another runtime.
//
// And it knows the groups that systemd makes and keeps for itself, in which processes stay that are started there:
//
//	/init.scope                                                      systemd itself
//	/system.slice/<name>.service                                     a unit: sshd, the SSM agent and its commands
//	/system.slice/system-<template>.slice/<template>@<name>.service  an instance of a template
//	/user.slice/user-<uid>.slice/session-<number>.scope              a login, by logind
//
// No container and no unprivileged user can choose these. A group below a unit is the service's own, and so may be a
// container's. Below user@<uid>.service all names are the user's, rootless containers among them. Scopes are made on
// request by a manager of processes: Docker, Podman, containerd. Other slices, machine.slice among them, are where
// operators and machine managers put what they like.
func name(path string) Place {
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	n := 0
	for n < len(parts) && strings.HasSuffix(parts[n], ".slice") {
		parts[n] = strings.TrimSuffix(parts[n], ".slice")
		n++
	}
	in, rest := parts[:n], parts[n:]
	if len(rest) == 0 || !nested(in) {
		return Place{}
	}
	first, last := rest[0], len(rest) == 1
	if len(in) == 0 {
		switch {
		case first == "docker" && len(rest) > 1:
			return container("", rest[1])
		case first == "ecs" && len(rest) > 2 && isTaskID(rest[1]):
			return container(rest[1], rest[2])
		case first == "init.scope" && last:
			return Place{Kind: Host}
		}
		return Place{}
	}
	switch in[0] {
	case "ecstasks":
		task, _ := strings.CutPrefix(in[n-1], "ecstasks-")
		if id, ok := scope(first); ok && isTaskID(task) {
			return container(task, id)
		}
	case "system":
		if id, ok := scope(first); ok && n == 1 {
			return container("", id)
		}
		if service, ok := strings.CutSuffix(first, ".service"); ok && service != "" && last {
			return Place{Kind: Host}
		}
	case "user":
		if n == 2 && userSlice.MatchString(in[1]) && session.MatchString(first) && last {
			return Place{Kind: Host}
		}
	}
	return Place{}
}

func container(task, id string) Place {
	if !isContainerID(id) {
		return Place{}
	}
	return Place{Container, task, id}
}

func scope(name string) (id string, ok bool) {
	id, prefix := strings.CutPrefix(name, "docker-")
	id, suffix := strings.CutSuffix(id, ".scope")
	return id, prefix && suffix
}

// nested reports whether slices, without their suffix, lie in each other as systemd nests them, one level for each dash
// (systemd.slice(5)): a, a-b, a-b-c.
func nested(slices []string) bool {
	for i, s := range slices {
		if i > 0 {
			parent := slices[i-1] + "-"
			if !strings.HasPrefix(s, parent) {
				return false
			}
			s = strings.TrimPrefix(s, parent)
		}
		if s == "" || strings.Contains(s, "-") {
			return false
		}
	}
	return true
}

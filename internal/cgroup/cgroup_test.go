package cgroup

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

const (
	idA     = "4f3b1c0d9e8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c"
	idB     = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00"
	taskA   = "e95a40efbde84cbc8600660a109ec194"
	taskOld = "c09f0188-7f87-4b0f-bfc3-16296622b6fe"
)

// v1 is a /proc/<pid>/cgroup of cgroup v1 with every hierarchy at path.
func v1(path string) string {
	var b strings.Builder
	for i, controllers := range []string{"name=systemd", "pids", "cpu,cpuacct", "memory", "net_cls,net_prio", "devices"} {
		fmt.Fprintf(&b, "%d:%s:%s\n", 11-i, controllers, path)
	}
	return b.String()
}

// texts are in the forms that dockerd 20.10 to 28 and the ECS agent 1.60 and later produce.
var texts = []struct{ name, text, task, container string }{
	{"v1 ECS on EC2, cgroupfs driver", v1("/ecs/" + taskA + "/" + idA), taskA, idA},
	{"v1 ECS task ID with dashes", v1("/ecs/" + taskOld + "/" + idA), taskOld, idA},
	{"v1 docker, cgroupfs driver", v1("/docker/" + idA), "", idA},
	{"v1 docker, systemd driver", v1("/system.slice/docker-" + idA + ".scope"), "", idA},
	{"v1 hybrid, v2 without controllers", v1("/docker/"+idA) + "0::/system.slice/containerd.service\n", "", idA},
	{"v1 a hierarchy docker does not know", "13:misc:/\n" + v1("/docker/"+idA), "", idA},
	{"v2 ECS on EC2, systemd driver", "0::/ecstasks.slice/ecstasks-" + taskA + ".slice/docker-" + idA + ".scope\n", taskA, idA},
	{"v2 ECS task ID with dashes", "0::/ecstasks.slice/ecstasks-c09f0188.slice/ecstasks-c09f0188-7f87.slice/ecstasks-" + taskOld + ".slice/docker-" + idA + ".scope\n", taskOld, idA},
	{"v2 ECS, task slice at the root", "0::/ecstasks-" + taskA + ".slice/docker-" + idA + ".scope\n", taskA, idA},
	{"v2 ECS, cgroupfs driver", "0::/ecs/" + taskA + "/" + idA + "\n", taskA, idA},
	{"v2 docker, systemd driver", "0::/system.slice/docker-" + idA + ".scope\n", "", idA},
	{"v2 docker, cgroupfs driver", "0::/docker/" + idA + "\n", "", idA},
	{"v2 other cgroup parent", "0::/batch.slice/batch-night.slice/docker-" + idA + ".scope\n", "", idA},
	{"v2 no final newline", "0::/docker/" + idA, "", idA},
	{"v2 systemd inside a container", "0::/docker/" + idA + "/init.scope\n", "", idA},
	{"agent in a cgroup namespace", "0::/../../ecstasks.slice/ecstasks-" + taskA + ".slice/docker-" + idA + ".scope\n", taskA, idA},
	{"agent in a namespace below the same slice", "0::/../docker-" + idA + ".scope\n", "", idA},
	{"agent in a namespace, cgroupfs driver", "0::/../../docker/" + idA + "\n", "", idA},

	{"not a container: service", "0::/system.slice/sshd.service\n", "", ""},
	{"not a container: session", "0::/user.slice/user-1000.slice/session-3.scope\n", "", ""},
	{"not a container: root", "0::/\n", "", ""},
	{"not a container: v1", v1("/system.slice/sshd.service"), "", ""},
	{"dockerd itself", "0::/system.slice/docker.service\n", "", ""},
	{"empty", "", "", ""},
	{"Fargate, where there is no node", v1("/ecs/" + taskA + "/" + taskA + "-1234567890"), "", ""},

	{"hostile: container names a cgroup of its own", "0::/docker/" + idA + "/docker/" + idB + "\n", "", idA},
	{"hostile: scope in a scope", "0::/system.slice/docker-" + idA + ".scope/docker-" + idB + ".scope\n", "", idA},
	{"hostile: delegated to a user", "0::/user.slice/user-1000.slice/user@1000.service/docker-" + idB + ".scope\n", "", ""},
	{"hostile: delegated, in slices of the user's", "0::/user.slice/user-1000.slice/user@1000.service/ecstasks.slice/ecstasks-" + taskA + ".slice/docker-" + idB + ".scope\n", "", ""},
	{"hostile: hierarchies that disagree", v1("/docker/"+idA) + "1:cpuset:/docker/" + idB + "\n", "", ""},
	{"hostile: tasks that disagree", "2:cpu:/ecs/a/" + idA + "\n1:memory:/ecs/b/" + idA + "\n", "", ""},
	{"hostile: upper case", "0::/docker/" + strings.ToUpper(idA) + "\n", "", ""},
	{"hostile: too long", "0::/docker/" + idA + "0\n", "", ""},
	{"hostile: too short", "0::/docker/" + idA[1:] + "\n", "", ""},
	{"hostile: newline in the name", "0::/docker/" + idA[:32] + "\n" + idA[32:] + "\n", "", ""},
	{"hostile: NUL", "0::/docker/" + idA + "\x00\n", "", ""},
	{"hostile: dots inside", "0::/x/../docker/" + idA + "\n", "", ""},
	{"scope that is deleted", "0::/system.slice/docker-" + idA + ".scope (deleted)\n", "", ""},
	{"no scope", "0::/system.slice/docker-" + idA + "\n", "", ""},
	{"relative", "0::docker/" + idA + "\n", "", ""},
	{"two fields", "0:/docker/" + idA + "\n", "", ""},
}

func TestParse(t *testing.T) {
	for _, c := range texts {
		t.Run(c.name, func(t *testing.T) {
			if task, container := Parse([]byte(c.text)); task != c.task || container != c.container {
				t.Errorf("Parse = %q, %q, want %q, %q of\n%s", task, container, c.task, c.container, c.text)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, c := range texts {
		f.Add([]byte(c.text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		task, container := Parse(text)
		if container == "" {
			if task != "" {
				t.Errorf("task %q without a container", task)
			}
			return
		}
		if len(container) != 64 || strings.Trim(container, "0123456789abcdef") != "" {
			t.Errorf("container is %q, want 64 lower-case hex digits", container)
		}
		if !bytes.Contains(text, []byte(container)) || !bytes.Contains(text, []byte(task)) {
			t.Errorf("%q and %q are not in the input", task, container)
		}
	})
}

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
	for i, controllers := range strings.Fields("name=systemd pids cpu,cpuacct memory net_cls,net_prio devices") {
		fmt.Fprintf(&b, "%d:%s:%s\n", 11-i, controllers, path)
	}
	return b.String()
}

// own is the reader's.
const own = "0::/system.slice/sevagent.service\n"

// texts are in the forms that dockerd 20.10 to 28, the ECS agent 1.60 and later, and systemd 252 to 257 produce.
var texts = []struct {
	name, text string
	want       Place
}{
	{"v1 ECS on EC2, cgroupfs driver", v1("/ecs/" + taskA + "/" + idA), Place{Container, taskA, idA}},
	{"v1 ECS task ID with dashes", v1("/ecs/" + taskOld + "/" + idA), Place{Container, taskOld, idA}},
	{"v1 docker, cgroupfs driver", v1("/docker/" + idA), Place{Container, "", idA}},
	{"v1 docker, systemd driver", v1("/system.slice/docker-" + idA + ".scope"), Place{Container, "", idA}},
	{"v1 hybrid, v2 without controllers", v1("/docker/"+idA) + "0::/system.slice/containerd.service\n",
		Place{Container, "", idA}},
	{"v1 a hierarchy docker does not know", "13:misc:/\n" + v1("/docker/"+idA), Place{Container, "", idA}},
	{"v2 ECS on EC2, systemd driver", "0::/ecstasks.slice/ecstasks-" + taskA + ".slice/docker-" + idA + ".scope\n",
		Place{Container, taskA, idA}},
	{"v2 ECS task ID with dashes",
		"0::/ecstasks.slice/ecstasks-c09f0188.slice/ecstasks-c09f0188-7f87.slice/ecstasks-c09f0188-7f87-4b0f.slice/" +
			"ecstasks-c09f0188-7f87-4b0f-bfc3.slice/ecstasks-" + taskOld + ".slice/docker-" + idA + ".scope\n",
		Place{Container, taskOld, idA}},
	{"v2 ECS, cgroupfs driver", "0::/ecs/" + taskA + "/" + idA + "\n", Place{Container, taskA, idA}},
	{"v2 docker, systemd driver", "0::/system.slice/docker-" + idA + ".scope\n", Place{Container, "", idA}},
	{"v2 docker, cgroupfs driver", "0::/docker/" + idA + "\n", Place{Container, "", idA}},
	{"v2 no final newline", "0::/docker/" + idA, Place{Container, "", idA}},
	{"v2 systemd inside a container", "0::/docker/" + idA + "/init.scope\n", Place{Container, "", idA}},

	{"service", "0::/system.slice/sshd.service\n", Place{Kind: Host}},
	{"the SSM agent, and what it runs", "0::/system.slice/amazon-ssm-agent.service\n", Place{Kind: Host}},
	{"the SSM agent as a snap", "0::/system.slice/snap.amazon-ssm-agent.amazon-ssm-agent.service\n", Place{Kind: Host}},
	{"instance of a template", "0::/system.slice/system-getty.slice/getty@tty1.service\n", Place{Kind: Host}},
	{"instance of a template with a dash",
		`0::/system.slice/system-serial\x2dgetty.slice/serial-getty@ttyS0.service`, Place{Kind: Host}},
	{"transient unit", "0::/system.slice/run-u42.service\n", Place{Kind: Host}},
	{"dockerd itself", "0::/system.slice/docker.service\n", Place{Kind: Host}},
	{"session", "0::/user.slice/user-1000.slice/session-3.scope\n", Place{Kind: Host}},
	{"session without audit", "0::/user.slice/user-0.slice/session-c1.scope\n", Place{Kind: Host}},
	{"systemd itself", "0::/init.scope\n", Place{Kind: Host}},
	{"v1 service", v1("/system.slice/sshd.service"), Place{Kind: Host}},
	{"v1 service, other hierarchies coarser",
		"5:cpu,cpuacct:/\n4:memory:/system.slice\n3:pids:/system.slice/sshd.service\n" +
			"1:name=systemd:/system.slice/sshd.service\n0::/system.slice/sshd.service\n", Place{Kind: Host}},
	{"v1 session, other hierarchies coarser",
		"5:cpu:/user.slice\n4:pids:/user.slice/user-1000.slice/session-3.scope\n" +
			"1:name=systemd:/user.slice/user-1000.slice/session-3.scope\n", Place{Kind: Host}},
	{"v2 service, in a machine of a host with v1", v1("/") + "0::/system.slice/sshd.service\n", Place{Kind: Host}},
	{"v1 and v2 name different services", v1("/system.slice/a.service") + "0::/system.slice/b.service\n", Place{}},
	{"beside the reader", own, Place{Kind: Host}},

	{"root", "0::/\n", Place{}},
	{"v1 root", v1("/"), Place{}},
	{"empty", "", Place{}},
	{"Fargate, where there is no node", v1("/ecs/" + taskA + "/" + taskA + "-1234567890"), Place{}},
	{"v1 controllers alone name a service", "2:cpu:/system.slice/sshd.service\n1:name=systemd:/\n", Place{}},
	{"below a service", "0::/system.slice/podman.service/libpod-payload\n", Place{}},
	{"below the reader", "0::/system.slice/sevagent.service/x\n", Place{}},
	{"scope of another runtime", "0::/system.slice/cri-containerd-" + idA + ".scope\n", Place{}},
	{"rootful podman", "0::/machine.slice/libpod-" + idA + ".scope\n", Place{}},
	{"machine", `0::/machine.slice/systemd-nspawn@web.service`, Place{}},
	{"Kubernetes", "0::/kubepods.slice/kubepods-pod1.slice/docker-" + idA + ".scope\n", Place{}},
	{"slice without a unit", "0::/system.slice\n", Place{}},
	{"user manager", "0::/user.slice/user-1000.slice/user@1000.service/init.scope\n", Place{}},
	{"user's service", "0::/user.slice/user-1000.slice/user@1000.service/app.slice/x.service\n", Place{}},
	{"user's service, named like the system's",
		"0::/user.slice/user-1000.slice/user@1000.service/system.slice/sshd.service\n", Place{}},
	{"below a session", "0::/user.slice/user-1000.slice/session-3.scope/x\n", Place{}},
	{"session of nobody", "0::/user.slice/session-3.scope\n", Place{}},
	{"session that logind does not name", "0::/user.slice/user-1000.slice/session-x.scope\n", Place{}},
	{"service in an operator's slice", "0::/batch.slice/batch-night.slice/x.service\n", Place{}},
	{"slices that systemd does not nest", "0::/system.slice/foo.slice/x.service\n", Place{}},
	{"service without a name", "0::/system.slice/.service\n", Place{}},

	{"foreign: other cgroup parent", "0::/batch.slice/batch-night.slice/docker-" + idA + ".scope\n", Place{}},
	{"foreign: directly under a user's slice", "0::/user.slice/user-1000.slice/docker-" + idA + ".scope\n", Place{}},
	{"foreign: in a user's session", "0::/user.slice/user-1000.slice/session-3.scope/docker/" + idA + "\n", Place{}},
	{"foreign: in machine.slice", "0::/machine.slice/docker-" + idA + ".scope\n", Place{}},
	{"foreign: a task's slice elsewhere",
		"0::/x.slice/ecstasks-" + taskA + ".slice/docker-" + idA + ".scope\n", Place{}},
	{"foreign: a task's slice at the root", "0::/ecstasks-" + taskA + ".slice/docker-" + idA + ".scope\n", Place{}},
	{"foreign: in the tasks' slice", "0::/ecstasks.slice/docker-" + idA + ".scope\n", Place{}},
	{"foreign: a scope in an instance's slice", "0::/system.slice/system-x.slice/docker-" + idA + ".scope\n", Place{}},
	{"foreign: a scope at the root", "0::/docker-" + idA + ".scope\n", Place{}},
	{"foreign: nested in a service", "0::/system.slice/docker.service/docker/" + idA + "\n", Place{}},
	{"foreign: nested in another's", "0::/lxc.payload.x/docker/" + idA + "\n", Place{}},
	{"foreign: parent of a task that is none", "0::/ecs/x/" + idA + "\n", Place{}},
	{"namespace: above ours", "0::/../docker/" + idA + "\n", Place{}},
	{"namespace: far above ours", "0::/../../ecstasks.slice/ecstasks-" +
		taskA + ".slice/docker-" + idA + ".scope\n", Place{}},
	{"namespace: beside ours", "0::/../docker-" + idA + ".scope\n", Place{}},
	{"namespace: a service above ours", "0::/../system.slice/sshd.service\n", Place{}},
	{"namespace: above ours", "0::/..\n", Place{}},

	{"hostile: container names a cgroup of its own", "0::/docker/" + idA + "/docker/" + idB + "\n",
		Place{Container, "", idA}},
	{"hostile: container names a task of its own",
		"0::/ecs/" + taskA + "/" + idA + "/ecs/" + taskOld + "/" + idB + "\n", Place{Container, taskA, idA}},
	{"hostile: scope in a scope", "0::/system.slice/docker-" + idA + ".scope/docker-" + idB + ".scope\n",
		Place{Container, "", idA}},
	{"hostile: container makes a service", "0::/docker/" + idA + "/system.slice/sshd.service\n",
		Place{Container, "", idA}},
	{"hostile: delegated to a user",
		"0::/user.slice/user-1000.slice/user@1000.service/docker-" + idB + ".scope\n", Place{}},
	{"hostile: delegated, in slices of the user's",
		"0::/user.slice/user-1000.slice/user@1000.service/ecstasks.slice/ecstasks-" +
			taskA + ".slice/docker-" + idB + ".scope\n", Place{}},
	{"hostile: hierarchies that disagree", v1("/docker/"+idA) + "1:cpuset:/docker/" + idB + "\n", Place{}},
	{"hostile: tasks that disagree",
		"2:cpu:/ecs/" + taskA + "/" + idA + "\n1:memory:/ecs/" + taskOld + "/" + idA + "\n", Place{}},
	{"hostile: task in one hierarchy alone",
		"2:cpu:/ecs/" + taskA + "/" + idA + "\n1:memory:/docker/" + idA + "\n", Place{}},
	{"hostile: foreign in one hierarchy", v1("/docker/"+idA) + "1:cpuset:/x/" + idB + "\n", Place{}},
	{"hostile: service in systemd's hierarchy, foreign in another",
		"2:cpu:/x\n1:name=systemd:/system.slice/sshd.service\n", Place{}},
	{"hostile: service in systemd's hierarchy, another in another",
		"2:cpu:/system.slice/a.service\n1:name=systemd:/system.slice/b.service\n", Place{}},
	{"hostile: upper case", "0::/docker/" + strings.ToUpper(idA) + "\n", Place{}},
	{"hostile: too long", "0::/docker/" + idA + "0\n", Place{}},
	{"hostile: too short", "0::/docker/" + idA[1:] + "\n", Place{}},
	{"hostile: newline in the name", "0::/docker/" + idA[:32] + "\n" + idA[32:] + "\n", Place{}},
	{"hostile: NUL", "0::/docker/" + idA + "\x00\n", Place{}},
	{"hostile: dots inside", "0::/x/../docker/" + idA + "\n", Place{}},
	{"hostile: dots further in", "0::/docker/" + idA + "/../x\n", Place{}},
	{"hostile: dots around a service", "0::/system.slice/x/../sshd.service\n", Place{}},
	{"hostile: empty name", "0::/system.slice//sshd.service\n", Place{}},
	{"scope that is deleted", "0::/system.slice/docker-" + idA + ".scope (deleted)\n", Place{}},
	{"group that is deleted in a container", "0::/docker/" + idA + "/x (deleted)\n", Place{}},
	{"service that is deleted", "0::/system.slice/sshd.service (deleted)\n", Place{}},
	{"no scope", "0::/system.slice/docker-" + idA + "\n", Place{}},
	{"relative", "0::docker/" + idA + "\n", Place{}},
	{"two fields", "0:/docker/" + idA + "\n", Place{}},
	{"a line that is none", "0::/docker/" + idA + "\nx\n", Place{}},
}

func TestOf(t *testing.T) {
	for _, c := range texts {
		t.Run(c.name, func(t *testing.T) {
			if got := Of([]byte(c.text), []byte(own)); got != c.want {
				t.Errorf("Of = %+v, want %+v of\n%s", got, c.want, c.text)
			}
		})
	}
}

// Where the agent runs outside of systemd, the processes beside it are on the host. None is that differs in a
// hierarchy.
func TestBesideTheReader(t *testing.T) {
	const memory = "memory:/lab/1\n"
	for _, c := range []struct {
		name, text, own string
		want            Place
	}{
		{"v2 root", "0::/\n", "0::/\n", Place{Kind: Host}},
		{"v1 root", v1("/"), v1("/"), Place{Kind: Host}},
		{"v1, of a group in one hierarchy", "2:" + memory + "1:cpu:/\n",
			"2:" + memory + "1:cpu:/\n", Place{Kind: Host}},
		{"v1, of another group in one hierarchy", "2:memory:/lab/2\n1:cpu:/\n", "2:" + memory + "1:cpu:/\n", Place{}},
		{"v1, a foreign group in one hierarchy", "2:" + memory + "1:cpu:/x.slice/docker-" + idA + ".scope\n",
			"2:" + memory + "1:cpu:/\n", Place{}},
		{"v1, a container in one hierarchy", "2:" + memory + "1:cpu:/docker/" + idA + "\n",
			"2:" + memory + "1:cpu:/\n", Place{Container, "", idA}},
		{"in the agent's own container", "0::/docker/" + idB + "\n", "0::/docker/" + idB + "\n", Place{Kind: Host}},
		{"in another container", "0::/docker/" + idA + "\n", "0::/docker/" + idB + "\n", Place{Container, "", idA}},
		{"above the agent's namespace", "0::/../docker/" + idA + "\n", "0::/\n", Place{}},
		{"both above", "0::/..\n", "0::/..\n", Place{}},
		{"the agent's own is not known", "0::/\n", "", Place{}},
		{"neither is known", "", "", Place{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Of([]byte(c.text), []byte(c.own)); got != c.want {
				t.Errorf("Of = %+v, want %+v of\n%sbeside\n%s", got, c.want, c.text, c.own)
			}
		})
	}
}

func FuzzOf(f *testing.F) {
	for _, c := range texts {
		f.Add([]byte(c.text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		p := Of(text, []byte(own))
		if p.Kind != Container {
			if p.TaskID != "" || p.ContainerID != "" {
				t.Errorf("%+v has a task or a container, and is in none", p)
			}
			if p.Kind == Host && bytes.Contains(text, []byte("/../")) {
				t.Errorf("%q leads out of a namespace, and is on the host", text)
			}
			return
		}
		if len(p.ContainerID) != 64 || strings.Trim(p.ContainerID, "0123456789abcdef") != "" {
			t.Errorf("container is %q, want 64 lower-case hex digits", p.ContainerID)
		}
		if !bytes.Contains(text, []byte(p.ContainerID)) || !bytes.Contains(text, []byte(p.TaskID)) {
			t.Errorf("%+v is not in the input", p)
		}
	})
}

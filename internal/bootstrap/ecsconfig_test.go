package bootstrap

import (
	"os"
	"syscall"
	"testing"

	"sevagent/internal/must"
)

// TestNotProvedAnyMore: the attributes say what was proved now, and leave room for those of others.
func TestNotProvedAnyMore(t *testing.T) {
	l := newLab(t)
	l.write("etc/ecs/ecs.config", "ECS_INSTANCE_ATTRIBUTES={\"team\":\"blue\"}\n")
	l.succeeds()
	l.holds("etc/ecs/ecs.config",
		`{"sevagent.attested":"true","sevagent.measurement":"ab","sevagent.tcb":"4.0","team":"blue"}`)

	l.proved, l.options.Mode = "{}", "off"
	l.succeeds()
	l.holds("etc/ecs/ecs.config", `ECS_INSTANCE_ATTRIBUTES={"sevagent.attested":"false","team":"blue"}`)
	must.Do(t, l.mayJoin(), "may join")

	l.write("etc/ecs/ecs.config",
		`ECS_INSTANCE_ATTRIBUTES={"1":"","2":"","3":"","4":"","5":"","6":"","7":"","8":"","9":""}`)
	l.succeeds()
	l.options.Mode = "enforce"
	l.fails("ecs.config: " + l.options.ECSConfig + ": ECS_INSTANCE_ATTRIBUTES has 9 attributes besides 3 of sevagent")
}

// TestOwnerStays: ecs.config keeps its owner, behind a symbolic link, too.
func TestOwnerStays(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to give a file away")
	}
	l := newLab(t)
	l.write("real/ecs.config", "A=1\n")
	l.write("etc/ecs/other", "")
	must.Do(t, os.Chown(l.path("real/ecs.config"), 1234, 2345), "give the file away")
	must.Do(t, os.Symlink(l.path("real/ecs.config"), l.options.ECSConfig), "make a link to it")
	l.succeeds()
	l.holds("real/ecs.config", "ECS_CLUSTER=prod")
	info := must.Get(os.Lstat(l.path("real/ecs.config")))(t, "look at the file")
	if owner := info.Sys().(*syscall.Stat_t); owner.Uid != 1234 || owner.Gid != 2345 || info.Mode() != 0o755 {
		t.Errorf("the file belongs to %d:%d with mode %v", owner.Uid, owner.Gid, info.Mode())
	}
}

// TestChangedMeanwhile: what was written to ecs.config while the proof took its time is not lost.
func TestChangedMeanwhile(t *testing.T) {
	l := newLab(t)
	l.write("etc/ecs/ecs.config", "A=1\n")
	n := newNode(l.options, l.machine, &l.out)
	must.Do(t, n.planECSConfig(t.Context()), "plan")
	l.write("etc/ecs/ecs.config", "A=2\nECS_AWSVPC_BLOCK_IMDS=false\n")
	must.Do(t, n.writeECSConfig(t.Context()), "write")
	l.holds("etc/ecs/ecs.config", "A=2\nECS_AWSVPC_BLOCK_IMDS=false\n# Set by")
}

// TestNoRegularFile: what is no file is neither read, which could take for ever, nor replaced, which would destroy a
// device.
func TestNoRegularFile(t *testing.T) {
	l := newLab(t)
	l.write("etc/ecs/other", "")
	must.Do(t, os.Symlink(l.options.Socket, l.options.ECSConfig), "make a link to a socket")
	l.fails("ecs.config: " + l.options.Socket + " is not a regular file; remove it")
	must.Do(t, os.Remove(l.options.ECSConfig), "remove the link")
	l.succeeds()
	must.Do(t, os.Remove(l.options.ECSConfig), "remove the file")
	must.Do(t, os.Mkdir(l.options.ECSConfig, 0o755), "make a directory in its place")
	wantError(t, l.mayJoin(), "the ECS agent may not start: "+l.options.ECSConfig+" is not a regular file")
}

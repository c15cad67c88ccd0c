//go:build system

package container

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"sevagent/test/lab"
)

// packager is dpkg or rpm.
type packager struct {
	install, upgrade, downgrade, remove, purge string
	version                                    string
}

var packagers = map[string]packager{
	"deb": {
		install: "dpkg -i /lab/packages/%s/*.deb", upgrade: "dpkg -i /lab/packages/%s/*.deb",
		downgrade: "dpkg -i /lab/packages/%s/*.deb",
		remove:    "dpkg --remove sevagent sevctl", purge: "dpkg --purge sevagent sevctl",
		version: "dpkg-query --show --showformat '${Version}' sevagent",
	},
	"rpm": {
		install:   "rpm --install /lab/packages/%s/*.rpm",
		upgrade:   "rpm --upgrade /lab/packages/%s/*.rpm",
		downgrade: "rpm --upgrade --oldpackage /lab/packages/%s/*.rpm",
		remove:    "rpm --erase sevagent sevctl", version: "rpm --query --queryformat '%{VERSION}-%{RELEASE}' sevagent",
	},
}

var units = []string{"sevagent.service", "sevagent.socket", "sevagent-signal.service", "etc-ecs-mtls.mount"}

// TestPackage takes a package through its life on a node that runs.
func TestPackage(t *testing.T) {
	for _, kind := range slices.Sorted(maps.Keys(packagers)) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			packagers[kind].life(t)
		})
	}
}

func (p packager) life(t *testing.T) {
	m := newMachine(t)
	m.boot()
	m.must("mkdir -p /etc/ecs && echo ECS_CLUSTER=lab >/etc/ecs/ecs.config && systemctl enable --now ecs.service")
	m.must("rpm --initdb") // or it would be the package that brings the database
	empty := m.tree()

	// Installed, it starts and enables nothing, and is whole.
	m.warnings(m.must(fmt.Sprintf(p.install, "old")))
	for _, unit := range units {
		m.expect(unit, "LoadState", "loaded")
		m.expect(unit, "ActiveState", "inactive")
		if enabled := m.show(unit, "UnitFileState"); enabled != "disabled" && enabled != "static" {
			t.Errorf("%s is %s", unit, enabled)
		}
	}
	m.expect("ecs.service", "ActiveState", "active") // as it was
	m.must("sevagent version && sevctl version && /usr/libexec/sevagent/bootstrap version && " +
		"sevagent --help | grep -q status")
	if strings.HasPrefix(p.install, "dpkg") {
		m.must("dpkg --verify sevagent sevctl")
	} else {
		m.must("rpm --verify sevagent sevctl")
	}
	// The operator's own: a conffile edited, a file beside it, a drop-in.
	m.configure("")
	m.must("sevagent check") // by the device itself: no agent runs yet
	m.must("echo '# The operator was here.' >>/etc/sevagent/config.yaml")
	m.must("systemctl enable --now sevagent.service")
	m.must("systemctl restart ecs.service")
	before, pid, ecs := m.standing(), m.pid("sevagent.service"), m.pid("ecs.service")
	config := m.read("/etc/sevagent/config.yaml")

	for _, step := range []struct{ what, command, version string }{
		{"the upgrade", fmt.Sprintf(p.upgrade, "new"), "1.0.1-1"},
		{"the downgrade", fmt.Sprintf(p.downgrade, "old"), "1.0.0-1"},
		{"the same version again", strings.Replace(fmt.Sprintf(p.downgrade, "old"), "--oldpackage",
			"--oldpackage --replacepkgs", 1), "1.0.0-1"},
	} {
		m.warnings(m.must(step.command))
		if got := m.must(p.version); got != step.version {
			t.Errorf("after %s the version is %s, want %s", step.what, got, step.version)
		}
		m.expect("sevagent.service", "ActiveState", "active")
		next := m.pid("sevagent.service")
		if next == pid {
			t.Errorf("%s has not restarted the agent", step.what)
		}
		pid = next
		m.stands(step.what, before)
		m.mustBeReady()
		if got := m.read("/etc/sevagent/config.yaml"); got != config {
			t.Errorf("%s has changed the operator's configuration to %s", step.what, got)
		}
		m.becomes("ecs.service", "ActiveState", "active")
		if got := m.pid("ecs.service"); got != ecs { // as its drop-in's Requires= has it
			t.Logf("%s has restarted the ECS agent", step.what)
			ecs = got
		}
		m.expect("sevagent.service", "UnitFileState", "enabled")
		m.expect("sevagent.service", "NeedDaemonReload", "no")
	}

	// An upgrade starts nothing that was stopped.
	m.must("systemctl stop sevagent.service sevagent.socket")
	m.must(fmt.Sprintf(p.upgrade, "new"))
	m.expect("sevagent.service", "ActiveState", "inactive")
	m.must("systemctl start sevagent.service ecs.service")

	// Removed, nothing of it runs, and no key is left.
	m.warnings(m.must(p.remove))
	for _, unit := range units {
		m.expect(unit, "LoadState", "not-found")
		m.expect(unit, "ActiveState", "inactive")
	}
	m.fails("findmnt " + lab.Published)
	m.fails("ls -A " + lab.Published + "/ | grep .")
	m.fails("ls /etc/systemd/system/*/sevagent* /etc/systemd/system/*/etc-ecs-mtls*")
	if got := m.show("ecs.service", "DropInPaths"); got != "" {
		t.Errorf("ecs.service still has %s", got)
	}
	m.must("systemctl restart ecs.service") // which asks for no proof any more
	m.must("systemctl disable --now ecs.service")
	if out := m.must("cat /etc/sevagent/config.yaml* 2>/dev/null"); !strings.Contains(out, "The operator was here") {
		t.Errorf("the operator's configuration is gone: %s", out)
	}

	if p.purge == "" {
		left := m.left(empty)
		want := []string{"/etc/sevagent", "/etc/sevagent/conf.d", "/etc/sevagent/conf.d/60-lab.yaml",
			"/etc/sevagent/config.yaml.rpmsave"}
		// Directories below /usr/share are those of Fedora's package filesystem, which Debian has not.
		if left = slices.DeleteFunc(left, func(file string) bool {
			fi, err := os.Stat(m.inside(file))
			return under(file, "/var/lib/sevagent") || file == lab.Published || under(file, "/usr/share") &&
				err == nil && fi.IsDir()
		}); !slices.Equal(left, want) {
			t.Errorf("removal has left %v, want %v and the state directory", left, want)
		}
		return
	}
	m.warnings(m.must(p.purge))
	want := []string{"/etc/sevagent", "/etc/sevagent/conf.d", "/etc/sevagent/conf.d/60-lab.yaml"} // the operator's
	if left := m.left(empty); !slices.Equal(left, want) {
		t.Errorf("purge has left %v, want %v", left, want)
	}
}

// warnings shows what a package manager said.
func (m *machine) warnings(out string) {
	m.t.Helper()
	for line := range strings.Lines(out) {
		if line = strings.TrimSpace(line); strings.Contains(line, "sevagent:") || strings.Contains(line, "arning") ||
			strings.Contains(line, "rror") {
			m.t.Log(line)
		}
	}
}

// tree lists the files of the machine, but for those of package managers and logs.
func (m *machine) tree() []string {
	m.t.Helper()
	out := m.must("find / -xdev \\( -path /var/lib/dpkg -o -path /var/lib/rpm -o -path /var/log -o -path /var/cache " +
		"-o -path /lab -o -path /var/lib/systemd -o -path /root \\) -prune -o -print | LC_ALL=C sort")
	return strings.Split(out, "\n")
}

// left are the files that there were not.
func (m *machine) left(before []string) (left []string) {
	m.t.Helper()
	for _, file := range m.tree() {
		if _, had := slices.BinarySearch(before, file); !had {
			left = append(left, file)
		}
	}
	return left
}

func under(file, dir string) bool { return file == dir || strings.HasPrefix(file, dir+"/") }

// TestUpgradeThatFails: the package is installed all the same, and the next one starts again what the other left
// failed.
func TestUpgradeThatFails(t *testing.T) {
	t.Parallel()
	m := newNode(t)
	m.must("systemctl enable --now sevagent.service ecs.service")
	m.write("/etc/sevagent/conf.d/70-wrong.yaml", "mlts: {}\n") // which is not started again by itself
	out := m.must("dpkg -i /lab/packages/new/sevagent_*.deb 2>&1")
	if !strings.Contains(out, "the agent did not come up again") {
		t.Errorf("the upgrade says %q", out)
	}
	m.expect("sevagent.service", "ActiveState", "failed")
	m.expect("ecs.service", "ActiveState", "inactive")
	m.must("rm /etc/sevagent/conf.d/70-wrong.yaml")
	m.must("dpkg -i /lab/packages/old/sevagent_*.deb 2>&1")
	m.expect("sevagent.service", "ActiveState", "active")
	m.becomes("ecs.service", "ActiveState", "active")
}

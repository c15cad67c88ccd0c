//go:build system

package container

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"sevagent/test/lab"
)

// TestWithoutSystemd: in a chroot or an image's build, packages come and go, and their scripts are silent.
func TestWithoutSystemd(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	for _, script := range []string{
		"dpkg -i /lab/packages/old/*.deb", "dpkg -i /lab/packages/new/*.deb", "dpkg --remove sevagent sevctl",
		"dpkg -i /lab/packages/new/*.deb", "dpkg --purge sevagent sevctl",
		"rpm --install /lab/packages/old/*.rpm", "rpm --upgrade /lab/packages/new/*.rpm",
		"rpm --erase sevagent sevctl",
	} {
		out, err := m.chroot(script)
		if err != nil || strings.Contains(out, "sevagent:") || strings.Contains(out, "rror") ||
			strings.Contains(out, "systemctl") || strings.Contains(out, "warning") {
			t.Errorf("%s: %v\n%s", script, err, out)
		}
	}
	out, err := m.chroot("ls -d /etc/sevagent /usr/libexec/sevagent /var/lib/sevagent /etc/ecs 2>/dev/null | grep .")
	if err == nil {
		t.Errorf("left behind: %s", out)
	}
}

// TestBadInput: what is in the way on a machine. Each is explained, and nothing of the operator's is lost.
func TestBadInput(t *testing.T) {
	t.Run("no SNP", func(t *testing.T) {
		t.Parallel()
		m := newMachine(t)
		m.write("/etc/lab/no-device", "")
		m.boot()
		m.must("dpkg -i /lab/packages/new/*.deb")
		m.configure("")
		m.write("/etc/systemd/system/sevagent.service.d/lab.conf", "[Service]\nRestartSec=10ms\n")
		m.must("systemctl daemon-reload")
		m.fails("systemctl start ecs.service")
		m.expect("ecs.service", "ActiveEnterTimestampMonotonic", "0")
		m.says("sevagent.service", "this machine is not an SEV-SNP guest", "/dev/sev-guest", "AmdSevSnp")
		m.fails("ls " + lab.Published + "/ | grep .") // nothing was fetched
		// Its journal says what to do, and so does the command.
		m.fails("sevagent check", "/dev/sev-guest")
		// An operator who wants to go on without proof configures that.
		m.configure("")
		m.write("/etc/sevagent/conf.d/70-warn.yaml", "attestation: {mode: warn}\n")
		m.must("systemctl reset-failed; systemctl start ecs.service")
		m.must("openssl verify -CAfile " + lab.Published + "/ca.crt " + lab.Published + "/client.crt")
	})
	t.Run("older configuration", func(t *testing.T) {
		t.Parallel()
		m := newMachine(t)
		m.write("/etc/sevagent/config.yaml", "# Of another age.\nattestation: {enforce: true}\n")
		m.write("/etc/sevagent/conf.d/60-lab.yaml", "mtls: {secrets: []}\n")
		m.boot()
		out := m.must("dpkg -i --force-confdef --force-confold /lab/packages/new/sevagent_*.deb </dev/null")
		if text := m.must("cat /etc/sevagent/config.yaml"); !strings.Contains(text, "Of another age") {
			t.Errorf("the installation has replaced the configuration: %s\n%s", text, out)
		}
		m.fails("systemctl start sevagent.service")
		m.says("sevagent.service", "/etc/sevagent/config.yaml:2: attestation.enforce: unknown key")
		m.expect("sevagent.service", "ExecMainStatus", "2")
		// An upgrade over an agent that cannot start succeeds as a package.
		m.must("dpkg -i --force-confold /lab/packages/old/sevagent_*.deb </dev/null")
		m.must("dpkg --audit sevagent")
	})
	t.Run("published directory with files", func(t *testing.T) {
		t.Parallel()
		m := newMachine(t)
		m.write(lab.Published+"/client.crt", "mine")
		m.boot()
		out := m.must("dpkg -i /lab/packages/new/sevagent_*.deb")
		if !strings.Contains(out, "sevagent: "+lab.Published+" has files in it") {
			t.Errorf("the installation does not say so: %s", out)
		}
		m.configure("")
		// The agent waits for it to change, as it does for AWS, and says for what.
		m.must("systemctl start --no-block sevagent.service")
		m.until("the explanation", func() error {
			if text := m.journal("sevagent.service"); !strings.Contains(text, lab.Published+" is not on a tmpfs") {
				return errors.New(text)
			}
			return nil
		})
		m.expect("sevagent.service", "ActiveState", "activating")
		t.Log(last(m.journal("sevagent.service")))
		if text := m.read(lab.Published + "/client.crt"); text != "mine" {
			t.Errorf("the operator's file is %q", text)
		}
		m.must("mv " + lab.Published + " /etc/ecs/old; systemctl restart sevagent.service")
		m.must("findmnt " + lab.Published)
		if text := m.must("cat /etc/ecs/old/client.crt"); text != "mine" {
			t.Errorf("the operator's file is %q", text)
		}
	})
	t.Run("socket path occupied", func(t *testing.T) {
		t.Parallel()
		m := newNode(t)
		// systemd itself takes the place of a file, as the package's installation says; not that of a directory.
		m.must("mkdir -p " + socket + "/mine")
		m.fails("systemctl start sevagent.service")
		m.says("sevagent.socket", socket)
		t.Log(last(m.journal("sevagent.socket")))
		m.must("rmdir " + socket + "/mine " + socket + "; systemctl reset-failed; systemctl start sevagent.service")
		m.mustBeReady()
		m.must("systemctl stop sevagent.service sevagent.socket; dpkg --purge sevagent; mkdir -p /run/sevagent; " +
			"echo mine >" + socket)
		out := m.must("dpkg -i /lab/packages/new/sevagent_*.deb")
		if !strings.Contains(out, "sevagent: "+socket+" is there already") {
			t.Errorf("the installation does not say so: %s", out)
		}
	})
	// As a unit: what nsenter starts stays outside of the machine's cgroups, where the agent knows nobody.
	const refresh = "systemd-run --quiet --wait --pipe sevagent refresh"
	t.Run("full disk", func(t *testing.T) {
		t.Parallel()
		m := newNode(t)
		m.must("mkdir -p /var/lib/sevagent && mount -t tmpfs -o size=64k tmpfs /var/lib/sevagent && " +
			"systemctl enable --now sevagent.service")
		m.must("cat /dev/zero >/var/lib/sevagent/full 2>/dev/null; df /var/lib/sevagent | grep -q 100%")
		m.putSecret("client-1")
		m.must(refresh)
		m.published("client-1")
		m.must("systemctl restart sevagent.service")
		m.mustBeReady()
		// The tmpfs of the published files is full: the last good set stays, and the agent reports it.
		before := m.standing()
		m.must("cat /dev/zero >" + lab.Published + "/full 2>/dev/null; df " + lab.Published + " | grep -q 100%")
		m.putSecret("client-2")
		out := m.fails(refresh, "no space left on device")
		t.Log(last(out))
		m.stands("a publication without space", before)
		if err := readSet(m.inside(lab.Published)); err != nil {
			t.Errorf("after a publication without space: %v", err)
		}
		m.must("systemctl restart sevagent.service")
		m.stands("a restart without space", before)
		lab.Until(t, "health to report the full disk", func() error {
			if text := fmt.Sprint(m.health().Checks); !strings.Contains(text, "no space left") {
				return fmt.Errorf("health is %s", text)
			}
			return nil
		})
		m.must("rm " + lab.Published + "/full && " + refresh)
		m.published("client-2")
	})
}

// last is the last line of a text.
func last(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

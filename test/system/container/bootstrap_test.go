//go:build system

package container

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"sevagent/test/lab"
)

type signal struct{ Stack, Resource, Status, UniqueID string }

func (m *machine) signals() []signal {
	m.t.Helper()
	return decode[[]signal](m.t, m.must("cat /run/lab/signals.json 2>/dev/null || echo '[]'"))
}

// newInstance is an instance whose AMI has the package and the ECS agent, and whose user data runs bootstrap.
func newInstance(t *testing.T, flags string) *machine {
	t.Helper()
	m := newMachine(t)
	m.install()
	m.write("/etc/sevagent/conf.d/60-lab.yaml", "attestation: {policy: /lab/device/policy.yaml, rate: 50, burst: 64}\n")
	m.write("/etc/lab/user-data",
		"exec /usr/libexec/sevagent/bootstrap --cluster lab --mtls-secret node/mtls --stack lab --ready-resource "+
			"Ready --update-resource Group --install-ecs never --signal-timeout 2m --timeout 2m "+flags+"\n")
	if out, err := m.chroot("systemctl enable ecs.service"); err != nil { // as on Amazon's AMI
		t.Fatalf("%v: %s", err, out)
	}
	return m
}

// TestBootstrap: user data, gate, publication, ecs.config, registration, signal; again, and after a reboot.
func TestBootstrap(t *testing.T) {
	t.Parallel()
	m := newInstance(t, "")
	m.boot()
	m.expect("cloud-final.service", "Result", "success")
	for _, unit := range []string{"sevagent.service", "ecs.service"} {
		m.expect(unit, "ActiveState", "active")
	}
	want := []signal{{"lab", "Ready", "SUCCESS", "i-0123456789abcdef0"}}
	m.until("the signal", func() error {
		if got := m.signals(); !slices.Equal(got, want) {
			return errors.New("not yet, or another")
		}
		return nil
	})
	config := m.must("cat /etc/ecs/ecs.config")
	for _, part := range []string{"ECS_CLUSTER=lab", `"sevagent.attested":"simulated"`} {
		if !strings.Contains(config, part) {
			t.Errorf("ecs.config has no %s: %s", part, config)
		}
	}
	m.must("openssl verify -CAfile " + lab.Published + "/ca.crt " + lab.Published + "/client.crt")
	const times = "systemctl show --value --property=ActiveEnterTimestampMonotonic sevagent.service ecs.service"
	if m.must(times+" | xargs") == "" {
		t.Error("no times")
	}

	// Again: nothing changes.
	before, agent, ecs := m.standing(), m.pid("sevagent.service"), m.pid("ecs.service")
	out := m.must("sh -e /etc/lab/user-data")
	if strings.Contains(out, "written") || strings.Count(out, "unchanged") != 3 {
		t.Errorf("a second run has changed something:\n%s", out)
	}
	m.stands("a second run", before)
	if a, e := m.pid("sevagent.service"), m.pid("ecs.service"); a != agent || e != ecs {
		t.Errorf("a second run has restarted something: %s %s, was %s %s", a, e, agent, ecs)
	}

	// After a reboot, without user data: a node, and no second signal.
	m.poweroff()
	m.boot()
	for _, unit := range []string{"sevagent.service", "ecs.service"} {
		m.expect(unit, "ActiveState", "active")
	}
	m.mustBeReady()
	m.until("sevagent-signal", func() error {
		if state := m.show("sevagent-signal.service", "ActiveState"); state != "inactive" && state != "failed" {
			return errors.New(state)
		}
		return nil
	})
	m.expect("sevagent-signal.service", "Result", "success")
	if got := m.signals(); len(got) > 0 {
		t.Errorf("a reboot has signaled %v", got)
	}

	// An AMI made of the node: another instance, which has not been bootstrapped.
	m.poweroff()
	m.write("/etc/lab/instance-id", "i-0fedcba9876543210")
	m.boot()
	if state := m.show("ecs.service", "ActiveState"); state == "active" {
		t.Error("the ECS agent runs on an instance made of a node's image, without bootstrap")
	}
	m.says("ecs.service", "the AMI was made from a node")
}

// TestBootstrapWithoutDevice: no proof, no membership, at this boot and at the next, and the stack learns why.
func TestBootstrapWithoutDevice(t *testing.T) {
	t.Parallel()
	m := newInstance(t, "")
	m.write("/etc/lab/no-device", "")
	// systemd has booted when the agent is given up.
	m.write("/etc/systemd/system/sevagent.service.d/lab.conf", "[Service]\nRestartSec=200ms\n")
	m.boot()
	m.expect("cloud-final.service", "Result", "exit-code")
	got := m.signals()
	if len(got) != 1 || got[0].Status != "FAILURE" || got[0].Resource != "Ready" ||
		!strings.Contains(got[0].UniqueID, "SNP") {
		t.Errorf("signals are %v, want one FAILURE that names the device", got)
	}
	t.Logf("signaled: %+v", got)
	never := func(when string) {
		t.Helper()
		m.expect("ecs.service", "ActiveEnterTimestampMonotonic", "0")
		out := m.must("systemctl start ecs.service 2>&1; systemctl is-active ecs.service || true")
		if strings.HasSuffix(out, "\nactive") || out == "active" {
			t.Errorf("%s, ecs.service can be started: %s", when, out)
		}
		m.fails("pgrep -f '[g]uest ecs'")
	}
	never("after the failure")
	m.poweroff()
	m.boot()
	never("after a reboot")
	// Even with a device by then: bootstrap has not finished.
	m.poweroff()
	if out, err := m.chroot("rm /etc/lab/no-device"); err != nil {
		t.Fatal(out)
	}
	m.boot()
	m.becomes("sevagent.service", "ActiveState", "active")
	never("after a reboot with a device")
	m.says("ecs.service", "bootstrap has not finished well")
	// Repaired, bootstrap makes a node of it.
	m.must("sh -e /etc/lab/user-data")
	m.becomes("ecs.service", "ActiveState", "active")
}

// TestBootstrapPath: another published directory, for which bootstrap writes the mount, and the way back.
func TestBootstrapPath(t *testing.T) {
	t.Parallel()
	const path = "/srv/node certs"
	m := newInstance(t, "--mtls-path '"+path+"'")
	m.boot()
	m.expect("cloud-final.service", "Result", "success")
	m.expect("ecs.service", "ActiveState", "active")
	m.must("findmnt --noheadings --types tmpfs '" + path + "'")
	m.must("openssl verify -CAfile '" + path + "/ca.crt' '" + path + "/client.crt'")
	mount := m.must("findmnt --noheadings --output ID '" + path + "'")
	m.must("systemctl restart sevagent.service")
	m.must("dpkg -i /lab/packages/old/sevagent_*.deb")
	if got := m.must("findmnt --noheadings --output ID '" + path + "'"); got != mount {
		t.Errorf("the mount is %s, was %s", got, mount)
	}
	m.poweroff()
	m.boot()
	m.must("openssl verify -CAfile '" + path + "/ca.crt' '" + path + "/client.crt'")
	m.must("systemctl is-active ecs.service")
	// Purged, the mount that bootstrap wrote goes, and what was mounted with it.
	m.must("dpkg --purge sevagent")
	m.fails("findmnt '" + path + "'")
	m.fails("ls 2>/dev/null /etc/systemd/system/*.mount /etc/systemd/system/sevagent.service.d/* | " +
		"grep -v -e sys-kernel-config -e 'No such' | grep .")
	m.fails(
		"ls 2>/dev/null -d /etc/sevagent/conf.d/50-bootstrap.yaml /etc/sevagent/signal.json /var/lib/sevagent | grep .")
}

//go:build system

package container

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"sevagent/internal/must"
	"sevagent/test/fleet"
	"sevagent/test/lab"
)

// TestNode: gate, publication, API, reload, by the packaged units alone.
func TestNode(t *testing.T) {
	t.Parallel()
	m := newNode(t)
	m.must("systemctl enable --now sevagent.service ecs.service")
	for _, unit := range []string{"sevagent.service", "sevagent.socket", "etc-ecs-mtls.mount", "ecs.service"} {
		m.expect(unit, "ActiveState", "active")
	}
	got := m.must("findmnt --noheadings --output FSTYPE,OPTIONS " + lab.Published)
	if !strings.HasPrefix(got, "tmpfs ") || !strings.Contains(got, "noexec") {
		t.Errorf("%s is on %s", lab.Published, got)
	}
	if got := m.must("stat --format=%a " + socket + " /run/sevagent " + lab.Published); got != "666\n755\n755" {
		t.Errorf("modes of the socket, its directory and the published one are %q", got)
	}
	if status := m.must("sevagent status --json"); !strings.Contains(status, `"custom"`) {
		t.Errorf("the status does not say that a simulator has signed: %s", status)
	}
	m.must("openssl verify -CAfile " + lab.Published + "/ca.crt " + lab.Published + "/client.crt")
	m.must("lsattr " + lab.Published + "/..data/ | grep client.key | grep -q '^----i'")
	// The unprivileged ask, too.
	m.must("systemd-run --quiet --wait --pipe --uid=nobody sevagent evidence --bind client | grep -q eat_nonce")
	if text := m.show("sevagent.service", "StatusText"); !strings.HasPrefix(text, "attested, certificates until ") {
		t.Errorf("StatusText is %q", text)
	}
	before, pid := m.standing(), m.pid("sevagent.service")

	t.Run("good reload", func(t *testing.T) {
		m.t = t
		m.configure("log: {level: debug}\n")
		m.must("systemctl reload sevagent.service")
		m.until("the reload", func() error {
			if text := m.journal("sevagent.service"); !strings.Contains(text, "configuration reloaded") {
				return errors.New(text)
			}
			return nil
		})
		if got := m.pid("sevagent.service"); got != pid {
			t.Errorf("a reload has made process %s of %s", got, pid)
		}
	})
	t.Run("reload pulls the secret", func(t *testing.T) {
		m.t = t
		m.putSecret("client-1")
		m.must("systemctl reload sevagent.service")
		m.published("client-1")
		before = m.standing()
	})
	t.Run("push", func(t *testing.T) { // as SSM runs it; a failure of the refresh is none of the command's
		m.t = t
		command := must.Get(fleet.RefreshCommand("../../.."))(t, "read the command of cluster.yaml")
		command = strings.Replace(command, "shuf -i 0-30", "shuf -i 0-1", 1)
		m.putSecret("client-2")
		m.must(command)
		m.published("client-2")
		m.must(strings.Replace(command, "sevagent refresh", "sevagent refresh --socket /nowhere", 1))
		m.until("that no unit is left of the refreshes", func() error {
			if units := m.must("systemctl list-units --all --no-legend --plain 'run-*.service'"); units != "" {
				return errors.New(units)
			}
			return nil
		})
		before = m.standing()
	})
	t.Run("bad reload", func(t *testing.T) {
		m.t = t
		m.configure("mlts: {}\n")
		m.fails("systemctl reload sevagent.service")
		m.says("sevagent.service", "/etc/sevagent/conf.d/60-lab.yaml:3: mlts")
		m.expect("sevagent.service", "ActiveState", "active")
		m.must("sevagent status")
		m.stands("a refused reload", before)
	})
	t.Run("bad restart is not tried again", func(t *testing.T) {
		m.t = t
		m.fails("systemctl restart sevagent.service")
		time.Sleep(2500 * time.Millisecond) // RestartSec=, and some
		m.expect("sevagent.service", "ActiveState", "failed")
		m.expect("sevagent.service", "ExecMainStatus", "2")
		m.expect("sevagent.service", "NRestarts", "0")
		m.stands("a failed start", before) // nobody serves it, and it is there
		m.configure("")
		m.must("systemctl start sevagent.service ecs.service")
		m.stands("the next start", before)
		m.mustBeReady()
	})
	m.t = t
}

// published waits until the certificate of that name is the published one.
func (m *machine) published(name string) {
	m.t.Helper()
	m.until("the certificate of "+name, func() error {
		out, err := m.try("openssl x509 -noout -subject -in " + lab.Published + "/client.crt")
		if err == nil && out != "subject=CN = "+name {
			err = errors.New(out)
		}
		return err
	})
}

// TestWatchdog: an agent whose loops stand still is killed and started again; only callers that wait for it notice.
func TestWatchdog(t *testing.T) {
	t.Parallel()
	m := newNode(t)
	m.write("/etc/systemd/system/sevagent.service.d/lab.conf", "[Service]\nWatchdogSec=5s\nRestartSec=100ms\n")
	m.must("systemctl daemon-reload && systemctl enable --now sevagent.service")
	before, pid := m.standing(), m.pid("sevagent.service")
	m.must("kill -STOP " + pid)
	stopped := time.Now()
	// A caller is answered by the next agent: the socket is systemd's. The first connection may have been accepted.
	m.until("another process", func() error {
		if got := m.pid("sevagent.service"); got == pid || got == "0" {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
	t.Logf("another process after %v", time.Since(stopped).Round(10*time.Millisecond))
	m.becomes("sevagent.service", "ActiveState", "active")
	m.mustBeReady()
	m.stands("the watchdog", before)
	m.expect("sevagent.service", "NRestarts", "1")
	m.says("sevagent.service", "Watchdog timeout", "result 'watchdog'")
	// No core file, although it was SIGABRT.
	out := m.must("find / /var/lib/systemd/coredump -xdev -maxdepth 2 -name 'core*' -type f -newer " +
		"/etc/systemd/system/sevagent.service.d/lab.conf 2>/dev/null || true")
	if out != "" {
		t.Errorf("core files: %s", out)
	}
}

// TestCrashLoop: an agent that cannot stay up is given up, the published files stay, and it can be started again.
func TestCrashLoop(t *testing.T) {
	t.Parallel()
	m := newNode(t)
	m.write("/etc/systemd/system/sevagent.service.d/lab.conf", "[Service]\nRestartSec=10ms\n")
	m.must("systemctl daemon-reload && systemctl enable --now sevagent.service ecs.service")
	before, ecs := m.standing(), m.pid("ecs.service")
	m.must("systemctl kill --signal=KILL sevagent.service")
	m.until("the next agent", func() error {
		state := m.must(
			"systemctl show --value --property=NRestarts --property=ActiveState sevagent.service | sort | xargs")
		if state != "1 active" {
			return errors.New(state)
		}
		return nil
	})
	if got := m.pid("ecs.service"); got != ecs { // as its drop-in's Requires= has it
		t.Log("one crash has restarted the ECS agent")
	}
	// Its device gone, it exits with 1 each time.
	m.must("systemctl stop lab-device.service")
	m.must("systemctl kill --signal=KILL sevagent.service")
	m.until("the end of it", func() error {
		if result := m.show("sevagent.service", "Result"); result != "exit-code" && result != "start-limit-hit" {
			return errors.New(result)
		}
		if state := m.show("sevagent.service", "ActiveState"); state != "failed" {
			return errors.New(state)
		}
		return nil
	})
	t.Logf("given up after %s restarts; socket %s, ecs.service %s", m.show("sevagent.service", "NRestarts"),
		m.show("sevagent.socket", "ActiveState"), m.show("ecs.service", "ActiveState"))
	m.says("sevagent.service", "Start request repeated too quickly")
	m.stands("a crash loop", before)
	m.must("systemctl start lab-device.service")
	// As docs/troubleshooting.md has it.
	m.must("systemctl reset-failed sevagent.service sevagent.socket && systemctl start ecs.service")
	m.mustBeReady()
	m.expect("ecs.service", "ActiveState", "active")
	after := m.standing()
	if after.mount != before.mount {
		t.Errorf("the mount is %s, was %s", after.mount, before.mount)
	}
}

// TestLateAgent: an agent that comes up at a second attempt only has the ECS agent come up, too.
func TestLateAgent(t *testing.T) {
	t.Parallel()
	m := newNode(t)
	m.write("/etc/systemd/system/sevagent.service.d/lab.conf", "[Service]\nRestartSec=300ms\n")
	m.must("systemctl daemon-reload && systemctl enable --now sevagent.service ecs.service")
	m.must("systemctl stop lab-device.service")
	m.must("systemctl kill --signal=KILL sevagent.service")
	m.until("a start that fails", func() error {
		if n := m.show("sevagent.service", "NRestarts"); n == "0" || n == "1" {
			return errors.New(n + " restarts")
		}
		return nil
	})
	m.expect("ecs.service", "ActiveState", "inactive")
	m.must("systemctl start lab-device.service")
	m.until("both to run", func() error {
		state := m.must("systemctl show --value --property=ActiveState sevagent.service ecs.service | xargs")
		if state != "active active" {
			return errors.New(state)
		}
		return nil
	})
}

// TestRestartUnderLoad: eight clients that never stop to ask see no failure, whatever the agent goes through.
func TestRestartUnderLoad(t *testing.T) {
	t.Parallel()
	m := newNode(t)
	m.must("systemctl enable --now sevagent.service")
	before := m.standing()
	m.must("systemd-run --quiet --unit=load --property=LimitNOFILE=4096 /lab/guest load " + socket + " /run/load.json")
	type seen struct {
		Requests, Evidence, Later, Failed int
		Slowest                           string
		Failures                          []string
	}
	look := func() seen { return decode[seen](t, m.must("cat /run/load.json")) }
	m.until("the load", func() error {
		_, err := os.Stat(m.inside("/run/load.json"))
		return err
	})
	const restarts = 7
	for range restarts {
		m.must("systemctl restart sevagent.service")
		time.Sleep(100 * time.Millisecond)
	}
	m.must("dpkg -i /lab/packages/old/sevagent_*.deb && dpkg -i /lab/packages/new/sevagent_*.deb")
	time.Sleep(200 * time.Millisecond)
	m.must("systemctl stop load.service")
	got := look()
	t.Logf("%d restarts, a downgrade and an upgrade: %d requests, %d for evidence, "+
		"%d asked to come later, slowest answer %s",
		restarts, got.Requests, got.Evidence, got.Later, got.Slowest)
	if got.Failed > 0 || got.Requests < 100 || got.Evidence < 10 {
		t.Errorf("%d requests failed of %d (%d for evidence): %s", got.Failed, got.Requests, got.Evidence,
			strings.Join(got.Failures, "\n"))
	}
	m.stands("restarts under load", before)
}

// readSet reads what is published in the two ways that keep files together: one file, and the generation that ..data
// leads to.
func readSet(dir string) error {
	_, err := lab.LoadOne(dir)
	if err == nil {
		_, err = lab.LoadCurrent(dir, 0)
	}
	return err
}

// TestEndDuringPublication kills the agent, and upgrades it, while it publishes one set after the other: readers see
// whole sets only.
func TestEndDuringPublication(t *testing.T) {
	t.Parallel()
	m := newNode(t)
	m.must("systemctl enable --now sevagent.service")
	m.must("systemd-run --quiet --unit=refresh /lab/guest refresh " + socket + " /run/refreshed")
	stop, changing, reading := make(chan struct{}), make(chan struct{}), make(chan int)
	secrets := make([]string, 50)
	for i := range secrets {
		secrets[i] = lab.ClientSecret(t, ca, fmt.Sprintf("client-%d", i))
	}
	go func() {
		defer close(changing)
		file := m.path("/etc/lab/secret.json")
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(3 * time.Millisecond):
			}
			if err := lab.Replace(file, secrets[i%len(secrets)]); err != nil {
				t.Errorf("replace the secret: %v", err)
			}
		}
	}()
	go func() {
		n := 0
		defer func() { reading <- n }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := readSet(m.inside(lab.Published)); err != nil {
				t.Errorf("reader: %v", err)
				time.Sleep(50 * time.Millisecond)
			}
			n++
		}
	}()
	// more waits until there have been that many more publications: what follows is in the middle of them.
	refreshed := func() (n int) {
		text, _ := os.ReadFile(m.inside("/run/refreshed"))
		n, _ = strconv.Atoi(string(text)) // empty while it is written
		return n
	}
	more := func(count int) {
		var before int
		m.until("publications", func() error {
			n := refreshed()
			if n > 0 && before == 0 {
				before = n
			}
			if before == 0 || n < before+count {
				return fmt.Errorf("%d", n)
			}
			return nil
		})
	}
	for range 4 {
		more(5)
		m.must("systemctl kill --signal=KILL sevagent.service && systemctl restart sevagent.service")
	}
	for _, version := range []string{"old", "new"} {
		more(5)
		m.must("dpkg -i /lab/packages/" + version + "/sevagent_*.deb")
	}
	more(5)
	close(stop)
	<-changing
	reads := <-reading
	m.must("systemctl stop refresh.service")
	t.Logf("%d publications, %d reads", refreshed(), reads)
	if reads < 100 {
		t.Errorf("%d reads are too few to have seen anything", reads)
	}
	m.mustBeReady()
}

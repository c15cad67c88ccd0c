//go:build system

// Package container tests the packages and their units under a real systemd: in containers of systemd-nspawn, each on
// an overlay of its own, without a network. test/run prepares what it runs in.
package container

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/client"
	"sevagent/internal/must"
	"sevagent/internal/sim/simca"
	"sevagent/test/lab"
)

// What test/run has prepared.
var (
	rootfs = filepath.Join(lab.Repository(), ".cache/system/container/root") // Debian's
	// old/ and new/, each with a deb and an rpm
	packages = filepath.Join(lab.Repository(), ".cache/system/container/packages")
	guestBin = filepath.Join(lab.Work(), "guest") // the program guest
)

var (
	work   string // a tmpfs
	layer  string // of overlays: the machine around the agent
	ca     *simca.CA
	number atomic.Int64
)

// socket is where the agent listens.
const socket = "/run/sevagent/sevagent.sock"

func TestMain(m *testing.M) {
	status, err := prepare(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "test/system/container:", err)
		status = 1
	}
	os.Exit(status)
}

func prepare(m *testing.M) (status int, err error) {
	if work, err = os.MkdirTemp("", "container-"); err != nil {
		return 1, err
	}
	defer os.Remove(work)
	// Overlays want their upper layer on something that is no overlay itself, and it is fast.
	if err := unix.Mount("tmpfs", work, "tmpfs", 0, "mode=0755"); err != nil {
		return 1, err
	}
	defer unix.Unmount(work, unix.MNT_DETACH)
	if ca, err = simca.New("Container test CA", time.Now()); err != nil {
		return 1, err
	}
	if err := makeLayer(); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// makeLayer makes the layer with files/, the program guest and the simulator's root.
func makeLayer() error {
	layer = filepath.Join(work, "layer")
	device := filepath.Join(layer, "lab/device")
	wants := filepath.Join(layer, "etc/systemd/system/multi-user.target.wants")
	for _, dir := range []string{device, wants, filepath.Join(layer, "etc/lab"), filepath.Join(layer, "lab/packages")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for _, args := range [][]string{
		{"-r", "files/.", layer}, {guestBin, lab.Bin("sevsim"), filepath.Join(layer, "lab")},
	} {
		if out, err := exec.Command("cp", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	if _, err := lab.NewDevice(device); err != nil {
		return err
	}
	for _, unit := range []string{"lab-device.service", "lab-aws.service", "cloud-final.service"} {
		if err := os.Symlink("/usr/lib/systemd/system/"+unit, filepath.Join(wants, unit)); err != nil {
			return err
		}
	}
	// The kernel under a container need not have it.
	if err := os.Symlink("/dev/null", filepath.Join(layer, "etc/systemd/system/sys-kernel-config.mount")); err != nil {
		return err
	}
	secret, err := ca.ClientSecret("client-0", time.Now())
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(layer, "etc/lab/secret.json"), []byte(secret), 0o644)
}

// machine is a container, or what one is booted from.
type machine struct {
	t     *testing.T
	name  string
	root  string // its root, without what is mounted in it
	own   string // the directory of its own layer
	boots int

	nspawn *exec.Cmd
	waited chan error
	leader int
	log    bytes.Buffer
}

// newMachine makes a machine that has no package yet.
func newMachine(t *testing.T) *machine {
	t.Helper()
	name := fmt.Sprintf("lab-%d", number.Add(1))
	m := &machine{t: t, name: name, own: filepath.Join(work, name)}
	m.root = filepath.Join(m.own, "root")
	for _, dir := range []string{"root", "upper", "work"} {
		must.Do(t, os.MkdirAll(filepath.Join(m.own, dir), 0o755), "make a machine's layer")
	}
	options := fmt.Sprintf("lowerdir=%s:%s,upperdir=%s/upper,workdir=%s/work", layer, rootfs, m.own, m.own)
	must.Do(t, unix.Mount("overlay", m.root, "overlay", 0, options), "mount a machine's root")
	t.Cleanup(func() {
		unix.Unmount(m.root, unix.MNT_DETACH)
		exec.Command("chattr", "-R", "-i", filepath.Join(m.own, "upper")).Run()
		os.RemoveAll(m.own)
	})
	must.Do(t, unix.Mount(packages, m.path("/lab/packages"), "", unix.MS_BIND, ""), "mount the packages")
	return m
}

// newNode makes a machine that has the package installed and configured, and boots it.
func newNode(t *testing.T) *machine {
	t.Helper()
	m := newMachine(t)
	m.install()
	m.configure("")
	m.boot()
	return m
}

// install installs the package where no systemd runs.
func (m *machine) install() {
	m.t.Helper()
	if out, err := m.chroot("dpkg -i /lab/packages/new/sevagent_*.deb"); err != nil {
		m.t.Fatalf("install: %v\n%s", err, out)
	}
}

// configure writes what differs from the package's configuration: the simulator's roots, the secret, a rate that does
// not slow the tests down.
func (m *machine) configure(more string) {
	m.write("/etc/sevagent/conf.d/60-lab.yaml", `attestation: {policy: /lab/device/policy.yaml, rate: 50, burst: 64}
mtls: {secrets: ["file:///etc/lab/secret.json"], poll_interval: 24h}
`+more)
}

// chroot runs a script in the machine that is not booted.
func (m *machine) chroot(script string) (string, error) {
	cmd := exec.Command("chroot", m.root, "/bin/sh", "-c", script)
	cmd.Env = environment
	out, err := cmd.CombinedOutput()
	return string(out), err
}

var environment = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C",
	"DEBIAN_FRONTEND=noninteractive", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0"}

// boot starts the machine and waits until systemd has done what it had to.
func (m *machine) boot() {
	m.t.Helper()
	m.start()
	if out, _ := m.try("systemctl is-system-running --wait"); !strings.Contains(out, "running") &&
		!strings.Contains(out, "degraded") {
		m.t.Fatalf("%s did not boot: %s\n%s", m.name, out, m.log.String())
	}
}

// start starts the machine and waits until systemd answers.
func (m *machine) start() {
	m.t.Helper()
	m.boots++
	// The shell is in the cgroup before nspawn is.
	args := []string{"-c", `for procs in $0; do echo $$ >"$procs" || exit; done; exec systemd-nspawn "$@"`,
		strings.Join(m.cgroups(), " "),
		"--quiet", "--directory=" + m.root, "--boot", "--machine=" + m.name, "--hostname=node", "--register=no",
		"--keep-unit", "--console=pipe",
		"--private-network", "--resolv-conf=off", "--timezone=off", "--link-journal=no", "--capability=all",
		"--system-call-filter=bpf @keyring", "--bind=/dev/fuse"}
	m.nspawn = exec.Command("/bin/sh", args...)
	m.nspawn.Env = append(os.Environ(), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1")
	m.nspawn.Stdout, m.nspawn.Stderr = &m.log, &m.log
	must.Do(m.t, m.nspawn.Start(), "start systemd-nspawn")
	m.waited = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan<- error) { done <- cmd.Wait() }(m.nspawn, m.waited)
	if m.boots == 1 {
		m.t.Cleanup(func() {
			if m.nspawn != nil && m.t.Failed() {
				out, _ := m.try("systemctl --no-pager status 'sevagent*' ecs.service | head -60; " +
					"journalctl --no-pager --lines=60 -o short-monotonic")
				m.t.Logf("%s:\n%s", m.name, out)
			}
			m.kill()
			if m.t.Failed() && m.leader == 0 {
				m.t.Log(m.log.String())
			}
		})
	}
	m.leader = 0
	m.until("the container's first process", func() error {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", m.nspawn.Process.Pid,
			m.nspawn.Process.Pid))
		if err != nil {
			return fmt.Errorf("%w; nspawn: %s", err, m.log.String())
		}
		for _, field := range strings.Fields(string(children)) {
			if name, err := os.ReadFile("/proc/" + field + "/comm"); err == nil &&
				strings.TrimSpace(string(name)) == "systemd" {
				m.leader, err = strconv.Atoi(field)
				return err
			}
		}
		return errors.New("not there yet")
	})
	m.until("systemd", func() error {
		_, err := os.Stat(m.inside("/run/systemd/private"))
		return err
	})
}

// cgroups makes a cgroup for nspawn in each hierarchy where it may look for its own, and returns their lists of
// processes. In one with another machine, the two systemds would take each other's for their own.
func (m *machine) cgroups() (procs []string) {
	m.t.Helper()
	bases := []string{"/sys/fs/cgroup"}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.procs"); err != nil { // not the unified hierarchy alone
		bases = []string{"/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"}
	}
	for _, base := range bases {
		dir := fmt.Sprintf("%s/%s-%s", base, filepath.Base(lab.Work()), m.name)
		err := os.Mkdir(dir, 0o755)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if !errors.Is(err, fs.ErrExist) {
			must.Do(m.t, err, "make a cgroup")
		}
		procs = append(procs, dir+"/cgroup.procs")
	}
	if procs == nil {
		m.t.Fatal("no hierarchy of cgroups that systemd could use")
	}
	return procs
}

// poweroff shuts the machine down in order.
func (m *machine) poweroff() {
	m.t.Helper()
	m.try("systemctl poweroff")
	select {
	case <-m.waited:
		m.nspawn = nil
	case <-time.After(lab.Hang):
		m.t.Fatalf("%s does not power off", m.name)
	}
}

// kill ends the machine as if its power was cut.
func (m *machine) kill() {
	if m.nspawn == nil {
		return
	}
	if m.leader != 0 {
		syscall.Kill(m.leader, syscall.SIGKILL)
	} else {
		m.nspawn.Process.Kill()
	}
	select {
	case <-m.waited:
	case <-time.After(lab.Hang):
		m.t.Errorf("%s does not end", m.name)
		m.nspawn.Process.Kill()
	}
	m.nspawn = nil
}

// try runs a script in the machine and returns what it printed.
func (m *machine) try(script string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), lab.Hang)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", "--target", strconv.Itoa(m.leader), "--all", "--", "/bin/sh", "-c",
		script)
	cmd.Env = environment
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return strings.TrimSpace(string(out)), err
}

// must is try for what has to succeed.
func (m *machine) must(script string) string {
	m.t.Helper()
	out, err := m.try(script)
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return out
}

// fails is try for what has to fail, and to say why.
func (m *machine) fails(script string, reasons ...string) string {
	m.t.Helper()
	out, err := m.try(script)
	if err == nil {
		m.t.Errorf("%s: succeeded\n%s", script, out)
	}
	for _, reason := range reasons {
		if !strings.Contains(out, reason) {
			m.t.Errorf("%s: does not say %q:\n%s", script, reason, out)
		}
	}
	return out
}

// show is a property of a unit.
func (m *machine) show(unit, property string) string {
	m.t.Helper()
	return m.must("systemctl show --value --property=" + property + " " + unit)
}

func (m *machine) expect(unit, property, want string) {
	m.t.Helper()
	if got := m.show(unit, property); got != want {
		m.t.Errorf("%s of %s is %q, want %q", property, unit, got, want)
	}
}

// journal is what a unit and systemd have written about it in this boot.
func (m *machine) journal(unit string) string {
	m.t.Helper()
	m.must("journalctl --sync")
	return m.must("journalctl --no-pager --output=cat --unit=" + unit)
}

func (m *machine) says(unit string, reasons ...string) {
	m.t.Helper()
	text := m.journal(unit)
	for _, reason := range reasons {
		if !strings.Contains(text, reason) {
			m.t.Errorf("the journal of %s does not say %q:\n%s", unit, reason, text)
		}
	}
}

// path is a file of the machine, without what it has mounted.
func (m *machine) path(file string) string { return filepath.Join(m.root, file) }

// inside is a file of the machine as its processes see it.
func (m *machine) inside(file string) string {
	return fmt.Sprintf("/proc/%d/root%s", m.leader, file)
}

func (m *machine) write(file, text string) {
	m.t.Helper()
	lab.Write(m.t, m.path(file), text)
}

func (m *machine) read(file string) string {
	m.t.Helper()
	return lab.Read(m.t, m.inside(file))
}

func (m *machine) until(what string, check func() error) {
	m.t.Helper()
	lab.Until(m.t, m.name+": "+what, check)
}

// becomes waits until a unit's property has a value.
func (m *machine) becomes(unit, property, want string) {
	m.t.Helper()
	m.until(unit+" to be "+want, func() error {
		if got := m.show(unit, property); got != want {
			return errors.New(got)
		}
		return nil
	})
}

// health asks the agent for it, by its socket.
func (m *machine) health() *client.Health {
	m.t.Helper()
	return must.Get(client.New(m.inside(socket)).Health(m.t.Context()))(m.t, "ask the agent for its health")
}

func (m *machine) mustBeReady() {
	m.t.Helper()
	if health := m.health(); !health.Ready() {
		m.t.Fatalf("the agent is not ready: %+v", health.Checks)
	}
}

// putSecret gives the secret's source another certificate.
func (m *machine) putSecret(name string) {
	m.t.Helper()
	must.Do(m.t, lab.Replace(m.path("/etc/lab/secret.json"), lab.ClientSecret(m.t, ca, name)), "replace the secret")
}

// standing is what restarts and upgrades must leave as it is.
type standing struct{ data, mount, socket string }

func (m *machine) standing() standing {
	m.t.Helper()
	return standing{
		data:   must.Get(os.Readlink(m.inside(lab.Published+"/..data")))(m.t, "read the current generation"),
		mount:  m.must("findmnt --noheadings --output ID,FSTYPE " + lab.Published),
		socket: m.must("stat --format=%i:%Z " + socket),
	}
}

func (m *machine) stands(what string, want standing) {
	m.t.Helper()
	if got := m.standing(); got != want {
		m.t.Errorf("after %s: %+v, want %+v", what, got, want)
	}
}

func (m *machine) pid(unit string) string {
	m.t.Helper()
	return m.show(unit, "MainPID")
}

// decode reads JSON that has to be such.
func decode[T any](t *testing.T, text string) (v T) {
	t.Helper()
	must.Do(t, json.Unmarshal([]byte(text), &v), "decode %s", text)
	return v
}

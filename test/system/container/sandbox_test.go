//go:build system

package container

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sevagent/internal/must"
	"sevagent/test/lab"
)

// proof is an attempt of ../guest/attempt.go that shows a directive's effect: how it ends in the sandbox, and how
// without one. If both are the same, it proves nothing.
type proof struct{ attempt, inside, outside string }

// refused is by what: an attempt that succeeds without a sandbox.
func refused(attempt, errno string) proof { return proof{attempt, errno, "ok"} }

// proofs are by directive. allowed ones show what a directive lets through that another one keeps out.
var proofs = map[string][]proof{
	"ProtectSystem=strict": {refused("write to /usr", "EROFS"), refused("write to /etc", "EROFS"),
		refused("write to /var/lib", "EROFS")},
	"ReadWritePaths=/etc/ecs/mtls":           {allowed("write to the published files")},
	"ReadWritePaths=-/sys/kernel/config/tsm": {allowed("ask for a report by configfs")},
	"StateDirectory=sevagent":                {allowed("write to the state directory")},
	"UMask=0077":                             {refused("make a file for all", "for its owner only")},
	"PrivateMounts=yes":                      {refused("share the mounts of PID 1", "another")},
	"TemporaryFileSystem=/run:ro": {
		refused("connect to D-Bus", "ENOENT"), refused("connect to systemd", "ENOENT"),
		refused("connect to Docker", "ENOENT"), refused("write to /run", "EROFS"),
	},
	"BindReadOnlyPaths=-/run/systemd/notify -/run/systemd/resolve": {allowed("see where systemd is told"),
		refused("replace where systemd is told", "EROFS")},
	"PrivateDevices=yes": {refused("open /dev/kmsg", "ENOENT"),
		refused("open /dev/fuse", "ENOENT"), refused("make a node for a disk", "EPERM")},
	"BindPaths=-/dev/sev-guest -/dev/tpmrm0 -/dev/tpm0": {allowed("open the SNP device"),
		allowed("open the TPM's manager"), allowed("open the TPM")},
	"DevicePolicy=closed": {refused("open a node for /dev/fuse", "EPERM")},
	"DeviceAllow=/dev/sev-guest rw": {allowed("open the SNP device"),
		refused("open a node for a disk", "EPERM")},
	"DeviceAllow=/dev/tpmrm0 rw": {allowed("open the TPM's manager")},
	"DeviceAllow=/dev/tpm0 rw":   {allowed("open the TPM")},
	"CapabilityBoundingSet=CAP_LINUX_IMMUTABLE": {allowed("make a file immutable"),
		refused("kill another user's process", "EPERM"), refused("read another user's file", "EACCES"),
		refused("take a privileged port", "EACCES"), refused("change an owner", "EPERM"),
		refused("become another user", "EPERM"), refused("trace another user's process", "EPERM")},
	"CapabilityBoundingSet=": {refused("make a file immutable", "EROFS"),
		refused("kill another user's process", "EPERM"), refused("read another user's file", "EACCES"),
		refused("take a privileged port", "EACCES"), refused("become another user", "EPERM")},
	"NoNewPrivileges=yes": {refused("gain privileges by a file", "nothing gained")},
	// A path that another directive names, or a temporary directory, is not below / for NoExecPaths=.
	"NoExecPaths=/ /var/lib/sevagent /tmp /var/tmp /dev": {
		refused("run /bin/true", "EACCES"), refused("run a copy in the state directory", "EACCES"),
		refused("run a copy in /tmp", "EACCES"),
		refused("run a copy in /var/tmp", "EACCES"), refused("run a copy in /dev/shm", "EACCES|ENOENT"),
	},
	"ExecPaths=/usr/bin/sevagent":     {allowed("run the agent")},
	"ExecPaths=/usr/libexec/sevagent": {allowed("run what may be run")},
	"ProtectHome=yes":                 {refused("read a home", "EACCES")},
	"PrivateTmp=yes":                  {refused("read /tmp", "ENOENT")},
	"PrivateIPC=yes":                  {refused("see System V shared memory", "none|ENOENT")},
	"ProtectProc=ptraceable":          {refused("see another user's process", "ENOENT")},
	"ProcSubset=pid":                  {refused("read /proc/cpuinfo", "ENOENT")},
	"ProtectKernelTunables=yes":       {refused("set a kernel parameter", "EROFS|ENOENT")},
	"ProtectKernelModules=yes": {refused("read the kernel's modules", "EACCES"),
		{"load a module", "EPERM", "not EPERM"}},
	"ProtectKernelLogs=yes":    {refused("read the kernel's log", "EPERM")},
	"ProtectControlGroups=yes": {refused("make a cgroup", "EROFS")},
	"ProtectClock=yes":         {{"set the clock", "EPERM", "EINVAL"}},
	"ProtectHostname=yes":      {refused("set the host's name", "EPERM")},
	"KeyringMode=private":      {refused("find a key of the user", "ENOKEY")},
	"RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6": {refused("open a netlink socket", "EAFNOSUPPORT"),
		refused("open a packet socket", "EAFNOSUPPORT"), allowed("open an internet socket")},
	"RestrictNamespaces=yes": {refused("make a user namespace", "EPERM"),
		refused("make a UTS namespace", "EPERM")},
	"RestrictRealtime=yes":           {refused("run in real time", "EPERM")},
	"RestrictSUIDSGID=yes":           {refused("make a file setuid", "EPERM")},
	"LockPersonality=yes":            {refused("change the personality", "EPERM")},
	"MemoryDenyWriteExecute=yes":     {refused("map memory to write and execute", "EPERM")},
	"SystemCallArchitectures=native": {refused("call the 32-bit kernel", "thread killed")},
	"SystemCallFilter=@system-service": {{"mount", "EPERM", "ENOENT"},
		{"load a BPF program", "EPERM", "not EPERM"}},
	"SystemCallFilter=~@privileged @resources": {{"account processes", "EPERM", "ENOENT"},
		refused("set a priority", "EPERM")},
	"SystemCallErrorNumber=EPERM": {refused("set a priority", "EPERM")}, // and not SIGSYS
	"LimitCORE=0": {refused("find core files allowed", "none"),
		refused("allow core files", "EPERM")},
	"LimitNOFILE=8192": {refused("open 9000 files", "EMFILE")},
}

func allowed(attempt string) proof { return proof{attempt, "ok", "ok"} }

// elsewhere are limits for which a container has no controllers, or no right to set them, everywhere: test/system/vm
// tries them.
var elsewhere = []string{"MemorySwapMax", "MemoryMax", "TasksMax", "OOMScoreAdjust"}

// behaviour are directives that keep nothing out; other tests are about them.
var behaviour = []string{
	"Type", "ExecStart", "ExecReload", "TimeoutStartSec", "TimeoutStopSec", "WatchdogSec", "Restart", "RestartSec",
	"RestartPreventExitStatus", "Environment",
}

// TestSandbox runs attempts in the place of the agent, and of sevagent-signal, and the same attempts without a sandbox.
func TestSandbox(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.write("/etc/lab/ioctl", "") // a node in /dev
	m.install()
	m.boot()
	m.must("mkdir -p /sys/fs/cgroup /etc/ecs && systemctl start etc-ecs-mtls.mount && " +
		"mount -t tmpfs tmpfs /sys/kernel && mkdir -p /sys/kernel/config/tsm/report")
	environment := m.prepareAttempts()

	outside := decode[map[string]string](t,
		m.must("systemd-run --quiet --wait --pipe --property=KeyringMode=shared --property=DevicePolicy=auto"+
			" --setenv="+strings.Join(environment, " --setenv=")+" /usr/libexec/sevagent/attempt attempt -"))
	for _, unit := range []string{"sevagent.service", "sevagent-signal.service"} {
		t.Run(unit, func(t *testing.T) {
			m.t = t
			m.write("/etc/sevagent/signal.json", "{}")
			m.write("/etc/systemd/system/"+unit+".d/lab.conf",
				"[Service]\nType=oneshot\nRestart=no\nExecPaths=/usr/libexec/sevagent\n"+
					"WatchdogSec=0\nExecReload=\nExecStart=\n"+
					"ExecStart=/usr/libexec/sevagent/attempt attempt /var/lib/sevagent/attempts.json\n"+
					"Environment="+strings.Join(environment, " ")+"\n")
			m.must("rm -f /var/lib/sevagent/attempts.json; systemctl daemon-reload && systemctl start " + unit)
			inside := decode[map[string]string](t, m.read("/var/lib/sevagent/attempts.json"))
			for _, directive := range directives(t, m.read("/usr/lib/systemd/system/"+unit)) {
				key, _, _ := strings.Cut(directive, "=")
				if slices.Contains(behaviour, key) || slices.Contains(elsewhere, key) {
					continue
				}
				if proofs[directive] == nil {
					t.Errorf("%s: nothing proves it; write an attempt", directive)
				}
				for _, p := range proofs[directive] {
					in, out := inside[p.attempt], outside[p.attempt]
					if p.attempt == "open a node for a disk" && !slices.Contains(environment, "ATTEMPT_DISK=1") {
						t.Logf("%s: this machine has no disk to try", directive)
						continue
					}
					if !slices.Contains(strings.Split(p.inside, "|"), in) {
						t.Errorf("%s: %s: %q in the sandbox, want %q (%q without)", directive, p.attempt, in, p.inside,
							out)
					}
					if other, not := strings.CutPrefix(p.outside, "not "); not && (out == "" || out == other) || !not &&
						out != p.outside {
						t.Errorf("%s: %s: %q without a sandbox, want %q: this proves nothing", directive, p.attempt,
							out, p.outside)
					}
				}
			}
		})
	}
	m.t = t
}

// prepareAttempts puts there what the attempts are after, and returns the environment that they want.
func (m *machine) prepareAttempts() (environment []string) {
	m.t.Helper()
	for _, copy := range []string{"/usr/libexec/sevagent/attempt", "/usr/libexec/sevagent/attempt-setuid"} {
		must.Do(m.t, os.MkdirAll(filepath.Dir(m.path(copy)), 0o755), "make a directory")
		lab.MustRun(m.t, exec.Command("cp", guestBin, m.path(copy)))
	}
	m.must(`set -e
		chown 1234 /usr/libexec/sevagent/attempt-setuid; chmod 4755 /usr/libexec/sevagent/attempt-setuid
		mkdir -p /usr/lib/modules; touch /root/marker /tmp/marker /usr/lib/modules/marker
		mkdir -p /var/lib/sevagent; cd /var/lib/sevagent; touch owned private; chown 1234 private; chmod 600 private
		for tpm in tpmrm0 tpm0; do mknod /dev/$tpm c 1 3; done # they open as /dev/null does
		mknod fuse c 10 229; mknod /dev/kmsg c 1 11 2>/dev/null || true
		ipcmk -M 64 >/dev/null
		/lab/guest key
		systemd-run --quiet --unit=victim --uid=nobody sleep 1000
		systemd-run --quiet --unit=docker --socket-property=ListenStream=/run/docker.sock sleep 1000`)
	environment = []string{"ATTEMPT_VICTIM=" + m.pid("victim.service"), "ATTEMPT_NS_MNT=" +
		m.must("readlink /proc/1/ns/mnt")}
	// A disk of this machine, which is opened to be read.
	for line := range strings.Lines(lab.Read(m.t, "/proc/partitions")) {
		fields := strings.Fields(line)
		if len(fields) != 4 {
			continue
		}
		if _, err := strconv.Atoi(fields[0]); err != nil {
			continue
		}
		out, err := m.try(fmt.Sprintf("mknod /var/lib/sevagent/disk b %s %s && "+
			"head -c 1 /var/lib/sevagent/disk >/dev/null", fields[0], fields[1]))
		if err == nil {
			return append(environment, "ATTEMPT_DISK=1")
		} else {
			m.t.Logf("%s cannot be opened without a sandbox: %s", fields[3], out)
		}
		m.try("rm -f /var/lib/sevagent/disk")
	}
	return environment
}

// directives are the lines of a unit's section Service.
func directives(t *testing.T, unit string) (list []string) {
	t.Helper()
	section := ""
	for line := range strings.Lines(unit) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "["):
			section = line
		case line == "" || strings.HasPrefix(line, "#") || section != "[Service]":
		default:
			list = append(list, line)
		}
	}
	if len(list) < 20 {
		t.Fatalf("a section Service of %d lines", len(list))
	}
	return list
}

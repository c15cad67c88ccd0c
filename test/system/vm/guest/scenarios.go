package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/client"
	"sevagent/test/lab"
)

// start is a node from cold: its units in order, and the proof.
func (m *boot) start() {
	m.step("order", order)
	m.step("transport", func() (string, error) { return transport(m.options["transport"]) })
	m.step("tmpfs", onTmpfs)
	m.step("evidence", verifyEvidence)
}

// life is what happens to it: its limits are reached for, and the clock jumps.
func (m *boot) life() {
	m.step("limits", limits)
	m.step("memory", memory)
	m.step("clock", clock)
}

// order: the mount, then the agent's readiness, then the ECS agent.
func order() (string, error) {
	if err := lab.Poll(func() error { return state("ecs.service", "active") }); err != nil {
		text, _ := command("journalctl", "--no-pager", "--output=short-monotonic", "--lines=30", "--unit=sevagent",
			"--unit=lab-*")
		return "", errors.Join(fmt.Errorf("%w: %s", err, text), state("lab-secret.service", "active"),
			state("lab-device.service", "active"), state("sevagent.service", "active"))
	}
	var times [4]uint64
	for i, c := range []struct{ unit, property string }{
		{"lab-device.service", "ActiveEnterTimestampMonotonic"},
		{"etc-ecs-mtls.mount", "ActiveEnterTimestampMonotonic"},
		{"sevagent.service", "ActiveEnterTimestampMonotonic"},
		{"ecs.service", "InactiveExitTimestampMonotonic"},
	} {
		var err error
		if times[i], err = number(c.unit, c.property); err != nil {
			return "", err
		}
	}
	started, err := number("sevagent.service", "InactiveExitTimestampMonotonic")
	if err != nil {
		return "", err
	}
	detail := fmt.Sprintf("device %d µs, mount %d, agent from %d to %d, ecs %d", times[0], times[1], started, times[2],
		times[3])
	if times[1] == 0 || times[1] > started || times[2] < started || times[2] > times[3] {
		return "", errors.New(detail)
	}
	return detail, nil
}

func transport(want string) (string, error) {
	a, err := attestation()
	if err != nil {
		return "", err
	}
	detail := fmt.Sprintf("%+v", a)
	if a.Transport != want || !a.GatePassed || a.Verdict != "pass" || a.Roots != "custom" {
		return "", errors.New(detail)
	}
	return detail, nil
}

func onTmpfs() (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs("/etc/ecs/mtls", &st); err != nil {
		return "", err
	}
	if st.Type != unix.TMPFS_MAGIC {
		return "", fmt.Errorf("/etc/ecs/mtls is of type %#x", st.Type)
	}
	return checkPublished("/etc/ecs/mtls")
}

// verifyEvidence goes the way of a relying party, with the commands.
func verifyEvidence() (string, error) {
	nonce := make([]byte, 32)
	rand.Read(nonce)
	if _, err := command("sevagent", "evidence", "--nonce", hex.EncodeToString(nonce), "--bind", "client", "-o",
		"/srv/lab/evidence.json"); err != nil {
		return "", err
	}
	verify := []string{"evidence", "verify", "/srv/lab/evidence.json", "--policy", policy, "--allow-custom-roots",
		"--region", "us-east-2", "--nonce"}
	text, err := command("sevctl", append(verify, hex.EncodeToString(nonce))...)
	if err != nil {
		return "", err
	}
	nonce[0] ^= 1
	if _, err := command("sevctl", append(verify, hex.EncodeToString(nonce))...); err == nil {
		return "", errors.New("the evidence is verified with another nonce")
	}
	return strings.SplitN(string(text), "\n", 2)[0], nil
}

// cgroupFile reads a file of the agent's cgroup.
func cgroupFile(name string) (string, error) {
	group, err := show("sevagent.service", "ControlGroup")
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", group, name))
	return strings.TrimSpace(string(text)), err
}

// limits: the kernel has those of the unit.
func limits() (string, error) {
	var detail []string
	for _, c := range []struct{ file, property string }{
		{"memory.max", "MemoryMax"}, {"memory.swap.max", "MemorySwapMax"}, {"pids.max", "TasksMax"},
	} {
		want, err := show("sevagent.service", c.property)
		if err != nil {
			return "", err
		}
		got, err := cgroupFile(c.file)
		if err != nil {
			return "", err
		}
		if got != want || got == "max" {
			return "", fmt.Errorf("%s is %s, and the unit's %s is %s", c.file, got, c.property, want)
		}
		detail = append(detail, c.file+" "+got)
	}
	pid, err := number("sevagent.service", "MainPID")
	if err != nil {
		return "", err
	}
	want, err := show("sevagent.service", "OOMScoreAdjust")
	if err != nil {
		return "", err
	}
	got, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
	if err != nil {
		return "", err
	}
	if strings.TrimSpace(string(got)) != want || want == "0" {
		return "", fmt.Errorf("oom_score_adj is %s, and the unit's OOMScoreAdjust is %s", got, want)
	}
	return strings.Join(append(detail, "oom_score_adj "+want), ", "), nil
}

// memory: under a limit of 64 MiB, which is a quarter of the unit's, the agent answers 200 requests for evidence
// while it publishes 50 times.
func memory() (string, error) {
	const limit = 64 << 20
	if _, err := command("systemctl", "set-property", "--runtime", "sevagent.service",
		"MemoryMax="+strconv.Itoa(limit)); err != nil {
		return "", err
	}
	before, err := number("sevagent.service", "MainPID")
	if err != nil {
		return "", err
	}
	var work sync.WaitGroup
	errs := make([]error, 5)
	for i := range 4 {
		work.Go(func() {
			for range 50 {
				errs[i] = cmp.Or(errs[i], retry(evidence))
			}
		})
	}
	work.Go(func() {
		for range 50 {
			errs[4] = cmp.Or(errs[4], retry(rotateOnce))
		}
	})
	work.Wait()
	if err := errors.Join(errs...); err != nil {
		return "", err
	}
	effective, err := cgroupFile("memory.max")
	if err != nil || effective != strconv.Itoa(limit) {
		return "", fmt.Errorf("memory.max is %s, want %d (%v)", effective, limit, err)
	}
	peak, err := cgroupFile("memory.peak")
	if err != nil {
		return "", err
	}
	events, err := cgroupFile("memory.events")
	if err != nil {
		return "", err
	}
	after, err := number("sevagent.service", "MainPID")
	if err != nil {
		return "", err
	}
	detail := fmt.Sprintf("memory.peak %s of %d, %s, PID %d then %d", peak, limit,
		strings.Join(strings.Fields(events), " "), before, after)
	n, err := strconv.ParseUint(peak, 10, 64)
	if err != nil || n >= limit || !strings.Contains(events, "oom_kill 0\n") &&
		!strings.HasSuffix(events, "oom_kill 0") || before != after {
		return "", errors.New(detail)
	}
	return detail, nil
}

// retry is for what the agent may put off: its answer is 429 or 503 then.
func retry(do func() error) error {
	var last error
	later := lab.Poll(func() error {
		last = do()
		if p, ok := errors.AsType[*client.Problem](last); ok && (p.Status == 429 || p.Status == 503) {
			return last
		}
		return nil
	})
	return cmp.Or(later, last)
}

// clock: it jumps by 90 days, and the certificate of 90 days has expired; the agent says so and stays. It jumps back.
func clock() (string, error) {
	before, err := number("sevagent.service", "MainPID")
	if err != nil {
		return "", err
	}
	const jump = 90*24*time.Hour + time.Hour
	if err := shift(jump); err != nil {
		return "", err
	}
	err = lab.Poll(func() error {
		health, err := agent.Health(context.Background())
		if err == nil && health.Ready() {
			err = errors.New("the agent is ready with an expired certificate")
		}
		return cmp.Or(err, has(fmt.Append(nil, health.Checks), "expired, at"))
	})
	err = errors.Join(err, state("sevagent.service", "active"), evidence(), shift(-jump))
	if err == nil {
		err = lab.Poll(ready)
	}
	after, e := number("sevagent.service", "MainPID")
	if err = errors.Join(err, e); err == nil && before != after {
		err = fmt.Errorf("the agent was restarted: PID %d then %d", before, after)
	}
	return "not ready while expired", err
}

func shift(by time.Duration) error {
	now := unix.NsecToTimespec(time.Now().Add(by).UnixNano())
	return unix.ClockSettime(unix.CLOCK_REALTIME, &now)
}

// noDevice: without its proof the agent does not start, and the ECS agent neither.
func (m *boot) noDevice() {
	m.step("no proof, no membership", func() (string, error) {
		err := lab.Poll(func() error { // twice, so that a restart has not helped
			n, err := number("sevagent.service", "NRestarts")
			if err == nil && n < 2 {
				err = fmt.Errorf("sevagent.service was restarted %d times", n)
			}
			return err
		})
		if err != nil {
			return "", err
		}
		if started, err := number("ecs.service", "ExecMainStartTimestampMonotonic"); err != nil || started != 0 {
			return "", fmt.Errorf("ecs.service was started at %d µs (%v)", started, err)
		}
		if err := state("ecs.service", "inactive"); err != nil {
			return "", err
		}
		if _, err := os.Lstat("/etc/ecs/mtls/..data"); !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("something is published (%v)", err)
		}
		text, err := command("journalctl", "--no-pager", "--output=cat", "--unit", "sevagent.service")
		if err == nil {
			err = has(text, "not an SEV-SNP guest")
		}
		result, _ := show("ecs.service", "Result")
		return "ecs.service: " + result, err
	})
}

// A second disk, all of whose writes are recorded by the virtual machine.
const recorded = "/srv/mtls"

func mount(device string, offset int64) error {
	if err := os.MkdirAll(recorded, 0o755); err != nil {
		return err
	}
	options := "noatime"
	if offset >= 0 {
		options += fmt.Sprintf(",loop,offset=%d,sizelimit=%d", offset, diskSize-block)
	}
	_, err := command("mount", "-t", "ext4", "-o", options, device, recorded)
	return err
}

const (
	// diskSize is that of the second disk. Its last block belongs to no file system: noted is kept there.
	diskSize = 64 << 20
	block    = 4096
)

// note writes down, past every cache of this kernel but without a flush, that the agent has reported a publication,
// which has to survive from then on.
func note(generation string) error {
	f, err := os.OpenFile("/dev/vdb", os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := unix.Mmap(-1, 0, block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	if err != nil {
		return err
	}
	defer unix.Munmap(b)
	copy(b, generation)
	_, err = f.WriteAt(b, diskSize-block)
	return err
}

// noted returns what was written down in a copy of the disk.
func noted(offset int64) (string, error) {
	f, err := os.Open("/dev/vdb")
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, block)
	_, err = f.ReadAt(b, offset+diskSize-block)
	return strings.TrimRight(string(b), "\x00"), err
}

// record: the agent publishes on the second disk as fast as it can.
func (m *boot) record() {
	m.step("publish on a disk", func() (string, error) {
		if err := lab.Poll(ready); err != nil {
			return "", err
		}
		if err := mount("/dev/vdb", -1); err != nil {
			return "", err
		}
		// Without immutable files: to make one immutable is to flush it, as far as ext4 is concerned.
		if err := publishTo(recorded, "CapabilityBoundingSet=~CAP_LINUX_IMMUTABLE\n"); err != nil {
			return "", err
		}
		if _, err := command("systemctl", "restart", "sevagent.service"); err != nil {
			return "", err
		}
		return checkPublished(recorded)
	})
	unix.Sync()
	m.say("rotating")
	m.step("rotations", func() (string, error) {
		n := 0
		for start := time.Now(); n < 30 || time.Since(start) < 7*time.Second; n++ { // longer than ext4 waits to commit
			if err := rotateOnce(); err != nil {
				return "", err
			}
			generation, err := os.Readlink(filepath.Join(recorded, "..data"))
			if err := cmp.Or(err, note(generation)); err != nil {
				return "", err
			}
		}
		return fmt.Sprint(n), nil
	})
}

// remount looks at what power cuts have left on the second disk. There is one copy of it after the other on /dev/vdb.
// The agent starts from every fifth.
func (m *boot) remount() {
	cuts, _ := strconv.Atoi(m.options["cuts"])
	if err := lab.Poll(ready); err != nil {
		m.say("fail", "readiness:", err.Error())
	}
	configured := publishTo(recorded, "")
	for i := range cuts {
		m.failed = false // each stands for itself
		m.step(fmt.Sprintf("power cut %d", i), func() (detail string, err error) {
			if err := errors.Join(configured, mount("/dev/vdb", int64(i)*diskSize)); err != nil {
				return "", err
			}
			defer func() {
				if _, e := command("umount", recorded); e != nil {
					err = errors.Join(err, e)
				}
			}()
			if detail, err = checkPublished(recorded); err != nil {
				return detail, err
			}
			// Names sort by time.
			if told, err := noted(int64(i) * diskSize); err != nil || detail < told {
				return "", fmt.Errorf("%s is published, although the agent had reported %s (%v)", detail, told, err)
			}
			if i%5 != 0 {
				return detail, nil
			}
			if _, err := command("systemctl", "restart", "sevagent.service"); err != nil {
				return "", err
			}
			// It is ready with what was there, and then publishes what is newer.
			var after string
			err = lab.Poll(func() (err error) {
				if after, err = checkPublished(recorded); err == nil && after == detail {
					err = fmt.Errorf("the agent has not published the newer version after %s", detail)
				}
				return cmp.Or(err, ready())
			})
			_, e := command("systemctl", "stop", "ecs.service", "sevagent.service")
			return detail + " then " + after, errors.Join(err, e)
		})
	}
}

// rotate: the agent publishes on the root disk until the power is cut.
func (m *boot) rotate() {
	m.step("publish on the root disk", func() (string, error) {
		if err := lab.Poll(ready); err != nil {
			return "", err
		}
		if _, err := os.Stat(diskPath); err == nil {
			return checkPublished(diskPath) // since an earlier boot
		}
		if err := os.MkdirAll(diskPath, 0o755); err != nil {
			return "", err
		}
		if err := publishTo(diskPath, ""); err != nil {
			return "", err
		}
		if _, err := command("systemctl", "restart", "sevagent.service"); err != nil {
			return "", err
		}
		return checkPublished(diskPath)
	})
	unix.Sync()
	m.say("rotating")
	for {
		if err := rotateOnce(); err != nil {
			m.say("fail", "rotation:", err.Error())
			return
		}
	}
}

// last: after a power cut the agent is ready, and publishes.
func (m *boot) last() {
	m.step("ready after power cuts", func() (string, error) {
		if err := lab.Poll(func() error { return state("ecs.service", "active") }); err != nil {
			return "", err
		}
		before, err := checkPublished(diskPath)
		if err != nil {
			return "", err
		}
		if err := rotateOnce(); err != nil {
			return "", err
		}
		after, err := checkPublished(diskPath)
		if err == nil && after == before {
			err = fmt.Errorf("%s is still published", after)
		}
		return after, err
	})
}

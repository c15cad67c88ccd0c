package main

import (
	"cmp"
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
)

// start is a node from cold: its units in order, and the proof.
func (l *lab) start() {
	l.step("order", order)
	l.step("transport", func() (string, error) { return transport(l.options["transport"]) })
	l.step("tmpfs", onTmpfs)
	l.step("evidence", verifyEvidence)
}

// life is what happens to it: its limits are reached for, and the clock jumps.
func (l *lab) life() {
	l.step("limits", limits)
	l.step("memory", memory)
	l.step("clock", clock)
}

// order: the mount, then the agent's readiness, then the ECS agent.
func order() (string, error) {
	if err := until(func() error { return state("ecs.service", "active") }); err != nil {
		text, _ := command("journalctl", "--no-pager", "--output=short-monotonic", "--lines=30", "--unit=sevagent", "--unit=lab-*")
		return "", errors.Join(fmt.Errorf("%w: %s", err, text), state("lab-secret.service", "active"), state("lab-device.service", "active"), state("sevagent.service", "active"))
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
	detail := fmt.Sprintf("device %d µs, mount %d, agent from %d to %d, ecs %d", times[0], times[1], started, times[2], times[3])
	if times[1] == 0 || times[1] > started || times[2] < started || times[2] > times[3] {
		return "", errors.New(detail)
	}
	return detail, nil
}

func transport(want string) (string, error) {
	s, err := getStatus()
	if err != nil {
		return "", err
	}
	a := s.Attestation
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
	if _, err := command("sevagent", "evidence", "--nonce", hex.EncodeToString(nonce), "--bind", "client", "-o", "/srv/lab/evidence.json"); err != nil {
		return "", err
	}
	verify := []string{"evidence", "verify", "/srv/lab/evidence.json", "--policy", policy, "--allow-custom-roots", "--region", "us-east-2", "--nonce"}
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
	if _, err := command("systemctl", "set-property", "--runtime", "sevagent.service", "MemoryMax="+strconv.Itoa(limit)); err != nil {
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
	detail := fmt.Sprintf("memory.peak %s of %d, %s, PID %d then %d", peak, limit, strings.Join(strings.Fields(events), " "), before, after)
	n, err := strconv.ParseUint(peak, 10, 64)
	if err != nil || n >= limit || !strings.Contains(events, "oom_kill 0\n") && !strings.HasSuffix(events, "oom_kill 0") || before != after {
		return "", errors.New(detail)
	}
	return detail, nil
}

// retry is for what the agent may put off: it says 429 or 503 then.
func retry(do func() error) (err error) {
	for range 20 {
		if err = do(); err == nil || !strings.Contains(err.Error(), ": 429 ") && !strings.Contains(err.Error(), ": 503 ") {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
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
	var said string
	err = until(func() error {
		_, text, err := ask("GET", "/readyz", "")
		if err == nil {
			err = has(text, "expired at")
		}
		return err
	})
	if err == nil {
		var code int
		code, _, err = ask("GET", "/readyz", "")
		said = fmt.Sprintf("%d", code)
		if err == nil && code != 503 {
			err = fmt.Errorf("readyz says %d of an expired certificate", code)
		}
	}
	err = errors.Join(err, state("sevagent.service", "active"), evidence(), shift(-jump))
	if err == nil {
		err = until(ready)
	}
	after, e := number("sevagent.service", "MainPID")
	if err = errors.Join(err, e); err == nil && before != after {
		err = fmt.Errorf("the agent was restarted: PID %d then %d", before, after)
	}
	return "readyz " + said + " while expired", err
}

func shift(by time.Duration) error {
	now := unix.NsecToTimespec(time.Now().Add(by).UnixNano())
	return unix.ClockSettime(unix.CLOCK_REALTIME, &now)
}

// noDevice: without its proof the agent does not start, and the ECS agent neither.
func (l *lab) noDevice() {
	l.step("no proof, no membership", func() (string, error) {
		err := until(func() error { // twice, so that a restart has not helped
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

// note writes down, past every cache of this kernel but without a flush, that the agent has told of a publication: from
// then on it has to survive.
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
func (l *lab) record() {
	l.step("publish on a disk", func() (string, error) {
		if err := until(ready); err != nil {
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
	l.say("rotating")
	l.step("rotations", func() (string, error) {
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
func (l *lab) remount() {
	cuts, _ := strconv.Atoi(l.options["cuts"])
	if err := until(ready); err != nil {
		l.say("fail", "readiness:", err.Error())
	}
	configured := publishTo(recorded, "")
	for i := range cuts {
		l.failed = false // each stands for itself
		l.step(fmt.Sprintf("power cut %d", i), func() (detail string, err error) {
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
				return "", fmt.Errorf("%s is published, although the agent had told of %s (%v)", detail, told, err)
			}
			if i%5 != 0 {
				return detail, nil
			}
			if _, err := command("systemctl", "restart", "sevagent.service"); err != nil {
				return "", err
			}
			// It is ready with what was there, and then publishes what is newer.
			var after string
			err = until(func() (err error) {
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
func (l *lab) rotate() {
	l.step("publish on the root disk", func() (string, error) {
		if err := until(ready); err != nil {
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
	l.say("rotating")
	for {
		if err := rotateOnce(); err != nil {
			l.say("fail", "rotation:", err.Error())
			return
		}
	}
}

// last: after a power cut the agent is ready, and publishes.
func (l *lab) last() {
	l.step("ready after power cuts", func() (string, error) {
		if err := until(func() error { return state("ecs.service", "active") }); err != nil {
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

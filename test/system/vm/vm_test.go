//go:build system

package vm_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"sevagent/internal/must"
	"sevagent/test/lab"
)

// TestLife takes a node from a cold boot through its life.
func TestLife(t *testing.T) {
	t.Parallel()
	m := start(t, boot{kernel: "6.1", scenario: "start,life", options: []string{"lab.transport=ioctl"}})
	m.finish("order", "transport", "tmpfs", "evidence", "limits", "memory", "clock")
}

// TestNoDevice: a node that is no SNP guest does not join.
func TestNoDevice(t *testing.T) {
	t.Parallel()
	m := start(t, boot{kernel: "6.1", scenario: "nodevice", options: []string{"systemd.mask=lab-device.service"}})
	m.finish("no proof, no membership")
}

const (
	// cuts is how often the power is cut.
	cuts     = 20
	diskSize = 64 << 20
	// block is the last of the disk and belongs to no file system: what the agent has reported is noted there.
	block = 4096
)

// TestPowerCut cuts the power at random moments of a publication. The agent publishes onto a second disk, all of whose
// writes are recorded. From them comes what is on the disk after a cut at any moment, without what a disk loses that
// has a cache. Another boot looks at each, and starts the agent from some.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	dir := t.TempDir()

	fresh, disk, log := filepath.Join(dir, "fresh"), filepath.Join(dir, "disk"), filepath.Join(dir, "log")
	lab.MustRun(t, exec.Command("truncate", "-s", fmt.Sprint(diskSize), fresh))
	lab.MustRun(t, exec.Command("mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-E",
		"nodiscard,lazy_itable_init=0,lazy_journal_init=0", fresh, fmt.Sprint(diskSize/block-1)))
	lab.MustRun(t, exec.Command("cp", "--sparse=always", fresh, disk))
	lab.MustRun(t, exec.Command("truncate", "-s", "0", log))
	m := start(t, boot{kernel: "6.12", scenario: "start,record", options: []string{"lab.transport=configfs"},
		qemu: []string{
			"-blockdev", "driver=file,node-name=recorded,filename=" + disk,
			"-blockdev", "driver=file,node-name=log,filename=" + log,
			"-blockdev", "driver=blklogwrites,node-name=second,file=recorded,log=log,log-append=off",
			"-device", "virtio-blk-pci,drive=second,addr=9",
		}})
	m.await("rotating")
	fi := must.Get(os.Stat(log))(t, "read the size of the log")
	m.finish("order", "transport", "tmpfs", "evidence", "publish on a disk", "rotations")

	all := filepath.Join(dir, "cuts")
	must.Do(t, cutAll(t, random, fresh, log, fi.Size(), all), "make what power cuts leave")
	var steps []string
	for i := range cuts {
		steps = append(steps, fmt.Sprintf("power cut %d", i))
	}
	m = start(t, boot{kernel: "6.12", scenario: "remount", options: []string{fmt.Sprintf("lab.cuts=%d", cuts)},
		qemu: []string{
			"-drive", "if=none,id=second,format=raw,file=" + all, "-device", "virtio-blk-pci,drive=second,addr=9",
		}})
	m.finish(steps...)
}

// TestPowerLoss: the whole machine loses its power while it publishes, twice, and boots from what it has on its disk.
func TestPowerLoss(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	overlay := filepath.Join(t.TempDir(), "overlay")
	lab.MustRun(t, exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b",
		filepath.Join(system, "vm/image.ext4"), overlay))
	steps := []string{"publish on the root disk"}
	for range 2 {
		m := start(t, boot{kernel: "6.12", scenario: "rotate", overlay: overlay})
		m.await("rotating")
		wait := time.Duration(random.Int64N(int64(2 * time.Second)))
		time.Sleep(wait)
		m.cut()
		t.Logf("the power is cut after %v", wait)
		m.reported(steps...)
		steps = []string{"what the power cut left", "publish on the root disk"}
	}
	m := start(t, boot{kernel: "6.12", scenario: "last", overlay: overlay})
	m.finish("what the power cut left", "ready after power cuts")
}

// seeded returns random numbers, the same for the same SEVAGENT_SEED.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("SEVAGENT_SEED"); text != "" {
		if _, err := fmt.Sscan(text, &seed); err != nil {
			t.Fatal("SEVAGENT_SEED:", err)
		}
	}
	t.Logf("SEVAGENT_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// cutAll writes into a file, one after the other, what power cuts leave on a disk, at random moments after the log has
// had a size.
func cutAll(t *testing.T, random *rand.Rand, fresh, logPath string, size int64, all string) error {
	log, err := readLog(logPath)
	if err != nil {
		return err
	}
	defer log.close()
	first := log.after(size)
	if len(log.entries)-first < cuts {
		return fmt.Errorf("there are only %d writes after the first %d", len(log.entries)-first, first)
	}
	t.Logf("%d writes and flushes, and %d after the rotations have begun", first, len(log.entries)-first)
	base, err := os.Open(fresh)
	if err != nil {
		return err
	}
	defer base.Close()
	out, err := os.Create(all)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := out.Truncate(cuts * diskSize); err != nil {
		return err
	}
	for i := range cuts {
		at := int64(i) * diskSize
		if err := copySparse(out, at, base, diskSize); err != nil {
			return err
		}
		n := first + random.IntN(len(log.entries)-first) + 1
		lost, err := log.replay(io.NewOffsetWriter(out, at), n, random)
		if err != nil {
			return err
		}
		t.Logf("power cut %d: after entry %d, %d writes are lost", i, n, lost)
	}
	return out.Close()
}

//go:build system

// Package vm tests the packages in virtual machines: Debian's kernels 6.1 and 6.12 under QEMU without KVM, booted from
// cold with the SNP device behind CUSE and behind the kernel's own configfs-tsm. It is where cgroups limit, clocks jump
// and the power is cut. test/run prepares what it boots.
package vm_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sevagent/internal/must"
	"sevagent/test/lab"
)

var (
	system = filepath.Join(lab.Repository(), ".cache/system")
	work   = lab.Work() // payload.ext4, and what the tests write
)

// bootLimit keeps a boot with its scenarios from hanging. An idle machine needs ten to thirty seconds.
const bootLimit = 4 * lab.Hang

// boot describes a virtual machine.
type boot struct {
	kernel   string // 6.1 or 6.12
	scenario string
	options  []string // more of the kernel's command line
	// overlay is a qcow2 file that keeps what is written; "": it is lost with the machine.
	overlay string
	qemu    []string // more of QEMU's
}

// machine is a virtual machine that runs.
type machine struct {
	t       *testing.T
	qemu    *exec.Cmd
	console string
	lines   chan string   // what the guest says
	ended   chan struct{} // QEMU has
	started time.Time
	steps   []string // that the guest has reported
}

// start boots a machine, which runs until the test ends or its power is cut.
func start(t *testing.T, b boot) *machine {
	t.Helper()
	dir := t.TempDir()
	m := &machine{t: t, console: filepath.Join(dir, "console"), lines: make(chan string, 1000),
		ended: make(chan struct{}), started: time.Now()}
	port := must.Get(net.Listen("unix", filepath.Join(dir, "port")))(t, "make the serial port")

	root := "format=raw,snapshot=on,cache=unsafe,file=" + filepath.Join(system, "vm/image.ext4")
	if b.overlay != "" {
		// What the guest's kernel has written to the disk is in this machine's memory and survives QEMU; what it
		// has not is lost with the guest's memory. The second disk of
		// TestPowerCut loses its own cache as well.
		root = "format=qcow2,cache=writeback,file=" + b.overlay
	}
	commandLine := append([]string{"console=ttyS0 root=/dev/nvme0n1 rw quiet panic=-1 mitigations=off nokaslr " +
		"tsc=reliable no_timer_check random.trust_cpu=on",
		"systemd.show_status=no", "lab.scenario=" + b.scenario}, b.options...)
	args := append([]string{
		"-machine", "pc,usb=off", "-accel", "tcg,thread=multi,tb-size=256",
		// QEMU 7.2 gets cmpxchg16b wrong, which kernel 6.12 does not survive.
		"-cpu", "Nehalem,cx16=off", "-smp", smp, "-m", "512",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-serial", "file:" + m.console, "-serial", "unix:" + port.Addr().String(),
		"-kernel", filepath.Join(system, "kernel-"+b.kernel, "vmlinuz"), "-append", strings.Join(commandLine, " "),
		// One NVMe disk, since these get their names in any order; the others are virtio's.
		"-drive", "if=none,id=root," + root, "-device", "nvme,drive=root,serial=lab",
		"-drive", "if=none,id=payload,format=raw,readonly=on,file=" + filepath.Join(work, "payload.ext4"), "-device",
		"virtio-blk-pci,drive=payload,addr=8",
		"-device", "virtio-rng-pci",
	}, b.qemu...)
	m.qemu = exec.Command("qemu-system-x86_64", args...)
	m.qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // also when the tests are interrupted
	m.qemu.Env = append(os.Environ(), "TMPDIR="+work)
	var stderr bytes.Buffer
	m.qemu.Stderr = &stderr
	must.Do(t, m.qemu.Start(), "start QEMU")
	go func() {
		m.qemu.Wait()
		port.Close()
		close(m.ended)
	}()
	t.Cleanup(func() {
		m.cut()
		if t.Failed() {
			t.Logf("%s%s", stderr.Bytes(), lab.Tail(lab.Read(t, m.console)))
		}
	})
	go m.listen(port)
	return m
}

// smp leaves a processor to the machine that runs at the same time.
const smp = "1"

// listen passes on what the guest says.
func (m *machine) listen(port net.Listener) {
	defer close(m.lines)
	conn, err := port.Accept()
	if err != nil {
		return
	}
	defer conn.Close()
	for r := bufio.NewReader(conn); ; {
		line, err := r.ReadString('\n')
		if said, ok := strings.CutPrefix(strings.TrimSpace(line), "LAB "); ok {
			m.lines <- said
		}
		if err != nil {
			return
		}
	}
}

// cut cuts the power.
func (m *machine) cut() {
	m.qemu.Process.Kill()
	<-m.ended
}

// await waits until the guest says word, and notes the steps that it reports before.
func (m *machine) await(word string) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Until(m.started.Add(bootLimit)))
	defer cancel()
	for {
		select {
		case line, ok := <-m.lines:
			kind, rest, _ := strings.Cut(line, " ")
			switch {
			case !ok:
				m.t.Fatalf("the machine ended before %q; it has reported %q", word, m.steps)
			case line == word:
				m.t.Logf("%q after %v", word, time.Since(m.started).Round(100*time.Millisecond))
				return
			case kind == "ok" || kind == "fail":
				name, _, _ := strings.Cut(rest, ":")
				m.steps = append(m.steps, name)
				m.t.Log(line)
				if kind == "fail" {
					m.t.Fail()
				}
			}
		case <-ctx.Done():
			m.t.Fatalf("no %q within %v; the machine has reported %q", word, bootLimit, m.steps)
		}
	}
}

var trouble = regexp.MustCompile(`(?m)^.*(Kernel panic|Oops:|BUG:|EXT4-fs error|Out of memory).*$`)

// finish waits for the guest's last word, checks that it has reported the steps, and cuts the power.
func (m *machine) finish(steps ...string) {
	m.t.Helper()
	m.await("end")
	m.cut()
	m.reported(steps...)
}

func (m *machine) reported(steps ...string) {
	m.t.Helper()
	if !slices.Equal(m.steps, steps) {
		m.t.Errorf("the machine has reported %q, want %q", m.steps, steps)
	}
	for _, line := range trouble.FindAllString(lab.Read(m.t, m.console), -1) {
		m.t.Errorf("the console says %s", line)
	}
}

// copySparse copies a file into another at an offset, but for its zeros.
func copySparse(dst *os.File, at int64, src io.ReaderAt, size int64) error {
	b, zeros := make([]byte, 64<<10), make([]byte, 64<<10)
	for off := int64(0); off < size; off += int64(len(b)) {
		n, err := src.ReadAt(b[:min(int64(len(b)), size-off)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("copy a disk: %w", err)
		}
		if bytes.Equal(b[:n], zeros[:n]) {
			continue
		}
		if _, err := dst.WriteAt(b[:n], at+off); err != nil {
			return err
		}
	}
	return nil
}

package tsmfs_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/internal/attest"
	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/internal/sim/tsmfs"
	"sevagent/internal/snp"
)

// mount mounts a report directory until the test ends.
func mount(t *testing.T) (string, *sim.PSP) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("there is no /dev/fuse")
	}
	psp := must.Get(sim.New(sim.DefaultOptions(time.Now())))(t, "make a simulated secure processor")
	dir := t.TempDir()
	server := must.Get(tsmfs.Mount(dir, psp))(t, "mount the file system")
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Errorf("unmount: %v", err)
		}
		server.Wait()
	})
	return dir, psp
}

// entry makes an entry and returns functions that write and read its attributes.
func entry(t *testing.T, dir string) (
	path string, write func(name string, data []byte) error, read func(name string) ([]byte, error),
) {
	t.Helper()
	path = filepath.Join(dir, "entry0")
	must.Do(t, os.Mkdir(path, 0o700), "make the entry %s", path)
	write = func(name string, data []byte) error { return os.WriteFile(filepath.Join(path, name), data, 0) }
	read = func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(path, name)) }
	return path, write, read
}

func TestAttributes(t *testing.T) {
	dir, psp := mount(t)
	path, write, read := entry(t, dir)
	for name, mode := range map[string]os.FileMode{
		"inblob": 0o200, "privlevel": 0o200, "outblob": 0o444, "auxblob": 0o444, "generation": 0o444,
		"provider": 0o444, "privlevel_floor": 0o444,
	} {
		info, err := os.Stat(filepath.Join(path, name))
		if err != nil || info.Mode() != mode {
			t.Errorf("%s: mode %v, %v, want %v", name, info.Mode(), err, mode)
		}
	}
	text := func(name, want string) {
		t.Helper()
		if got, err := read(name); err != nil || string(got) != want {
			t.Errorf("%s = %q, %v, want %q", name, got, err, want)
		}
	}
	text("provider", "sev_guest\n")
	text("privlevel_floor", "0\n")
	text("generation", "0\n")
	if _, err := read("outblob"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a report without inblob: %v, want EINVAL", err)
	}

	// A binary write takes effect at close, in whatever order its parts were written.
	f := must.Get(os.OpenFile(filepath.Join(path, "inblob"), os.O_WRONLY, 0))(t, "open inblob")
	for _, at := range []int64{32, 0} {
		must.Get(f.WriteAt(bytes.Repeat([]byte{byte(at + 1)}, 32), at))(t, "write 32 bytes at %d", at)
	}
	text("generation", "0\n")
	must.Do(t, f.Close(), "close inblob")
	text("generation", "1\n")
	must.Do(t, write("privlevel", []byte("1")), "write privlevel")
	text("generation", "2\n")

	raw := must.Get(read("outblob"))(t, "read outblob")
	r, err := snp.ParseReport(raw)
	if err != nil || r.VMPL != 1 || r.ReportData[0] != 1 || r.ReportData[63] != 33 {
		t.Errorf("report %+v, %v", r, err)
	}
	if again, err := read("outblob"); err != nil || !bytes.Equal(again, raw) {
		t.Errorf("the report changes without a write: %v", err)
	}
	if aux, err := read("auxblob"); err != nil || !bytes.Equal(aux, psp.CertTable()) {
		t.Errorf("auxblob is not the certificate table: %v", err)
	}
	must.Do(t, write("inblob", make([]byte, snp.ReportDataSize)), "write inblob")
	text("generation", "3\n")
	if other, err := read("outblob"); err != nil || bytes.Equal(other, raw) {
		t.Errorf("the report does not change with a write: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	dir, _ := mount(t)
	path, write, read := entry(t, dir)
	in := func(name string) string { return filepath.Join(path, name) }
	open := func(name string, flags int) error {
		f, err := os.OpenFile(name, flags, 0o600)
		f.Close()
		return err
	}
	for _, c := range []struct {
		name string
		err  error
		want unix.Errno
	}{
		{"65 bytes", write("inblob", make([]byte, 65)), unix.EFBIG},
		{"privlevel 4", write("privlevel", []byte("4")), unix.EINVAL},
		{"privlevel as a word", write("privlevel", []byte("one")), unix.EINVAL},
		{"write outblob", open(in("outblob"), os.O_WRONLY), unix.EACCES},
		{"read inblob", open(in("inblob"), os.O_RDONLY), unix.EACCES},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, c.err, c.want)
		}
	}
	if err := write("inblob", make([]byte, 63)); err != nil {
		t.Errorf("63 bytes: %v; the kernel loses this error", err)
	}
	if _, err := read("outblob"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a report for 63 bytes: %v, want EINVAL", err)
	}
	if err := os.Remove(path); err != nil {
		t.Errorf("rmdir: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after rmdir: %v", err)
	}
}

func TestFaults(t *testing.T) {
	dir, psp := mount(t)
	path, write, read := entry(t, dir)
	for _, c := range []struct {
		fault string
		want  unix.Errno
	}{
		{sim.FaultBusy, unix.EBUSY}, {sim.FaultWiped, unix.ENOTTY}, {sim.FaultFirmware + " 0x27", unix.EIO},
	} {
		must.Do(t, write("inblob", make([]byte, snp.ReportDataSize)), "write inblob")
		psp.SetFault(c.fault)
		if _, err := read("outblob"); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.fault, err, c.want)
		}
	}
	// A hanging reader can be killed, which frees the device.
	psp.SetFault(sim.FaultHang)
	cat := exec.Command("cat", filepath.Join(path, "outblob"))
	must.Do(t, cat.Start(), "start the reader")
	time.Sleep(30 * time.Millisecond)
	cat.Process.Kill()
	if err := cat.Wait(); err == nil {
		t.Error("the reader has not hung")
	}
	psp.SetFault("")
	must.Get(read("outblob"))(t, "read a report after the reader was killed")
}

// TestTheProductsClient: many requests in a row leave nothing behind.
func TestTheProductsClient(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("requests", func(t *testing.T) {
		dir, psp := mount(t)
		transport := must.Get(attest.Device{Transport: "configfs", Configfs: dir}.Open())(t, "open the configfs transport")
		defer transport.Close()
		for i := range 20 {
			q := must.Get(transport.Report([snp.ReportDataSize]byte{byte(i)}))(t, "ask for report %d", i)
			if r, err := snp.ParseReport(q.Report); err != nil || r.ReportData[0] != byte(i) {
				t.Fatalf("report %d: %v", i, err)
			}
		}
		// After the driver was loaded with vmpck_id=1, only VMPL 1 gets a report.
		o := sim.DefaultOptions(time.Now())
		o.VMPL = 1
		must.Do(t, psp.SetOptions(o), "reload the driver")
		q := must.Get(transport.Report([snp.ReportDataSize]byte{21}))(t, "ask for a report with key 1")
		if r, err := snp.ParseReport(q.Report); err != nil || r.VMPL != 1 {
			t.Errorf("with key 1: VMPL %d, %v, want 1", r.VMPL, err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	})
	for deadline := time.Now().Add(2 * time.Minute); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			stacks = stacks[:runtime.Stack(stacks, true)]
			t.Fatalf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), stacks)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), "TestTheProductsClient") {
		t.Errorf("a mount is left behind: %v", err)
	}
}

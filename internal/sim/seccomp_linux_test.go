package sim_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/internal/attest"
	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/internal/snp"
)

// Stages of the test binary as a helper process: installing the filter, and as the program that asks the device.
const (
	stageVariable = "SIM_TEST_STAGE"
	stageFilter   = "filter"
	stageAsk      = "ask"
)

func TestMain(m *testing.M) {
	switch os.Getenv(stageVariable) {
	case stageFilter:
		os.Setenv(stageVariable, stageAsk)
		fmt.Println(sim.ExecUnderFilter(os.Args[1], []string{os.Args[0], os.Args[2]}, os.Environ()))
		os.Exit(1)
	case stageAsk:
		if err := ask(os.Args[1]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// ask is the product's own client of the device.
func ask(path string) error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil { // as the agent does
		return err
	}
	if dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || dumpable != 1 {
		return fmt.Errorf("dumpable is %d, %v, so only root could serve the device", dumpable, err)
	}
	t, err := attest.Device{Transport: "ioctl", Path: path, Parameters: filepath.Dir(path)}.Open()
	if err != nil {
		return err
	}
	q, err := t.Report([snp.ReportDataSize]byte{42})
	if err != nil {
		return fmt.Errorf("%s: %w", attest.Code(err), err)
	}
	r, err := snp.ParseReport(q.Report)
	if err != nil {
		return err
	}
	table, err := snp.ParseCertTable(q.CertTable)
	if err != nil {
		return err
	}
	if r.ReportData[0] != 42 || table.Find(snp.GUIDVLEK) == nil {
		return errors.New("not the report that was asked for, or no VLEK with it")
	}
	return nil
}

// program returns a program under the filter that asks the device once.
func program(socket, device string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], socket, device)
	cmd.Env = append(os.Environ(), stageVariable+"="+stageFilter, "GORACE=atexit_sleep_ms=0")
	return cmd
}

// serveDevice serves a PSP, and returns what a program needs, and a function that stops the server.
func serveDevice(t *testing.T) (psp *sim.PSP, socket, device string, stop func()) {
	t.Helper()
	psp = newPSP(t)
	dir := must.Get(os.MkdirTemp("", "si"))(t, "make a directory for the socket") // sockets have short paths
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket, device = filepath.Join(dir, "s"), filepath.Join(dir, "sev-guest")
	must.Do(t, unix.Mkfifo(device, 0o600), "make a pipe in the device's place")
	l := must.Get(net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"}))(t, "listen on the socket")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- psp.ServeIoctl(ctx, l) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("ServeIoctl = %v", err)
		}
	})
	t.Cleanup(stop)
	return psp, socket, device, stop
}

// TestIoctlThroughTheKernel: a program of another process gets its report by real ioctls.
func TestIoctlThroughTheKernel(t *testing.T) {
	psp, socket, device, _ := serveDevice(t)
	run := func() string {
		out, err := program(socket, device).CombinedOutput()
		if _, failed := errors.AsType[*exec.ExitError](err); err != nil && !failed {
			t.Fatalf("run the program: %v", err)
		}
		return string(out)
	}
	if out := run(); out != "" {
		t.Fatalf("the program prints %s", out)
	}
	for _, c := range []struct{ fault, want string }{
		{sim.FaultBusy, "throttled"},
		{sim.FaultWiped, "vmpck_disabled"},
		{sim.FaultFirmware + " 0x27", "firmware_error: get report from " + device +
			": the SEV firmware refused the request with status 0x27 (INVALID_KEY)"},
		{sim.FaultTable, "lie outside the table"},
		{sim.FaultEcho, "not the report that was asked for"},
	} {
		psp.SetFault(c.fault)
		if out := run(); !strings.Contains(out, c.want) {
			t.Errorf("%s: the program prints %q, want %q", c.fault, out, c.want)
		}
	}
}

// TestIoctlAsksForItsOwnVMPL: once the driver was loaded with vmpck_id=1, because key 0 is destroyed, the firmware
// refuses VMPL 0.
func TestIoctlAsksForItsOwnVMPL(t *testing.T) {
	psp, socket, device, _ := serveDevice(t)
	o := sim.DefaultOptions(time.Now())
	o.VMPL = 1
	must.Do(t, psp.SetOptions(o), "reload the driver")
	out, _ := program(socket, device).CombinedOutput()
	if !strings.Contains(string(out), "status 0x16 (INVALID_PARAM)") {
		t.Errorf("without vmpck_id the program prints %q, want status 0x16", out)
	}
	for text, want := range map[string]string{
		"1\n": "", "-1\n": "status 0x16", "one\n": "status 0x16", "7\n": "status 0x16",
	} {
		must.Do(t, os.WriteFile(filepath.Join(filepath.Dir(device), "vmpck_id"), []byte(text), 0o444), "set vmpck_id")
		out, _ := program(socket, device).CombinedOutput()
		if !strings.Contains(string(out), want) || want == "" && len(out) > 0 {
			t.Errorf("with vmpck_id %q the program prints %q, want %q", text, out, want)
		}
		must.Do(t, os.Remove(filepath.Join(filepath.Dir(device), "vmpck_id")), "remove vmpck_id")
	}
}

// TestIoctlWithoutRoot is the same for a user who owns nothing, server and program alike.
func TestIoctlWithoutRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("the other tests run without root already")
	}
	const nobody = 65534
	// t.TempDir is closed to other users.
	dir := must.Get(os.MkdirTemp("", "si"))(t, "make a directory for the user nobody")
	defer os.RemoveAll(dir)
	must.Do(t, os.Chown(dir, nobody, nobody), "give the directory to nobody")
	binary := must.Get(os.ReadFile(os.Args[0]))(t, "read the test binary")
	self := filepath.Join(dir, "sim.test")
	must.Do(t, os.WriteFile(self, binary, 0o755), "copy the test binary")
	cmd := exec.Command(self, "-test.run", "^TestIoctlThroughTheKernel$", "-test.v")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "TMPDIR="+dir, "HOME="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestIoctlThroughTheKernel") {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
}

// TestProgramsMayDie: whenever a program is killed, the device serves others, and nothing is left behind.
func TestProgramsMayDie(t *testing.T) {
	goroutines, descriptors := runtime.NumGoroutine(), openFiles(t)
	psp, socket, device, stop := serveDevice(t)
	began := time.Now()
	if out, err := program(socket, device).CombinedOutput(); err != nil {
		t.Fatalf("run a program: %v\n%s", err, out)
	}
	life := time.Since(began)
	psp.SetFault(sim.FaultHang)
	const programs = 30
	for i := range programs {
		cmd := program(socket, device)
		must.Do(t, cmd.Start(), "start program %d", i)
		time.Sleep(life * time.Duration(i) * 3 / 2 / programs) // from before the filter until inside the ioctl
		cmd.Process.Kill()
		cmd.Wait()
	}
	if conn, err := net.Dial("unix", socket); err == nil { // and one that connects and sends nothing
		conn.Close()
	}
	psp.SetFault("")
	if out, err := program(socket, device).CombinedOutput(); err != nil {
		t.Errorf("a program after those: %v\n%s", err, out)
	}
	// The server may end while a program waits, which then gets an error.
	psp.SetFault(sim.FaultHang)
	cmd := program(socket, device)
	must.Do(t, cmd.Start(), "start the program that waits")
	time.Sleep(2 * life)
	stop()
	if err := cmd.Wait(); err == nil {
		t.Error("the program got a report although the server ended")
	}
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		g, d := runtime.NumGoroutine(), openFiles(t)
		if g <= goroutines && d <= descriptors {
			return
		}
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("goroutines %d before and %d after, descriptors %d and %d:\n%s", goroutines, g, descriptors, d,
				stacks[:runtime.Stack(stacks, true)])
		}
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	files := must.Get(os.ReadDir("/proc/self/fd"))(t, "list the open descriptors")
	return len(files)
}

package sim_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	labi "github.com/google/go-sev-guest/client/linuxabi"

	"sevagent/internal/attest"
	"sevagent/internal/sim"
	"sevagent/internal/snp"
)

// Stages of the test binary as a helper process: under the filter, and as the program that asks the device.
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
	t, err := attest.Device{Transport: "ioctl", Path: path}.Open()
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

// TestIoctlThroughTheKernel: a program of another process gets its report by real ioctls.
func TestIoctlThroughTheKernel(t *testing.T) {
	psp, err := sim.New(sim.DefaultOptions(time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "si") // sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket, device := filepath.Join(dir, "s"), filepath.Join(dir, "sev-guest")
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- psp.ServeIoctl(ctx, l) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("ServeIoctl = %v", err)
		}
	}()
	run := func() string {
		cmd := exec.Command(os.Args[0], socket, device)
		cmd.Env = append(os.Environ(), stageVariable+"="+stageFilter)
		out, err := cmd.CombinedOutput()
		if _, failed := errors.AsType[*exec.ExitError](err); err != nil && !failed {
			t.Fatal(err)
		}
		return string(out)
	}
	if out := run(); out != "" {
		t.Fatalf("the program says: %s", out)
	}
	for _, c := range []struct{ fault, want string }{
		{sim.FaultBusy, "throttled"},
		{sim.FaultWiped, "vmpck_disabled"},
		{sim.FaultFirmware + " 0x27", "firmware_error: get report from " + device + ": the SEV firmware refused the request with status 0x27 (INVALID_KEY)"},
		{sim.FaultTable, "lie outside the table"},
		{sim.FaultEcho, "not the report that was asked for"},
	} {
		psp.SetFault(c.fault)
		if out := run(); !strings.Contains(out, c.want) {
			t.Errorf("%s: the program says %q, want %q", c.fault, out, c.want)
		}
	}
}

func TestCommandsAreTheKernels(t *testing.T) {
	for name, pair := range map[string][2]uint32{
		"SNP_GET_REPORT":      {sim.CmdGetReport, labi.IocSnpGetReport},
		"SNP_GET_DERIVED_KEY": {sim.CmdGetDerivedKey, labi.IocSnpGetDerivedKey},
		"SNP_GET_EXT_REPORT":  {sim.CmdGetExtReport, labi.IocSnpGetExtendedReport},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s = %#x, go-sev-guest says %#x", name, pair[0], pair[1])
		}
	}
}

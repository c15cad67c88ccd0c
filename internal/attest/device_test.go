package attest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	labi "github.com/google/go-sev-guest/client/linuxabi"
	"golang.org/x/sys/unix"

	"sevagent/internal/must"
)

// TestABI compares sizes, offsets and the command with go-sev-guest's description of the kernel's ABI.
func TestABI(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want uintptr
	}{
		{"SNP_GET_EXT_REPORT", getExtReport, uintptr(labi.IocSnpGetExtendedReport)},
		{"sizeof snp_guest_request_ioctl", unsafe.Sizeof(guestRequest{}), unsafe.Sizeof(labi.SnpUserGuestRequestABI{})},
		{"sizeof snp_ext_report_req", unsafe.Sizeof(extReportReq{}), unsafe.Sizeof(labi.SnpExtendedReportReqABI{})},
		{"sizeof snp_report_resp", unsafe.Sizeof(reportResp{}), unsafe.Sizeof(labi.SnpReportRespABI{})},
		{"offsetof exitinfo2", unsafe.Offsetof(guestRequest{}.exitInfo2), unsafe.Offsetof(labi.SnpUserGuestRequestABI{}.FwErr)},
		{"offsetof resp_data", unsafe.Offsetof(guestRequest{}.respData), unsafe.Offsetof(labi.SnpUserGuestRequestABI{}.RespData)},
		{"offsetof certs_address", unsafe.Offsetof(extReportReq{}.certsAddress), unsafe.Offsetof(labi.SnpExtendedReportReqABI{}.CertsAddress)},
		{"offsetof certs_len", unsafe.Offsetof(extReportReq{}.certsLen), unsafe.Offsetof(labi.SnpExtendedReportReqABI{}.CertsLength)},
		{"offsetof vmpl", unsafe.Offsetof(extReportReq{}.vmpl), unsafe.Offsetof(labi.SnpReportReqABI{}.Vmpl)},
		{"offsetof report", respReportOffset, unsafe.Offsetof(labi.SnpReportRespABI{}.Data)},
	} {
		if c.got != c.want {
			t.Errorf("%s = %#x, want %#x", c.name, c.got, c.want)
		}
	}
}

func TestErrorsSayWhatTheyMean(t *testing.T) {
	for _, c := range []struct {
		name      string
		errno     error
		exitInfo2 uint64
		code      string
	}{
		{"wiped key", unix.ENOTTY, 0, "vmpck_disabled"},
		{"one minute", unix.ETIMEDOUT, 0, "vmpck_disabled"},
		{"hypervisor busy", unix.EIO, 2 << 32, "throttled"},
		{"busy", unix.EBUSY, 0, "throttled"},
		{"firmware status", unix.EIO, 0x27, "firmware_error"},
		{"driver gone", unix.ENODEV, 0, "device_missing"},
		{"large table", unix.EIO, 1 << 32, "attestation_failed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := deviceError(c.errno, c.exitInfo2)
			if got := Code(err); got != c.code {
				t.Errorf("Code(%v) = %q, want %q", err, got, c.code)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q has more than one line", err)
			}
		})
	}
}

func TestMissingDevice(t *testing.T) {
	dir := t.TempDir()
	d := Device{Transport: "auto", Path: filepath.Join(dir, "sev-guest"), Configfs: filepath.Join(dir, "tsm"), Platform: filepath.Join(dir, "platform")}
	if _, err := d.Open(); !errors.Is(err, ErrNotSNPGuest) {
		t.Errorf("no platform device: err = %v, want ErrNotSNPGuest", err)
	}
	must.Do(t, os.Mkdir(d.Platform, 0o755), "make a directory")
	if _, err := d.Open(); !errors.Is(err, ErrNoDevice) {
		t.Errorf("no driver: err = %v, want ErrNoDevice", err)
	}
	d.Transport = "configfs"
	if _, err := d.Open(); !errors.Is(err, ErrNoDevice) {
		t.Errorf("no configfs: err = %v, want ErrNoDevice", err)
	}
}

func TestDeviceIsHeldAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sev-guest")
	must.Do(t, os.WriteFile(path, nil, 0o600), "write a file")
	d := Device{Transport: "ioctl", Path: path}
	first := must.Get(d.Open())(t, "open the device")
	if _, err := d.Open(); !errors.Is(err, ErrInUse) {
		t.Errorf("second agent: err = %v, want ErrInUse", err)
	}
	// A regular file answers an ioctl as the driver does once it has lost its key.
	if _, err := first.Report([64]byte{}); !errors.Is(err, ErrVMPCKDisabled) {
		t.Errorf("Report = %v, want ErrVMPCKDisabled", err)
	}
	must.Do(t, first.Close(), "close the device")
	second, err := d.Open()
	if err != nil {
		t.Fatalf("after the first has closed: %v", err)
	}
	second.Close()
}

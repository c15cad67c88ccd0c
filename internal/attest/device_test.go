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
		{"offsetof exitinfo2", unsafe.Offsetof(guestRequest{}.exitInfo2),
			unsafe.Offsetof(labi.SnpUserGuestRequestABI{}.FwErr)},
		{"offsetof resp_data", unsafe.Offsetof(guestRequest{}.respData),
			unsafe.Offsetof(labi.SnpUserGuestRequestABI{}.RespData)},
		{"offsetof certs_address", unsafe.Offsetof(extReportReq{}.certsAddress),
			unsafe.Offsetof(labi.SnpExtendedReportReqABI{}.CertsAddress)},
		{"offsetof certs_len", unsafe.Offsetof(extReportReq{}.certsLen),
			unsafe.Offsetof(labi.SnpExtendedReportReqABI{}.CertsLength)},
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

// TestAdviceOfFirmwareErrors: each leads to what helps.
func TestAdviceOfFirmwareErrors(t *testing.T) {
	for _, c := range []struct {
		name      string
		errno     error
		exitInfo2 uint64
		want, not string
	}{
		{"a VMPL below the guest's", unix.EIO, 0x16, "below the one that the guest may speak for", "another host"},
		{"another status", unix.EIO, 0x27, "moves to another host", "VMPL"},
		{"destroyed key", unix.ENOTTY, 0,
			"modprobe sev-guest vmpck_id=1' and start the agent: its reports then have VMPL 1", "another host"},
		{"an error without a name", unix.ENOSYS, 0, "'journalctl -k'", "another host"},
	} {
		advice := Advice(deviceError(c.errno, c.exitInfo2))
		if !strings.Contains(advice, c.want) || strings.Contains(advice, c.not) {
			t.Errorf("%s: the advice is %q, want %q and nothing of %q", c.name, advice, c.want, c.not)
		}
	}
}

// TestPrivlevel: the entry asks for the lowest VMPL that the kernel allows, and for none where the kernel says nothing.
func TestPrivlevel(t *testing.T) {
	for floor, want := range map[string]string{"0\n": "", "1\n": "1", "3\n": "3", "": ""} {
		entry := t.TempDir()
		if floor != "" {
			must.Do(t, os.WriteFile(filepath.Join(entry, "privlevel_floor"), []byte(floor), 0o444), "write the floor")
		}
		must.Do(t, raisePrivlevel(entry), "raise the privlevel")
		if got, _ := os.ReadFile(filepath.Join(entry, "privlevel")); string(got) != want {
			t.Errorf("floor %q: privlevel %q, want %q", floor, got, want)
		}
	}
	entry := t.TempDir()
	must.Do(t, os.WriteFile(filepath.Join(entry, "privlevel_floor"), []byte("4\n"), 0o444), "write the floor")
	if err := raisePrivlevel(entry); err == nil {
		t.Error("a floor of 4: no error, and there are VMPLs 0 to 3")
	}
}

func TestMissingDevice(t *testing.T) {
	dir := t.TempDir()
	d := Device{Transport: "auto", Path: filepath.Join(dir, "sev-guest"),
		Configfs: filepath.Join(dir, "tsm"), Platform: filepath.Join(dir, "platform")}
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
	_, err := first.Report([64]byte{})
	if !errors.Is(err, ErrNoDevice) || !strings.Contains(err.Error(), "it is not a device") {
		t.Errorf("Report = %v, want that it is not a device", err)
	}
	must.Do(t, first.Close(), "close the device")
	second, err := d.Open()
	if err != nil {
		t.Fatalf("after the first has closed: %v", err)
	}
	second.Close()
}

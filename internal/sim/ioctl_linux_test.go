package sim

import (
	"encoding/binary"
	"testing"
	"time"
	"unsafe"

	labi "github.com/google/go-sev-guest/client/linuxabi"
	"golang.org/x/sys/unix"

	"sevagent/internal/must"
	"sevagent/internal/snp"
)

func TestABI(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want uintptr
	}{
		{"SNP_GET_REPORT", cmdGetReport, uintptr(labi.IocSnpGetReport)},
		{"SNP_GET_DERIVED_KEY", cmdGetDerivedKey, uintptr(labi.IocSnpGetDerivedKey)},
		{"SNP_GET_EXT_REPORT", cmdGetExtReport, uintptr(labi.IocSnpGetExtendedReport)},
		{"sizeof snp_guest_request_ioctl", guestRequestSize, unsafe.Sizeof(labi.SnpUserGuestRequestABI{})},
		{"sizeof snp_report_req", reportReqSize, unsafe.Sizeof(labi.SnpReportReqABI{})},
		{"sizeof snp_ext_report_req", extReportReqSize, unsafe.Sizeof(labi.SnpExtendedReportReqABI{})},
		{"sizeof snp_report_resp", reportRespSize, unsafe.Sizeof(labi.SnpReportRespABI{})},
	} {
		if c.got != c.want {
			t.Errorf("%s = %#x, go-sev-guest says %#x", c.name, c.got, c.want)
		}
	}
}

// page is user memory from base; nothing else is mapped.
type page []byte

const base = 0x7000_0000_0000

func (p page) at(address uint64, n int) []byte {
	if address < base || address-base > uint64(len(p)) || uint64(len(p))-(address-base) < uint64(n) {
		return nil
	}
	return p[address-base:][:n]
}

func (p page) Read(address uint64, into []byte) error {
	if copy(into, p.at(address, len(into))) != len(into) {
		return unix.EFAULT
	}
	return nil
}

func (p page) Write(address uint64, data []byte) error {
	if copy(p.at(address, len(data)), data) != len(data) {
		return unix.EFAULT
	}
	return nil
}

func (p page) Reserve(uint64, int) error { return nil }

// Where call puts the structures.
const (
	reqAt, respAt, certsAt = base + 0x100, base + 0x1000, base + 0x2000
	end                    = base + 0x6000
)

// TestIoctlFollowsTheKernel: what the driver reads, writes and returns.
func TestIoctlFollowsTheKernel(t *testing.T) {
	psp := must.Get(New(DefaultOptions(time.Now())))(t, "make a secure processor")
	le := binary.LittleEndian
	const untouched = 0xAAAA
	for _, c := range []struct {
		name      string
		cmd       uint32
		certsLen  uint32
		change    func(page)
		fault     string
		errno     unix.Errno
		exitInfo2 uint64
		needs     uint32 // certs_len as the driver leaves it
	}{
		{name: "report", cmd: cmdGetReport},
		{name: "extended report", cmd: cmdGetExtReport, certsLen: 0x4000, needs: 0x4000},
		{name: "length query", cmd: cmdGetExtReport, errno: unix.EIO, exitInfo2: vmmInvalidLen, needs: 0x1000},
		{name: "odd length", cmd: cmdGetExtReport, certsLen: 100, errno: unix.EINVAL, exitInfo2: untouched, needs: 100},
		{name: "length above the kernel's limit", cmd: cmdGetExtReport, certsLen: 0x8000,
			errno: unix.EINVAL, exitInfo2: untouched, needs: 0x8000},
		{name: "derived key", cmd: cmdGetDerivedKey, errno: unix.ENOTTY, exitInfo2: untouched},
		{name: "message version 0", cmd: cmdGetReport, change: func(p page) { p[0] = 0 },
			errno: unix.EINVAL, exitInfo2: untouched},
		{name: "request outside of memory", cmd: cmdGetReport, change: func(p page) { le.PutUint64(p[8:], 16) },
			errno: unix.EFAULT, exitInfo2: untouched},
		{name: "response outside of memory", cmd: cmdGetReport, change: func(p page) { le.PutUint64(p[16:], end-8) },
			errno: unix.EFAULT, exitInfo2: untouched},
		{name: "throttled", cmd: cmdGetReport, fault: FaultBusy, errno: unix.EIO, exitInfo2: vmmBusy},
		{name: "firmware status", cmd: cmdGetReport, fault: FaultFirmware + " 0x27", errno: unix.EIO, exitInfo2: 0x27},
		{name: "wiped", cmd: cmdGetReport, fault: FaultWiped, errno: unix.ENOTTY, exitInfo2: untouched},
	} {
		t.Run(c.name, func(t *testing.T) {
			mem := make(page, end-base)
			mem[0] = 1
			le.PutUint64(mem[8:], reqAt)
			le.PutUint64(mem[16:], respAt)
			le.PutUint64(mem[24:], untouched)
			req := mem.at(reqAt, extReportReqSize)
			req[0] = 7
			le.PutUint32(req[64:], 2)
			le.PutUint64(req[96:], certsAt)
			le.PutUint32(req[104:], c.certsLen)
			if c.change != nil {
				c.change(mem)
			}
			psp.SetFault(c.fault)
			if errno := psp.Ioctl(t.Context(), c.cmd, base, mem); errno != c.errno {
				t.Fatalf("errno %v, want %v", errno, c.errno)
			}
			if got := le.Uint64(mem[24:]); got != c.exitInfo2 {
				t.Errorf("exitinfo2 = %#x, want %#x", got, c.exitInfo2)
			}
			if got := le.Uint32(req[104:]); got != c.needs {
				t.Errorf("certs_len = %#x, want %#x", got, c.needs)
			}
			if c.errno != 0 {
				return
			}
			resp := mem.at(respAt, reportRespSize)
			r, err := snp.ParseReport(resp[0x20:][:le.Uint32(resp[4:])])
			if err != nil || r.ReportData[0] != 7 || r.VMPL != 2 {
				t.Errorf("report %+v, %v", r, err)
			}
			table, err := snp.ParseCertTable(mem.at(certsAt, 0x4000))
			if err != nil || (len(table) == 1) != (c.cmd == cmdGetExtReport) {
				t.Errorf("certificates %v, %v", table, err)
			}
		})
	}
}

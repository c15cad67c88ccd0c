package sim

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"sevagent/internal/snp"
)

// Commands of /dev/sev-guest: include/uapi/linux/sev-guest.h.
const (
	cmdGetReport     = 0xc0205300
	cmdGetDerivedKey = 0xc0205301
	cmdGetExtReport  = 0xc0205302
)

// Sizes of the structures that these commands point to.
const (
	guestRequestSize = 32
	reportReqSize    = 96
	extReportReqSize = 112
	reportRespSize   = 4000
)

// Memory is the address space of the program that makes an ioctl.
type Memory interface {
	Read(address uint64, into []byte) error
	Write(address uint64, data []byte) error
	// Reserve announces that n bytes may be written. All are announced before the secure processor is asked.
	Reserve(address uint64, n int) error
}

// Ioctl does what the kernel's driver does for one ioctl: it follows the pointers in the program's memory, asks the
// secure processor, and writes the answer back. It returns 0 or an errno.
func (p *PSP) Ioctl(ctx context.Context, cmd uint32, arg uint64, mem Memory) unix.Errno {
	le := binary.LittleEndian
	request := make([]byte, guestRequestSize)
	if mem.Read(arg, request) != nil {
		return unix.EFAULT
	}
	if cmd != cmdGetReport && cmd != cmdGetExtReport {
		return unix.ENOTTY // derived keys are not simulated
	}
	if request[0] == 0 { // msg_version
		return unix.EINVAL
	}
	extended := cmd == cmdGetExtReport
	req := make([]byte, reportReqSize)
	if extended {
		req = make([]byte, extReportReqSize)
	}
	reqAddress, respAddress := le.Uint64(request[8:]), le.Uint64(request[16:])
	if mem.Read(reqAddress, req) != nil {
		return unix.EFAULT
	}
	var certsAddress uint64
	var certsLen uint32
	if extended {
		certsAddress, certsLen = le.Uint64(req[96:]), le.Uint32(req[104:])
		if certsLen > snp.MaxCertTableSize || certsLen%4096 != 0 {
			return unix.EINVAL
		}
	}
	err := errors.Join(mem.Reserve(arg, guestRequestSize), mem.Reserve(reqAddress, len(req)),
		mem.Reserve(respAddress, reportRespSize))
	if extended {
		err = errors.Join(err, mem.Reserve(certsAddress, int(certsLen)))
	}
	if err != nil {
		return unix.EFAULT
	}

	report, certs, err := p.ReportContext(ctx, [snp.ReportDataSize]byte(req), le.Uint32(req[snp.ReportDataSize:]))
	if host, ok := errors.AsType[*HostError](err); ok {
		if host.Wiped {
			return unix.ENOTTY
		}
		return fail(mem, arg, request, host.ExitInfo2)
	}
	if ctx.Err() != nil {
		return unix.EINTR
	}
	if err != nil {
		return unix.EIO
	}
	if extended && int(certsLen) < len(certs) {
		le.PutUint32(req[104:], uint32(len(certs)+4095)&^4095)
		if mem.Write(reqAddress, req) != nil {
			return unix.EFAULT
		}
		return fail(mem, arg, request, vmmInvalidLen)
	}
	resp := make([]byte, reportRespSize) // MSG_REPORT_RSP: STATUS 0, REPORT_SIZE, reserved, the report
	le.PutUint32(resp[4:], uint32(len(report)))
	copy(resp[0x20:], report)
	le.PutUint64(request[24:], 0)
	if extended && mem.Write(certsAddress, slices.Concat(certs, make([]byte, int(certsLen)-len(certs)))) != nil ||
		mem.Write(respAddress, resp) != nil || mem.Write(arg, request) != nil {
		return unix.EFAULT
	}
	return 0
}

// fail reports exitinfo2 as the driver does: in the request, beside EIO.
func fail(mem Memory, arg uint64, request []byte, exitInfo2 uint64) unix.Errno {
	binary.LittleEndian.PutUint64(request[24:], exitInfo2)
	if mem.Write(arg, request) != nil {
		return unix.EFAULT
	}
	return unix.EIO
}

package attest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"sevagent/internal/snp"
)

// The request structures of include/uapi/linux/sev-guest.h.
type (
	// guestRequest is struct snp_guest_request_ioctl.
	guestRequest struct {
		msgVersion uint8
		_          [7]byte
		reqData    uint64
		respData   uint64
		exitInfo2  uint64
	}
	// extReportReq is struct snp_ext_report_req.
	extReportReq struct {
		reportData   [snp.ReportDataSize]byte
		vmpl         uint32
		_            [28]byte
		certsAddress uint64
		certsLen     uint32
		_            [4]byte
	}
	// reportResp is struct snp_report_resp: the firmware's MSG_REPORT_RSP.
	reportResp struct {
		data [4000]byte
	}
)

const (
	// getExtReport is SNP_GET_EXT_REPORT, _IOWR('S', 0x2, struct snp_guest_request_ioctl).
	getExtReport = 3<<30 | unsafe.Sizeof(guestRequest{})<<16 | 'S'<<8 | 0x2
	// msgVersion of MSG_REPORT_REQ.
	msgVersion = 1
	// Within MSG_REPORT_RSP: STATUS u32, REPORT_SIZE u32, 24 reserved bytes, the report.
	respReportOffset = 0x20
)

// ioctl speaks to /dev/sev-guest.
//
// One SNP_GET_EXT_REPORT with a buffer that holds any table costs one firmware request; asking for the length
// first costs two, and the host allows about one a second.
type ioctl struct {
	f    *os.File
	vmpl uint32 // that is asked for
	// arena is page-aligned memory outside of Go's heap, since the kernel is given addresses within it.
	arena []byte
}

func (d Device) openIoctl() (*ioctl, error) {
	f, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		return nil, d.missing(err)
	}
	if err != nil {
		return nil, fmt.Errorf("open the SNP device: %w", err)
	}
	if err := lock(f); err != nil {
		f.Close()
		return nil, err
	}
	arena, err := unix.Mmap(-1, 0, snp.MaxCertTableSize+2*os.Getpagesize(),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("map memory for the SNP device: %w", err)
	}
	return &ioctl{f: f, vmpl: d.vmpl(), arena: arena}, nil
}

func (t *ioctl) Name() string { return "ioctl" }

func (t *ioctl) Close() error { return errors.Join(t.f.Close(), unix.Munmap(t.arena)) }

// Report implements Transport.
func (t *ioctl) Report(reportData [snp.ReportDataSize]byte) (Quote, error) {
	// The arena: certificates, then the request structures on a page, then the response on one of its own.
	clear(t.arena)
	certs := t.arena[:snp.MaxCertTableSize]
	page := t.arena[snp.MaxCertTableSize:]
	request := (*guestRequest)(unsafe.Pointer(&page[0]))
	ext := (*extReportReq)(unsafe.Pointer(&page[512]))
	resp := (*reportResp)(unsafe.Pointer(&page[os.Getpagesize()]))

	ext.reportData = reportData
	ext.vmpl = t.vmpl
	ext.certsAddress = uint64(uintptr(unsafe.Pointer(&certs[0])))
	ext.certsLen = uint32(len(certs))
	request.msgVersion = msgVersion
	request.reqData = uint64(uintptr(unsafe.Pointer(ext)))
	request.respData = uint64(uintptr(unsafe.Pointer(resp)))

	_, _, errno := unix.Syscall(unix.SYS_IOCTL, t.f.Fd(), getExtReport, uintptr(unsafe.Pointer(request)))
	if info, err := t.f.Stat(); errno == unix.ENOTTY && err == nil && info.Mode().IsRegular() {
		return Quote{}, fmt.Errorf("get report from %s: it is not a device: %w", t.f.Name(), ErrNoDevice)
	}
	if errno != 0 {
		return Quote{}, fmt.Errorf("get report from %s: %w", t.f.Name(), deviceError(errno, request.exitInfo2))
	}
	le := binary.LittleEndian
	if status := le.Uint32(resp.data[0:]); status != 0 {
		return Quote{}, fmt.Errorf("get report from %s: %w", t.f.Name(),
			&FirmwareError{Status: status, Cause: errors.New("MSG_REPORT_RSP")})
	}
	if size := le.Uint32(resp.data[4:]); size != snp.ReportSize {
		return Quote{}, fmt.Errorf("get report from %s: the firmware sent %d bytes, want %d",
			t.f.Name(), size, snp.ReportSize)
	}
	q := Quote{
		Report:    append([]byte(nil), resp.data[respReportOffset:respReportOffset+snp.ReportSize]...),
		CertTable: append([]byte(nil), certs...),
	}
	return q, nil
}

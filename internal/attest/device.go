package attest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/internal/snp"
)

// Quote is what the device answers to one request.
type Quote struct {
	// Report is an ATTESTATION_REPORT, raw.
	Report []byte
	// CertTable is what the host added, raw: empty, or a table that package snp parses.
	CertTable []byte
}

// Transport is a way to the secure processor. Report blocks until the device has answered, cannot be
// interrupted, and is never called twice at a time.
type Transport interface {
	Report(reportData [snp.ReportDataSize]byte) (Quote, error)
	// Name is "ioctl" or "configfs".
	Name() string
	Close() error
}

// Device says where the device is.
type Device struct {
	// Transport is auto, configfs or ioctl. auto takes configfs-tsm if the kernel has it with SEV's provider
	// (from Linux 6.7), else the character device.
	Transport string
	// Path of the character device, /dev/sev-guest.
	Path string
	// Configfs is the directory /sys/kernel/config/tsm/report.
	Configfs string
	// Platform is the directory that the kernel shows in every SNP guest, whether or not the driver is loaded;
	// empty: /sys/devices/platform/sev-guest.
	Platform string
	// Parameters is the directory of the driver's parameters; empty: /sys/module/sev_guest/parameters.
	Parameters string
}

// vmpl returns the VMPL that the driver's key may speak for. With vmpck_id=N the kernel has key N, which the firmware
// takes for no VMPL below N: AMD 56860, "Guest Messages". Without it, or where it cannot be read, the key is 0's; an
// SVSM that leaves the guest another one is only visible in configfs.
func (d Device) vmpl() uint32 {
	dir := d.Parameters
	if dir == "" {
		dir = "/sys/module/sev_guest/parameters"
	}
	text, err := os.ReadFile(filepath.Join(dir, "vmpck_id"))
	if err != nil {
		return 0
	}
	id, err := parseVMPL(text)
	if err != nil {
		return 0 // -1, the default of newer kernels
	}
	return id
}

func parseVMPL(text []byte) (uint32, error) {
	level, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 2) // VMPL 0 to 3
	return uint32(level), err
}

// Open opens the device and locks it against other agents.
func (d Device) Open() (Transport, error) {
	switch d.Transport {
	case "ioctl":
		return d.openIoctl()
	case "configfs":
		return openConfigfs(d.Configfs)
	case "auto":
		t, err := openConfigfs(d.Configfs)
		if err == nil {
			return t, nil
		}
		if !errors.Is(err, ErrNoDevice) {
			return nil, err
		}
		return d.openIoctl()
	}
	return nil, fmt.Errorf("open the SNP device: unknown transport %q", d.Transport)
}

// missing explains an absent device: on an SNP guest without the driver, and on any other machine.
func (d Device) missing(cause error) error {
	platform := d.Platform
	if platform == "" {
		// arch/x86/coco/sev/core.c, snp_init_platform_device: registered only if the guest runs under SNP.
		platform = "/sys/devices/platform/sev-guest"
	}
	if _, err := os.Stat(platform); err != nil {
		return fmt.Errorf("open %s: %w", d.Path, fmt.Errorf("%w: %w", cause, ErrNotSNPGuest))
	}
	return fmt.Errorf("open %s: %w", d.Path, fmt.Errorf("%w: %w", cause, ErrNoDevice))
}

// Unavailable is a transport that answers every request with err: for an agent that may run without a device.
func Unavailable(err error) Transport { return unavailable{err} }

type unavailable struct{ err error }

func (u unavailable) Report([snp.ReportDataSize]byte) (Quote, error) { return Quote{}, u.err }
func (u unavailable) Name() string                                   { return "none" }
func (u unavailable) Close() error                                   { return nil }

// lock takes an advisory lock that ends with the process.
func lock(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("lock %s: %w", f.Name(), ErrInUse)
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return nil
}

// configfs is the kernel's vendor-neutral interface: Documentation/ABI/testing/configfs-tsm-report.
type configfs struct {
	dir string
	f   *os.File // holds the lock
}

func openConfigfs(dir string) (*configfs, error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open %s: %w", dir, fmt.Errorf("%w: %w", err, ErrNoDevice))
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	t := &configfs{dir: dir, f: f}
	if err := lock(f); err != nil {
		f.Close()
		return nil, err
	}
	t.sweep()
	var provider []byte
	err = t.withEntry(func(entry string) (err error) {
		provider, err = os.ReadFile(filepath.Join(entry, "provider"))
		return err
	})
	if err == nil && strings.TrimSpace(string(provider)) != "sev_guest" {
		err = fmt.Errorf("provider is %q, want sev_guest", strings.TrimSpace(string(provider)))
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("probe %s: %w", dir, fmt.Errorf("%w: %w", err, ErrNoDevice))
	}
	return t, nil
}

func (t *configfs) Name() string { return "configfs" }
func (t *configfs) Close() error { return t.f.Close() }

const entryPrefix = "sevagent-"

// sweep removes entries that an earlier agent left behind: they outlive the process that made them.
func (t *configfs) sweep() {
	left, _ := filepath.Glob(filepath.Join(t.dir, entryPrefix+"*"))
	for _, entry := range left {
		unix.Rmdir(entry)
	}
}

// withEntry makes a report entry, hands over its path, and removes it.
func (t *configfs) withEntry(do func(entry string) error) error {
	entry := filepath.Join(t.dir, fmt.Sprintf("%s%d-%d", entryPrefix, os.Getpid(), time.Now().UnixNano()))
	if err := os.Mkdir(entry, 0o700); err != nil {
		return err
	}
	return errors.Join(do(entry), unix.Rmdir(entry))
}

// Report implements Transport: one firmware request, made by the first read of outblob.
func (t *configfs) Report(reportData [snp.ReportDataSize]byte) (q Quote, err error) {
	err = t.withEntry(func(entry string) (err error) {
		if err := raisePrivlevel(entry); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(entry, "inblob"), reportData[:], 0); err != nil {
			return err
		}
		before, err := os.ReadFile(filepath.Join(entry, "generation"))
		if err != nil {
			return err
		}
		if q.Report, err = os.ReadFile(filepath.Join(entry, "outblob")); err != nil {
			return deviceError(err, 0)
		}
		if q.CertTable, err = os.ReadFile(filepath.Join(entry, "auxblob")); err != nil {
			return deviceError(err, 0)
		}
		after, err := os.ReadFile(filepath.Join(entry, "generation"))
		if err == nil && string(after) != string(before) {
			err = fmt.Errorf("the entry was written to by someone else: %w", ErrReportDataMismatch)
		}
		return err
	})
	if err != nil {
		return Quote{}, fmt.Errorf("get report from %s: %w", t.dir, err)
	}
	if len(q.Report) > snp.ReportSize {
		q.Report = q.Report[:snp.ReportSize]
	}
	return q, nil
}

// raisePrivlevel asks for the lowest VMPL that the kernel's key may speak for, unless that is 0 anyway.
func raisePrivlevel(entry string) error {
	text, err := os.ReadFile(filepath.Join(entry, "privlevel_floor"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	floor, err := parseVMPL(text)
	if err != nil {
		return fmt.Errorf("read privlevel_floor: %w", err)
	}
	if floor == 0 {
		return nil
	}
	return os.WriteFile(filepath.Join(entry, "privlevel"), fmt.Appendf(nil, "%d", floor), 0)
}

// deviceError translates an errno of the driver. exitInfo2 is the word that the ioctl returns beside it:
// the firmware's status in the low half, the hypervisor's in the high half.
func deviceError(err error, exitInfo2 uint64) error {
	// SNP_GUEST_VMM_ERR_*: include/uapi/linux/sev-guest.h.
	const vmmInvalidLen, vmmBusy = 1, 2
	switch vmm := uint32(exitInfo2 >> 32); {
	case errors.Is(err, unix.ENOTTY):
		return fmt.Errorf("%w: %w", ErrVMPCKDisabled, err)
	case errors.Is(err, unix.ETIMEDOUT): // the request ran into the kernel's 60 s limit, which costs the key
		return fmt.Errorf("%w: %w", ErrVMPCKDisabled, err)
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EAGAIN), vmm == vmmBusy:
		return fmt.Errorf("%w: %w", ErrThrottled, err)
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: %w", err, ErrNoDevice)
	case vmm == vmmInvalidLen:
		return fmt.Errorf("the host's certificate table is larger than %d bytes: %w", snp.MaxCertTableSize, err)
	case errors.Is(err, unix.EIO):
		return &FirmwareError{Status: uint32(exitInfo2), Cause: err}
	}
	return fmt.Errorf("%w: %w", errDevice, err)
}

// Package sim is a simulated node: a software AMD secure processor and, in its sub-packages, the kernel interfaces
// and the AWS services around it. It is for the demonstration and for tests, and is linked into nothing that ships.
//
// The secure processor signs with a root of its own, made afresh, so that nothing it signs can be taken for AMD's
// and nobody else can sign what a test trusts. Its reports look like those of today's EC2 in every field.
package sim

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"sevagent/internal/snp"
)

// Options are what a report shows, besides REPORT_DATA. DefaultOptions has those of EC2's shared tenancy.
type Options struct {
	Region              string
	Signer              snp.SigningKey
	Version             uint32
	Policy              snp.GuestPolicy
	PlatformInfo        snp.PlatformInfo
	TCB                 snp.TCB
	Measurement         [48]byte
	ChipID              [64]byte
	MitVector           uint64
	NotBefore, NotAfter time.Time
	// Latency is how long a report takes; hardware needs 8 ms.
	Latency time.Duration
}

// DefaultOptions returns what EC2 shows in 2026, for a certificate that was issued the day before now.
func DefaultOptions(now time.Time) Options {
	return Options{
		Region: "us-east-2", Signer: snp.SignedByVLEK, Version: 5, Policy: 0x2030000, PlatformInfo: 0x27,
		TCB:         snp.TCB{Bootloader: 4, TEE: 0, SNP: 29, Microcode: 222},
		Measurement: [48]byte(bytes.Repeat([]byte{0x51}, 48)), MitVector: 0xF,
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.AddDate(1, 0, -1),
	}
}

// Faults that a PSP can be told to show, by SetFault or by the content of the fault file.
const (
	FaultBusy     = "busy"     // the host throttles
	FaultWiped    = "wiped"    // the kernel has destroyed its key
	FaultEcho     = "echo"     // REPORT_DATA is not what was asked for
	FaultFlip     = "flip"     // a bit of the report is flipped
	FaultTable    = "table"    // the host's certificate table is hostile
	FaultVersion  = "version6" // the report is newer than anyone knows
	FaultFirmware = "firmware" // followed by a status, "firmware 0x27"
	FaultSlow     = "slow"     // followed by a duration, "slow 3s"
)

// PSP is a software secure processor. It is safe for concurrent use and serves one request at a time.
type PSP struct {
	// FaultFile is read at every request if it is set: a fault for a PSP in another process.
	FaultFile string

	mu    sync.Mutex
	auth  *authority
	o     Options
	key   *ecdsa.PrivateKey
	certs []byte // the certificate table
	fault string
	id    [32]byte // REPORT_ID, fresh for each launch
}

// New returns a PSP with a fresh root.
func New(o Options) (*PSP, error) {
	auth, err := newAuthority(time.Now())
	if err != nil {
		return nil, fmt.Errorf("make the simulator's root: %w", err)
	}
	return newPSP(auth, o)
}

// Load returns a PSP with the root that Save has written to dir, so that several processes share one.
func Load(dir string, o Options) (*PSP, error) {
	auth, err := loadAuthority(dir)
	if err != nil {
		return nil, fmt.Errorf("load the simulator's root: %w", err)
	}
	return newPSP(auth, o)
}

func newPSP(auth *authority, o Options) (*PSP, error) {
	p := &PSP{auth: auth}
	rand.Read(p.id[:])
	return p, p.SetOptions(o)
}

// Save writes the root, and roots.pem for a policy file.
func (p *PSP) Save(dir string) error { return p.auth.save(dir) }

// Roots returns the trust anchors as PEM: ARK, ASK and ASVK.
func (p *PSP) Roots() []byte { return p.auth.roots() }

// SetOptions changes what reports show, with a new endorsement key: what a firmware update does.
func (p *PSP) SetOptions(o Options) error {
	key, err := newEndorsementKey()
	if err != nil {
		return err
	}
	cert, err := p.auth.endorse(o, &key.PublicKey)
	if err != nil {
		return err
	}
	id := snp.GUIDVLEK
	if o.Signer == snp.SignedByVCEK {
		id = snp.GUIDVCEK
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.o, p.key, p.certs = o, key, snp.CertTable{{GUID: id, Data: cert.Raw}}.Encode()
	return nil
}

// SetFault makes the PSP show a fault until it is set to "".
func (p *PSP) SetFault(fault string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = fault
}

// HostError is a request that the hypervisor or the firmware refused, as the kernel's exitinfo2 tells it.
type HostError struct {
	Wiped     bool   // the kernel has no key any more and asks nobody
	ExitInfo2 uint64 // hypervisor's error in the high half, firmware's in the low half
}

func (e *HostError) Error() string {
	return fmt.Sprintf("wiped %v, exitinfo2 %#x", e.Wiped, e.ExitInfo2)
}

// hypervisor errors, SNP_GUEST_VMM_ERR_*.
const (
	vmmInvalidLen = 1 << 32
	vmmBusy       = 2 << 32
)

// Report answers one extended-report request: the report and the certificate table.
func (p *PSP) Report(reportData [snp.ReportDataSize]byte, vmpl uint32) (report, certs []byte, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	time.Sleep(p.o.Latency)
	name, arg, _ := strings.Cut(p.currentFault(), " ")
	version := p.o.Version
	certs = slices.Clone(p.certs)
	switch name {
	case FaultBusy:
		return nil, nil, &HostError{ExitInfo2: vmmBusy}
	case FaultWiped:
		return nil, nil, &HostError{Wiped: true}
	case FaultFirmware:
		status, _ := strconv.ParseUint(arg, 0, 32)
		return nil, nil, &HostError{ExitInfo2: status}
	case FaultSlow:
		d, _ := time.ParseDuration(arg)
		time.Sleep(d)
	case FaultEcho:
		reportData[0] ^= 1
	case FaultVersion:
		version = snp.MaxKnownVersion + 1
	case FaultTable:
		binary.LittleEndian.PutUint32(certs[16:], 0xFFFFFF00) // an offset that overflows with its length
	}
	report, err = p.sign(p.marshal(version, reportData, vmpl))
	if err == nil && name == FaultFlip {
		report[0x90] ^= 1 // MEASUREMENT
	}
	return report, certs, err
}

func (p *PSP) currentFault() string {
	if p.FaultFile == "" {
		return p.fault
	}
	text, _ := os.ReadFile(p.FaultFile) // absent: no fault
	return strings.TrimSpace(string(text))
}

// marshal writes a report without its signature. Offsets are those of package snp, from AMD 56860; they stand here
// again so that the simulator and the parser check each other.
func (p *PSP) marshal(version uint32, reportData [snp.ReportDataSize]byte, vmpl uint32) []byte {
	r := make([]byte, snp.ReportSize)
	le := binary.LittleEndian
	tcb := uint64(p.o.TCB.Version())
	le.PutUint32(r[0x00:], version)
	le.PutUint64(r[0x08:], uint64(p.o.Policy))
	le.PutUint32(r[0x30:], vmpl)
	le.PutUint32(r[0x34:], 1) // ECDSA P-384 with SHA-384
	le.PutUint64(r[0x38:], tcb)
	le.PutUint64(r[0x40:], uint64(p.o.PlatformInfo))
	le.PutUint32(r[0x48:], uint32(p.o.Signer)<<2)
	copy(r[0x50:], reportData[:])
	copy(r[0x90:], p.o.Measurement[:])
	copy(r[0x140:], p.id[:])
	copy(r[0x160:], bytes.Repeat([]byte{0xff}, 32)) // REPORT_ID_MA: no migration agent
	le.PutUint64(r[0x180:], tcb)
	if version >= 3 {
		r[0x188], r[0x189], r[0x18A] = 0x19, 0x01, 0x01 // Milan-B1
	}
	copy(r[0x1A0:], p.o.ChipID[:])
	le.PutUint64(r[0x1E0:], tcb)
	r[0x1E8], r[0x1E9], r[0x1EA] = 1, 58, 1 // firmware 1.58.1
	r[0x1EC], r[0x1ED], r[0x1EE] = 1, 58, 1
	le.PutUint64(r[0x1F0:], tcb)
	if version >= 5 {
		le.PutUint64(r[0x1F8:], p.o.MitVector)
		le.PutUint64(r[0x200:], p.o.MitVector)
	}
	return r
}

// sign sets SIGNATURE: R and S, 72 bytes each, little-endian.
func (p *PSP) sign(report []byte) ([]byte, error) {
	hash := sha512.Sum384(report[:snp.SignedSize])
	r, s, err := ecdsa.Sign(rand.Reader, p.key, hash[:])
	if err != nil {
		return nil, err
	}
	for at, n := range map[int][]byte{snp.SignedSize: r.FillBytes(make([]byte, 72)), snp.SignedSize + 72: s.FillBytes(make([]byte, 72))} {
		slices.Reverse(n)
		copy(report[at:], n)
	}
	return report, nil
}

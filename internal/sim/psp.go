// Package sim is a simulated node: a software AMD secure processor and, in its sub-packages, the kernel interfaces
// and the AWS services around it. It is for the demonstration and for tests, and is linked into nothing that ships.
//
// The secure processor signs with a new root of its own, so that nothing it signs passes for AMD's and nobody else can
// sign what a test trusts. Its reports look like those of today's EC2 in every field.
package sim

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"syscall"
	"time"

	"sevagent/internal/snp"
)

// Options set what a report shows, besides REPORT_DATA. DefaultOptions returns those of EC2's shared tenancy.
type Options struct {
	// Product is the processor's. The root is that of the product line that New has been given.
	Product snp.Product
	// Region is in the VLEK's CSP_ID.
	Region       string
	Signer       snp.SigningKey
	Version      uint32
	Policy       snp.GuestPolicy
	PlatformInfo snp.PlatformInfo
	// TCB is used for all four of a report: current, committed, launch and reported.
	TCB snp.TCB
	// Firmware is the current version and the committed one.
	Firmware    snp.FirmwareVersion
	Measurement [48]byte
	// ChipID is zero with a VLEK on EC2; it is also the VCEK's HWID.
	ChipID    [64]byte
	MitVector uint64
	// VMPL is the lowest that the guest's key may speak for: 1 after the driver was loaded with vmpck_id=1.
	VMPL uint32
	// NotBefore and NotAfter are those of the endorsement key's certificate. The roots are valid from 1999 to 2045.
	NotBefore, NotAfter time.Time
	// IssuerNotAfter is when the ASK and the ASVK that New makes expire; zero: with the root.
	IssuerNotAfter time.Time
	// Alter, if set, changes a report before it is signed, AlterCertificate the endorsement key's certificate: for
	// what no firmware and no AMD has signed.
	Alter            func(report []byte)
	AlterCertificate func(*x509.Certificate)
	// Latency is how long a report takes; hardware needs 8 ms.
	Latency time.Duration
}

// DefaultOptions returns what EC2 shows in 2026, with a certificate issued the day before now.
func DefaultOptions(now time.Time) Options {
	return Options{
		Product: snp.Milan, Region: "us-east-2", Signer: snp.SignedByVLEK, Version: 5, Policy: 0x2030000, PlatformInfo: 0x27,
		TCB:         snp.TCB{Bootloader: 4, TEE: 0, SNP: 29, Microcode: 222},
		Firmware:    snp.FirmwareVersion{Major: 1, Minor: 58, Build: 1},
		Measurement: [48]byte(bytes.Repeat([]byte{0x51}, 48)), MitVector: 0xF,
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.AddDate(1, 0, -1),
	}
}

// PSP is a software secure processor. It is safe for concurrent use and serves one request at a time.
type PSP struct {
	// FaultFile, if set, is read at every request: it sets a fault from another process.
	FaultFile string

	auth *authority
	id   [32]byte      // REPORT_ID, fresh for each launch
	turn chan struct{} // holds a value while a request is served

	mu    sync.Mutex
	leaf  endorsement
	fault string
}

// endorsement is a key with what it signs. It is replaced as a whole.
type endorsement struct {
	o     Options
	key   *ecdsa.PrivateKey
	table []byte // the certificate table
}

// New returns a PSP with a fresh root.
func New(o Options) (*PSP, error) {
	notAfter := o.IssuerNotAfter
	if notAfter.IsZero() {
		notAfter = rootNotAfter
	}
	auth, err := newAuthority(o.Product.Line(), notAfter)
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
	p := &PSP{auth: auth, turn: make(chan struct{}, 1)}
	rand.Read(p.id[:])
	return p, p.SetOptions(o)
}

// Save writes the root, and for verifiers roots.pem and a policy file, policy.yaml. The keys' files have mode 0600.
func (p *PSP) Save(dir string) error { return p.auth.save(dir) }

// Roots returns the trust anchors as PEM: ARK, ASK and ASVK.
func (p *PSP) Roots() []byte { return p.auth.roots() }

// RevocationList returns list in DER, signed by the root as AMD's is.
func (p *PSP) RevocationList(list x509.RevocationList) ([]byte, error) {
	list.Number, list.SignatureAlgorithm = big.NewInt(1), x509.SHA384WithRSAPSS
	return x509.CreateRevocationList(rand.Reader, &list, p.auth.ark, p.auth.arkKey)
}

// SetOptions changes what reports show, with a new endorsement key: what a firmware update does.
func (p *PSP) SetOptions(o Options) error {
	key, cert, err := p.auth.endorse(o)
	if err != nil {
		return err
	}
	id := snp.GUIDVLEK
	if o.Signer == snp.SignedByVCEK {
		id = snp.GUIDVCEK
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leaf = endorsement{o: o, key: key, table: snp.CertTable{{GUID: id, Data: cert.Raw}}.Encode()}
	return nil
}

func (p *PSP) endorsement() endorsement {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.leaf
}

// CertTable returns the table that the host hands out: the endorsement key's certificate and nothing else, as on EC2.
func (p *PSP) CertTable() []byte { return slices.Clone(p.endorsement().table) }

// VMPL returns the lowest that the guest's key may speak for.
func (p *PSP) VMPL() uint32 { return p.endorsement().o.VMPL }

// HostError means that the hypervisor or the firmware refused a request, with the kernel's exitinfo2.
type HostError struct {
	Wiped     bool   // the kernel has destroyed its key and makes no request
	ExitInfo2 uint64 // hypervisor's error in the high half, firmware's in the low half
}

func (e *HostError) Error() string {
	return fmt.Sprintf("wiped %v, exitinfo2 %#x", e.Wiped, e.ExitInfo2)
}

// Errno is its error in configfs-tsm.
func (e *HostError) Errno() syscall.Errno {
	switch {
	case e.Wiped:
		return syscall.ENOTTY
	case e.ExitInfo2 == vmmBusy:
		return syscall.EBUSY
	}
	return syscall.EIO
}

// hypervisor errors, SNP_GUEST_VMM_ERR_*: include/uapi/linux/sev-guest.h.
const (
	vmmInvalidLen = 1 << 32
	vmmBusy       = 2 << 32
)

// Report serves one extended-report request: it returns the report and the certificate table. With FaultHang it does
// not return before the fault is over.
func (p *PSP) Report(reportData [snp.ReportDataSize]byte, vmpl uint32) (report, certs []byte, err error) {
	return p.ReportContext(context.Background(), reportData, vmpl)
}

// ReportContext is Report for a program that may end while it waits.
func (p *PSP) ReportContext(
	ctx context.Context, reportData [snp.ReportDataSize]byte, vmpl uint32,
) (report, certs []byte, err error) {
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	e := p.endorsement()
	if err := pause(ctx, e.o.Latency); err != nil {
		return nil, nil, err
	}
	f, err := parseFault(p.currentFault())
	if err != nil {
		return nil, nil, err
	}
	if err := p.hang(ctx); err != nil {
		return nil, nil, err
	}
	if err := f.refusal(); err != nil {
		return nil, nil, err
	}
	if vmpl < e.o.VMPL {
		return nil, nil, &HostError{ExitInfo2: 0x16} // INVALID_PARAM
	}
	version, certs := e.o.Version, slices.Clone(e.table)
	switch f.name {
	case FaultEcho:
		reportData[0] ^= 1
	case FaultVersion:
		version = snp.MaxKnownVersion + 1
	case FaultTable:
		binary.LittleEndian.PutUint32(certs[16:], 0xFFFFFF00) // an offset that overflows with its length
	}
	report = e.o.marshal(version, p.id, reportData, vmpl)
	if e.o.Alter != nil {
		e.o.Alter(report)
	}
	if err := sign(report, e.key); err != nil {
		return nil, nil, err
	}
	if f.name == FaultFlip {
		report[0x90] ^= 1 // MEASUREMENT
	}
	return report, certs, nil
}

// pause waits for d, or returns why ctx ended before that.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// marshal writes a report without its signature. The offsets of package snp, from AMD 56860, are repeated here so that
// the simulator and the parser check each other.
func (o Options) marshal(version uint32, id [32]byte, reportData [snp.ReportDataSize]byte, vmpl uint32) []byte {
	r := make([]byte, snp.ReportSize)
	le := binary.LittleEndian
	tcb := o.Product.Layout().Pack(o.TCB).Raw
	le.PutUint32(r[0x00:], version)
	le.PutUint64(r[0x08:], uint64(o.Policy))
	le.PutUint32(r[0x30:], vmpl)
	le.PutUint32(r[0x34:], 1) // ECDSA P-384 with SHA-384
	le.PutUint64(r[0x38:], tcb)
	le.PutUint64(r[0x40:], uint64(o.PlatformInfo))
	le.PutUint32(r[0x48:], uint32(o.Signer)<<2)
	copy(r[0x50:], reportData[:])
	copy(r[0x90:], o.Measurement[:])
	copy(r[0x140:], id[:])
	copy(r[0x160:], bytes.Repeat([]byte{0xff}, 32)) // REPORT_ID_MA: no migration agent
	le.PutUint64(r[0x180:], tcb)
	if version >= 3 {
		copy(r[0x188:], map[snp.Product][]byte{ // family, model, stepping
			snp.Milan: {0x19, 0x01, 0x01}, snp.Genoa: {0x19, 0x11, 0x01},
			snp.Bergamo: {0x19, 0xA0, 0x02}, snp.Turin: {0x1A, 0x02, 0x01},
		}[o.Product])
	}
	copy(r[0x1A0:], o.ChipID[:])
	le.PutUint64(r[0x1E0:], tcb)
	for _, at := range []int{0x1E8, 0x1EC} { // current and committed version
		r[at], r[at+1], r[at+2] = o.Firmware.Build, o.Firmware.Minor, o.Firmware.Major
	}
	le.PutUint64(r[0x1F0:], tcb)
	if version >= 5 {
		le.PutUint64(r[0x1F8:], o.MitVector)
		le.PutUint64(r[0x200:], o.MitVector)
	}
	return r
}

// sign sets SIGNATURE: R and S, 72 bytes each, little-endian.
func sign(report []byte, key *ecdsa.PrivateKey) error {
	hash := sha512.Sum384(report[:snp.SignedSize])
	r, s, err := ecdsa.Sign(rand.Reader, key, hash[:])
	if err != nil {
		return err
	}
	signature := slices.Concat(r.FillBytes(make([]byte, 72)), s.FillBytes(make([]byte, 72)))
	slices.Reverse(signature[:72])
	slices.Reverse(signature[72:])
	copy(report[snp.SignedSize:], signature)
	return nil
}

// Package snp reads and writes the byte formats of AMD SEV-SNP guests: the attestation report and the
// certificate table that the host adds to it.
//
// It is pure: no I/O, no clock, no cryptography. Parsing never panics, checks lengths before it reads,
// and keeps the raw bytes, so that a report newer than this code can be passed on as it came. Package
// appraise decides whether a report is genuine.
//
// Names and offsets are those of AMD publication 56860, "SEV Secure Nested Paging Firmware ABI
// Specification", table "ATTESTATION_REPORT Structure".
package snp

import (
	"encoding/binary"
	"fmt"
)

const (
	// ReportSize is the length of an ATTESTATION_REPORT in bytes.
	ReportSize = 0x4A0
	// SignedSize is the length of the part that SIGNATURE covers.
	SignedSize = signatureOffset
	// ReportDataSize is the length of REPORT_DATA, the only field that a guest chooses.
	ReportDataSize = 64
	// MaxKnownVersion is the newest VERSION whose every field this package knows.
	MaxKnownVersion = 5
	// minVersion is the VERSION of the first firmware that was published.
	minVersion = 2
)

// Offsets within the report.
const (
	versionOffset         = 0x000
	guestSVNOffset        = 0x004
	policyOffset          = 0x008
	familyIDOffset        = 0x010
	imageIDOffset         = 0x020
	vmplOffset            = 0x030
	signatureAlgoOffset   = 0x034
	currentTCBOffset      = 0x038
	platformInfoOffset    = 0x040
	flagsOffset           = 0x048
	reportDataOffset      = 0x050
	measurementOffset     = 0x090
	hostDataOffset        = 0x0C0
	idKeyDigestOffset     = 0x0E0
	authorKeyDigestOffset = 0x110
	reportIDOffset        = 0x140
	reportIDMAOffset      = 0x160
	reportedTCBOffset     = 0x180
	cpuidFamilyOffset     = 0x188 // three bytes: CPUID_FAM_ID, CPUID_MOD_ID, CPUID_STEP; from VERSION 3
	chipIDOffset          = 0x1A0
	committedTCBOffset    = 0x1E0
	currentBuildOffset    = 0x1E8 // three bytes: build, minor, major
	committedBuildOffset  = 0x1EC
	launchTCBOffset       = 0x1F0
	launchMitOffset       = 0x1F8 // from VERSION 5
	currentMitOffset      = 0x200 // from VERSION 5
	signatureOffset       = 0x2A0
)

// Report is a parsed ATTESTATION_REPORT. Fields that its version does not define are zero.
type Report struct {
	Version          uint32
	GuestSVN         uint32
	Policy           GuestPolicy
	FamilyID         [16]byte
	ImageID          [16]byte
	VMPL             uint32
	SignatureAlgo    uint32
	CurrentTCB       TCBVersion
	PlatformInfo     PlatformInfo
	AuthorKeyEn      bool
	MaskChipKey      bool
	SigningKey       SigningKey
	ReportData       [ReportDataSize]byte
	Measurement      [48]byte
	HostData         [32]byte
	IDKeyDigest      [48]byte
	AuthorKeyDigest  [48]byte
	ReportID         [32]byte
	ReportIDMA       [32]byte
	ReportedTCB      TCBVersion
	CPUID            CPUID
	ChipID           [64]byte
	CommittedTCB     TCBVersion
	CurrentVersion   FirmwareVersion
	CommittedVersion FirmwareVersion
	LaunchTCB        TCBVersion
	LaunchMitVector  uint64
	CurrentMitVector uint64

	raw [ReportSize]byte
}

// ParseReport reads an attestation report. It accepts every version: what a newer one adds is kept in
// the raw bytes, and Known reports whether all of them are understood.
func ParseReport(raw []byte) (*Report, error) {
	if len(raw) != ReportSize {
		return nil, fmt.Errorf("parse attestation report: %d bytes, want %d", len(raw), ReportSize)
	}
	le := binary.LittleEndian
	r := &Report{
		Version:       le.Uint32(raw[versionOffset:]),
		GuestSVN:      le.Uint32(raw[guestSVNOffset:]),
		Policy:        GuestPolicy(le.Uint64(raw[policyOffset:])),
		VMPL:          le.Uint32(raw[vmplOffset:]),
		SignatureAlgo: le.Uint32(raw[signatureAlgoOffset:]),
		PlatformInfo:  PlatformInfo(le.Uint64(raw[platformInfoOffset:])),
	}
	copy(r.raw[:], raw)
	if r.Version < minVersion {
		return nil, fmt.Errorf("parse attestation report: version %d does not exist", r.Version)
	}
	// Flags, bits of the word at 0x48: 0 AUTHOR_KEY_EN, 1 MASK_CHIP_KEY, 4..2 SIGNING_KEY.
	flags := le.Uint32(raw[flagsOffset:])
	r.AuthorKeyEn = flags&1 != 0
	r.MaskChipKey = flags&2 != 0
	r.SigningKey = SigningKey(flags >> 2 & 7)

	copy(r.FamilyID[:], raw[familyIDOffset:])
	copy(r.ImageID[:], raw[imageIDOffset:])
	copy(r.ReportData[:], raw[reportDataOffset:])
	copy(r.Measurement[:], raw[measurementOffset:])
	copy(r.HostData[:], raw[hostDataOffset:])
	copy(r.IDKeyDigest[:], raw[idKeyDigestOffset:])
	copy(r.AuthorKeyDigest[:], raw[authorKeyDigestOffset:])
	copy(r.ReportID[:], raw[reportIDOffset:])
	copy(r.ReportIDMA[:], raw[reportIDMAOffset:])
	copy(r.ChipID[:], raw[chipIDOffset:])
	r.CurrentVersion = firmwareVersion(raw[currentBuildOffset:])
	r.CommittedVersion = firmwareVersion(raw[committedBuildOffset:])
	if r.Version >= 3 {
		id := raw[cpuidFamilyOffset:]
		r.CPUID = CPUID{Family: id[0], Model: id[1], Stepping: id[2]}
	}
	layout := LayoutMilan // of the products whose firmware writes version 2, which has no CPUID
	if r.Version >= 3 {
		layout = r.CPUID.Product().Layout()
	}
	tcb := func(at int) TCBVersion { return TCBVersion{Raw: le.Uint64(raw[at:]), Layout: layout} }
	r.CurrentTCB, r.ReportedTCB = tcb(currentTCBOffset), tcb(reportedTCBOffset)
	r.CommittedTCB, r.LaunchTCB = tcb(committedTCBOffset), tcb(launchTCBOffset)
	if r.Version >= 5 {
		r.LaunchMitVector = le.Uint64(raw[launchMitOffset:])
		r.CurrentMitVector = le.Uint64(raw[currentMitOffset:])
	}
	return r, nil
}

// Raw returns a copy of the report as it came.
func (r *Report) Raw() []byte { return append([]byte(nil), r.raw[:]...) }

// Known reports whether every field of the report's version is known to this package.
func (r *Report) Known() bool { return r.Version <= MaxKnownVersion }

// Field is a field of a report in words, by AMD's name.
type Field struct{ Name, Value string }

// Fields returns what r shows, for people. It is the report's claim and no more.
func (r *Report) Fields() []Field {
	x := func(b []byte) string { return fmt.Sprintf("%x", b) }
	fields := []Field{
		{"VERSION", fmt.Sprint(r.Version)}, {"SIGNING_KEY", r.SigningKey.String()}, {"VMPL", fmt.Sprint(r.VMPL)},
		{"POLICY", r.Policy.String()}, {"PLATFORM_INFO", r.PlatformInfo.String()},
	}
	if r.Version >= 3 {
		product := string(r.CPUID.Product())
		if product == "" {
			product = "unknown"
		}
		fields = append(fields, Field{"CPUID", r.CPUID.String() + " (" + product + ")"})
	}
	fields = append(fields, []Field{
		{"CURRENT_TCB", r.CurrentTCB.String()}, {"COMMITTED_TCB", r.CommittedTCB.String()},
		{"LAUNCH_TCB", r.LaunchTCB.String()}, {"REPORTED_TCB", r.ReportedTCB.String()},
		{"CURRENT_VERSION", r.CurrentVersion.String()}, {"COMMITTED_VERSION", r.CommittedVersion.String()},
	}...)
	if r.Version >= 5 {
		fields = append(fields, Field{"LAUNCH_MIT_VECTOR", fmt.Sprintf("%#x", r.LaunchMitVector)},
			Field{"CURRENT_MIT_VECTOR", fmt.Sprintf("%#x", r.CurrentMitVector)})
	}
	return append(fields, []Field{
		{"MEASUREMENT", x(r.Measurement[:])}, {"CHIP_ID", x(r.ChipID[:])}, {"REPORT_DATA", x(r.ReportData[:])},
		{"HOST_DATA", x(r.HostData[:])}, {"GUEST_SVN", fmt.Sprint(r.GuestSVN)}, {"FAMILY_ID", x(r.FamilyID[:])},
		{"IMAGE_ID", x(r.ImageID[:])}, {"ID_KEY_DIGEST", x(r.IDKeyDigest[:])},
		{"AUTHOR_KEY_DIGEST", x(r.AuthorKeyDigest[:])}, {"REPORT_ID", x(r.ReportID[:])},
		{"REPORT_ID_MA", x(r.ReportIDMA[:])},
	}...)
}

// FirmwareVersion is the version of the SEV firmware, for example 1.55.29.
type FirmwareVersion struct{ Major, Minor, Build uint8 }

func firmwareVersion(b []byte) FirmwareVersion {
	return FirmwareVersion{Build: b[0], Minor: b[1], Major: b[2]}
}

func (v FirmwareVersion) String() string {
	return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Build)
}

// SigningKey says which key signed a report (SIGNING_KEY).
type SigningKey uint8

// The values of SIGNING_KEY.
const (
	SignedByVCEK SigningKey = 0
	SignedByVLEK SigningKey = 1
	Unsigned     SigningKey = 7
)

func (k SigningKey) String() string {
	switch k {
	case SignedByVCEK:
		return "VCEK"
	case SignedByVLEK:
		return "VLEK"
	case Unsigned:
		return "none"
	}
	return fmt.Sprintf("reserved(%d)", uint8(k))
}

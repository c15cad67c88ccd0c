package snp

import (
	"encoding/binary"
	"fmt"
)

// reserved are the byte ranges of the signed part that must be zero, with the last version of the report that they are
// reserved in: AMD 56860, "ATTESTATION_REPORT Structure".
var reserved = []struct{ from, to, maxVersion int }{
	{0x04C, 0x050, 5},
	{0x188, 0x18B, 2}, // from version 3: CPUID_FAM_ID, CPUID_MOD_ID, CPUID_STEP
	{0x18B, 0x1A0, 5},
	{0x1EB, 0x1EC, 5},
	{0x1EF, 0x1F0, 5},
	{0x1F8, 0x208, 4}, // from version 5: LAUNCH_MIT_VECTOR, CURRENT_MIT_VECTOR
	{0x208, 0x2A0, 5},
}

const (
	// signatureEnd is where R and S end, 72 bytes each: AMD 56860, "Format for an ECDSA P-384 with SHA-384 Signature".
	// The rest of the report is reserved, and no signature covers it.
	signatureEnd = signatureOffset + 2*72
	// flagsKnown are the bits of the word at 0x48 that have a name.
	flagsKnown = 0x1F
)

// CheckSigned returns an error if the signed part of a report of a known version has bits set, or cleared, that its
// version reserves: if it says something that this package has no name for. PLATFORM_INFO is left to the policy, since
// its bits are for the verifier to weigh.
func (r *Report) CheckSigned() error {
	if unknown := r.Policy.Unknown(); unknown != 0 {
		return fmt.Errorf("POLICY has unknown bits, %#x", uint64(unknown))
	}
	if r.Policy&PolicyReserved1 == 0 {
		return fmt.Errorf("POLICY has bit 17 clear, which is always set")
	}
	if unknown := binary.LittleEndian.Uint32(r.raw[flagsOffset:]) &^ flagsKnown; unknown != 0 {
		return fmt.Errorf("the flags at 0x48 have unknown bits, %#x", unknown)
	}
	if r.CPUID.Stepping > 0xF { // CPUID has four bits for it
		return fmt.Errorf("CPUID_STEP is %#x, more than a stepping can be", r.CPUID.Stepping)
	}
	for _, z := range reserved {
		if int(r.Version) > z.maxVersion {
			continue
		}
		if at := notZero(r.raw[:], z.from, z.to); at >= 0 {
			return fmt.Errorf("byte %#x is %#x, and version %d reserves it", at, r.raw[at], r.Version)
		}
	}
	return nil
}

// CheckUnsigned returns an error unless what follows R and S in SIGNATURE is zero. Nothing covers those bytes: a report
// that has any was changed after it was signed.
func (r *Report) CheckUnsigned() error {
	if at := notZero(r.raw[:], signatureEnd, ReportSize); at >= 0 {
		return fmt.Errorf("byte %#x, behind the signature, is %#x, want zero", at, r.raw[at])
	}
	return nil
}

// notZero returns the first offset in [from, to) whose byte is not zero, or -1.
func notZero(raw []byte, from, to int) int {
	for at := from; at < to; at++ {
		if raw[at] != 0 {
			return at
		}
	}
	return -1
}

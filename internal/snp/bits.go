package snp

import (
	"fmt"
	"strings"
)

// GuestPolicy is POLICY: what the guest's owner allowed when it was launched.
type GuestPolicy uint64

// Bits of POLICY. Bits 7..0 and 15..8 are the minimum ABI minor and major version.
const (
	PolicySMT                  GuestPolicy = 1 << 16
	PolicyReserved1            GuestPolicy = 1 << 17 // always one
	PolicyMigrateMA            GuestPolicy = 1 << 18
	PolicyDebug                GuestPolicy = 1 << 19
	PolicySingleSocket         GuestPolicy = 1 << 20
	PolicyCXLAllow             GuestPolicy = 1 << 21
	PolicyMemAES256XTS         GuestPolicy = 1 << 22
	PolicyRAPLDis              GuestPolicy = 1 << 23
	PolicyCiphertextHidingDRAM GuestPolicy = 1 << 24
	PolicyPageSwapDisable      GuestPolicy = 1 << 25
)

// PlatformInfo is PLATFORM_INFO: what the platform has switched on.
type PlatformInfo uint64

// Bits of PLATFORM_INFO.
const (
	PlatformSMTEn                  PlatformInfo = 1 << 0
	PlatformTSMEEn                 PlatformInfo = 1 << 1
	PlatformECCEn                  PlatformInfo = 1 << 2
	PlatformRAPLDis                PlatformInfo = 1 << 3
	PlatformCiphertextHidingDRAMEn PlatformInfo = 1 << 4
	PlatformAliasCheckComplete     PlatformInfo = 1 << 5
	PlatformTIOEn                  PlatformInfo = 1 << 7
)

// BitName pairs a bit with AMD's name for it.
type BitName struct {
	Bit  uint64
	Name string
}

// PolicyBits and PlatformBits name the bits that AMD had defined when this was written, lowest first.
var (
	PolicyBits = []BitName{
		{uint64(PolicySMT), "SMT"},
		{uint64(PolicyMigrateMA), "MIGRATE_MA"},
		{uint64(PolicyDebug), "DEBUG"},
		{uint64(PolicySingleSocket), "SINGLE_SOCKET"},
		{uint64(PolicyCXLAllow), "CXL_ALLOW"},
		{uint64(PolicyMemAES256XTS), "MEM_AES_256_XTS"},
		{uint64(PolicyRAPLDis), "RAPL_DIS"},
		{uint64(PolicyCiphertextHidingDRAM), "CIPHERTEXT_HIDING_DRAM"},
		{uint64(PolicyPageSwapDisable), "PAGE_SWAP_DISABLE"},
	}
	PlatformBits = []BitName{
		{uint64(PlatformSMTEn), "SMT_EN"},
		{uint64(PlatformTSMEEn), "TSME_EN"},
		{uint64(PlatformECCEn), "ECC_EN"},
		{uint64(PlatformRAPLDis), "RAPL_DIS"},
		{uint64(PlatformCiphertextHidingDRAMEn), "CIPHERTEXT_HIDING_DRAM_EN"},
		{uint64(PlatformAliasCheckComplete), "ALIAS_CHECK_COMPLETE"},
		{uint64(PlatformTIOEn), "TIO_EN"},
	}
)

// Unknown returns the bits of p that have no name here.
func (p GuestPolicy) Unknown() GuestPolicy {
	return p &^ (0xffff | PolicyReserved1 | GuestPolicy(mask(PolicyBits)))
}

// Unknown returns the bits of p that have no name here.
func (p PlatformInfo) Unknown() PlatformInfo { return p &^ PlatformInfo(mask(PlatformBits)) }

// String gives the value and its names, for example "0x30000 (SMT)".
func (p GuestPolicy) String() string {
	return describe(uint64(p), uint64(p&^(0xffff|PolicyReserved1)), PolicyBits)
}

// String gives the value and its names, for example "0x27 (SMT_EN, TSME_EN, ECC_EN, ALIAS_CHECK_COMPLETE)".
func (p PlatformInfo) String() string { return describe(uint64(p), uint64(p), PlatformBits) }

func mask(names []BitName) (m uint64) {
	for _, n := range names {
		m |= n.Bit
	}
	return m
}

func describe(value, named uint64, names []BitName) string {
	var parts []string
	for _, n := range names {
		if named&n.Bit != 0 {
			parts = append(parts, n.Name)
		}
	}
	if rest := named &^ mask(names); rest != 0 {
		parts = append(parts, fmt.Sprintf("unknown %#x", rest))
	}
	if parts == nil {
		return fmt.Sprintf("%#x", value)
	}
	return fmt.Sprintf("%#x (%s)", value, strings.Join(parts, ", "))
}

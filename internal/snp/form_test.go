package snp_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/go-sev-guest/abi"

	"sevagent/internal/must"
	"sevagent/internal/snp"
)

// wellFormed is a report of a version, with all that its version knows set.
func wellFormed(version uint32) []byte {
	raw := bytes.Repeat([]byte{0xA5}, snp.ReportSize)
	le := binary.LittleEndian
	le.PutUint32(raw, version)
	le.PutUint64(raw[0x08:], 0x3ffffff)
	le.PutUint32(raw[0x34:], 1)
	le.PutUint32(raw[0x48:], 3)
	clear(raw[0x4C:0x50])
	clear(raw[0x188:0x1A0])
	if version >= 3 {
		copy(raw[0x188:], []byte{0x19, 0x11, 0x0f})
	}
	raw[0x1EB], raw[0x1EF] = 0, 0
	clear(raw[0x1F8:0x2A0])
	if version >= 5 {
		le.PutUint64(raw[0x1F8:], 1<<64-1)
		le.PutUint64(raw[0x200:], 1<<64-1)
	}
	clear(raw[0x2A0+144:])
	return raw
}

// check is the whole form: what is signed and what is not.
func check(raw []byte) error {
	r, err := snp.ParseReport(raw)
	if err != nil {
		return err
	}
	if err := r.CheckSigned(); err != nil {
		return err
	}
	return r.CheckUnsigned()
}

// libraryAccepts reports whether go-sev-guest takes the form of a report: what its verification checks beside the
// signature. It verifies what it writes again from its own type, so that bits which that lacks break the signature.
func libraryAccepts(raw []byte) bool {
	report, err := abi.ReportToProto(raw)
	if err != nil || abi.ValidateReportFormat(raw) != nil {
		return false
	}
	again, err := abi.ReportToAbiBytes(report)
	return err == nil && bytes.Equal(again, raw)
}

// stricter reports whether raw has what only this package refuses: the mitigation vectors are reserved before version
// 5, and go-sev-guest reads them in every version.
func stricter(raw []byte) bool {
	return binary.LittleEndian.Uint32(raw) < 5 && !bytes.Equal(raw[0x1F8:0x208], make([]byte, 16))
}

// agree holds the form of one report against the library's.
func agree(t *testing.T, raw []byte) {
	t.Helper()
	r, err := snp.ParseReport(raw)
	if err != nil || !r.Known() || r.SigningKey > snp.SignedByVLEK && r.SigningKey != snp.Unsigned {
		return // refused before the form is looked at
	}
	if r.SignatureAlgo != 1 {
		return // another algorithm, which no signature verifies by
	}
	mine, theirs := check(raw), libraryAccepts(raw)
	if want := theirs && !stricter(raw); (mine == nil) != want {
		t.Errorf("version %d: this package says %v, go-sev-guest accepts: %v", r.Version, mine, theirs)
	}
}

// TestFormOfEveryBit flips every bit of a report of every version, and holds the result against go-sev-guest.
func TestFormOfEveryBit(t *testing.T) {
	for version := uint32(2); version <= snp.MaxKnownVersion; version++ {
		good := wellFormed(version)
		if err := check(good); err != nil || !libraryAccepts(good) {
			t.Fatalf("version %d: the unchanged report: %v, go-sev-guest accepts: %v",
				version, err, libraryAccepts(good))
		}
		for bit := range 8 * snp.ReportSize {
			raw := bytes.Clone(good)
			raw[bit/8] ^= 1 << (bit % 8)
			agree(t, raw)
			if t.Failed() {
				t.Fatalf("bit %d of byte %#x", bit%8, bit/8)
			}
		}
	}
}

// TestReservedBytes: each is named, and where the version knows it, it is free.
func TestReservedBytes(t *testing.T) {
	for _, c := range []struct {
		version  uint32
		at       int
		signed   string
		unsigned string
	}{
		{5, 0x4C, "byte 0x4c is 0x1, and version 5 reserves it", ""},
		{2, 0x18A, "byte 0x18a is 0x1, and version 2 reserves it", ""},
		{3, 0x18B, "byte 0x18b is 0x1, and version 3 reserves it", ""},
		{5, 0x1EB, "byte 0x1eb is 0x1, and version 5 reserves it", ""},
		{5, 0x1EF, "byte 0x1ef is 0x1, and version 5 reserves it", ""},
		{4, 0x1F8, "byte 0x1f8 is 0x1, and version 4 reserves it", ""},
		{4, 0x207, "byte 0x207 is 0x1, and version 4 reserves it", ""},
		{5, 0x208, "byte 0x208 is 0x1, and version 5 reserves it", ""},
		{5, 0x29F, "byte 0x29f is 0x1, and version 5 reserves it", ""},
		{5, 0x330, "", "byte 0x330, behind the signature, is 0x1, want zero"},
		{5, 0x49F, "", "byte 0x49f, behind the signature, is 0x1, want zero"},
		{5, 0x49, "the flags at 0x48 have unknown bits, 0x100", ""},
		{5, 0x0C, "POLICY has unknown bits, 0x100000000", ""},
		{5, 0x0A, "POLICY has bit 17 clear, which is always set", ""},
		{5, 0x18A, "CPUID_STEP is 0x1f, more than a stepping can be", ""},
	} {
		raw := wellFormed(c.version)
		switch c.at {
		case 0x0A:
			raw[c.at] &^= 2
		case 0x18A:
			raw[c.at] |= 0x10
			if c.version == 2 {
				raw[c.at] = 1
			}
		default:
			raw[c.at] |= 1
		}
		r := must.Get(snp.ParseReport(raw))(t, "parse a report")
		if got := text(r.CheckSigned()); got != c.signed {
			t.Errorf("version %d, byte %#x: the signed part: %q, want %q", c.version, c.at, got, c.signed)
		}
		if got := text(r.CheckUnsigned()); got != c.unsigned {
			t.Errorf("version %d, byte %#x: the unsigned part: %q, want %q", c.version, c.at, got, c.unsigned)
		}
	}
	if _, err := snp.ParseReport(wellFormed(1)); err == nil {
		t.Error("a report of version 1 parses, and there is none")
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// FuzzForm holds the form of any report against go-sev-guest's.
func FuzzForm(f *testing.F) {
	for version := uint32(2); version <= snp.MaxKnownVersion; version++ {
		f.Add(wellFormed(version))
	}
	f.Fuzz(func(t *testing.T, raw []byte) { agree(t, raw) })
}

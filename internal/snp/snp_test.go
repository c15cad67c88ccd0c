package snp_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-sev-guest/abi"

	"sevagent/internal/must"
	"sevagent/internal/snp"
)

// realReports are reports of EC2 and other hosts that are not ours to distribute; tests that need them skip
// where the directory is absent.
const realReports = "../../../shared/testdata/aws-snp"

func TestRealReports(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(realReports, "*-report.bin"))
	if err != nil || len(files) == 0 {
		t.Skipf("no real reports in %s", realReports)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			raw := must.Get(os.ReadFile(file))(t, "read a file")
			agreesWithLibrary(t, raw)
		})
	}
}

// agreesWithLibrary compares every field with an independent parser.
func agreesWithLibrary(t *testing.T, raw []byte) {
	t.Helper()
	r := must.Get(snp.ParseReport(raw))(t, "parse a report")
	p := must.Get(abi.ReportToProto(raw))(t, "parse a report with the library")
	numbers := []struct {
		name      string
		got, want uint64
	}{
		{"version", uint64(r.Version), uint64(p.Version)},
		{"guest SVN", uint64(r.GuestSVN), uint64(p.GuestSvn)},
		{"policy", uint64(r.Policy), p.Policy},
		{"VMPL", uint64(r.VMPL), uint64(p.Vmpl)},
		{"signature algorithm", uint64(r.SignatureAlgo), uint64(p.SignatureAlgo)},
		{"current TCB", r.CurrentTCB.Raw, p.CurrentTcb},
		{"reported TCB", r.ReportedTCB.Raw, p.ReportedTcb},
		{"committed TCB", r.CommittedTCB.Raw, p.CommittedTcb},
		{"launch TCB", r.LaunchTCB.Raw, p.LaunchTcb},
		{"platform info", uint64(r.PlatformInfo), p.PlatformInfo},
		{"launch mitigation vector", r.LaunchMitVector, p.LaunchMitVector},
		{"current mitigation vector", r.CurrentMitVector, p.CurrentMitVector},
		{"current build", uint64(r.CurrentVersion.Build), uint64(p.CurrentBuild)},
		{"current minor", uint64(r.CurrentVersion.Minor), uint64(p.CurrentMinor)},
		{"committed major", uint64(r.CommittedVersion.Major), uint64(p.CommittedMajor)},
	}
	for _, n := range numbers {
		if n.got != n.want {
			t.Errorf("%s = %#x, go-sev-guest says %#x", n.name, n.got, n.want)
		}
	}
	for name, pair := range map[string][2][]byte{
		"report data": {r.ReportData[:], p.ReportData}, "measurement": {r.Measurement[:], p.Measurement},
		"host data": {r.HostData[:], p.HostData}, "chip ID": {r.ChipID[:], p.ChipId},
		"report ID": {r.ReportID[:], p.ReportId}, "report ID MA": {r.ReportIDMA[:], p.ReportIdMa},
		"family ID": {r.FamilyID[:], p.FamilyId}, "image ID": {r.ImageID[:], p.ImageId},
		"ID key digest":     {r.IDKeyDigest[:], p.IdKeyDigest},
		"author key digest": {r.AuthorKeyDigest[:], p.AuthorKeyDigest},
	} {
		if !bytes.Equal(pair[0], pair[1]) {
			t.Errorf("%s = %x, go-sev-guest says %x", name, pair[0], pair[1])
		}
	}
	if !bytes.Equal(r.Raw(), raw) {
		t.Error("Raw differs from what was parsed")
	}
}

func TestParseReportEveryLength(t *testing.T) {
	raw := bytes.Repeat([]byte{0xff}, snp.ReportSize+16)
	for n := range len(raw) + 1 {
		_, err := snp.ParseReport(raw[:n])
		if (err == nil) != (n == snp.ReportSize) {
			t.Fatalf("%d bytes: err = %v", n, err)
		}
	}
	if _, err := snp.ParseReport(make([]byte, snp.ReportSize)); err == nil {
		t.Error("an all-zero report parses")
	}
}

// TestFields: a field is never taken from another's place, and exists in the versions that define it.
func TestFields(t *testing.T) {
	for version := uint32(2); version <= snp.MaxKnownVersion; version++ {
		raw := wellFormed(version)
		for i := range raw {
			if raw[i] == 0xA5 { // free bytes, and each differs from its neighbours
				raw[i] = byte(i*7 + i>>8)
			}
		}
		agreesWithLibrary(t, raw)
		r := must.Get(snp.ParseReport(raw))(t, "parse a report")
		if cpuid := (snp.CPUID{Family: 0x19, Model: 0x11, Stepping: 0x0f}); (r.CPUID == cpuid) != (version >= 3) {
			t.Errorf("version %d: CPUID is %v", version, r.CPUID)
		}
		if (r.LaunchMitVector != 0) != (version >= 5) || (r.CurrentMitVector != 0) != (version >= 5) {
			t.Errorf("version %d: mitigation vectors are %#x and %#x", version, r.LaunchMitVector, r.CurrentMitVector)
		}
		if !r.Known() {
			t.Errorf("version %d is unknown", version)
		}
		odd := bytes.Clone(raw) // with the bytes of later versions set
		copy(odd[0x188:], []byte{0x1A, 0x02, 1})
		odd[0x1F8], odd[0x200] = 1, 1
		if r := must.Get(snp.ParseReport(odd))(t, "parse a report"); (r.CPUID != snp.CPUID{}) != (version >= 3) ||
			(r.LaunchMitVector != 0) != (version >= 5) || (r.CurrentMitVector != 0) != (version >= 5) {
			t.Errorf("version %d has fields of later ones: %v, %#x, %#x", version, r.CPUID, r.LaunchMitVector,
				r.CurrentMitVector)
		}
		layout := snp.LayoutMilan
		if version >= 3 {
			raw[0x188], raw[0x189] = 0x1A, 0x02
			layout = snp.LayoutTurin
		}
		r = must.Get(snp.ParseReport(raw))(t, "parse a report")
		for _, tcb := range []snp.TCBVersion{r.CurrentTCB, r.ReportedTCB, r.CommittedTCB, r.LaunchTCB} {
			if tcb.Layout != layout {
				t.Errorf("version %d: the layout of a TCB is %v, want %v", version, tcb.Layout, layout)
			}
		}
		for flags := range uint32(32) {
			binary.LittleEndian.PutUint32(raw[0x48:], flags)
			r := must.Get(snp.ParseReport(raw))(t, "parse a report")
			if r.AuthorKeyEn != (flags%2 == 1) || r.MaskChipKey != (flags/2%2 == 1) || uint32(r.SigningKey) != flags/4 {
				t.Errorf("flags %05b: AUTHOR_KEY_EN %v, MASK_CHIP_KEY %v, SIGNING_KEY %d", flags, r.AuthorKeyEn, r.MaskChipKey,
					r.SigningKey)
			}
		}
	}
}

// TestProducts: families and models to their ends.
func TestProducts(t *testing.T) {
	for _, c := range []struct {
		family      uint8
		first, last uint8
		want        snp.Product
	}{
		{0x18, 0x00, 0xFF, ""},
		{0x19, 0x00, 0x0F, snp.Milan}, {0x19, 0x10, 0x1F, snp.Genoa}, {0x19, 0x20, 0x9F, ""}, {0x19, 0xA0, 0xAF, snp.Bergamo},
		{0x19, 0xB0, 0xFF, ""},
		{0x1A, 0x00, 0x11, snp.Turin}, {0x1A, 0x12, 0xFF, ""},
		{0x1B, 0x00, 0xFF, ""},
	} {
		for model := int(c.first); model <= int(c.last); model++ {
			if got := (snp.CPUID{Family: c.family, Model: uint8(model)}).Product(); got != c.want {
				t.Errorf("family %#x, model %#x: %q, want %q", c.family, model, got, c.want)
			}
		}
	}
}

// TestAtLeast: each component counts by itself.
func TestAtLeast(t *testing.T) {
	min := snp.TCB{FMC: 2, Bootloader: 3, TEE: 4, SNP: 5, Microcode: 6}
	if !min.AtLeast(min) {
		t.Error("a TCB is below itself")
	}
	for name, lower := range map[string]func(*snp.TCB){
		"FMC": func(t *snp.TCB) { t.FMC-- }, "bootloader": func(t *snp.TCB) { t.Bootloader-- },
		"TEE": func(t *snp.TCB) { t.TEE-- }, "SNP": func(t *snp.TCB) { t.SNP-- },
		"microcode": func(t *snp.TCB) { t.Microcode-- },
	} {
		got := snp.TCB{FMC: 9, Bootloader: 9, TEE: 9, SNP: 9, Microcode: 9}
		if !got.AtLeast(min) {
			t.Errorf("%v is below %v", got, min)
		}
		got = min
		if lower(&got); got.AtLeast(min) {
			t.Errorf("%s below its minimum: %v is at least %v", name, got, min)
		}
	}
}

func TestNewerVersionIsKept(t *testing.T) {
	raw := bytes.Repeat([]byte{0x5a}, snp.ReportSize)
	binary.LittleEndian.PutUint32(raw, snp.MaxKnownVersion+1)
	r := must.Get(snp.ParseReport(raw))(t, "parse a report")
	if r.Known() || !bytes.Equal(r.Raw(), raw) {
		t.Errorf("Known = %v, raw kept = %v", r.Known(), bytes.Equal(r.Raw(), raw))
	}
}

func TestTCB(t *testing.T) {
	// REPORTED_TCB of EC2's reports of 2026: 4/0/29/222.
	v := snp.TCBVersion{Raw: 0xde1d000000000004}
	if got := v.String(); got != "4.0.29.222" {
		t.Errorf("String = %q", got)
	}
	if got := v.Components().Version(); got != v {
		t.Errorf("taken apart and put together: %#x, was %#x", got.Raw, v.Raw)
	}
	min := snp.TCB{Bootloader: 4, SNP: 24, Microcode: 217}
	if !v.Components().AtLeast(min) {
		t.Error("4.0.29.222 is below 4.0.24.217")
	}
	if (snp.TCB{Bootloader: 5, SNP: 24, Microcode: 216}).AtLeast(min) {
		t.Error("a higher component makes up for a lower one")
	}
}

// TestTCBLayouts: each product's bytes by their own names, and no names for those of a product without one.
func TestTCBLayouts(t *testing.T) {
	for _, c := range []struct {
		cpuid snp.CPUID
		line  string
		raw   uint64
		want  string
	}{
		{snp.CPUID{Family: 0x19, Model: 0x01, Stepping: 1}, "Milan", 0xde1d000000000004, "4.0.29.222"},
		{snp.CPUID{Family: 0x19, Model: 0x11, Stepping: 1}, "Genoa", 0x541700000000000a, "10.0.23.84"},
		{snp.CPUID{Family: 0x19, Model: 0x11, Stepping: 1}, "Genoa", 0x541700000000050a, "10.5.23.84"},
		{snp.CPUID{Family: 0x19, Model: 0xA0, Stepping: 2}, "Genoa", 0x191700000000000a, "10.0.23.25"},
		{snp.CPUID{Family: 0x1A, Model: 0x02, Stepping: 1}, "Turin", 0x5100000004010101, "1.1.1.4.81"},
		{snp.CPUID{Family: 0x1A, Model: 0x11}, "Turin", 0x5100000004010200, "0.2.1.4.81"},
		{snp.CPUID{Family: 0x1A, Model: 0x02}, "Turin", 0x5101000004010101, "1.1.1.4.81 (0x5101000004010101)"},
		{snp.CPUID{Family: 0x19, Model: 0x01}, "Milan", 0xde1d010000000004, "4.0.29.222 (0xde1d010000000004)"},
		{snp.CPUID{Family: 0x1A, Model: 0x50}, "", 0x5100000004010101, "0x5100000004010101"},
		{snp.CPUID{Family: 0x19, Model: 0x20}, "", 1, "0x0000000000000001"},
		{snp.CPUID{Family: 0x17, Model: 0x31}, "", 1, "0x0000000000000001"},
		{snp.CPUID{}, "", 1, "0x0000000000000001"},
	} {
		product := c.cpuid.Product()
		v := snp.TCBVersion{Raw: c.raw, Layout: product.Layout()}
		if product.Line() != c.line || v.String() != c.want {
			t.Errorf("%v: line %q, TCB %v, want %q, %s", c.cpuid, product.Line(), v, c.line, c.want)
		}
		if again := v.Layout.Pack(v.Components()).Raw | v.Reserved(); again != c.raw && product != "" {
			t.Errorf("%v: taken apart and put together: %#x, was %#x", c.cpuid, again, c.raw)
		}
	}
}

// TestFieldsInWords: people are shown a field in the versions that have it.
func TestFieldsInWords(t *testing.T) {
	for version := uint32(2); version <= snp.MaxKnownVersion; version++ {
		raw := wellFormed(version)
		for cpuid, product := range map[string]string{"\x19\x11\x01": "(Genoa)", "\x19\xff\x01": "(unknown)"} {
			if version >= 3 {
				copy(raw[0x188:], cpuid)
			}
			values := make(map[string]string)
			for _, f := range must.Get(snp.ParseReport(raw))(t, "parse a report").Fields() {
				values[f.Name] = f.Value
			}
			if got := values["CPUID"]; strings.HasSuffix(got, product) != (version >= 3) || (got != "") != (version >= 3) {
				t.Errorf("version %d: CPUID is %q, want %s from version 3", version, got, product)
			}
			if got := values["LAUNCH_MIT_VECTOR"]; (got == "0xffffffffffffffff") != (version >= 5) ||
				got != values["CURRENT_MIT_VECTOR"] {
				t.Errorf("version %d: LAUNCH_MIT_VECTOR is %q, want it from version 5", version, got)
			}
		}
	}
}

func TestBitsHaveTheirNames(t *testing.T) {
	const want = "0x10000000027 (SMT_EN, TSME_EN, ECC_EN, ALIAS_CHECK_COMPLETE, unknown 0x10000000000)"
	if got := snp.PlatformInfo(0x27 | 1<<40).String(); got != want {
		t.Errorf("PlatformInfo = %q, want %q", got, want)
	}
	if got, want := snp.GuestPolicy(0x2030000).String(), "0x2030000 (SMT, PAGE_SWAP_DISABLE)"; got != want {
		t.Errorf("GuestPolicy = %q, want %q", got, want)
	}
	// AMD 56860, "Guest Policy Structure" and "PLATFORM_INFO Field", from bit 16 and from bit 0; "" has no name.
	for i, name := range strings.Split("SMT,,MIGRATE_MA,DEBUG,SINGLE_SOCKET,CXL_ALLOW,MEM_AES_256_XTS,RAPL_DIS,"+
		"CIPHERTEXT_HIDING_DRAM,PAGE_SWAP_DISABLE", ",") {
		bit := snp.GuestPolicy(1) << (16 + i)
		if got, want := bit.String(), fmt.Sprintf("%#x (%s)", uint64(bit), name); got != want && name != "" {
			t.Errorf("GuestPolicy = %q, want %q", got, want)
		}
	}
	for i, name := range strings.Split("SMT_EN,TSME_EN,ECC_EN,RAPL_DIS,CIPHERTEXT_HIDING_DRAM_EN,ALIAS_CHECK_COMPLETE,"+
		"unknown 0x40,TIO_EN", ",") {
		bit := snp.PlatformInfo(1) << i
		if got, want := bit.String(), fmt.Sprintf("%#x (%s)", uint64(bit), name); got != want {
			t.Errorf("PlatformInfo = %q, want %q", got, want)
		}
	}
	if got := snp.GuestPolicy(0x30000 | 1<<30).Unknown(); got != 1<<30 {
		t.Errorf("unknown policy bits = %#x", uint64(got))
	}
	if got := snp.PlatformInfo(0x27 | 1<<40).Unknown(); got != 1<<40 {
		t.Errorf("unknown platform bits = %#x", uint64(got))
	}
	if got := snp.PlatformInfo(0).String(); got != "0x0" {
		t.Errorf("no platform bits are %q", got)
	}
}

func TestCertTable(t *testing.T) {
	table := snp.CertTable{{GUID: snp.GUIDVLEK, Data: []byte("leaf")}, {GUID: snp.GUIDARK, Data: []byte("root")}}
	got := must.Get(snp.ParseCertTable(table.Encode()))(t, "parse the certificate table")
	if string(got.Find(snp.GUIDVLEK)) != "leaf" || string(got.Find(snp.GUIDARK)) != "root" ||
		got.Find(snp.GUIDASK) != nil {
		t.Errorf("read back: %v", got)
	}
	g := snp.GUIDVLEK
	mixedOrder := snp.GUID(concat([]byte{g[3], g[2], g[1], g[0], g[5], g[4], g[7], g[6]}, g[8:]))
	table = snp.CertTable{{GUID: snp.GUIDARK, Data: []byte("root")}, {GUID: mixedOrder, Data: []byte("mixed")}}
	if string(table.Find(snp.GUIDVLEK)) != "mixed" || table.Find(snp.GUIDVCEK) != nil {
		t.Errorf("GUIDs in the mixed byte order: %v", table)
	}
	// go-sev-guest writes GUIDs in the mixed byte order that other hosts use.
	var lib abi.CertTable
	lib.Entries = []abi.CertTableEntry{{GUID: parseGUID(t, abi.VlekGUID), RawCert: []byte("leaf")}}
	mixed := must.Get(snp.ParseCertTable(lib.Marshal()))(t, "parse the library's table")
	if string(mixed.Find(snp.GUIDVLEK)) != "leaf" {
		t.Errorf("go-sev-guest's table: %v", mixed)
	}
}

func parseGUID(t *testing.T, s string) (g [16]byte) {
	t.Helper()
	for _, e := range []snp.GUID{snp.GUIDVLEK, snp.GUIDVCEK, snp.GUIDASK, snp.GUIDARK} {
		if e.String() == s {
			return e
		}
	}
	t.Fatalf("GUID %s has no name", s)
	return g
}

// TestEmptyEntriesArePassedOver: hosts write one for a certificate that they do not have.
func TestEmptyEntriesArePassedOver(t *testing.T) {
	entry := func(g snp.GUID, offset, length uint32) []byte {
		b := append([]byte(nil), g[:]...)
		return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, offset), length)
	}
	end := make([]byte, 24)
	raw := concat(entry(snp.GUIDASK, 72, 0), entry(snp.GUIDVCEK, 72+24, 4), end, make([]byte, 24), []byte("leaf"))
	for name, raw := range map[string][]byte{
		"before the certificate": raw,
		"with an offset outside": concat(entry(snp.GUIDASK, 1<<31, 0), raw[24:]),
		"after the certificate":  concat(raw[24:48], raw[:24], raw[48:]),
	} {
		table, err := snp.ParseCertTable(raw)
		if err != nil || len(table) != 1 || string(table.Find(snp.GUIDVCEK)) != "leaf" {
			t.Errorf("%s: %v, %v, want the one certificate", name, table, err)
		}
	}
	// An empty entry is part of the header, which no certificate may overlap.
	table, err := snp.ParseCertTable(concat(entry(snp.GUIDASK, 72, 0), entry(snp.GUIDVCEK, 48, 4), end))
	if err == nil {
		t.Errorf("a certificate within the header: %v, want an error", table)
	}
	if table, err := snp.ParseCertTable(concat(bytes.Repeat(entry(snp.GUIDASK, 0, 0), 17), end)); err == nil {
		t.Errorf("17 empty entries: %v, want an error", table)
	}
}

// TestLargestCertTables are at the ends of what is allowed.
func TestLargestCertTables(t *testing.T) {
	entry := func(g snp.GUID, offset, length uint32) []byte {
		return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(bytes.Clone(g[:]), offset), length)
	}
	end, body := make([]byte, 24), bytes.Repeat([]byte{1}, 16)
	full := concat(entry(snp.GUIDVLEK, 48, snp.MaxCertTableSize-48), end, make([]byte, snp.MaxCertTableSize-48))
	for name, c := range map[string]struct {
		raw     []byte
		entries int
	}{
		"empty":                    {nil, 0},
		"nothing but its end":      {end, 0},
		"of the greatest size":     {full, 1},
		"one behind the other":     {concat(entry(snp.GUIDVLEK, 72, 8), entry(snp.GUIDARK, 80, 8), end, body), 2},
		"the other way round":      {concat(entry(snp.GUIDVLEK, 80, 8), entry(snp.GUIDARK, 72, 8), end, body), 2},
		"a GUID of zeros":          {concat(entry(snp.GUID{}, 72, 8), entry(snp.GUIDARK, 80, 8), end, body), 2},
		"a GUID of zeros, empty":   {concat(entry(snp.GUID{}, 72, 0), entry(snp.GUIDARK, 80, 8), end, body), 1},
		"sixteen entries":          {concat(bytes.Repeat(entry(snp.GUIDARK, 0, 0), 16), end), 0},
		"zeros in front of others": {concat(end, entry(snp.GUIDARK, 1<<31, 1<<31)), 0},
	} {
		if table, err := snp.ParseCertTable(c.raw); err != nil || len(table) != c.entries {
			t.Errorf("%s: %d entries, %v, want %d", name, len(table), err, c.entries)
		}
	}
}

// TestTableOfARealHost has an empty entry before its one certificate.
func TestTableOfARealHost(t *testing.T) {
	raw, err := os.ReadFile("../../../shared/cases/attestation/ms-milan-table-empty-ask.bin")
	if err != nil {
		t.Skipf("no real table: %v", err)
	}
	table, err := snp.ParseCertTable(raw)
	if err != nil || len(table) != 1 || len(table.Find(snp.GUIDVCEK)) < 1000 {
		t.Errorf("%d entries, %v, want the VCEK alone", len(table), err)
	}
}

func TestHostileCertTables(t *testing.T) {
	entry := func(g snp.GUID, offset, length uint32) []byte {
		b := append([]byte(nil), g[:]...)
		b = binary.LittleEndian.AppendUint32(b, offset)
		return binary.LittleEndian.AppendUint32(b, length)
	}
	end := make([]byte, 24)
	body := bytes.Repeat([]byte{1}, 64)
	many := bytes.Repeat(entry(snp.GUIDVLEK, 0x100, 1), 600)
	for _, c := range []struct {
		name string
		raw  []byte
		want string
	}{
		{"too large", make([]byte, snp.MaxCertTableSize+1), "at most"},
		{"half an entry", make([]byte, 23), "no terminating entry"},
		{"no end", entry(snp.GUIDVLEK, 0, 24), "no terminating entry"},
		{"offset overflows", concat(entry(snp.GUIDVLEK, 0xFFFFFF00, 0x200), end, body), "outside the table"},
		{"the second outside", concat(entry(snp.GUIDVLEK, 72, 4), entry(snp.GUIDARK, 72, 0x200), end, body), "entry 1 ("},
		{"length overflows", concat(entry(snp.GUIDVLEK, 48, 0xFFFFFFFF), end, body), "outside the table"},
		{"within the header, with a GUID of zeros", concat(entry(snp.GUID{}, 0, 16), end, body), "within the header"},
		{"overlap, the other way round", concat(entry(snp.GUIDVLEK, 79, 8), entry(snp.GUIDARK, 72, 8), end, body), "overlap"},
		{"one in the other", concat(entry(snp.GUIDVLEK, 72, 16), entry(snp.GUIDARK, 76, 4), end, body), "overlap"},
		{"one byte too long", concat(entry(snp.GUIDVLEK, 48, 65), end, body), "outside the table"},
		{"within the header", concat(entry(snp.GUIDVLEK, 24, 16), end, body), "within the header"},
		{"overlap", concat(entry(snp.GUIDVLEK, 72, 8), entry(snp.GUIDARK, 79, 8), end, body), "overlap"},
		{"many entries", concat(many, end), "more than 16 entries"},
	} {
		t.Run(c.name, func(t *testing.T) {
			table, err := snp.ParseCertTable(c.raw)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("table %v, err %v, want one that says %q", table, err, c.want)
			}
		})
	}
}

func concat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// FuzzReport: what parses, gives back the same bytes.
func FuzzReport(f *testing.F) {
	f.Add(bytes.Repeat([]byte{1}, snp.ReportSize))
	f.Add(make([]byte, snp.ReportSize))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := snp.ParseReport(raw)
		if err == nil && !bytes.Equal(r.Raw(), raw) {
			t.Error("parsed, and changed")
		}
	})
}

// FuzzCertTable: a table that parses stays within the size of its input, and its own encoding parses to the same.
func FuzzCertTable(f *testing.F) {
	f.Add(snp.CertTable{{GUID: snp.GUIDVLEK, Data: []byte("leaf")}}.Encode())
	f.Add(make([]byte, 24))
	f.Fuzz(func(t *testing.T, raw []byte) {
		table, err := snp.ParseCertTable(raw)
		if err != nil {
			return
		}
		total := 0
		for _, e := range table {
			total += len(e.Data)
		}
		if total > len(raw) {
			t.Fatalf("%d bytes of certificates out of %d", total, len(raw))
		}
		again, err := snp.ParseCertTable(table.Encode())
		if err != nil || len(again) != len(table) {
			t.Fatalf("encoded and parsed: %v, %v", again, err)
		}
		for i := range again {
			if again[i].GUID != table[i].GUID || !bytes.Equal(again[i].Data, table[i].Data) {
				t.Fatalf("entry %d: %v, was %v", i, again[i], table[i])
			}
		}
	})
}

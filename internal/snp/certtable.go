package snp

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// GUID names an entry of the certificate table, in the byte order of its text (RFC 4122).
type GUID [16]byte

// GUIDs of the certificate table: GHCB specification, AMD publication 56421, section 4.1.8.1. ASK and ASVK
// share one.
var (
	GUIDVCEK = guid("63da758de6644564adc5f4b93be8accd")
	GUIDVLEK = guid("a8074bc2a25a483eaae639c045a0b8a1")
	GUIDASK  = guid("4ab7b379bbac4fe4a02f05aef327c782")
	GUIDARK  = guid("c0b406a4a803495297433fb6014cd0ae")
)

func guid(s string) (g GUID) {
	if n, err := hex.Decode(g[:], []byte(s)); err != nil || n != len(g) {
		panic("snp: bad GUID " + s)
	}
	return g
}

func (g GUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", g[:4], g[4:6], g[6:8], g[8:10], g[10:])
}

// swapped returns g with its first three groups in the other byte order. Hosts disagree about it: EC2
// writes the order of the text, others the mixed order of Microsoft's GUIDs.
func (g GUID) swapped() GUID {
	s := g
	s[0], s[1], s[2], s[3] = g[3], g[2], g[1], g[0]
	s[4], s[5] = g[5], g[4]
	s[6], s[7] = g[7], g[6]
	return s
}

const (
	certEntrySize = 24 // GUID 16, offset u32, length u32
	// MaxCertTableSize bounds a certificate table in bytes: SEV_FW_BLOB_MAX_SIZE of the Linux kernel.
	MaxCertTableSize = 16 << 10
	// maxCertEntries bounds the header; real tables hold one to four entries.
	maxCertEntries = 16
)

// CertEntry is one certificate of the table, DER as the host gave it.
type CertEntry struct {
	GUID GUID
	Data []byte
}

// CertTable is the list of certificates that the host adds to an extended report.
type CertTable []CertEntry

// ParseCertTable reads a certificate table. The host writes it, so it is treated as an attacker's: at most
// 16 entries that lie within the table behind its header and do not overlap. Entries of length 0, as hosts write for a
// certificate that they do not have, are passed over. An empty or all-zero table has no entries.
func ParseCertTable(raw []byte) (CertTable, error) {
	if len(raw) > MaxCertTableSize {
		return nil, fmt.Errorf("parse certificate table: %d bytes, at most %d are allowed", len(raw), MaxCertTableSize)
	}
	if len(raw) == 0 {
		return nil, nil
	}
	type span struct{ from, to uint64 }
	var (
		table CertTable
		spans []span
		// header is its length in bytes, the terminating entry included.
		header uint64 = certEntrySize
	)
	for at := 0; ; at += certEntrySize {
		if at+certEntrySize > len(raw) {
			return nil, fmt.Errorf("parse certificate table: no terminating entry within %d bytes", len(raw))
		}
		entry := raw[at : at+certEntrySize]
		g := GUID(entry[:16])
		from := uint64(binary.LittleEndian.Uint32(entry[16:]))
		size := uint64(binary.LittleEndian.Uint32(entry[20:]))
		if g == (GUID{}) && from == 0 && size == 0 {
			break
		}
		if at/certEntrySize == maxCertEntries {
			return nil, fmt.Errorf("parse certificate table: more than %d entries", maxCertEntries)
		}
		header += certEntrySize
		if size == 0 {
			continue
		}
		if from+size > uint64(len(raw)) {
			return nil, fmt.Errorf(
				"parse certificate table: entry %d (%v): offset %d and length %d lie outside the table of %d bytes",
				at/certEntrySize, g, from, size, len(raw))
		}
		table = append(table, CertEntry{GUID: g, Data: append([]byte(nil), raw[from:from+size]...)})
		spans = append(spans, span{from, from + size})
	}
	for i, s := range spans {
		if s.from < header {
			return nil, fmt.Errorf("parse certificate table: entry %d starts within the header", i)
		}
		for j, o := range spans[:i] {
			if s.from < o.to && o.from < s.to {
				return nil, fmt.Errorf("parse certificate table: entries %d and %d overlap", j, i)
			}
		}
	}
	return table, nil
}

// Find returns the data of the first entry with this GUID in either byte order, or nil.
func (t CertTable) Find(g GUID) []byte {
	for _, e := range t {
		if e.GUID == g || e.GUID == g.swapped() {
			return e.Data
		}
	}
	return nil
}

// Encode returns the table as a host writes it: header, terminating entry, then the data in order.
func (t CertTable) Encode() []byte {
	offset := (len(t) + 1) * certEntrySize
	header := make([]byte, 0, offset)
	var data []byte
	for _, e := range t {
		header = append(header, e.GUID[:]...)
		header = binary.LittleEndian.AppendUint32(header, uint32(offset+len(data)))
		header = binary.LittleEndian.AppendUint32(header, uint32(len(e.Data)))
		data = append(data, e.Data...)
	}
	return append(append(header, make([]byte, certEntrySize)...), data...)
}

package nitro

import (
	"encoding/binary"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"sevagent/internal/must"
	"sevagent/internal/sim/simnitro"
)

// FuzzParse holds the reader to a law: what it reads of a payload, written down in the plainest CBOR, it reads again.
// The same goes for the document around the payload.
func FuzzParse(f *testing.F) {
	ca := must.Get(simnitro.New())(f, "make a root")
	for _, fields := range []simnitro.Fields{
		{UserData: []byte{}, Nonce: []byte{1}, PublicKey: []byte{2}},
		{Map: simnitro.MapEnclave, Suffix: "-enc0123456789abcdef"},
		{Map: simnitro.MapEnclave, Suffix: "-sandbox", PCRs: map[int][]byte{31: make([]byte, 48)}},
	} {
		fields.Time = time.Unix(1764504000, 0)
		doc := must.Get(ca.Sign(fields))(f, "make a document")
		f.Add(doc)
		f.Add(must.Get(parse(doc))(f, "parse it").payload)
	}
	files, _ := filepath.Glob("../../../shared/testdata/nitrotpm/*.cbor")
	for _, file := range files {
		doc := must.Get(os.ReadFile(file))(f, "read a real document")
		f.Add(doc)
		f.Add(must.Get(parse(doc))(f, "parse a real document").payload)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p := new(parsed)
		if p.read(data) == nil {
			again := new(parsed)
			must.Do(t, again.read(write(p)), "read it again, of %+v", p.Document)
			if !reflect.DeepEqual(p, again) {
				t.Errorf("it reads as %+v, and then as %+v", p, again)
			}
		}
		if p, err := parse(data); err == nil && len(data) < MaxDocument-16 { // it grows by longer heads
			again := must.Get(parse(enclose(p)))(t, "parse it again")
			if !reflect.DeepEqual(p, again) {
				t.Errorf("it parses as %+v, and then as %+v", p, again)
			}
		}
	})
}

// write writes a payload with keys in another order than AWS, without what nobody reads, and with maps that have a
// length.
func write(p *parsed) []byte {
	registers := "pcrs"
	if p.Kind == NitroTPM {
		registers = "nitrotpm_pcrs"
	}
	out := head(nil, majorMap, 9)
	text := func(s string) { out = append(head(out, majorText, len(s)), s...) }
	data := func(b []byte) { out = append(head(out, majorBytes, len(b)), b...) }
	for name, field := range map[string][]byte{
		"public_key": p.PublicKey, "user_data": p.UserData, "nonce": p.Nonce, "certificate": p.leaf,
	} {
		text(name)
		if field == nil {
			out = append(out, null)
		} else {
			data(field)
		}
	}
	text(registers)
	out = head(out, majorMap, len(p.PCRs))
	for _, i := range slices.Sorted(maps.Keys(p.PCRs)) {
		value := p.PCRs[i]
		out = head(out, majorUint, i)
		data(value[:])
	}
	text("cabundle")
	out = head(out, majorArray, len(p.bundle))
	for _, cert := range p.bundle {
		data(cert)
	}
	text("timestamp")
	out = head(out, majorUint, int(p.Timestamp.UnixMilli()))
	text("digest")
	text("SHA384")
	text("module_id")
	text(p.ModuleID)
	return out
}

// enclose writes a document around a payload.
func enclose(p *parsed) []byte {
	out := append(append([]byte{0x84}, protected...), 0xa0)
	out = append(head(out, majorBytes, len(p.payload)), p.payload...)
	return append(head(out, majorBytes, len(p.signature)), p.signature...)
}

// head writes a head in its longest form, which is as good as the shortest.
func head(out []byte, major byte, n int) []byte {
	return binary.BigEndian.AppendUint64(append(out, major<<5|27), uint64(n))
}

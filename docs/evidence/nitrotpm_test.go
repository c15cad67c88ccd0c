package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sevagent/internal/evidence"
	"sevagent/internal/must"
	"sevagent/internal/nitro"
	"sevagent/internal/sim/simnitro"
	"sevagent/internal/snp"
)

// Files of vectors/ that nitrotpm.json needs. They have signers of their own, so that they can be made anew without the
// other documents.
const (
	nitroTPMDocument = "nitrotpm"
	nitroTPMRoots    = "nitrotpm.pem"
)

// tpms makes the vectors of documents of a NitroTPM beside the report.
type tpms struct {
	*generator
	base
	ca *simnitro.CA
}

// document makes a document of the NitroTPM for a report.
func (p *tpms) document(report []byte, change func(*simnitro.Fields)) []byte {
	p.t.Helper()
	userData, nonce := nitro.Binding(report)
	f := simnitro.Fields{Time: at().Add(-time.Minute), UserData: userData[:], Nonce: nonce[:]}
	if change != nil {
		change(&f)
	}
	return must.Get(p.ca.Sign(f))(p.t, "make a NitroTPM's document")
}

// add adds evidence with a document.
func (p *tpms) add(name string, document []byte, refused ...string) {
	p.t.Helper()
	changed := put("nitrotpm", quote(base64.StdEncoding.EncodeToString(document)))
	changed.Wrap, changed.Roots = true, nitroTPMRoots
	p.generator.add(p.base, "nitrotpm", name, changed, refused...)
}

// made makes the vectors.
func (p *tpms) made() {
	report := p.m.report()
	change := func(f func(*simnitro.Fields)) []byte { return p.document(report, f) }
	payload := func(f func([]byte) []byte) []byte {
		return change(func(fields *simnitro.Fields) { fields.Payload = f })
	}
	genuine := change(nil)
	p.add("as it is", genuine)
	p.add("with the tag of COSE_Sign1", append([]byte{0xd2}, genuine...))
	p.add("payload with a length", payload(func(b []byte) []byte {
		return append([]byte{0xa9}, b[1:len(b)-1]...)
	}))
	p.add("unknown key", payload(func(b []byte) []byte { return append(b[:len(b)-1], "\x61x\x82\x01\xf6\xff"...) }))
	p.add("without public_key, which is null", payload(func(b []byte) []byte {
		return bytes.Replace(b, []byte("\x6apublic_key\xf6"), nil, 1)
	}))
	p.add("another root in cabundle", payload(func(b []byte) []byte {
		return bytes.Replace(b, p.ca.Root.Raw, bytes.Repeat([]byte{7}, len(p.ca.Root.Raw)), 1)
	}))
	p.add("made four minutes from now", change(func(f *simnitro.Fields) { f.Time = at().Add(4 * time.Minute) }))
	gone := drop("nitrotpm")
	gone.Wrap, gone.Roots = true, nitroTPMRoots
	p.generator.add(p.base, "nitrotpm", "taken away", gone)

	for name, document := range map[string][]byte{
		"of another report": p.document(append(bytes.Clone(report[:1183]), report[1183]^1), nil),
		"user_data of another report, nonce of this": change(func(f *simnitro.Fields) {
			other, _ := nitro.Binding(make([]byte, len(report)))
			f.UserData = other[:]
		}),
		"another nonce":         change(func(f *simnitro.Fields) { f.Nonce = make([]byte, 64) }),
		"no nonce":              change(func(f *simnitro.Fields) { f.Nonce = nil }),
		"made for a public key": change(func(f *simnitro.Fields) { f.PublicKey = []byte("key") }),
		"empty public_key":      change(func(f *simnitro.Fields) { f.PublicKey = []byte{} }),
		"of an enclave": change(func(f *simnitro.Fields) {
			f.Map, f.Suffix = simnitro.MapEnclave, "-enc0123456789abcdef"
		}),
		"of an enclave, in this map": change(func(f *simnitro.Fields) { f.Suffix = "-enc0123456789abcdef" }),
		"of a sandbox":               change(func(f *simnitro.Fields) { f.Map, f.Suffix = simnitro.MapEnclave, "-sandbox" }),
		"of another instance":        change(func(f *simnitro.Fields) { f.Instance = "i-0fedcba9876543210" }),
		"of another region":          change(func(f *simnitro.Fields) { f.Region = "us-east-1" }),
		"expired":                    change(func(f *simnitro.Fields) { f.Time = at().Add(-4 * time.Hour) }),
		"made in six minutes":        change(func(f *simnitro.Fields) { f.Time = at().Add(6 * time.Minute) }),
		"registers of 32 bytes":      change(func(f *simnitro.Fields) { f.PCRs = map[int][]byte{4: make([]byte, 32)} }),
		"key twice": payload(func(b []byte) []byte {
			return append(b[:len(b)-1], "\x6apublic_key\xf6\xff"...)
		}),
		"something behind the payload":  payload(func(b []byte) []byte { return append(b, 0) }),
		"something behind the document": append(bytes.Clone(genuine), 0),
		"flipped signature":             append(bytes.Clone(genuine[:len(genuine)-1]), genuine[len(genuine)-1]^1),
		"flipped register":              flipped(genuine, simnitro.PCRs()[4]),
		"under another root":            (&tpms{p.generator, p.base, newTPMs(p.t)}).document(report, nil),
		"no document":                   []byte("{}"),
	} {
		p.add(name, document, "nitrotpm")
	}
	slices.SortFunc(p.vectors, func(a, b vector) int { return strings.Compare(a.Name, b.Name) })

	contradicts := func(name string, v vector) {
		v.Roots = nitroTPMRoots
		p.generator.add(p.base, "nitrotpm", name, v, "malformed", "nitrotpm")
	}
	contradicts("another in cmw", put("nitrotpm", quote(base64.StdEncoding.EncodeToString(append(genuine, 0)))))
	without := slices.DeleteFunc(slices.Clone(p.m), func(m [2]string) bool { return m[0] == `"nitrotpm"` })
	without.wrap()
	contradicts("not in cmw", put("cmw", base{m: without}.raw("cmw")))
	contradicts("line break in the base64", swap(`"nitrotpm":"`, `"nitrotpm":"\n`))
}

func newTPMs(t testing.TB) *simnitro.CA {
	t.Helper()
	return must.Get(simnitro.New())(t, "make a root of NitroTPMs")
}

func flipped(document, part []byte) []byte {
	changed := bytes.Clone(document)
	changed[bytes.Index(changed, part)] ^= 1
	return changed
}

// TestNitroTPM: nitrotpm.json has vectors of documents of a NitroTPM, right ones and wrong ones.
func TestNitroTPM(t *testing.T) {
	if *update {
		milan := newSigner(t, snp.Milan)
		p := &tpms{generator: &generator{t: t}, ca: newTPMs(t)}
		claims := request("client", nonce(10, 32), noKey, evidence.HostCaller(0), instance)
		m := p.generator.document(claims, 0, nil, milan.report(claims.Leaf(), nil), milan.certificate(nil))
		m.put("nitrotpm", p.document(m.report(), nil))
		m.wrap()
		p.base = base{name: nitroTPMDocument, text: m.join(), nonce: hex.EncodeToString(claims.Nonce), m: m}
		p.made()
		for name, data := range map[string][]byte{
			nitroTPMDocument + ".json": []byte(p.text), nitroTPMRoots: slices.Concat(milan.psp.Roots(), p.ca.PEM()),
		} {
			must.Do(t, os.WriteFile(filepath.Join("vectors", name), data, 0o644), "write %s", name)
		}
		writeVectors(t, "nitrotpm.json", "{\n\"vectors\": [\n", p.vectors, "]\n}\n")
	}
	var accepted, hostile int
	for _, v := range loadKit(t).Vectors {
		switch {
		case v.Document != nitroTPMDocument:
		case v.Refused == nil:
			accepted++
		default:
			hostile++
		}
	}
	if accepted < 8 || hostile < 20 {
		t.Errorf("%d documents with a NitroTPM's to accept and %d to refuse, want 8 and 20", accepted, hostile)
	}
}

package evidence_test

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sevagent/internal/evidence"
	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/internal/snp"
)

// published are the claims of evidence.json for a key.
func published(i byte) evidence.Claims {
	return evidence.Claims{
		Purpose: evidence.PurposeMTLS, Nonce: bytes.Repeat([]byte{i}, 32), Caller: evidence.HostCaller(uint32(i)),
		Binding:  evidence.Binding{Kind: evidence.BindClient, SPKISHA256: bytes.Repeat([]byte{i}, 32)},
		Instance: evidence.Instance{ID: "i-0123456789abcdef0", Region: "us-east-2", AccountID: "111122223333"},
	}
}

// batch returns the document of the first of n requests that wait together.
func (n *node) batch(size int, first evidence.Claims) *evidence.Document {
	n.t.Helper()
	claims := []evidence.Claims{first}
	for i := 1; i < size; i++ {
		claims = append(claims, published(byte(i)))
	}
	return n.evidence(claims...)[0]
}

// carried returns the extension's value of a document.
func carried(t testing.TB, d *evidence.Document) []byte {
	t.Helper()
	return must.Get(d.Extension())(t, "encode evidence for a certificate").Value
}

// TestExtension: evidence comes out of a certificate as it went in, but for the agent's verdict and for certificates
// behind the first.
func TestExtension(t *testing.T) {
	for _, product := range []sim.Options{sim.DefaultOptions(time.Now()), vcek(time.Now())} {
		n := newNode(t, product)
		unplaced := published(0xab)
		unplaced.Instance, unplaced.Binding.Kind = evidence.Instance{}, evidence.BindServer
		unplaced.Nonce = unplaced.Nonce[:16]
		for name, d := range map[string]*evidence.Document{
			"alone": n.batch(1, published(0xab)), "one of two": n.batch(2, published(0xab)),
			"one of 16": n.batch(16, published(0xab)), "of a node that is no instance": n.batch(3, unplaced),
		} {
			extension := must.Get(d.Extension())(t, "encode evidence of a key, %s", name)
			if !extension.Id.Equal(evidence.ExtensionOID) || extension.Critical {
				t.Errorf("%s: the extension is %v, critical %v", name, extension.Id, extension.Critical)
			}
			got := must.Get(evidence.ParseExtension(extension.Value))(t, "parse it again")
			want := must.Get(evidence.Parse(must.Get(json.Marshal(d))(t, "encode the document")))(t, "parse the document")
			if text, same := must.Get(json.Marshal(got))(t, "encode"), must.Get(json.Marshal(want))(t, "encode"); !bytes.Equal(
				text, same) {
				t.Errorf("%s: the document is %s, want %s", name, text, same)
			}
			t.Logf("%s: %d bytes", name, len(extension.Value))
		}
	}
	n := newNode(t, sim.DefaultOptions(time.Now()))
	d := n.batch(1, published(0xab))
	cert := must.Get(d.Certs())(t, "take the certificates")[0]
	shared := must.Get(evidence.Share(d.Report, []byte("of a NitroTPM"), [][]byte{cert, {1}, {2}}, map[string]int{"a": 1},
		time.Unix(d.IssuedAt, 0)))(t, "start a batch with more in it")
	more := must.Get(shared.Document(d.Claims(), 0, nil))(t, "make its document")
	if !bytes.Equal(carried(t, more), carried(t, d)) {
		t.Error("the verdict, certificates behind the first or a NitroTPM's document change the extension")
	}
}

func vcek(now time.Time) sim.Options {
	o := sim.DefaultOptions(now)
	o.Signer = snp.SignedByVCEK
	return o
}

// TestExtensionRefuses: what is not evidence of a published key, and what does not fit, is not put into a certificate.
func TestExtensionRefuses(t *testing.T) {
	n := newNode(t, sim.DefaultOptions(time.Now()))
	change := func(f func(*evidence.Claims)) *evidence.Document {
		c := published(0xab)
		f(&c)
		return n.batch(1, c)
	}
	early := n.batch(1, published(0xab))
	early.IssuedAt = -1
	stranger := n.batch(1, published(0xab))
	stranger.Binding.SPKISHA256 = bytes.Repeat([]byte{1}, 32)
	c := published(0xab)
	report, _ := n.report(c.Leaf())
	bare := must.Get(evidence.Build(c, 0, nil, report, nil, nil, time.Now()))(t, "build a document without certificates")
	for want, d := range map[string]*evidence.Document{
		"the purpose client": change(func(c *evidence.Claims) { c.Purpose = evidence.PurposeClient }),
		"a binding of the kind none": change(func(c *evidence.Claims) {
			c.Binding = evidence.Binding{}
		}),
		"the caller unknown":   change(func(c *evidence.Claims) { c.Caller = evidence.Caller{Kind: "unknown"} }),
		"set the node's clock": early,
		"does not commit":      stranger,
		"no certificate":       bare,
		"3072 are allowed: the report has 1184, the endorsement key's certificate": n.batch(1000, published(0xab)),
	} {
		if e, err := d.Extension(); err == nil || !strings.Contains(err.Error(), want) || e.Value != nil {
			t.Errorf("Extension = %d bytes, %v; want an error with %q", len(e.Value), err, want)
		}
	}
}

// TestExtensionOfAMD: with certificates of real nodes there is room for a path of some steps.
func TestExtensionOfAMD(t *testing.T) {
	files := must.Get(filepath.Glob("../../../shared/testdata/aws-snp/*.der"))(t, "list real certificates")
	if len(files) == 0 {
		t.Skip("needs certificates of real nodes in ../shared/testdata")
	}
	n := newNode(t, sim.DefaultOptions(time.Now()))
	_, simulated := n.report([64]byte{})
	base := len(carried(t, n.batch(1, published(0xab)))) - len(simulated)
	for _, file := range files {
		size := len(must.Get(os.ReadFile(file))(t, "read %s", file))
		steps := (evidence.MaxExtension - base - size) / (evidence.Size + 2)
		t.Logf("%s: a certificate of %d bytes makes an extension of %d, with room for %d steps", file, size, base+size, steps)
		if steps < 4 {
			t.Errorf("%s: room for %d steps, want 4", file, steps)
		}
	}
}

// TestParseCertificate: the extension stands in a certificate once, and not critical.
func TestParseCertificate(t *testing.T) {
	n := newNode(t, sim.DefaultOptions(time.Now()))
	good := must.Get(n.batch(1, published(0xab)).Extension())(t, "encode evidence")
	critical := good
	critical.Critical = true
	other := pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 34}, Value: good.Value}
	for _, c := range []struct {
		name, want string
		extensions []pkix.Extension
	}{
		{"genuine", "", []pkix.Extension{other, good}},
		{"none", evidence.ErrNoExtension.Error(), []pkix.Extension{other}},
		{"critical", "critical", []pkix.Extension{critical}},
		{"twice", "twice", []pkix.Extension{good, good}},
	} {
		_, err := evidence.ParseCertificate(&x509.Certificate{Extensions: c.extensions})
		if text := fmt.Sprint(err); c.want == "" && err != nil || !strings.Contains(text, c.want) {
			t.Errorf("%s: ParseCertificate = %v, want %q", c.name, err, c.want)
		}
	}
}

// item encodes CBOR as RFC 8949, section 3, has it: the head of a major type, with what follows it.
func item(major byte, n int, rest ...string) string {
	head := []byte{major<<5 | byte(n)}
	if n > 255 {
		head = []byte{major<<5 | 25, byte(n >> 8), byte(n)}
	} else if n > 23 {
		head = []byte{major<<5 | 24, byte(n)}
	}
	return string(head) + strings.Join(rest, "")
}

// der returns the first block of a text in PEM.
func der(text string) []byte {
	block, _ := pem.Decode([]byte(text))
	return block.Bytes
}

func octets(b []byte) string      { return item(2, len(b), string(b)) }
func letters(s string) string     { return item(3, len(s), s) }
func array(items []string) string { return item(4, len(items), items...) }

// wrapped is the value of the extension for the record of a media type.
func wrapped(t testing.TB, record string) []byte {
	t.Helper()
	return must.Get(asn1.Marshal([]byte(record)))(t, "wrap a record")
}

const mediaType = "application/vnd.sevagent.evidence.v2+cbor"

// forgery is a value of the extension, with what ParseExtension says of it, "" if it accepts.
type forgery struct {
	name, want string
	value      []byte
	is         error // the typed one, nil if there is none
}

// forgeries returns values that look like evidence, and are ambiguous or forged at the edges. The vectors in
// docs/evidence have more.
func forgeries(n *node) []forgery {
	t := n.t
	d := n.batch(2, published(0xab))
	cert := must.Get(d.Certs())(t, "take the certificates")[0]
	items := []string{
		octets(d.Nonce), "\x1a" + string(binary.BigEndian.AppendUint32(nil, uint32(d.IssuedAt))), letters("client"),
		octets(d.Binding.SPKISHA256), item(0, 0xab),
		array([]string{letters("i-0123456789abcdef0"), letters("us-east-2"), letters("111122223333")}),
		item(0, 0), array([]string{octets(d.Batch.Path[0])}), octets(d.Report), octets(cert),
	}
	record := func(content string) string {
		return array([]string{letters(mediaType), octets([]byte(content)), item(0, 6)})
	}
	whole := record(array(items))
	with := func(i int, value string) []byte {
		changed := slices.Clone(items)
		changed[i] = value
		return wrapped(t, record(array(changed)))
	}
	typed := func(mediaType string) []byte {
		return wrapped(t, array([]string{letters(mediaType), octets(nil), item(0, 6)}))
	}
	others := evidence.ErrForeignExtension
	return []forgery{
		{"genuine", "", wrapped(t, whole), nil},
		{"genuine, as it is encoded", "", carried(t, d), nil},

		{"nothing", "not one ASN.1 value", nil, nil},
		{"followed by a byte", "not one ASN.1 value", append(wrapped(t, whole), 0), nil},
		{"JSON", "not CBOR", append([]byte{0x0c}, wrapped(t, whole)[1:]...), others},
		{"more than a CA takes", "at most 3072", wrapped(t, strings.Repeat("a", evidence.MaxExtension)), nil},
		{"an empty OCTET STRING", "no record", wrapped(t, ""), others},
		{"a collection", "no record", wrapped(t, item(5, 1, letters("evidence"), whole)), others},
		{"another type", `type is "application/eat+cwt"`, typed("application/eat+cwt"), others},
		{"a later type", "unknown eat_profile", typed("application/vnd.sevagent.evidence.v3+cbor"), evidence.ErrProfile},
		{"evidence alone", "indicator is 4", wrapped(t, whole[:len(whole)-1]+item(0, 4)), nil},
		{"a record followed by a byte", "1 bytes follow", wrapped(t, whole+"\x00"), nil},
		{"items followed by a byte", "1 bytes follow", wrapped(t, record(array(items)+"\x00")), nil},
		{"no end", "no item of the major type 2", wrapped(t, record(item(4, 10, items[:9]...))), nil},
		{"nine items", "array of 9 items", wrapped(t, record(array(items[:9]))), nil},
		{"cut off", "of which 1000 are there", with(9, octets(cert)[:1003]), nil},
		{"an indefinite array", "indefinite", wrapped(t, record("\x9f"+strings.Join(items, "")+"\xff")), nil},
		{"a reserved length", "indefinite", with(0, "\x5c"+string(d.Nonce)), nil},
		{"a head without its bytes", "cut off", wrapped(t, record(item(4, 10, items[:9]...)+"\x59\x04")), nil},
		{"one byte for 7", "longer than it has to be", with(4, "\x18\x07"), nil},
		{"two bytes for 171", "longer than it has to be", with(4, "\x19\x00\xab"), nil},
		{"four bytes for 171", "longer than it has to be", with(4, "\x1a\x00\x00\x00\xab"), nil},
		{"eight bytes for 171", "longer than it has to be", with(4, "\x1b\x00\x00\x00\x00\x00\x00\x00\xab"), nil},
		{"a uid of 33 bits", "at most 4294967295", with(4, "\x1b\x00\x00\x00\x01\x00\x00\x00\x00"), nil},
		{"a length of 64 bits", "at most 64 is allowed", with(0, "\x5b\xff\xff\xff\xff\xff\xff\xff\xff"), nil},
		{"a short nonce", "want at least 16", with(0, octets(d.Nonce[:15])), nil},
		{"no binding", `unknown binding "none"`, with(2, letters("none")), nil},
		{"an instance of two texts", "array of 2 items",
			with(5, array([]string{letters("i-0123456789abcdef0"), letters("us-east-2")})), nil},
		{"an instance of empty texts", "instance is empty",
			with(5, array([]string{letters(""), letters(""), letters("")})), nil},
		{"no certificate", "want at least 1", with(9, octets(nil)), nil},
		{"another key", "does not commit", with(3, octets(make([]byte, 32))), evidence.ErrReportData},
		{"no instance", "does not commit", with(5, array(nil)), evidence.ErrReportData},
		{"another certificate", "not a SEV-VLEK", with(9, octets(der(foreign(t)))), evidence.ErrContradiction},
	}
}

func TestParseExtension(t *testing.T) {
	n := newNode(t, sim.DefaultOptions(time.Now()))
	for _, f := range forgeries(n) {
		_, err := evidence.ParseExtension(f.value)
		if f.want == "" && err != nil || f.want != "" && (err == nil || !strings.Contains(err.Error(), f.want)) {
			t.Errorf("%s: ParseExtension = %v, want %q", f.name, err, f.want)
		}
		if f.is != nil && !errors.Is(err, f.is) {
			t.Errorf("%s: ParseExtension = %v, which is not %q", f.name, err, f.is)
		}
	}
}

// FuzzParseExtension: what parses is encoded to the same bytes, and is a document that Parse accepts.
func FuzzParseExtension(f *testing.F) {
	n := newNode(f, sim.DefaultOptions(time.Now()))
	for _, forgery := range forgeries(n) {
		f.Add(forgery.value)
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		d, err := evidence.ParseExtension(value)
		if err != nil {
			return
		}
		if again := carried(t, d); !bytes.Equal(again, value) {
			t.Errorf("%x is evidence, which is encoded as %x", value, again)
		}
		must.Get(evidence.Parse(must.Get(json.Marshal(d))(t, "encode the document")))(t, "parse the document")
	})
}

package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"sevagent/internal/evidence"
	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/internal/snp"
)

// certificateRoots are the roots of certificates.json, a file of vectors/.
const certificateRoots = "certificates.pem"

// carriers makes the vectors of certificates that carry evidence. They have a processor of their own, so that they can
// be made anew without the documents.
type carriers struct {
	t     testing.TB
	key   *ecdsa.PrivateKey // of the certificates
	nonce string            // hex
	kit
}

// evidence returns the evidence of a key that is published, made together with other requests.
func (c *carriers) evidence(s *signer, public any, kind string, batch int, i evidence.Instance) *evidence.Document {
	c.t.Helper()
	sum := sha256.Sum256(must.Get(x509.MarshalPKIXPublicKey(public))(c.t, "encode a key"))
	claims := []evidence.Claims{request(evidence.PurposeMTLS, nonce(9, 32),
		evidence.Binding{Kind: kind, SPKISHA256: sum[:]}, evidence.HostCaller(0), i)}
	claims = append(claims, many(batch-1)...)
	var leaves [][evidence.Size]byte
	for _, claim := range claims {
		leaves = append(leaves, claim.Leaf())
	}
	tree := evidence.NewTree(leaves)
	return must.Get(evidence.Build(claims[0], 0, tree.Path(0), s.report(tree.Root(), nil), [][]byte{s.certificate(nil)},
		nil, at().Add(-time.Minute)))(c.t, "build a document")
}

// carry returns a certificate for a key, DER, with extensions beside that of its names.
func (c *carriers) carry(key any, extensions ...pkix.Extension) []byte {
	c.t.Helper()
	ca := must.Get(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(c.t, "make a CA's key")
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "node"},
		NotBefore: at().AddDate(0, 0, -1), NotAfter: at().AddDate(0, 0, 6), DNSNames: []string{"node.example.com"},
		ExtraExtensions: extensions}
	return must.Get(x509.CreateCertificate(rand.Reader, template, template, key, ca))(c.t, "issue a certificate")
}

// add adds a vector.
func (c *carriers) add(name string, certificate []byte, v vector, refused ...string) {
	v.Class, v.Name, v.Certificate, v.Refused = "extension", name, c.pieces(certificate), refused
	v.Nonce, v.Roots = c.nonce, certificateRoots
	c.Vectors = append(c.Vectors, v)
}

// value is an extension with a value.
func value(value []byte) pkix.Extension {
	return pkix.Extension{Id: evidence.ExtensionOID, Value: value}
}

// CBOR, written here a second time, as RFC 8949 has it.
func head(major byte, n int) string {
	switch {
	case n < 24:
		return string([]byte{major<<5 | byte(n)})
	case n < 256:
		return string([]byte{major<<5 | 24, byte(n)})
	}
	return string(binary.BigEndian.AppendUint16([]byte{major<<5 | 25}, uint16(n)))
}
func octets[T ~string | ~[]byte](s T) string { return head(2, len(s)) + string(s) }
func letters(s string) string                { return head(3, len(s)) + s }
func array(items ...string) string           { return head(4, len(items)) + strings.Join(items, "") }

const mediaType = "application/vnd.sevagent.evidence.v2+cbor"

// record is the value of the extension for the items of evidence.
func (c *carriers) record(evidence string) []byte {
	return c.wrap(array(letters(mediaType), octets(evidence), "\x06"))
}

func (c *carriers) wrap(cbor string) []byte {
	c.t.Helper()
	return must.Get(asn1.Marshal([]byte(cbor)))(c.t, "wrap CBOR")
}

// made makes the vectors.
func (c *carriers) made() {
	t := c.t
	milan, foreign := newSigner(t, snp.Milan), newSigner(t, snp.Milan)
	c.key = must.Get(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t, "make a key")
	stranger := must.Get(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t, "make another key")
	c.nonce = hex.EncodeToString(nonce(9, 32))
	must.Do(t, os.WriteFile("vectors/"+certificateRoots, milan.psp.Roots(), 0o644), "write the roots")

	public := c.key.Public()
	extension := func(d *evidence.Document) pkix.Extension { return must.Get(d.Extension())(t, "encode evidence") }
	d := c.evidence(milan, public, "client", 2, instance)
	c.parts = map[string][]byte{"report": d.Report, "endorsement": must.Get(d.Certs())(t, "take the certificate")[0]}
	good := extension(d)
	c.add("as it is", c.carry(public, good), vector{})
	c.add("of a server", c.carry(public, extension(c.evidence(milan, public, "server", 1, instance))), vector{})
	c.add("one of ten requests", c.carry(public, extension(c.evidence(milan, public, "client", 10, instance))), vector{})
	nowhere := c.evidence(milan, public, "client", 1, evidence.Instance{})
	c.add("of a node that is no instance", c.carry(public, extension(nowhere)), vector{})
	for name, key := range ordered(map[string]any{
		"RSA":     must.Get(rsa.GenerateKey(rand.Reader, 2048))(t, "make an RSA key").Public(),
		"Ed25519": ed25519.PublicKey(make([]byte, 32)),
		"P-384":   must.Get(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t, "make a key on P-384").Public(),
	}) {
		c.add("a key of the kind "+name, c.carry(key, extension(c.evidence(milan, key, "client", 1, instance))), vector{})
	}
	vcek := milan.use(func(o *sim.Options) { o.Signer = snp.SignedByVCEK })
	byVCEK := c.carry(public, extension(c.evidence(vcek, public, "client", 1, instance)))
	c.add("signed by a VCEK", byVCEK, vector{Region: "any"})
	c.add("signed by a VCEK, asked for in a region", byVCEK, vector{}, "region")
	milan.use(func(o *sim.Options) { *o = milan.options })

	strangers := extension(c.evidence(milan, stranger.Public(), "client", 1, instance))
	c.add("evidence of another key", c.carry(stranger.Public(), good), vector{}, "binding")
	c.add("another node's evidence", c.carry(public, strangers), vector{}, "binding")
	c.add("a processor of somebody else", c.carry(public, extension(c.evidence(foreign, public, "client", 1, instance))),
		vector{}, "chain")
	c.add("in another region", c.carry(public, good), vector{Region: "eu-west-1"}, "region")
	c.add("when the endorsement key's certificate has ended", c.carry(public, good),
		vector{At: at().AddDate(1, 0, 0).Format(time.RFC3339)}, "expired")
	form := []string{"malformed", "certificate"}
	c.add("no evidence", c.carry(public), vector{}, "malformed")
	critical := good
	critical.Critical = true
	c.add("critical", c.carry(public, critical), vector{}, form...)
	c.add("twice", c.carry(public, good, good), vector{}, form...)
	c.add("twice, with another node's", c.carry(public, good, strangers), vector{}, form...)
	whole := c.carry(public, good)
	c.add("certificate cut off", whole[:len(whole)-1], vector{}, form...)
	c.add("certificate cut in half", whole[:len(whole)/2], vector{}, form...)
	c.add("certificate followed by a byte", append(slices.Clone(whole), 0), vector{}, form...)

	c.forms(d, public)
	c.nothings(nowhere, public)
}

// nothings adds certificates that spell an empty list in another way. d has no instance and no path.
func (c *carriers) nothings(d *evidence.Document, public any) {
	cert := must.Get(d.Certs())(c.t, "take the certificate")[0]
	before := octets(d.Nonce) + "\x1a" + string(binary.BigEndian.AppendUint32(nil, uint32(d.IssuedAt))) +
		letters("client") + octets(d.Binding.SPKISHA256) + "\x00"
	for name, nothing := range ordered(map[string]string{
		"a list": "\x80", "a number": "\x00", "octets": "\x40", "a text": "\x60", "a map": "\xa0", "null": "\xf6",
		"a list of an indefinite length": "\x9f\xff", "a list with a byte of length": "\x98\x00",
	}) {
		var refused []string
		if nothing != array() {
			refused = []string{"malformed"}
		}
		after := octets(d.Report) + octets(cert)
		c.add("no instance, as "+name, c.carry(public, value(c.record(head(4, 10)+before+nothing+"\x00\x80"+after))),
			vector{}, refused...)
		c.add("no path, as "+name, c.carry(public, value(c.record(head(4, 10)+before+"\x80\x00"+nothing+after))),
			vector{}, refused...)
	}
}

// forms adds certificates of the key whose extension is not evidence in its one form.
func (c *carriers) forms(d *evidence.Document, public any) {
	t := c.t
	cert := must.Get(d.Certs())(t, "take the certificate")[0]
	place := array(letters(instance.ID), letters(instance.Region), letters(instance.AccountID))
	items := []string{
		octets(d.Nonce), "\x1a" + string(binary.BigEndian.AppendUint32(nil, uint32(d.IssuedAt))), letters("client"),
		octets(d.Binding.SPKISHA256), "\x00", place, "\x00", array(octets(d.Batch.Path[0])), octets(d.Report), octets(cert),
	}
	whole := array(items...)
	raw := func(name string, v []byte, refused ...string) {
		t.Helper()
		c.add(name, c.carry(public, value(v)), vector{}, refused...)
	}
	// with replaces an item; a changed claim has the code report_data.
	with := func(name string, i int, item string, refused ...string) {
		t.Helper()
		changed := slices.Clone(items)
		changed[i] = item
		if refused == nil {
			refused = []string{"malformed"}
		}
		raw(name, c.record(array(changed...)), refused...)
	}
	raw("put together by hand", c.record(whole))
	good := c.record(whole)

	foreign := []string{"profile", "malformed", "certificate"}
	raw("an empty value", nil, foreign...)
	raw("a value followed by a byte", append(slices.Clone(good), 0), foreign...)
	raw("a length of three bytes", append([]byte{4, 0x83, 0}, good[2:]...), foreign...)
	raw("an OCTET STRING of an indefinite length", slices.Concat([]byte{0x24, 0x80}, good, []byte{0, 0}), foreign...)
	raw("a compound OCTET STRING", append([]byte{0x24}, good[1:]...), foreign...)
	raw("the arm json", append([]byte{0x0c}, good[1:]...), foreign...)
	raw("CBOR without an OCTET STRING", []byte(array(letters(mediaType), octets(whole), "\x06")), foreign...)
	raw("an empty OCTET STRING", c.wrap(""), foreign...)
	raw("a record in a collection",
		c.wrap(head(5, 1)+letters("evidence")+array(letters(mediaType), octets(whole), "\x06")), foreign...)
	raw("a record with a tag", c.wrap("\xd9\xd9\xf7"+array(letters(mediaType), octets(whole), "\x06")), foreign...)
	raw("another media type", c.wrap(array(letters("application/eat+cwt"), octets(whole), "\x06")), "profile")
	raw("a content format", c.wrap(array("\x19\x75\x31", octets(whole), "\x06")), "profile")
	raw("the media type in another case", c.wrap(array(letters("A"+mediaType[1:]), octets(whole), "\x06")), "profile")
	raw("a later version", c.wrap(array(letters(strings.Replace(mediaType, "v2", "v3", 1)), octets(whole), "\x06")),
		"profile")
	raw("no indicator", c.wrap(array(letters(mediaType), octets(whole))), foreign...)
	raw("another indicator", c.wrap(array(letters(mediaType), octets(whole), "\x04")), "malformed")
	raw("an indicator of two bytes", c.wrap(array(letters(mediaType), octets(whole), "\x18\x06")), "malformed")
	raw("a record of four", c.wrap(array(letters(mediaType), octets(whole), "\x06", "\x06")), foreign...)
	raw("a record followed by a byte", c.wrap(array(letters(mediaType), octets(whole), "\x06")+"\x00"), "malformed")
	raw("a record of an indefinite length", c.wrap("\x9f"+letters(mediaType)+octets(whole)+"\x06\xff"), foreign...)
	raw("evidence as text", c.wrap(array(letters(mediaType), letters(whole), "\x06")), "malformed")
	raw("evidence without octets around it", c.wrap(array(letters(mediaType), whole, "\x06")), "malformed")

	raw("evidence followed by a byte", c.record(whole+"\x00"), "malformed")
	raw("evidence cut off", c.record(whole[:len(whole)-1]), "malformed")
	raw("evidence cut in half", c.record(whole[:len(whole)/2]), "malformed")
	raw("no items", c.record(array()), "malformed")
	raw("nine items", c.record(array(items[:9]...)), "malformed")
	raw("eleven items", c.record(array(append(slices.Clone(items), "\x00")...)), "malformed")
	raw("ten items, and nine there", c.record(head(4, 10)+strings.Join(items[:9], "")), "malformed")
	raw("an array of an indefinite length", c.record("\x9f"+strings.Join(items, "")+"\xff"), "malformed")
	raw("a map", c.record("\xa5"+strings.Join(items, "")), "malformed")
	raw("a map with a key twice", c.record("\xa2\x00"+whole+"\x00"+whole), "malformed")
	raw("a count of ten in two bytes", c.record("\x98\x0a"+strings.Join(items, "")), "malformed")
	raw("more than 3072 bytes", c.record(whole+strings.Repeat("\x00", 1000)), "malformed")

	n := string(d.Nonce)
	with("a nonce in chunks", 0, "\x5f"+octets(n[:16])+octets(n[16:])+"\xff")
	with("a nonce of a reserved length", 0, "\x5c"+n)
	with("a nonce with two bytes of length", 0, "\x59\x00\x20"+n)
	with("a nonce with eight bytes of length", 0, "\x5b\x00\x00\x00\x00\x00\x00\x00\x20"+n)
	with("a nonce of 2^64-1 bytes", 0, "\x5b\xff\xff\xff\xff\xff\xff\xff\xff")
	with("a nonce as text", 0, letters(strings.Repeat("a", 32)))
	with("a nonce with a tag", 0, "\xc2"+items[0])
	with("a nonce of 15 bytes", 0, octets(n[:15]))
	with("a nonce of 65 bytes", 0, octets(strings.Repeat("a", 65)))
	with("another nonce", 0, octets(nonce(10, 32)), "report_data", "nonce")
	with("iat below zero", 1, "\x20")
	with("iat a float", 1, "\xfb\x41\xda\x8f\x5c\x00\x00\x00\x00")
	with("iat a text", 1, letters("1796031142"))
	with("iat with a tag", 1, "\xc1"+items[1])
	with("iat with eight bytes", 1, "\x1b\x00\x00\x00\x00"+items[1][1:])
	with("iat of 54 bits", 1, "\x1b\x00\x20\x00\x00\x00\x00\x00\x00")
	last := slices.Clone(items)
	last[1] = "\x1b\x00\x1f\xff\xff\xff\xff\xff\xff"
	raw("iat of 53 bits", c.record(array(last...)))
	with("the kind server", 2, letters("server"), "report_data")
	with("the kind none", 2, letters("none"))
	with("the kind as octets", 2, octets("client"))
	with("the kind in another case", 2, letters("Client"))
	with("another key", 3, octets(bytes.Repeat([]byte{0xee}, 32)), "report_data", "binding")
	with("a key of 31 bytes", 3, octets(d.Binding.SPKISHA256[:31]), "malformed", "binding")
	with("another uid", 4, "\x01", "report_data")
	with("a uid of two bytes", 4, "\x18\x00")
	with("a uid of 33 bits", 4, "\x1b\x00\x00\x00\x01\x00\x00\x00\x00")
	with("a uid of false", 4, "\xf4")
	with("a uid of null", 4, "\xf6")
	with("no instance", 5, array(), "report_data")
	with("an instance of null", 5, "\xf6")
	with("an instance of two", 5, array(letters(instance.ID), letters(instance.Region)))
	with("an instance of four", 5,
		array(letters(instance.ID), letters(instance.Region), letters(instance.AccountID), "\x00"))
	with("an instance of empty texts", 5, array(letters(""), letters(""), letters("")))
	with("an instance as a map", 5, "\xa0")
	with("another instance", 5,
		array(letters("i-0123456789abcdef1"), letters(instance.Region), letters(instance.AccountID)), "report_data")
	with("an instance with a line feed", 5,
		array(letters(instance.ID+"\n"), letters(instance.Region), letters(instance.AccountID)))
	with("another index", 6, "\x01", "report_data")
	with("an index beyond the path", 6, "\x02")
	with("no path", 7, array(), "report_data")
	with("a path of 63 bytes", 7, array(octets(d.Batch.Path[0][:63])))
	with("a path as text", 7, array(letters(strings.Repeat("a", 64))))
	with("a path of numbers", 7, array("\x00"))
	with("a path that is a number", 7, "\x00")
	with("a path of an indefinite length", 7, "\x9f"+octets(d.Batch.Path[0])+"\xff")
	with("a report of 1183 bytes", 8, octets(d.Report[:1183]))
	with("a report of 1185 bytes", 8, octets(append(slices.Clone(d.Report), 0)))
	with("a report in base64", 8, letters(strings.Repeat("a", 1184)))
	report := slices.Clone(d.Report)
	report[0x90] ^= 1
	with("another measurement", 8, octets(report), "signature")
	with("no certificate", 9, octets(""), "malformed", "certificate")
	with("a certificate cut off", 9, octets(cert[:len(cert)-1]), "malformed", "certificate")
	with("a certificate in an array", 9, array(octets(cert)))
	flipped := slices.Clone(cert)
	flipped[len(cert)-1] ^= 1
	with("a certificate that AMD has not signed", 9, octets(flipped), "chain")
}

// TestCertificates: the kit has certificates that carry evidence, in the one form that evidence.md gives it.
func TestCertificates(t *testing.T) {
	if *update {
		c := &carriers{t: t}
		c.made()
		parts := must.Get(json.Marshal(c.parts))(t, "encode the parts")
		writeVectors(t, "certificates.json", "{\n\"parts\": "+string(parts)+",\n\"vectors\": [\n", c.Vectors, "]\n}\n")
	}
	k := loadKit(t)
	var accepted, hostile int
	for _, v := range k.Vectors {
		switch {
		case v.Certificate == nil:
		case v.Refused == nil:
			accepted++
		default:
			hostile++
		}
	}
	if accepted < 8 || hostile < 80 {
		t.Errorf("%d certificates to accept and %d to refuse, want 8 and 80", accepted, hostile)
	}
}

package nitro_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"sevagent/internal/must"
	"sevagent/internal/nitro"
	"sevagent/internal/sim/simnitro"
)

// real returns a document of AWS's.
func real(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile("../../../shared/testdata/nitrotpm/" + name)
	if os.IsNotExist(err) {
		t.Skip("real documents and reports are not available")
	}
	must.Do(t, err, "read a real document")
	return data
}

var documents = []struct {
	file, instance string
	kind           nitro.Kind
	at             time.Time
	pcrs           int
	userData       int // bytes; -1 for null
	nonce, key     int
}{
	{"nitrotpm-2026-02-03.cbor", "i-01cfb383223e42522", nitro.NitroTPM,
		time.UnixMilli(1770113522437), 24, -1, 32, 65},
	{"nitro-enclave-2025-12-25.cbor", "i-0827e799ec9232d44", nitro.Enclave,
		time.UnixMilli(1766668537578), 16, 64, -1, -1},
}

func size(b []byte) int {
	if b == nil {
		return -1
	}
	return len(b)
}

// TestReal: AWS's own documents verify at their time, and no earlier and no later.
func TestReal(t *testing.T) {
	for _, c := range documents {
		t.Run(c.file, func(t *testing.T) {
			doc := real(t, c.file)
			d := must.Get(nitro.Verify(doc, nitro.Config{Now: c.at}))(t, "verify it at its time")
			if d.Kind != c.kind || d.InstanceID != c.instance || d.Region != "us-east-1" || !d.Timestamp.Equal(c.at) ||
				len(d.PCRs) != c.pcrs || size(d.UserData) != c.userData || size(d.Nonce) != c.nonce ||
				size(d.PublicKey) != c.key {
				t.Errorf("it says %+v, want %+v", d, c)
			}
			for _, w := range []struct {
				name string
				c    nitro.Config
				code string
			}{
				{"by a clock 4 minutes behind", nitro.Config{Now: c.at.Add(-4 * time.Minute)}, ""},
				{"by a clock 6 minutes behind", nitro.Config{Now: c.at.Add(-6 * time.Minute)}, nitro.CodeFromFuture},
				{"after 2 hours", nitro.Config{Now: c.at.Add(2 * time.Hour)}, ""},
				{"after 2 hours, an hour allowed",
					nitro.Config{Now: c.at.Add(2 * time.Hour), MaxAge: time.Hour}, nitro.CodeTooOld},
				{"after 4 hours", nitro.Config{Now: c.at.Add(4 * time.Hour)}, nitro.CodeExpired},
				{"stored for a year", nitro.Config{Now: c.at.AddDate(1, 0, 0), Stored: true}, ""},
				{"stored, for longer than allowed",
					nitro.Config{Now: c.at.AddDate(1, 0, 0), Stored: true, MaxAge: time.Hour}, nitro.CodeTooOld},
				{"stored, made tomorrow", nitro.Config{Now: c.at.AddDate(0, 0, -1), Stored: true}, nitro.CodeFromFuture},
				{"under another root", nitro.Config{Now: c.at, Roots: x509.NewCertPool()}, nitro.CodeChain},
			} {
				if _, err := nitro.Verify(doc, w.c); nitro.Code(err) != w.code || (err != nil) != (w.code != "") {
					t.Errorf("%s: %v, want the code %q", w.name, err, w.code)
				}
			}
			tagged := append([]byte{0xd2}, doc...)
			must.Get(nitro.Verify(tagged, nitro.Config{Now: c.at}))(t, "verify it with the tag of COSE_Sign1")
		})
	}
}

// TestFlips: no bit of AWS's documents can change, and none of them can be cut or made longer.
func TestFlips(t *testing.T) {
	for _, c := range documents {
		doc := real(t, c.file)
		flips := 0
		for bit := 0; bit < 8*len(doc); bit++ {
			// All bits of what the signature does not cover, and then some at every place within a byte: all take minutes.
			if header := 10; bit >= 8*header && bit%71 != 0 {
				continue
			}
			changed := bytes.Clone(doc)
			changed[bit/8] ^= 1 << (bit % 8)
			if _, err := nitro.Verify(changed, nitro.Config{Now: c.at}); err == nil {
				t.Errorf("%s is accepted with bit %d of byte %d flipped", c.file, bit%8, bit/8)
			}
			flips++
		}
		for n := range doc {
			if _, err := nitro.Verify(doc[:n], nitro.Config{Now: c.at}); nitro.Code(err) != nitro.CodeMalformed {
				t.Fatalf("%s, cut to %d bytes: %v, want it malformed", c.file, n, err)
			}
		}
		if _, err := nitro.Verify(append(doc, 0), nitro.Config{Now: c.at}); nitro.Code(err) != nitro.CodeMalformed {
			t.Errorf("%s with a byte more: %v, want it malformed", c.file, err)
		}
		t.Logf("%s: %d flips refused", c.file, flips)
	}
}

// TestRoot: the embedded root is the one whose fingerprint AWS publishes, and which the documents repeat.
func TestRoot(t *testing.T) {
	const published = "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"
	doc := real(t, documents[0].file)
	block, _ := pem.Decode(real(t, "aws-nitro-root-g1.pem"))
	if sum := sha256.Sum256(block.Bytes); hex.EncodeToString(sum[:]) != published {
		t.Fatalf("the file has the root %x, want %s", sum, published)
	}
	root := must.Get(x509.ParseCertificate(block.Bytes))(t, "parse the root")
	pool := x509.NewCertPool()
	pool.AddCert(root)
	if !pool.Equal(nitro.Roots()) || !bytes.Contains(doc, block.Bytes) {
		t.Error("the embedded root is another one")
	}
}

var now = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)

func sign(t testing.TB, ca *simnitro.CA, f simnitro.Fields) []byte {
	t.Helper()
	if f.Time.IsZero() {
		f.Time = now
	}
	return must.Get(ca.Sign(f))(t, "make a document")
}

func newCA(t testing.TB) *simnitro.CA {
	t.Helper()
	return must.Get(simnitro.New())(t, "make a root")
}

// TestForms: what a document may be like, and what not. All of them are well signed.
func TestForms(t *testing.T) {
	ca := newCA(t)
	swap := func(old, new string) func([]byte) []byte {
		return func(payload []byte) []byte {
			if bytes.Count(payload, []byte(old)) != 1 {
				t.Errorf("%q stands %d times in the payload", old, bytes.Count(payload, []byte(old)))
			}
			return bytes.Replace(payload, []byte(old), []byte(new), 1)
		}
	}
	add := func(item string) func([]byte) []byte {
		return func(payload []byte) []byte { return append(payload[:len(payload)-1], item+"\xff"...) }
	}
	// definite makes the map one with a length, as most libraries write it.
	definite := func(payload []byte) []byte { return append([]byte{0xa9}, payload[1:len(payload)-1]...) }
	pcrs := func(n, size int) map[int][]byte {
		m := make(map[int][]byte)
		for i := range n {
			m[i] = make([]byte, size)
		}
		return m
	}
	for name, c := range map[string]struct {
		f    simnitro.Fields
		want string // in the error
	}{
		"as it is":          {},
		"definite map":      {simnitro.Fields{Payload: definite}, ""},
		"unknown key":       {simnitro.Fields{Payload: add("\x61x\x82\x01\xbf\x61y\xf6\xff")}, ""},
		"absent fields":     {simnitro.Fields{Payload: swap("\x69user_data\xf6", "")}, ""},
		"one register":      {simnitro.Fields{PCRs: pcrs(1, 48)}, ""},
		"32 registers":      {simnitro.Fields{PCRs: pcrs(32, 48)}, ""},
		"long fields":       {simnitro.Fields{UserData: make([]byte, 1024), Nonce: make([]byte, 1024)}, ""},
		"33 registers":      {simnitro.Fields{PCRs: pcrs(33, 48)}, "more than 32"},
		"SHA-256":           {simnitro.Fields{PCRs: pcrs(24, 32)}, "32 bytes, want 48"},
		"no registers":      {simnitro.Fields{PCRs: pcrs(0, 48)}, "no registers"},
		"longer fields":     {simnitro.Fields{UserData: make([]byte, 1025)}, "at most 1024"},
		"nested":            {simnitro.Fields{Payload: add("\x61x\x81\x81\x81\x81\x01")}, "too deep"},
		"tag":               {simnitro.Fields{Payload: add("\x61x\xc0\x01")}, "a tag"},
		"pieces":            {simnitro.Fields{Payload: add("\x61x\x5f\x41a\xff")}, "no length"},
		"key twice":         {simnitro.Fields{Payload: add("\x65nonce\xf6")}, "stands twice"},
		"unknown key twice": {simnitro.Fields{Payload: add("\x61x\x01\x61x\x01")}, "stands twice"},
		"register twice":    {simnitro.Fields{Payload: swap("\x03\x58\x30", "\x02\x58\x30")}, "twice"},
		"register as text":  {simnitro.Fields{Payload: swap("\x03\x58\x30", "\x03\x78\x30")}, "major type"},
		"number as key":     {simnitro.Fields{Payload: add("\x01\x01")}, "a key"},
		"something behind":  {simnitro.Fields{Payload: func(p []byte) []byte { return append(p, 0) }}, "follows"},
		"no end":            {simnitro.Fields{Payload: func(p []byte) []byte { return p[:len(p)-1] }}, "cut off"},
		"array of all":      {simnitro.Fields{Payload: func(p []byte) []byte { return []byte{0x80} }}, "major type"},
		"empty":             {simnitro.Fields{Payload: func(p []byte) []byte { return nil }}, "cut off"},
		"SHA256":            {simnitro.Fields{Payload: swap("SHA384", "SHA256")}, "SHA384"},
		"no digest":         {simnitro.Fields{Payload: swap("\x66digest\x66SHA384", "")}, "no digest"},
		"timestamp of 0":    {simnitro.Fields{Time: time.UnixMilli(0)}, "timestamp is 0"},
		"both maps": {simnitro.Fields{Payload: add("\x64pcrs\xa1\x00\x58\x30" + strings.Repeat("\x00", 48))},
			"both"},
		"TPM in the other map":  {simnitro.Fields{Map: simnitro.MapEnclave}, "not of the kind"},
		"enclave in this map":   {simnitro.Fields{Suffix: "-enc0000000000000000"}, "not of the kind"},
		"sandbox in this map":   {simnitro.Fields{Suffix: "-sandbox-1"}, "not of the kind"},
		"short module ID":       {simnitro.Fields{Suffix: "-tpm000000000000000"}, "not of the kind"},
		"control in the module": {simnitro.Fields{Map: simnitro.MapEnclave, Suffix: "-\n"}, "module_id"},
		"huge": {simnitro.Fields{Payload: add("\x61x\x59\x40\x00" + strings.Repeat("x", 16<<10))},
			"at most 16384"},
		"array without end": {simnitro.Fields{Payload: add("\x61x\x9f" + strings.Repeat("\x01", 65) + "\xff")},
			"more than 64"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := nitro.Verify(sign(t, ca, c.f), nitro.Config{Roots: ca.Pool(), Now: now})
			if (err == nil) != (c.want == "") || err != nil &&
				(!strings.Contains(err.Error(), c.want) || nitro.Code(err) != nitro.CodeMalformed) {
				t.Errorf("%v (%s), want …%s…", err, nitro.Code(err), c.want)
			}
		})
	}
}

// TestCertificates: the chain ends at the root that the caller trusts, and the signer's certificate is a document's.
func TestCertificates(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	good := sign(t, ca, simnitro.Fields{})
	if _, err := nitro.Verify(good, nitro.Config{Roots: other.Pool(), Now: now}); nitro.Code(err) != nitro.CodeChain {
		t.Errorf("a document with its own root in it: %v, want the code %s", err, nitro.CodeChain)
	}
	if _, err := nitro.Verify(good, nitro.Config{Now: now}); nitro.Code(err) != nitro.CodeChain {
		t.Errorf("a simulated document under AWS's root: %v, want the code %s", err, nitro.CodeChain)
	}
	// The first certificate of the bundle does not matter.
	elsewhere := sign(t, ca, simnitro.Fields{Payload: func(p []byte) []byte {
		return bytes.Replace(p, ca.Root.Raw, bytes.Repeat([]byte{7}, len(ca.Root.Raw)), 1)
	}})
	must.Get(nitro.Verify(elsewhere, nitro.Config{Roots: ca.Pool(), Now: now}))(t, "verify it without a root in it")

	name := func(old, new string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.Subject.CommonName = strings.Replace(c.Subject.CommonName, old, new, 1)
		}
	}
	for name, change := range map[string]func(*x509.Certificate){
		"a CA": func(c *x509.Certificate) {
			c.IsCA, c.KeyUsage = true, c.KeyUsage|x509.KeyUsageCertSign
		},
		"not for signatures":        func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement },
		"of a region alone":         func(c *x509.Certificate) { c.Subject.CommonName = "us-east-2.aws" },
		"without a common name":     func(c *x509.Certificate) { c.Subject.CommonName = "" },
		"of another instance":       name("i-0123", "i-ffff"),
		"of an enclave":             name("-tpm", "-enc"),
		"of no region":              name("us-east-2", "us"),
		"of a module and no region": name(".us-east-2", ""),
		"of another partition":      name(".aws", ".aws-cn"),
		"with something before it":  name("i-", "x.i-"),
	} {
		_, err := nitro.Verify(sign(t, ca, simnitro.Fields{Leaf: change}), nitro.Config{Roots: ca.Pool(), Now: now})
		if nitro.Code(err) != nitro.CodeChain {
			t.Errorf("a certificate %s: %v, want the code %s", name, err, nitro.CodeChain)
		}
	}
	ended := func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) }
	_, err := nitro.Verify(sign(t, ca, simnitro.Fields{Leaf: ended}), nitro.Config{Roots: ca.Pool(), Now: now})
	if nitro.Code(err) != nitro.CodeChain {
		t.Errorf("a certificate that ended before its document: %v, want the code %s", err, nitro.CodeChain)
	}

	key := must.Get(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t, "make a key")
	var payload []byte
	sign(t, ca, simnitro.Fields{Payload: func(p []byte) []byte { payload = bytes.Clone(p); return p }})
	forged := must.Get(simnitro.Seal(payload, key))(t, "sign with another key")
	if _, err := nitro.Verify(forged, nitro.Config{Roots: ca.Pool(), Now: now}); nitro.Code(err) != nitro.CodeSignature {
		t.Errorf("a signature of another key: %v, want the code %s", err, nitro.CodeSignature)
	}
}

// TestBinding has the vector of docs/evidence.md, and one of a real report.
func TestBinding(t *testing.T) {
	counting := make([]byte, 1184)
	for i := range counting {
		counting[i] = byte(i)
	}
	check := func(report []byte, userData, nonce string) {
		t.Helper()
		u, n := nitro.Binding(report)
		if got := hex.EncodeToString(u[:]); got != userData {
			t.Errorf("user_data %s, want %s", got, userData)
		}
		if got := hex.EncodeToString(n[:]); got[:8]+"…"+got[120:] != nonce {
			t.Errorf("nonce %s, want %s", got, nonce)
		}
	}
	text := string(must.Get(os.ReadFile("../../docs/evidence.md"))(t, "read docs/evidence.md"))
	_, text, _ = strings.Cut(text, "is i mod 256")
	check(counting, strings.Join(strings.Fields(text[strings.Index(text, "```"):])[1:3], ""), "50515253…8c8d8e8f")
	check(real(t, "../aws-snp/us-east-2-v5-report.bin"),
		"3e325f45fca7f33d377323daf43d4184c6c0239e940a63885287fb4fb2691e4c"+
			"5342b3715c2766b10c64fdf8387a08e60a3a74639e9c2b75b9031bab705a444a", "ba427ec1…d608f582")
}

// TestRelay: two nodes, of which B is honest and A has the attacker's image. What A can show of B is refused, and what
// an honest node shows of itself is not. One case is left, and docs/evidence.md says so: an attacker with root on a
// node of the good image, whose TPM names any report.
func TestRelay(t *testing.T) {
	ca := newCA(t)
	report := func(name string) []byte { // stands for what its secure processor has signed
		sum := sha512.Sum512([]byte(name))
		return bytes.Repeat(sum[:], 1184/64+1)[:1184]
	}
	type node struct {
		instance string
		pcrs     map[int][]byte
	}
	evil := simnitro.PCRs()
	evil[4] = bytes.Repeat([]byte{0xee}, 48)
	a, b := node{"i-0aaaaaaaaaaaaaaaa", evil}, node{"i-0bbbbbbbbbbbbbbbb", simnitro.PCRs()}
	document := func(n node, report []byte) []byte { // as an agent makes one: of its own report alone
		userData, nonce := nitro.Binding(report)
		return sign(t, ca, simnitro.Fields{Instance: n.instance, PCRs: n.pcrs, UserData: userData[:], Nonce: nonce[:]})
	}
	pinned := []nitro.Set{set(t, 4, 7, 12)}
	ofA, ofB, old := report("A"), report("B"), report("B, of another challenge")
	userData, nonce := nitro.Binding(ofA)
	keyed := sign(t, ca, simnitro.Fields{UserData: userData[:], Nonce: nonce[:], PublicKey: []byte{}})
	enclave := sign(t, ca, simnitro.Fields{Map: simnitro.MapEnclave, Suffix: "-enc0123456789abcdef",
		UserData: userData[:], Nonce: nonce[:]})
	for _, c := range []struct {
		name             string
		report, document []byte
		code             string // "pcrs" for the policy
	}{
		{"honest", ofB, document(b, ofB), ""},
		{"A as it is", ofA, document(a, ofA), "pcrs"},
		{"B's document with A's report", ofA, document(b, ofB), nitro.CodeBinding},
		{"A's document with B's report", ofB, document(a, ofA), nitro.CodeBinding},
		{"B's older document", ofB, document(b, old), nitro.CodeBinding},
		{"for a key", ofA, keyed, nitro.CodeBinding},
		{"an enclave's", ofA, enclave, nitro.CodeKind},
		{"root on a node of the good image", ofA, document(b, ofA), ""},
	} {
		d := must.Get(nitro.Verify(c.document, nitro.Config{Roots: ca.Pool(), Now: now}))(t, "verify %s", c.name)
		err := d.Binds(c.report)
		got := nitro.Code(err)
		if ok, _ := nitro.Match(pinned, d.PCRs, now); err == nil && !ok {
			got = "pcrs"
		}
		if got != c.code {
			t.Errorf("%s: code %q, want %q (%v)", c.name, got, c.code, err)
		}
	}
}

// set pins registers to a node's values.
func set(t testing.TB, pcrs ...int) (s nitro.Set) {
	t.Helper()
	values := simnitro.PCRs()
	for _, i := range pcrs {
		s.Values = append(s.Values, nitro.Pin{PCR: uint32(i), Value: hex.EncodeToString(values[i])})
	}
	return s
}

func registers() map[int]nitro.Register {
	m := make(map[int]nitro.Register)
	for i, v := range simnitro.PCRs() {
		m[i] = nitro.Register(v)
	}
	return m
}

func TestPolicy(t *testing.T) {
	for pcr, refused := range map[uint32]bool{0: true, 1: true, 2: false, 3: false, 4: false, 5: true, 6: false, 7: false,
		8: false, 9: true, 10: true, 11: false, 12: false, 15: false, 16: true, 17: true, 22: true, 23: true, 24: true} {
		if got := nitro.Meaningless(pcr); (got != "") != refused {
			t.Errorf("PCR%d: %q, want it refused: %v", pcr, got, refused)
		}
	}
	for name, c := range map[string]struct {
		set  nitro.Set
		want string
	}{
		"4 and 12": {set(t, 4, 12), ""}, "4 and 7": {set(t, 4, 7), ""}, "7": {set(t, 7), ""},
		"4": {set(t, 4), "GHSA"}, "4 and 8": {set(t, 4, 8), "GHSA"}, "12": {set(t, 12), "neither"},
		"11": {set(t, 11), "neither"}, "nothing": {nitro.Set{}, "neither"},
	} {
		if got := c.set.Incomplete(); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("a set of %s: %q, want …%s…", name, got, c.want)
		}
	}

	good, other := set(t, 4, 7, 12), set(t, 4, 7, 12)
	other.Values[0].Value = strings.Repeat("ee", 48)
	dated := func(s nitro.Set, day string) nitro.Set { s.NotAfter = day; return s }
	missing, zero := registers(), registers()
	delete(missing, 12)
	zero[7] = nitro.Register{}
	for name, c := range map[string]struct {
		sets     []nitro.Set
		pcrs     map[int]nitro.Register
		ok       bool
		required string
	}{
		"one":                    {[]nitro.Set{good}, registers(), true, "one of 1"},
		"the second":             {[]nitro.Set{other, good}, registers(), true, "one of 2"},
		"another":                {[]nitro.Set{other}, registers(), false, "one of 1"},
		"on its last day":        {[]nitro.Set{dated(good, "2026-11-30")}, registers(), true, "one of 1"},
		"retired":                {[]nitro.Set{dated(good, "2026-11-29"), other}, registers(), false, "until 2026-11-29"},
		"retired, and there yet": {[]nitro.Set{dated(good, "2026-11-29"), good}, registers(), true, "one of 1"},
		"missing is not zero":    {[]nitro.Set{good}, missing, false, "one of 1"},
		"zero":                   {[]nitro.Set{good}, zero, false, "one of 1"},
		"none":                   {nil, registers(), false, "one of 0"},
		"a set of nothing":       {[]nitro.Set{{}}, registers(), false, "one of 1"},
		"4 alone":                {[]nitro.Set{set(t, 4)}, registers(), false, "one of 1"},
		"a constant":             {[]nitro.Set{set(t, 0, 4, 12)}, registers(), false, "one of 1"},
	} {
		ok, required := nitro.Match(c.sets, c.pcrs, now)
		if ok != c.ok || !strings.Contains(required, c.required) {
			t.Errorf("%s: %v, %q, want %v, …%s…", name, ok, required, c.ok, c.required)
		}
	}
}

func TestImage(t *testing.T) {
	d := nitro.Document{PCRs: registers()}
	image, ok := d.Image()
	if !ok {
		t.Fatal("there is no digest of registers that are there")
	}
	for _, i := range []int{4, 7, 12, 8} {
		changed := nitro.Document{PCRs: maps.Clone(d.PCRs)}
		changed.PCRs[i] = nitro.Register{0: 0xaa}
		if got, ok := changed.Image(); !ok || (got == image) != (i == 8) {
			t.Errorf("with another PCR%d the digest is %x, and was %x", i, got, image)
		}
		if delete(changed.PCRs, i); i != 8 {
			if _, ok := changed.Image(); ok {
				t.Errorf("without PCR%d there is a digest", i)
			}
		}
	}
}

// BenchmarkVerify is what a relying party pays for a document, chain included.
func BenchmarkVerify(b *testing.B) {
	doc := real(b, documents[0].file)
	b.ReportAllocs()
	for b.Loop() {
		must.Get(nitro.Verify(doc, nitro.Config{Now: documents[0].at}))(b, "verify it")
	}
}

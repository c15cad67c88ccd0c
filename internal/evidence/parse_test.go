package evidence_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"sevagent/internal/evidence"
	"sevagent/internal/must"
	"sevagent/internal/sim"
)

// text is a document as a list of members, so that it can be changed in ways that no encoder writes.
type text []member

type member struct {
	name  string // between quotes, as it stands
	value string // JSON
}

// members returns a document's members in order.
func members(t testing.TB, document []byte) (list text) {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(document))
	must.Get(dec.Token())(t, "read the brace before the members")
	for dec.More() {
		name := must.Get(dec.Token())(t, "read a name")
		var value json.RawMessage
		must.Do(t, dec.Decode(&value), "read a value")
		list = append(list, member{name.(string), string(value)})
	}
	return list
}

func (x text) String() string {
	var parts []string
	for _, m := range x {
		parts = append(parts, `"`+m.name+`":`+m.value)
	}
	return "{" + strings.Join(parts, ",") + "}"
}

func (x text) get(name string) string {
	i := slices.IndexFunc(x, func(m member) bool { return m.name == name })
	if i < 0 {
		panic("no member " + name)
	}
	return x[i].value
}

// with returns x with a member's value replaced.
func (x text) with(name, value string) text {
	x.get(name)
	x = slices.Clone(x)
	x[slices.IndexFunc(x, func(m member) bool { return m.name == name })].value = value
	return x
}

// edited returns x with the one occurrence of old in a member's value replaced.
func (x text) edited(name, old, new string) text {
	if n := strings.Count(x.get(name), old); n != 1 {
		panic(fmt.Sprintf("%s: %q stands %d times, want once", name, old, n))
	}
	return x.with(name, strings.Replace(x.get(name), old, new, 1))
}

func (x text) without(name string) text {
	x.get(name)
	return slices.DeleteFunc(slices.Clone(x), func(m member) bool { return m.name == name })
}

func (x text) before(name, value string) text { return append(text{{name, value}}, x...) }

func (x text) after(name, value string) text { return append(slices.Clone(x), member{name, value}) }

// genuine returns a document of a node, which binds a key and is alone in its batch.
func genuine(n *node, caller evidence.Caller) *evidence.Document {
	n.t.Helper()
	claims := evidence.Claims{
		Purpose: evidence.PurposeClient, Nonce: bytes.Repeat([]byte{7}, 17),
		Binding:  evidence.Binding{Kind: evidence.BindClient, SPKISHA256: bytes.Repeat([]byte{0xab}, 32)},
		Caller:   caller,
		Instance: evidence.Instance{ID: "i-0123456789abcdef0", Region: "us-east-2", AccountID: "111122223333"},
	}
	report, cert := n.report(claims.Leaf())
	verdict := map[string]any{"status": "pass", "rules": []string{}}
	return must.Get(evidence.Build(claims, 0, nil, report, [][]byte{cert}, verdict, time.Unix(1780000000, 0)))(
		n.t, "build a document")
}

// foreign returns a certificate that is not AMD's, PEM as the member certificates has it.
func foreign(t testing.TB) string {
	t.Helper()
	key := must.Get(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t, "make a key")
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "SEV-VLEK.example.com"}}
	der := must.Get(x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key))(t,
		"make a certificate")
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// quoted returns s as JSON.
func quoted(s string) string {
	text, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// unquoted returns the text of a JSON string.
func unquoted(s string) (text string) {
	if err := json.Unmarshal([]byte(s), &text); err != nil {
		panic(err)
	}
	return text
}

// variant is a document with what Parse says of it, "" if it accepts.
type variant struct {
	name, text, want string
	is               error // the typed one, nil if there is none
}

// variants returns the documents of a node that look like evidence, and are ambiguous or forged at the edges. They are
// changed as text: that is where two readers part.
func variants(n *node) []variant {
	d := genuine(n, evidence.HostCaller(0))
	whole := string(must.Get(json.Marshal(d))(n.t, "encode the document"))
	x := members(n.t, []byte(whole))
	certs := d.Certificates
	swap := func(old, new string) string {
		n.t.Helper()
		if strings.Count(whole, old) != 1 {
			n.t.Fatalf("%q stands %d times in the document, want once", old, strings.Count(whole, old))
		}
		return strings.Replace(whole, old, new, 1)
	}
	pemWith := func(text string) string { return x.with("certificates", quoted(text)).String() }
	real, forged := x.get("binding"), `{"kind":"client","spki_sha256":"`+strings.Repeat("ee", 32)+`"}`
	key := strings.Repeat("ab", 32)
	report := unquoted(x.get("report"))
	caller := func(value string) string { return x.with("caller", value).String() }
	container := strings.Repeat("c0", 32)
	path := func(n int) string {
		return `{"index":0,"path":[` +
			strings.TrimSuffix(strings.Repeat(`"`+strings.Repeat("00", 64)+`",`, n), ",") + `]}`
	}
	uncommitted := func(name, text string) variant {
		return variant{name, text, "REPORT_DATA does not commit", evidence.ErrReportData}
	}
	contradicting := func(name, text string) variant {
		return variant{name, text, "the document contradicts itself", evidence.ErrContradiction}
	}
	record := func(base64url string) string { // cmw with the record of a NitroTPM
		return strings.Replace(x.get("cmw"), "{",
			`{"nitrotpm":["application/vnd.sevagent.nitrotpm-document","`+base64url+`",4],`, 1)
	}
	withTPM := func(value, base64url string) string {
		return x.with("cmw", record(base64url)).after("nitrotpm", value).String()
	}
	const older, block = "made by an older agent", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
	list := []variant{
		{name: "genuine", text: whole},
		{name: "blanks", text: "\n" + strings.ReplaceAll(whole, `":`, "\" :\t") + "   \n\t"},
		{name: "members in another order",
			text: func() string { r := slices.Clone(x); slices.Reverse(r); return r.String() }()},
		{name: "escaped names and values", text: swap(`"purpose":"client"`, `"\u0070urpose":"\u0063lient"`)},
		{name: "no verdict", text: x.without("verdict").String()},
		{name: "verdict of its own", text: x.with("verdict", `{"status":"pass","roots":"amd"}`).String()},
		{name: "made in 2100", text: x.with("iat", "4102444800").String()},
		{name: "made before 1970", text: x.with("iat", "-1").String()},

		// One value, of JSON that has one reading.
		{name: "nothing", want: "not one JSON value"},
		{name: "not an object", text: "[]", want: "unexpected array"},
		{name: "empty object", text: "{}", want: "missing member"},
		{name: "second value", text: whole + "{}", want: "not one JSON value"},
		{name: "twice", text: whole + whole, want: "not one JSON value"},
		{name: "byte order mark", text: "\ufeff" + whole, want: "not one JSON value"},
		{name: "not UTF-8", text: swap(`"status":"pass"`, "\"status\":\"\xff\""), want: "not valid UTF-8"},
		{name: "half a surrogate pair", text: swap(`"status":"pass"`, `"status":"\ud800"`),
			want: "half a surrogate pair"},
		{name: "nested too deep", text: x.with("verdict",
			`{"a":`+strings.Repeat("[", 15)+strings.Repeat("]", 15)+"}").String(), want: "nested more than 16 deep"},
		{name: "nested deep enough", text: x.with("verdict",
			`{"a":`+strings.Repeat("[", 14)+strings.Repeat("]", 14)+"}").String()},
		{name: "too large", text: whole + strings.Repeat(" ", evidence.MaxDocument),
			want: "at most 262144 are allowed"},
		{name: "of the greatest size", text: whole + strings.Repeat(" ", evidence.MaxDocument-len(whole))},
		{name: "too large by a byte", text: whole + strings.Repeat(" ", evidence.MaxDocument-len(whole)+1),
			want: "at most 262144 are allowed"},
		{name: "name twice in the verdict", text: swap(`"status":"pass"`, `"status":"pass","status":"fail"`),
			want: "verdict: member status stands twice"},
		{name: "fraction in the verdict", text: x.with("verdict", `{"a":1.5}`).String(), want: "verdict.a: a number"},
		{name: "null in the verdict", text: x.with("verdict", `{"a":null}`).String(), want: "verdict.a: a null"},
		{name: "verdict that is no object", text: x.with("verdict", `"pass"`).String(), want: "verdict: not an object"},
		{name: "verdict null", text: x.with("verdict", "null").String(), want: "verdict: a null"},

		// Names: each member once, spelled as the profile spells it.
		{name: "capital", text: x.with("binding", forged).after("Binding", real).String(),
			want: `unknown or empty member "Binding"`},
		{name: "capital purpose", text: x.with("purpose", `"boot"`).after("Purpose", `"client"`).String(),
			want: `member "Purpose"`},
		{name: "capital nonce", text: x.with("eat_nonce", quoted(strings.Repeat("A", 22))).after("EAT_NONCE",
			x.get("eat_nonce")).String(), want: `member "EAT_NONCE"`},
		{name: "capital caller", text: x.with("caller",
			`{"kind":"container","uid":1000,"container_id":"`+container+`"}`).after("CALLER", x.get("caller")).String(),
			want: `member "CALLER"`},
		{name: "capital alone", text: swap(`"binding":`, `"Binding":`), want: `unknown or empty member "Binding"`},
		{name: "capital inside", text: swap(`"spki_sha256"`, `"SPKI_SHA256"`),
			want: `binding: unknown or empty member "SPKI_SHA256"`},
		{name: "capital in batch", text: swap(`"index":0`, `"index":0,"Index":0`),
			want: `batch: unknown or empty member "Index"`},
		{name: "capital in instance", text: swap(`"region":"us-east-2"`, `"region":"eu-west-1","Region":"us-east-2"`),
			want: `instance: unknown or empty member "Region"`},
		{name: "long s", text: swap(`"spki_sha256"`, "\"\u017fpki_\u017fha256\""),
			want: `unknown or empty member "\u017fpki_\u017fha256"`},
		{name: "Kelvin sign", text: x.edited("binding", `"kind"`, "\"\u212aind\"").String(),
			want: `unknown or empty member "\u212aind"`},
		{name: "dotless i", text: x.with("binding", forged).after("b\u0131nding", real).String(),
			want: `member "b\u0131nding"`},
		{name: "twice, forged first", text: x.before("binding", forged).String(), want: "member binding stands twice"},
		{name: "twice, forged last", text: x.after("binding", forged).String(), want: "member binding stands twice"},
		{name: "twice, escaped", text: x.after(`\u0062inding`, forged).String(), want: "member binding stands twice"},
		{name: "twice, merged", text: x.with("binding", `{"kind":"client"}`).before("binding", real).String(),
			want: "member binding stands twice"},
		{name: "caller twice", text: x.before("caller",
			`{"kind":"host","uid":0,"container_id":"","task_arn":""}`).String(), want: "member caller stands twice"},
		{name: "uid twice", text: swap(`"uid":0`, `"uid":1000,"uid":0`), want: "caller: member uid stands twice"},
		{name: "report twice in cmw", text: swap(`"cmw":{`, `"cmw":{"report":[],`),
			want: "cmw: member report stands twice"},
		{name: "unknown", text: x.after("extra", "1").String(), want: "unknown or empty member extra"},
		{name: "unknown inside", text: swap(`"uid":0`, `"uid":0,"gid":0`), want: "caller: unknown or empty member gid"},

		// Members: all that the profile has, none empty.
		uncommitted("no instance", x.without("instance").String()),
		{name: "empty instance", text: x.with("instance", "{}").String(), want: "instance"},
		{name: "instance of empty parts", text: x.with("instance", `{"id":"","region":"","account_id":""}`).String(),
			want: "empty member instance"},
		{name: "instance without account", text: swap(`,"account_id":"111122223333"`, ""),
			want: "instance: missing member account_id"},
		{name: "instance null", text: x.with("instance", "null").String(), want: "instance: a null"},
		{name: "empty container", text: swap(`"uid":0`, `"uid":0,"container_id":""`),
			want: "caller: unknown or empty member container_id"},
		{name: "empty task", text: swap(`"uid":0`, `"uid":0,"task_arn":""`),
			want: "caller: unknown or empty member task_arn"},
		{name: "path null", text: swap(`"path":[]`, `"path":null`), want: "batch.path: a null"},
		{name: "uid null", text: swap(`"uid":0`, `"uid":null`), want: "caller.uid: a null"},
		{name: "cmw null", text: x.with("cmw", "null").String(), want: "cmw: a null"},
		{name: "empty binding", text: x.with("binding", "{}").String(), want: "binding"},
		{name: "kind of binding empty", text: x.with("binding", `{"kind":""}`).String(), want: "binding: no kind"},

		// Profiles.
		{name: "profile 1", text: swap(`"`+evidence.Profile+`","eat_nonce"`,
			`"tag:sevagent,2026:evidence#1","eat_nonce"`), want: older, is: evidence.ErrOlder},
		{name: "document of an older agent", text: x.without("instance").with("caller", `{"uid":0}`).with("eat_profile",
			`"tag:sevagent,2026:evidence#1"`).String(), want: older, is: evidence.ErrOlder},
		{name: "profile to come", text: x.with("eat_profile", `"tag:sevagent,2026:evidence#3"`).after("extra",
			"1").String(), want: `unknown eat_profile "tag:sevagent,2026:evidence#3"`, is: evidence.ErrProfile},
		{name: "another's profile", text: x.with("eat_profile", `"tag:example,2026:\u001b[2J"`).String(),
			want: `\x1b[2J`, is: evidence.ErrProfile},

		// The document of a NitroTPM, of which nothing is said here but that cmw has it too.
		{name: "nitrotpm", text: withTPM(`"hAAA"`, "hAAA")},
		{name: "nitrotpm as an object", text: x.after("nitrotpm", `{"document":"AAAA"}`).String(),
			want: "nitrotpm: unexpected object"},
		{name: "nitrotpm, empty", text: x.after("nitrotpm", `""`).String(), want: "empty member nitrotpm"},
		{name: "nitrotpm null", text: x.after("nitrotpm", "null").String(), want: "nitrotpm: a null"},
		{name: "nitrotpm in base64url", text: withTPM(`"-AAA"`, "-AAA"), want: "base64"},
		{name: "nitrotpm with loose bits", text: withTPM(`"hAB="`, "hAA"), want: "nitrotpm: not in canonical form"},
		{name: "nitrotpm that is huge", text: withTPM(quoted(strings.Repeat("AAAA", 5462)),
			strings.Repeat("AAAA", 5462)), want: "nitrotpm: 16386 bytes"},
		contradicting("nitrotpm, not in cmw", x.after("nitrotpm", `"hAAA"`).String()),
		contradicting("nitrotpm, another in cmw", withTPM(`"hAAA"`, "hAAB")),
		contradicting("nitrotpm in cmw alone", x.with("cmw", record("hAAA")).String()),

		// What the report commits to.
		uncommitted("kind swapped", x.edited("binding", `"client"`, `"server"`).String()),
		uncommitted("another key", x.with("binding", forged).String()),
		uncommitted("key removed", x.with("binding", `{"kind":"none"}`).String()),
		uncommitted("another purpose", x.with("purpose", `"boot"`).String()),
		uncommitted("another nonce", x.with("eat_nonce", quoted(strings.Repeat("A", 22))).String()),
		uncommitted("another user", swap(`"uid":0`, `"uid":1`)),
		uncommitted("unknown caller", caller(`{"kind":"unknown"}`)),
		uncommitted("root in a container", caller(`{"kind":"container","uid":0,"container_id":"`+container+`"}`)),
		uncommitted("another instance", swap("i-0123456789abcdef0", "i-0123456789abcdef1")),
		uncommitted("another region", swap(`"us-east-2"`, `"eu-west-1"`)),
		uncommitted("another account", swap("111122223333", "111122223334")),
		uncommitted("a path", x.with("batch", path(1)).String()),
		{name: "index without path", text: swap(`"index":0`, `"index":1`), want: "does not fit"},
		{name: "huge index", text: swap(`"index":0`, `"index":9007199254740991`), want: "does not fit"},
		{name: "endless index", text: swap(`"index":0`, `"index":4611686018427387904`), want: "batch.index: a number"},
		{name: "negative index", text: swap(`"index":0`, `"index":-1`), want: "does not fit"},
		{name: "short step", text: swap(`"path":[]`, `"path":["00"]`), want: "step 0 of the path has 1 bytes"},
		{name: "long path", text: x.with("batch", path(17)).String(), want: "17 steps"},

		// What says the same thing twice.
		contradicting("report_data differs", x.with("report_data", quoted(strings.Repeat("aa", 64))).String()),
		contradicting("report_data short", x.with("report_data", `"aa"`).String()),
		contradicting("report_data empty", x.with("report_data", `""`).String()),
		{name: "report_data in capitals", text: x.with("report_data", strings.ToUpper(x.get("report_data"))).String(),
			want: "not lower-case hexadecimal"},
		contradicting("cmw of another report",
			x.edited("cmw", `"report":["application/vnd.sevagent.sev-snp-report","`+unquoted(x.get("report"))[:4],
				`"report":["application/vnd.sevagent.sev-snp-report","AAAA`).String()),
		contradicting("cmw of another certificate",
			x.edited("cmw", `"application/pkix-cert","MII`, `"application/pkix-cert","MIJ`).String()),
		contradicting("cmw of another type", x.edited("cmw", "application/pkix-cert", "application/pkix-crl").String()),
		contradicting("cmw of another profile", x.edited("cmw", "evidence#2", "evidence#1").String()),
		contradicting("cmw with another indicator", x.edited("cmw", `",4]`, `",2]`).String()),
		contradicting("cmw with a further record", x.edited("cmw", `{`, `{"x":["a","b",1],`).String()),
		contradicting("cmw empty", x.with("cmw", "{}").String()),
		{name: "cmw of another kind", text: x.with("cmw", "[]").String(), want: "cmw: not an object"},
		{name: "cmw in another order", text: x.with("cmw", func() string {
			r := members(n.t, []byte(x.get("cmw")))
			slices.Reverse(r)
			return r.String()
		}()).String()},

		// Encodings: one spelling for each value.
		{name: "key in capitals", text: swap(key, strings.ToUpper(key)), want: "not lower-case hexadecimal"},
		{name: "key with a letter", text: swap(key, key[1:]+"g"), want: "not lower-case hexadecimal"},
		{name: "key with half a byte", text: swap(key, key[1:]), want: "not lower-case hexadecimal"},
		{name: "short key", text: swap(key, key[2:]), want: "key hash of 31 bytes"},
		{name: "step in capitals", text: swap(`"path":[]`, `"path":["`+strings.Repeat("AA", 64)+`"]`),
			want: "not lower-case hexadecimal"},
		{name: "line breaks in the report", text: x.with("report", quoted(report[:100]+"\r\n"+report[100:])).String(),
			want: "report: not in canonical form"},
		{name: "blank in the report", text: x.with("report", quoted(report[:100]+" "+report[100:])).String(),
			want: "base64"},
		{name: "loose bits in the report", text: x.with("report", quoted(loosen(report))).String(),
			want: "report: not in canonical form"},
		{name: "report without padding",
			text: x.with("report", quoted(strings.TrimRight(report, "="))).String(), want: "base64"},
		{name: "report in base64url", text: x.with("report",
			quoted(strings.NewReplacer("+", "-", "/", "_").Replace(report))).String(), want: "base64"},
		{name: "escapes in the report",
			text: x.with("report", `"\u00`+fmt.Sprintf("%x", report[0])+report[1:]+`"`).String()},
		{name: "short report", text: x.with("report", quoted(report[:len(report)-4])).String(), want: "report: 11"},
		{name: "line break in the nonce", text: x.with("eat_nonce",
			quoted(unquoted(x.get("eat_nonce"))[:5]+"\n"+unquoted(x.get("eat_nonce"))[5:])).String(),
			want: "not base64url"},
		{name: "loose bits in the nonce",
			text: x.with("eat_nonce", quoted(loosen(unquoted(x.get("eat_nonce"))))).String(), want: "not base64url"},
		{name: "padded nonce", text: x.with("eat_nonce", quoted(unquoted(x.get("eat_nonce"))+"=")).String(),
			want: "not base64url"},
		{name: "short nonce", text: x.with("eat_nonce", `"BwcH"`).String(), want: "nonce of 3 bytes"},
		{name: "index 0.0", text: swap(`"index":0`, `"index":0.0`), want: "batch.index: a number"},
		{name: "index 0e5", text: swap(`"index":0`, `"index":0e5`), want: "batch.index: a number"},
		{name: "index -0", text: swap(`"index":0`, `"index":-0`), want: "batch.index: a number"},
		{name: "index as text", text: swap(`"index":0`, `"index":"0"`), want: "unexpected string"},
		{name: "index as bool", text: swap(`"index":0`, `"index":false`), want: "unexpected bool"},
		{name: "uid 0.0", text: swap(`"uid":0`, `"uid":0.0`), want: "caller.uid: a number"},
		{name: "uid -0.0", text: swap(`"uid":0`, `"uid":-0.0`), want: "caller.uid: a number"},
		{name: "uid -0", text: swap(`"uid":0`, `"uid":-0`), want: "caller.uid: a number"},
		{name: "uid of 33 bits", text: swap(`"uid":0`, `"uid":4294967296`), want: "unexpected number 4294967296"},
		{name: "negative uid", text: swap(`"uid":0`, `"uid":-1`), want: "unexpected number -1"},
		{name: "uid as bool", text: swap(`"uid":0`, `"uid":false`), want: "unexpected bool"},
		{name: "iat with a fraction", text: x.with("iat", "1780000000.5").String(), want: "iat: a number"},
		{name: "iat with exponent", text: x.with("iat", "178e7").String(), want: "iat: a number"},
		{name: "iat of 54 bits", text: x.with("iat", "9007199254740992").String(), want: "iat: a number"},
		{name: "iat as text", text: x.with("iat", `"1780000000"`).String(), want: "unexpected string"},

		// Certificates: PEM blocks and nothing else, the endorsement key's own first.
		{name: "no certificate", text: recollected(n.t, d, "")},
		{name: "foreign certificate behind", text: recollected(n.t, d, certs+foreign(n.t))},
		{name: "no certificate behind, but a block", text: recollected(n.t, d, certs+block)},
		{name: "foreign certificate behind, not in cmw", text: pemWith(certs + foreign(n.t))},
		contradicting("foreign certificate behind, another in cmw",
			strings.Replace(recollected(n.t, d, certs+foreign(n.t)),
				`"certificate-1":["application/pkix-cert","MII`, `"certificate-1":["application/pkix-cert","MIJ`, 1)),
		contradicting("own certificate not in cmw", x.edited("cmw", `"certificate-0"`, `"certificate-1"`).String()),
		contradicting("report not in cmw",
			x.with("cmw", members(n.t, []byte(x.get("cmw"))).without("report").String()).String()),
		{name: "foreign certificate before", text: recollected(n.t, d, foreign(n.t)+certs),
			want: "the first is not a SEV-VLEK certificate", is: evidence.ErrContradiction},
		{name: "no certificate before, but a block", text: recollected(n.t, d, block+certs),
			want: "certificates: entry 0"},
		{name: "text before", text: pemWith("see\x1b[2J here\n" + certs), want: "entry 0 is not in canonical form"},
		{name: "text behind", text: pemWith(certs + "see here\n"), want: "not a sequence of PEM certificates"},
		{name: "text between", text: recollected(n.t, d, certs+"and\n"+certs),
			want: "entry 1 is not in canonical form"},
		{name: "blank line before", text: pemWith("\n" + certs), want: "entry 0 is not in canonical form"},
		{name: "blank line behind", text: pemWith(certs + "\n"), want: "not a sequence of PEM certificates"},
		{name: "no line end", text: pemWith(strings.TrimSuffix(certs, "\n")), want: "entry 0 is not in canonical form"},
		{name: "CR LF", text: pemWith(strings.ReplaceAll(certs, "\n", "\r\n")),
			want: "entry 0 is not in canonical form"},
		{name: "headers", text: pemWith(strings.Replace(certs, "-----\n", "-----\nX-Note: 1\n\n", 1)),
			want: "not a sequence of PEM certificates"},
		{name: "another label", text: pemWith(strings.ReplaceAll(certs, "CERTIFICATE", "TRUSTED CERTIFICATE")),
			want: "not a sequence of PEM certificates"},
		{name: "other line lengths", text: pemWith(strings.Replace(certs, "-----\nM", "-----\n\nM", 1)),
			want: "entry 0 is not in canonical form"},
		{name: "nine certificates", text: recollected(n.t, d, strings.Repeat(certs, 9)), want: "more than 8"},
		{name: "eight certificates", text: recollected(n.t, d, strings.Repeat(certs, 8))},

		// Forms of claims: what a terminal obeys is none.
		{name: "purpose that paints", text: x.with("purpose",
			quoted("client\x1b[2J\x1b[Hverdict      pass\n")).String(), want: "unknown purpose"},
		{name: "task that paints", text: swap(`"uid":0`, `"uid":0,"task_arn":"\u001b]0;title\u0007\u001b[8m"`),
			want: "with a container or a task"},
		{name: "caller of no kind", text: caller(`{"uid":0}`), want: "caller: missing member kind"},
		{name: "caller of another kind", text: caller(`{"kind":"root","uid":0}`), want: "unknown kind of caller"},
		{name: "host in a container", text: caller(`{"kind":"host","uid":0,"container_id":"` + container + `"}`),
			want: "with a container"},
		{name: "unknown root", text: caller(`{"kind":"unknown","uid":0}`), want: "unknown caller with a uid"},
		{name: "host without uid", text: caller(`{"kind":"host"}`), want: "without a uid"},
	}

	// Well signed, as root on a node can make it: the form counts, for any signer.
	committed := func(name, want string, change func(c *evidence.Claims)) {
		c := genuine(n, evidence.HostCaller(0)).Claims()
		change(&c)
		report, cert := n.report(c.Leaf())
		d := must.Get(evidence.Build(c, 0, nil, report, [][]byte{cert}, nil, time.Now()))(n.t, "build a document")
		list = append(list, variant{name: name,
			text: string(must.Get(json.Marshal(d))(n.t, "encode the document")), want: want})
	}
	committed("committed: purpose", "unknown purpose", func(c *evidence.Claims) { c.Purpose = "anything" })
	committed("committed: task", "",
		func(c *evidence.Claims) { c.Caller = evidence.ContainerCaller(0, container, task) })
	committed("committed: task that paints", "ARN of an ECS task", func(c *evidence.Claims) {
		c.Caller = evidence.ContainerCaller(0, container, "\x1b]0;title\a\x1b[8m\n")
	})
	committed("committed: task with line feed", "ARN of an ECS task", func(c *evidence.Claims) {
		c.Caller = evidence.ContainerCaller(0, container, task+"\n")
	})
	committed("committed: container ID", "64 hexadecimal digits", func(c *evidence.Claims) {
		c.Caller = evidence.ContainerCaller(0, "web", "")
	})
	committed("committed: other digits", "account ID",
		func(c *evidence.Claims) { c.Instance.AccountID = "11112222333\u0663" })
	committed("committed: region", "name of a region",
		func(c *evidence.Claims) { c.Instance.Region = "us-east-2\u202e" })
	committed("committed: instance ID", "instance ID", func(c *evidence.Claims) { c.Instance.ID = "i-\x1b[2J" })
	committed("committed: no instance", "", func(c *evidence.Claims) { c.Instance = evidence.Instance{} })
	committed("committed: unknown caller", "", func(c *evidence.Claims) {
		c.Caller = evidence.Caller{Kind: evidence.CallerUnknown}
	})
	committed("committed: long nonce", "nonce of 65 bytes", func(c *evidence.Claims) { c.Nonce = make([]byte, 65) })

	// Each member is there.
	for _, m := range x {
		if m.name != "instance" && m.name != "verdict" {
			list = append(list, variant{name: "no " + m.name,
				text: x.without(m.name).String(), want: "missing member " + m.name})
		}
	}
	return list
}

// recollected returns a document with other certificates, also in cmw.
func recollected(t testing.TB, d *evidence.Document, certs string) string {
	t.Helper()
	var ders [][]byte
	for block, rest := pem.Decode([]byte(certs)); block != nil; block, rest = pem.Decode(rest) {
		ders = append(ders, block.Bytes)
	}
	changed := must.Get(evidence.Build(d.Claims(), 0, nil, d.Report, ders, nil, time.Unix(1780000000, 0)))(t,
		"build a document")
	changed.Certificates = certs
	return string(must.Get(json.Marshal(changed))(t, "encode the document"))
}

// loosen sets a bit that counts for nothing in the last digit of base64.
func loosen(base64 string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	digits := strings.TrimRight(base64, "=")
	last := len(digits) - 1
	return digits[:last] + alphabet[strings.IndexByte(alphabet, digits[last])|1:][:1] + base64[last+1:]
}

func TestParse(t *testing.T) {
	n := newNode(t, sim.DefaultOptions(time.Now()))
	for _, v := range variants(n) {
		t.Run(v.name, func(t *testing.T) {
			_, err := evidence.Parse([]byte(v.text))
			if v.want == "" && err != nil || v.want != "" && (err == nil || !strings.Contains(err.Error(), v.want)) {
				t.Errorf("Parse = %v, want %q", err, v.want)
			}
			if v.is != nil && !errors.Is(err, v.is) {
				t.Errorf("Parse = %v, which is not %q", err, v.is)
			}
			if text := fmt.Sprint(err); strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("the error has what a terminal obeys: %q", text)
			}
		})
	}
}

// FuzzParse: a document that parses is the same after it was written and read again, and its report commits to it.
func FuzzParse(f *testing.F) {
	n := newNode(f, sim.DefaultOptions(time.Now()))
	for _, v := range variants(n) {
		f.Add([]byte(v.text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := evidence.Parse(data)
		if err != nil {
			return
		}
		if root, err := d.Root(); err != nil || !bytes.Equal(root[:], d.Report[0x50:0x90]) {
			t.Errorf("the report is for REPORT_DATA %x, the claims give %x, %v", d.Report[0x50:0x90], root, err)
		}
		text := must.Get(json.Marshal(d))(t, "encode the document")
		again := must.Get(evidence.Parse(text))(t, "parse the document, written again")
		if d.Verdict, d.CMW, again.Verdict, again.CMW = nil, nil, nil, nil; !reflect.DeepEqual(again, d) {
			t.Errorf("written and read again, the document is %+v, want %+v", again, d)
		}
	})
}

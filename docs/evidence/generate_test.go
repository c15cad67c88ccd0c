package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sevagent/internal/evidence"
	"sevagent/internal/must"
	"sevagent/internal/snp"
)

// generator collects documents and vectors.
type generator struct {
	t         testing.TB
	documents map[string]base
	vectors   []vector
}

// base is a genuine document that vectors change.
type base struct {
	name   string
	text   string
	nonce  string // hex
	region string // as a vector has it
	m      members
}

// raw returns a member as it is spelled.
func (b base) raw(name string) string {
	for _, member := range b.m {
		if member[0] == `"`+name+`"` {
			return member[1]
		}
	}
	return ""
}

// request is what the leaf of one document commits to.
func request(purpose evidence.Purpose, nonce []byte, binding evidence.Binding,
	caller evidence.Caller, i evidence.Instance) evidence.Claims {
	return evidence.Claims{Purpose: purpose, Nonce: nonce, Binding: binding, Caller: caller, Instance: i}
}

// Claims that the documents are made of.
var (
	instance  = evidence.Instance{ID: "i-0123456789abcdef0", Region: "us-east-2", AccountID: "111122223333"}
	container = strings.Repeat("c0", 32)
	task      = "arn:aws:ecs:us-east-2:111122223333:task/prod/0123456789abcdef0123456789abcdef"
	noKey     = evidence.Binding{Kind: evidence.BindNone}
	forgedKey = strings.Repeat("ee", 32)
)

// nonce returns n bytes that begin with i.
func nonce(i, n int) []byte {
	b := make([]byte, n)
	for j := range b {
		b[j] = byte(i + 7*j)
	}
	return b
}

func key(kind string, b byte) evidence.Binding {
	return evidence.Binding{Kind: kind, SPKISHA256: bytes.Repeat([]byte{b}, 32)}
}

// many returns n different requests: every kind of binding and caller, with and without an instance.
func many(n int) (claims []evidence.Claims) {
	callers := []evidence.Caller{
		evidence.HostCaller(0), evidence.HostCaller(1<<32 - 1), evidence.ContainerCaller(0, container, ""),
		evidence.ContainerCaller(1000, strings.Repeat("0123456789abcdef", 4), task), {Kind: evidence.CallerUnknown},
		evidence.ContainerCaller(7, container,
			"arn:aws-us-gov:ecs:us-gov-west-1:111122223333:task/01234567-89ab-cdef-0123-456789abcdef"),
	}
	bindings := []evidence.Binding{noKey, key(evidence.BindClient, 0xab), key(evidence.BindServer, 0xcd)}
	instances := []evidence.Instance{instance, {},
		{ID: "i-01234567", Region: "us-gov-west-1", AccountID: "000000000000"}}
	purposes := []evidence.Purpose{evidence.PurposeClient, evidence.PurposeMTLS, evidence.PurposeBoot}
	for i := range n {
		claims = append(claims, request(purposes[i%7%3], nonce(i, 16+i%49),
			bindings[i/6%3], callers[i%6], instances[i/18%3]))
	}
	return claims
}

// document makes a document in the form of a file of vectors/.
func (g *generator) document(c evidence.Claims, index int, path [][evidence.Size]byte, report, cert []byte) members {
	g.t.Helper()
	d := must.Get(evidence.Build(c, index, path, report, [][]byte{cert}, nil, at().Add(-time.Minute)))(g.t,
		"build a document")
	var m members
	dec := json.NewDecoder(bytes.NewReader(must.Get(json.Marshal(d))(g.t, "encode a document")))
	must.Get(dec.Token())(g.t, "read a document")
	for dec.More() {
		name := must.Get(dec.Token())(g.t, "read a name").(string)
		var value json.RawMessage
		must.Do(g.t, dec.Decode(&value), "read a member")
		m.put(name, value)
	}
	return m
}

// base makes a document over claims[index] and adds the vector that it is genuine.
func (g *generator) base(name string, s *signer, alter func([]byte), index int, claims ...evidence.Claims) base {
	g.t.Helper()
	var leaves [][evidence.Size]byte
	for _, c := range claims {
		leaves = append(leaves, c.Leaf())
	}
	tree := evidence.NewTree(leaves)
	m := g.document(claims[index], index, tree.Path(index), s.report(tree.Root(), alter), s.certificate(nil))
	b := base{name: name, text: m.join(), nonce: hex.EncodeToString(claims[index].Nonce), m: m}
	if s.options.Signer == snp.SignedByVCEK {
		b.region = "any"
	}
	g.documents[name] = b
	g.add(b, "genuine", "as it is", vector{})
	return b
}

// add adds a vector that changes b.
func (g *generator) add(b base, class, name string, v vector, refused ...string) {
	g.t.Helper()
	v.Class, v.Name, v.Document, v.Refused = class, b.name+": "+name, b.name, refused
	if v.Nonce == "" {
		v.Nonce = b.nonce
	}
	if v.Region == "" {
		v.Region = b.region
	}
	must.Get(v.apply(b.text))(g.t, "apply %q", v.Name)
	g.vectors = append(g.vectors, v)
}

// ordered goes through a map by its keys in order.
func ordered[V any](m map[string]V) iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for _, key := range slices.Sorted(maps.Keys(m)) {
			if !yield(key, m[key]) {
				return
			}
		}
	}
}

// Changes of a document. Those of the text speak of members by their names at the begin of a line.
func swap(old, new string) vector { return vector{Replace: [][2]string{{old, new}}} }
func before(member string) vector { return swap("{\n", "{\n"+member+",\n") }
func after(member string) vector  { return swap("\n}\n", ",\n"+member+"\n}\n") }
func drop(name string) vector     { return vector{Drop: []string{name}} }
func put(name, value string) vector {
	return vector{Put: map[string]json.RawMessage{name: json.RawMessage(value)}}
}

// certificates replaces the certificates, in cmw too.
func certificates(pem string) vector {
	return and(put("certificates", quote(pem)), vector{Wrap: true})
}

// flips changes bits of a byte in the report or the certificate.
func (b base) flips(of string, at int, mask byte) vector {
	old := b.m.report()
	if of == "certificate" {
		old = b.m.certificates()[0]
	}
	return vector{Bytes: []change{{of, at, evidence.Hex{old[at] ^ mask}}}, Wrap: true}
}

// and puts changes together.
func and(vs ...vector) (all vector) {
	all.Put = make(map[string]json.RawMessage)
	for _, v := range vs {
		all.Drop = append(all.Drop, v.Drop...)
		for name, value := range v.Put {
			all.Put[name] = value
		}
		all.Bytes = append(all.Bytes, v.Bytes...)
		all.Wrap = all.Wrap || v.Wrap
		all.Replace = append(all.Replace, v.Replace...)
	}
	return all
}

func quote(s string) string { return string(must2(json.Marshal(s))) }

func must2[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// signed is another report and certificate for a document. Either may be nil: it stays.
func (b base) signed(report, cert []byte) vector {
	v := vector{Put: make(map[string]json.RawMessage), Wrap: true}
	if report != nil {
		v.Bytes = append(v.Bytes, differences("report", b.m.report(), report)...)
	}
	if old := b.m.certificates()[0]; len(cert) == len(old) {
		v.Bytes = append(v.Bytes, differences("certificate", old, cert)...)
	} else if cert != nil {
		v.Put["certificates"] = json.RawMessage(quote(pemText(cert)))
	}
	return v
}

// differences are the changes from old to data, which is as long.
func differences(of string, old, data []byte) (changes []change) {
	for i := 0; i < len(data); i++ {
		if old[i] == data[i] {
			continue
		}
		end := i + 1
		for same := 0; end+same < len(data) && same < 12; { // for less than 12 equal bytes, no change of its own
			if old[end+same] == data[end+same] {
				same++
			} else {
				end, same = end+same+1, 0
			}
		}
		changes = append(changes, change{of, i, data[i:end]})
		i = end
	}
	return changes
}

// data is REPORT_DATA of a document.
func (b base) data() [64]byte { return [64]byte(must2(hex.DecodeString(b.m.text("report_data")))) }

// generate makes the kit anew, with new keys.
func generate(t testing.TB) {
	g := &generator{t: t, documents: make(map[string]base)}
	milan := newSigner(t, snp.Milan)
	foreign := newSigner(t, snp.Milan)
	genoa, turin := newSigner(t, snp.Genoa), newSigner(t, snp.Turin)
	host, boundClient := evidence.HostCaller(0), key(evidence.BindClient, 0xab)
	client := g.base("client", milan, nil, 0, request("client", nonce(1, 32), boundClient, host, instance))
	inContainer := request("client", nonce(2, 20), noKey, evidence.ContainerCaller(1000, container, task), instance)
	five := append(many(3), inContainer, many(4)[3])
	member := g.base("container", milan, nil, 3, five...)
	server := g.base("server", milan, nil, 0,
		request("mtls", nonce(3, 64), key(evidence.BindServer, 0xcd), host, evidence.Instance{}))
	unknown := g.base("unknown", milan, nil, 1, many(1)[0],
		request("client", nonce(4, 16), noKey, evidence.Caller{Kind: evidence.CallerUnknown}, instance))
	boot := g.base("boot", milan, nil, 0, request("boot", nonce(5, 16), noKey, host, evidence.Instance{}))
	batch := g.batches(milan)
	for _, b := range []base{client, member, server, unknown, boot} {
		g.spellings(b)
	}
	for _, b := range []base{client, member, unknown} {
		g.encodings(b)
		g.claims(b)
	}
	for _, b := range []base{client, boot} {
		g.certificateText(b, milan, foreign)
	}
	g.structure(member)
	g.json(client)
	g.tree(member, batch)
	g.flips(client, milan)
	g.reports(client, milan)
	g.certificates(client, milan, foreign)
	g.committed(client, milan)
	g.products(genoa, turin, milan)
	g.arguments(client, member)

	g.write(map[string][]byte{
		"roots.pem":   slices.Concat(milan.psp.Roots(), genoa.psp.Roots(), turin.psp.Roots()),
		"foreign.pem": foreign.psp.Roots(),
	})
}

func (g *generator) write(files map[string][]byte) {
	g.t.Helper()
	for _, file := range must.Get(filepath.Glob("vectors/*.json"))(g.t, "list the old documents") {
		if filepath.Base(file) == nitroTPMDocument+".json" { // made by TestNitroTPM
			continue
		}
		must.Do(g.t, os.Remove(file), "remove an old document")
	}
	for name, b := range g.documents {
		files[name+".json"] = []byte(b.text)
	}
	for name, data := range files {
		must.Do(g.t, os.WriteFile(filepath.Join("vectors", name), data, 0o644), "write %s", name)
	}
	begin := fmt.Sprintf("{\n\"at\": %q,\n\"region\": \"us-east-2\",\n\"roots\": \"roots.pem\",\n\"vectors\": [\n",
		at().Format(time.RFC3339))
	writeVectors(g.t, "vectors.json", begin, g.vectors, "]\n}\n")
}

// writeVectors writes vectors into a file, one on a line, between two texts.
func writeVectors(t testing.TB, file, begin string, vectors []vector, end string) {
	t.Helper()
	text := bytes.NewBufferString(begin)
	enc := json.NewEncoder(text)
	enc.SetEscapeHTML(false)
	for i, v := range vectors {
		must.Do(t, enc.Encode(v), "encode a vector")
		if i < len(vectors)-1 {
			text.Truncate(text.Len() - 1)
			text.WriteString(",\n")
		}
	}
	text.WriteString(end)
	must.Do(t, os.WriteFile(file, text.Bytes(), 0o644), "write the vectors")
}

// batches adds members of batches of many sizes, all of whose members are genuine.
func (g *generator) batches(s *signer) base {
	g.t.Helper()
	var largest base
	for _, n := range []int{2, 3, 4, 7, 16, 40} {
		claims := many(n)
		var leaves [][evidence.Size]byte
		for _, c := range claims {
			leaves = append(leaves, c.Leaf())
		}
		tree := evidence.NewTree(leaves)
		b := g.base(fmt.Sprintf("batch-%d", n), s, nil, 0, claims...)
		largest = b
		for i := 1; i < n; i++ {
			other := g.document(claims[i], i, tree.Path(i), b.m.report(), b.m.certificates()[0])
			var change members
			var v vector
			for _, member := range other {
				name := strings.Trim(member[0], `"`)
				if b.raw(name) != member[1] {
					change.put(name, json.RawMessage(member[1]))
				}
			}
			v.Put = make(map[string]json.RawMessage)
			for _, member := range change {
				v.Put[strings.Trim(member[0], `"`)] = json.RawMessage(member[1])
			}
			if claims[i].Instance == (evidence.Instance{}) {
				v.Drop = []string{"instance"}
			}
			v.Nonce = hex.EncodeToString(claims[i].Nonce)
			g.add(b, "genuine", fmt.Sprintf("member %d", i), v)
		}
	}
	leaves := make([][evidence.Size]byte, 1<<evidence.MaxDepth)
	for i := range leaves {
		leaves[i] = [evidence.Size]byte{byte(i), byte(i >> 8)}
	}
	last := request("client", nonce(6, 16), noKey, evidence.HostCaller(0), instance)
	index := len(leaves) - 2
	leaves[index] = last.Leaf()
	tree := evidence.NewTree(leaves)
	m := g.document(last, index, tree.Path(index), s.report(tree.Root(), nil), s.certificate(nil))
	deep := base{name: "batch-65536", text: m.join(), nonce: hex.EncodeToString(last.Nonce), m: m}
	g.documents[deep.name] = deep
	g.add(deep, "genuine", "as it is", vector{})
	// One step more leads elsewhere, and no verifier follows it.
	path := strings.TrimSuffix(deep.raw("batch"), "]}") + `,"` + strings.Repeat("00", 64) + `"]}`
	g.add(deep, "batch", "17 steps", put("batch", path), "malformed")
	return largest
}

// spellings are EVIDENCE.md's classes of names, E1 to E12.
func (g *generator) spellings(b base) {
	g.t.Helper()
	real, kind := b.raw("binding"), "client"
	if strings.Contains(real, `"server"`) {
		kind = "server"
	}
	bound := strings.Contains(real, "spki")
	forged := fmt.Sprintf(`{"kind":%q,"spki_sha256":%q}`, kind, forgedKey)
	otherPurpose := `"boot"`
	if b.raw("purpose") == otherPurpose {
		otherPurpose = `"client"`
	}
	otherCaller := fmt.Sprintf(`{"kind":"container","uid":1000,"container_id":%q}`, strings.Repeat("f", 64))
	g.add(b, "E1", "name in another case", and(put("binding", forged), after(`"Binding":`+real)), "malformed")
	g.add(b, "E2", "purpose in another case",
		and(put("purpose", otherPurpose), after(`"Purpose":`+b.raw("purpose"))), "malformed")
	g.add(b, "E3", "nonce in another case",
		and(put("eat_nonce", quote(strings.Repeat("A", 22))), after(`"EAT_NONCE":`+b.raw("eat_nonce"))), "malformed")
	g.add(b, "E4", "caller in another case",
		and(put("caller", otherCaller), after(`"CALLER":`+b.raw("caller"))), "malformed")
	if bound {
		g.add(b, "E5", "name within the binding in another case",
			put("binding", strings.Replace(real, "spki_sha256", "SPKI_SHA256", 1)), "malformed")
		g.add(b, "E6", "long s in a name",
			put("binding", strings.Replace(real, "spki_sha256", "\u017fpki_\u017fha256", 1)), "malformed")
		g.add(b, "E21", "key in upper case",
			swap(`"spki_sha256":"`+b.spki()+`"`, `"spki_sha256":"`+strings.ToUpper(b.spki())+`"`), "malformed")
	} else {
		g.add(b, "E5", "name within the binding in another case", put("binding", `{"Kind":"none"}`), "malformed")
		g.add(b, "E6", "long s in a name",
			and(put("purpose", otherPurpose), after("\"purpo\u017fe\":"+b.raw("purpose"))), "malformed")
		g.add(b, "E21", "report_data in upper case",
			put("report_data", quote(strings.ToUpper(b.m.text("report_data")))), "malformed")
	}
	g.add(b, "E6", "Kelvin sign in a name",
		put("caller", strings.Replace(b.raw("caller"), `"kind"`, "\"\u212aind\"", 1)), "malformed")
	g.add(b, "E7", "dotless i in a name", and(put("binding", forged), after("\"b\u0131nding\":"+real)),
		"malformed", "report_data")
	g.add(b, "E8", "binding twice, the forged one first", before(`"binding":`+forged), "malformed")
	g.add(b, "E9", "binding twice, the forged one last", after(`"binding":`+forged), "malformed")
	g.add(b, "E10", "binding twice, each with a part",
		and(put("binding", fmt.Sprintf(`{"kind":%q}`, kind)), before(`"binding":`+real)), "malformed")
	g.add(b, "E11", "caller twice, once with empty members",
		before(`"caller":{"kind":"host","uid":0,"container_id":"","task_arn":""}`), "malformed")
	g.add(b, "E11", "name twice, once with an escape", after(`"\u0063aller":`+b.raw("caller")), "malformed")
	g.add(b, "E12", "member that nobody knows", after(`"extra":1`), "malformed")
	for _, name := range []string{"binding", "caller", "batch", "instance"} {
		if object := b.raw(name); object != "" {
			g.add(b, "E12", "member that nobody knows in "+name,
				put(name, strings.TrimSuffix(object, "}")+`,"extra":1}`), "malformed")
		}
	}
	g.add(b, "nitrotpm", "evidence of a NitroTPM", after(`"nitrotpm":{"document":"AAAA"}`), "malformed", "nitrotpm")
	g.add(b, "nitrotpm", "evidence of a NitroTPM as a text", after(`"nitrotpm":""`), "malformed", "nitrotpm")
}

func (b base) spki() string {
	var binding evidence.Binding
	must2(0, json.Unmarshal([]byte(b.raw("binding")), &binding))
	return binding.SPKISHA256.String()
}

// encodings are EVIDENCE.md's classes E14 to E29.
func (g *generator) encodings(b base) {
	g.t.Helper()
	const record = `["application/vnd.sevagent.sev-snp-report","`
	start := strings.Index(b.text, record) + len(record)
	g.add(b, "E14", "another report in cmw", swap(record+b.text[start:start+4], record+"AAAA"), "malformed")
	g.add(b, "E14", "another media type in cmw", swap(`"application/pkix-cert"`, `"application/pkix-crl"`), "malformed")
	g.add(b, "E14", "a record more in cmw",
		swap(`"cmw":{`, `"cmw":{"more":["application/pkix-cert","AAAA",2],`), "malformed")
	g.add(b, "E14", "a record less in cmw", swap(`"certificate-0"`, `"certificate-1"`), "malformed")
	g.add(b, "E14", "another indicator in cmw", swap(`",4]`, `",2]`), "malformed")
	g.add(b, "E15", "no cmw", drop("cmw"), "malformed")
	g.add(b, "E16", "a null for cmw", put("cmw", "null"), "malformed")
	g.add(b, "E17", "another report_data", put("report_data", quote(strings.Repeat("aa", 64))),
		"malformed", "report_data")
	g.add(b, "E18", "short report_data", put("report_data", `"aa"`), "malformed")
	g.add(b, "E19", "a verdict of its own",
		put("verdict", `{"status":"pass","roots":"amd","rules":[],"not_after":"2099-01-01T00:00:00Z"}`))
	g.add(b, "E19", "a verdict of failure", put("verdict", `{"status":"fail","code":"chain_invalid"}`))
	g.add(b, "E19", "a verdict that is no object", put("verdict", `"pass"`), "malformed")
	g.add(b, "E19", "a verdict with a name twice", after(`"verdict":{"a":{"b":1,"b":1}}`), "malformed")
	g.add(b, "E20", "made in 2100", put("iat", "4102444800"))
	g.add(b, "E22", "line break in the report", swap("\"report\":\"BQAAAAA", `"report":"BQAA\r\nAAA`), "malformed")
	g.add(b, "E22", "blank in the report", swap("\"report\":\"BQAAAAA", `"report":"BQAA AAA`), "malformed")
	n := b.m.text("eat_nonce")
	g.add(b, "E23", "line break in the nonce", put("eat_nonce", quote(n[:5]+"\n"+n[5:])), "malformed")
	g.add(b, "E23", "padded nonce", put("eat_nonce", quote(n+"==")), "malformed")
	g.add(b, "E24", "loose bits in the report's base64",
		swap("A=\",\n\"certificates\"", "B=\",\n\"certificates\""), "malformed")
	if len(n)%4 != 0 {
		const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
		last := len(n) - 1
		g.add(b, "E24", "loose bits in the nonce's base64",
			put("eat_nonce", quote(n[:last]+string(digits[strings.IndexByte(digits, n[last])|1]))), "malformed")
	}
	index := strings.SplitN(strings.TrimPrefix(b.raw("batch"), `{"index":`), ",", 2)[0]
	number := func(class, name, spelling string) {
		g.add(b, class, name, swap(`"index":`+index+`,`, `"index":`+spelling+`,`), "malformed")
	}
	number("E25", "index with a fraction", index+".0")
	number("E25", "index with an exponent", index+"e0")
	number("E26", "index with a sign", "-"+index)
	number("E27", "huge index", "4611686018427387904")
	number("E27", "negative index", "-1")
	number("E27", "index in a text", quote(index))
	if strings.Contains(b.text, `"uid":`) {
		uid := strings.FieldsFunc(b.text[strings.Index(b.text, `"uid":`)+6:],
			func(r rune) bool { return r == ',' || r == '}' })[0]
		for name, spelling := range ordered(map[string]string{
			"uid with a fraction": uid + ".0", "uid with an exponent": uid + "e0",
			"uid below zero": "-1", "uid of 33 bits": "4294967296",
			"uid in a text": quote(uid), "uid is true": "true",
		}) {
			g.add(b, "E25", name, swap(`"uid":`+uid, `"uid":`+spelling), "malformed")
		}
	}
	g.add(b, "E25", "iat with a fraction", put("iat", "1796031142.5"), "malformed")
	g.add(b, "E28", "blanks behind it", swap("\n}\n", "\n}   \n\t"))
	g.add(b, "E28", "blanks before it", swap("{\n\"eat_profile\"", " \r\n{\n\"eat_profile\""))
	g.add(b, "E29", "a second value", swap("\n}\n", "\n}{}"), "malformed")
	g.add(b, "E29", "a letter behind it", swap("\n}\n", "\n}x"), "malformed")
	g.add(b, "E29", "a NUL behind it", swap("\n}\n", "\n}\x00"), "malformed")
}

// certificateText are EVIDENCE.md's classes E30 to E33.
func (g *generator) certificateText(b base, own, foreign *signer) {
	g.t.Helper()
	pem := b.m.text("certificates")
	other := pemText(foreign.authority["asvk"].Raw)
	first := foreign.issue("asvk", &foreign.key.PublicKey, nil)
	g.add(b, "E30", "another certificate behind the key's", certificates(pem+other))
	g.add(b, "E30", "the certificates above it",
		certificates(pem+pemText(own.authority["asvk"].Raw, own.authority["ark"].Raw)))
	behind := put("certificates", quote(pem+anything+anything))
	g.add(b, "E30", "blocks behind the certificate, not in cmw", behind)
	g.add(b, "E30", "blocks behind the certificate, the second in cmw",
		and(behind, swap(`"cmw":{`, `"cmw":{"certificate-2":["application/pkix-cert","AAAA",2],`)))
	g.add(b, "E14", "a block behind the certificate, another in cmw",
		and(behind, swap(`"cmw":{`, `"cmw":{"certificate-1":["application/pkix-cert","AAAB",2],`)), "malformed")
	g.add(b, "E14", "blocks behind the certificate, a third in cmw",
		and(behind, swap(`"cmw":{`, `"cmw":{"certificate-3":["application/pkix-cert","AAAA",2],`)), "malformed")
	g.add(b, "E31", "another certificate before the key's", certificates(other+pem), "malformed", "certificate")
	g.add(b, "E31", "another key's certificate first", certificates(pemText(first)+pem),
		"malformed", "certificate", "signature")
	const begin, end = `"certificates":"-----BEGIN CERTIFICATE-----`, "-----END CERTIFICATE-----\\n\",\n\"cmw\""
	text := func(class, name, old, new string) { g.add(b, class, name, swap(old, new), "malformed") }
	text("E32", "text before the certificates", begin, `"certificates":"see\u001b[2J here\n-----BEGIN CERTIFICATE-----`)
	text("E32", "text behind the certificates", end, "-----END CERTIFICATE-----\\ntext\\n\",\n\"cmw\"")
	text("E32", "line feed behind the certificates", end, "-----END CERTIFICATE-----\\n\\n\",\n\"cmw\"")
	text("E32", "no line feed at the end", end, "-----END CERTIFICATE-----\",\n\"cmw\"")
	text("E32", "CR LF in the certificates", begin+`\n`, begin+`\r\n`)
	text("E32", "blank in the certificates", begin+`\n`, begin+` \n`)
	text("E33", "PEM headers", begin+`\n`, begin+`\nX-Note: 1\n\n`)
	text("E33", "another PEM type", begin, `"certificates":"-----BEGIN TRUSTED CERTIFICATE-----`)
	g.add(b, "certificate", "none", and(put("certificates", `""`), vector{Wrap: true}), "certificate", "malformed")
	g.add(b, "certificate", "nine", certificates(strings.Repeat(pem, 9)), "malformed")
}

// claims are documents that claim what the report does not commit to: E13, E34 and more.
func (g *generator) claims(b base) {
	g.t.Helper()
	swapped := map[string]string{"client": "server", "server": "client", "none": "client"}
	var binding evidence.Binding
	must2(0, json.Unmarshal([]byte(b.raw("binding")), &binding))
	hash := forgedKey
	if binding.Kind != "none" {
		hash = binding.SPKISHA256.String()
	}
	g.add(b, "E13", "another kind of binding",
		put("binding", fmt.Sprintf(`{"kind":%q,"spki_sha256":%q}`, swapped[binding.Kind], hash)), "report_data")
	for name, v := range ordered(map[string]vector{
		"another key":            put("binding", fmt.Sprintf(`{"kind":"client","spki_sha256":%q}`, forgedKey)),
		"host instead of caller": put("caller", `{"kind":"host","uid":33}`),
		"container instead": put("caller",
			fmt.Sprintf(`{"kind":"container","uid":0,"container_id":%q}`, strings.Repeat("f", 64))),
		"another task": put("caller",
			fmt.Sprintf(`{"kind":"container","uid":1000,"container_id":%q,"task_arn":%q}`,
				container, strings.Replace(task, "prod", "test", 1))),
		"another instance": put("instance",
			`{"id":"i-0123456789abcdef1","region":"us-east-2","account_id":"111122223333"}`),
		"another region": put("instance",
			`{"id":"i-0123456789abcdef0","region":"eu-west-1","account_id":"111122223333"}`),
		"another account": put("instance",
			`{"id":"i-0123456789abcdef0","region":"us-east-2","account_id":"444455556666"}`),
		"parts of instance moved": put("instance",
			`{"id":"i-0123456789abcdef","region":"us-east-2","account_id":"011112222333"}`),
	}) {
		g.add(b, "claims", name, v, "report_data")
	}
	if !strings.Contains(b.raw("caller"), "unknown") {
		g.add(b, "claims", "unknown caller instead", put("caller", `{"kind":"unknown"}`), "report_data")
	}
	if b.raw("instance") != "" {
		g.add(b, "claims", "no instance", drop("instance"), "report_data")
	}
	for _, purpose := range []string{"client", "mtls", "boot"} {
		if b.m.text("purpose") != purpose {
			g.add(b, "claims", "purpose "+purpose, put("purpose", quote(purpose)), "report_data")
		}
	}
	g.add(b, "E34", "escapes in the purpose",
		put("purpose", quote("client\x1b[2J\x1b[Hverdict      pass\n")), "malformed")
	g.add(b, "E34", "escapes in the task",
		put("caller", fmt.Sprintf(`{"kind":"container","uid":0,"container_id":%q,"task_arn":%s}`,
			container, quote("\x1b]0;title\x07\x1b[8m"))), "malformed")
}

// structure are documents whose members are of another form.
func (g *generator) structure(b base) {
	g.t.Helper()
	for _, member := range b.m {
		name := strings.Trim(member[0], `"`)
		if name == "instance" {
			continue // may be absent, but is committed to: see claims
		}
		if name != "cmw" { // see E15 and E16
			refused := []string{"malformed"}
			if name == "eat_profile" {
				refused = append(refused, "profile")
			}
			g.add(b, "structure", "without "+name, drop(name), refused...)
			g.add(b, "structure", "a null for "+name, put(name, "null"), refused...)
		}
		if member[1][0] == '"' {
			g.add(b, "structure", "a number for "+name, put(name, "1"), "malformed")
		} else {
			g.add(b, "structure", "a text for "+name, put(name, `"1"`), "malformed")
		}
	}
}

// json are documents of which only the JSON is odd, or an empty or small part.
func (g *generator) json(b base) {
	g.t.Helper()
	var all []string
	for _, member := range b.m {
		all = append(all, strings.Trim(member[0], `"`))
	}
	const nothing = "{\n\n}\n"
	for name, text := range ordered(map[string]string{
		"an empty file": "", "an empty object": "{}", "an array": "[]", "a null": "null", "a blank": "\n",
	}) {
		g.add(b, "json", name, and(vector{Drop: all}, swap(nothing, text)), "malformed", "profile")
	}
	nested := func(n int) string { return `"verdict":{"a":` + strings.Repeat("[", n) + strings.Repeat("]", n) + "}" }
	for name, v := range ordered(map[string]vector{
		"blanks around a colon": swap(`"purpose":"client"`, "\"purpose\" :\r\n\t \"client\""),
		"members in another order": and(drop("purpose"),
			put("purpose", `"client"`), drop("eat_profile"), put("eat_profile", b.raw("eat_profile"))),
		"escapes":                     swap(`"purpose":"client"`, `"\u0070urpose":"\u0063lient"`),
		"escapes in the report":       swap("\n\"report\":\"BQ", "\n\"report\":\"\\u0042Q"),
		"made before 1970":            put("iat", "-1"),
		"made at the end of integers": put("iat", "9007199254740991"),
		"nested 16 deep":              after(nested(14)),
		"a pair of surrogates":        after(`"verdict":{"\ud83d\ude00":"\ud83d\ude00"}`),
		"cmw in another order": and(swap(`"cmw":{"__cmwc_t":"tag:sevagent,2026:evidence#2",`, `"cmw":{`),
			swap(`",4]}`, `",4],"__cmwc_t":"tag:sevagent,2026:evidence#2"}`)),
		"a block behind the certificate": certificates(b.m.text("certificates") + anything),
		"seven blocks behind it":         certificates(b.m.text("certificates") + strings.Repeat(anything, 7)),
	}) {
		g.add(b, "json", name, v)
	}
	g.add(b, "json", "an empty block behind the certificate",
		put("certificates", quote(b.m.text("certificates")+"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n")))
	for name, v := range ordered(map[string]vector{
		"no-break space":               swap("\n}\n", "\n}\u00a0"),
		"comment":                      swap("\n}\n", "\n}// x"),
		"comma behind the last":        swap("\n}\n", ",\n}\n"),
		"no end":                       swap("\n}\n", "\n"),
		"single quotes":                swap(`"purpose":"client"`, `'purpose':'client'`),
		"leading zero":                 swap(`"uid":0`, `"uid":00`),
		"plus":                         swap(`"uid":0`, `"uid":+0`),
		"minus":                        swap(`"uid":0`, `"uid":-0`),
		"uid twice":                    swap(`"uid":0`, `"uid":1000,"uid":0`),
		"uid is null":                  swap(`"uid":0`, `"uid":null`),
		"uid in another case":          swap(`"uid":0`, `"uid":0,"Uid":0`),
		"uid of four bytes too many":   swap(`"uid":0`, `"uid":18446744073709551616`),
		"hexadecimal":                  swap(`"uid":0`, `"uid":0x0`),
		"not a number":                 swap(`"uid":0`, `"uid":NaN`),
		"empty task":                   swap(`"uid":0`, `"uid":0,"task_arn":""`),
		"empty container":              swap(`"uid":0`, `"uid":0,"container_id":""`),
		"index is false":               swap(`"index":0`, `"index":false`),
		"index in another case":        swap(`"index":0`, `"index":0,"Index":0`),
		"path is null":                 swap(`"path":[]`, `"path":null`),
		"path of a number":             swap(`"path":[]`, `"path":[1]`),
		"region in another case":       swap(`"region":"us-east-2"`, `"region":"us-east-2","Region":"us-east-2"`),
		"region twice":                 swap(`"region":"us-east-2"`, `"region":"eu-west-1","region":"us-east-2"`),
		"empty instance":               put("instance", "{}"),
		"instance of empty texts":      put("instance", `{"id":"","region":"","account_id":""}`),
		"instance is null":             put("instance", "null"),
		"instance is a list":           put("instance", "[]"),
		"empty binding":                put("binding", "{}"),
		"binding without kind":         put("binding", strings.Replace(b.raw("binding"), `"kind":"client",`, "", 1)),
		"binding of an empty kind":     put("binding", strings.Replace(b.raw("binding"), `"client"`, `""`, 1)),
		"binding of kind null":         put("binding", strings.Replace(b.raw("binding"), `"client"`, `null`, 1)),
		"key of an empty text":         put("binding", `{"kind":"client","spki_sha256":""}`),
		"none with an empty key":       put("binding", `{"kind":"none","spki_sha256":""}`),
		"key with a letter":            put("binding", strings.Replace(b.raw("binding"), "abab", "abag", 1)),
		"key of half a byte less":      put("binding", strings.Replace(b.raw("binding"), "abab", "aba", 1)),
		"nested 17 deep":               after(nested(15)),
		"nested 2000 deep":             after(nested(2000)),
		"half a pair of surrogates":    after(`"verdict":{"a":"\ud83d"}`),
		"the other half":               after(`"verdict":{"a":"\ude00"}`),
		"half a pair in a name":        after(`"verdict":{"\ud83d":"a"}`),
		"two first halves":             after(`"verdict":{"a":"\ud83d\ud83d\ude00"}`),
		"verdict with a null":          after(`"verdict":{"a":null}`),
		"verdict with a fraction":      after(`"verdict":{"a":1.5}`),
		"verdict with 54 bits":         after(`"verdict":{"a":9007199254740992}`),
		"verdict with an exponent":     after(`"verdict":{"a":[1e3]}`),
		"verdict with a letter":        after(`"verdict":{"a":undefined}`),
		"verdict with a tab in a text": after("\"verdict\":{\"a\":\"\t\"}"),
		"verdict with a bad escape":    after(`"verdict":{"a":"\x41"}`),
		"verdict is a list":            after(`"verdict":[]`),
		"cmw twice":                    after(`"cmw":{}`),
		"report in cmw twice":          swap(`"cmw":{`, `"cmw":{"report":[],`),
		"empty cmw":                    put("cmw", "{}"),
		"cmw is a list":                put("cmw", "[]"),
		"cmw of another profile": swap(`"__cmwc_t":"tag:sevagent,2026:evidence#2"`,
			`"__cmwc_t":"tag:sevagent,2026:evidence#1"`),
		"cmw of a longer record":       swap(`",4]`, `",4,4]`),
		"cmw with a text for a number": swap(`",4]`, `","4"]`),
		"report without padding":       swap("A=\",\n\"certificates\"", "A\",\n\"certificates\""),
		"report with two paddings":     swap("A=\",\n\"certificates\"", "A==\",\n\"certificates\""),
		"eight blocks behind it":       certificates(b.m.text("certificates") + strings.Repeat(anything, 8)),
		"nitrotpm is null":             after(`"nitrotpm":null`),
	}) {
		g.add(b, "json", name, v, "malformed")
	}
	g.add(b, "json", "byte order mark", swap("{\n\"eat_profile\"", "\ufeff{\n\"eat_profile\""), "malformed", "profile")
	g.add(b, "json", "two documents in an array",
		and(swap("{\n\"eat_profile\"", "[{\n\"eat_profile\""), swap("\n}\n", "\n}]")), "malformed", "profile")
	g.add(b, "json", "a block before the certificate", certificates(anything+b.m.text("certificates")),
		"malformed", "certificate")
}

// anything is a block of PEM that is no certificate.
const anything = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"

// tree are documents with another place in the batch.
func (g *generator) tree(member, batch base) {
	g.t.Helper()
	for _, b := range []base{member, batch} {
		var place evidence.Batch
		must2(0, json.Unmarshal([]byte(b.raw("batch")), &place))
		spell := func(index int, path []evidence.Hex) vector {
			return put("batch", string(must2(json.Marshal(evidence.Batch{Index: index, Path: path}))))
		}
		n := len(place.Path)
		reversed := slices.Clone(place.Path)
		slices.Reverse(reversed)
		altered := slices.Clone(place.Path)
		altered[0] = slices.Clone(altered[0])
		altered[0][63] ^= 1
		for i := range n {
			g.add(b, "batch", fmt.Sprintf("bit %d of the index", i), spell(place.Index^1<<i, place.Path), "report_data")
		}
		g.add(b, "batch", "path upside down", spell(place.Index, reversed), "report_data")
		g.add(b, "batch", "a bit of a step", spell(place.Index, altered), "report_data")
		g.add(b, "batch", "a step less", spell(place.Index&(1<<(n-1)-1), place.Path[:n-1]), "report_data")
		g.add(b, "batch", "a step more",
			spell(place.Index, append(slices.Clone(place.Path), place.Path[0])), "report_data")
		g.add(b, "batch", "no path", spell(0, []evidence.Hex{}), "report_data")
		g.add(b, "batch", "index beyond the path", spell(place.Index+1<<n, place.Path), "malformed")
		g.add(b, "batch", "a short step",
			spell(place.Index, append([]evidence.Hex{place.Path[0][:63]}, place.Path[1:]...)), "malformed")
		g.add(b, "batch", "a long step", spell(place.Index,
			append([]evidence.Hex{append(slices.Clone(place.Path[0]), 0)}, place.Path[1:]...)), "malformed")
		g.add(b, "batch", "an empty step",
			spell(place.Index, append([]evidence.Hex{{}}, place.Path[1:]...)), "malformed")
		g.add(b, "batch", "path in upper case",
			swap(`"path":["`+place.Path[0].String(), `"path":["`+strings.ToUpper(place.Path[0].String())), "malformed")
		g.add(b, "batch", "path is no list",
			put("batch", fmt.Sprintf(`{"index":%d,"path":{}}`, place.Index)), "malformed")
		g.add(b, "batch", "no index", put("batch",
			strings.Replace(b.raw("batch"), fmt.Sprintf(`"index":%d,`, place.Index), "", 1)), "malformed")
	}
	// A node of the tree must not pass for a leaf, nor one member for another.
	g.add(batch, "batch", "claims of another member", put("caller", `{"kind":"host","uid":4294967295}`), "report_data")
}

// arguments are genuine documents that are not what was asked for.
func (g *generator) arguments(lone, member base) {
	g.t.Helper()
	for _, b := range []base{lone, member} {
		for name, v := range ordered(map[string]vector{
			"another nonce":   {Nonce: strings.Repeat("00", len(b.nonce)/2)},
			"a shorter nonce": {Nonce: b.nonce[:32]},
			"a longer nonce":  {Nonce: b.nonce + "00"},
			"the last bit of a nonce": {Nonce: b.nonce[:len(b.nonce)-1] +
				string("0123456789abcdef"[strings.IndexByte("0123456789abcdef", b.nonce[len(b.nonce)-1])^1])},
		}) {
			g.add(b, "nonce", name, v, "nonce")
		}
		g.add(b, "nonce", "another nonce in the document", put("eat_nonce", quote(strings.Repeat("A", 22))),
			"nonce", "report_data")
		for _, region := range strings.Fields("eu-west-1 us-east-1 us-east us-east-22 US-EAST-2 us.east.2 x") {
			g.add(b, "region", "asked for in "+region, vector{Region: region}, "region")
		}
		g.add(b, "region", "any", vector{Region: "any"})
		moment := func(t time.Time) vector { return vector{At: t.Format(time.RFC3339Nano)} }
		first, last, half := at().AddDate(0, -9, 0), at().AddDate(0, 3, 0), time.Second/2
		g.add(b, "expired", "a year later", moment(at().AddDate(1, 0, 0)), "expired")
		g.add(b, "expired", "a second too late", moment(last.Add(time.Second)), "expired")
		g.add(b, "expired", "half a second too late", moment(last.Add(half)), "expired")
		g.add(b, "expired", "half a second too early", moment(first.Add(-half)), "expired")
		g.add(b, "expired", "a second too early", moment(first.Add(-time.Second)), "expired")
		g.add(b, "expired", "at its end", moment(last))
		g.add(b, "expired", "half a second before its end", moment(last.Add(-half)))
		g.add(b, "expired", "a second before its end", moment(last.Add(-time.Second)))
		g.add(b, "expired", "at its beginning", moment(first))
		g.add(b, "expired", "half a second after its beginning", moment(first.Add(half)))
		g.add(b, "expired", "a second after its beginning", moment(first.Add(time.Second)))
		g.add(b, "chain", "roots of somebody else", vector{Roots: "foreign.pem"}, "chain")
		g.add(b, "profile", "profile 1", put("eat_profile", `"tag:sevagent,2026:evidence#1"`), "profile")
		g.add(b, "profile", "a later profile", put("eat_profile", `"tag:sevagent,2026:evidence#3"`), "profile")
		g.add(b, "profile", "another project's profile",
			and(put("eat_profile", `"tag:example,2026:x"`), after(`"extra":1`)), "profile")
		g.add(b, "profile", "profile in another case", put("eat_profile", `"Tag:sevagent,2026:evidence#2"`), "profile")
	}
}

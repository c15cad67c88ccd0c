package verify_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sevagent/internal/evidence"
	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/internal/snp"
	"sevagent/verify"
)

// node is a simulated node, with evidence for nonce that binds the key spki.
type node struct {
	psp    *sim.PSP
	now    time.Time
	nonce  []byte
	spki   []byte
	doc    []byte
	report []byte
	certs  [][]byte
}

var simulatorPolicy = []byte("profile: aws-shared\nroots: roots.pem\n")

func newNode(t testing.TB, change func(*sim.Options)) *node {
	t.Helper()
	n := &node{now: time.Now(), nonce: bytes.Repeat([]byte{7}, 32)}
	o := sim.DefaultOptions(n.now)
	if change != nil {
		change(&o)
	}
	n.psp = must.Get(sim.New(o))(t, "make a simulated secure processor")
	key := must.Get(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t, "make the peer's key")
	n.spki = must.Get(x509.MarshalPKIXPublicKey(key.Public()))(t, "encode the peer's key")
	sum := sha256.Sum256(n.spki)
	n.doc = n.document(t, evidence.Claims{
		Purpose: evidence.PurposeClient, Nonce: n.nonce, Caller: evidence.HostCaller(0),
		Binding:  evidence.Binding{Kind: evidence.BindClient, SPKISHA256: sum[:]},
		Instance: evidence.Instance{ID: "i-0123456789abcdef0", Region: "us-east-2", AccountID: "123456789012"},
	})
	return n
}

// document returns evidence for claims, and remembers its report and certificates.
func (n *node) document(t testing.TB, c evidence.Claims) []byte {
	t.Helper()
	report, table, err := n.psp.Report(c.Leaf(), 0)
	must.Do(t, err, "get a report")
	n.report, n.certs = report, nil
	for _, entry := range must.Get(snp.ParseCertTable(table))(t, "read the certificate table") {
		n.certs = append(n.certs, entry.Data)
	}
	doc := must.Get(evidence.Build(c, 0, nil, report, n.certs, nil, n.now))(t, "build the document")
	return must.Get(json.Marshal(doc))(t, "encode the document")
}

// config trusts the simulator.
func (n *node) config(t testing.TB) verify.Config {
	t.Helper()
	policy := must.Get(verify.ParsePolicy("policy.yaml", simulatorPolicy, n.roots))(t, "read the policy")
	return verify.Config{Policy: policy, Region: "us-east-2", AllowCustomRoots: true}
}

// roots stands for os.ReadFile.
func (n *node) roots(string) ([]byte, error) { return n.psp.Roots(), nil }

func (n *node) verifier(t testing.TB, change func(*verify.Config)) *verify.Verifier {
	t.Helper()
	c := n.config(t)
	if change != nil {
		change(&c)
	}
	return must.Get(verify.New(c))(t, "make a verifier")
}

// code returns the code of a rejection, and "" for no error.
func code(t *testing.T, err error) string {
	t.Helper()
	if err == nil {
		return ""
	}
	r, ok := errors.AsType[*verify.Rejection](err)
	if !ok {
		t.Fatalf("the error is a %T (%v), want a *verify.Rejection", err, err)
	}
	return r.Code
}

func TestAccepted(t *testing.T) {
	n := newNode(t, nil)
	r, err := n.verifier(t, nil).Document(n.doc, verify.Want{
		Nonce: n.nonce, Key: n.spki, Purpose: verify.PurposeClient, MaxAge: time.Hour, Now: n.now.Add(time.Minute)})
	must.Do(t, err, "verify genuine evidence")
	if r.Verdict.Status != verify.Pass || r.Nonce != verify.Verified ||
		r.Key != verify.Verified || r.Region != verify.Verified {
		t.Errorf("verdict %s, nonce %s, key %s, region %s; want pass and three times verified",
			r.Verdict.Status, r.Nonce, r.Key, r.Region)
	}
	if r.Purpose != verify.PurposeClient || r.Binding.Kind != verify.BindClient || r.Caller.Kind != verify.CallerHost ||
		r.Instance.ID != "i-0123456789abcdef0" {
		t.Errorf("claims are %s, %+v, %v, %+v", r.Purpose, r.Binding, r.Caller, r.Instance)
	}
	if r.Verdict.Roots != "custom" || len(r.Report.Measurement) != 48 || len(r.Report.ChipID) != 64 {
		t.Errorf("roots %q, measurement %v, chip ID %v", r.Verdict.Roots, r.Report.Measurement, r.Report.ChipID)
	}
}

// TestRefused: each thing that is wanted is compared, and what is not compared has to be given up by name.
func TestRefused(t *testing.T) {
	n := newNode(t, nil)
	v := n.verifier(t, nil)
	unbound := n.document(t, evidence.Claims{Purpose: evidence.PurposeMTLS,
		Nonce: n.nonce, Caller: evidence.HostCaller(0)})
	edit := func(old, new string) []byte {
		if !bytes.Contains(n.doc, []byte(old)) {
			t.Fatalf("the document has no %s", old)
		}
		return bytes.Replace(n.doc, []byte(old), []byte(new), 1)
	}
	good := verify.Want{Nonce: n.nonce}
	hourAt := func(fromMade time.Duration) verify.Want { // at most an hour old, at a time after the evidence was made
		return verify.Want{Nonce: n.nonce, MaxAge: time.Hour, Now: n.now.Truncate(time.Second).Add(fromMade)}
	}
	for _, c := range []struct {
		name string
		doc  []byte
		want verify.Want
		code string
		text string
	}{
		{"good", n.doc, good, "", ""},
		{"zero value", n.doc, verify.Want{}, verify.CodeNonceRequired, "replay"},
		{"empty nonce", n.doc, verify.Want{Nonce: []byte{}}, verify.CodeNonceRequired, "replay"},
		{"any nonce", n.doc, verify.Want{AnyNonce: true}, "", ""},
		{"a nonce and any", n.doc, verify.Want{Nonce: n.nonce, AnyNonce: true}, verify.CodeNonceRequired, "choose one"},
		{"another nonce", n.doc, verify.Want{Nonce: make([]byte, 32)}, verify.CodeNonceMismatch,
			"is for nonce " + strings.Repeat("07", 32) + ", and " + strings.Repeat("00", 32) + " is wanted"},
		{"a prefix of the nonce", n.doc, verify.Want{Nonce: n.nonce[:16]}, verify.CodeNonceMismatch, ""},
		{"another key", n.doc, verify.Want{Nonce: n.nonce, Key: []byte("another")},
			verify.CodeBindingMismatch, "is bound to key"},
		{"a digest for the key", n.doc, verify.Want{Nonce: n.nonce, Key: make([]byte, 32)},
			verify.CodeBindingMismatch, ""},
		{"empty key", n.doc, verify.Want{Nonce: n.nonce, Key: []byte{}}, verify.CodeBindingMismatch, "empty"},
		{"bound to no key", unbound, verify.Want{Nonce: n.nonce, Key: n.spki}, verify.CodeBindingMismatch, "binds no key"},
		{"bound to no key, any wanted", unbound, verify.Want{Nonce: n.nonce, Binding: verify.BindServer},
			verify.CodeBindingMismatch, "kind none, and server"},
		{"the kind of binding", n.doc, verify.Want{Nonce: n.nonce, Key: n.spki, Binding: verify.BindClient}, "", ""},
		{"another kind of binding, same key", n.doc, verify.Want{Nonce: n.nonce, Key: n.spki, Binding: verify.BindServer},
			verify.CodeBindingMismatch, "kind client, and server"},
		{"an unknown kind of binding", n.doc, verify.Want{Nonce: n.nonce, Binding: "peer"},
			verify.CodeBindingMismatch, `"peer"`},
		{"the kind none", unbound, verify.Want{Nonce: n.nonce, Binding: verify.BindNone},
			verify.CodeBindingMismatch, `"none"`},
		{"another purpose", unbound, verify.Want{Nonce: n.nonce, Purpose: verify.PurposeClient}, verify.CodePurposeMismatch,
			"purpose mtls, and client"},
		{"too old", n.doc, verify.Want{Nonce: n.nonce, MaxAge: time.Minute, Now: n.now.Add(time.Hour)},
			verify.CodeTooOld,
			"at most 1m0s"},
		{"made long from now", edit(`"iat":`, `"iat":4`), verify.Want{Nonce: n.nonce, MaxAge: time.Hour},
			verify.CodeFromFuture,
			"from now"},
		{"made as far from now as clocks differ", n.doc, hourAt(-time.Minute), "", ""},
		{"made further from now", n.doc, hourAt(-time.Minute - 1), verify.CodeFromFuture, "is made 1m0s from now"},
		{"as old as allowed", n.doc, hourAt(time.Hour), "", ""},
		{"older than allowed", n.doc, hourAt(time.Hour + 1), verify.CodeTooOld, "at most 1h0m0s"},
		{"made long from now, no age wanted", edit(`"iat":`, `"iat":4`), good, "", ""},
		{"negative age", n.doc, verify.Want{Nonce: n.nonce, MaxAge: -1}, verify.CodeTooOld, "negative"},
		{"edited caller", edit(`"uid":0`, `"uid":1`), good, verify.CodeReportDataMismatch, "does not commit"},
		{"edited instance", edit(`i-0123456789abcdef0`, `i-0123456789abcdef1`),
			good, verify.CodeReportDataMismatch, ""},
		{"edited kind of binding", edit(`"kind":"client"`, `"kind":"server"`), good, verify.CodeReportDataMismatch, ""},
		{"edited nonce", edit(base64.RawURLEncoding.EncodeToString(n.nonce),
			base64.RawURLEncoding.EncodeToString(make([]byte, 32))),
			verify.Want{Nonce: make([]byte, 32)}, verify.CodeReportDataMismatch, ""},
		{"expired", n.doc, verify.Want{Nonce: n.nonce, Now: n.now.AddDate(5, 0, 0)}, verify.CodeCertificateExpired, ""},
		{"nothing", nil, good, verify.CodeDocumentForeign, "not JSON"},
		{"a report", n.report, good, verify.CodeDocumentForeign, "not JSON"},
		{"JSON of others", []byte(`{"platform": "az-snp"}`), good, verify.CodeDocumentForeign, "no eat_profile"},
		{"another profile", edit(evidence.Profile, "tag:confidential.ai,2026:cvm#1"),
			good, verify.CodeDocumentForeign, "cvm#1"},
		{"a later profile", edit("evidence#2", "evidence#3"), good, verify.CodeDocumentNewer, "evidence#3"},
		{"an earlier profile", edit("evidence#2", "evidence#1"), good, verify.CodeDocumentOlder, "upgrade"},
		{"nitrotpm as an object", edit(`"batch":`, `"nitrotpm":{},"batch":`), good, verify.CodeDocumentMalformed, "nitrotpm"},
		{"members that contradict each other", edit(`"report_data":"`, `"report_data":"00`),
			good, verify.CodeDocumentContradicts, ""},
		{"a member twice", edit(`"purpose":"client"`, `"purpose":"boot","purpose":"client"`),
			good, verify.CodeDocumentMalformed, ""},
		{"half a document", n.doc[:len(n.doc)/2], good, verify.CodeDocumentMalformed, ""},
		{"unknown binding", edit(`"kind":"client"`, `"kind":"both"`), good, verify.CodeDocumentMalformed, "binding"},
		{"no certificate", edit("BEGIN CERTIFICATE", "BEGIN SOMETHING"),
			good, verify.CodeDocumentMalformed, "certificates"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := v.Document(c.doc, c.want)
			if got := code(t, err); got != c.code || r.Verdict.Code != c.code ||
				c.code != "" && !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %v, verdict %s %q; want code %q and …%s…",
					err, r.Verdict.Status, r.Verdict.Code, c.code, c.text)
			}
			if r.Verdict.Roots != "custom" {
				t.Errorf("roots are %q, want custom", r.Verdict.Roots)
			}
			if _, err := json.Marshal(r); err != nil || (c.code == "") != (r.Verdict.Status == verify.Pass) {
				t.Errorf("verdict %s, which encodes with %v", r.Verdict.Status, err)
			}
		})
	}
}

// certificate returns a certificate for a key, issued by that key itself, with extensions.
func certificate(t testing.TB, key *ecdsa.PrivateKey, extensions ...pkix.Extension) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), ExtraExtensions: extensions}
	der := must.Get(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t, "issue a certificate")
	return must.Get(x509.ParseCertificate(der))(t, "parse a certificate")
}

// extension returns the evidence of a key as its certificate carries it.
func (n *node) extension(t testing.TB, key *ecdsa.PrivateKey) pkix.Extension {
	t.Helper()
	sum := sha256.Sum256(must.Get(x509.MarshalPKIXPublicKey(key.Public()))(t, "encode a key"))
	d := must.Get(evidence.Parse(n.document(t, evidence.Claims{
		Purpose: evidence.PurposeMTLS, Nonce: n.nonce, Caller: evidence.HostCaller(0),
		Binding: evidence.Binding{Kind: evidence.BindClient, SPKISHA256: sum[:]},
	})))(t, "parse the document")
	return must.Get(d.Extension())(t, "encode evidence for a certificate")
}

// TestCertificate: a certificate carries evidence of its own key, or is refused.
func TestCertificate(t *testing.T) {
	n, other := newNode(t, nil), newNode(t, nil)
	v := n.verifier(t, nil)
	newKey := func() *ecdsa.PrivateKey {
		return must.Get(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t, "make a key")
	}
	key, stranger := newKey(), newKey()
	good := n.extension(t, key)
	genuine := certificate(t, key, good)
	r, err := v.Certificate(genuine, verify.Want{
		AnyNonce: true, Binding: verify.BindClient, Key: genuine.RawSubjectPublicKeyInfo, MaxAge: time.Hour, Now: n.now})
	must.Do(t, err, "verify the evidence in a certificate")
	if r.Verdict.Status != verify.Pass || r.Key != verify.Verified || r.Nonce != verify.NotChecked ||
		r.Purpose != verify.PurposeMTLS {
		t.Errorf("verdict %s, key %s, nonce %s, purpose %s; want pass, verified, not_checked and mtls",
			r.Verdict.Status, r.Key, r.Nonce, r.Purpose)
	}

	value := func(change func([]byte) []byte) *x509.Certificate {
		e := good
		e.Value = change(bytes.Clone(e.Value))
		return certificate(t, key, e)
	}
	replaced := func(old, new string) *x509.Certificate {
		return value(func(b []byte) []byte { return bytes.Replace(b, []byte(old), []byte(new), 1) })
	}
	critical := good
	critical.Critical = true
	anyNonce := verify.Want{AnyNonce: true}
	for _, c := range []struct {
		name, want string
		cert       *x509.Certificate
		w          verify.Want
	}{
		{"genuine", "", genuine, anyNonce},
		{"the node's nonce", "", genuine, verify.Want{Nonce: n.nonce}},
		{"another key's certificate", "binding_mismatch", certificate(t, stranger, good), anyNonce},
		{"another node's key", "binding_mismatch", certificate(t, key, n.extension(t, stranger)), anyNonce},
		{"a node that AMD did not make", "chain_invalid", certificate(t, key, other.extension(t, key)), anyNonce},
		{"another key is wanted", "binding_mismatch", genuine, verify.Want{AnyNonce: true, Key: n.spki}},
		{"an empty key is wanted", "binding_mismatch", genuine, verify.Want{AnyNonce: true, Key: []byte{}}},
		{"a template, which has no key yet", "binding_mismatch",
			&x509.Certificate{Extensions: []pkix.Extension{good}}, anyNonce},
		{"a server's is wanted", "binding_mismatch", genuine, verify.Want{AnyNonce: true, Binding: verify.BindServer}},
		{"asked for by a container", "purpose_mismatch", genuine,
			verify.Want{AnyNonce: true, Purpose: verify.PurposeClient}},
		{"no nonce", "nonce_required", genuine, verify.Want{}},
		{"another nonce", "nonce_mismatch", genuine, verify.Want{Nonce: make([]byte, 32)}},
		{"later", "certificate_expired", genuine, verify.Want{AnyNonce: true, Now: n.now.AddDate(3, 0, 0)}},
		{"none", "extension_missing", certificate(t, key), anyNonce},
		{"critical", "document_malformed", certificate(t, key, critical), anyNonce},
		{"cut off", "document_malformed", value(func(b []byte) []byte { return b[:len(b)-1] }), anyNonce},
		{"of another form", "document_malformed", replaced("\x8a\x58\x20", "\x9f\x58\x20"), anyNonce},
		{"another program's", "document_foreign", replaced("vnd.sevagent", "vnd.otheragt"), anyNonce},
		{"a later version", "document_newer", replaced(".v2+", ".v3+"), anyNonce},
		{"another nonce inside", "report_data_mismatch", replaced("\x07\x07", "\x07\x08"), anyNonce},
	} {
		if _, err := v.Certificate(c.cert, c.w); code(t, err) != c.want {
			t.Errorf("%s: %v, want the code %q", c.name, err, c.want)
		}
	}
}

// TestRootsOfAMD: a verdict by AMD's roots says so, whatever was not appraised.
func TestRootsOfAMD(t *testing.T) {
	v := must.Get(verify.New(verify.Config{AnyRegion: true}))(t, "make a verifier")
	if r, err := v.Document(nil, verify.Want{AnyNonce: true}); err == nil || r.Verdict.Roots != "amd" {
		t.Errorf("no document: %v, by the roots %q, want amd", err, r.Verdict.Roots)
	}
}

// TestMismatchIsShown: a result says what did not match even if the verdict failed for another reason before.
func TestMismatchIsShown(t *testing.T) {
	n := newNode(t, func(o *sim.Options) { o.Region = "eu-west-1" })
	r, err := n.verifier(t, nil).Document(n.doc, verify.Want{Nonce: make([]byte, 32), Key: []byte("another")})
	if got := code(t, err); got != verify.CodePolicyRejected {
		t.Errorf("the code is %q, want that of the region", got)
	}
	if r.Nonce != verify.Mismatch || r.Key != verify.Mismatch || r.Region != verify.Mismatch {
		t.Errorf("nonce %s, key %s, region %s; want three times mismatch", r.Nonce, r.Key, r.Region)
	}
}

// TestNotChecked: what was given up is not said to be verified.
func TestNotChecked(t *testing.T) {
	n := newNode(t, nil)
	v := n.verifier(t, func(c *verify.Config) { c.Region, c.AnyRegion = "", true })
	r, err := v.Document(n.doc, verify.Want{AnyNonce: true})
	must.Do(t, err, "verify genuine evidence")
	if r.Nonce != verify.NotChecked || r.Key != verify.NotChecked || r.Region != verify.NotChecked {
		t.Errorf("nonce %s, key %s, region %s; want three times not_checked", r.Nonce, r.Key, r.Region)
	}
}

// TestConfig: a configuration that compares less than it says is refused, and so is one that says too little.
func TestConfig(t *testing.T) {
	n := newNode(t, nil)
	own := n.config(t).Policy
	dedicated := must.Get(verify.BuiltinPolicy("aws-dedicated"))(t, "take a built-in policy")
	fixed := must.Get(verify.ParsePolicy("p", []byte("profile: aws-shared\ncsp_id: {value: eu-west-1}\n"), nil))(t,
		"read a policy")
	for _, c := range []struct {
		name   string
		config verify.Config
		want   string
	}{
		{"zero value", verify.Config{}, "aws-shared compares regions"},
		{"a region", verify.Config{Region: "us-east-2"}, ""},
		{"any region", verify.Config{AnyRegion: true}, ""},
		{"both", verify.Config{Region: "us-east-2", AnyRegion: true}, "choose one"},
		{"a region that cannot be compared", verify.Config{Policy: dedicated, Region: "us-east-2"},
			"cannot require us-east-2"},
		{"no region where none is compared", verify.Config{Policy: dedicated}, ""},
		{"a policy that fixes the region", verify.Config{Policy: fixed, Region: "us-east-2"}, "cannot require"},
		{"own roots", verify.Config{Policy: own, Region: "us-east-2"}, "its own roots"},
		{"own roots, allowed", verify.Config{Policy: own, Region: "us-east-2", AllowCustomRoots: true}, ""},
		{"a revocation list that is none",
			verify.Config{AnyRegion: true, RevocationLists: [][]byte{{1}}}, "revocation list 1"},
	} {
		_, err := verify.New(c.config)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want …%s…", c.name, err, c.want)
		}
	}
	if !(verify.Policy{}).ComparesRegion() || dedicated.ComparesRegion() {
		t.Error("aws-shared compares regions, and aws-dedicated does not; ComparesRegion says otherwise")
	}
}

// TestPolicy: what cannot be read is never a policy that accepts more.
func TestPolicy(t *testing.T) {
	n := newNode(t, nil)
	for name, c := range map[string]struct {
		file, want string
		roots      func(string) ([]byte, error)
	}{
		"nothing":                {"", "profile", nil},
		"unknown key":            {"profile: aws-shared\nmeasurment: {}\n", "p.yaml:2", nil},
		"roots that are missing": {string(simulatorPolicy), "not accepted", nil},
		"roots that are none": {string(simulatorPolicy), "PEM",
			func(string) ([]byte, error) { return []byte("x"), nil }},
	} {
		if _, err := verify.ParsePolicy("p.yaml", []byte(c.file), c.roots); err == nil ||
			!strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want …%s…", name, err, c.want)
		}
	}
	if _, err := verify.BuiltinPolicy("azure"); err == nil {
		t.Error("there is no policy azure, and it is returned")
	}
	unnamed := must.Get(verify.ParsePolicy("",
		[]byte("profile: aws-shared\nmeasurement: {mode: enforce, value: [{value: \""+
			strings.Repeat("00", 48)+"\"}]}\nroots: r\n"), n.roots))(t, "read a policy without a name")
	v := must.Get(verify.New(verify.Config{Policy: unnamed, Region: "us-east-2", AllowCustomRoots: true}))(t,
		"make a verifier")
	if r, err := v.Document(n.doc, verify.Want{Nonce: n.nonce}); code(t, err) != verify.CodePolicyRejected {
		t.Errorf("verdict %s by a policy that has no name, want that its measurement is compared", r.Verdict)
	}
}

func TestRevocation(t *testing.T) {
	n := newNode(t, nil)
	other := newNode(t, nil)
	var roots []*x509.Certificate
	for block, rest := pem.Decode(n.psp.Roots()); block != nil; block, rest = pem.Decode(rest) {
		roots = append(roots, must.Get(x509.ParseCertificate(block.Bytes))(t, "parse a root"))
	}
	ask, asvk := roots[1], roots[2]
	leaf := must.Get(x509.ParseCertificate(n.certs[0]))(t, "parse the leaf")
	before, after := n.now.Add(-time.Hour), n.now.Add(time.Hour)
	list := func(n *node, to time.Time, serials ...*big.Int) []byte {
		list := x509.RevocationList{ThisUpdate: before, NextUpdate: to}
		for _, serial := range serials {
			list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
				x509.RevocationListEntry{SerialNumber: serial, RevocationTime: before})
		}
		return must.Get(n.psp.RevocationList(list))(t, "make a revocation list")
	}
	encoded := func(list []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list}) }
	newer := must.Get(n.psp.RevocationList(x509.RevocationList{ThisUpdate: n.now, NextUpdate: after}))(t,
		"make a newer list")
	for _, c := range []struct {
		name  string
		lists [][]byte
		code  string
	}{
		{"none asked for", nil, ""},
		{"empty", [][]byte{list(n, after)}, ""},
		{"PEM", [][]byte{encoded(list(n, after))}, ""},
		{"another serial number", [][]byte{list(n, after, big.NewInt(99))}, ""},
		{"the intermediate", [][]byte{list(n, after, big.NewInt(99), asvk.SerialNumber)},
			verify.CodeCertificateRevoked},
		{"the intermediate, PEM", [][]byte{encoded(list(n, after, asvk.SerialNumber))}, verify.CodeCertificateRevoked},
		{"the other intermediate", [][]byte{list(n, after, ask.SerialNumber)}, ""},
		{"the endorsement key", [][]byte{list(n, after, leaf.SerialNumber)}, verify.CodeCertificateRevoked},
		{"the root", [][]byte{list(n, after, roots[0].SerialNumber)}, verify.CodeCertificateRevoked},
		{"that has ended", [][]byte{list(n, before.Add(time.Minute))}, verify.CodeRevocationUnknown},
		{"of which the newer counts", [][]byte{list(n, before.Add(time.Minute), leaf.SerialNumber), newer}, ""},
		{"of which the newer counts, in the other order",
			[][]byte{newer, list(n, before.Add(time.Minute), leaf.SerialNumber)}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := n.verifier(t, func(config *verify.Config) { config.RevocationLists = c.lists })
			for range 2 { // the chain is known the second time
				if r, err := v.Document(n.doc, verify.Want{Nonce: n.nonce}); code(t, err) != c.code {
					t.Errorf("verdict %s %q (%s), want code %q",
						r.Verdict.Status, r.Verdict.Code, r.Verdict.Reason, c.code)
				}
			}
		})
	}

	flipped := list(n, after)
	flipped[len(flipped)-1] ^= 1
	delta := must.Get(n.psp.RevocationList(x509.RevocationList{ThisUpdate: before, NextUpdate: after,
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 27},
			Critical: true, Value: []byte{2, 1, 0}}},
	}))(t, "make a list of changes only")
	// Each list belongs to the root that it names, whichever else are trusted.
	turin := newNode(t, func(o *sim.Options) { o.Product = snp.Turin })
	both := func(string) ([]byte, error) { return slices.Concat(n.psp.Roots(), turin.psp.Roots()), nil }
	c := n.config(t)
	c.Policy = must.Get(verify.ParsePolicy("policy.yaml", simulatorPolicy, both))(t, "read the policy")
	c.RevocationLists = [][]byte{list(turin, after), list(n, after)}
	v := must.Get(verify.New(c))(t, "make a verifier for two products")
	if _, err := v.Document(n.doc, verify.Want{Nonce: n.nonce}); err != nil {
		t.Errorf("with lists of two products: %v", err)
	}
	c.RevocationLists = c.RevocationLists[:1]
	v = must.Get(verify.New(c))(t, "make a verifier with a list of another product")
	if _, err := v.Document(n.doc, verify.Want{Nonce: n.nonce}); code(t, err) != verify.CodeRevocationUnknown {
		t.Errorf("with the list of another product alone: %v", err)
	}

	for name, data := range map[string][]byte{
		"labelled as a certificate": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: list(n, after)}),
		"of another root":           list(other, after), "with a wrong signature": flipped, "a certificate": n.certs[0],
		"two in one": append(encoded(newer), encoded(newer)...),
		"cut":        newer[:100], "empty": {}, "of changes only": delta,
	} {
		c := n.config(t)
		c.RevocationLists = [][]byte{data}
		if _, err := verify.New(c); err == nil {
			t.Errorf("a revocation list %s is accepted", name)
		}
	}
}

func TestReport(t *testing.T) {
	n := newNode(t, nil)
	v := n.verifier(t, nil)
	data := n.report[0x50 : 0x50+64]
	for _, c := range []struct {
		name   string
		report []byte
		certs  [][]byte
		want   verify.WantReport
		code   string
	}{
		{"whole", n.report, n.certs, verify.WantReport{ReportData: data}, ""},
		{"any", n.report, n.certs, verify.WantReport{AnyReportData: true}, ""},
		{"zero value", n.report, n.certs, verify.WantReport{}, verify.CodeNonceRequired},
		{"both", n.report, n.certs, verify.WantReport{ReportData: data, AnyReportData: true}, verify.CodeNonceRequired},
		{"a part", n.report, n.certs, verify.WantReport{ReportData: data[:32]}, verify.CodeNonceMismatch},
		{"too long", n.report, n.certs, verify.WantReport{ReportData: make([]byte, 65)}, verify.CodeNonceRequired},
		{"no certificate", n.report, nil, verify.WantReport{AnyReportData: true}, verify.CodeCertificateMissing},
		{"half a report", n.report[:600], n.certs, verify.WantReport{AnyReportData: true}, verify.CodeReportMalformed},
		{"expired", n.report, n.certs, verify.WantReport{AnyReportData: true, Now: n.now.AddDate(5, 0, 0)},
			verify.CodeCertificateExpired},
	} {
		if r, err := v.Report(c.report, c.certs, c.want); code(t, err) != c.code || r.Verdict.Code != c.code {
			t.Errorf("%s: %v, verdict %q, want code %q", c.name, err, r.Verdict.Code, c.code)
		}
	}
	padded := must.Get(sim.New(sim.DefaultOptions(n.now)))(t, "make another processor")
	report, table, err := padded.Report([64]byte{1, 2, 3}, 0)
	must.Do(t, err, "get a report")
	certs := must.Get(snp.ParseCertTable(table))(t, "read the certificate table")
	n.psp = padded
	want := verify.WantReport{ReportData: []byte{1, 2, 3}}
	_, err = n.verifier(t, nil).Report(report, [][]byte{certs[0].Data}, want)
	if err != nil {
		t.Errorf("a nonce that REPORT_DATA begins with: %v", err)
	}
}

// TestConcurrent: one verifier serves many goroutines, with good and bad evidence among each other.
func TestConcurrent(t *testing.T) {
	n := newNode(t, nil)
	v := n.verifier(t, nil)
	bad := bytes.Replace(n.doc, []byte(`"uid":0`), []byte(`"uid":1`), 1)
	var group sync.WaitGroup
	for i := range 32 {
		group.Go(func() {
			doc, want := n.doc, ""
			if i%2 == 1 {
				doc, want = bad, verify.CodeReportDataMismatch
			}
			if r, _ := v.Document(doc, verify.Want{Nonce: n.nonce}); r.Verdict.Code != want {
				t.Errorf("document %d: code %q, want %q", i, r.Verdict.Code, want)
			}
		})
	}
	group.Wait()
}

// BenchmarkDocument verifies evidence under a chain that is known, one document at a time.
func BenchmarkDocument(b *testing.B) {
	n := newNode(b, nil)
	v := n.verifier(b, nil)
	b.ReportAllocs()
	for b.Loop() {
		must.Get(v.Document(n.doc, verify.Want{Nonce: n.nonce, Key: n.spki}))(b, "verify the document")
	}
}

// BenchmarkFirst is what a program waits for its first document: roots, chain and report.
func BenchmarkFirst(b *testing.B) {
	n := newNode(b, nil)
	c := n.config(b)
	b.ReportAllocs()
	for b.Loop() {
		v := must.Get(verify.New(c))(b, "make a verifier")
		must.Get(v.Document(n.doc, verify.Want{Nonce: n.nonce, Key: n.spki}))(b, "verify the document")
	}
}

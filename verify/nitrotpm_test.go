package verify_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"sevagent/internal/evidence"
	"sevagent/internal/must"
	"sevagent/internal/nitro"
	"sevagent/internal/sim"
	"sevagent/internal/sim/simnitro"
	"sevagent/verify"
)

// tpmNode is a node whose NitroTPM is under ca.
type tpmNode struct {
	*node
	ca *simnitro.CA
}

func newTPMNode(t testing.TB, change func(*sim.Options)) *tpmNode {
	t.Helper()
	return &tpmNode{newNode(t, change), must.Get(simnitro.New())(t, "make a root of NitroTPMs")}
}

// fields are those of the document that goes with a report.
func (n *tpmNode) fields(report []byte) simnitro.Fields {
	userData, nonce := nitro.Binding(report)
	return simnitro.Fields{Time: n.now, UserData: userData[:], Nonce: nonce[:]}
}

// with returns the node's evidence with a NitroTPM's document in it; nil: none.
func (n *tpmNode) with(t testing.TB, document []byte) []byte {
	t.Helper()
	d := must.Get(evidence.Parse(n.doc))(t, "parse the evidence")
	shared := must.Get(evidence.Share(d.Report, document, n.certs, nil, n.now))(t, "start a batch")
	d = must.Get(shared.Document(d.Claims(), 0, nil))(t, "make its document")
	return must.Get(json.Marshal(d))(t, "encode the document")
}

func (n *tpmNode) sign(t testing.TB, f simnitro.Fields) []byte {
	t.Helper()
	return must.Get(n.ca.Sign(f))(t, "make a NitroTPM's document")
}

// verifier trusts both simulators. rules are lines of the policy.
func (n *tpmNode) verifier(t testing.TB, rules string) *verify.Verifier {
	t.Helper()
	roots := func(string) ([]byte, error) { return slices.Concat(n.psp.Roots(), n.ca.PEM()), nil }
	policy := must.Get(verify.ParsePolicy("policy.yaml", append(simulatorPolicy, rules...), roots))(t, "read the policy")
	return must.Get(verify.New(verify.Config{Policy: policy, Region: "us-east-2", AllowCustomRoots: true}))(t,
		"make a verifier")
}

// pins is a rule that requires a node's registers, with changes.
func pins(changes ...string) string {
	pcrs, rule := simnitro.PCRs(), "nitrotpm:\n  mode: require\n  pcrs:\n  - values:\n"
	for _, i := range []int{4, 7, 12} {
		rule += fmt.Sprintf("    - {pcr: %d, value: %q}\n", i, hex.EncodeToString(pcrs[i]))
	}
	return strings.NewReplacer(changes...).Replace(rule)
}

// TestNitroTPM: the document of a NitroTPM has to be genuine, and of the node that the evidence is of.
func TestNitroTPM(t *testing.T) {
	n := newTPMNode(t, nil)
	other := newTPMNode(t, nil)
	fresh := verify.Want{Nonce: n.nonce, Now: n.now.Add(time.Minute)}
	good := n.fields(n.report)
	change := func(f func(*simnitro.Fields)) []byte {
		changed := good
		f(&changed)
		return n.sign(t, changed)
	}
	genuine := n.sign(t, good)
	const require = "nitrotpm: {mode: require}\n"
	for _, c := range []struct {
		name     string
		document []byte
		rules    string
		want     verify.Want
		code     string
	}{
		{"none", nil, "", fresh, ""},
		{"none, of what is stored", nil, "", verify.Want{AnyNonce: true}, ""},
		{"genuine", genuine, "", fresh, ""},
		{"genuine and required", genuine, require, fresh, ""},
		{"of a known instance", genuine, "nitrotpm: {mode: require, instance_ids: [i-0123456789abcdef0]}\n", fresh, ""},
		{"of known registers", genuine, pins(), fresh, ""},

		{"taken away", nil, require, fresh, verify.CodeNitroTPMMissing},
		{"taken away, registers known", nil, pins(), fresh, verify.CodeNitroTPMMissing},
		{"taken away where that is accepted", nil, pins("require", "accept"), fresh, ""},
		{"there, and refused", genuine, "nitrotpm: {mode: refuse}\n", fresh, verify.CodeNitroTPMRefused},
		{"not there, and refused", nil, "nitrotpm: {mode: refuse}\n", fresh, ""},
		{"of another instance than known", genuine, "nitrotpm: {mode: require, instance_ids: [i-0123456789abcdef1]}\n",
			fresh, verify.CodeNitroTPMInstance},
		{"of other registers", genuine, pins("pcr: 4", "pcr: 8"), fresh, verify.CodeNitroTPMPCRs},
		{"of other registers, accepted if not there", genuine, pins("pcr: 4", "pcr: 8", "require", "accept"), fresh,
			verify.CodeNitroTPMPCRs},

		{"of another report", n.sign(t, n.fields(other.report)), "", fresh, verify.CodeNitroTPMBinding},
		{"with another nonce", change(func(f *simnitro.Fields) { f.Nonce = n.nonce }), "", fresh, verify.CodeNitroTPMBinding},
		{"with a key", change(func(f *simnitro.Fields) { f.PublicKey = []byte{} }), "", fresh, verify.CodeNitroTPMBinding},
		{"of an enclave", change(func(f *simnitro.Fields) { f.Map, f.Suffix = simnitro.MapEnclave, "-enc0123456789abcdef" }),
			"", fresh, verify.CodeNitroTPMKind},
		{"of another region", change(func(f *simnitro.Fields) { f.Region = "us-east-1" }), "", fresh,
			verify.CodeNitroTPMRegion},
		{"of another instance", change(func(f *simnitro.Fields) { f.Instance = "i-0fedcba9876543210" }), "", fresh,
			verify.CodeNitroTPMInstance},
		{"under another root", must.Get(other.ca.Sign(good))(t, "make another's document"), "", fresh,
			verify.CodeNitroTPMChain},
		{"something else", []byte("{}"), "", fresh, verify.CodeNitroTPMMalformed},
		{"with a bit flipped", append(genuine[:len(genuine)-1:len(genuine)-1], genuine[len(genuine)-1]^1), "", fresh,
			verify.CodeNitroTPMSignature},

		{"after four hours", genuine, "", verify.Want{Nonce: n.nonce, Now: n.now.Add(4 * time.Hour)},
			verify.CodeNitroTPMExpired},
		{"after four hours, of what is stored", genuine, require,
			verify.Want{AnyNonce: true, Now: n.now.Add(4 * time.Hour)}, ""},
		{"stored, and too old", genuine, "",
			verify.Want{AnyNonce: true, Now: n.now.Add(4 * time.Hour), MaxAge: 5 * time.Hour}, ""},
		{"made tomorrow", change(func(f *simnitro.Fields) { f.Time = n.now.AddDate(0, 0, 1) }), "",
			verify.Want{AnyNonce: true, Now: n.now}, verify.CodeNitroTPMFromFuture},
		{"older than is wanted", change(func(f *simnitro.Fields) { f.Time = n.now.Add(-2 * time.Hour) }), "",
			verify.Want{Nonce: n.nonce, Now: n.now, MaxAge: time.Hour}, verify.CodeNitroTPMTooOld},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := n.verifier(t, c.rules).Document(n.with(t, c.document), c.want)
			if got := code(t, err); got != c.code {
				t.Errorf("%v, want the code %q", err, c.code)
			}
			if (r.NitroTPM != nil) != (c.document != nil) {
				t.Errorf("the result says %+v of a document of %d bytes", r.NitroTPM, len(c.document))
			}
		})
	}

	r, err := n.verifier(t, pins()).Document(n.with(t, genuine), fresh)
	must.Do(t, err, "verify genuine evidence")
	if got := r.NitroTPM; got.Check != verify.Verified || got.Kind != verify.NitroTPMDocument ||
		got.InstanceID != "i-0123456789abcdef0" || got.Region != "us-east-2" || len(got.PCRs) != 24 ||
		len(got.Image) != 32 || !got.Timestamp.Equal(n.now.Truncate(time.Millisecond)) {
		t.Errorf("the result says %+v", got)
	}
	if rules := r.Verdict.Rules; len(rules) < 2 || rules[len(rules)-1].Rule != "nitrotpm.pcrs" {
		t.Errorf("the verdict's rules are %+v, want nitrotpm and nitrotpm.pcrs at the end", rules)
	}

	// Both the VLEK and the node's claim name the region, and each is compared.
	for _, c := range []struct {
		claimed evidence.Instance
		signed  string // region
	}{
		{evidence.Instance{ID: "i-0123456789abcdef0", Region: "eu-west-1", AccountID: "123456789012"}, "us-east-2"},
		{evidence.Instance{}, "eu-west-1"},
	} {
		abroad := newTPMNode(t, nil)
		abroad.doc = abroad.document(t, evidence.Claims{Purpose: evidence.PurposeClient, Nonce: n.nonce,
			Caller: evidence.HostCaller(0), Instance: c.claimed})
		f := abroad.fields(abroad.report)
		f.Region = c.signed
		_, err := abroad.verifier(t, "").Document(abroad.with(t, abroad.sign(t, f)), fresh)
		if code(t, err) != verify.CodeNitroTPMRegion {
			t.Errorf("claimed %q, signed by AWS for %s: %v", c.claimed.Region, c.signed, err)
		}
	}

	// What fails otherwise keeps its own code.
	changed := bytes.Replace(n.with(t, n.sign(t, n.fields(other.report))), []byte(`"uid":0`), []byte(`"uid":1`), 1)
	if _, err := n.verifier(t, "").Document(changed, fresh); code(t, err) != verify.CodeReportDataMismatch {
		t.Errorf("with other claims: %v", err)
	}
}

// TestNitroDocument: bare documents, of which the kind is shown.
func TestNitroDocument(t *testing.T) {
	n := newTPMNode(t, nil)
	nonce := bytes.Repeat([]byte{9}, 32)
	fields := simnitro.Fields{Time: n.now, Nonce: nonce}
	enclave, sandbox := fields, fields
	enclave.Map, enclave.Suffix = simnitro.MapEnclave, "-enc0123456789abcdef"
	sandbox.Map, sandbox.Suffix = simnitro.MapEnclave, "-sandbox"
	elsewhere := fields
	elsewhere.Region = "eu-west-1"
	fresh := verify.Want{Nonce: nonce, Now: n.now}
	for _, c := range []struct {
		name  string
		f     simnitro.Fields
		rules string
		want  verify.Want
		code  string
		kind  string
	}{
		{"NitroTPM", fields, pins(), fresh, "", verify.NitroTPMDocument},
		{"enclave", enclave, "", fresh, "", verify.EnclaveDocument},
		{"sandbox", sandbox, "", fresh, "", verify.SandboxDocument},
		{"enclave for a node", enclave, pins(), fresh, verify.CodeNitroTPMKind, verify.EnclaveDocument},
		{"sandbox for a node", sandbox, "nitrotpm: {mode: require}\n", fresh, verify.CodeNitroTPMKind,
			verify.SandboxDocument},
		{"other registers", fields, pins("pcr: 4", "pcr: 8"), fresh, verify.CodeNitroTPMPCRs, verify.NitroTPMDocument},
		{"another nonce", fields, "", verify.Want{Nonce: n.nonce, Now: n.now}, verify.CodeNonceMismatch,
			verify.NitroTPMDocument},
		{"no nonce", fields, "", verify.Want{Now: n.now}, verify.CodeNonceRequired, ""},
		{"another region", elsewhere, "", fresh, verify.CodeNitroTPMRegion, verify.NitroTPMDocument},
		{"for a key", fields, "", verify.Want{Nonce: nonce, Now: n.now, Key: n.spki}, verify.CodeBindingMismatch, ""},
		{"expired", fields, "", verify.Want{Nonce: nonce, Now: n.now.Add(4 * time.Hour)}, verify.CodeNitroTPMExpired, ""},
		{"stored", fields, "", verify.Want{AnyNonce: true, Now: n.now.Add(4 * time.Hour)}, "", verify.NitroTPMDocument},
		{"stored for too long", fields, "", verify.Want{AnyNonce: true, Now: n.now.Add(4 * time.Hour), MaxAge: time.Hour},
			verify.CodeNitroTPMTooOld, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := n.verifier(t, c.rules).NitroDocument(n.sign(t, c.f), c.want)
			if got := code(t, err); got != c.code || r.Verdict.Code != c.code {
				t.Errorf("%v, verdict %s, want the code %q", err, r.Verdict, c.code)
			}
			kind := ""
			if r.NitroTPM != nil {
				kind = r.NitroTPM.Kind
			}
			if kind != c.kind {
				t.Errorf("the kind is %q, want %q", kind, c.kind)
			}
		})
	}

	// Without roots of their own, policies mean AWS's.
	document, err := os.ReadFile("../../shared/testdata/nitrotpm/nitrotpm-2026-02-03.cbor")
	if err != nil {
		t.Skip("the real attestation documents are not available")
	}
	v := must.Get(verify.New(verify.Config{Region: "us-east-1"}))(t, "make a verifier")
	r, err := v.NitroDocument(document, verify.Want{AnyNonce: true})
	if err != nil || r.Verdict.Roots != "aws" || r.Region != verify.Verified {
		t.Errorf("AWS's document: %v, %+v", err, r)
	}
	if _, err := v.NitroDocument(n.sign(t, fields), fresh); code(t, err) != verify.CodeNitroTPMChain {
		t.Errorf("a simulated document under AWS's root: %v", err)
	}
	if r, _ := n.verifier(t, "").NitroDocument(n.sign(t, fields), fresh); r.Verdict.Roots != "custom" {
		t.Errorf("the roots of a simulated document are %q", r.Verdict.Roots)
	}
}

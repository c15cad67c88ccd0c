package appraise

import (
	"bytes"
	"encoding/pem"
	"maps"
	"strings"
	"testing"
	"time"

	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/internal/sim/simnitro"
	"sevagent/internal/snp"
)

// outcome returns what a rule says of a report, "" if it is not applied.
func outcome(t *testing.T, rule string, r *snp.Report, change func(*Policy)) Status {
	t.Helper()
	p := must.Get(Builtin(AWSShared))(t, "take a built-in policy")
	change(&p)
	v := &Verdict{Product: snp.Milan}
	v.apply(Config{Policy: p}, r, time.Now())
	for _, result := range v.Rules {
		if result.Rule == rule {
			return result.Status
		}
	}
	return ""
}

func TestReportVersionRule(t *testing.T) {
	for version, want := range map[uint32]Status{2: Fail, 3: Pass, 4: Pass, 5: Fail} {
		got := outcome(t, "report_version", &snp.Report{Version: version}, func(p *Policy) {
			p.ReportVersion.Value.Min, p.ReportVersion.Value.Max = 3, 4
		})
		if got != want {
			t.Errorf("version %d, 3 to 4 are wanted: %q, want %q", version, got, want)
		}
	}
}

// TestMitigationVectorRule: a mitigation counts if it was there at the launch and still is.
func TestMitigationVectorRule(t *testing.T) {
	for _, c := range []struct {
		version         uint32
		launch, current uint64
		want            Status
	}{
		{5, 0xF, 0xF, Pass}, {5, 0x1F, 0x2F, Pass}, {5, 0x7, 0xF, Fail}, {5, 0xF, 0x7, Fail}, {5, 0x7, 0x8, Fail},
		{5, 0, 0, Fail}, {4, 0, 0, ""},
	} {
		r := &snp.Report{Version: c.version, LaunchMitVector: c.launch, CurrentMitVector: c.current}
		if got := outcome(t, "mitigation_vector", r, func(*Policy) {}); got != c.want {
			t.Errorf("version %d, launch %#x, current %#x: %q, want %q", c.version, c.launch, c.current, got, c.want)
		}
	}
}

// TestMeasured: a retired measurement is accepted to the end of its last day, UTC.
func TestMeasured(t *testing.T) {
	now := time.Date(2026, 11, 30, 23, 59, 59, 0, time.UTC)
	known := []Measurement{
		{Value: "aa"}, {Value: "bb", NotAfter: "2026-11-29"}, {Value: "cc", NotAfter: "2026-11-30"},
		{Value: "dd", NotAfter: "2027-01-01"},
	}
	for observed, want := range map[string]bool{"aa": true, "bb": false, "cc": true, "dd": true, "ee": false, "": false} {
		if ok, required := measured(known, observed, now); ok != want {
			t.Errorf("measurement %q: %v (%s), want %v", observed, ok, required, want)
		}
	}
	if _, required := measured(known, "ee", now); required != "one of 3 known values" {
		t.Errorf("wanted is %q", required)
	}
	if _, required := measured(known, "bb", now); !strings.HasSuffix(required, "accepted until 2026-11-29") {
		t.Errorf("of a retired one, wanted is %q", required)
	}
	if ok, _ := measured(known, "cc", now.Add(time.Second)); ok {
		t.Error("a measurement is accepted after its last day")
	}
}

func TestCSPIDMatches(t *testing.T) {
	const ohio = "CN=cc-us-east-2.amazonaws.com"
	for _, c := range []struct {
		cspID, want, node string
		ok                bool
	}{
		{ohio, "node", "us-east-2", true}, {ohio, "node", "eu-west-1", false}, {ohio, "node", "", true},
		{ohio, "us-east-2", "eu-west-1", true}, {ohio, "eu-west-1", "us-east-2", false}, {ohio, "", "eu-west-1", true},
		{"", "node", "", false}, {"", "", "", false}, {ohio + "\n", "node", "us-east-2", false},
		{"x" + ohio, "node", "us-east-2", false},
		{"CN=cc-us-east-2xamazonaws.com", "node", "us-east-2", false},
	} {
		if ok, required := cspIDMatches(c.cspID, c.want, c.node); ok != c.ok {
			t.Errorf("%q, %q is wanted on a node of %q: %v (%s), want %v", c.cspID, c.want, c.node, ok, required, c.ok)
		}
	}
}

// TestPartsOfRoots: one of the intermediates is enough, and everything is a certificate.
func TestPartsOfRoots(t *testing.T) {
	m := newMachine(t, time.Now(), func(*sim.Options) {})
	var blocks []*pem.Block // ARK, ASK, ASVK
	for block, rest := pem.Decode(m.Roots()); block != nil; block, rest = pem.Decode(rest) {
		blocks = append(blocks, block)
	}
	text := func(blocks ...*pem.Block) []byte {
		var b bytes.Buffer
		for _, block := range blocks {
			must.Do(t, pem.Encode(&b, block), "write a block")
		}
		return b.Bytes()
	}
	for name, c := range map[string]struct {
		pem  []byte
		want string
	}{
		"ARK and ASK":  {text(blocks[0], blocks[1]), ""},
		"ARK and ASVK": {text(blocks[0], blocks[2]), ""},
		"an ASVK labelled as a key": {
			text(blocks[0], blocks[1], &pem.Block{Type: "PRIVATE KEY", Bytes: blocks[2].Bytes}), "entry 2 is not"},
		"no certificate in a block": {text(blocks[0], &pem.Block{Type: "CERTIFICATE", Bytes: []byte{0}}), "entry 1"},
	} {
		_, err := customRoots(c.pem)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}

	// Roots of Nitro hypervisors alone leave AMD's in place, and take none away beside others.
	ca := must.Get(simnitro.New())(t, "make a root for NitroTPMs")
	amd := must.Get(amdRoots())(t, "read AMD's roots")
	if got, err := customRoots(ca.PEM()); err != nil || !maps.Equal(keys(got), keys(amd)) {
		t.Errorf("with a root for NitroTPMs alone: %v, %v; want AMD's", got, err)
	}
	if got, err := customRoots(append(ca.PEM(), text(blocks[0], blocks[1])...)); err != nil || len(got) != 1 {
		t.Errorf("with a root for NitroTPMs among others: %v, %v; want the others alone", got, err)
	}
}

// keys has the fingerprint of each product's ARK.
func keys(r roots) map[string]string {
	m := make(map[string]string)
	for product, a := range r {
		m[product] = string(a.ark.Raw)
	}
	return m
}

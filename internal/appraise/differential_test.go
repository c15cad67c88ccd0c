package appraise

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"testing"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"

	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/internal/snp"
)

// These tests hold this package against itself, with and without what it remembers, and against go-sev-guest. Whatever
// is genuine here, the library accepts; it accepts more, for the reasons in refusedHereAlone.

// refusedHereAlone are the codes of what go-sev-guest's verify accepts and this package does not, with the reason.
var refusedHereAlone = map[string]string{
	CodeCertificateMismatch: "verify compares neither TCB, chip nor, with CPUID in the report, " +
		"the product's name with the certificate's; " +
		"the library leaves TCB and chip to its package validate",
	CodeUnsupportedProduct: "verify takes the product from the certificate where CPUID is zero, " +
		"in versions that have it",
	CodeUnsupportedVersion: "verify reads the mitigation vectors in versions in which they are reserved",
}

// genuine reports whether signature, chain and form hold, whatever the policy says.
func genuine(v *Verdict) bool { return v.Err() == nil || v.Code == CodePolicyRejected }

// fresh is v without what it remembers.
func (v *Verifier) fresh() *Verifier {
	return &Verifier{
		cfg: v.cfg, roots: v.roots, kind: v.kind, signed: v.signed,
		chains: make(map[[sha256.Size]byte]*endorsement),
	}
}

// machine is a simulated machine, and a verifier of its reports that has appraised one already.
type machine struct {
	*sim.PSP
	warm         *Verifier
	alter        func([]byte) // what is done to a report before it is signed
	report, cert []byte
}

func newMachine(t testing.TB, now time.Time, change func(*sim.Options)) *machine {
	t.Helper()
	m := new(machine)
	o := sim.DefaultOptions(now)
	o.Alter = func(report []byte) {
		if m.alter != nil {
			m.alter(report)
		}
	}
	change(&o)
	m.PSP = must.Get(sim.New(o))(t, "make a simulator")
	m.report, m.cert = m.sign(t)
	policy := must.Get(Builtin(AWSShared))(t, "take a built-in policy")
	policy.RootsPEM = m.Roots()
	m.warm = must.Get(New(Config{Policy: policy}))(t, "make a verifier")
	if v := m.warm.Appraise(now, m.report, [][]byte{m.cert}); !v.Genuine() {
		t.Fatalf("the unchanged report: %s: %s", v.Code, v.Reason)
	}
	return m
}

func (m *machine) sign(t testing.TB) (report, cert []byte) {
	t.Helper()
	report, raw, err := m.Report([snp.ReportDataSize]byte{1}, 0)
	must.Do(t, err, "get a report")
	return report, must.Get(snp.ParseCertTable(raw))(t, "parse the certificate table")[0].Data
}

// library is go-sev-guest's verdict, from the first byte to the last.
func (m *machine) library(report []byte, now time.Time) error {
	proto, err := abi.ReportToProto(report)
	if err != nil {
		return err
	}
	chain := &spb.CertificateChain{VlekCert: m.cert, VcekCert: m.cert}
	return verify.SnpAttestation(&spb.Attestation{Report: proto, CertificateChain: chain},
		&verify.Options{TrustedRoots: forLibrary(m.warm.roots), DisableCertFetching: true, Now: now})
}

func forLibrary(r roots) map[string][]*trust.AMDRootCerts {
	list := make(map[string][]*trust.AMDRootCerts)
	for line, a := range r {
		root := trust.AMDRootCertsProduct(line)
		root.ProductCerts = &trust.ProductCerts{Ark: a.ark, Ask: a.ask, Asvk: a.asvk}
		list[line] = []*trust.AMDRootCerts{root}
	}
	return list
}

// TestAMDsRoots: what is embedded is what go-sev-guest embeds, and the signatures in it hold.
func TestAMDsRoots(t *testing.T) {
	r := must.Get(amdRoots())(t, "read AMD's roots")
	for line, bundles := range map[string][2][]byte{
		"Milan": {trust.AskArkMilanVcekBytes, trust.AskArkMilanVlekBytes},
		"Genoa": {trust.AskArkGenoaVcekBytes, trust.AskArkGenoaVlekBytes},
		"Turin": {trust.AskArkTurinVcekBytes, trust.AskArkTurinVlekBytes},
	} {
		a := r[line]
		if a == nil || a.ask == nil || a.asvk == nil {
			t.Fatalf("%s: %+v, want all three certificates", line, a)
		}
		must.Do(t, a.check(), "check the roots of %s", line)
		for i, chain := range [2][]*x509.Certificate{{a.ask, a.ark}, {a.asvk, a.ark}} {
			rest := bundles[i]
			for _, want := range chain {
				var block *pem.Block
				if block, rest = pem.Decode(rest); block == nil || !bytes.Equal(block.Bytes, want.Raw) {
					t.Errorf("%s: go-sev-guest has another %s", line, want.Subject.CommonName)
				}
			}
		}
	}
	if len(r) != 3 {
		t.Errorf("roots of %d product lines, want 3", len(r))
	}
}

// TestVerdictsDoNotDependOnHistory changes reports bit by bit, before they are signed and after, and compares a
// verifier that has seen nothing, one that has appraised a good report, and go-sev-guest.
func TestVerdictsDoNotDependOnHistory(t *testing.T) {
	now := time.Now()
	for name, change := range map[string]func(*sim.Options){
		"VLEK":      func(*sim.Options) {},
		"VCEK":      func(o *sim.Options) { o.Signer, o.ChipID, o.Version = snp.SignedByVCEK, [64]byte{1}, 3 },
		"version 2": func(o *sim.Options) { o.Version = 2 },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, now, change)
			signed := 0
			for at := range snp.ReportSize {
				opaque := at >= 0x50 && at < 0x180 || at >= 0x1A0 && at < 0x1E0 ||
					at >= 0x208 && at < snp.SignedSize+144
				if opaque && at%16 != 0 || name != "VLEK" && at%3 != 0 {
					continue // each costs several signatures, and package snp holds the form bit by bit
				}
				flip := func(report []byte) { report[at] ^= 1 << (at * 5 % 8) }
				reports := [][]byte{bytes.Clone(m.report)}
				flip(reports[0])
				if at < snp.SignedSize {
					m.alter = flip
					again, _ := m.sign(t)
					reports = append(reports, again)
				}
				for i, report := range reports {
					if i == 0 && at < snp.SignedSize && at%8 != 0 {
						continue // altered without being signed again: the signature fails
					}
					cold := m.warm.fresh().Appraise(now, report, [][]byte{m.cert})
					warm := m.warm.Appraise(now, report, [][]byte{m.cert})
					if c, w := encode(t, cold), encode(t, warm); c != w {
						t.Errorf("byte %#x, signed again: %v: to a new verifier\n%s\nto another\n%s", at, i == 1, c, w)
					}
					err := m.library(report, now)
					if genuine(cold) && err != nil {
						t.Errorf("byte %#x, signed again: %v: genuine, and go-sev-guest says: %v", at, i == 1, err)
					}
					if !genuine(cold) && err == nil && refusedHereAlone[cold.Code] == "" {
						t.Errorf("byte %#x, signed again: %v: go-sev-guest accepts it, here %s: %s",
							at, i == 1, cold.Code, cold.Reason)
					}
					if genuine(cold) {
						signed++
					}
				}
			}
			if signed < 15 {
				t.Errorf("only %d of the changed reports were genuine: the test says nothing of them", signed)
			}
		})
	}
}

func encode(t testing.TB, v *Verdict) string {
	t.Helper()
	return string(must.Get(json.Marshal(v))(t, "encode a verdict"))
}

// FuzzAppraise: whatever the host sends, signed by anyone, a verifier that has seen other reports says the same as
// one that has not, nothing panics past it, and what it calls genuine has a form and a certificate that go-sev-guest
// accepts. Signatures of reports count as good here: they are what fuzzing cannot get past, and what takes the time.
func FuzzAppraise(f *testing.F) {
	now := time.Now()
	var machines []*machine
	for _, change := range []func(*sim.Options){
		func(*sim.Options) {},
		func(o *sim.Options) { o.Signer, o.ChipID, o.Version = snp.SignedByVCEK, [64]byte{1}, 4 },
		func(o *sim.Options) { o.Version = 2 },
		func(o *sim.Options) { o.Version = 3 },
	} {
		m := newMachine(f, now, change)
		m.warm.signed = func(r *snp.Report, _ *ecdsa.PublicKey) bool { return r.SignatureAlgo == 1 }
		machines = append(machines, m)
		f.Add(uint8(len(machines)-1), m.report, []byte{})
		f.Add(uint8(len(machines)-1), m.report, m.cert)
	}
	f.Add(uint8(0), bytes.Repeat([]byte{0xff}, snp.ReportSize), machines[0].cert)
	f.Fuzz(func(t *testing.T, which uint8, report, cert []byte) {
		m := machines[int(which)%len(machines)]
		certs := [][]byte{cert, m.cert}
		warm := m.warm.Appraise(now, report, certs)
		if warm.Status == "" || warm.Status != Pass && warm.Code == "" || warm.Code == CodeVerificationPanicking {
			t.Fatalf("status %q, code %q: %s", warm.Status, warm.Code, warm.Reason)
		}
		cold := m.warm.fresh().Appraise(now, report, certs)
		if cold.Status != warm.Status || cold.Code != warm.Code ||
			cold.Reason != warm.Reason || cold.CSPID != warm.CSPID {
			t.Fatalf("to a new verifier:\n%s\nto another:\n%s", encode(t, cold), encode(t, warm))
		}
		accepted := libraryTakes(report)
		switch {
		case genuine(warm) && !accepted && !unnamedByLibrary(warm.Report):
			t.Fatalf("genuine, and go-sev-guest refuses its form: %x", report)
		case genuine(warm) && warm.Report.ReportedTCB.Raw != machineTCB:
			t.Fatalf("genuine, and for another TCB than the certificate: %v", warm.Report.ReportedTCB)
		}
	})
}

// machineTCB is that of all simulated certificates here.
var machineTCB = sim.DefaultOptions(time.Time{}).TCB.Version().Raw

// libraryTakes reports whether go-sev-guest's verification accepts all of a report but its signature.
func libraryTakes(raw []byte) bool {
	report, err := abi.ReportToProto(raw)
	if err != nil || abi.ValidateReportFormat(raw) != nil {
		return false
	}
	again, err := abi.ReportToAbiBytes(report) // this is what it verifies the signature of
	return err == nil && bytes.Equal(again,
		raw) && (report.Cpuid1EaxFms == 0 || kds.ProductLineFromFms(report.Cpuid1EaxFms) == "Milan")
}

// unnamedByLibrary reports whether a report is of a Milan model that has a name here and none in go-sev-guest.
func unnamedByLibrary(r *snp.Report) bool {
	return r.Version >= 3 && r.CPUID.Product() == snp.Milan && r.CPUID.Model != 1
}

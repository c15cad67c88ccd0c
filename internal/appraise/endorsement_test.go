package appraise

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/internal/snp"
)

// vcekOf makes a machine one of a product, whose reports a VCEK signs.
func vcekOf(product snp.Product) func(*sim.Options) {
	return func(o *sim.Options) {
		o.Product, o.Signer, o.ChipID = product, snp.SignedByVCEK, [64]byte{1, 2, 3, 4, 5, 6, 7, 8}
	}
}

// TestReadEndorsement: a certificate that is not as AMD makes them is refused, even if the signature is right.
func TestReadEndorsement(t *testing.T) {
	now := time.Now()
	machines := map[snp.SigningKey]*machine{
		snp.SignedByVLEK: newMachine(t, now, func(*sim.Options) {}),
		snp.SignedByVCEK: newMachine(t, now, vcekOf(snp.Milan)),
	}
	const vlek, vcek = snp.SignedByVLEK, snp.SignedByVCEK
	set := func(arc string, value ...byte) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			i := slices.IndexFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.String() == amdArc+arc })
			c.Extensions[i].Value = value
		}
	}
	with := func(arcs ...int) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			id := append(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}, arcs...)
			c.Extensions = append(slices.Clone(c.Extensions), pkix.Extension{Id: id, Value: []byte{2, 1, 0}})
		}
	}
	without := func(arc string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			is := func(e pkix.Extension) bool { return e.Id.String() == amdArc+arc }
			c.Extensions = slices.DeleteFunc(slices.Clone(c.Extensions), is)
		}
	}
	p256 := must.Get(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t, "make a key")
	const number, text = "that is no number from 0 to", "that is no IA5String"
	for _, c := range []struct {
		name  string
		kind  snp.SigningKey
		alter func(*x509.Certificate)
		want  string // none: it is read
	}{
		{"as it is", vlek, func(*x509.Certificate) {}, ""},
		{"as it is", vcek, func(*x509.Certificate) {}, ""},
		{"key on P-256", vlek, func(c *x509.Certificate) { c.PublicKey = p256.Public() }, "has no P-384 key"},
		{"RSA key", vlek, func(c *x509.Certificate) { c.PublicKey = &rsa.PublicKey{} }, "has no P-384 key"},
		{"version 1", vlek, func(c *x509.Certificate) { c.Version = 1 }, "is not signed by RSA-PSS"},
		{"SHA-256", vlek, func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA256WithRSAPSS }, "is not signed by"},
		{"PKCS #1", vlek, func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA384WithRSA }, "is not signed by"},
		{"another kind", vlek, func(c *x509.Certificate) { c.Subject.CommonName = "SEV-VCEK" }, "AMD's are for"},
		{"critical", vlek, func(c *x509.Certificate) {
			c.UnhandledCriticalExtensions = []asn1.ObjectIdentifier{{1, 2}}
		}, "has a critical extension"},

		{"greatest bootloader", vlek, set("3.1", 2, 1, 127), ""},
		{"bootloader too great", vlek, set("3.1", 2, 2, 0, 128), number},
		{"negative bootloader", vlek, set("3.1", 2, 1, 255), number},
		{"bootloader with a tail", vlek, set("3.1", 2, 1, 4, 0), number},
		{"bootloader of another type", vlek, set("3.1", 10, 1, 4), number},
		{"bootloader cut short", vlek, set("3.1", 2, 2, 4), number},
		{"empty bootloader", vlek, set("3.1"), number},
		{"greatest microcode", vlek, set("3.8", 2, 2, 0, 255), ""},
		{"microcode too great", vlek, set("3.8", 2, 2, 1, 0), number},
		{"product with a tail", vlek, set("2", 0x16, 1, 'M', 0), text},
		{"product of another type", vlek, set("2", 0x0C, 1, 'M'), text},
		{"empty product", vlek, set("2", 0x16, 0), text},
		{"product cut short", vlek, set("2", 0x16, 2, 'M'), text},
		{"product not in ASCII", vlek, set("2", 0x16, 1, 0xFF), text},
		{"no bootloader, and one too many", vlek, func(c *x509.Certificate) { without("3.1")(c); with(9)(c) },
			"lacks the extension"},
		{"no CSP_ID", vlek, without("5"), "lacks the extension"},
		{"one too many", vlek, with(9), "has an extension that AMD's do not have, " + amdArc + "9"},
		{"a HWID, too", vlek, with(4), "has an extension that AMD's do not have, " + amdArc + "4"},
		{"a CSP_ID, too", vcek, with(5), "has an extension that AMD's do not have, " + amdArc + "5"},

		{"another HWID", vcek, set("4", make([]byte, 64)...), ""},
		{"no HWID", vcek, without("4"), "lacks the extension"},
		{"empty HWID", vcek, set("4"), "hardware ID"},
		{"HWID of Turin's length", vcek, set("4", make([]byte, 8)...), "hardware ID"},
		{"HWID of 63 bytes", vcek, set("4", make([]byte, 63)...), "hardware ID"},
		{"HWID of 65 bytes", vcek, set("4", make([]byte, 65)...), "hardware ID"},
		{"HWID in an OCTET STRING", vcek, set("4", append([]byte{4, 64}, make([]byte, 64)...)...), "hardware ID"},
	} {
		cert := must.Get(x509.ParseCertificate(machines[c.kind].cert))(t, "parse the certificate")
		c.alter(cert)
		e, err := readEndorsement(cert, c.kind)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%v, %s: %v, want %q", c.kind, c.name, err, c.want)
		}
		if err == nil && (e.kind != c.kind || e.line != "Milan" || (e.cspID == "") != (c.kind == vcek)) {
			t.Errorf("%v, %s: read as %v of %s, CSP_ID %q", c.kind, c.name, e.kind, e.line, e.cspID)
		}
	}
}

// TestForeignAuthority: names are anyone's to choose. This package verifies the issuer's signature by itself:
// nodes have no second opinion, and go-sev-guest gives none on some products.
func TestForeignAuthority(t *testing.T) {
	now := time.Now()
	for name, change := range map[string]func(*sim.Options){
		"Milan VLEK": func(*sim.Options) {}, "Milan VCEK": vcekOf(snp.Milan),
		"Genoa VCEK": vcekOf(snp.Genoa), "Bergamo VCEK": vcekOf(snp.Bergamo), "Turin VCEK": vcekOf(snp.Turin),
		"Turin VLEK": func(o *sim.Options) { o.Product = snp.Turin },
	} {
		t.Run(name, func(t *testing.T) {
			theirs, ours := newMachine(t, now, change), newMachine(t, now, change)
			o := sim.DefaultOptions(now)
			change(&o)
			_, issuer := ours.warm.roots.issuer(o.Product.Line(), o.Signer)
			o.AlterCertificate = func(c *x509.Certificate) { // the key's identifier is anyone's to choose, too
				id := append([]byte{0x30, 22, 0x80, 20}, issuer.SubjectKeyId...)
				c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 35}, Value: id})
			}
			must.Do(t, theirs.SetOptions(o), "set the options")
			theirs.report, theirs.cert = theirs.sign(t)
			got := ours.warm.Appraise(now, theirs.report, [][]byte{theirs.cert})
			if got.Status != Fail || got.Code != CodeChainInvalid || !strings.Contains(got.Reason, "was not issued by") {
				t.Errorf("%s %s: %s, want chain_invalid", got.Status, got.Code, got.Reason)
			}
		})
	}
}

// TestSecondOpinionCounts: what it refuses is refused, and where it panics, too. It is asked once for a chain.
func TestSecondOpinionCounts(t *testing.T) {
	m := newMachine(t, time.Now(), func(*sim.Options) {})
	for want, second := range map[string]func(Chain) error{
		CodeChainInvalid:          func(Chain) error { return fmt.Errorf("no") },
		CodeVerificationPanicking: func(Chain) error { panic("no") },
	} {
		v := m.warm.fresh()
		v.cfg.Second = second
		if got := v.Appraise(time.Now(), m.report, [][]byte{m.cert}); got.Status != Fail || got.Code != want {
			t.Errorf("%s %s: %s, want %s", got.Status, got.Code, got.Reason, want)
		}
	}
	v, asked := m.warm.fresh(), 0
	v.cfg.Second = func(c Chain) error {
		asked++
		if c.Line != "Milan" || c.At.IsZero() || c.Leaf.CheckSignatureFrom(c.Intermediate) != nil ||
			c.Intermediate.CheckSignatureFrom(c.Root) != nil {
			t.Errorf("it was asked for %s at %v, or no chain", c.Line, c.At)
		}
		return nil
	}
	for range 2 {
		if got := v.Appraise(time.Now(), m.report, [][]byte{m.cert}); !genuine(got) {
			t.Errorf("%s: %s", got.Code, got.Reason)
		}
	}
	if asked != 1 {
		t.Errorf("it was asked %d times, want once", asked)
	}
}

// TestFirstThatFits: no certificate is tried behind the one that endorses the report.
func TestFirstThatFits(t *testing.T) {
	now := time.Now()
	m := newMachine(t, now, func(*sim.Options) {})
	v, tried := m.warm.fresh(), 0
	v.signed = func(r *snp.Report, key *ecdsa.PublicKey) bool { tried++; return signed(r, key) }
	if got := v.Appraise(now, m.report, [][]byte{m.cert, m.cert}); !genuine(got) || tried != 1 {
		t.Errorf("%s: %s; %d certificates were tried, want 1", got.Code, got.Reason, tried)
	}
}

// TestWhyItIsRefused: the reason is that of the certificate that fits best, and of what is wrong first.
func TestWhyItIsRefused(t *testing.T) {
	now := time.Now()
	m, other := newMachine(t, now, vcekOf(snp.Milan)), newMachine(t, now, func(o *sim.Options) {
		vcekOf(snp.Milan)(o)
		o.TCB.Microcode--
	})
	anotherChip := newMachine(t, now, func(o *sim.Options) { vcekOf(snp.Milan)(o); o.ChipID[63] = 9 })
	altered := func(at int, b byte) []byte {
		report := bytes.Clone(m.report)
		report[at] = b
		return report
	}
	unknown := altered(0x189, 0x40)
	unknown[0] = 3
	clear(unknown[0x1F8:0x208])
	for _, c := range []struct {
		name   string
		report []byte
		certs  [][]byte
		want   string
	}{
		{"altered", altered(0x90, 0xAA), [][]byte{m.cert}, CodeSignatureInvalid},
		{"altered, another's certificate before", altered(0x90, 0xAA), [][]byte{other.cert, m.cert}, CodeSignatureInvalid},
		{"altered, another's certificate behind", altered(0x90, 0xAA), [][]byte{m.cert, other.cert}, CodeSignatureInvalid},
		{"another's certificate", m.report, [][]byte{other.cert}, CodeCertificateMismatch},
		{"the certificate of another chip", m.report, [][]byte{anotherChip.cert}, CodeCertificateMismatch},
		{"the certificate of another chip before", m.report, [][]byte{anotherChip.cert, m.cert}, CodePolicyRejected},
		{"chip altered", altered(0x1A0, 0xAA), [][]byte{m.cert}, CodeCertificateMismatch},
		{"version 3 of an unknown product", unknown, [][]byte{m.cert}, CodeUnsupportedProduct},
	} {
		if got := m.warm.fresh().Appraise(now, c.report, c.certs); got.Code != c.want {
			t.Errorf("%s: %s %s: %s, want %s", c.name, got.Status, got.Code, got.Reason, c.want)
		}
	}
}

// TestEndorses: which chips, products and reports a certificate is for.
func TestEndorses(t *testing.T) {
	chip := [64]byte{1, 2, 3, 4, 5, 6, 7, 8}
	longer := chip
	longer[63] = 9
	for _, c := range []struct {
		name   string
		kind   snp.SigningKey
		hwid   []byte
		report snp.Report
		want   bool
	}{
		{"its chip", snp.SignedByVCEK, chip[:], snp.Report{ChipID: chip}, true},
		{"its chip, of Turin", snp.SignedByVCEK, chip[:8], snp.Report{ChipID: chip}, true},
		{"one that begins alike", snp.SignedByVCEK, chip[:8], snp.Report{ChipID: longer}, false},
		{"one that ends otherwise", snp.SignedByVCEK, longer[:], snp.Report{ChipID: chip}, false},
		{"no chip", snp.SignedByVCEK, chip[:], snp.Report{}, false},
		{"masked", snp.SignedByVCEK, chip[:], snp.Report{MaskChipKey: true}, true},
		{"a VLEK", snp.SignedByVLEK, nil, snp.Report{ChipID: chip}, true},
	} {
		tcb := snp.TCB{SNP: 1}.Version()
		e := &endorsement{kind: c.kind, hwid: c.hwid, tcb: tcb}
		if got := e.endorsesChip(&c.report); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		c.report.ReportedTCB = tcb
		if got := rank(&c.report, e); got == 0 != c.want {
			t.Errorf("%s: rank %d", c.name, got)
		}
		e.tcb = snp.TCB{SNP: 2}.Version()
		if got := rank(&c.report, e); got != 1 {
			t.Errorf("%s, of another TCB: rank %d, want 1", c.name, got)
		}
	}
	for certificate, lines := range map[string][]string{
		"Milan": {"Milan"}, "Genoa": {"Genoa"}, "Bergamo": {"Genoa"}, "Siena": {"Genoa"}, "Turin": {"Turin"}, "": nil,
	} {
		for _, line := range []string{"Milan", "Genoa", "Turin"} {
			if got := (&endorsement{line: certificate}).ofLine(line); got != slices.Contains(lines, line) {
				t.Errorf("a certificate for %q is of the line %s: %v", certificate, line, got)
			}
		}
	}
	genoa := snp.CPUID{Family: 0x19, Model: 0x11}
	for version, want := range map[uint32]snp.Product{2: "Milan", 3: "Genoa", 5: "Genoa"} {
		if got := (&endorsement{line: "Milan"}).product(&snp.Report{Version: version, CPUID: genoa}); got != want {
			t.Errorf("version %d: the product is %s, want %s", version, got, want)
		}
	}
}

// TestChainKey: a chain is remembered for all that it was verified with, and no more chains than are allowed.
func TestChainKey(t *testing.T) {
	cpuid := snp.CPUID{Family: 0x19, Model: 1, Stepping: 1}
	base := snp.Report{Version: 3, CPUID: cpuid, SigningKey: snp.SignedByVLEK}
	key := func(change func(*snp.Report)) [32]byte {
		r := base
		change(&r)
		return chainKey(&r, []byte("certificate"))
	}
	if chainKey(&base, []byte("certificate")) == chainKey(&base, []byte("certificatf")) {
		t.Error("two certificates have one key")
	}
	for name, c := range map[string]struct {
		change func(*snp.Report)
		same   bool
	}{
		"version 5":   {func(r *snp.Report) { r.Version = 5 }, true},
		"another TCB": {func(r *snp.Report) { r.ReportedTCB.Raw++ }, true},
		"version 2":   {func(r *snp.Report) { r.Version = 2 }, false},
		"VCEK":        {func(r *snp.Report) { r.SigningKey = snp.SignedByVCEK }, false},
		"family":      {func(r *snp.Report) { r.CPUID.Family++ }, false},
		"model":       {func(r *snp.Report) { r.CPUID.Model++ }, false},
	} {
		if same := key(c.change) == key(func(*snp.Report) {}); same != c.same {
			t.Errorf("%s: the same key: %v, want %v", name, same, c.same)
		}
	}

	m := newMachine(t, time.Now(), func(*sim.Options) {})
	for _, c := range []struct{ before, after int }{{0, 1}, {maxChains - 1, maxChains}, {maxChains, 1}} {
		v := m.warm.fresh()
		for i := range c.before {
			v.chains[[32]byte{byte(i), byte(i >> 8)}] = nil
		}
		if got := v.Appraise(time.Now(), m.report, [][]byte{m.cert}); !genuine(got) || len(v.chains) != c.after {
			t.Errorf("with %d chains: %s, %d are remembered, want %d", c.before, got.Code, len(v.chains), c.after)
		}
	}
}

// TestPeriod is what all certificates of a chain have in common, with those that bound it.
func TestPeriod(t *testing.T) {
	day := func(n int) time.Time { return time.Unix(0, 0).AddDate(0, 0, n) }
	cert := func(name string, from, to int) *x509.Certificate {
		return &x509.Certificate{Subject: pkix.Name{CommonName: name}, NotBefore: day(from), NotAfter: day(to)}
	}
	a, b, c := cert("a", 1, 9), cert("b", 3, 8), cert("c", 2, 7)
	for _, chain := range [][]*x509.Certificate{{a, b, c}, {a, c, b}, {b, a, c}, {b, c, a}, {c, a, b}, {c, b, a}} {
		want := period{notBefore: day(3), notAfter: day(7), first: "b", last: "c"}
		if got := periodOf(chain...); got != want {
			t.Errorf("period %+v, want %+v", got, want)
		}
	}
}

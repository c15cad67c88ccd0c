package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"sevagent/internal/evidence"
	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/internal/snp"
)

// flips are genuine documents with a bit changed in the report or the certificate.
func (g *generator) flips(b base, s *signer) {
	g.t.Helper()
	for _, f := range []struct {
		name    string
		offset  int
		mask    byte
		refused []string
	}{
		{"VERSION", 0x00, 1, []string{"report", "signature"}},
		{"VERSION to 0", 0x00, 5, []string{"report", "signature", "malformed"}},
		{"GUEST_SVN", 0x04, 1, []string{"signature"}},
		{"POLICY, SMT", 0x0A, 1, []string{"signature"}},
		{"POLICY, DEBUG", 0x0A, 8, []string{"signature"}},
		{"POLICY, reserved bit", 0x0F, 0x80, []string{"report", "signature"}},
		{"FAMILY_ID", 0x10, 1, []string{"signature"}},
		{"IMAGE_ID", 0x2F, 0x80, []string{"signature"}},
		{"VMPL", 0x30, 1, []string{"signature"}},
		{"SIGNATURE_ALGO", 0x34, 1, []string{"report", "signature"}},
		{"CURRENT_TCB", 0x3F, 1, []string{"signature"}},
		{"PLATFORM_INFO", 0x40, 1, []string{"signature"}},
		{"AUTHOR_KEY_EN", 0x48, 1, []string{"signature"}},
		{"MASK_CHIP_KEY", 0x48, 2, []string{"signature"}},
		{"SIGNING_KEY, VCEK", 0x48, 4, []string{"certificate", "signature", "malformed"}},
		{"SIGNING_KEY, none", 0x48, 0x18, []string{"report", "certificate", "signature", "malformed"}},
		{"a reserved flag", 0x49, 1, []string{"report", "signature"}},
		{"reserved bytes behind the flags", 0x4C, 1, []string{"report", "signature"}},
		{"REPORT_DATA, first bit", 0x50, 0x80, []string{"malformed", "report_data", "signature"}},
		{"REPORT_DATA, last bit", 0x8F, 1, []string{"malformed", "report_data", "signature"}},
		{"MEASUREMENT, first bit", 0x90, 0x80, []string{"signature"}},
		{"MEASUREMENT, last bit", 0xBF, 1, []string{"signature"}},
		{"HOST_DATA", 0xC0, 1, []string{"signature"}},
		{"ID_KEY_DIGEST", 0xE0, 1, []string{"signature"}},
		{"AUTHOR_KEY_DIGEST", 0x110, 1, []string{"signature"}},
		{"REPORT_ID", 0x140, 1, []string{"signature"}},
		{"REPORT_ID_MA", 0x160, 1, []string{"signature"}},
		{"REPORTED_TCB, bootloader", 0x180, 1, []string{"mismatch", "signature"}},
		{"REPORTED_TCB, reserved", 0x182, 1, []string{"mismatch", "signature"}},
		{"REPORTED_TCB, microcode", 0x187, 0x80, []string{"mismatch", "signature"}},
		{"CPUID family", 0x188, 3, []string{"product", "signature", "chain", "mismatch"}},
		{"CPUID family, unknown", 0x188, 0x80, []string{"product", "signature"}},
		{"CPUID model", 0x189, 0x10, []string{"product", "signature", "chain", "mismatch"}},
		{"CPUID stepping", 0x18A, 2, []string{"signature"}},
		{"reserved bytes behind CPUID", 0x18B, 1, []string{"report", "signature"}},
		{"CHIP_ID", 0x1A0, 1, []string{"signature", "mismatch"}},
		{"COMMITTED_TCB", 0x1E0, 1, []string{"signature"}},
		{"CURRENT_BUILD", 0x1E8, 1, []string{"signature"}},
		{"LAUNCH_TCB", 0x1F0, 1, []string{"signature"}},
		{"LAUNCH_MIT_VECTOR", 0x1F8, 1, []string{"signature"}},
		{"CURRENT_MIT_VECTOR", 0x207, 0x80, []string{"signature"}},
		{"reserved bytes, the first", 0x208, 1, []string{"report", "signature"}},
		{"reserved bytes, the last that is signed", 0x29F, 0x80, []string{"report", "signature"}},
		{"R, lowest bit", 0x2A0, 1, []string{"signature"}},
		{"R, highest bit", 0x2CF, 0x80, []string{"signature"}},
		{"R, above 384 bits", 0x2D0, 1, []string{"report", "signature"}},
		{"R, last byte", 0x2E7, 0x80, []string{"report", "signature"}},
		{"S, lowest bit", 0x2E8, 1, []string{"signature"}},
		{"S, highest bit", 0x317, 0x80, []string{"signature"}},
		{"S, above 384 bits", 0x318, 1, []string{"report", "signature"}},
		{"S, last byte", 0x32F, 0x80, []string{"report", "signature"}},
		{"behind the signature", 0x330, 1, []string{"report"}},
		{"the last byte", 0x49F, 1, []string{"report"}},
	} {
		g.add(b, "flip", "report, "+f.name, b.flips("report", f.offset, f.mask), f.refused...)
	}
	der := b.m.certificates()[0]
	cert := must.Get(x509.ParseCertificate(der))(g.t, "parse the certificate")
	find := func(part []byte) int {
		for i := range der {
			if len(der)-i >= len(part) && string(der[i:i+len(part)]) == string(part) {
				return i
			}
		}
		g.t.Fatalf("the certificate has no %x", part)
		return 0
	}
	spki := find(cert.RawSubjectPublicKeyInfo)
	tcb := find([]byte{0x9C, 0x78, 1, 3, 1}) // 1.3.6.1.4.1.3704.1.3.1
	any := []string{"malformed", "certificate", "signature", "chain", "expired", "mismatch", "region"}
	for _, f := range []struct {
		name    string
		offset  int
		mask    byte
		refused []string
	}{
		{"outermost tag", 0, 1, []string{"malformed", "certificate", "chain"}},
		{"outermost length", 3, 1, []string{"malformed", "certificate"}},
		{"serial number", find([]byte{2, 3, 0x12, 0x34, 0x56}) + 4, 8, []string{"chain"}},
		{"signature algorithm", find([]byte{0x01, 0x01, 0x0A}) + 2, 1, any},
		{"issuer", find([]byte("SEV-VLEK-Milan")), 1, []string{"chain"}},
		{"year of the end", find([]byte(cert.NotAfter.Format("060102150405Z"))) + 1,
			1, []string{"chain", "expired", "certificate", "malformed"}},
		{"curve", spki + 10, 1, any},
		{"key, form", spki + 23, 2, any},
		{"key, X", spki + 30, 1, any},
		{"key, Y", spki + 119, 0x80, any},
		{"TCB, bootloader", tcb + 9, 1, []string{"mismatch", "chain"}},
		{"TCB, arc", tcb + 4, 2, any},
		{"CSP_ID", find([]byte("us-east-2")), 1, []string{"chain", "region"}},
		{"product", find([]byte{0x16, 5, 'M', 'i', 'l', 'a', 'n'}) + 2, 1, []string{"chain", "mismatch"}},
		{"signature, first byte", len(der) - 256, 1, []string{"chain"}},
		{"signature, last byte", len(der) - 1, 1, []string{"chain"}},
		{"unused bits of the signature", len(der) - 257, 1, []string{"malformed", "certificate", "chain"}},
	} {
		g.add(b, "flip", "certificate, "+f.name, b.flips("certificate", f.offset, f.mask), f.refused...)
	}
}

// reports are well signed reports that no firmware makes, for the claims of b.
func (g *generator) reports(b base, s *signer) {
	g.t.Helper()
	le := binary.LittleEndian
	for _, r := range []struct {
		name    string
		alter   func(r []byte)
		refused []string
	}{
		{"version 3", func(r []byte) { r[0] = 3; clear(r[0x1F8:0x208]) }, nil},
		{"version 4", func(r []byte) { r[0] = 4; clear(r[0x1F8:0x208]) }, nil},
		{"version 4 with mitigation vectors", func(r []byte) { r[0] = 4 }, []string{"report"}},
		{"version 1", func(r []byte) { r[0] = 1; clear(r[0x188:0x18B]); clear(r[0x1F8:0x208]) }, []string{"report"}},
		{"version 6", func(r []byte) { r[0] = 6 }, []string{"report"}},
		{"version of 32 bits", func(r []byte) { r[3] = 1 }, []string{"report"}},
		{"version 2 without CPUID", func(r []byte) { r[0] = 2; clear(r[0x188:0x18B]); clear(r[0x1F8:0x208]) }, nil},
		{"version 2 with CPUID", func(r []byte) { r[0] = 2; clear(r[0x1F8:0x208]) }, []string{"report"}},
		{"another signature algorithm", func(r []byte) { r[0x34] = 2 }, []string{"report", "signature"}},
		{"policy without bit 17", func(r []byte) { r[0x0A] &^= 2 }, []string{"report"}},
		{"unknown bit 26 of the policy", func(r []byte) { r[0x0B] |= 4 }, []string{"report"}},
		{"unknown bit 63 of the policy", func(r []byte) { r[0x0F] |= 0x80 }, []string{"report"}},
		{"unknown flag", func(r []byte) { r[0x48] |= 0x20 }, []string{"report"}},
		{"signing key 2", func(r []byte) { r[0x48] = 2 << 2 },
			[]string{"report", "signature", "certificate", "malformed"}},
		{"signing key 7", func(r []byte) { r[0x48] = 7 << 2 },
			[]string{"report", "signature", "certificate", "malformed"}},
		{"reserved byte 0x4C", func(r []byte) { r[0x4C] = 1 }, []string{"report"}},
		{"reserved byte 0x18B", func(r []byte) { r[0x18B] = 1 }, []string{"report"}},
		{"reserved byte 0x19F", func(r []byte) { r[0x19F] = 1 }, []string{"report"}},
		{"reserved byte 0x1EB", func(r []byte) { r[0x1EB] = 1 }, []string{"report"}},
		{"reserved byte 0x1EF", func(r []byte) { r[0x1EF] = 1 }, []string{"report"}},
		{"reserved byte 0x208", func(r []byte) { r[0x208] = 1 }, []string{"report"}},
		{"reserved byte 0x29F", func(r []byte) { r[0x29F] = 1 }, []string{"report"}},
		{"stepping of more than four bits", func(r []byte) { r[0x18A] = 0x11 }, []string{"report"}},
		{"unknown family", func(r []byte) { r[0x188] = 0x1B }, []string{"product"}},
		{"unknown model", func(r []byte) { r[0x189] = 0x40 }, []string{"product"}},
		{"of a Genoa, with a Milan's certificate", func(r []byte) { r[0x189] = 0x11 }, []string{"chain", "mismatch"}},
		{"of a Turin, with a Milan's certificate", func(r []byte) { r[0x188], r[0x189] = 0x1A, 2 },
			[]string{"chain", "mismatch"}},
		{"lower TCB than the certificate's", func(r []byte) { r[0x186]-- }, []string{"mismatch"}},
		{"higher TCB than the certificate's", func(r []byte) { r[0x187]++ }, []string{"mismatch"}},
		{"reserved byte of the TCB", func(r []byte) { r[0x182] = 1 }, []string{"mismatch"}},
		{"last reserved byte of the TCB", func(r []byte) { r[0x185] = 1 }, []string{"mismatch"}},
		{"debugging allowed", func(r []byte) { r[0x0A] |= 8 }, nil}, // for policies
		{"VMPL 1", func(r []byte) { r[0x30] = 1 }, nil},
		{"other firmware committed", func(r []byte) { r[0x1E6]-- }, nil},
	} {
		g.add(b, "report", r.name, b.signed(s.report(b.data(), r.alter), nil), r.refused...)
	}
	report := s.report(b.data(), nil)
	number := func(at int) *big.Int {
		field := slices.Clone(report[at : at+72])
		slices.Reverse(field)
		return new(big.Int).SetBytes(field)
	}
	n := elliptic.P384().Params().N
	r, v := number(snp.SignedSize), number(snp.SignedSize+72)
	for name, pair := range ordered(map[string][2]*big.Int{
		"R above the order": {new(big.Int).Add(r, n), v}, "S above the order": {r, new(big.Int).Add(v, n)},
		"R zero": {new(big.Int), v}, "S zero": {r, new(big.Int)}, "both zero": {new(big.Int), new(big.Int)},
		"R and S swapped": {v, r}, "R the order": {n, v},
	}) {
		changed := slices.Clone(report)
		setSignature(changed, pair[0], pair[1])
		g.add(b, "signature", name, b.signed(changed, nil), "signature", "report")
	}
	changed := slices.Clone(report)
	for i := range 2 {
		slices.Reverse(changed[snp.SignedSize+72*i:][:48])
	}
	g.add(b, "signature", "big-endian", b.signed(changed, nil), "signature")
	changed = slices.Clone(report)
	le.PutUint32(changed[4:], 1)
	g.add(b, "signature", "of another report", b.signed(changed, nil), "signature")
	for name, size := range ordered(map[string]int{"short": snp.ReportSize - 1, "empty": 0}) {
		g.add(b, "structure", "report "+name,
			and(put("report", string(must2(json.Marshal(report[:size])))), vector{Wrap: true}), "malformed")
	}
	g.add(b, "structure", "report long",
		and(put("report", string(must2(json.Marshal(append(report, 0))))), vector{Wrap: true}), "malformed")
}

// certificates are certificates for the key of b's report that AMD does not issue, or not for this report.
func (g *generator) certificates(b base, s, foreign *signer) {
	g.t.Helper()
	oid := func(arcs ...int) asn1.ObjectIdentifier {
		return append(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}, arcs...)
	}
	find := func(c *x509.Certificate, arcs ...int) *pkix.Extension {
		i := slices.IndexFunc(c.ExtraExtensions, func(e pkix.Extension) bool { return e.Id.Equal(oid(arcs...)) })
		return &c.ExtraExtensions[i]
	}
	set := func(value []byte, arcs ...int) func(*x509.Certificate) {
		return func(c *x509.Certificate) { find(c, arcs...).Value = value }
	}
	without := func(arcs ...int) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.ExtraExtensions = slices.DeleteFunc(c.ExtraExtensions,
				func(e pkix.Extension) bool { return e.Id.Equal(oid(arcs...)) })
		}
	}
	with := func(id asn1.ObjectIdentifier, critical bool, value ...byte) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: id, Critical: critical, Value: value})
		}
	}
	ia5 := func(text string) []byte { return append([]byte{0x16, byte(len(text))}, text...) }
	form := []string{"certificate", "chain", "malformed"}
	for _, c := range []struct {
		name    string
		alter   func(*x509.Certificate)
		refused []string
	}{
		{"issued again", nil, nil},
		{"bootloader higher", set([]byte{2, 1, 5}, 3, 1), []string{"mismatch"}},
		{"TEE higher", set([]byte{2, 1, 1}, 3, 2), []string{"mismatch"}},
		{"SNP lower", set([]byte{2, 1, 28}, 3, 3), []string{"mismatch"}},
		{"reserved 4 set", set([]byte{2, 1, 1}, 3, 4), []string{"mismatch"}},
		{"reserved 5 set", set([]byte{2, 1, 1}, 3, 5), []string{"mismatch"}},
		{"reserved 6 set", set([]byte{2, 1, 1}, 3, 6), []string{"mismatch"}},
		{"reserved 7 set", set([]byte{2, 1, 1}, 3, 7), []string{"mismatch"}},
		{"microcode lower", set([]byte{2, 2, 0, 221}, 3, 8), []string{"mismatch"}},
		{"microcode of 9 bits", set([]byte{2, 2, 1, 222}, 3, 8), form},
		{"microcode below zero", set([]byte{2, 1, 222}, 3, 8), form},
		{"bootloader with a zero before it", set([]byte{2, 2, 0, 4}, 3, 1), form},
		{"bootloader followed by a byte", set([]byte{2, 1, 4, 0}, 3, 1), form},
		{"bootloader as an ENUMERATED", set([]byte{10, 1, 4}, 3, 1), form},
		{"bootloader empty", set(nil, 3, 1), form},
		{"without structVersion", without(1), form},
		{"without product", without(2), form},
		{"without bootloader", without(3, 1), form},
		{"without microcode", without(3, 8), form},
		{"without CSP_ID", without(5), append([]string{"region"}, form...)},
		{"of Genoa", set(ia5("Genoa"), 2), []string{"mismatch", "chain"}},
		{"of Turin", set(ia5("Turin"), 2), []string{"mismatch", "chain"}},
		{"of a stepping", set(ia5("Milan-B0"), 2), nil},
		{"product as UTF8String", set([]byte{0x0C, 5, 'M', 'i', 'l', 'a', 'n'}, 2), form},
		{"CSP_ID of another region", set(ia5("CN=cc-eu-west-1.amazonaws.com"), 5), []string{"region"}},
		{"CSP_ID with a suffix", set(ia5("CN=cc-us-east-2.amazonaws.com.example.org"), 5), []string{"region"}},
		{"CSP_ID with a prefix", set(ia5("CN=x, CN=cc-us-east-2.amazonaws.com"), 5), []string{"region"}},
		{"CSP_ID with a line feed", set(ia5("CN=cc-us-east-2.amazonaws.com\n"), 5),
			[]string{"region", "certificate", "chain"}},
		{"CSP_ID in another case", set(ia5("CN=cc-US-EAST-2.amazonaws.com"), 5), []string{"region"}},
		{"CSP_ID with another dot", set(ia5("CN=cc-us-east-2xamazonaws.com"), 5), []string{"region"}},
		{"CSP_ID empty", set([]byte{0x16, 0}, 5), append([]string{"region"}, form...)},
		{"with a HWID", with(oid(4), false, make([]byte, 64)...), form},
		{"with an FMC", with(oid(3, 9), false, 2, 1, 0), append([]string{"mismatch"}, form...)},
		{"with an unknown extension of AMD's", with(oid(9), false, 2, 1, 0), form},
		{"with an unknown extension", with(asn1.ObjectIdentifier{1, 2, 3}, false, 5, 0), form},
		{"with a TCB extension twice", with(oid(3, 1), false, 2, 1, 4), form},
		{"with a critical extension", with(asn1.ObjectIdentifier{1, 2, 3}, true, 5, 0), form},
		{"with a critical TCB", func(c *x509.Certificate) { find(c, 3, 1).Critical = true }, form},
		{"for TLS servers",
			func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, form},
		{"of an authority", func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }, form},
		{"of another organisation",
			func(c *x509.Certificate) { c.Subject.Organization = []string{"Advanced Micro Device"} }, form},
		{"of another name", func(c *x509.Certificate) { c.Subject.CommonName = "SEV-VLEKX" }, form},
		{"of a VCEK's name", func(c *x509.Certificate) { c.Subject.CommonName = "SEV-VCEK" }, form},
		{"with a name more", func(c *x509.Certificate) { c.Subject.SerialNumber = "1" }, form},
		{"signed with PKCS #1 v1.5", func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA384WithRSA }, form},
		{"signed with SHA-256", func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA256WithRSAPSS }, form},
		{"signed with SHA-512", func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA512WithRSAPSS }, form},
		{"expired", func(c *x509.Certificate) { c.NotAfter = c.NotBefore.AddDate(0, 1, 0) }, []string{"expired"}},
		{"not yet valid", func(c *x509.Certificate) { c.NotBefore = c.NotAfter.AddDate(0, -1, 0) },
			[]string{"expired"}},
	} {
		g.add(b, "certificate", c.name, b.signed(nil, s.certificate(c.alter)), c.refused...)
	}
	g.add(b, "certificate", "in AMD's older form", b.signed(nil, s.older(s.certificate(nil))))
	for _, issuer := range []string{"ask", "ark"} {
		g.add(b, "chain", "issued by the "+strings.ToUpper(issuer),
			b.signed(nil, s.issue(issuer, &s.key.PublicKey, nil)), "chain")
	}
	g.add(b, "chain", "issued by somebody else's ASVK",
		b.signed(nil, foreign.issue("asvk", &s.key.PublicKey, nil)), "chain")
	ourID := func(c *x509.Certificate) {
		value := append([]byte{0x30, 22, 0x80, 20}, s.authority["asvk"].SubjectKeyId...)
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 35}, Value: value})
	}
	g.add(b, "chain", "issued by somebody else's ASVK, with the identifier of the right one",
		b.signed(nil, foreign.issue("asvk", &s.key.PublicKey, ourID)), "chain")
	g.add(b, "chain", "all by somebody else",
		b.signed(foreign.report(b.data(), nil), foreign.certificate(nil)), "chain")
	g.add(b, "chain", "the ASVK as the key's certificate", b.signed(nil, s.authority["asvk"].Raw), form...)
	p256 := must.Get(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(g.t, "make a key")
	g.add(b, "certificate", "key on P-256", b.signed(nil, s.issue("asvk", &p256.PublicKey, nil)), form...)
	g.add(b, "certificate", "RSA key", b.signed(nil, s.issue("asvk", &s.keys["ark"].PublicKey, nil)), form...)
	other := must.Get(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(g.t, "make a key")
	g.add(b, "signature", "certificate of another key",
		b.signed(nil, s.issue("asvk", &other.PublicKey, nil)), "signature")
}

// committed are claims of a bad form that a report commits to, as root of a node can make it: E35 and more.
func (g *generator) committed(b base, s *signer) {
	g.t.Helper()
	good := request("client", nonce(1, 32), key(evidence.BindClient, 0xab), evidence.HostCaller(0), instance)
	uid := uint32(0)
	for _, c := range []struct {
		class, name string
		change      func(*evidence.Claims)
	}{
		{"E35", "purpose anything, task of escapes", func(c *evidence.Claims) {
			c.Purpose, c.Caller = "anything", evidence.ContainerCaller(0, container, "\x1b[2J\x1b[Hverdict pass\n")
		}},
		{"E35", "purpose anything", func(c *evidence.Claims) { c.Purpose = "anything" }},
		{"E35", "no purpose", func(c *evidence.Claims) { c.Purpose = "" }},
		{"E35", "task of escapes",
			func(c *evidence.Claims) { c.Caller = evidence.ContainerCaller(0, container, "\x1b]0;title\x07\x1b[8m") }},
		{"E35", "task with a line feed",
			func(c *evidence.Claims) { c.Caller = evidence.ContainerCaller(0, container, task+"\n") }},
		{"E35", "task turned around",
			func(c *evidence.Claims) { c.Caller = evidence.ContainerCaller(0, container, task+"\u202e") }},
		{"E35", "task of a service", func(c *evidence.Claims) {
			c.Caller = evidence.ContainerCaller(0, container, strings.Replace(task, ":task/", ":service/", 1))
		}},
		{"E35", "task of 401 letters", func(c *evidence.Claims) {
			c.Caller = evidence.ContainerCaller(0, container, task+strings.Repeat("0", 401-len(task)))
		}},
		{"E35", "container in upper case",
			func(c *evidence.Claims) { c.Caller = evidence.ContainerCaller(0, strings.ToUpper(container), "") }},
		{"E35", "short container",
			func(c *evidence.Claims) { c.Caller = evidence.ContainerCaller(0, container[1:], "") }},
		{"E35", "container of no digits",
			func(c *evidence.Claims) { c.Caller = evidence.ContainerCaller(0, "", task) }},
		{"E35", "caller root", func(c *evidence.Claims) { c.Caller.Kind = "root" }},
		{"E35", "caller without a kind", func(c *evidence.Claims) { c.Caller.Kind = "" }},
		{"E35", "unknown caller with a uid", func(c *evidence.Claims) { c.Caller.Kind = evidence.CallerUnknown }},
		{"E35", "host without a uid", func(c *evidence.Claims) { c.Caller.UID = nil }},
		{"E35", "host with a container", func(c *evidence.Claims) {
			c.Caller = evidence.Caller{Kind: evidence.CallerHost, UID: &uid, ContainerID: container}
		}},
		{"E35", "unknown caller with a container", func(c *evidence.Claims) {
			c.Caller = evidence.Caller{Kind: evidence.CallerUnknown, ContainerID: container}
		}},
		{"E35", "binding peer", func(c *evidence.Claims) { c.Binding.Kind = "peer" }},
		{"E35", "binding none with a key", func(c *evidence.Claims) { c.Binding.Kind = evidence.BindNone }},
		{"E35", "binding without a key", func(c *evidence.Claims) { c.Binding.SPKISHA256 = nil }},
		{"E35", "key of 31 bytes", func(c *evidence.Claims) { c.Binding.SPKISHA256 = c.Binding.SPKISHA256[:31] }},
		{"E35", "instance of another kind", func(c *evidence.Claims) { c.Instance.ID = "mi-0123456789abcdef0" }},
		{"E35", "instance in upper case", func(c *evidence.Claims) { c.Instance.ID = "i-0123456789ABCDEF0" }},
		{"E35", "instance of seven digits", func(c *evidence.Claims) { c.Instance.ID = "i-0123456" }},
		{"E35", "a zone for a region", func(c *evidence.Claims) { c.Instance.Region = "us-east-2a" }},
		{"E35", "region with a line feed", func(c *evidence.Claims) { c.Instance.Region = "us-east-2\n" }},
		{"E35", "account of eleven digits", func(c *evidence.Claims) { c.Instance.AccountID = "11112222333" }},
		{"E35", "account of other digits", func(c *evidence.Claims) { c.Instance.AccountID = "11112222333\u0663" }},
		{"E35", "instance without an account", func(c *evidence.Claims) { c.Instance.AccountID = "" }},
		{"nonce", "of 15 bytes", func(c *evidence.Claims) { c.Nonce = c.Nonce[:15] }},
		{"nonce", "of 65 bytes", func(c *evidence.Claims) { c.Nonce = nonce(1, 65) }},
	} {
		claims := good
		c.change(&claims)
		m := g.document(claims, 0, nil, s.report(claims.Leaf(), nil), b.m.certificates()[0])
		v := b.signed(m.report(), nil)
		for _, name := range []string{"purpose", "caller", "binding", "instance", "eat_nonce", "report_data"} {
			if raw := (base{m: m}).raw(name); raw != b.raw(name) {
				v.Put[name] = json.RawMessage(raw)
			}
		}
		refused := []string{"malformed"}
		if c.class == "nonce" {
			refused = append(refused, "nonce")
		}
		g.add(b, c.class, "committed to: "+c.name, v, refused...)
	}
}

// products are genuine documents of other processors and keys, and what is hostile with them alone.
func (g *generator) products(genoa, turin, milan *signer) {
	g.t.Helper()
	claims := func(i int) evidence.Claims {
		return request("client", nonce(i, 24), key(evidence.BindClient, 0xab), evidence.HostCaller(0), instance)
	}
	vcek := func(o *sim.Options) {
		o.Signer, o.ChipID = snp.SignedByVCEK, [64]byte{1, 2, 3, 4, 5, 6, 7, 8}
		if o.Product != snp.Turin {
			o.ChipID[63] = 9
		}
	}
	for i, p := range []struct {
		name   string
		s      *signer
		change func(*sim.Options)
	}{
		{"milan-vcek", milan, vcek},
		{"genoa-vcek", genoa, vcek},
		{"genoa-vlek", genoa, func(*sim.Options) {}},
		{"bergamo-vcek", genoa, func(o *sim.Options) { vcek(o); o.Product = snp.Bergamo }},
		{"turin-vcek", turin,
			func(o *sim.Options) { vcek(o); o.TCB = snp.TCB{FMC: 1, Bootloader: 2, TEE: 3, SNP: 4, Microcode: 81} }},
		{"turin-vlek", turin,
			func(o *sim.Options) { o.TCB = snp.TCB{FMC: 1, Bootloader: 2, TEE: 3, SNP: 4, Microcode: 81} }},
	} {
		s := p.s.use(p.change)
		b := g.base(p.name, s, nil, 0, claims(10+i))
		g.add(b, "chain", "roots of another product alone", vector{Roots: "foreign.pem"}, "chain", "product")
		g.add(b, "expired", "a year later", vector{At: at().AddDate(1, 0, 0).Format(time.RFC3339)}, "expired")
		if p.name == "genoa-vcek" || p.name == "bergamo-vcek" {
			continue // as Milan's
		}
		arcs := []int{1, 2, 3, 5, 6, 7, 8}
		if p.s == turin {
			arcs = append(arcs, 9)
		} else {
			arcs = append(arcs, 4)
		}
		for _, arc := range arcs {
			raise := func(c *x509.Certificate) {
				for i, e := range c.ExtraExtensions {
					if e.Id.String() == fmt.Sprintf("1.3.6.1.4.1.3704.1.3.%d", arc) {
						value := slices.Clone(e.Value)
						value[len(value)-1]++
						c.ExtraExtensions[i].Value = value
					}
				}
			}
			g.add(b, "tcb", fmt.Sprintf("extension 3.%d one higher", arc),
				b.signed(nil, s.certificate(raise)), "mismatch")
		}
		if s.options.Signer == snp.SignedByVCEK {
			g.add(b, "region", "asked of a VCEK", vector{Region: "us-east-2"}, "region")
			g.add(b, "chip", "another CHIP_ID",
				b.signed(s.report(b.data(), func(r []byte) { r[0x1A0] ^= 1 }), nil), "mismatch")
			g.add(b, "chip", "the end of CHIP_ID",
				b.signed(s.report(b.data(), func(r []byte) { r[0x1DE] ^= 1 }), nil), "mismatch")
			g.add(b, "chip", "no CHIP_ID",
				b.signed(s.report(b.data(), func(r []byte) { clear(r[0x1A0:0x1E0]) }), nil), "mismatch")
			g.add(b, "chip", "masked CHIP_ID",
				b.signed(s.report(b.data(), func(r []byte) { clear(r[0x1A0:0x1E0]); r[0x48] |= 2 }), nil))
			wrapped := func(form ...byte) vector {
				return b.signed(nil, s.certificate(func(c *x509.Certificate) {
					for i, e := range c.ExtraExtensions {
						if e.Id.String() == "1.3.6.1.4.1.3704.1.4" {
							c.ExtraExtensions[i].Value = slices.Concat(form, []byte{byte(len(e.Value))}, e.Value)
						}
					}
				}))
			}
			g.add(b, "chip", "HWID in an OCTET STRING", wrapped(4), "certificate", "chain")
			g.add(b, "chip", "HWID in an OCTET STRING of a long form", wrapped(4, 0x81), "certificate", "chain")
			g.add(b, "chip", "HWID in a BIT STRING", wrapped(3), "certificate", "chain")
			g.add(b, "chip", "a VLEK by the report", b.signed(s.report(b.data(), func(r []byte) { r[0x48] = 4 }), nil),
				"certificate", "chain", "malformed")
		} else {
			g.add(b, "chip", "a VCEK by the report", b.signed(s.report(b.data(), func(r []byte) { r[0x48] = 0 }), nil),
				"certificate", "chain", "malformed")
		}
	}
}

package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/internal/snp"
)

// signer makes reports and certificates of a simulated processor, with an endorsement key of its own, so that it can
// also sign what no firmware and no AMD would.
type signer struct {
	t         testing.TB
	psp       *sim.PSP
	options   sim.Options
	key       *ecdsa.PrivateKey
	authority map[string]*x509.Certificate // ark, ask and asvk
	keys      map[string]*rsa.PrivateKey
}

func newSigner(t testing.TB, product snp.Product) *signer {
	t.Helper()
	o := sim.DefaultOptions(at())
	o.Product = product
	o.NotBefore, o.NotAfter = at().AddDate(0, -9, 0), at().AddDate(0, 3, 0)
	s := &signer{t: t, options: o, authority: make(map[string]*x509.Certificate),
		keys: make(map[string]*rsa.PrivateKey)}
	s.psp = must.Get(sim.New(o))(t, "make a simulator")
	s.key = must.Get(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t, "make an endorsement key")
	dir := t.TempDir()
	must.Do(t, s.psp.Save(dir), "save the simulator's root")
	for _, name := range []string{"ark", "ask", "asvk"} {
		keyBlock, rest := pem.Decode(must.Get(os.ReadFile(filepath.Join(dir, name+".pem")))(t, "read %s", name))
		certBlock, _ := pem.Decode(rest)
		key := must.Get(x509.ParsePKCS8PrivateKey(keyBlock.Bytes))(t, "parse a key")
		s.keys[name] = key.(*rsa.PrivateKey)
		s.authority[name] = must.Get(x509.ParseCertificate(certBlock.Bytes))(t, "parse a certificate")
	}
	return s
}

// report returns a report over data, signed after alter has changed it.
func (s *signer) report(data [64]byte, alter func(report []byte)) []byte {
	s.t.Helper()
	report, _, err := s.psp.Report(data, 0)
	must.Do(s.t, err, "get a report")
	if alter != nil {
		alter(report)
	}
	sum := sha512.Sum384(report[:snp.SignedSize])
	r, v, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	must.Do(s.t, err, "sign the report")
	setSignature(report, r, v)
	return report
}

// setSignature writes R and S, 72 bytes each, little-endian.
func setSignature(report []byte, r, s *big.Int) {
	for i, n := range []*big.Int{r, s} {
		field := report[snp.SignedSize+72*i:][:72]
		n.FillBytes(field)
		slices.Reverse(field)
	}
}

// certificate returns the certificate of the endorsement key, DER, signed by the authority that the report's kind of
// key calls for after alter has changed it.
func (s *signer) certificate(alter func(*x509.Certificate)) []byte {
	s.t.Helper()
	issuer := "asvk"
	if s.options.Signer == snp.SignedByVCEK {
		issuer = "ask"
	}
	return s.issue(issuer, &s.key.PublicKey, alter)
}

func (s *signer) issue(issuer string, key any, alter func(*x509.Certificate)) []byte {
	s.t.Helper()
	table := must.Get(snp.ParseCertTable(s.psp.CertTable()))(s.t, "parse the certificate table")
	cert := must.Get(x509.ParseCertificate(table[0].Data))(s.t, "parse the certificate")
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: cert.Subject, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter,
		SignatureAlgorithm: x509.SHA384WithRSAPSS,
		ExtraExtensions: slices.DeleteFunc(cert.Extensions, func(e pkix.Extension) bool {
			return !strings.HasPrefix(e.Id.String(), "1.3.6.1.4.1.3704.")
		}),
	}
	if alter != nil {
		alter(template)
	}
	return must.Get(x509.CreateCertificate(rand.Reader, template, s.authority[issuer], key, s.keys[issuer]))(s.t,
		"issue a certificate")
}

// use changes what reports and certificates show, but for the key.
func (s *signer) use(change func(*sim.Options)) *signer {
	s.t.Helper()
	changed := *s
	change(&changed.options)
	must.Do(s.t, s.psp.SetOptions(changed.options), "change the simulator's options")
	return &changed
}

// older spells out the trailer field in the signature algorithm of a certificate, as AMD's older ones do, and signs it
// again.
func (s *signer) older(der []byte) []byte {
	s.t.Helper()
	type raw = asn1.RawValue
	cert := must.Get(x509.ParseCertificate(der))(s.t, "parse a certificate")
	var members []raw
	_, err := asn1.Unmarshal(cert.RawTBSCertificate, &members)
	must.Do(s.t, err, "take the certificate apart")
	// SEQUENCE of the object identifier, 11 bytes, and of the parameters, a SEQUENCE whose length is its second byte.
	algorithm := slices.Clone(members[2].FullBytes)
	algorithm = append(algorithm, 0xA3, 3, 2, 1, 1)
	algorithm[1] += 5
	algorithm[2+11+1] += 5
	members[2] = raw{FullBytes: algorithm}
	tbs := must.Get(asn1.Marshal(members))(s.t, "put the certificate together")
	sum := sha512.Sum384(tbs)
	signature := must.Get(rsa.SignPSS(rand.Reader, s.keys["asvk"],
		crypto.SHA384, sum[:], &rsa.PSSOptions{SaltLength: 48}))(
		s.t, "sign the certificate")
	return must.Get(asn1.Marshal([]any{
		raw{FullBytes: tbs}, raw{FullBytes: algorithm}, asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)},
	}))(s.t, "put the certificate together")
}

// serial is the certificates' number; AMD's is 0, which RFC 5280 forbids and crypto/x509 refuses.
const serial = 0x123456

// at is the time that the vectors are for.
func at() time.Time { return time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC) }

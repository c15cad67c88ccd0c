package certset

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/must"
)

// Bundles of anchors are made by others: what cannot be used is left out by name, and spoils nothing but a set that has
// nothing else.
func TestOddAnchors(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	rsaKey := must.Get(rsa.GenerateKey(rand.Reader, 2048))(t, "make a key")
	weak := must.Get(rsa.GenerateKey(rand.Reader, 1024))(t, "make a weak key")
	p224 := must.Get(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))(t, "make a key on P-224")
	sha1 := func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA1WithRSA }
	leaf, _ := ca.Leaf(t, "leaf")
	unparsed := mtlstest.NewCA(t, "old", nil).Cert.Raw
	unparsed[bytes.Index(unparsed, []byte("\xa0\x03\x02\x01\x02"))+4] = 7 // no version of X.509

	for name, c := range map[string]struct {
		text, want string
	}{
		"weak key": {mtlstest.CertPEM(mtlstest.NewCAFor(t, "weak", weak, nil, mtlstest.Valid(-2*time.Hour, -time.Hour)).Cert),
			`"CN=weak": RSA key of 1024 bits, want at least 2048; it is left out (SHA-256 `},
		"curve": {mtlstest.CertPEM(mtlstest.NewCAFor(t, "curve", p224, nil).Cert), `"CN=curve": ECDSA key on P-224`},
		"SHA-1": {mtlstest.CertPEM(mtlstest.NewCA(t, "cross", mtlstest.NewCAFor(t, "signer", rsaKey, nil), sha1).Cert),
			`"CN=cross": signed with SHA1-RSA`},
		"leaf":     {mtlstest.CertPEM(leaf), `"CN=leaf": is not a CA certificate: it needs the extension basicConstraints`},
		"unparsed": {pemBlock("CERTIFICATE", unparsed), `certificate 2, "CN=old", does not parse: `},
		"no certificate": {pemBlock("CERTIFICATE", []byte("\x30\x00")),
			`certificate 2, of an unknown subject, does not parse: `},
	} {
		fields := ca.ClientFields(t, "node")
		own := fields[caCert].(string)
		fields[caCert] = own + c.text
		s, err := set(fields.JSON(t))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if s.file("ca.crt") != own || len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "ca_cert: "+c.want) {
			t.Errorf("%s: warnings %q, want %s; ca.crt is\n%s", name, s.Warnings, c.want, s.file("ca.crt"))
		}
		fields[caCert] = c.text
		if _, err := set(fields.JSON(t)); err == nil {
			t.Errorf("%s: nothing else is there, and it is published", name)
		}
	}
}

// Several secrets may give anchors. What is restored of them says that the secrets have to be read again.
func TestAnchorsOfSeveralSecrets(t *testing.T) {
	ca, first, second := mtlstest.NewCA(t, "ca", nil), mtlstest.NewCA(t, "first", nil), mtlstest.NewCA(t, "second", nil)
	anchors := func(cas ...*mtlstest.CA) []byte {
		var list certs
		for _, ca := range cas {
			list = append(list, ca.Cert)
		}
		return mtlstest.Fields{caCert: mtlstest.CertPEM(list...)}.JSON(t)
	}
	s := mustSet(t, anchors(first, ca), ca.PairSecret(t, "node"), anchors(second, ca))
	if got, want := s.file("ca.crt"), mtlstest.CertPEM(first.Cert, ca.Cert, second.Cert); got != want {
		t.Errorf("ca.crt is\n%s\nwant\n%s", got, want)
	}
	again := must.Get(Restore(s.Origins(), s.Files, nil, s.Warnings, time.Now()))(t, "restore the set")
	var partial []bool
	for _, b := range again.Bundles {
		partial = append(partial, b.Partial())
	}
	if diff := cmp.Diff([]bool{true, false, true}, partial); diff != "" || dump(again) != dump(s) {
		t.Errorf("partial bundles (-want +got):\n%s; the files are\n%s\nwant\n%s", diff, dump(again), dump(s))
	}
}

// What does not fit into one secret may come from several, within bounds, and is restored as a whole.
func TestManyAnchorsOfSeveralSecrets(t *testing.T) {
	key := mtlstest.NewKey(t)
	anchors := func(from, to int) []byte {
		var list certs
		for i := from; i < to; i++ {
			list = append(list, mtlstest.NewCAFor(t, fmt.Sprint("ca-", i), key, nil).Cert)
		}
		return mtlstest.Fields{caCert: mtlstest.CertPEM(list...)}.JSON(t)
	}
	s := mustSet(t, anchors(0, 100), anchors(100, 200), anchors(200, 300))
	again := must.Get(Restore(s.Origins(), s.Files, nil, s.Warnings, time.Now()))(t, "restore the set")
	if dump(again) != dump(s) {
		t.Error("300 anchors of three secrets are not restored as they were")
	}
	for want, contents := range map[string][][]byte{
		"secret b: ca_cert: holds 101 certificates, at most 100 are allowed": {anchors(0, 60), anchors(60, 161)},
		"secret d: ca_cert: holds, with that of other secrets, 301 certificates, at most 300 are allowed": {
			anchors(0, 100), anchors(100, 200), anchors(200, 300), anchors(300, 301)},
	} {
		if _, err := Assemble(mustBundles(t, contents...), nil, time.Now(), nil); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// With peer_ca, whom readers trust is not who has issued their certificates.
func TestPeerCA(t *testing.T) {
	public, private := mtlstest.NewCA(t, "public", nil), mtlstest.NewCA(t, "private", nil)
	fields := public.ClientFields(t, "node")
	fields[peerCA] = mtlstest.CertPEM(private.Cert)
	s := mustSet(t, fields.JSON(t))
	if got := s.file("ca.crt"); got != mtlstest.CertPEM(private.Cert) || s.file("issuer.crt") != fields[caCert] {
		t.Errorf("ca.crt is\n%s\nwant the private CA; issuer.crt is\n%s", got, s.file("issuer.crt"))
	}
	again := must.Get(Restore(s.Origins(), s.Files, nil, s.Warnings, time.Now()))(t, "restore the set")
	if dump(again) != dump(s) {
		t.Errorf("restored\n%s\nwant\n%s", dump(again), dump(s))
	}
	var o Overlap
	private2 := mtlstest.NewCA(t, "private", nil)
	fields[peerCA] = mtlstest.CertPEM(private2.Cert)
	carried := o.Carry(s, mustBundles(t, fields.JSON(t)), time.Hour, time.Now())
	if len(carried) != 1 || !carried[0].Cert.Equal(private.Cert) {
		t.Errorf("carried %v, want the peers' CA that was dropped", carried)
	}

	delete(fields, caCert)
	if _, err := set(fields.JSON(t)); err == nil || !strings.Contains(err.Error(), "comes without ca_cert to lead to") {
		t.Errorf("without ca_cert: %v", err)
	}
	fields[caCert] = mtlstest.CertPEM(private.Cert)
	if _, err := set(fields.JSON(t)); !isRejected(err) {
		t.Errorf("with a ca_cert that has not issued the certificate: %v", err)
	}
}

func isRejected(err error) bool {
	_, ok := errors.AsType[*RejectError](err)
	return ok
}

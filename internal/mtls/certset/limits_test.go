package certset

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/must"
)

// bigKey is an RSA key of any size that takes no time to make, and signs nothing: its modulus is no product of primes,
// which nobody can see.
type bigKey struct {
	bits     uint
	exponent int
}

func (k bigKey) Public() crypto.PublicKey {
	n := new(big.Int).Lsh(big.NewInt(1), k.bits-1)
	return &rsa.PublicKey{N: n.SetBit(n, 0, 1), E: k.exponent}
}

func (bigKey) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("this key signs nothing")
}

// set is what becomes of a secret.
func set(content []byte) (*Set, error) {
	b, err := Parse("a", "1", content, Reading{})
	if err != nil {
		return nil, err
	}
	return Assemble([]*Bundle{b}, nil, time.Now(), nil)
}

func TestLargeKeys(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	fields := ca.ClientFields(t, "node")
	for _, c := range []struct {
		key  bigKey
		want string // empty: accepted
	}{
		{bigKey{8192, 65537}, ""},
		{bigKey{8193, 65537}, "RSA key of 8193 bits, want at most 8192"},
		{bigKey{32000, 3}, "RSA key of 32000 bits, want at most 8192"},
		{bigKey{4096, 1<<31 - 1}, ""},
		{bigKey{4104, 1<<31 - 1}, "RSA key of 4104 bits with the exponent 2147483647, want at most 65537"},
	} {
		anchor := mtlstest.CertPEM(mtlstest.NewCAFor(t, "big", c.key, ca).Cert)
		leaf := mtlstest.CertPEM(ca.LeafFor(t, "big", c.key))
		for field, content := range map[string]string{
			caCert:     mtlstest.CertPEM(ca.Cert) + anchor,
			clientCert: fields[clientCert].(string) + anchor,
			serverCert: leaf,
		} {
			f := maps.Clone(fields)
			f[field] = content
			want := "secret a: " + field + `: "CN=big": ` + c.want
			switch _, err := set(f.JSON(t)); {
			case c.want != "" && (err == nil || err.Error() != want):
				t.Errorf("%s of %d bits: %v, want %s", field, c.key.bits, err, want)
			case c.want == "" && err != nil && field != serverCert: // which comes without its key here
				t.Errorf("%s of %d bits: %v, want that it is accepted", field, c.key.bits, err)
			}
		}
	}
}

func TestManyAnchors(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	fields := ca.ClientFields(t, "node")
	key := mtlstest.NewKey(t)
	text := mtlstest.CertPEM(ca.Cert)
	for i := 1; i < 100; i++ {
		text += mtlstest.CertPEM(mtlstest.NewCAFor(t, fmt.Sprint("ca-", i), key, nil).Cert)
	}
	fields[caCert] = text
	s, err := set(fields.JSON(t))
	if err != nil {
		t.Fatalf("100 anchors: %v", err)
	}

	// Those that are carried count, and the newest version does not have to wait for them.
	old := mtlstest.NewCA(t, "old", nil).Cert
	until := time.Now().Add(time.Hour)
	s, err = Assemble(s.Bundles, nil, time.Now(), []Carried{{old, until}})
	if err != nil || len(s.Carried) != 0 || bytes.Contains(file(t, s, "ca.crt"), []byte(mtlstest.CertPEM(old))) {
		t.Fatalf("100 anchors and one that is carried: %v, and %d are carried", err, len(s.Carried))
	}
	dropped := "secret a: ca_cert: 1 anchors of earlier versions are dropped early: ca.crt holds at most 100"
	if !slices.Contains(s.Warnings, dropped) {
		t.Errorf("warnings are %q, want %s", s.Warnings, dropped)
	}
	if _, err := Restore(s.Origins(), s.Files, nil, s.Warnings, time.Now()); err != nil {
		t.Errorf("100 anchors, read again: %v", err)
	}

	fields[caCert] = text + mtlstest.CertPEM(old)
	want := "secret a: ca_cert: holds 101 certificates, at most 100 are allowed"
	if _, err := set(fields.JSON(t)); err == nil || err.Error() != want {
		t.Errorf("101 anchors: %v, want %s", err, want)
	}
}

// TestCarriedAnchorsAreBounded: ca.crt stays within the limit however many anchors secrets drop, those that were
// dropped last stay, and what was published is read again.
func TestCarriedAnchorsAreBounded(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	fields := ca.ClientFields(t, "node")
	fields[caCert] = mtlstest.CertPEM(ca.Cert) + mtlstest.CertPEM(mtlstest.NewCA(t, "second", nil).Cert)
	now := time.Now()
	b := must.Get(Parse("a", "1", fields.JSON(t), Reading{}))(t, "parse a secret")
	key := mtlstest.NewKey(t)
	var carried []Carried
	until := make(map[string]time.Time)
	for i := range 99 {
		c := Carried{mtlstest.NewCAFor(t, fmt.Sprint("old-", i), key, nil).Cert, now.Add(time.Hour)}
		carried, until[digest(c.Cert.Raw)] = append(carried, c), c.Until
	}
	for _, n := range []int{97, 98, 99} {
		s := must.Get(Assemble([]*Bundle{b}, nil, now, carried[:n]))(t, "put a set together")
		kept := min(n, 98)
		if got := bytes.Count(file(t, s, "ca.crt"), []byte("BEGIN CERTIFICATE")); got != 2+kept || len(s.Carried) != kept {
			t.Errorf("2 anchors and %d that are carried: ca.crt has %d, %d of them carried", n, got, len(s.Carried))
		}
		if !s.Carried[kept-1].Cert.Equal(carried[kept-1].Cert) {
			t.Errorf("of %d that are carried, others stay than the first", n)
		}
		if got := len(s.Warnings) > 0; got != (n > kept) {
			t.Errorf("2 anchors and %d that are carried: warnings are %q", n, s.Warnings)
		}
		again, err := Restore(s.Origins(), s.Files, until, s.Warnings, now)
		if err != nil || len(again.Carried) != kept {
			t.Errorf("2 anchors and %d that are carried, read again: %v", n, err)
		}
	}
}

// file returns the content of a file of the set.
func file(t *testing.T, s *Set, name string) []byte {
	t.Helper()
	for _, f := range s.Files {
		if f.Name == name {
			return f.Content
		}
	}
	t.Fatalf("the set has no %s", name)
	return nil
}

// TestTriesAreBounded: neither many dates nor many certificates of one name make a verdict slow.
func TestTriesAreBounded(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	fields := ca.ClientFields(t, "node", mtlstest.Valid(-time.Hour, 1000*time.Hour))
	from := func(i int) time.Duration { return time.Duration(i) * time.Hour }
	anchors := func(name string, n int) (text string) {
		for i := 1; i <= n; i++ {
			impostor := mtlstest.NewCA(t, name, nil, mtlstest.Valid(from(i), 2000*time.Hour))
			text += mtlstest.CertPEM(impostor.Cert)
		}
		return text
	}

	// Of the anchors, each has the issuer's name and none its key.
	fields[caCert] = anchors("ca", 50)
	_, err := set(fields.JSON(t))
	if err == nil || !strings.Contains(err.Error(), "; 48 later dates were not tried") {
		t.Errorf("50 anchors that begin one after the other: %v, want that few dates are tried", err)
	}
	// With other names they cost nothing, and the one that fits is found.
	later := mtlstest.CertPEM(mtlstest.NewCAFor(t, "ca", ca.Key, nil, mtlstest.Valid(from(60), 2000*time.Hour)).Cert)
	fields[caCert] = anchors("other", 50) + later
	_, err = set(fields.JSON(t))
	if held, ok := errors.AsType[*HeldError](err); !ok || held.Field != clientCert {
		t.Errorf("an anchor that begins after 50 others: %v, want held", err)
	}
	// So it is behind one of its name.
	fields[caCert] = anchors("ca", 1) + later
	if _, err := set(fields.JSON(t)); !isHeld(err) {
		t.Errorf("an anchor that begins after one of its name: %v, want held", err)
	}
}

func isHeld(err error) bool {
	_, ok := errors.AsType[*HeldError](err)
	return ok
}

// BenchmarkWorst measures sets that are as slow to verify as the limits allow. None may take a second.
func BenchmarkWorst(b *testing.B) {
	newKey := func() crypto.Signer { // with which a signature takes as long as with RSA of 8192 bits
		return must.Get(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))(b, "make a key")
	}
	ca := mtlstest.NewCAFor(b, "ca", newKey(), nil)
	key := newKey()
	leaf := ca.LeafFor(b, "node", mtlstest.NewKey(b))
	var anchors, chain []*x509.Certificate
	for i := range maxAnchors {
		change := mtlstest.Valid(time.Duration(i-1)*time.Hour, 2000*time.Hour)
		anchors = append(anchors, mtlstest.NewCAFor(b, "ca", key, ca, change).Cert)
	}
	for range maxChain - 1 {
		chain = append(chain, mtlstest.NewCAFor(b, "ca", key, ca).Cert)
	}
	for b.Loop() {
		for range kinds {
			if _, _, err := verify(kindClient, leaf, chain, anchors, time.Now()); err == nil {
				b.Fatal("a set without the issuer's key is accepted")
			}
			path{leaf}.toSend(chain, time.Now())
		}
	}
}

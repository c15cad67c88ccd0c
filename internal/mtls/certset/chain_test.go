package certset

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/must"
)

// issuedBy adds an authority key identifier by issuer and serial number, as "openssl ca" writes it on request.
func issuedBy(t testing.TB, issuer *x509.Certificate, serial *big.Int) mtlstest.Change {
	name := must.Get(asn1.Marshal(asn1.RawValue{
		Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: issuer.RawIssuer,
	}))(t, "encode a name")
	id := authorityKeyID{Serial: serial}
	id.Issuer = asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 1, IsCompound: true, Bytes: name}
	value := must.Get(asn1.Marshal(id))(t, "encode an authority key identifier")
	return func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: oidAuthorityKeyID, Value: value})
	}
}

// What only one of two libraries accepts is refused, with the reason.
func TestBothLibraries(t *testing.T) {
	root := mtlstest.NewCA(t, "root", nil)
	renewed := mtlstest.NewCAFor(t, "root", root.Key, nil)
	key := mtlstest.NewKey(t)
	leaf := func(ca *mtlstest.CA, change ...mtlstest.Change) certs {
		return certs{ca.LeafFor(t, "node", key, change...)}
	}
	usage := func(u x509.KeyUsage) mtlstest.Change { return func(c *x509.Certificate) { c.KeyUsage = u } }

	twin, other := mtlstest.NewCA(t, "twin", nil), mtlstest.NewCA(t, "twin", nil)
	noID := *twin.Cert // its leaves have no authority key identifier
	noID.SubjectKeyId = nil
	plain := &mtlstest.CA{Cert: &noID, Key: twin.Key}
	limited := mtlstest.NewCA(t, "limited", root, mtlstest.Usage(x509.ExtKeyUsageAny))
	expiredRoot := mtlstest.NewCA(t, "past", nil, mtlstest.Valid(-48*time.Hour, -24*time.Hour))
	high := mtlstest.NewCA(t, "high", root, func(c *x509.Certificate) { c.MaxPathLenZero = true })
	low := mtlstest.NewCA(t, "low", high)
	dns := mtlstest.NewCA(t, "dns", root, func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"example.net"} })
	for name, c := range map[string]struct {
		chain   certs
		anchors certs
		want    string // empty: accepted
	}{
		"issuer and serial number": {leaf(root, issuedBy(t, root.Cert, root.Cert.SerialNumber)), certs{root.Cert}, ""},
		"serial number of the old root": {leaf(root, issuedBy(t, root.Cert, root.Cert.SerialNumber)), certs{renewed.Cert},
			"its authority key identifier names the serial number"},
		"old root and new": {leaf(root, issuedBy(t, root.Cert, root.Cert.SerialNumber)), certs{renewed.Cert, root.Cert}, ""},
		"name of another issuer": {leaf(root, issuedBy(t, twin.Cert, root.Cert.SerialNumber)), certs{root.Cert},
			"its authority key identifier names another issuer"},
		"key usage for encryption":  {leaf(root, usage(x509.KeyUsageKeyEncipherment)), certs{root.Cert}, "digitalSignature"},
		"key usage for signing CAs": {leaf(root, usage(x509.KeyUsageCertSign)), certs{root.Cert}, "digitalSignature"},
		"no key usage":              {leaf(root, usage(0)), certs{root.Cert}, ""},
		"any extended key usage": {leaf(root, mtlstest.Usage(x509.ExtKeyUsageAny)), certs{root.Cert},
			"is not for client authentication"},
		"intermediate with any extended key usage": {append(leaf(limited), limited.Cert), certs{root.Cert},
			`"CN=limited" is not for certificates for client authentication`},
		"expired root": {leaf(expiredRoot), certs{expiredRoot.Cert}, `does not lead to ca_cert: "CN=past" expired on`},
		"path length": {append(leaf(low), low.Cert, high.Cert), certs{root.Cert},
			`"CN=high" has a path length constraint of 0, and more CAs below it`},
		"DNS names": {append(leaf(dns), dns.Cert), certs{root.Cert},
			`"CN=node" has a name that the name`},
		"two CAs of a name": {leaf(plain), certs{twin.Cert, other.Cert},
			`cannot tell which "CN=twin" issued "CN=node"`},
		"one CA without a key identifier": {leaf(plain), certs{twin.Cert}, ""},
	} {
		_, err := set(clientSecret(t, key, c.chain, c.anchors...))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// A peer that has the root alone finds in client.crt all that it needs, and nothing that has expired.
func TestChainIsComplete(t *testing.T) {
	root := mtlstest.NewCA(t, "root", nil)
	inter := mtlstest.NewCA(t, "inter", root)
	past := mtlstest.Valid(-48*time.Hour, -24*time.Hour)
	oldInter := mtlstest.NewCAFor(t, "inter", inter.Key, root, past)
	oldRoot := mtlstest.NewCA(t, "old root", nil)
	cross := mtlstest.NewCAFor(t, "root", root.Key, oldRoot)
	oldCross := mtlstest.NewCAFor(t, "root", root.Key, oldRoot, past)
	otherInter := mtlstest.NewCAFor(t, "inter", inter.Key, oldRoot)
	expiredRoot := mtlstest.NewCAFor(t, "root", root.Key, nil, past)
	leaf, key := inter.Leaf(t, "node")
	for name, c := range map[string]struct {
		chain, anchors, want certs
		warning              string
	}{
		"intermediate in ca_cert": {certs{leaf}, certs{inter.Cert, root.Cert}, certs{leaf, inter.Cert}, ""},
		"intermediate in both":    {certs{leaf, inter.Cert}, certs{inter.Cert, root.Cert}, certs{leaf, inter.Cert}, ""},
		"no root":                 {certs{leaf}, certs{inter.Cert}, certs{leaf, inter.Cert}, "holds no root"},
		"expired twin first": {certs{leaf, oldInter.Cert, inter.Cert}, certs{root.Cert}, certs{leaf, inter.Cert},
			`"CN=inter" expired on`},
		"cross-certificate": {certs{leaf, inter.Cert, cross.Cert}, certs{root.Cert}, certs{leaf, inter.Cert, cross.Cert}, ""},
		"two issuers of a leaf, one of which leads to a root": {certs{leaf, inter.Cert, otherInter.Cert}, certs{oldRoot.Cert},
			certs{leaf, otherInter.Cert, inter.Cert}, `"CN=inter" is not part of the chain`},
		"expired root with a cross-certificate": {certs{leaf, inter.Cert, cross.Cert}, certs{expiredRoot.Cert, oldRoot.Cert},
			certs{leaf, inter.Cert, cross.Cert}, `and is left out: readers that use OpenSSL would take it`},
		"expired intermediate in ca_cert": {certs{leaf, inter.Cert}, certs{oldInter.Cert, root.Cert},
			certs{leaf, inter.Cert}, `and is left out: readers that use OpenSSL would take it`},
		"intermediate in ca_cert, cross-certificate not": {certs{leaf, cross.Cert}, certs{inter.Cert, oldRoot.Cert},
			certs{leaf, inter.Cert, cross.Cert}, `holds "CN=inter" and not its issuer "CN=root"`},
		"expired cross-certificate": {certs{leaf, inter.Cert, oldCross.Cert}, certs{root.Cert}, certs{leaf, inter.Cert},
			`"CN=root" expired on`},
	} {
		s, err := set(clientSecret(t, key, c.chain, c.anchors...))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, want := s.file("client.crt"), mtlstest.CertPEM(c.want...); got != want {
			t.Errorf("%s: client.crt is\n%s\nwant\n%s", name, got, want)
		}
		if got := strings.Join(s.Warnings, "; "); (got == "") != (c.warning == "") || !strings.Contains(got, c.warning) {
			t.Errorf("%s: warnings %q, want %q", name, got, c.warning)
		}
		again, err := Restore(s.Origins(), s.Files, nil, s.Warnings, time.Now())
		if err != nil || dump(again) != dump(s) {
			t.Errorf("%s: the set is restored differently, or not: %v", name, err)
		} else if !slices.Equal(again.Warnings, s.Warnings) {
			t.Errorf("%s: with the warnings %q, want %q", name, again.Warnings, s.Warnings)
		}
	}
}

// A set lasts as long as what its chain needs, and what is published stays when that has ended.
func TestChainEnds(t *testing.T) {
	now := time.Now()
	root := mtlstest.NewCA(t, "root", nil)
	short := mtlstest.NewCA(t, "short", root, mtlstest.Valid(-time.Hour, 24*time.Hour))
	long := mtlstest.NewCAFor(t, "short", short.Key, root)
	leaf, key := short.Leaf(t, "node")

	bundles := mustBundles(t, clientSecret(t, key, certs{leaf, short.Cert}, root.Cert))
	s := must.Get(Assemble(bundles, nil, now, nil))(t, "assemble a good set")
	if !s.NotAfter().Equal(short.Cert.NotAfter) {
		t.Errorf("the set lasts until %v, want %v, as its intermediate", s.NotAfter(), short.Cert.NotAfter)
	}
	for _, chain := range []certs{{leaf, short.Cert, long.Cert}, {leaf, long.Cert, short.Cert}} {
		if s := mustSet(t, clientSecret(t, key, chain, root.Cert)); !s.NotAfter().Equal(leaf.NotAfter) {
			t.Errorf("with a longer intermediate, the set lasts until %v, want %v", s.NotAfter(), leaf.NotAfter)
		}
	}

	later := now.Add(25 * time.Hour)
	if _, err := Assemble(bundles, nil, later, nil); err == nil {
		t.Error("a chain that has ended is accepted as new")
	}
	s, err := Assemble(bundles, bundles, later, nil)
	if err != nil {
		t.Fatalf("a published chain has ended and keeps others from being renewed: %v", err)
	}
	if !slices.ContainsFunc(s.Warnings, func(w string) bool {
		return strings.Contains(w, `"CN=short", which its chain needs, expired on`)
	}) || !s.NotAfter().Equal(short.Cert.NotAfter) {
		t.Errorf("warnings %q, until %v; want that the intermediate has expired", s.Warnings, s.NotAfter())
	}
}

// Name constraints that OpenSSL alone applies are kept, or the reason names them. Each verdict is openssl's.
func TestNameConstraints(t *testing.T) {
	root := mtlstest.NewCA(t, "root", nil)
	key := mtlstest.NewKey(t)
	subject := func(name pkix.Name) mtlstest.Change {
		return func(c *x509.Certificate) { c.Subject, c.DNSNames = name, nil }
	}
	org := func(name string) pkix.Name { return pkix.Name{Organization: []string{name}, CommonName: "node"} }
	directory := func(sort int, name string) mtlstest.Change {
		der := must.Get(asn1.Marshal(pkix.Name{Organization: []string{name}}.ToRDNSequence()))(t, "encode a name")
		wrap := func(class, tag int, content []byte) []byte {
			return must.Get(asn1.Marshal(asn1.RawValue{Class: class, Tag: tag, IsCompound: true, Bytes: content}))(t, "wrap")
		}
		const context = asn1.ClassContextSpecific
		subtree := wrap(asn1.ClassUniversal, asn1.TagSequence, wrap(context, 4, der))
		value := wrap(asn1.ClassUniversal, asn1.TagSequence, wrap(context, sort, subtree))
		return func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: oidNameConstraints, Value: value})
		}
	}
	dns := func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"example.com"} }
	mail := func(c *x509.Certificate) { c.PermittedEmailAddresses = []string{"example.com"} }
	address := func(a string) pkix.Name {
		return pkix.Name{CommonName: "node", ExtraNames: []pkix.AttributeTypeAndValue{{Type: oidEmailAddress, Value: a}}}
	}
	for name, c := range map[string]struct {
		constraint mtlstest.Change
		subject    pkix.Name
		want       string // empty: accepted
	}{
		"permitted organization": {directory(0, "My  Org"), org("my org"), ""},
		"other organization":     {directory(0, "My Org"), org("Other"), "directory name"},
		"excluded organization":  {directory(1, "My Org"), org("My Org"), "directory name"},
		"not excluded":           {directory(1, "My Org"), org("Other"), ""},
		"permitted common name":  {dns, pkix.Name{CommonName: "node.EXAMPLE.com"}, ""},
		"other common name":      {dns, pkix.Name{CommonName: "node.example.org"}, "common name"},
		"no host name":           {dns, pkix.Name{CommonName: "node 1.example.org"}, ""},
		"suffix only":            {dns, pkix.Name{CommonName: "myexample.com"}, "common name"},
		"permitted address":      {mail, address("a@Example.com"), ""},
		"other address":          {mail, address("a@sub.example.com"), "email address"},
	} {
		ca := mtlstest.NewCA(t, "limited", root, c.constraint)
		leaf := ca.LeafFor(t, "node", key, subject(c.subject))
		_, err := set(clientSecret(t, key, certs{leaf, ca.Cert}, root.Cert))
		named := err != nil && strings.Contains(err.Error(), `"CN=limited" do not permit its `+c.want)
		if c.want == "" && err != nil || c.want != "" && !named {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestServerWithoutNames(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	leaf, key := ca.Leaf(t, "node", func(c *x509.Certificate) { c.DNSNames = nil })
	s := mustSet(t, mtlstest.Fields{
		serverCert: mtlstest.CertPEM(leaf), serverKey: mtlstest.KeyPEM(t, key), caCert: mtlstest.CertPEM(ca.Cert),
	}.JSON(t))
	if len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], `server_cert: "CN=node" has no subjectAltName`) {
		t.Errorf("warnings %q, want one about the names", s.Warnings)
	}
	for cn, want := range map[string]int{"node": 1, "": 0} { // OpenSSL takes a common name for one of a host
		leaf := ca.LeafFor(t, cn, key, func(c *x509.Certificate) {
			c.DNSNames, c.URIs = nil, []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/node"}}
		})
		s := mustSet(t, mtlstest.Fields{
			serverCert: mtlstest.CertPEM(leaf), serverKey: mtlstest.KeyPEM(t, key), caCert: mtlstest.CertPEM(ca.Cert),
		}.JSON(t))
		if len(s.Warnings) != want {
			t.Errorf("URI and common name %q: warnings %q, want %d", cn, s.Warnings, want)
		}
	}
}

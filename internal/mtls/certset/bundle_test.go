package certset

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/must"
)

// encryptedKey is a key in the way of old versions of OpenSSL.
const encryptedKey = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n" +
	"AAAA\n-----END RSA PRIVATE KEY-----\n"

// Everything that makes a secret unfit is refused with an error that names the secret, the field and the reason.
func TestRejected(t *testing.T) {
	ca, other := mtlstest.NewCA(t, "ca", nil), mtlstest.NewCA(t, "other", nil)
	cert, key := ca.Leaf(t, "node")
	certText, keyText, caText := mtlstest.CertPEM(cert), mtlstest.KeyPEM(t, key), mtlstest.CertPEM(ca.Cert)
	good := mtlstest.Fields{clientCert: certText, clientKey: keyText, caCert: caText}
	with := func(field string, value any) []byte {
		m := maps.Clone(good)
		if value == nil {
			delete(m, field)
		} else {
			m[field] = value
		}
		return m.JSON(t)
	}
	leafWith := func(change ...func(*x509.Certificate)) []byte {
		return with(clientCert, mtlstest.CertPEM(ca.LeafFor(t, "node", key, change...)))
	}
	pair := func(key crypto.Signer, change ...func(*x509.Certificate)) []byte {
		m := maps.Clone(good)
		m[clientCert], m[clientKey] = mtlstest.CertPEM(ca.LeafFor(t, "node", key, change...)), mtlstest.KeyPEM(t, key)
		return m.JSON(t)
	}
	weakRSA := must.Get(rsa.GenerateKey(rand.Reader, 1024))(t, "make a weak key")
	p224 := must.Get(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))(t, "make a key on P-224")
	rsaKey := must.Get(rsa.GenerateKey(rand.Reader, 2048))(t, "make an RSA key")
	sha1 := func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA1WithRSA }
	sha1Leaf := mtlstest.CertPEM(mtlstest.NewCAFor(t, "rsa", rsaKey, nil).LeafFor(t, "node", key, sha1))
	dhKey := must.Get(ecdh.X25519().GenerateKey(rand.Reader))(t, "make a key that cannot sign")
	x25519 := must.Get(x509.MarshalPKCS8PrivateKey(dhKey))(t, "encode it")
	half := certText[:200]

	for name, c := range map[string]struct {
		content []byte
		want    string // after "secret a: "
	}{
		"empty":          {nil, "is empty"},
		"blank":          {[]byte(" \r\n"), "is empty"},
		"garbage":        {[]byte(strings.Repeat("\x00\xff", 100)), "is not PEM"},
		"too large":      {make([]byte, maxBytes+1), "is larger than 1048576 bytes"},
		"malformed JSON": {[]byte(`{"client_cert": "x`), "begins as JSON, and is malformed at byte"},
		"JSON and more":  {append(with("", nil), '}'), "begins as JSON, and is malformed at byte"},
		"other JSON object": {[]byte(`{"username": "u", "password": "p"}`),
			"is a JSON object without any of client_cert"},
		"wrong case":       {[]byte(`{"Client_Cert": "x"}`), "is a JSON object without any of client_cert"},
		"JSON array":       {[]byte(`["client_cert"]`), "is not PEM"},
		"number":           {with(clientCert, 7), "client_cert: is not a string"},
		"object":           {with(clientKey, map[string]any{"a": 1}), "client_key: is not a string"},
		"doubled key":      {[]byte(`{"ca_cert": "x", "ca_cert": "y"}`), "ca_cert: appears twice"},
		"nothing but null": {[]byte(`{"ca_cert": null}`), "has no value but null"},
		"empty field":      {with(caCert, ""), "client_cert: comes without ca_cert to lead to"},
		"nothing but \"\"": {[]byte(`{"ca_cert": ""}`), "has no value but null"},
		"text":             {with(caCert, "see attachment"), "ca_cert: is not PEM"},
		"half a PEM":       {with(clientCert, half), "client_cert: holds a PEM block that is cut short"},
		"one and a half":   {with(clientCert, certText+half), "client_cert: holds a PEM block that is cut short"},
		"half a plain PEM": {[]byte(half), "holds a PEM block that is cut short"},
		"base64 damaged": {with(clientCert, strings.Replace(certText, "MII", "M!I", 1)),
			"client_cert: holds a PEM block with something in it that is not base64"},
		"DER damaged": {with(clientCert, pemBlock("CERTIFICATE", cert.Raw[:100])),
			"client_cert: certificate 1 does not parse"},
		"plain DER damaged": {[]byte(pemBlock("CERTIFICATE", cert.Raw[:100])), "certificate 1 does not parse"},
		"plain key damaged": {[]byte(pemBlock("PRIVATE KEY", []byte("\x30\x05abc"))),
			"a block labelled PRIVATE KEY does not parse"},
		"odd label":          {[]byte(pemBlock("hunter2", nil)), "holds a PEM block with an odd label"},
		"key in ca_cert":     {with(caCert, caText+mtlstest.KeyPEM(t, ca.Key)), "ca_cert: holds a private key"},
		"key in client_cert": {with(clientCert, keyText), "client_cert: holds a private key"},
		"key labelled certificate": {with(clientCert, strings.ReplaceAll(keyText, "PRIVATE KEY", "CERTIFICATE")),
			"client_cert: certificate 1 does not parse"},
		"request in client_cert": {with(clientCert, pemBlock("CERTIFICATE REQUEST", cert.Raw)),
			"client_cert: holds a block labelled CERTIFICATE REQUEST, want only CERTIFICATE"},
		"certificate in key": {with(clientKey, keyText+certText),
			"client_key: holds a block labelled CERTIFICATE, want only one private key"},
		"two keys": {with(clientKey, keyText+keyText), "client_key: holds more than one private key"},
		"no key":   {with(clientKey, pemBlock("EC PARAMETERS", nil)), "client_key: holds no private key"},
		"encrypted key": {with(clientKey, pemBlock("ENCRYPTED PRIVATE KEY", nil)),
			"client_key: is encrypted; store it without a passphrase"},
		"encrypted key, old": {with(clientKey, encryptedKey),
			"client_key: is encrypted; store it without a passphrase"},
		"OpenSSH key": {with(clientKey, pemBlock("OPENSSH PRIVATE KEY", nil)),
			"client_key: holds a block labelled OPENSSH PRIVATE KEY, want"},
		"key damaged": {with(clientKey, pemBlock("PRIVATE KEY", nil)),
			"client_key: PRIVATE KEY does not parse"},
		"key that cannot sign": {with(clientKey, pemBlock("PRIVATE KEY", x25519)), "client_key: cannot sign"},
		"RSA-1024":             {pair(weakRSA), "client_cert: \"CN=node\": RSA key of 1024 bits, want at least 2048"},
		"RSA-1024 key":         {with(clientKey, mtlstest.KeyPEM(t, weakRSA)), "client_key: RSA key of 1024 bits"},
		"P-224":                {pair(p224), "client_cert: \"CN=node\": ECDSA key on P-224"},
		"SHA-1":                {with(clientCert, sha1Leaf), `client_cert: "CN=node": signed with SHA1-RSA`},
		"17 certificates": {with(clientCert, manyCerts(t, ca, 17)),
			"client_cert: holds 17 certificates, at most 16"},
		"CA that is none": {with(caCert, certText), "ca_cert: \"CN=node\": is not a CA certificate"},
		"key of another": {with(clientKey, mtlstest.KeyPEM(t, other.Key)),
			"client_key: does not match client_cert: not the key of \"CN=node\""},
		"CA that did not sign": {with(caCert, mtlstest.CertPEM(other.Cert)),
			`client_cert: does not lead to ca_cert: the issuer of "CN=node", "CN=ca", is missing or did not sign it`},
		"expired": {leafWith(mtlstest.Valid(-48*time.Hour, -24*time.Hour)), "client_cert: expired on 20"},
		"server only": {leafWith(mtlstest.Usage(x509.ExtKeyUsageServerAuth)),
			"client_cert: is not for client authentication"},
		"no key field":         {with(clientKey, nil), "client_cert: comes without client_key"},
		"no certificate field": {with(clientCert, nil), "client_key: comes without client_cert"},
		"no CA":                {with(caCert, nil), "client_cert: comes without ca_cert to lead to"},
		"server key alone":     {with(serverKey, keyText), "server_key: comes without server_cert"},
		"client certificate as server's": {mtlstest.Fields{
			serverCert: mtlstest.CertPEM(ca.LeafFor(t, "node", key, mtlstest.Usage(x509.ExtKeyUsageClientAuth))),
			serverKey:  keyText, caCert: caText,
		}.JSON(t), "server_cert: is not for server authentication"},
		"ca_overlap: true":     {with(caOverlap, true), "ca_overlap: must be false"},
		"ca_overlap: a string": {with(caOverlap, "false"), "ca_overlap: must be false"},
		"ca_overlap: a number": {with(caOverlap, 0), "ca_overlap: must be false"},
		"ca_overlap: null":     {with(caOverlap, json.RawMessage("null")), "ca_overlap: must be false"},
		"ca_overlap doubled": {append([]byte(`{"ca_overlap": false, "ca_overlap": false, `), with("", nil)[1:]...),
			"ca_overlap: appears twice"},
		"expired CA": {mtlstest.Fields{caCert: mtlstest.CertPEM(mtlstest.NewCA(t, "old", nil,
			mtlstest.Valid(-48*time.Hour, -24*time.Hour)).Cert)}.JSON(t), "ca_cert: \"CN=old\" expired on 20"},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := Parse("a", "1", c.content, Reading{})
			if err == nil {
				_, err = Assemble([]*Bundle{b}, nil, time.Now(), nil)
			}
			e, ok := errors.AsType[*RejectError](err)
			if !ok || e.Secret != "a" {
				t.Fatalf("error %v, want a RejectError for secret a", err)
			}
			if want := "secret a: " + c.want; !strings.HasPrefix(err.Error(), want) {
				t.Errorf("error %q\nwant  %q…", err, want)
			}
			if leak := leaked(err, c.content); leak != "" {
				t.Errorf("error %q shows content: %q", err, leak)
			}
		})
	}
}

func TestAccepted(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	cert, key := ca.Leaf(t, "node")
	certText, keyText, caText := mtlstest.CertPEM(cert), mtlstest.KeyPEM(t, key), mtlstest.CertPEM(ca.Cert)
	good := mtlstest.Fields{clientCert: certText, clientKey: keyText, caCert: caText}
	with := func(field string, value any) []byte {
		m := maps.Clone(good)
		m[field] = value
		return m.JSON(t)
	}
	pairOf := func(key crypto.Signer) []byte {
		m := maps.Clone(good)
		m[clientCert], m[clientKey] = mtlstest.CertPEM(ca.LeafFor(t, "node", key)), mtlstest.KeyPEM(t, key)
		return m.JSON(t)
	}
	sec1 := must.Get(x509.MarshalECPrivateKey(key.(*ecdsa.PrivateKey)))(t, "encode a key as SEC 1")
	rsaKey := must.Get(rsa.GenerateKey(rand.Reader, 2048))(t, "make an RSA key")
	_, edKey, _ := ed25519.GenerateKey(rand.Reader)
	files := []string{"ca.crt", "client.crt", "client.key", "client.pem"}
	hidden := []string{"secret a: unknown keys, not named here, are not published: 1"}

	for name, c := range map[string]struct {
		content  []byte
		want     []string
		warnings []string
	}{
		"plain": {with("", nil), files, hidden},
		"unknown keys": {with("comment", "x"), files,
			[]string{"secret a: unknown key comment is not published"}},
		"null for what is unset": {with(serverCert, nil), files, nil},
		"CRLF":                   {with(clientCert, strings.ReplaceAll(certText, "\n", "\r\n")), files, nil},
		"literal \\n":            {with(clientKey, strings.ReplaceAll(keyText, "\n", `\n`)), files, nil},
		"literal \\r\\n":         {with(clientKey, strings.ReplaceAll(keyText, "\n", `\r\n`)), files, nil},
		"byte order mark":        {append([]byte("\ufeff"), with(serverCert, nil)...), files, nil},
		"text around":            {with(clientCert, "Certificate:\n  Data: …\n"+certText+"\nthe end"), files, nil},
		"doubled certificate":    {with(clientCert, mtlstest.CertPEM(cert, cert)), files, nil},
		"SEC 1 key": {with(clientKey, pemBlock("EC PARAMETERS", []byte{6, 1, 1})+pemBlock("EC PRIVATE KEY", sec1)),
			files,
			nil},
		"RSA-2048": {pairOf(rsaKey), files, nil},
		"Ed25519":  {pairOf(edKey), files, nil},
		"five minutes early": {with(clientCert, mtlstest.CertPEM(ca.LeafFor(t, "node", key,
			mtlstest.Valid(4*time.Minute, time.Hour)))), files, nil},
		"no extended key usage": {with(clientCert, mtlstest.CertPEM(ca.LeafFor(t, "node", key, mtlstest.Usage()))),
			files,
			nil},
		"CA alone":            {mtlstest.Fields{caCert: caText}.JSON(t), []string{"ca.crt"}, nil},
		"certificate":         {[]byte(certText), []string{"cert-0.pem"}, nil},
		"key":                 {[]byte(keyText), []string{"cert-0.pem"}, nil},
		"unknown kind of key": {[]byte(pemBlock("FUTURE PRIVATE KEY", []byte{0x30, 0})), []string{"cert-0.pem"}, nil},
		"revocation list":     {[]byte(pemBlock("X509 CRL", []byte{0x30, 0})), []string{"cert-0.pem"}, nil},
		"both pairs and their CA": {ca.ServerSecret(t, "node"),
			slices.Concat(files, []string{"server.crt", "server.key", "server.pem"}), nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := mustSet(t, c.content)
			if diff := cmp.Diff(c.want, s.names()); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.warnings, s.Warnings); diff != "" {
				t.Errorf("warnings (-want +got):\n%s", diff)
			}
			for _, f := range s.Files {
				private := strings.Contains(string(f.Content), "PRIVATE KEY") || name == "revocation list"
				if f.Private != private {
					t.Errorf("%s: private is %v", f.Name, f.Private)
				}
				if strings.ContainsAny(string(f.Content), "\r\\") {
					t.Errorf("%s is not normalised:\n%s", f.Name, f.Content)
				}
			}
		})
	}
}

// leaked returns a piece of base64 from content that err repeats. No word of ours is as long.
func leaked(err error, content []byte) string {
	const long = 24
	text := err.Error()
	isBase64 := func(r rune) bool {
		return r < 0x80 && strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=", r)
	}
	for _, run := range strings.FieldsFunc(string(content), func(r rune) bool { return !isBase64(r) }) {
		for i := 0; i+long <= len(run); i++ {
			if strings.Contains(text, run[i:i+long]) {
				return run[i : i+long]
			}
		}
	}
	return ""
}

func pemBlock(label string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der}))
}

func manyCerts(t *testing.T, ca *mtlstest.CA, n int) string {
	var certs []*x509.Certificate
	for range n {
		c, _ := ca.Leaf(t, "node")
		certs = append(certs, c)
	}
	return mtlstest.CertPEM(certs...)
}

// mustSet assembles secrets named a, b, c … in version 1.
func mustSet(t testing.TB, secrets ...[]byte) *Set {
	t.Helper()
	return must.Get(Assemble(mustBundles(t, secrets...), nil, time.Now(), nil))(t, "assemble a good set")
}

func mustBundles(t testing.TB, secrets ...[]byte) (bundles []*Bundle) {
	t.Helper()
	for i, content := range secrets {
		bundles = append(bundles, must.Get(Parse(string(rune('a'+i)), "1", content, Reading{}))(t, "parse a good secret"))
	}
	return bundles
}

func (s *Set) file(name string) string {
	for _, f := range s.Files {
		if f.Name == name {
			return string(f.Content)
		}
	}
	return ""
}

func (s *Set) names() (names []string) {
	for _, f := range s.Files {
		names = append(names, f.Name)
	}
	return names
}

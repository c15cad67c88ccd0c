package certset

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/must"
)

// What consoles, shells and templates do to line breaks loses nothing, and is repaired with a note.
func TestRepaired(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	inter := mtlstest.NewCA(t, "inter", ca)
	leaf, key := inter.Leaf(t, "node")
	fields := mtlstest.Fields{clientKey: mtlstest.KeyPEM(t, key), caCert: mtlstest.CertPEM(ca.Cert),
		clientCert: mtlstest.CertPEM(leaf, inter.Cert)}
	want := dump(mustSet(t, fields.JSON(t)))

	replace := func(pairs ...string) func(string) string { return strings.NewReplacer(pairs...).Replace }
	for name, c := range map[string]struct {
		spoil  func(string) string
		silent bool
	}{
		"blanks for line breaks":        {replace("\n", " "), false},
		"tabs for line breaks":          {replace("\n", "\t"), false},
		"no line breaks":                {replace("\n", ""), false},
		"no white space at all":         {replace("\n", "", " ", ""), false},
		"empty lines between":           {replace("\n", "\n\n"), true},
		"indented":                      {replace("\n", "\n    ", "-----BEGIN", "    -----BEGIN"), false},
		"blanks at the end of lines":    {replace("\n", "  \n"), true},
		"joined blocks":                 {replace("-----\n-----", "----------"), true},
		"joined, with dashes in common": {replace("-----\n-----", "-----"), true},
		"byte order mark":               {func(s string) string { return "\ufeff" + s }, false},
		"byte order marks inside":       {replace("\n", "\n\ufeff"), false},
		"no-break spaces":               {replace("\n", "\u00a0"), false},
		"zero-width spaces":             {replace("\n", "\n\u200b"), false},
		"line separators":               {replace("\n", "\u2028"), false},
		"quotes around":                 {func(s string) string { return `"` + s + `"` }, false},
		"apostrophes around":            {func(s string) string { return `'` + s + `'` }, false},
		"backslash and n":               {replace("\n", `\n`), true},
		"backslash and n, twice over":   {replace("\n", `\\n`), true},
		"escaped slashes":               {replace("\n", `\n`, "/", `\/`), true},
		"escaped slashes, twice over":   {replace("\n", `\\n`, "/", `\\/`), true},
		"escaped as .NET does":          {replace("\n", `\u000A`, "+", `\u002B`), true},
		"escaped as Gson does":          {replace("\n", `\n`, "=", `\u003d`), true},
		"continued lines":               {replace("\n", "\\\n"), true},
		"backslash and t":               {replace("\n", `\n\t`), true},
		"six dashes":                    {replace("-----", "------"), false},
		"CRLF and indented":             {replace("\n", "\r\n\t", "-----BEGIN", "\t-----BEGIN"), false},
		"lines of 76":                   {func(s string) string { return rewrap(s, 76) }, true},
		"text around":                   {func(s string) string { return "subject=CN = x\n" + s + "\nend" }, true},
	} {
		spoiled := mtlstest.Fields{}
		for field, text := range fields {
			spoiled[field] = c.spoil(text.(string))
		}
		s, err := set(spoiled.JSON(t))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if dump(s) != want {
			t.Errorf("%s: published\n%s\nwant\n%s", name, dump(s), want)
		}
		note := strings.Contains(strings.Join(s.Warnings, "\n"), "its line breaks were lost or moved")
		if !c.silent && !note {
			t.Errorf("%s: repaired without a note: %q", name, s.Warnings)
		}
	}
	for _, content := range []string{
		"-----BEGIN RSA PRIVATE KEY----- Proc-Type: 4,ENCRYPTED DEK-Info: AES-256-CBC,00 AAAA -----END RSA PRIVATE KEY-----",
		"  -----BEGIN RSA PRIVATE KEY-----\n  Proc-Type: 4,ENCRYPTED\n  DEK-Info: AES-256-CBC,00\n\n  AAAA\n" +
			"  -----END RSA PRIVATE KEY-----",
	} {
		if s := mustSet(t, []byte(content)); s.file("cert-0.pem") != encryptedKey {
			t.Errorf("an encrypted key is published as\n%s\nwant\n%s", s.file("cert-0.pem"), encryptedKey)
		}
	}
}

// rewrap changes the length of the lines between the labels.
func rewrap(text string, length int) string {
	return regexp.MustCompile(`(?s)(-----BEGIN [A-Z ]+-----\n)(.*?)(-----END)`).ReplaceAllStringFunc(text,
		func(s string) string {
			head, rest, _ := strings.Cut(s, "\n")
			body, _ := strings.CutSuffix(rest, "-----END")
			body = strings.ReplaceAll(body, "\n", "")
			var b strings.Builder
			for ; len(body) > length; body = body[length:] {
				b.WriteString(body[:length] + "\n")
			}
			return head + "\n" + b.String() + body + "\n-----END"
		})
}

// What is damaged stays rejected, and the reason says what is seen.
func TestDamaged(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	fields := ca.ClientFields(t, "node")
	cert, key := fields[clientCert].(string), fields[clientKey].(string)
	oneLine := strings.ReplaceAll(cert, "\n", " ")
	half := "holds a PEM block that is cut short or damaged: "
	first := half + "number 1, a block labelled CERTIFICATE, "
	for name, c := range map[string]struct{ text, want string }{
		"no END":           {cert[:len(cert)-30], first + "has a BEGIN line and no END line"},
		"no END, one line": {oneLine[:len(oneLine)-30], first + "has a BEGIN line"},
		"END cut short":    {cert[:len(cert)-4], first + "has an END line that is cut"},
		"no BEGIN":         {cert[30:], half + "the text has an END line and no BEGIN line"},
		"second without":   {cert + cert[30:], half + "the text has an END line and no BEGIN line"},
		"second cut":       {cert + cert[:200], half + "number 2, a block labelled CERTIFICATE, has a BEGIN line"},
		"first cut":        {cert[:200] + "\n" + cert, first + "has a BEGIN line"},
		"ends as a key": {strings.Replace(cert, "END CERTIFICATE", "END PRIVATE KEY", 1), first +
			"ends as a block labelled PRIVATE KEY"},
		"a character more": {strings.Replace(oneLine, "MII", "MIII", 1), first + "does not end as"},
		"a foreign one": {strings.Replace(oneLine, "MII", "M*I", 1),
			"holds a PEM block with something in it that is not base64: number 1, a block labelled CERTIFICATE, at character 2"},
		"a line lost": {strings.Replace(cert, cert[100:165], "", 1), "certificate 1 does not parse"},
		"a line lost, too": {strings.Replace(strings.ReplaceAll(cert, "\n", " "), cert[93:157], "", 1), first +
			"does not parse"},
		"four dashes":       {strings.ReplaceAll(cert, "-----", "----"), "is not PEM; a BEGIN line and an END line are"},
		"long dashes":       {strings.ReplaceAll(cert, "-----", "—–"), "is not PEM; a BEGIN line and an END line are"},
		"without its lines": {strings.Join(strings.Split(cert, "\n")[1:8], "\n"), "is not PEM"},
	} {
		f := mtlstest.Fields{clientCert: c.text, clientKey: key, caCert: fields[caCert]}
		_, err := set(f.JSON(t))
		if err == nil || !strings.HasPrefix(err.Error(), "secret a: client_cert: "+c.want) {
			t.Errorf("%s: %v\nwant %s", name, err, c.want)
		} else if leak := leaked(err, f.JSON(t)); leak != "" {
			t.Errorf("%s: error %q shows content: %q", name, err, leak)
		}
	}
}

// Secrets in the form of other tools are rejected, and the reason says what they look like.
func TestRecognised(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	good := ca.ClientFields(t, "node")
	cert, key, anchor := good[clientCert].(string), good[clientKey].(string), good[caCert].(string)
	leaf, signer := ca.Leaf(t, "node")
	text := string(good.JSON(t))
	object := func(pairs ...string) string {
		m := make(map[string]string)
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		return string(must.Get(json.Marshal(m))(t, "encode a secret"))
	}
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	utf16le := func(s string) string {
		var b strings.Builder
		for _, c := range utf16.Encode([]rune(s)) {
			b.Write([]byte{byte(c), byte(c >> 8)})
		}
		return b.String()
	}
	keyDER := string(must.Get(base64.StdEncoding.DecodeString(strings.Join(strings.Split(mtlstest.KeyPEM(t, signer),
		"\n")[1:4], "")))(t, "decode a key"))
	without := "is a JSON object without any of client_cert, client_key, ca_cert, server_cert, server_key, peer_ca; "
	for name, c := range map[string]struct{ content, want string }{
		"Kubernetes": {object("tls.crt", cert, "tls.key", key, "ca.crt", anchor), without +
			"its keys are those of a Kubernetes TLS secret: set fields: {client_cert: tls.crt, client_key: tls.key, ca_cert: " +
			"ca.crt}"},
		"Kubernetes, no CA": {object("tls.crt", cert, "tls.key", key), without +
			"its keys are those of a Kubernetes TLS secret: set fields: {client_cert: tls.crt, client_key: tls.key} for it"},
		"Vault": {object("certificate", cert, "private_key", key, "issuing_ca", anchor, "serial_number", "1"), without +
			"its keys are those of Vault's PKI engine: set fields: {client_cert: certificate, client_key: private_key, " +
			"ca_cert: issuing_ca}"},
		"ACM": {object("Certificate", cert, "CertificateChain", anchor, "PrivateKey", key), without +
			"its keys are those of ACM's export-certificate"},
		"certbot":      {object("fullchain.pem", cert, "privkey.pem", key), without + "its keys are those of certbot"},
		"camel case":   {object("clientCert", cert, "clientKey", key), without + "they are written like that, in lower case"},
		"nested":       {`{"mtls": ` + text + `}`, without + "it holds an object that has some in mtls; store that"},
		"nested twice": {`{"data": {"data": ` + text + `}}`, without + "it holds an object that has some in data"},
		"nested, Vault's": {`{"data": ` + object("certificate", cert, "private_key", key) + `}`, without +
			"it holds an object that has some in data"},
		"under a secret": {`{"` + b64(key)[:40] + `": ` + text + `}`, without +
			"it holds an object that has some; store that object itself"},
		"the CLI's output": {object("ARN", "arn:aws:x", "SecretString", text), without +
			"it holds an object that has some in SecretString, as aws secretsmanager get-secret-value prints it"},
		"a JSON string": {string(must.Get(json.Marshal(text))(t, "encode it once more")),
			"is a JSON string of a JSON object; store the object itself"},
		"base64":        {b64(text), "is not PEM, but base64 of a JSON object; store the object itself"},
		"base64 of PEM": {b64(cert), "is not PEM, but base64 of PEM; store the PEM itself"},
		"base64 of DER": {b64(string(leaf.Raw)), "is not PEM, but base64 of a certificate in DER; store it as PEM, with a " +
			"BEGIN line"},
		"a certificate": {string(leaf.Raw), "is not PEM, but a certificate in DER; store it as PEM"},
		"a key":         {keyDER, "is not PEM, but a private key in DER; store it as PEM"},
		"PKCS #12": {"\x30\x05\x02\x01\x03\x30\x00", "is not PEM, but a PKCS #12 file, which openssl pkcs12 -nodes turns " +
			"into PEM"},
		"Java key store":  {"\xfe\xed\xfe\xed\x00\x00\x00\x02", "is not PEM, but a Java key store"},
		"UTF-16":          {"\xff\xfe" + utf16le(text), "is UTF-16; store it as UTF-8"},
		"UTF-16, no mark": {utf16le(text), "is UTF-16; store it as UTF-8"},
		"UTF-16, PEM":     {"\xff\xfe" + utf16le(cert), "is UTF-16; store it as UTF-8"},
		"field in base64": {object(clientCert, b64(cert), clientKey, key),
			"client_cert: is not PEM, but base64 of PEM; store the PEM itself"},
		"name of a file": {object(clientCert, "file://client.crt", clientKey, key),
			"client_cert: is not PEM, but the name of a file; store what is in the file"},
		"path": {object(clientCert, "/etc/pki/tls/certs/client.pem", clientKey, key),
			"client_cert: is not PEM, but the name of a file"},
		"ARN":  {"arn:aws:acm:us-east-2:123456789012:certificate/1", "is not PEM, but an ARN; store what it stands for"},
		"YAML": {"client_cert: |\n  " + strings.ReplaceAll(cert, "\n", "\n  "), "holds PEM inside of something else"},
		"JSON array": {string(must.Get(json.Marshal([]string{cert}))(t, "encode a list")),
			"holds PEM inside of something else"},
		"YAML without indentation":      {"client_cert: |\n" + cert, "holds PEM inside of something else"},
		"HCL":                           {"client_cert = <<EOT\n" + cert + "EOT\n", "holds PEM inside of something else"},
		"variables of a shell":          {"CLIENT_CERT=\"\n" + cert + "\"\n", "holds PEM inside of something else"},
		"XML":                           {"<secret>\n <cert>\n" + cert + "</cert>", "holds PEM inside of something else"},
		"list of JSON with line breaks": {"[{\"client_cert\": \"\n" + cert + "\"}]", "holds PEM inside of something else"},
		"JSON after a comment": {"# mine\n{\"client_cert\": \"\n" + cert + "\"}",
			"holds PEM inside of something else"},
		"JSON after a mark of no width": {"\u200b{\"client_cert\": \"\n" + cert + "\"}",
			"begins as JSON, and is malformed at byte 15; a line break"},
		"comma at the end of JSON": {strings.TrimSuffix(text, "}") + ",}", fmt.Sprintf("begins as JSON, and is malformed at byte %d"+
			"; there is no comma before the last brace", len(text))},
		"apostrophes in JSON": {strings.ReplaceAll(text, `"`, "'"),
			"begins as JSON, and is malformed at byte 1; JSON has double"},
		"JSON cut short": {text[:len(text)-1], fmt.Sprintf("begins as JSON, and is malformed at byte %d; it is cut short",
			len(text)-1)},
		"label in small letters": {strings.ToLower(cert), "is not PEM; a BEGIN line and an END line are in capital letters"},
		"blank in the dashes":    {strings.ReplaceAll(cert, "-----BEGIN", "----- BEGIN"), "is not PEM; a BEGIN line and"},
		"JSON in quotes":         {"'" + text + "'", "holds PEM inside of something else"},
		"TRUSTED, in JSON": {object(caCert, pemBlock(trusted, leaf.Raw)),
			"ca_cert: holds a block labelled TRUSTED CERTIFICATE, which only programs with OpenSSL read"},
		"PKCS #1 as PKCS 8": {object(clientCert, cert, clientKey, strings.ReplaceAll(key, "PRIVATE KEY",
			"EC PRIVATE KEY")), "client_key: EC PRIVATE KEY does not parse: it is of the form that is labelled PRIVATE KEY"},
	} {
		_, err := set([]byte(c.content))
		if err == nil || !strings.HasPrefix(err.Error(), "secret a: "+c.want) {
			t.Errorf("%s: %v\nwant %s", name, err, c.want)
		} else if leak := leaked(err, []byte(c.content)); leak != "" {
			t.Errorf("%s: error %q shows content: %q", name, err, leak)
		}
	}
}

// An empty string is what Terraform writes for what is not set.
func TestEmptyFields(t *testing.T) {
	fields := mtlstest.NewCA(t, "ca", nil).ClientFields(t, "node")
	want := dump(mustSet(t, fields.JSON(t)))
	fields[serverCert], fields[serverKey], fields[peerCA] = "", " \n", []string{}
	s := mustSet(t, fields.JSON(t))
	if dump(s) != want || len(s.Warnings) != 3 || s.Warnings[0] != "secret a: server_cert: is empty, and counts as not "+
		"set" {
		t.Errorf("warnings %q; published\n%s\nwant\n%s", s.Warnings, dump(s), want)
	}
}

// The configuration says how to read secrets that are not as they look, and the manifest remembers it.
func TestReading(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	good := ca.ClientFields(t, "node")
	want := dump(mustSet(t, good.JSON(t)))
	k8s := mtlstest.Fields{"tls.crt": good[clientCert], "tls.key": good[clientKey], "ca.crt": good[caCert]}
	vault := mtlstest.Fields{"certificate": good[clientCert], "private_key": good[clientKey],
		"ca_chain": []any{good[caCert]}}
	_, foreign := mtlstest.NewCA(t, "other", nil).Leaf(t, "other")
	mismatch := good[clientCert].(string) + mtlstest.KeyPEM(t, foreign)
	fields := Reading{Fields: Fields{ClientCert: "tls.crt", ClientKey: "tls.key", CACert: "ca.crt"}}

	for name, c := range map[string]struct {
		content []byte
		how     Reading
		want    string // what is published, or the error
	}{
		"Kubernetes": {k8s.JSON(t), fields, want},
		"Vault": {vault.JSON(t), Reading{Fields: Fields{ClientCert: "certificate", ClientKey: "private_key",
			CACert: "ca_chain"}}, want},
		"ours, where nothing else is said": {mtlstest.Fields{clientCert: good[clientCert], clientKey: good[clientKey],
			"root": good[caCert]}.JSON(t), Reading{Fields: Fields{CACert: "root"}}, want},
		"a key that is not there": {mtlstest.Fields{"tls.crt": good[clientCert]}.JSON(t), fields,
			"secret a: client_key: has no value: there is no key of the name that mtls.secrets gives it"},
		"none of the keys": {[]byte(`{"x": "y"}`), fields,
			"secret a: is a JSON object without any of tls.crt, tls.key, ca.crt, server_cert, server_key, peer_ca"},
		"PEM, and fields": {[]byte(good[caCert].(string)), fields,
			"secret a: is not a JSON object, and fields in mtls.secrets is for one"},
		"as ca_cert": {[]byte(good[caCert].(string)), Reading{As: caCert}, "ca.crt false\n" + good[caCert].(string)},
		"as peer_ca": {[]byte(good[caCert].(string)), Reading{As: peerCA}, "ca.crt false\n" + good[caCert].(string)},
		"as ca_cert, a key": {[]byte(good[clientKey].(string)), Reading{As: caCert},
			"secret a: ca_cert: holds a private key"},
		"as ca_cert, JSON": {good.JSON(t), Reading{As: caCert}, "secret a: is JSON; as: ca_cert in mtls.secrets is for PEM"},
		"validated":        {[]byte(mismatch), Reading{}, "secret a: holds a private key that belongs to no certificate"},
		"not validated":    {[]byte(mismatch), Reading{Validate: unverified}, "cert-0.pem true\n" + mismatch},
		"not validated, but JSON": {good.JSON(t), Reading{Validate: unverified},
			"secret a: is JSON, which is always verified; validate: none in mtls.secrets is for PEM"},
	} {
		b, err := Parse("a", "1", c.content, c.how)
		var s *Set
		if err == nil {
			s, err = Assemble([]*Bundle{b}, nil, time.Now(), nil)
		}
		if err != nil {
			if !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("%s: %v, want %s", name, err, c.want)
			}
			continue
		}
		again, err := Restore(s.Origins(), s.Files, nil, s.Warnings, time.Now())
		if err != nil || dump(again) != c.want || dump(s) != c.want || again.Bundles[0].Reading != c.how {
			t.Errorf("%s: published\n%s\nrestored with %v, want\n%s", name, dump(s), err, c.want)
		}
	}
}

// PEM outside of JSON is verified as fields are.
func TestPlain(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	leaf, key := ca.Leaf(t, "node")
	keyText, anchor := mtlstest.KeyPEM(t, key), mtlstest.CertPEM(ca.Cert)
	leafText := func(change ...mtlstest.Change) string { return mtlstest.CertPEM(ca.LeafFor(t, "node", key, change...)) }
	past, future := mtlstest.Valid(-48*time.Hour, -24*time.Hour), mtlstest.Valid(24*time.Hour, 48*time.Hour)
	old := mtlstest.CertPEM(mtlstest.NewCA(t, "old", nil, past).Cert)
	weakKey := must.Get(rsa.GenerateKey(rand.Reader, 1024))(t, "make a weak key")
	weakRoot := mtlstest.CertPEM(mtlstest.NewCAFor(t, "weak", weakKey, nil).Cert)
	odd := mtlstest.NewCA(t, "odd", nil).Cert.Raw
	odd[bytes.Index(odd, []byte("\xa0\x03\x02\x01\x02"))+4] = 7 // no version of X.509
	rsaKey := must.Get(rsa.GenerateKey(rand.Reader, 2048))(t, "make an RSA key")
	sha1 := mtlstest.CertPEM(mtlstest.NewCAFor(t, "rsa", rsaKey, nil).LeafFor(t, "node", rsaKey,
		func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA1WithRSA }))
	oddText := pemBlock(certificate, odd)
	costly := mtlstest.CertPEM(mtlstest.NewCAFor(t, "costly", bigKey{8200, 65537}, ca).Cert)
	_, other := ca.Leaf(t, "other")

	for name, c := range map[string]struct{ text, err, warning string }{
		"pair":             {leafText() + anchor + keyText, "", ""},
		"key first":        {keyText + leafText(), "", ""},
		"early by minutes": {leafText(mtlstest.Valid(4*time.Minute, time.Hour)) + keyText, "", ""},
		"key of another": {leafText() + mtlstest.KeyPEM(t, other),
			"holds a private key that belongs to no certificate in it", ""},
		"one key too many": {leafText() + keyText + mtlstest.KeyPEM(t, other),
			"holds a private key that belongs to no certificate", ""},
		"expired":         {leafText(past) + anchor + keyText, `"CN=node" expired on`, ""},
		"future":          {leafText(future) + anchor + keyText, "held until it is valid, at ", ""},
		"expired, no key": {leafText(past) + anchor, `"CN=node" expired on`, ""},
		"future, no key":  {leafText(future), "held until it is valid, at ", ""},
		"weak key": {mtlstest.CertPEM(ca.LeafFor(t, "node", weakKey)) + mtlstest.KeyPEM(t, weakKey),
			"RSA key of 1024 bits", ""},
		"SHA-1":      {sha1 + anchor + mtlstest.KeyPEM(t, rsaKey), `"CN=node": signed with SHA1-RSA`, ""},
		"costly key": {anchor + costly, `"CN=costly": RSA key of 8200 bits`, ""},
		"weak root, leaf": {leafText() + keyText + weakRoot, "",
			`"CN=weak": RSA key of 1024 bits, want at least 2048; it is published all the same (SHA-256 `},
		"weak root in bundle": {anchor + weakRoot, "", `"CN=weak": RSA key of 1024 bits`},
		"weak root alone":     {weakRoot, `"CN=weak": RSA key of 1024 bits`, ""},
		"expired, of others":  {anchor + leafText(past), "", `"CN=node" expired on`},
		"expired root":        {anchor + old, "", `"CN=old" expired on`},
		"expired roots":       {old, `"CN=old" expired on`, ""},
		"odd member":          {anchor + oddText, "", `certificate 2, "CN=odd", does not parse: x509: `},
		"odd member alone":    {oddText, `certificate 1, "CN=odd", does not parse: x509: `, ""},
		"damaged member":      {anchor + pemBlock(certificate, leaf.Raw[:99]), "certificate 2 does not parse", ""},
		"trusted":             {pemBlock(trusted, ca.Cert.Raw), "holds a block labelled TRUSTED CERTIFICATE, which only", ""},
		"old label":           {strings.ReplaceAll(anchor, "CERTIFICATE", "X509 CERTIFICATE"), "", ""},
		"damaged key":         {pemBlock("RSA PRIVATE KEY", []byte("\x30\x00")), "RSA PRIVATE KEY does not parse", ""},
		"key of another kind": {anchor + pemBlock("PRIVATE KEY", ed448Key), "",
			"its key is Ed448, which programs in Go cannot use"},
		"encrypted key":        {leafText() + encryptedKey, "", ""},
		"not on its own lines": {strings.ReplaceAll(leafText()+keyText, "\n", " "), "", "its line breaks"},
	} {
		s, err := set([]byte(c.text))
		switch {
		case c.err != "":
			if err == nil || !strings.HasPrefix(err.Error(), "secret a: "+c.err) {
				t.Errorf("%s: %v, want %s", name, err, c.err)
			}
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case c.warning == "" && s.Warnings != nil || !strings.Contains(strings.Join(s.Warnings, "\n"), c.warning):
			t.Errorf("%s: warnings %q, want %q", name, s.Warnings, c.warning)
		case strings.Count(s.file("cert-0.pem"), "BEGIN") != strings.Count(c.text, "BEGIN"):
			t.Errorf("%s: a member is missing of what is published:\n%s", name, s.file("cert-0.pem"))
		}
	}

	// A file ends with the first certificate that its readers show to peers, or with the last of its anchors.
	inter := mtlstest.NewCA(t, "inter", ca, mtlstest.Valid(-time.Hour, time.Hour))
	for text, end := range map[string]*x509.Certificate{
		mtlstest.CertPEM(inter.LeafFor(t, "node", key), inter.Cert, ca.Cert) + keyText: inter.Cert,
		leafText() + keyText + old: leaf,
		anchor + old:               ca.Cert,
	} {
		if s, err := set([]byte(text)); err != nil || s.Files[0].Ends.Subject.String() != end.Subject.String() {
			t.Errorf("error %v, want that it ends with %q", err, end.Subject)
		}
	}
	// What is published already may expire.
	b := mustBundles(t, []byte(leafText(past)+keyText))
	if s, err := Assemble(b, b, time.Now(), nil); err != nil || len(s.Warnings) != 1 {
		t.Errorf("expired since its publication: %v, want a warning", err)
	}
	if _, err := set([]byte(leafText(future) + keyText)); !isHeld(err) {
		t.Errorf("from the future: %v, want held", err)
	}
	var rejected *RejectError
	if _, err := set([]byte(leafText(past) + keyText)); !errors.As(err, &rejected) || rejected.Field != plain {
		t.Errorf("expired: %v, want rejected", err)
	}
}

// ed448Key is the header of a private key whose algorithm crypto/x509 does not know, with an empty key.
var ed448Key = []byte("\x30\x0e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x71\x04\x02\x04\x00")

// What Go does not process is named: the certificate, the extension, the algorithm.
func TestNotProcessed(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	rsaKey := must.Get(rsa.GenerateKey(rand.Reader, 2048))(t, "make an RSA key")
	critical := func(value []byte, id ...int) mtlstest.Change {
		return func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: id, Critical: true, Value: value}}
		}
	}
	// NameConstraints, RFC 5280, section 4.2.1.10: permitted is the directoryName of an empty name.
	dirName := critical([]byte("\x30\x08\xa0\x06\x30\x04\xa4\x02\x30\x00"), 2, 5, 29, 30)
	toPSS := func(der []byte) []byte { // rsaEncryption to id-RSASSA-PSS
		oid := []byte("\x2a\x86\x48\x86\xf7\x0d\x01\x01")
		return bytes.Replace(der, append(oid, 1), append(oid, 10), 1)
	}
	pssKey := toPSS(must.Get(x509.MarshalPKCS8PrivateKey(rsaKey))(t, "encode a key"))

	for name, c := range map[string]struct {
		parent *mtlstest.CA
		change []mtlstest.Change
		key    []byte
		want   string
	}{
		"extension of the leaf": {ca, []mtlstest.Change{critical([]byte{5, 0}, 1, 3, 6, 1, 4, 1, 55555, 1)}, nil,
			`client_cert: does not lead to ca_cert: "CN=node" has a critical extension that programs in Go do not process: ` +
				`1.3.6.1.4.1.55555.1`},
		"extension of an intermediate": {mtlstest.NewCA(t, "inter", ca, critical([]byte{5, 0}, 1, 2, 3)), nil, nil,
			`client_cert: does not lead to ca_cert: "CN=inter" has a critical extension that programs in Go do not ` +
				`process: 1.2.3`},
		"directoryName": {mtlstest.NewCA(t, "inter", ca, dirName), nil, nil,
			`client_cert: does not lead to ca_cert: "CN=inter" has a critical extension that programs in Go do not ` +
				`process: name constraints of a kind other than DNS, IP, email and URI, such as directoryName (2.5.29.30)`},
		"usage of an intermediate": {mtlstest.NewCA(t, "inter", ca, mtlstest.Usage(x509.ExtKeyUsageServerAuth)), nil, nil,
			`client_cert: does not lead to ca_cert: "CN=inter" is not for certificates for client authentication`},
		"RSA-PSS key": {ca, nil, pssKey, `client_key: PRIVATE KEY does not parse: its key is RSA for PSS signatures alone ` +
			`(id-RSASSA-PSS), which programs in Go cannot use; want RSA (rsaEncryption), ECDSA or Ed25519`},
	} {
		leaf := c.parent.LeafFor(t, "node", rsaKey, c.change...)
		fields := mtlstest.Fields{clientCert: mtlstest.CertPEM(leaf, c.parent.Cert), clientKey: mtlstest.KeyPEM(t, rsaKey),
			caCert: mtlstest.CertPEM(ca.Cert)}
		if c.key != nil {
			fields[clientKey] = pemBlock("PRIVATE KEY", c.key)
		}
		if _, err := set(fields.JSON(t)); err == nil || err.Error() != "secret a: "+c.want {
			t.Errorf("%s: %v\nwant %s", name, err, c.want)
		}
	}
	leaf := pemBlock(certificate, toPSS(ca.LeafFor(t, "node", rsaKey).Raw))
	_, err := set(mtlstest.Fields{clientCert: leaf}.JSON(t))
	if want := `secret a: client_cert: "CN=node": key is RSA for PSS signatures alone (id-RSASSA-PSS)`; err == nil ||
		!strings.HasPrefix(err.Error(), want) {
		t.Errorf("RSA-PSS certificate: %v\nwant %s", err, want)
	}
}

package certset

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// What people store by mistake. Each function here completes a sentence with what the content looks like and what to do
// about it, never with a word of the content. It returns "" for what it does not recognise.

// oddDashes completes the sentence for text with a BEGIN line that is not written as PEM has it.
const oddDashes = "; a BEGIN line and an END line are in capital letters, with five dashes before and after them"

// describe completes the sentence for text that is not PEM.
func describe(text string) string {
	trimmed := strings.TrimFunc(text, isSpace)
	switch {
	case strings.Contains(strings.ToUpper(text), "BEGIN "):
		return oddDashes
	case strings.HasPrefix(trimmed, "file:") || strings.HasPrefix(trimmed, "fileb:") || isPath(trimmed):
		return ", but the name of a file; store what is in the file"
	case strings.HasPrefix(trimmed, "arn:"):
		return ", but an ARN; store what it stands for"
	}
	if what := holding(fromBase64(trimmed)); what != "" {
		return ", but base64" + what
	}
	return ""
}

func isPath(text string) bool {
	return len(text) < 256 && strings.HasPrefix(text, "/") && !strings.ContainsFunc(text, isSpace) &&
		slices.ContainsFunc([]string{".pem", ".crt", ".cer", ".key", ".p12", ".pfx"}, func(ext string) bool {
			return strings.HasSuffix(text, ext)
		})
}

// fromBase64 decodes a text that is nothing but base64, with or without padding.
func fromBase64(text string) []byte {
	text = strings.Join(strings.FieldsFunc(text, isSpace), "")
	content, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(text, "="))
	if err != nil {
		return nil
	}
	return content
}

// holding completes the sentence with what base64 holds.
func holding(content []byte) string {
	switch {
	case bytes.HasPrefix(bytes.TrimLeftFunc(content, isSpace), []byte("{")):
		return " of a JSON object; store the object itself"
	case bytes.Contains(content, []byte(begin)):
		return " of PEM; store the PEM itself"
	}
	if what := describeDER(content); what != "" {
		return " of " + what + "; store it as PEM, with a BEGIN line and an END line"
	}
	return ""
}

// describeDER names the format of binary content.
func describeDER(der []byte) string {
	var p12 struct {
		Version  int
		AuthSafe asn1.RawValue
		MacData  asn1.RawValue `asn1:"optional"`
	}
	if _, err := x509.ParseCertificate(der); err == nil {
		return "a certificate in DER"
	}
	if keyKind(der) != "" {
		return "a private key in DER"
	}
	if rest, err := asn1.Unmarshal(der, &p12); err == nil && len(rest) == 0 && p12.Version == 3 {
		return "a PKCS #12 file, which openssl pkcs12 -nodes turns into PEM"
	}
	switch {
	case bytes.HasPrefix(der, []byte{0xfe, 0xed, 0xfe, 0xed}):
		return "a Java key store, which keytool turns into PKCS #12"
	case isSequence(der):
		return "DER"
	}
	return ""
}

// isUTF16 reports whether content is text in UTF-16, with or without a byte order mark.
func isUTF16(content []byte) bool {
	if bytes.HasPrefix(content, []byte{0xff, 0xfe}) || bytes.HasPrefix(content, []byte{0xfe, 0xff}) {
		return true
	}
	if len(content) < 4 || content[0] == 0 == (content[1] == 0) {
		return false
	}
	for i, c := range content {
		if (c == 0) != (content[i%2] == 0) || c >= 0x80 {
			return false
		}
	}
	return true
}

// keyKind names the form of a private key, and returns "" for anything else.
func keyKind(der []byte) string {
	if _, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return "RSA PRIVATE KEY"
	}
	if _, err := x509.ParseECPrivateKey(der); err == nil {
		return "EC PRIVATE KEY"
	}
	if _, ok := pkcs8Algorithm(der); ok {
		return "PRIVATE KEY"
	}
	return ""
}

// pkcs8Algorithm returns the algorithm of a key in PKCS #8.
func pkcs8Algorithm(der []byte) (asn1.ObjectIdentifier, bool) {
	var key struct {
		Version    int
		Algorithm  pkix.AlgorithmIdentifier
		PrivateKey []byte
		Attributes asn1.RawValue `asn1:"optional,tag:0"`
		PublicKey  asn1.RawValue `asn1:"optional,tag:1"`
	}
	rest, err := asn1.Unmarshal(der, &key)
	return key.Algorithm.Algorithm, err == nil && len(rest) == 0
}

// algorithms are those of keys that crypto/x509 does not know.
var algorithms = map[string]string{
	"1.2.840.113549.1.1.10": "RSA for PSS signatures alone (id-RSASSA-PSS)",
	"1.2.840.10040.4.1":     "DSA",
	"1.3.101.111":           "X448",
	"1.3.101.113":           "Ed448",
}

// describeAlgorithm names the algorithm of a key that is not RSA, ECDSA or Ed25519.
func describeAlgorithm(id asn1.ObjectIdentifier) string {
	name := algorithms[id.String()]
	if name == "" {
		name = "algorithm " + id.String()
	}
	return fmt.Sprintf("key is %s, which programs in Go cannot use; want RSA (rsaEncryption), ECDSA or Ed25519", name)
}

// whyKey says why a private key with a label does not parse.
func whyKey(label string, der []byte) string {
	id, ok := pkcs8Algorithm(der)
	known := id.Equal(oidRSA) || id.Equal(oidEC) || id.Equal(oidEd25519) || id.Equal(oidX25519)
	switch kind := keyKind(der); {
	case ok && !known:
		return ": its " + describeAlgorithm(id)
	case kind != "" && kind != label:
		return ": it is of the form that is labelled " + kind
	case label == "EC PRIVATE KEY" || ok && id.Equal(oidEC):
		return ": want one on P-256, P-384 or P-521, by name"
	}
	return ""
}

// The algorithms of keys that crypto/x509 knows.
var (
	oidRSA     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidEC      = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidEd25519 = asn1.ObjectIdentifier{1, 3, 101, 112}
	oidX25519  = asn1.ObjectIdentifier{1, 3, 101, 110}
)

// tools are programs and services whose secrets have other names for the same fields.
var tools = []struct {
	name string
	keys []string // all of them are there
	Fields
}{
	{"a Kubernetes TLS secret", []string{"tls.crt", "tls.key"},
		Fields{ClientCert: "tls.crt", ClientKey: "tls.key", CACert: "ca.crt"}},
	{"Vault's PKI engine", []string{"certificate", "private_key", "ca_chain"},
		Fields{ClientCert: "certificate", ClientKey: "private_key", CACert: "ca_chain"}},
	{"Vault's PKI engine", []string{"certificate", "private_key"},
		Fields{ClientCert: "certificate", ClientKey: "private_key", CACert: "issuing_ca"}},
	{"ACM's export-certificate, whose PrivateKey has to be decrypted first",
		[]string{"Certificate", "CertificateChain", "PrivateKey"},
		Fields{ClientCert: "Certificate", ClientKey: "PrivateKey", CACert: "CertificateChain"}},
	{"AWS Private CA's get-certificate, to which the key has to be added", []string{"Certificate", "CertificateChain"},
		Fields{ClientCert: "Certificate", CACert: "CertificateChain"}},
	{"certbot", []string{"fullchain.pem", "privkey.pem"},
		Fields{ClientCert: "fullchain.pem", ClientKey: "privkey.pem", CACert: "chain.pem"}},
	{"cfssl, to which the CA has to be added", []string{"cert", "key"},
		Fields{ClientCert: "cert", ClientKey: "key"}},
	{"SPIFFE helpers", []string{"svid.pem", "svid_key.pem"},
		Fields{ClientCert: "svid.pem", ClientKey: "svid_key.pem", CACert: "svid_bundle.pem"}},
	{"Terraform's providers", []string{"certificate_pem", "private_key_pem"},
		Fields{ClientCert: "certificate_pem", ClientKey: "private_key_pem", CACert: "issuer_pem"}},
	{"Terraform's tls provider", []string{"cert_pem", "private_key_pem"},
		Fields{ClientCert: "cert_pem", ClientKey: "private_key_pem", CACert: "ca_cert_pem"}},
}

// describe completes the sentence for a JSON object without any known field. It looks at nested objects down to depth.
func (o object) describe(depth int) string {
	for _, tool := range tools {
		if slices.ContainsFunc(tool.keys, func(key string) bool { return len(o.members[key]) == 0 }) {
			continue
		}
		var list []string
		for i, theirs := range tool.list() {
			if len(o.members[theirs]) > 0 {
				list = append(list, jsonFields[i]+": "+theirs)
			}
		}
		return fmt.Sprintf("; its keys are those of %s: set fields: {%s} for it in mtls.secrets", tool.name,
			strings.Join(list, ", "))
	}
	for _, key := range o.keys {
		if content := unwrap(o.members[key][0]); depth > 0 && content != nil && means(content, depth-1) {
			return fmt.Sprintf("; it holds an object that has some%s; store that object itself", under(key))
		}
	}
	for _, key := range o.keys {
		if squeeze(key) != "" && slices.ContainsFunc(jsonFields, func(f string) bool { return squeeze(f) == squeeze(key) }) {
			return "; they are written like that, in lower case and with an underscore"
		}
	}
	return ""
}

// means reports whether content is an object that would be understood if it were the secret.
func means(content []byte, depth int) bool {
	o := parseObject(content)
	has := func(field string) bool { return len(o.members[field]) > 0 }
	return o.is && (slices.ContainsFunc(jsonFields, has) || o.describe(depth) != "")
}

// unwrap returns the object that a value is, or that a string holds.
func unwrap(value json.RawMessage) []byte {
	var text string
	if json.Unmarshal(value, &text) == nil {
		value = []byte(text)
	}
	if bytes.HasPrefix(bytes.TrimSpace(value), []byte("{")) {
		return value
	}
	return nil
}

// under names a key, unless it may be part of the secret.
func under(key string) string {
	switch {
	case key == "SecretString":
		return " in SecretString, as aws secretsmanager get-secret-value prints it"
	case isName(key):
		return " in " + key
	}
	return ""
}

// squeeze returns the common spelling of keys such as clientCert, client-cert and CLIENT_CERT.
func squeeze(key string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "", ".", "", " ", "").Replace(key))
}

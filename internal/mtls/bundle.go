package mtls

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
)

// maxSecretBytes bounds a secret. Secrets Manager's own limit is 65,536 bytes (API reference, PutSecretValue).
const maxSecretBytes = 64 << 10

// maxChain bounds the certificates in client_cert or server_cert, and with them the work of putting them in order.
const maxChain = 16

// The keys of a JSON secret, and the field of a secret that is not one.
const (
	clientCert = "client_cert"
	clientKey  = "client_key"
	caCert     = "ca_cert"
	serverCert = "server_cert"
	serverKey  = "server_key"
	plain      = ""
)

// caOverlap is the key of a JSON secret that drops the anchors of earlier versions at once, on all nodes, by false.
const caOverlap = "ca_overlap"

var jsonFields = []string{clientCert, clientKey, caCert, serverCert, serverKey}

// RejectError says why a secret cannot be published. It never holds content of the secret: at most the subject, the
// dates and the like of a certificate, which are public.
type RejectError struct {
	Secret string
	Field  string // a key of the JSON secret; empty: the secret as a whole
	Reason string
}

func (e *RejectError) Error() string {
	if e.Field == plain {
		return fmt.Sprintf("secret %s: %s", e.Secret, e.Reason)
	}
	return fmt.Sprintf("secret %s: %s: %s", e.Secret, e.Field, e.Reason)
}

// bundle is one version of one secret, parsed. Everything about it that depends neither on the time nor on other
// fields has been checked.
type bundle struct {
	secret, version string
	fields          map[string]*part // by the keys above
	noOverlap       bool             // ca_overlap: false
	warnings        []string
}

// part is the content of one field: blocks in canonical form, without the text around them.
type part struct {
	blocks []*pem.Block
	certs  []*x509.Certificate
	key    crypto.Signer // of client_key and server_key
	// private: only the owner of the published files may read it.
	private bool
}

func (p *part) pem() []byte {
	return encodePEM(p.blocks...)
}

// parseBundle reads the content of a secret. A JSON object with one of the known keys gives those fields; whatever
// else it is, it is taken as PEM and gives the field plain.
func parseBundle(secret, version string, content []byte) (*bundle, error) {
	reject := func(field, format string, args ...any) (*bundle, error) {
		return nil, &RejectError{secret, field, fmt.Sprintf(format, args...)}
	}
	if len(content) > maxSecretBytes {
		return reject(plain, "is larger than %d bytes", maxSecretBytes)
	}
	content = bytes.TrimPrefix(content, []byte("\ufeff"))
	b := &bundle{secret: secret, version: version, fields: make(map[string]*part)}
	object := parseObject(content)
	if len(object.known) == 0 {
		p, err := parsePlain(normalise(string(content)))
		if err != nil && object.is {
			return reject(plain, "is a JSON object without any of %s", strings.Join(jsonFields, ", "))
		}
		if err != nil && object.err != nil {
			return reject(plain, "is neither PEM nor JSON: %v", object.err)
		}
		if err != nil {
			return reject(plain, "%v", err)
		}
		b.fields[plain] = p
		return b, nil
	}
	for _, field := range jsonFields {
		switch raw := object.known[field]; {
		case len(raw) == 0:
		case len(raw) > 1:
			return reject(field, "appears twice")
		default:
			var text *string
			if err := json.Unmarshal(raw[0], &text); err != nil {
				return reject(field, "is not a string")
			}
			if text == nil { // null, as Terraform's jsonencode writes what is not set
				continue
			}
			p, err := parseField(field, normalise(*text))
			if err != nil {
				return reject(field, "%v", err)
			}
			b.fields[field] = p
		}
	}
	if len(b.fields) == 0 {
		return reject(plain, "has only null in it")
	}
	switch raw := object.overlap; {
	case len(raw) > 1:
		return reject(caOverlap, "appears twice")
	case len(raw) == 1 && string(raw[0]) == "false":
		b.noOverlap = true
	case len(raw) == 1:
		return reject(caOverlap, "is not false, which drops the anchors of earlier versions at once; leave it out otherwise")
	}
	b.warnings = object.warnings()
	return b, nil
}

func parseField(field, text string) (*part, error) {
	if field == clientKey || field == serverKey {
		return parseKey(text)
	}
	p, err := parseCerts(text)
	if err != nil {
		return nil, err
	}
	for _, c := range p.certs {
		if err := checkCert(c, field == caCert); err != nil {
			return nil, fmt.Errorf("%q: %w", c.Subject, err)
		}
	}
	if field != caCert && len(p.certs) > maxChain {
		return nil, fmt.Errorf("holds %d certificates, at most %d are allowed", len(p.certs), maxChain)
	}
	return p, nil
}

// parseCerts reads a field that holds nothing but certificates. Doubled ones are dropped.
func parseCerts(text string) (*part, error) {
	blocks, err := decodePEM(text)
	if err != nil {
		return nil, err
	}
	p := new(part)
	for _, block := range blocks {
		if isPrivate(block.Type) {
			return nil, fmt.Errorf("holds a private key")
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("holds %s, want only CERTIFICATE", describeLabel(block.Type))
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d does not parse: %w", len(p.certs)+1, err)
		}
		if !slices.ContainsFunc(p.certs, c.Equal) {
			p.add(c)
		}
	}
	return p, nil
}

func (p *part) add(c *x509.Certificate) {
	p.certs = append(p.certs, c)
	p.blocks = append(p.blocks, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// parseKey reads a field that holds exactly one private key.
func parseKey(text string) (*part, error) {
	blocks, err := decodePEM(text)
	if err != nil {
		return nil, err
	}
	p := &part{private: true}
	for _, block := range blocks {
		switch {
		case block.Type == "EC PARAMETERS": // openssl ecparam -genkey puts the curve before the key
			continue
		case block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["Proc-Type"] != "":
			return nil, fmt.Errorf("is encrypted with a passphrase that nobody here knows")
		case !isPrivate(block.Type):
			return nil, fmt.Errorf("holds %s, want only one private key", describeLabel(block.Type))
		case p.key != nil:
			return nil, fmt.Errorf("holds more than one private key")
		}
		key, err := parsePrivateKey(block)
		if err != nil {
			return nil, err
		}
		p.key = key
		p.blocks = append(p.blocks, &pem.Block{Type: block.Type, Bytes: block.Bytes})
	}
	if p.key == nil {
		return nil, fmt.Errorf("holds no private key")
	}
	return p, nil
}

// parsePrivateKey keeps the parsers' own errors to itself: what they say about a key is not ours to repeat.
func parsePrivateKey(block *pem.Block) (crypto.Signer, error) {
	var key any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("holds %s, want PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY", describeLabel(block.Type))
	}
	if err != nil {
		return nil, fmt.Errorf("%s does not parse", block.Type)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("cannot sign: want RSA, ECDSA or Ed25519")
	}
	return signer, checkStrength(signer.Public())
}

// parsePlain reads a secret that is PEM of any kind. Only a file of nothing but certificates is public.
func parsePlain(text string) (*part, error) {
	blocks, err := decodePEM(text)
	if err != nil {
		return nil, err
	}
	p := new(part)
	for _, block := range blocks {
		if block.Type == "CERTIFICATE" {
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("certificate %d does not parse: %w", len(p.certs)+1, err)
			}
			p.add(c)
			continue
		}
		p.private = true
		if isPrivate(block.Type) && block.Headers["Proc-Type"] == "" && !isSequence(block.Bytes) {
			return nil, fmt.Errorf("%s does not parse", describeLabel(block.Type))
		}
		p.blocks = append(p.blocks, canonical(block))
	}
	return p, nil
}

package certset

import (
	"cmp"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
)

// maxChain bounds the certificates in client_cert or server_cert, and with them the work of putting them in order,
// maxAnchors those that one secret gives for ca.crt, maxJoined those that several give.
const (
	maxChain   = 16
	maxAnchors = 100
	maxJoined  = 300
)

// part is the content of one field: blocks in canonical form, without the text around them.
type part struct {
	blocks  []*pem.Block
	certs   []*x509.Certificate
	key     crypto.Signer       // of client_key and server_key
	private bool                // only the owner of the published files may read it
	leaves  []*x509.Certificate // of plain: those that its readers show to peers
	notes   []string            // what its owner should know of it
}

func (p *part) pem() []byte { return encodePEM(p.blocks...) }

// pkcs8 returns the key as PKCS #8, whatever form the secret has it in.
func (p *part) pkcs8() (*pem.Block, error) {
	der, err := x509.MarshalPKCS8PrivateKey(p.key)
	return &pem.Block{Type: "PRIVATE KEY", Bytes: der}, err
}

func (p *part) add(c *x509.Certificate) {
	p.certs = append(p.certs, c)
	p.blocks = append(p.blocks, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// parseField reads a field. Without strict, PEM outside of JSON is not verified.
func parseField(field, text string, strict bool) (p *part, err error) {
	blocks, repaired, err := decodePEM(text)
	if err != nil {
		return nil, err
	}
	for i, block := range blocks {
		if repaired && !isEncrypted(block) && !isSequence(block.Bytes) {
			return nil, damaged(i, block.Type, "does not parse")
		}
	}
	switch field {
	case clientKey, serverKey:
		p, err = parseKey(blocks)
	case caCert, peerCA:
		p, err = parseAnchors(blocks)
	case plain:
		p, err = parsePlain(blocks, strict)
	default:
		p, err = parseChain(blocks)
	}
	if err == nil && repaired {
		p.note("its line breaks were lost or moved on the way; they are put back")
	}
	return p, err
}

// maxNotes bounds the notes about a field: each is a line in the log.
const maxNotes = 20

func (p *part) note(format string, args ...any) {
	switch len(p.notes) {
	case maxNotes + 1:
	case maxNotes:
		p.notes = append(p.notes, "there is more like that")
	default:
		p.notes = append(p.notes, fmt.Sprintf(format, args...))
	}
}

// parseChain reads a field of a certificate and its intermediates.
func parseChain(blocks []*pem.Block) (*part, error) {
	if err := checkLabels(blocks); err != nil {
		return nil, err
	}
	p := new(part)
	for i, block := range blocks {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d does not parse: %w", i+1, err)
		}
		if err := checkCert(c, false); err != nil {
			return nil, fmt.Errorf("%q: %w", c.Subject, err)
		}
		if !slices.ContainsFunc(p.certs, c.Equal) {
			p.add(c)
		}
	}
	if len(p.certs) > maxChain {
		return nil, fmt.Errorf("holds %d certificates, at most %d are allowed", len(p.certs), maxChain)
	}
	return p, nil
}

// checkLabels returns an error unless all blocks are certificates.
func checkLabels(blocks []*pem.Block) error {
	for _, block := range blocks {
		switch {
		case isPrivate(block.Type):
			return fmt.Errorf("holds a private key")
		case block.Type == trusted:
			return errTrusted
		case block.Type != certificate:
			return fmt.Errorf("holds %s, want only CERTIFICATE", describeLabel(block.Type))
		}
	}
	return nil
}

// errTrusted is about the label that openssl x509 -trustout gives.
var errTrusted = fmt.Errorf("holds %s, which only programs with OpenSSL read; write it without -trustout",
	describeLabel(trusted))

// parseAnchors reads a field of anchors. Bundles are made by others, over decades: one member that cannot be used is
// left out, and spoils nothing.
func parseAnchors(blocks []*pem.Block) (*part, error) {
	if err := checkLabels(blocks); err != nil {
		return nil, err
	}
	p := new(part)
	var first error
	for i, block := range blocks {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			err = unparsed(i, block.Bytes, err)
		} else if err = checkCert(c, true); err != nil {
			err = fmt.Errorf("%q: %w", c.Subject, err)
		}
		_, costly := errors.AsType[costlyError](err)
		switch {
		case costly:
			return nil, err
		case err != nil:
			first = cmp.Or(first, err)
			p.note("%v; it is left out (SHA-256 %s)", err, digest(block.Bytes))
		case !slices.ContainsFunc(p.certs, c.Equal):
			p.add(c)
		}
	}
	if len(p.certs) == 0 {
		return nil, first
	}
	return p, nil
}

// unparsed names the subject of a certificate that crypto/x509 does not parse: number i, from 0.
func unparsed(i int, der []byte, err error) error {
	var c struct {
		TBS struct {
			Version          int `asn1:"optional,explicit,default:0,tag:0"`
			Serial           *big.Int
			Algorithm        asn1.RawValue
			Issuer, Validity asn1.RawValue
			Subject          pkix.RDNSequence
		}
	}
	subject := "of an unknown subject"
	if _, err := asn1.Unmarshal(der, &c); err == nil {
		subject = fmt.Sprintf("%q", c.TBS.Subject)
	}
	return fmt.Errorf("certificate %d, %s, does not parse: %w", i+1, subject, err)
}

// parseKey reads a field that holds exactly one private key.
func parseKey(blocks []*pem.Block) (*part, error) {
	p := &part{private: true}
	for _, block := range blocks {
		switch {
		case block.Type == "EC PARAMETERS": // openssl ecparam -genkey puts the curve before the key
			continue
		case isEncrypted(block):
			return nil, fmt.Errorf("is encrypted; store it without a passphrase")
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
		p.blocks = append(p.blocks, block)
	}
	if p.key == nil {
		return nil, fmt.Errorf("holds no private key")
	}
	return p, nil
}

// parsePrivateKey keeps the parsers' own errors to itself: what they say about a key is not ours to repeat.
func parsePrivateKey(block *pem.Block) (crypto.Signer, error) {
	parse := keyParser(block.Type)
	if parse == nil {
		return nil, fmt.Errorf("holds %s, want PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY",
			describeLabel(block.Type))
	}
	key, err := parse(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s does not parse%s", block.Type, whyKey(block.Type, block.Bytes))
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("cannot sign: want RSA, ECDSA or Ed25519")
	}
	return signer, checkStrength(signer.Public())
}

// keyParser returns how a key with a label is parsed; nil: this program does not know.
func keyParser(label string) func(der []byte) (any, error) {
	switch label {
	case "PRIVATE KEY":
		return x509.ParsePKCS8PrivateKey
	case "RSA PRIVATE KEY":
		return func(der []byte) (any, error) { return x509.ParsePKCS1PrivateKey(der) }
	case "EC PRIVATE KEY":
		return func(der []byte) (any, error) { return x509.ParseECPrivateKey(der) }
	}
	return nil
}

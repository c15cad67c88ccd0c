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
// maxAnchors those of ca.crt.
const (
	maxChain   = 16
	maxAnchors = 100
)

// part is the content of one field: blocks in canonical form, without the text around them.
type part struct {
	blocks  []*pem.Block
	certs   []*x509.Certificate
	key     crypto.Signer // of client_key and server_key
	private bool          // only the owner of the published files may read it
	leftOut []string      // certificates that are not published, each with the reason
}

func (p *part) pem() []byte { return encodePEM(p.blocks...) }

func (p *part) add(c *x509.Certificate) {
	p.certs = append(p.certs, c)
	p.blocks = append(p.blocks, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func parseField(field, text string) (*part, error) {
	if field == clientKey || field == serverKey {
		return parseKey(text)
	}
	if isAnchors(field) {
		return parseAnchors(text)
	}
	blocks, err := certBlocks(text)
	if err != nil {
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

// certBlocks reads a field that holds nothing but certificates.
func certBlocks(text string) ([]*pem.Block, error) {
	blocks, err := decodePEM(text)
	if err != nil {
		return nil, err
	}
	for _, block := range blocks {
		if isPrivate(block.Type) {
			return nil, fmt.Errorf("holds a private key")
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("holds %s, want only CERTIFICATE", describeLabel(block.Type))
		}
	}
	return blocks, nil
}

// parseAnchors reads a field of anchors. Bundles are made by others, over decades: one member that cannot be used is left
// out, and spoils nothing.
func parseAnchors(text string) (*part, error) {
	blocks, err := certBlocks(text)
	if err != nil {
		return nil, err
	}
	p := new(part)
	var first error
	for i, block := range blocks {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			err = fmt.Errorf("certificate %d, %s, does not parse: %w", i+1, describeDER(block.Bytes), err)
		} else if err = checkCert(c, true); err != nil {
			err = fmt.Errorf("%q: %w", c.Subject, err)
		}
		_, costly := errors.AsType[costlyError](err)
		switch {
		case costly:
			return nil, err
		case err != nil:
			first = cmp.Or(first, err)
			p.leftOut = append(p.leftOut, fmt.Sprintf("%v; it is left out (SHA-256 %s)", err, Digest(block.Bytes)))
		case !slices.ContainsFunc(p.certs, c.Equal):
			p.add(c)
		}
	}
	if len(p.certs) == 0 {
		return nil, first
	}
	return p, nil
}

// describeDER names the subject of a certificate that crypto/x509 does not parse.
func describeDER(der []byte) string {
	var c struct {
		TBS struct {
			Version          int `asn1:"optional,explicit,default:0,tag:0"`
			Serial           *big.Int
			Algorithm        asn1.RawValue
			Issuer, Validity asn1.RawValue
			Subject          pkix.RDNSequence
		}
	}
	if _, err := asn1.Unmarshal(der, &c); err != nil {
		return "of an unknown subject"
	}
	return fmt.Sprintf("%q", c.TBS.Subject)
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
		return nil, fmt.Errorf("holds %s, want PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY",
			describeLabel(block.Type))
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

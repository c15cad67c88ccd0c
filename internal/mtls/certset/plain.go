package certset

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

// parsePlain reads PEM of any kind that is not in JSON. Only a file of nothing but certificates is public. Strict holds
// it to what a field has to keep; what this program does not know is published as it is, with a note.
func parsePlain(blocks []*pem.Block, strict bool) (*part, error) {
	s := plainPart{part: new(part), weak: make(map[*x509.Certificate]error)}
	for i, block := range blocks {
		s.blocks = append(s.blocks, block)
		s.private = s.private || block.Type != certificate
		var err error
		switch {
		case !strict && block.Type == certificate:
			if c, err := x509.ParseCertificate(block.Bytes); err == nil {
				s.certs = append(s.certs, c)
			}
		case !strict:
		case block.Type == certificate:
			err = s.takeCert(i, block.Bytes)
		case block.Type == trusted:
			err = errTrusted
		case isPrivate(block.Type):
			err = s.takeKey(block)
		}
		if err != nil {
			return nil, err
		}
	}
	if s.first != nil && len(s.weak) == len(s.certs) {
		return nil, s.first // there is nothing else
	}
	return s.part, s.findLeaves()
}

// plainPart is a part in the making.
type plainPart struct {
	*part
	keys  []crypto.Signer
	weak  map[*x509.Certificate]error
	odd   [][]byte // certificates that do not parse
	first error    // what is wrong with the first that is weak or does not parse
}

func (s *plainPart) takeCert(i int, der []byte) error {
	c, err := x509.ParseCertificate(der)
	switch {
	case err != nil && !isSequence(der):
		return fmt.Errorf("certificate %d does not parse: %w", i+1, err) // it is damaged
	case err != nil:
		err = unparsed(i, der, err)
		s.odd = append(s.odd, der)
	default:
		s.certs = append(s.certs, c)
		if err = checkCert(c, isRoot(c)); err == nil || errors.Is(err, errNoCA) {
			return nil
		}
		err = fmt.Errorf("%q: %w", c.Subject, err)
		s.weak[c] = err
	}
	if _, costly := errors.AsType[costlyError](err); costly {
		return err
	}
	s.first = cmp.Or(s.first, err)
	s.note("%v; it is published all the same (SHA-256 %s)", err, digest(der))
	return nil
}

// takeKey verifies a private key of a kind that this program knows.
func (s *plainPart) takeKey(block *pem.Block) error {
	switch {
	case isEncrypted(block):
		return nil
	case !isSequence(block.Bytes):
		return fmt.Errorf("%s does not parse", describeLabel(block.Type))
	case keyParser(block.Type) == nil:
		return nil
	}
	key, err := parsePrivateKey(block)
	if err != nil && isForeign(block.Bytes) {
		s.note("%v; it is published without being verified", err)
		return nil
	}
	if err == nil {
		s.keys = append(s.keys, key)
	}
	return err
}

// findLeaves finds the certificates that belong to the keys or, without a key, the one at the head of a chain.
func (s *plainPart) findLeaves() error {
	for _, key := range s.keys {
		i := indexLeaf(s.certs, key)
		switch {
		case i >= 0 && s.weak[s.certs[i]] != nil:
			return s.weak[s.certs[i]]
		case i >= 0:
			s.leaves = append(s.leaves, s.certs[i])
		case len(s.certs) > 0 && !s.isOdd(key):
			return fmt.Errorf("holds a private key that belongs to no certificate in it, not to %q", s.certs[0].Subject)
		}
	}
	notCA := func(c *x509.Certificate) bool { return !c.IsCA }
	if len(s.keys) == 0 && len(s.certs) > 0 && notCA(s.certs[0]) && !slices.ContainsFunc(s.certs[1:], notCA) {
		s.leaves = s.certs[:1]
	}
	return nil
}

// isOdd reports whether a key may belong to a certificate that does not parse.
func (s *plainPart) isOdd(key crypto.Signer) bool {
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	return err == nil && slices.ContainsFunc(s.odd, func(der []byte) bool { return bytes.Contains(der, public) })
}

// isForeign reports whether der is a private key that is whole, and of an algorithm or a curve that crypto/x509 does
// not know.
func isForeign(der []byte) bool {
	var sec1 struct {
		Version    int
		PrivateKey []byte
		Parameters asn1.RawValue  `asn1:"optional,explicit,tag:0"`
		PublicKey  asn1.BitString `asn1:"optional,explicit,tag:1"`
	}
	if id, ok := pkcs8Algorithm(der); ok {
		return !id.Equal(oidRSA) && !id.Equal(oidEd25519)
	}
	rest, err := asn1.Unmarshal(der, &sec1)
	return err == nil && len(rest) == 0 && sec1.Version == 1
}

// ends returns the certificate that ends the use of a plain part: the first to expire of those that its readers show to
// peers, with the intermediates that these name; or the last to expire of the others. It may be nil.
func (p *part) ends(now time.Time) *x509.Certificate {
	var shown path
	for _, leaf := range p.leaves {
		chain := path{leaf}
		for len(chain) < maxChain {
			i := slices.IndexFunc(p.certs, func(issuer *x509.Certificate) bool {
				named := bytes.Equal(issuer.RawSubject, chain[len(chain)-1].RawIssuer)
				return named && !isRoot(issuer) && !now.After(issuer.NotAfter)
			})
			if i < 0 {
				break
			}
			chain = append(chain, p.certs[i])
		}
		shown = append(shown, chain...)
	}
	switch {
	case shown != nil:
		return shown.ends()
	case len(p.certs) == 0:
		return nil
	}
	return slices.MaxFunc(p.certs, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
}

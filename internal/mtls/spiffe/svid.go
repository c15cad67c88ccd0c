package spiffe

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sevagent/internal/mtls/source"
)

// svid is an offer that can be published.
type svid struct {
	id      string
	version string
	leaf    *x509.Certificate
	content source.Secret // nil: dropped
}

// choose returns the offer with a SPIFFE ID or, without one, the only offer. Of several with the same ID, which SPIRE
// sends in the order of their entries' IDs, it is the first.
func choose(offers []offer, id string) (*offer, error) {
	if len(offers) == 0 {
		return nil, errors.New("the SPIRE agent's answer has no SVID")
	}
	var ids []string
	for i := range offers {
		o := &offers[i]
		if err := checkID(o.id); err != nil {
			return nil, fmt.Errorf("the SPIRE agent offers the SPIFFE ID %.*q: %w", maxText, o.id, err)
		}
		if o.id == id {
			return o, nil
		}
		if !slices.Contains(ids, o.id) {
			ids = append(ids, o.id)
		}
	}
	switch {
	case id != "":
		err := fmt.Errorf("the SPIRE agent offers %s, and not %s", strings.Join(ids, ", "), id)
		return nil, source.Advise(err, "create an entry for that, or correct id")
	case len(ids) > 1:
		err := fmt.Errorf("the SPIRE agent offers %s", strings.Join(ids, ", "))
		return nil, source.Advise(err, "set id to the one to publish")
	}
	return &offers[0], nil
}

// checkID returns why a text is not a SPIFFE ID: SPIFFE-ID, section 2.
func checkID(id string) error {
	const name = "abcdefghijklmnopqrstuvwxyz0123456789.-_"
	const more = name + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	rest, ok := strings.CutPrefix(id, "spiffe://")
	domain, path, hasPath := strings.Cut(rest, "/")
	switch {
	case !ok:
		return errors.New("it does not begin with spiffe://")
	case len(id) > 2048 || len(domain) > 255:
		return errors.New("it is too long")
	case domain == "" || strings.Trim(domain, name) != "":
		return errors.New("its trust domain is not lower-case letters, digits, dots, dashes and underscores")
	case !hasPath:
		return nil
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." || strings.Trim(segment, more) != "" {
			return errors.New("its path has a segment that is empty, or is not letters, digits, dots, dashes and underscores")
		}
	}
	return nil
}

// verify returns what an offer gives, unless its parts do not belong together. Whether the chain leads to the bundle,
// and whether peers accept all of it, is verified where every secret is.
func (o *offer) verify(gives []string, now time.Time) (*svid, error) {
	// A certificate refers to the bytes that it was read from, and would keep those of the message, which has the key.
	chain, err := x509.ParseCertificates(slices.Clone(o.chain))
	if err != nil {
		return nil, fmt.Errorf("the certificate does not parse: %w", err)
	}
	key, err := x509.ParsePKCS8PrivateKey(o.key)
	if err != nil {
		return nil, errors.New("the key is not PKCS #8")
	}
	bundle, err := x509.ParseCertificates(slices.Clone(o.bundle))
	if err != nil {
		return nil, fmt.Errorf("the trust domain's bundle does not parse: %w", err)
	}
	if len(chain) == 0 || len(bundle) == 0 {
		return nil, errors.New("there is no certificate, or none in the bundle")
	}
	leaf := chain[0]
	public, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	signer, signs := key.(crypto.Signer)
	switch {
	case !ok || !signs || !public.Equal(signer.Public()):
		return nil, errors.New("the key is not that of the certificate")
	case leaf.IsCA:
		return nil, errors.New("the certificate is a CA's")
	case len(leaf.URIs) != 1 || leaf.URIs[0].String() != o.id:
		return nil, errors.New("the certificate is for another SPIFFE ID, or for several URIs")
	case now.After(leaf.NotAfter):
		err := fmt.Errorf("the certificate has expired at %s", leaf.NotAfter.UTC().Format(time.RFC3339))
		return nil, source.Advise(err, "see whether the SPIRE agent reaches its server, and whether the clock is right")
	}
	slices.SortFunc(bundle, func(a, b *x509.Certificate) int { return bytes.Compare(a.Raw, b.Raw) })
	bundle = slices.CompactFunc(bundle, (*x509.Certificate).Equal)
	return &svid{
		id:      o.id,
		version: versionOf(gives, chain, bundle),
		leaf:    leaf,
		content: encode(gives, chain, o.key, bundle),
	}, nil
}

// versionOf depends on all that is published: a new anchor is a new version, and another order of anchors is not.
func versionOf(gives []string, chain, bundle []*x509.Certificate) string {
	h := sha256.New()
	add := func(part []byte) {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		h.Write(part)
	}
	add([]byte("sevagent SPIFFE version 1"))
	add([]byte(strings.Join(gives, " ")))
	for _, certs := range [][]*x509.Certificate{chain, bundle} {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(certs))))
		for _, c := range certs {
			add(c.Raw)
		}
	}
	return "sha256-" + hex.EncodeToString(h.Sum(nil)[:8])
}

// encode returns the JSON form of a secret.
func encode(gives []string, chain []*x509.Certificate, key []byte, bundle []*x509.Certificate) source.Secret {
	fields := map[string]string{"ca_cert": encodeCerts(bundle)}
	for _, kind := range gives {
		fields[kind+"_cert"] = encodeCerts(chain)
		fields[kind+"_key"] = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	}
	content, err := json.Marshal(fields)
	if err != nil {
		panic(err) // strings
	}
	return source.NewSecret(content)
}

func encodeCerts(certs []*x509.Certificate) string {
	var b strings.Builder
	for _, c := range certs {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return b.String()
}

package certset

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

// CollisionError says that two secrets give the same file. Only the operator can say which one is meant.
type CollisionError struct {
	File    string
	Secrets [2]string
}

func (e *CollisionError) Error() string {
	return fmt.Sprintf("secrets %s and %s both give %s", e.Secrets[0], e.Secrets[1], e.File)
}

// HeldError says that a secret is valid but for its dates, and can be published at Until.
type HeldError struct {
	Secret string
	Field  string
	Until  time.Time
}

func (e *HeldError) Error() string {
	until := e.Until.UTC().Format(time.RFC3339)
	return fmt.Sprintf("secret %s: %s: held until it is valid, at %s", e.Secret, e.Field, until)
}

// Assemble validates bundles together, in the order of the configuration, and returns what to publish. Its errors are
// *RejectError, *HeldError and *CollisionError.
//
// Bundles that are published already may have expired since: that is no reason to keep the others from being renewed.
// Carried anchors go into ca.crt beside its own; no leaf may need one of them.
//
// It takes less than a second, whatever the bundles hold: keys, anchors, chains and the times to look for a chain are
// bounded, before any signature is verified. A clock would make the verdict depend on what else the node does.
func Assemble(bundles, published []*Bundle, now time.Time, carried []Carried) (*Set, error) {
	a := assembly{
		Set:       &Set{Bundles: bundles, Leaves: make(map[string]Leaf)},
		fields:    make(map[string]*Bundle),
		published: published,
		now:       now,
	}
	for i, b := range bundles {
		for _, w := range b.warnings {
			a.warn(b, plain, "%s", w)
		}
		for _, field := range jsonFields {
			if b.fields[field] == nil {
				continue
			}
			if other := a.fields[field]; other != nil {
				return nil, &CollisionError{fileOf(field), [2]string{other.Secret, b.Secret}}
			}
			a.fields[field] = b
		}
		if p := b.fields[plain]; p != nil {
			a.add(b, plainFile(i), p)
		}
	}
	if b := a.fields[caCert]; b != nil {
		if n := len(b.fields[caCert].certs); n > maxAnchors {
			reason := fmt.Sprintf("holds %d certificates, at most %d are allowed", n, maxAnchors)
			return nil, &RejectError{b.Secret, caCert, reason}
		}
	}
	for _, kind := range kinds {
		if err := a.addPair(kind); err != nil {
			return nil, err
		}
	}
	if b := a.fields[caCert]; b != nil {
		a.Carried = carried
		if err := a.addAnchors(b); err != nil {
			return nil, err
		}
	}
	a.sortFiles()
	return a.Set, nil
}

// assembly is a Set in the making.
type assembly struct {
	*Set
	fields    map[string]*Bundle // by the field that it gives
	published []*Bundle
	now       time.Time
}

func (a *assembly) add(b *Bundle, name string, p *part) {
	a.Files = append(a.Files, File{name, p.pem(), p.private, b.origin(), p.certs})
}

func (a *assembly) warn(b *Bundle, field, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if field != plain {
		text = field + ": " + text
	}
	a.Warnings = append(a.Warnings, "secret "+b.Secret+": "+text)
}

// addPair adds certificate and key of one kind, and the file that holds both.
func (a *assembly) addPair(kind string) error {
	certField, keyField := kind+"_cert", kind+"_key"
	certs, keys, anchors := a.fields[certField], a.fields[keyField], a.fields[caCert]
	switch {
	case certs == nil && keys == nil:
		return nil
	case keys == nil:
		return &RejectError{certs.Secret, certField, "comes without " + keyField}
	case certs == nil:
		return &RejectError{keys.Secret, keyField, "comes without " + certField}
	case anchors == nil:
		return &RejectError{certs.Secret, certField, "comes without " + caCert + " to lead to"}
	}

	key, list := keys.fields[keyField], certs.fields[certField].certs
	i := indexLeaf(list, key.key)
	if i < 0 {
		reason := fmt.Sprintf("does not match %s: not the key of %q", certField, list[0].Subject)
		return &RejectError{keys.Secret, keyField, reason}
	}
	leaf, rest := list[i], slices.Delete(slices.Clone(list), i, i+1)
	p, from, err := verify(kind, leaf, rest, anchors.fields[caCert].certs, a.now)
	if err != nil && slices.Contains(a.published, certs) && slices.Contains(a.published, keys) {
		if p = verifyPast(kind, leaf, rest, anchors.fields[caCert].certs, a.now); p != nil {
			err = nil
			a.warn(certs, certField, "%s", expiredIn(leaf, p.ends()))
		}
	}
	switch {
	case err != nil:
		return &RejectError{certs.Secret, certField, err.Error()}
	case from.After(a.now.Add(maxSkew)):
		return &HeldError{certs.Secret, certField, from}
	}

	chain, extra, old := p.toSend(rest, a.now)
	for _, c := range extra {
		a.warn(certs, certField, "%q is not part of the chain", c.Subject)
	}
	for _, c := range old {
		a.warn(certs, certField, "%q %s, and is left out", c.Subject, expired(c))
	}
	ordered := new(part)
	for _, c := range slices.Concat(chain, extra) {
		ordered.add(c)
	}
	a.Leaves[kind] = Leaf{leaf, p.ends()}
	a.warnOfReaders(certs, kind, p)
	a.add(certs, fileOf(certField), ordered)
	a.add(keys, fileOf(keyField), key)
	a.add(certs, pairFile(kind), &part{blocks: slices.Concat(key.blocks, ordered.blocks), private: true})
	return nil
}

// warnOfReaders warns of what some readers accept, and others not.
func (a *assembly) warnOfReaders(b *Bundle, kind string, p path) {
	leaf, last := p[0], p[len(p)-1]
	if !isRoot(last) {
		a.warn(b, caCert, "holds no root for %q, so readers that use OpenSSL need X509_V_FLAG_PARTIAL_CHAIN", leaf.Subject)
	}
	names := len(leaf.DNSNames) + len(leaf.IPAddresses) + len(leaf.URIs) + len(leaf.EmailAddresses)
	if kind == kindServer && names == 0 {
		a.warn(b, serverCert, "%q has no subjectAltName: readers that use Go, and browsers, find no name in it", leaf.Subject)
	}
}

// expiredIn says that a leaf has expired, or else which certificate of its chain has.
func expiredIn(leaf, first *x509.Certificate) string {
	if first.Equal(leaf) {
		return expired(leaf)
	}
	return fmt.Sprintf("%q, which its chain needs, %s", first.Subject, expired(first))
}

// addAnchors adds ca.crt. The anchors that a leaf needs have been verified with it; here one valid anchor is enough.
func (a *assembly) addAnchors(b *Bundle) error {
	p := b.fields[caCert]
	var valid, root bool
	var next time.Time
	for _, c := range p.certs {
		switch {
		case a.now.After(c.NotAfter):
			a.warn(b, caCert, "%q %s", c.Subject, expired(c))
			continue
		case c.NotBefore.After(a.now.Add(maxSkew)):
			if next.IsZero() || c.NotBefore.Before(next) {
				next = c.NotBefore
			}
			continue
		}
		valid = true
		root = root || bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(c) == nil
	}
	switch {
	case !valid && !next.IsZero():
		return &HeldError{b.Secret, caCert, next}
	case !valid && !slices.Contains(a.published, b):
		return &RejectError{b.Secret, caCert, fmt.Sprintf("%q %s", p.certs[0].Subject, expired(p.certs[0]))}
	case valid && !root && len(a.Leaves) == 0:
		a.warn(b, caCert, "holds no root, so readers that use OpenSSL need X509_V_FLAG_PARTIAL_CHAIN")
	}

	all := &part{blocks: slices.Clone(p.blocks), certs: slices.Clone(p.certs)}
	for _, c := range a.Carried {
		all.add(c.Cert)
	}
	a.add(b, fileOf(caCert), all)
	return nil
}

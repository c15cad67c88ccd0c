package certset

import (
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
	reason := "held until it is valid, at " + e.Until.UTC().Format(time.RFC3339)
	return (&RejectError{e.Secret, e.Field, reason}).Error()
}

// Assemble validates bundles together, in the order of the configuration, and returns what to publish. Its errors are
// *RejectError, *HeldError and *CollisionError.
//
// Bundles that are published already may have expired since: that is no reason to keep the others from being renewed.
// Carried anchors go into ca.crt beside its own, the first of them if there are too many; no leaf may need one of them.
//
// It takes less than a second, whatever the bundles hold: keys, anchors, chains and the times to look for a chain are
// bounded, before any signature is verified. A clock would make the verdict depend on what else the node does.
func Assemble(bundles, published []*Bundle, now time.Time, carried []Carried) (*Set, error) {
	a := assembly{
		Set: &Set{
			Bundles: bundles, Leaves: make(map[string]*x509.Certificate), Issuers: make(map[string]*x509.Certificate),
		},
		fields:    make(map[string]*Bundle),
		anchors:   make(map[string][]*Bundle),
		published: published,
		now:       now,
	}
	for i, b := range bundles {
		if err := a.take(i, b); err != nil {
			return nil, err
		}
	}
	for _, field := range []string{caCert, peerCA} {
		if list := a.anchors[field]; len(list) > 0 {
			if err := a.checkCount(field, list); err != nil {
				return nil, err
			}
		}
	}
	for _, kind := range kinds {
		if err := a.addPair(kind); err != nil {
			return nil, err
		}
	}
	if err := a.addAnchors(carried); err != nil {
		return nil, err
	}
	a.sortFiles()
	return a.Set, nil
}

// take notes the fields that a bundle gives, and adds the file of one that is plain.
func (a *assembly) take(i int, b *Bundle) error {
	for _, w := range b.warnings {
		a.warn(b, plain, "%s", w)
	}
	for _, field := range jsonFields {
		p := b.fields[field]
		switch other := a.fields[field]; {
		case p == nil:
		case isAnchors(field):
			a.anchors[field] = append(a.anchors[field], b)
		case other != nil:
			return &CollisionError{fileOf(field), [2]string{other.Secret, b.Secret}}
		default:
			a.fields[field] = b
		}
	}
	if p := b.fields[plain]; p != nil {
		if b.Reading.Validate == unverified {
			a.add(b, plainFile(i), p, last(p.certs))
			return nil
		}
		a.add(b, plainFile(i), p, p.ends(a.now))
		return a.checkPlain(b, p)
	}
	return nil
}

// checkPlain verifies the dates of what PEM outside of JSON holds: of each certificate that readers show to peers or,
// without any, of all together, of which one is enough.
func (a *assembly) checkPlain(b *Bundle, p *part) error {
	if len(p.leaves) == 0 {
		return a.checkDates(plain, b, p.certs)
	}
	for _, c := range p.leaves {
		if err := a.checkDates(plain, b, []*x509.Certificate{c}); err != nil {
			return err
		}
	}
	return nil
}

// certs returns the anchors of a field, of all bundles that give some.
func (a *assembly) certs(field string) (list []*x509.Certificate) {
	for _, b := range a.anchors[field] {
		for _, c := range b.fields[field].certs {
			if !slices.ContainsFunc(list, c.Equal) && !(field == caCert && slices.ContainsFunc(a.leftOut, c.Equal)) {
				list = append(list, c)
			}
		}
	}
	return list
}

// checkCount bounds the anchors of a field. Of several bundles it rejects the last.
func (a *assembly) checkCount(field string, list []*Bundle) error {
	for _, b := range list {
		if n := len(b.fields[field].certs); n > maxAnchors && !b.joined {
			return &RejectError{b.Secret, field, fmt.Sprintf("holds %d certificates, at most %d are allowed", n, maxAnchors)}
		}
	}
	if n := len(a.certs(field)); n > maxJoined {
		return &RejectError{list[len(list)-1].Secret, field, fmt.Sprintf(
			"holds, with that of other secrets, %d certificates, at most %d are allowed", n, maxJoined)}
	}
	return nil
}

// mostAnchors is how many a file may have that these bundles give together.
func mostAnchors(list []*Bundle) int {
	if len(list) > 1 || list[0].joined {
		return maxJoined
	}
	return maxAnchors
}

// assembly is a Set in the making.
type assembly struct {
	*Set
	fields    map[string]*Bundle   // by the field that it gives
	anchors   map[string][]*Bundle // those that give caCert and peerCA, which several may
	leftOut   []*x509.Certificate  // of caCert, since they are in the way
	published []*Bundle
	now       time.Time
}

func (a *assembly) add(b *Bundle, name string, p *part, ends *x509.Certificate) {
	a.Files = append(a.Files, File{
		Name: name, Content: p.pem(), Private: p.private, Origin: b.origin(), Certs: p.certs, Ends: ends,
	})
}

func (a *assembly) warn(b *Bundle, field, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if field != plain {
		text = field + ": " + text
	}
	if w := warningOf(b, text); !slices.Contains(a.Warnings, w) { // it may be restored, and found again
		a.Warnings = append(a.Warnings, w)
	}
}

func warningOf(b *Bundle, text string) string { return "secret " + b.Secret + ": " + text }

// addPair adds certificate and key of one kind, and the file that holds both.
func (a *assembly) addPair(kind string) error {
	certField, keyField := kind+"_cert", kind+"_key"
	certs, keys, anchors := a.fields[certField], a.fields[keyField], a.certs(caCert)
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
	p, from, err := verify(kind, leaf, rest, anchors, a.now)
	if err != nil && slices.Contains(a.published, certs) && slices.Contains(a.published, keys) {
		if p = verifyPast(kind, leaf, rest, anchors, a.now); p != nil {
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
	a.Leaves[kind] = leaf
	if len(p) > 1 {
		a.Issuers[kind] = p[1:].ends()
	}
	a.leaveOut(p)
	a.warnOfReaders(kind, p)
	a.add(certs, fileOf(certField), ordered, p.ends())
	a.add(keys, fileOf(keyField), key, nil)
	a.add(certs, pairFile(kind), &part{blocks: slices.Concat(key.blocks, ordered.blocks), private: true}, p.ends())
	return a.setBundle(kind, key, a.Files[len(a.Files)-1])
}

// setBundle keeps the client's pair in the form of bundleFile.
func (a *assembly) setBundle(kind string, key *part, pair File) error {
	if kind != kindClient {
		return nil
	}
	block, err := key.pkcs8()
	if err != nil {
		return &RejectError{a.fields[clientKey].Secret, clientKey, "cannot be written as PKCS #8: " + err.Error()}
	}
	pair.Name, pair.Content = bundleFile, append(encodePEM(block), pair.Content[len(key.pem()):]...)
	a.bundle = &pair
	return nil
}

// leaveOut leaves out the anchors that have expired and keep OpenSSL from following p.
func (a *assembly) leaveOut(p path) {
	for _, c := range p.inTheWay(a.certs(caCert), a.now) {
		if a.now.After(c.NotAfter) && !slices.ContainsFunc(p, c.Equal) {
			a.leftOut = append(a.leftOut, c)
			a.warn(a.anchors[caCert][0], caCert, "%q %s, and is left out: readers that use OpenSSL would take it for an "+
				"issuer all the same (SHA-256 %s)", c.Subject, expired(c), digest(c.Raw))
		}
	}
}

// warnOfReaders warns of what some readers accept, and others not.
func (a *assembly) warnOfReaders(kind string, p path) {
	leaf, last := p[0], p[len(p)-1]
	if !isRoot(last) {
		a.warn(a.anchors[caCert][0], caCert, "holds no root for %q, so readers that use OpenSSL need "+
			"X509_V_FLAG_PARTIAL_CHAIN", leaf.Subject)
	}
	if c := p.deadEnd(a.certs(caCert), a.now); isRoot(last) && c != nil {
		a.warn(a.anchors[caCert][0], caCert, "holds %q and not its issuer %q, so readers that use OpenSSL and trust all of "+
			"it do not accept %q", c.Subject, c.Issuer, leaf.Subject)
	}
	others := len(leaf.URIs) + len(leaf.EmailAddresses)
	switch {
	case kind != kindServer || len(leaf.DNSNames)+len(leaf.IPAddresses) > 0:
	case others == 0:
		a.warn(a.fields[serverCert], serverCert, "%q has no subjectAltName: readers that use Go, and browsers, find no "+
			"name in it", leaf.Subject)
	case leaf.Subject.CommonName != "":
		a.warn(a.fields[serverCert], serverCert, "%q has no DNS name and no IP address in its subjectAltName: readers that "+
			"use Go, and browsers, do not take the common name for one", leaf.Subject)
	}
}

// expiredIn says that a leaf has expired, or else which certificate of its chain has.
func expiredIn(leaf, first *x509.Certificate) string {
	if first.Equal(leaf) {
		return expired(leaf)
	}
	return fmt.Sprintf("%q, which its chain needs, %s", first.Subject, expired(first))
}

// addAnchors adds ca.crt, and issuer.crt where that is another. What a leaf needs has been verified with it.
func (a *assembly) addAnchors(carried []Carried) error {
	trusted := caCert
	if len(a.anchors[peerCA]) > 0 {
		trusted = peerCA
		a.addAnchorFile(issuerFile, a.anchors[caCert], a.certs(caCert), nil)
	}
	bundles, certs := a.anchors[trusted], a.certs(trusted)
	if len(bundles) == 0 {
		return nil
	}
	blamed := max(0, slices.IndexFunc(bundles, func(b *Bundle) bool { return !slices.Contains(a.published, b) }))
	if err := a.checkAnchors(trusted, bundles[blamed], certs); err != nil {
		return err
	}
	ends := last(certs)
	a.carry(trusted, bundles, len(certs), carried)
	for _, c := range a.Carried {
		certs = append(certs, c.Cert)
	}
	a.addAnchorFile(anchorFile, bundles, certs, ends)
	return nil
}

// carry takes over the carried anchors that ca.crt has room for beside own ones. The others go before their time: they
// must not keep a new version out.
func (a *assembly) carry(field string, list []*Bundle, own int, carried []Carried) {
	most := mostAnchors(list)
	room := most - own
	if n := len(carried) - room; n > 0 {
		a.warn(list[0], field, "%d anchors of earlier versions are dropped early: ca.crt holds at most %d", n, most)
		carried = carried[:room]
	}
	a.Carried = carried
}

func (a *assembly) addAnchorFile(name string, bundles []*Bundle, certs []*x509.Certificate, ends *x509.Certificate) {
	if len(bundles) == 0 {
		return
	}
	p := new(part)
	for _, c := range certs {
		p.add(c)
	}
	a.add(bundles[0], name, p, ends)
	f := &a.Files[len(a.Files)-1]
	for _, b := range bundles[1:] {
		f.Also = append(f.Also, b.origin())
	}
}

// checkAnchors verifies anchors, of which one valid one is enough.
func (a *assembly) checkAnchors(field string, b *Bundle, certs []*x509.Certificate) error {
	if err := a.checkDates(field, b, certs); err != nil {
		return err
	}
	var valid, root bool
	for _, c := range certs {
		if a.isValid(c) {
			valid, root = true, root || isRoot(c) && c.CheckSignatureFrom(c) == nil
		}
	}
	if valid && !root && (len(a.Leaves) == 0 || field == peerCA) {
		a.warn(b, field, "holds no root, so readers that use OpenSSL need X509_V_FLAG_PARTIAL_CHAIN")
	}
	return nil
}

// checkDates returns an error if none of some certificates is valid, unless they have expired since their publication.
func (a *assembly) checkDates(field string, b *Bundle, certs []*x509.Certificate) error {
	var next time.Time
	valid := len(certs) == 0
	for _, c := range certs {
		switch {
		case a.isValid(c):
			valid = true
		case a.now.After(c.NotAfter):
			a.warn(b, field, "%q %s", c.Subject, expired(c))
		case next.IsZero() || c.NotBefore.Before(next):
			next = c.NotBefore
		}
	}
	switch {
	case !valid && !next.IsZero():
		return &HeldError{b.Secret, field, next}
	case !valid && !slices.Contains(a.published, b):
		return &RejectError{b.Secret, field, fmt.Sprintf("%q %s", certs[0].Subject, expired(certs[0]))}
	}
	return nil
}

func (a *assembly) isValid(c *x509.Certificate) bool {
	return !a.now.After(c.NotAfter) && !c.NotBefore.After(a.now.Add(maxSkew))
}

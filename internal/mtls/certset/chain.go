package certset

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// maxSkew is how far in the future a certificate's validity may begin while we still publish it at once: the issuer's
// clock need not agree with ours to the second, and readers allow as much.
const maxSkew = 5 * time.Minute

// path is a chain as a TLS peer builds it: the leaf first, an anchor last.
type path []*x509.Certificate

// ends returns the certificate of p that expires first.
func (p path) ends() *x509.Certificate {
	return slices.MinFunc(p, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
}

// indexLeaf returns the index of the certificate that key belongs to, which need not come first; -1: there is none.
func indexLeaf(certs []*x509.Certificate, key crypto.Signer) int {
	return slices.IndexFunc(certs, func(c *x509.Certificate) bool {
		pub, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
		return ok && pub.Equal(key.Public())
	})
}

// verify returns the path by which TLS peers that trust anchors accept leaf, whether they use Go's library or OpenSSL,
// and the first moment, now or later, at which they do. Rest are the certificates that come with leaf. It returns an
// error if there is none.
func verify(
	kind string, leaf *x509.Certificate, rest, anchors []*x509.Certificate, now time.Time,
) (path, time.Time, error) {
	if now.After(leaf.NotAfter) {
		return nil, time.Time{}, errors.New(expired(leaf))
	}
	if err := checkUsage(kind, leaf); err != nil {
		return nil, time.Time{}, err
	}
	s := search{kind: kind, leaf: leaf, intermediates: slices.Clone(rest)}
	for _, c := range anchors {
		if isRoot(c) {
			s.anchors = append(s.anchors, c)
		} else { // an issuer may give intermediates together with its root
			s.intermediates = append(s.intermediates, c)
		}
	}
	p, from, err := s.run(now)
	if err != nil && len(s.anchors) < len(anchors) { // some peers take an intermediate for an anchor
		s.anchors = anchors
		p, from, err = s.run(now)
	}
	if err != nil {
		return nil, from, fmt.Errorf("does not lead to %s: %s", caCert, strings.TrimPrefix(err.Error(), "x509: "))
	}
	return p, from, nil
}

// verifyPast returns the path of a leaf that is published already, and whose chain has expired since; nil: there was
// none.
func verifyPast(kind string, leaf *x509.Certificate, rest, anchors []*x509.Certificate, now time.Time) path {
	all := slices.Concat([]*x509.Certificate{leaf}, rest, anchors)
	var moments []time.Time
	for _, c := range all {
		if t := c.NotAfter; t.Before(now) && !t.After(leaf.NotAfter) && mayLead(leaf, all, anchors, t) {
			moments = append(moments, t)
		}
	}
	slices.SortFunc(moments, func(a, b time.Time) int { return b.Compare(a) })
	moments = slices.CompactFunc(moments, time.Time.Equal)
	for _, t := range moments[:min(len(moments), maxTries)] {
		if p, _, err := verify(kind, leaf, rest, anchors, t); err == nil {
			return p
		}
	}
	return nil
}

// search looks for a path.
type search struct {
	kind                   string
	leaf                   *x509.Certificate
	intermediates, anchors []*x509.Certificate
}

// maxTries bounds how often a search looks for a path, for which crypto/x509 verifies up to a hundred signatures.
const maxTries = 2

// run returns the best path of the first moment, now or later, at which there is one. Any certificate may begin in the
// future, so each of their dates is tried at which names and dates allow a chain.
func (s *search) run(now time.Time) (path, time.Time, error) {
	start := now
	if s.leaf.NotBefore.After(now) {
		start = s.leaf.NotBefore
	}
	opts := x509.VerifyOptions{
		Roots:         x509.NewCertPool(),
		Intermediates: x509.NewCertPool(),
		KeyUsages:     []x509.ExtKeyUsage{usageOf(s.kind)},
	}
	moments := []time.Time{start}
	consider := func(pool *x509.CertPool, certs []*x509.Certificate) {
		for _, c := range certs {
			pool.AddCert(c)
			if c.NotBefore.After(start) {
				moments = append(moments, c.NotBefore)
			}
		}
	}
	consider(opts.Roots, s.anchors)
	consider(opts.Intermediates, s.intermediates)
	slices.SortFunc(moments, time.Time.Compare)
	moments = slices.CompactFunc(moments, time.Time.Equal)
	moments = slices.DeleteFunc(moments, func(t time.Time) bool {
		return !mayLead(s.leaf, s.intermediates, s.anchors, t)
	})
	if len(moments) == 0 {
		moments = []time.Time{start} // for the reason
	}

	var first error
	for i, t := range moments {
		if i == maxTries {
			return nil, time.Time{}, fmt.Errorf("%w; %d later dates were not tried", first, len(moments)-i)
		}
		opts.CurrentTime = t
		chains, err := s.leaf.Verify(opts)
		if err == nil {
			var best path
			if best, err = s.best(chains, t); err == nil {
				return best, t, nil
			}
		}
		if first == nil {
			first = s.explain(err, t)
		}
	}
	return nil, time.Time{}, first
}

// best returns the path that lasts longest of those that OpenSSL finds, too.
func (s *search) best(chains [][]*x509.Certificate, at time.Time) (best path, first error) {
	var sound []path
	issuers := make(map[*x509.Certificate][]*x509.Certificate) // that lead to an anchor, by what they have issued
	for _, chain := range chains {
		p := path(chain)
		if err := checkLinks(s.kind, p); err != nil {
			first = cmp.Or(first, err)
			continue
		}
		sound = append(sound, p)
		for i, c := range p[1:] {
			issuers[p[i]] = append(issuers[p[i]], c)
		}
	}
	if sound != nil {
		first = nil
	}
	for _, p := range sound {
		if err := s.checkChoice(p, issuers, at); err != nil {
			first = cmp.Or(first, err)
		} else if best == nil || p.ends().NotAfter.After(best.ends().NotAfter) {
			best = p
		}
	}
	if best != nil {
		return best, nil
	}
	return nil, first
}

// explain names the certificate, the date and the extension where crypto/x509 names none.
func (s *search) explain(err error, at time.Time) error {
	all := slices.Concat([]*x509.Certificate{s.leaf}, s.intermediates, s.anchors)
	if e, ok := errors.AsType[x509.UnknownAuthorityError](err); ok && e.Cert != nil {
		return fmt.Errorf("the issuer of %q, %q, is missing or did not sign it", e.Cert.Subject, e.Cert.Issuer)
	}
	if _, ok := errors.AsType[x509.UnhandledCriticalExtension](err); ok {
		var ids []string
		unhandled := func(c *x509.Certificate) bool {
			for _, id := range c.UnhandledCriticalExtensions {
				ids = append(ids, nameExtension(id))
			}
			return ids != nil
		}
		if i := slices.IndexFunc(all, unhandled); i >= 0 {
			return fmt.Errorf("%q has a critical extension that programs in Go do not process: %s", all[i].Subject,
				strings.Join(ids, ", "))
		}
	}
	e, ok := errors.AsType[x509.CertificateInvalidError](err)
	switch {
	case !ok || e.Cert == nil:
	case e.Reason == x509.Expired && at.Before(e.Cert.NotBefore):
		return fmt.Errorf("%q is not valid before %s", e.Cert.Subject, e.Cert.NotBefore.UTC().Format(time.RFC3339))
	case e.Reason == x509.Expired:
		return fmt.Errorf("%q %s", e.Cert.Subject, expired(e.Cert))
	case e.Reason == x509.TooManyIntermediates:
		return fmt.Errorf("%q has a path length constraint of %d, and more CAs below it", e.Cert.Subject, e.Cert.MaxPathLen)
	case e.Reason == x509.CANotAuthorizedForThisName:
		return fmt.Errorf("%q has a name that the name constraints of a CA above it do not permit: %s", e.Cert.Subject,
			e.Detail)
	case e.Reason == x509.IncompatibleUsage:
		if i := slices.IndexFunc(all, func(c *x509.Certificate) bool { return !hasUsage(s.kind, c) }); i >= 0 {
			return fmt.Errorf("%q is not for certificates for %s authentication", all[i].Subject, s.kind)
		}
	}
	return err
}

// nameExtension names an extension that crypto/x509 may leave unhandled.
func nameExtension(id asn1.ObjectIdentifier) string {
	if id.String() == "2.5.29.30" {
		return "name constraints of a kind other than DNS, IP, email and URI, such as directoryName (2.5.29.30)"
	}
	return id.String()
}

// mayLead reports whether there is a chain at t, going by names and dates alone.
func mayLead(leaf *x509.Certificate, intermediates, anchors []*x509.Certificate, t time.Time) bool {
	if slices.ContainsFunc(anchors, leaf.Equal) {
		return true
	}
	reached := []*x509.Certificate{leaf}
	for i := 0; i < len(reached); i++ {
		issues := func(c *x509.Certificate) bool {
			return bytes.Equal(c.RawSubject, reached[i].RawIssuer) && !t.Before(c.NotBefore) && !t.After(c.NotAfter)
		}
		if slices.ContainsFunc(anchors, issues) {
			return true
		}
		for _, c := range intermediates {
			if issues(c) && !slices.Contains(reached, c) {
				reached = append(reached, c)
			}
		}
	}
	return false
}

// toSend returns what to send of p and of the certificates that came with the leaf: p without its root, then those that
// lead up from there, then those that do not, which are extra. Those that have expired are left out, and returned.
func (p path) toSend(rest []*x509.Certificate, now time.Time) (chain, extra, old []*x509.Certificate) {
	chain = slices.Clone(p)
	if last := len(chain) - 1; last > 0 && isRoot(chain[last]) {
		chain = chain[:last]
	}
	for _, c := range rest {
		switch {
		case slices.ContainsFunc(chain, c.Equal):
		case now.After(c.NotAfter):
			old = append(old, c)
		default:
			extra = append(extra, c)
		}
	}
	for c := chain[len(chain)-1]; !isRoot(c); {
		i := slices.IndexFunc(extra, func(issuer *x509.Certificate) bool {
			return bytes.Equal(issuer.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(issuer) == nil
		})
		if i < 0 {
			break
		}
		c = extra[i]
		chain, extra = append(chain, c), slices.Delete(extra, i, i+1)
	}
	return chain, extra, old
}

// isRoot reports whether c names itself as its issuer.
func isRoot(c *x509.Certificate) bool { return bytes.Equal(c.RawSubject, c.RawIssuer) }

func expired(c *x509.Certificate) string {
	return "expired on " + c.NotAfter.UTC().Format(time.RFC3339)
}

package mtls

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sevagent/internal/mtls/certset"
)

// secrets are all secrets, in the order of the configuration.
type secrets []*secret

// find returns the secret of a name; nil: there is none.
func (list secrets) find(name string) *secret {
	for _, s := range list {
		if s.name == name {
			return s
		}
	}
	return nil
}

// published returns the bundles that are published.
func (list secrets) published() (bundles []*certset.Bundle) {
	for _, s := range list {
		if s.published != nil {
			bundles = append(bundles, s.published)
		}
	}
	return bundles
}

// offer is what a secret has for a set.
type offer struct {
	secret    string
	candidate *certset.Bundle // a new version; nil: none
	published *certset.Bundle // the version that is published; nil: none
	again     bool            // published has to be read again
	previous  *certset.Bundle // of the secret that this one takes the place of; nil: of none
}

// assembler is certset.Assemble with all but the bundles filled in.
type assembler func(bundles, published []*certset.Bundle) (*certset.Set, error)

// compose chooses a bundle of each secret, the newest that fits with the others, and puts them together. A new version
// that does not fit is left out for now, with the reason noted: the next change of any secret may make it fit.
//
// Until the node is ready, every secret has to give something. After that, a secret that has been added and gives
// nothing does not keep the others from being renewed.
func (list secrets) compose(ready bool, now time.Time, assemble assembler) (*certset.Set, error) {
	var offers []offer
	for _, s := range list {
		s.changed = false
		if !now.Before(s.heldUntil) {
			s.heldUntil = time.Time{} // a version that is still held sets it again
		}
		again := s.published != nil && s.published.Partial() && s.issuing() == nil
		offers = append(offers, offer{s.name, s.candidate, s.published, again, s.previous})
	}
	chosen, err := choose(offers, ready)
	if err != nil {
		return nil, err
	}
	for {
		set, err := assemble(chosen, list.published())
		switch {
		case err == nil && len(set.Files) == 0:
			return nil, errors.New("no secret has given anything to publish")
		case err == nil:
			return set, nil
		}
		next, rejected := fallBack(offers, chosen, ready, err)
		for _, i := range rejected {
			list[i].reject(chosen[i].Version, err)
		}
		if next == nil {
			return nil, err
		}
		chosen = next
	}
}

// choose returns the newest bundle of each secret. What is published stays while one that was only partly
// restored has to be read again.
func choose(offers []offer, ready bool) (chosen []*certset.Bundle, err error) {
	wait := slices.ContainsFunc(offers, func(o offer) bool { return o.candidate == nil && o.again })
	for _, o := range offers {
		b := o.candidate
		if b == nil || wait && o.published != nil {
			b = o.older(ready)
		}
		if b == nil {
			return nil, fmt.Errorf("secret %s has given nothing to publish yet", o.secret)
		}
		chosen = append(chosen, b)
	}
	return chosen, nil
}

// older returns what stands in for the candidate: the version that is published, that of the secret before or, once the
// node is ready, nothing. It is nil where the candidate cannot be done without.
func (o offer) older(ready bool) *certset.Bundle {
	if o.published == nil && o.previous != nil {
		return o.previous
	}
	if o.published == nil && ready {
		return &certset.Bundle{Secret: o.secret}
	}
	return o.published
}

// fallBack replaces candidates among the chosen bundles, which do not go together for a reason: those of the secrets
// that the reason blames or, if none of those is a candidate, all. Rejected are the indexes of these candidates. Next
// is nil if none of them could be replaced.
func fallBack(offers []offer, chosen []*certset.Bundle, ready bool, reason error) (
	next []*certset.Bundle, rejected []int,
) {
	blamed := blame(reason)
	for i, o := range offers {
		if o.candidate != nil && chosen[i] == o.candidate && slices.Contains(blamed, o.secret) {
			rejected = append(rejected, i)
		}
	}
	if rejected == nil {
		for i, o := range offers {
			if o.candidate != nil && chosen[i] == o.candidate {
				rejected = append(rejected, i)
			}
		}
	}
	for _, i := range rejected {
		older := offers[i].older(ready)
		if older == nil {
			continue
		}
		if next == nil {
			next = slices.Clone(chosen)
		}
		next[i] = older
	}
	return next, rejected
}

// blame returns the secrets that a reason names.
func blame(reason error) []string {
	if e, ok := errors.AsType[*certset.RejectError](reason); ok {
		return []string{e.Secret}
	}
	if e, ok := errors.AsType[*certset.HeldError](reason); ok {
		return []string{e.Secret}
	}
	if e, ok := errors.AsType[*certset.CollisionError](reason); ok {
		return e.Secrets[:]
	}
	return nil
}

// setPublished notes that a set is what is published now, and forgets what held its versions back.
func (list secrets) setPublished(s *certset.Set) {
	for i, k := range list {
		k.setPublished(s.Bundles[i])
	}
}

// replace has secrets that are new take the place of those that are gone, one of one.
func (list secrets) replace(gone []*secret) {
	for _, k := range list {
		for len(gone) > 0 && k.published == nil && k.previous == nil {
			k.previous = cmp.Or(gone[0].published, gone[0].previous)
			gone = gone[1:]
		}
	}
}

// takeOver notes what an earlier run has published.
func (list secrets) takeOver(s *certset.Set) {
	for _, k := range list {
		for _, b := range s.Bundles {
			if b.Secret == k.name && b.Version != "" && k.published == nil {
				k.published = b
				k.confirm()
			}
		}
	}
}

// checkKept rejects a version that takes files away from their readers, who find them by name: more often than not it
// was cut or pasted wrongly. What goes because the configuration has changed is no version's mistake.
func checkKept(was, next *certset.Set) error {
	var blamed *certset.Bundle
	var lost []string
	for _, f := range was.Files {
		i := slices.IndexFunc(next.Bundles, func(b *certset.Bundle) bool {
			return b.Secret == f.Origin.Secret && b.Version != "" && b.Version != f.Origin.Version
		})
		if i < 0 || gives(next, f, next.Bundles[i]) || blamed != nil && next.Bundles[i] != blamed {
			continue
		}
		blamed = next.Bundles[i]
		if slices.ContainsFunc(next.Files, func(n certset.File) bool { return n.Name == f.Name }) {
			lost = append(lost, f.Name+" with its private key")
		} else {
			lost = append(lost, f.Name)
		}
	}
	if blamed == nil {
		return nil
	}
	return &certset.RejectError{Secret: blamed.Secret, Reason: fmt.Sprintf(
		"does not give %s, which the version before gave; if that is meant, set mtls.allow_removal",
		strings.Join(lost, ", "))}
}

// gives reports whether a set has a file for those who read f, with a private key in it if f has one. That of a plain
// secret, b, is named by the secret's place in the configuration.
func gives(s *certset.Set, f certset.File, b *certset.Bundle) bool {
	return slices.ContainsFunc(s.Files, func(n certset.File) bool {
		plain := strings.HasPrefix(f.Name, "cert-") && strings.HasPrefix(n.Name, "cert-")
		same := n.Name == f.Name || plain && n.Origin.Secret == b.Secret
		return same && (n.Private || !f.Private)
	})
}

// due reports whether compose would see something new.
func (list secrets) due(now time.Time) bool {
	return slices.ContainsFunc(list, func(s *secret) bool {
		return s.changed || s.candidate != nil && !s.heldUntil.IsZero() && !now.Before(s.heldUntil)
	})
}

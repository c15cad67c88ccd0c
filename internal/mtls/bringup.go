package mtls

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// due: is there reason to publish?
func (r *Rotator) due(now time.Time) bool {
	if r.dirty || r.publish.err != nil && !now.Before(r.publish.next) {
		return true
	}
	return slices.ContainsFunc(r.secrets, func(s *secret) bool {
		return s.candidate != nil && !s.heldUntil.IsZero() && !now.Before(s.heldUntil)
	})
}

// bringUp publishes the best that the secrets give, if that differs from what is published.
func (r *Rotator) bringUp(ctx context.Context, now time.Time) {
	r.dirty = false
	for _, k := range r.secrets {
		if !now.Before(k.heldUntil) {
			k.heldUntil = time.Time{} // judged again below
		}
	}
	bundles, s, err := r.compose(now)
	r.blocked = err
	if err != nil {
		r.publish = attempt{}
		return
	}
	if g := r.current; g != nil && !g.damaged && g.set.equal(s) && g.sameAccess(r.access) {
		// The same bytes under another version ID are no reason to disturb readers.
		r.current = &generation{manifest: g.manifest, set: s, bundles: bundles, access: g.access}
		r.adopt(bundles)
		r.publish = attempt{}
		return
	}
	r.turned(now)
	g, err := r.pub.publish(ctx, s, bundles, r.access, now)
	if ctx.Err() != nil && err != nil {
		return
	}
	r.metrics.publishSeconds.Observe(time.Since(now).Seconds())
	if err != nil {
		r.publishFailed(fmt.Errorf("publish to %s: %w", r.pub.path, err), time.Now())
		return
	}
	if r.publish.err != nil {
		r.log.Info("publishing works again", "failures", r.publish.failures)
	}
	r.publish = attempt{}
	r.metrics.publications.WithLabelValues("published").Inc()
	previous := r.generation()
	r.current = g
	r.adopt(bundles)
	r.logPublished(previous)
}

// compose picks a bundle of each secret, the newest that fits with the others, and puts them together. A new version
// that does not fit is left out for now, with the reason noted: the next change of any secret may mend it.
//
// Before the first complete publication every secret has to give something. After that a secret that has been added
// and gives nothing does not keep the others from being renewed.
func (r *Rotator) compose(now time.Time) ([]*bundle, *set, error) {
	var bundles, standing []*bundle
	for _, s := range r.secrets {
		switch {
		case s.candidate != nil:
			bundles = append(bundles, s.candidate)
		case s.published != nil:
			bundles = append(bundles, s.published)
		case r.isReady():
			bundles = append(bundles, &bundle{secret: s.name})
		default:
			return nil, nil, fmt.Errorf("secret %s has given nothing to publish yet", s.name)
		}
		if s.published != nil {
			standing = append(standing, s.published)
		}
	}
	for {
		set, err := assemble(bundles, standing, now)
		switch {
		case err == nil && len(set.files) == 0:
			return nil, nil, errors.New("no secret has given anything to publish")
		case err == nil:
			return bundles, set, nil
		case !r.fallBack(bundles, err):
			return nil, nil, err
		}
	}
}

// fallBack notes the reason for which bundles do not go together and replaces a candidate among them: that which the
// reason blames, else all. It returns false when there is nothing left to replace.
func (r *Rotator) fallBack(bundles []*bundle, reason error) bool {
	blamed := func(s *secret) bool { return true }
	if e, ok := errors.AsType[*RejectError](reason); ok {
		blamed = func(s *secret) bool { return s.name == e.Secret }
	} else if e, ok := errors.AsType[*HeldError](reason); ok {
		blamed = func(s *secret) bool { return s.name == e.Secret }
	} else if e, ok := errors.AsType[*CollisionError](reason); ok {
		blamed = func(s *secret) bool { return slices.Contains(e.Secrets[:], s.name) }
	}
	replace := func(blamed func(*secret) bool) (found, replaced bool) {
		for i, s := range r.secrets {
			if s.candidate == nil || bundles[i] != s.candidate || !blamed(s) {
				continue
			}
			found = true
			r.refuse(s, s.candidate.version, reason)
			switch {
			case s.published != nil:
				bundles[i], replaced = s.published, true
			case r.isReady():
				bundles[i], replaced = &bundle{secret: s.name}, true
			}
		}
		return found, replaced
	}
	found, replaced := replace(blamed)
	if !found {
		_, replaced = replace(func(*secret) bool { return true })
	}
	return replaced
}

// adopt notes that bundles are what is published now.
func (r *Rotator) adopt(bundles []*bundle) {
	for i, s := range r.secrets {
		if bundles[i].version == "" {
			s.published = nil
			continue
		}
		s.published = bundles[i]
		if s.candidate == bundles[i] {
			s.candidate, s.reason, s.heldUntil = nil, nil, time.Time{}
		}
	}
}

// publishFailed notes why a publication that should work did not, and when to try again.
func (r *Rotator) publishFailed(err error, now time.Time) {
	result := "failed"
	if errors.Is(err, errRolledBack) {
		result = "rolled_back"
	}
	r.metrics.publications.WithLabelValues(result).Inc()
	r.publish.err = err
	r.publish.failures++
	wait := backoff(r.publish.failures, rand.Float64())
	r.publish.next = now.Add(wait)
	if r.publish.failures == 1 {
		r.log.Error("cannot publish, the last good set stays", "err", err, "retry_in", wait)
	}
}

func (r *Rotator) logPublished(previous string) {
	g := r.current
	attrs := []any{"generation", g.name(), "previous", previous, "not_after", g.set.notAfter()}
	for _, s := range g.set.sources {
		attrs = append(attrs, "version", s)
	}
	for kind, leaf := range g.set.leaves {
		attrs = append(attrs, kind+"_spki_sha256", fmt.Sprintf("%x", spki(leaf)))
	}
	r.log.Info("published", attrs...)
	for _, w := range g.set.warnings {
		r.log.Warn("published with a warning", "warning", w)
	}
}

// sameAccess: would the files of g have the same owner and modes under a?
func (g *generation) sameAccess(a access) bool {
	if g.access.owner != a.owner {
		return false
	}
	return !slices.ContainsFunc(g.set.files, func(f file) bool { return g.access.mode(f) != a.mode(f) })
}

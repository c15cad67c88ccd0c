package mtls

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"sevagent/client"
)

// due: is there reason to publish?
func (r *Rotator) due(now time.Time) bool {
	for _, d := range r.dirs {
		if d.publish.err != nil {
			if !now.Before(d.publish.next) {
				return true
			}
			continue
		}
		if d.current != nil && d.current.set != nil && slices.ContainsFunc(d.current.set.carried, func(c carried) bool { return !now.Before(c.Until) }) {
			return true
		}
	}
	return r.dirty || slices.ContainsFunc(r.secrets, func(s *secret) bool {
		return s.candidate != nil && !s.heldUntil.IsZero() && !now.Before(s.heldUntil)
	})
}

// bringUp publishes the best that the secrets give, wherever that differs from what is published.
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
		for _, d := range r.dirs {
			d.publish = attempt{}
		}
		return
	}
	evidence := make(map[Binding][]byte) // a device request for each key, not for each directory
	changed := false
	defer func() {
		if changed { // when all that can be is published: whoever is told may have any of the directories
			r.published()
		}
	}()
	for _, d := range r.dirs {
		if !d.opened {
			continue // it says why
		}
		before := d.generation()
		err := r.bringUpIn(ctx, d, s, bundles, evidence)
		changed = changed || d.generation() != before
		if ctx.Err() != nil && err != nil {
			return
		} else if err != nil {
			r.publishFailed(d, err, time.Now())
			continue
		}
		if d.publish.err != nil {
			r.log.Info("publishing works again", "path", d.pub.path, "failures", d.publish.failures)
		}
		d.publish = attempt{}
		if d == r.main() {
			r.adopt(bundles)
		}
	}
	r.preflightAll(now)
}

func (r *Rotator) bringUpIn(ctx context.Context, d *directory, whole *set, bundles []*bundle, evidence map[Binding][]byte) error {
	s, missing := d.consumer.subset(whole)
	d.missing = missing
	if len(s.files) == 0 {
		return fmt.Errorf("publish to %s: no secret gives any of %s", d.pub.path, strings.Join(d.consumer.Files, ", "))
	}
	binding, bound := s.binding()
	bound = bound && r.evidence != nil
	if d.serves(s, bundles, bound && !r.noEvidence) {
		if d.state.State == client.GuardOff {
			d.expect()
		}
		return nil
	}
	began := time.Now()
	r.turned(began)
	var ev []byte
	if bound {
		var known bool
		if ev, known = evidence[binding]; !known {
			var err error
			if ev, err = r.evidence(ctx, binding); err != nil {
				return fmt.Errorf("publish to %s: get evidence for the %s certificate: %w", d.pub.path, binding.Kind, err)
			}
			evidence[binding] = ev
		}
		if r.noEvidence = ev == nil; r.noEvidence && d.serves(s, bundles, false) {
			return nil
		}
	}
	previous := d.generation()
	err := d.switchTo(s, bundles, ev, time.Now())
	r.metrics.publishSeconds.Observe(time.Since(began).Seconds())
	if err != nil {
		return err
	}
	r.metrics.publications.WithLabelValues("published").Inc()
	r.logPublished(d, previous)
	return nil
}

// published tells whoever wants to hear of it that there are new generations.
func (r *Rotator) published() {
	if r.onPublish != nil {
		r.onPublish(r.main().generation())
	}
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
		set, err := assemble(bundles, standing, now, r.carry(bundles, now))
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
func (r *Rotator) publishFailed(d *directory, err error, now time.Time) {
	result := "failed"
	if errors.Is(err, errRolledBack) {
		result = "rolled_back"
	}
	r.metrics.publications.WithLabelValues(result).Inc()
	d.publish.err = err
	d.publish.failures++
	wait := backoff(d.publish.failures, rand.Float64())
	d.publish.next = now.Add(wait)
	if d.publish.failures == 1 {
		r.log.Error("cannot publish, the last good set stays", "err", err, "retry_in", wait)
	}
}

func (r *Rotator) logPublished(d *directory, previous string) {
	g := d.current
	attrs := []any{"path", d.pub.path, "generation", g.name(), "previous", previous, "not_after", g.set.notAfter()}
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

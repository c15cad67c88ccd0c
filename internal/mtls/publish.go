package mtls

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"time"

	"sevagent/client"
	"sevagent/internal/mtls/certset"
)

// binding names a published public key.
type binding struct {
	kind string
	spki [sha256.Size]byte
}

// publishAll publishes the best that the secrets give, wherever that differs from what is published.
func (r *Rotator) publishAll(ctx context.Context, now time.Time) {
	r.changed, r.composed = false, now
	s, err := r.compose(now)
	r.blocked = err
	if err != nil {
		for _, t := range r.targets {
			t.attempt = attempt{}
		}
		return
	}
	evidence := make(map[binding][]byte) // a device request for each key, not for each directory
	changed := false
	defer func() {
		if changed { // once everything is published: what Published wakes may read any of the directories
			r.notify()
		}
	}()
	for _, t := range r.targets {
		if !t.Opened() {
			continue // its own error says why
		}
		before := t.Generation()
		err := r.publishTo(ctx, t, s, evidence)
		changed = changed || t.Generation() != before
		switch {
		case err != nil && ctx.Err() != nil:
			return
		case err != nil:
			t.publishFailed(err, time.Now())
		default:
			t.publishWorks()
			if t == r.main() {
				r.secrets.setPublished(s)
			}
		}
	}
	r.verifyPending(now)
}

// compose puts together the newest versions that fit with each other.
func (r *Rotator) compose(now time.Time) (*certset.Set, error) {
	return r.secrets.compose(r.isReady(), now, func(bundles, published []*certset.Bundle) (*certset.Set, error) {
		return r.assemble(bundles, published, r.overlap.Carry(r.current(), bundles, r.settings.CAOverlap, now), now)
	})
}

// assemble validates bundles together, and with what is published.
func (r *Rotator) assemble(
	bundles, published []*certset.Bundle, carried []certset.Carried, now time.Time,
) (*certset.Set, error) {
	set, err := verify(r.caller,
		func() (*certset.Set, error) { return certset.Assemble(bundles, published, now, carried) })
	if was := r.current(); err == nil && was != nil && !r.settings.AllowRemoval {
		err = checkKept(was, set)
	}
	return set, err
}

// current returns the published set, or nil.
func (r *Rotator) current() *certset.Set {
	if g := r.main().Current(); g != nil {
		return g.Set
	}
	return nil
}

// verifyPending verifies the pending versions again, since what they have to fit with has changed.
func (r *Rotator) verifyPending(now time.Time) {
	r.secrets.verifyPending(now, func(bundles, published []*certset.Bundle) (*certset.Set, error) {
		return r.assemble(bundles, published, nil, now)
	})
}

// publishTo publishes the part of whole that belongs into a directory, unless that has it already.
func (r *Rotator) publishTo(ctx context.Context, t *target, whole *certset.Set, evidence map[binding][]byte) error {
	s := whole
	if t.consumer.Name != "" {
		s, t.missing = whole.Subset(t.consumer.Files)
	}
	if len(s.Files) == 0 {
		return fmt.Errorf("publish to %s: no secret gives any of %s", t.Path(), strings.Join(t.consumer.Files, ", "))
	}
	kind, spki, bound := s.Binding()
	bound = bound && r.config.Evidence != nil
	if t.holds(s, bound && !r.noEvidence) {
		t.TakeOver(s)
		if t.state.State == client.GuardOff {
			t.expect(time.Now())
		}
		return nil
	}

	began := time.Now()
	r.caller.movedOn(began)
	var ev []byte
	if bound {
		key := binding{kind, spki}
		var known bool
		if ev, known = evidence[key]; !known {
			var err error
			ev, err = await(ctx, r.caller, evidenceTimeout, func(ctx context.Context) ([]byte, error) {
				return r.config.Evidence(ctx, kind, spki)
			})
			if err != nil {
				return fmt.Errorf("publish to %s: get evidence for the %s certificate: %w", t.Path(), kind, err)
			}
			evidence[key] = ev
		}
		r.noEvidence = ev == nil
		if r.noEvidence && t.holds(s, false) {
			t.TakeOver(s)
			return nil
		}
	}

	previous := t.Generation()
	err := t.publish(s, ev, time.Now())
	r.metrics.publishSeconds.Observe(time.Since(began).Seconds())
	if err != nil {
		return err
	}
	r.metrics.publications.With("published").Inc()
	t.logPublished(previous)
	return nil
}

func (t *target) logPublished(previous string) {
	s := t.Current().Set
	attrs := []any{"path", t.Path(), "generation", t.Generation(), "previous", previous, "not_after", s.NotAfter()}
	for _, o := range s.Origins() {
		attrs = append(attrs, "version", o)
	}
	for kind, leaf := range s.Leaves {
		attrs = append(attrs, kind+"_spki_sha256", fmt.Sprintf("%x", certset.SPKI(leaf)))
	}
	t.log.Info("published", attrs...)
	for _, w := range s.Warnings {
		t.log.Warn("published with a warning", "warning", w)
	}
}

package mtls

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"sevagent/client"
)

// secret is what Run knows of one secret.
type secret struct {
	name   string
	source Source

	latest  Version   // as last described
	checked time.Time // when that was
	asked   time.Time // when that question, or one that was not answered, was put
	look    attempt   // at the source
	next    time.Time // when to look again; zero: now

	published *bundle // part of the current generation
	candidate *bundle // fetched, and different from published
	rejected  string  // version that is no bundle at all; not fetched again
	// reason is why the latest version is not published: *RejectError, *HeldError, *CollisionError.
	reason    error
	heldUntil time.Time // of candidate
	preflight preflight
}

// maxRaces bounds how often in a row a label may move between Describe and Fetch.
const maxRaces = 3

// check looks at a secret, fetches a version that is not known yet, and decides when to look again.
func (r *Rotator) check(ctx context.Context, s *secret) {
	err := r.lookAt(ctx, s)
	if err == nil {
		r.lookAhead(ctx, s)
	}
	now := time.Now()
	if ctx.Err() != nil {
		return
	}
	r.turned(now)
	if e, ok := errors.AsType[*SourceError](err); ok {
		r.clock.hear(e.Date, s.asked, now)
	}
	if err == nil {
		if s.look.err != nil {
			r.log.Info("secret is back", "secret", s.name, "failures", s.look.failures)
		}
		s.look = attempt{}
		s.checked = now
		s.next = now.Add(nextPoll(now, r.outlook(s), rand.Float64()))
		return
	}
	s.look.err = err
	s.look.failures++
	// Before the first publication nothing is gained by patience: a role or a policy may be on its way.
	if kindOf(err) == Persistent && r.isReady() {
		s.next = now.Add(deniedBackoff(r.settings.PollInterval, s.look.failures, rand.Float64()))
	} else {
		s.next = now.Add(backoff(s.look.failures, rand.Float64()))
	}
	if s.look.failures == 1 {
		r.log.Warn("cannot look at secret", "secret", s.name, "err", err, "retry_in", s.next.Sub(now))
	}
}

func (r *Rotator) lookAt(ctx context.Context, s *secret) error {
	var err error
	for range maxRaces {
		var v Version
		s.asked = time.Now()
		if v, err = request(ctx, r, "describe", s.source.Describe); err != nil {
			return err
		}
		s.latest = v
		r.clock.hear(v.Date, s.asked, time.Now())
		if v.Current == "" {
			return &SourceError{Kind: Persistent, Err: fmt.Errorf("describe secret %s: no version is labelled AWSCURRENT", s.name)}
		}
		switch {
		case s.published != nil && v.Current == s.published.version:
			r.forget(s) // also after a roll-back
			return nil
		case s.candidate != nil && v.Current == s.candidate.version, v.Current == s.rejected:
			return nil
		}
		var content Secret
		content, err = request(ctx, r, "fetch", func(ctx context.Context) (Secret, error) { return s.source.Fetch(ctx, v.Current, LabelCurrent) })
		if err == nil {
			r.receive(s, v.Current, content)
			return nil
		}
		if kindOf(err) != LabelMoved {
			return err
		}
	}
	return err
}

// request makes one counted call with a deadline of its own.
func request[T any](ctx context.Context, r *Rotator, operation string, call func(context.Context) (T, error)) (T, error) {
	r.turned(time.Now())
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	v, err := await(ctx, r, call)
	result := "ok"
	if err != nil {
		result = string(kindOf(err))
	}
	r.metrics.requests.WithLabelValues(operation, result).Inc()
	return v, err
}

// receive makes a new version the candidate, or notes that it cannot be one.
func (r *Rotator) receive(s *secret, version string, content Secret) {
	r.forget(s)
	b, err := parseBundle(s.name, version, content())
	if err != nil {
		s.rejected = version
		r.refuse(s, version, err)
		return
	}
	s.candidate = b
	r.dirty = true
}

// forget drops what is known of a version that is not current any more.
func (r *Rotator) forget(s *secret) {
	if s.candidate != nil {
		r.dirty = true // others may have been refused because of it
	}
	s.candidate, s.rejected, s.reason, s.heldUntil = nil, "", nil, time.Time{}
}

// refuse notes why a version is not published, and says so once.
func (r *Rotator) refuse(s *secret, version string, reason error) {
	again := s.reason != nil && s.reason.Error() == reason.Error()
	s.reason, s.heldUntil = reason, time.Time{}
	held, isHeld := errors.AsType[*HeldError](reason)
	if isHeld && held.Secret == s.name {
		s.heldUntil = held.Until
	}
	switch {
	case again:
	case isHeld:
		r.log.Info("version is held", "secret", s.name, "version", version, "until", held.Until)
	default:
		r.metrics.rejections.Inc()
		r.log.Warn("version is refused, the last good one stays", "secret", s.name, "version", version, "err", reason)
	}
}

func (r *Rotator) outlook(s *secret) outlook {
	o := outlook{
		interval:     r.settings.PollInterval,
		nextRotation: s.latest.NextRotation,
		pending:      s.latest.Pending != "" && s.latest.Pending != s.latest.Current,
	}
	if g := r.main().current; g != nil {
		for _, leaf := range g.set.leaves {
			if o.notAfter.IsZero() || leaf.NotAfter.Before(o.notAfter) {
				o.notBefore, o.notAfter = leaf.NotBefore, leaf.NotAfter
			}
		}
	}
	return o
}

func (s *secret) status() client.SecretStatus {
	st := client.SecretStatus{
		Name:        s.name,
		Version:     s.latest.Current,
		Pending:     s.latest.Pending,
		LastChecked: s.checked.UTC(),
		NextCheck:   s.next.UTC(),
		HeldUntil:   s.heldUntil.UTC(),
		Preflight:   s.preflight.status(),
	}
	if s.published != nil {
		st.Published = s.published.version
	}
	err := s.look.err
	switch {
	case err != nil && kindOf(err) == Persistent:
		st.State = client.SecretDenied
	case err != nil:
		st.State = client.SecretUnreachable
	case s.reason != nil:
		st.State, err = client.SecretRejected, s.reason
		if _, held := errors.AsType[*HeldError](err); held {
			st.State = client.SecretHeld
		}
	case s.published != nil && s.candidate == nil:
		st.State = client.SecretCurrent
	default:
		st.State = client.SecretWaiting
	}
	if err != nil {
		st.Error = err.Error()
	}
	return st
}

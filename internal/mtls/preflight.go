package mtls

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sevagent/client"
)

// preflight is what would become of a secret's pending version if it were current now.
type preflight struct {
	version string  // judged; empty: there is none, or it could not be read
	bundle  *bundle // nil: it is none
	err     error   // why it would not be published, or could not be read; a *HeldError is none
	at      time.Time
}

// errUnread marks an error as that of reading, which says nothing of the version.
var errUnread = errors.New("cannot be read yet")

// lookAhead fetches the pending version of a secret, once. That it cannot is no failure of the secret: the label may
// come before the content, and the node's role may be for AWSCURRENT alone.
func (r *Rotator) lookAhead(ctx context.Context, s *secret) {
	pending := s.latest.Pending
	if pending == "" || pending == s.latest.Current {
		s.preflight = preflight{}
		return
	}
	if pending == s.preflight.version {
		return
	}
	content, err := request(ctx, r, "fetch_pending", func(ctx context.Context) (Secret, error) {
		return s.source.Fetch(ctx, pending, LabelPending)
	})
	if err != nil {
		r.log.Debug("the pending version is not judged beforehand", "secret", s.name, "version", pending, "err", err)
		s.preflight = preflight{err: fmt.Errorf("%w: %w", errUnread, err), at: time.Now()}
		return
	}
	p := preflight{version: pending, at: time.Now()}
	if p.bundle, p.err = parseBundle(s.name, pending, content()); p.err != nil {
		r.warnAhead(s, p)
	}
	s.preflight = p
	r.preflightAll(p.at) // it may be what another one was waiting for
}

// judgeAhead judges the pending version together with what else would be published: with what the other secrets give
// now, and failing that with their pending versions, since those that belong together are rotated together. What is
// wrong without it, too, is not its fault.
func (r *Rotator) judgeAhead(s *secret, now time.Time) {
	p := &s.preflight
	if p.bundle == nil {
		return
	}
	err := r.tryAhead(now, func(k *secret) bool { return k == s })
	if err != nil && r.tryAhead(now, func(k *secret) bool { return k.preflight.bundle != nil }) == nil {
		err = nil
	}
	if err != nil {
		if without := r.tryAhead(now, func(*secret) bool { return false }); without != nil && without.Error() == err.Error() {
			err = nil
		}
	}
	before := p.err
	p.err, p.at = err, now
	if err != nil && (before == nil || before.Error() != err.Error()) {
		r.warnAhead(s, *p)
	}
}

// tryAhead assembles what would be published if the pending versions of some secrets were current.
func (r *Rotator) tryAhead(now time.Time, pending func(*secret) bool) error {
	var bundles, standing []*bundle
	for _, k := range r.secrets {
		switch {
		case pending(k):
			bundles = append(bundles, k.preflight.bundle)
		case k.candidate != nil:
			bundles = append(bundles, k.candidate)
		case k.published != nil:
			bundles = append(bundles, k.published)
		default:
			bundles = append(bundles, &bundle{secret: k.name})
		}
		if k.published != nil {
			standing = append(standing, k.published)
		}
	}
	_, err := assemble(bundles, standing, now, nil)
	if _, held := errors.AsType[*HeldError](err); held {
		return nil
	}
	return err
}

// preflightAll judges all pending versions again, since what they have to fit with has changed.
func (r *Rotator) preflightAll(now time.Time) {
	for _, s := range r.secrets {
		r.judgeAhead(s, now)
	}
}

func (r *Rotator) warnAhead(s *secret, p preflight) {
	r.metrics.preflightRejections.Inc()
	r.log.Warn("the pending version would be refused", "secret", s.name, "version", p.version, "err", p.err)
}

func (p preflight) status() *client.Preflight {
	switch {
	case p.at.IsZero():
		return nil
	case errors.Is(p.err, errUnread):
		return &client.Preflight{At: p.at.UTC(), Result: client.PreflightUnknown, Reason: p.err.Error()}
	case p.err != nil:
		return &client.Preflight{Version: p.version, At: p.at.UTC(), Result: client.PreflightRejected, Reason: fmt.Sprintf("this version would be rejected because %v", p.err)}
	}
	return &client.Preflight{Version: p.version, At: p.at.UTC(), Result: client.PreflightOK}
}

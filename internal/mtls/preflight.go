package mtls

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sevagent/client"
	"sevagent/internal/mtls/certset"
	"sevagent/internal/mtls/source"
)

// preflight is what would become of a secret's pending version if it were current now.
type preflight struct {
	version string          // verified; empty: there is none, or it could not be read
	bundle  *certset.Bundle // nil: the version does not parse
	err     error           // why it would not be published, or could not be read; never a *certset.HeldError
	at      time.Time
}

// errUnread marks an error of reading, which says nothing about the version.
var errUnread = errors.New("cannot be read yet")

// fetchPending fetches the pending version of a secret, once, and reports whether there is a new one to verify. A
// failure is no failure of the secret: the label may come before the content, and the node's role may be for AWSCURRENT
// alone.
func (s *secret) fetchPending(ctx context.Context, c *caller) (fetched bool) {
	pending := s.latest.Pending
	if pending == "" || pending == s.latest.Current {
		s.preflight = preflight{}
		return false
	}
	if pending == s.preflight.version {
		return false
	}
	content, err := request(ctx, c, "fetch_pending", func(ctx context.Context) (source.Secret, error) {
		return s.source.Fetch(ctx, pending, source.Pending)
	})
	if err != nil {
		s.log.Debug("cannot read the pending version", "secret", s.name, "version", pending, "err", err)
		s.preflight = preflight{err: fmt.Errorf("%w: %w", errUnread, err), at: time.Now()}
		return false
	}
	s.preflight = preflight{version: pending, at: time.Now()}
	b, err := verify(c, func() (*certset.Bundle, error) { return certset.Parse(s.name, pending, content(), s.reading) })
	s.preflight.bundle = b
	s.setPreflight(err, s.preflight.at)
	return true
}

// setPreflight notes the result for the pending version, and logs a new reason.
func (s *secret) setPreflight(err error, now time.Time) {
	before := s.preflight.err
	s.preflight.err, s.preflight.at = err, now
	if err != nil && (before == nil || before.Error() != err.Error()) {
		s.metrics.preflightRejections.Inc()
		s.log.Warn("the pending version would be rejected",
			"secret", s.name, "version", s.preflight.version, "err", err)
	}
}

// verifyPending verifies all pending versions.
func (list secrets) verifyPending(now time.Time, assemble assembler) {
	for _, s := range list {
		if s.preflight.bundle != nil {
			s.setPreflight(list.tryPending(s, assemble), now)
		}
	}
}

// tryPending verifies the pending version of a secret together with what else would be published: with what the other
// secrets give now, and failing that with their pending versions, since those that belong together are rotated
// together. What is wrong without it, too, is not its fault.
func (list secrets) tryPending(s *secret, assemble assembler) error {
	try := func(pending func(*secret) bool) error {
		var bundles []*certset.Bundle
		for _, o := range list {
			switch {
			case pending(o):
				bundles = append(bundles, o.preflight.bundle)
			case o.candidate != nil:
				bundles = append(bundles, o.candidate)
			case o.published != nil:
				bundles = append(bundles, o.published)
			default:
				bundles = append(bundles, &certset.Bundle{Secret: o.name})
			}
		}
		if _, err := assemble(bundles, list.published()); !isHeld(err) {
			return err
		}
		return nil
	}
	err := try(func(o *secret) bool { return o == s })
	if err == nil || try(func(o *secret) bool { return o.preflight.bundle != nil }) == nil {
		return nil
	}
	if without := try(func(*secret) bool { return false }); without != nil && without.Error() == err.Error() {
		return nil
	}
	return err
}

func (p preflight) status() *client.Preflight {
	st := &client.Preflight{Version: p.version, At: p.at.UTC(), Result: client.PreflightOK}
	switch {
	case p.at.IsZero():
		return nil
	case errors.Is(p.err, errUnread):
		st.Result, st.Reason = client.PreflightUnknown, p.err.Error()
	case p.err != nil:
		st.Result, st.Reason = client.PreflightRejected, fmt.Sprintf("this version would be rejected because %v", p.err)
	}
	return st
}

package mtls

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"sevagent/client"
	"sevagent/internal/mtls/certset"
	"sevagent/internal/mtls/source"
)

// attempt follows something that may fail several times in a row.
type attempt struct {
	err      error
	failures int
	boot     int // of the failures, those that do not lengthen the wait: source.BootTries
	next     time.Time
}

// failed notes another failure, to be retried after a while.
func (a *attempt) failed(err error, wait time.Duration, now time.Time) {
	a.err, a.next = err, now.Add(wait)
	a.failures++
}

// secret is what Run knows of one secret.
type secret struct {
	name    string
	source  source.Source
	reading certset.Reading
	log     *slog.Logger
	metrics *metrics

	latest  source.Version // as last described
	checked time.Time      // when that was
	look    attempt        // at the source
	next    time.Time      // when to look again; zero: now

	published *certset.Bundle // part of the current generation
	// previous is what a secret gives that the configuration has dropped for this one, until this one is published: its
	// files are not to go before those that take their place can come.
	previous  *certset.Bundle
	candidate *certset.Bundle // fetched, and different from published
	unfit     string          // version that does not parse; not fetched again
	changed   bool            // since compose has last seen it
	// reason is why the latest version is not published: *certset.RejectError, *certset.HeldError,
	// *certset.CollisionError.
	reason    error
	heldUntil time.Time // of candidate
	preflight preflight
}

// maxRaces bounds how often in a row a label may move between Describe and Fetch.
const maxRaces = 3

// refresh looks at the source, and fetches the current version unless it is known.
func (s *secret) refresh(ctx context.Context, c *caller, clock *clock) error {
	var err error
	for range maxRaces {
		asked := time.Now()
		var latest source.Version // a failure leaves the one before
		if latest, err = request(ctx, c, "describe", s.source.Describe); err != nil {
			clock.hearError(err, asked, time.Now())
			return err
		}
		clock.hear(latest.Date, asked, time.Now())
		s.latest = latest
		version := latest.Current
		switch {
		case version == "" && s.issuing() != nil:
			return nil // it is on its way
		case version == "":
			err := fmt.Errorf("describe secret %s: no version is labelled AWSCURRENT", s.name)
			return &source.Error{Kind: source.Persistent, Missing: true, Err: err}
		case s.published != nil && version == s.published.Version && (s.knows(s.published) || s.issuing() != nil):
			s.dropCandidate() // also after a roll-back
			return nil
		case s.candidate != nil && version == s.candidate.Version, version == s.unfit:
			return nil
		}
		asked = time.Now()
		var content source.Secret
		content, err = request(ctx, c, "fetch", func(ctx context.Context) (source.Secret, error) {
			return s.source.Fetch(ctx, version, source.Current)
		})
		if err == nil {
			s.receive(c, version, content)
			return nil
		}
		clock.hearError(err, asked, time.Now())
		if source.KindOf(err) != source.Moved {
			return err
		}
	}
	return err
}

// knows reports whether reading the version of b again would give nothing else.
func (s *secret) knows(b *certset.Bundle) bool { return !b.Partial() && b.Reading == s.reading }

// configure takes over what the configuration says of the secret, which is looked at again.
func (s *secret) configure(source source.Source, how certset.Reading) {
	if s.reading != how {
		s.dropCandidate()
		s.preflight = preflight{}
	}
	s.source, s.reading, s.next = source, how, time.Time{}
	s.confirm()
}

// issuing returns the source of a secret that makes its versions itself; nil: it does not.
func (s *secret) issuing() source.Issuing {
	i, _ := s.source.(source.Issuing)
	return i
}

// confirm lets a source that makes its versions know which is published, which moves its next step.
func (s *secret) confirm() {
	if i := s.issuing(); i != nil && s.published != nil {
		i.Published(s.published.Version, s.published.Leaf())
		s.next = time.Time{}
	}
}

// receive makes a new version the candidate, or notes that it cannot be one.
func (s *secret) receive(c *caller, version string, content source.Secret) {
	s.dropCandidate()
	b, err := verify(c, func() (*certset.Bundle, error) { return certset.Parse(s.name, version, content(), s.reading) })
	if err != nil {
		s.unfit = version
		s.reject(version, err)
		return
	}
	s.candidate, s.changed = b, true
}

// dropCandidate forgets a version that is not current any more.
func (s *secret) dropCandidate() {
	if s.candidate != nil {
		s.changed = true // others may have been rejected because of it
	}
	s.candidate, s.unfit, s.reason, s.heldUntil = nil, "", nil, time.Time{}
}

// reject notes why a version is not published, and logs it once.
func (s *secret) reject(version string, reason error) {
	known := s.reason != nil && s.reason.Error() == reason.Error()
	s.reason, s.heldUntil = reason, time.Time{}
	held, isHeld := errors.AsType[*certset.HeldError](reason)
	if isHeld && held.Secret == s.name {
		s.heldUntil = held.Until
	}
	switch {
	case known:
	case isHeld:
		s.log.Info("version is held", "secret", s.name, "version", version, "until", held.Until)
	default:
		s.metrics.rejections.Inc()
		s.log.Warn("version is rejected; the last good one stays", "secret", s.name, "version", version, "err", reason)
	}
	// Of one that is held, too: the next may be valid at once. Where two sources collide, the next would do so, too.
	_, collides := errors.AsType[*certset.CollisionError](reason)
	if i := s.issuing(); i != nil && !collides {
		i.Refused(version, reason)
		// Its next step has moved. Within a look, latest decides about the next one.
		s.next, s.latest.Next = time.Time{}, time.Now()
	}
}

// setPublished notes that b, which may be empty, is part of the current generation.
func (s *secret) setPublished(b *certset.Bundle) {
	if b.Version == "" || b == s.previous {
		s.published = nil
		return
	}
	s.published, s.previous = b, nil
	if s.candidate == b {
		s.candidate, s.reason, s.heldUntil = nil, nil, time.Time{}
	}
	s.confirm()
}

// schedule decides when to look again after a look that ended with err. Hasty is for the time before the first
// publication, when nothing is gained by patience: a role or a policy may be on its way.
func (s *secret) schedule(err error, o Outlook, hasty bool, now time.Time) {
	n := s.look.failures + 1 - s.look.boot
	switch {
	case err == nil:
		if s.look.err != nil {
			s.log.Info("secret can be read again", "secret", s.name, "failures", s.look.failures)
		}
		s.look, s.checked = attempt{}, now
		s.next = now.Add(o.NextPoll(now, rand.Float64()))
		if !s.latest.Next.IsZero() {
			s.next = s.latest.Next
		}
		return
	case hasty && !source.Answered(err) && s.look.boot < source.BootTries:
		s.look.boot++
		s.look.failed(err, Backoff(1, rand.Float64()), now)
	case source.KindOf(err) == source.Persistent && !hasty:
		s.look.failed(err, deniedBackoff(o.Interval, n, rand.Float64()), now)
	default:
		s.look.failed(err, Backoff(n, rand.Float64()), now)
	}
	if e, ok := errors.AsType[*source.Error](err); ok && !e.Next.IsZero() {
		s.look.next = e.Next
	}
	s.next = s.look.next
	if s.look.failures == 1 {
		s.log.Warn("cannot read secret", "secret", s.name, "err", err, "retry_in", s.next.Sub(now))
	}
}

// local reports whether looking at the secret costs nothing.
func (s *secret) local() bool {
	_, local := s.source.(source.File)
	return local
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
		st.Published = s.published.Version
	}
	err := s.look.err
	switch {
	case err != nil && source.IsMissing(err) && s.issuing() == nil:
		st.State = client.SecretMissing
	case err != nil && source.KindOf(err) == source.Persistent:
		st.State = client.SecretDenied
	case err != nil:
		st.State = client.SecretUnreachable
	case s.reason != nil:
		st.State, err = client.SecretRejected, s.reason
		if isHeld(err) {
			st.State = client.SecretHeld
		}
	case s.published != nil && s.candidate == nil:
		st.State = client.SecretCurrent
	default:
		st.State = client.SecretWaiting
	}
	if err != nil {
		st.Error, st.Next = source.Explain(err)
	}
	if i := s.issuing(); i != nil {
		issue := i.Status()
		st.Issue = &issue
	}
	return st
}

// isHeld reports whether nothing but a date is in the way.
func isHeld(err error) bool {
	_, held := errors.AsType[*certset.HeldError](err)
	return held
}

package spiffe

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"sevagent/client"
	"sevagent/internal/mtls/source"
)

// Config describes a Source.
type Config struct {
	// Name is that of the entry in the configuration, for messages.
	Name string
	// Socket is the absolute path of the Workload API's socket.
	Socket string
	// ID is the SPIFFE ID wanted. Empty: the only one that is offered; several are refused.
	ID string
	// Gives are the kinds that the certificate is published as: client, server or both.
	Gives []string
	// Owner is a user ID that is believed as owner of the socket and the directories that lead to it, besides root and
	// the process's own.
	Owner uint32
	// Contained has a SPIRE agent believed that is not in a unit or session of the host's, such as one in a container.
	// Anything in a container that can write to the socket's directory can then pose as it.
	Contained bool
	// Changed is called when Describe has something new to return. It must not wait.
	Changed func()
	Log     *slog.Logger

	// Tests in synctest replace these two.
	dial     func(context.Context) (net.Conn, error)
	identify func() identity
}

// Source is a source.Issuing over one stream, which Run owns. All methods are safe for concurrent use.
type Source struct {
	cfg   Config
	again chan struct{} // has Run connect anew, and at once

	mu        sync.Mutex
	pushed    *svid             // by the last message, unless that was refused
	published string            // version
	leaf      *x509.Certificate // of the published version
	refused   string            // version
	wanted    string            // version whose key is needed again
	asked     bool              // to renew, and not answered since
	err       error             // why there may be something newer than pushed; nil: there is not
	down      time.Time         // when the stream ended; zero: it is open, or has never been
	due       time.Time         // when Run ends the stream, for the reason overdue, unless there is a message before
	overdue   error
	issued    []time.Time // when new certificates came, within a day
}

// patience is how long a stream that worked may be down before that is an error: a SPIRE agent restarts in seconds.
const patience = 30 * time.Second

// maxIssued bounds what is remembered of pushes.
const maxIssued = 1000

// New returns a Source that knows nothing until Run works.
func New(c Config) *Source {
	c.Log = c.Log.With("component", "spiffe", "source", c.Name)
	s := &Source{cfg: c, again: make(chan struct{}, 1)}
	if c.dial == nil {
		s.cfg.dial = s.connect
	}
	if c.identify == nil {
		s.cfg.identify = func() identity { return identityOf(c.Socket) }
	}
	return s
}

// Describe returns, from memory, the version that was pushed last: none before the first push, unless one is published.
// It fails if that is published and a newer one cannot come.
func (s *Source) Describe(context.Context) (source.Version, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil && (s.pushed == nil || s.pushed.version == s.published) {
		return source.Version{}, s.err
	}
	v := source.Version{Current: s.published}
	if s.pushed != nil {
		v.Current = s.pushed.version
	}
	if s.asked { // Changed is called before, as soon as there is an answer
		v.Next = time.Now().Add(time.Second)
	}
	return v, nil
}

// Fetch returns the JSON form of what was pushed last. A key that was dropped is asked for again.
func (s *Source) Fetch(_ context.Context, version string, _ source.Label) (source.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.pushed != nil && s.pushed.version != version:
		return nil, s.error(source.Moved, errors.New("the SPIRE agent has just pushed another version"))
	case s.pushed != nil && s.pushed.content != nil:
		return s.pushed.content, nil
	}
	s.wanted = version
	s.reconnect()
	return nil, s.error(source.Transient, errors.New("the SPIRE agent is asked for the key again"))
}

// Published drops the key of what is published.
func (s *Source) Published(version string, leaf *x509.Certificate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.published, s.leaf = version, leaf
	if s.pushed != nil && s.pushed.version == version {
		s.pushed.content = nil
	}
}

// Refused notes that a version cannot be published. The next push replaces it.
func (s *Source) Refused(version string, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused = version
}

// Renew asks the SPIRE agent again. It decides itself when a certificate is renewed: until then the answer is the same.
func (s *Source) Renew() {
	s.mu.Lock()
	s.asked = true
	s.mu.Unlock()
	s.reconnect()
}

func (s *Source) reconnect() {
	select {
	case s.again <- struct{}{}:
	default:
	}
}

// Status returns the state of the stream and of what is published.
func (s *Source) Status() client.IssueStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := client.IssueStatus{From: "spiffe", Authority: s.cfg.Socket, Issuances: len(s.within(time.Now()))}
	if s.leaf != nil {
		st.Serial = fmt.Sprintf("%x", s.leaf.SerialNumber)
		st.Issued, st.NotAfter = s.leaf.NotBefore.UTC(), s.leaf.NotAfter.UTC()
	}
	switch {
	case s.pushed != nil && s.pushed.version == s.refused:
		st.State = client.IssueRefused
	case s.err != nil:
		st.State = client.IssueFailing
	case s.pushed != nil && s.pushed.version != s.published:
		st.State = client.IssueReady
	case s.published != "":
		st.State = client.IssueIdle
	default:
		st.State = client.IssueOrdered
	}
	return st
}

// within returns the issuances of the day before now.
func (s *Source) within(now time.Time) []time.Time {
	i := slices.IndexFunc(s.issued, func(t time.Time) bool { return now.Sub(t) < 24*time.Hour })
	if i < 0 {
		return nil
	}
	return s.issued[i:]
}

// receive takes over a message: what it offers, or err if that is refused.
func (s *Source) receive(v *svid, err error, now time.Time) {
	s.mu.Lock()
	news := s.fail(err) || s.asked
	s.down, s.asked = time.Time{}, false
	if v == nil {
		s.pushed = nil
		s.expect(now.Add(retryMax), errStale)
	} else {
		version, leaf := s.published, s.leaf
		if s.pushed != nil {
			version, leaf = s.pushed.version, s.pushed.leaf
		}
		news = news || v.version != version || v.version == s.wanted
		if leaf == nil || !leaf.Equal(v.leaf) {
			s.issued = append(s.within(now), now)
			s.issued = s.issued[max(0, len(s.issued)-maxIssued):]
		}
		if v.version == s.published && v.version != s.wanted {
			v.content = nil
		}
		s.pushed, s.wanted = v, ""
		s.expect(now.Add(max(minStale, v.leaf.NotAfter.Sub(now)*2/3)), errStale)
	}
	s.mu.Unlock()
	if news {
		s.cfg.Changed()
	}
}

// ended notes that there is no stream any more.
func (s *Source) ended(err error, now time.Time) {
	s.mu.Lock()
	if s.down.IsZero() {
		s.down = now
	}
	news := s.asked
	s.asked = false
	switch {
	case source.KindOf(err) == source.Persistent: // such as: the certificate is withdrawn
		s.pushed = nil
		news = s.fail(err) || news
	case s.pushed == nil || now.Sub(s.down) >= patience:
		news = s.fail(err) || news
	}
	s.mu.Unlock()
	if news {
		s.cfg.Changed()
	}
}

// fail sets the state of the stream, and reports whether it is another than before.
func (s *Source) fail(err error) (news bool) {
	news = (err == nil) != (s.err == nil) || err != nil && err.Error() != s.err.Error()
	s.err = err
	return news
}

// expect sets when the stream ends unless there is a message before, and why.
func (s *Source) expect(due time.Time, overdue error) { s.due, s.overdue = due, overdue }

// error adds to a failure which entry it is about.
func (s *Source) error(kind source.Kind, err error) error {
	err = fmt.Errorf("get the X.509-SVID of %s from %s: %w", s.cfg.Name, s.cfg.Socket, err)
	return &source.Error{Kind: kind, Err: err}
}

package issue

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"sevagent/client"
	"sevagent/internal/mtls/source"
)

// Config is what a Source orders, and where.
type Config struct {
	// Name is the source's in the configuration. It begins its errors.
	Name string
	// From is how the authority is spoken to, for the status.
	From      string
	Authority Authority
	// Gives is what the certificate is for: "client", "server" or both, with one key.
	Gives []string
	// Key is one of Keys.
	Key string
	// Names returns the request's subject and alternative names. It is called for each request and may ask the metadata
	// service.
	Names func(context.Context) (*x509.CertificateRequest, error)
	// Spec stands for all that is ordered, the authority included. A certificate that was ordered by another Spec is
	// renewed within a quarter of an hour.
	Spec string
	// Evidence returns the value of the certificate's extension id-pe-cmw for a new key, given the kind of its
	// certificate and the SHA-256 of its SubjectPublicKeyInfo. Nil: no extension.
	Evidence func(ctx context.Context, kind string, spki [sha256.Size]byte) ([]byte, error)
	// Attempted is called after each order with how it ended: "issued" or a source.Kind. Nil: it is not.
	Attempted func(result string)
	Log       *slog.Logger
}

// idPeCMW is id-pe-cmw of RFC 9999, the extension that carries attestation evidence.
var idPeCMW = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 35}

// Source orders certificates for keys that it makes. It implements source.Issuing: Describe answers without asking the
// authority unless a step is due, and Fetch answers from memory.
type Source struct {
	config Config
	log    *slog.Logger
	status atomic.Pointer[client.IssueStatus]

	created   time.Time
	published string            // the version that is published; empty: none
	leaf      *x509.Certificate // of it
	received  time.Time         // when it came, by this node's clock; zero: before this run
	renewal   bool              // asked for
	order     *order            // under way
	issued    *pair             // not published yet, or refused
	refused   error             // why issued cannot be published
	refusals  int               // in a row
	last      time.Time         // of them
	failing   error             // the last step's
	failures  int               // in a row
	boot      int               // of them, those that do not lengthen the wait: source.BootTries
	next      time.Time         // when the next step may be taken after a failure, or towards a certificate
	issuances []time.Time       // of the last 24 hours
	suggested suggestion        // by the authority
}

// suggestion is when an authority wants the published certificate to be renewed.
type suggestion struct {
	at    time.Time // zero: it does not say
	again time.Time // when to ask again
}

// order is a certificate that is on its way.
type order struct {
	key     crypto.Signer
	asked   *x509.CertificateRequest
	request Request
	order   Order // nil: the authority has not accepted it
	begun   time.Time
}

var _ source.Issuing = (*Source)(nil)

// New returns a Source that has not ordered anything.
func New(c Config) *Source {
	s := &Source{config: c, log: c.Log, created: time.Now()}
	s.updateStatus(time.Now())
	return s
}

// step is what a Source does next.
type step int

const (
	rest    step = iota // nothing, until a moment
	begin               // make a key and order a certificate
	collect             // ask for the one that is ordered
	suggest             // ask the authority when to renew
)

// plan returns the next step and when it is due; the zero time: now.
func (s *Source) plan() (step, time.Time) {
	switch {
	case s.order != nil && s.order.order != nil:
		return collect, s.next
	case s.order != nil:
		return begin, s.next
	case s.issued != nil && s.refused == nil:
		return rest, s.issued.leaf.NotAfter // the rotator publishes it, or says why not
	}
	due := s.due()
	if s.refused != nil {
		due = later(due, s.last.Add(refusedWait(s.refusals)))
		if s.issued != nil { // if not valid yet, it is published within a minute of when it is; another would be later
			due = later(due, earlier(s.issued.leaf.NotBefore.Add(time.Minute), s.last.Add(maxHold)))
		}
	}
	due = later(due, s.next)
	if n := len(s.issuances); n >= maxIssuances {
		due = later(due, s.issuances[n-maxIssuances].Add(budgetWindow))
	}
	if _, ok := s.config.Authority.(Suggester); ok && s.leaf != nil && s.suggested.again.Before(due) {
		return suggest, s.suggested.again
	}
	return begin, due
}

// due returns when a certificate is wanted, if nothing is in the way.
func (s *Source) due() time.Time {
	switch {
	case s.published == "", s.renewal:
		return time.Time{}
	case !strings.HasSuffix(s.published, "-"+orderOf(s.config.Spec)):
		return Reordered(s.created, fraction(s.leaf))
	default:
		return s.scheduled()
	}
}

// scheduled returns when the published certificate is renewed, by our own schedule or by the authority's. The latter
// may be sooner, such as after a mistake for which it revokes certificates, but hardly later.
//
// Where this node's clock is ahead, or the authority suggests nonsense, each certificate is due as soon as it is there.
// The next one waits for a part of what is left then: without an end to this, an hour's budget would be spent each hour.
func (s *Source) scheduled() time.Time {
	backdated := s.config.Authority.Backdated()
	at := renewAt(s.leaf, backdated)
	left := s.leaf.NotAfter.Sub(s.received)
	spared := left / 2
	if !s.suggested.at.IsZero() {
		latest := at.Add(s.leaf.NotAfter.Sub(issued(s.leaf, backdated)) / 10)
		at, spared = earlier(latest, s.suggested.at), 0
		if len(s.issuances) > 1 {
			spared = left / 10
		}
	}
	if s.received.IsZero() {
		return at
	}
	return later(at, s.received.Add(spared))
}

// Describe implements source.Source. It takes the next step if that is due.
func (s *Source) Describe(ctx context.Context) (source.Version, error) {
	now := time.Now()
	if s.issued != nil && s.refused == nil && now.After(s.issued.leaf.NotAfter) {
		s.refuse(errors.New("it has expired before it could be published"), now)
	}
	if step, at := s.plan(); step != rest && !now.Before(at) {
		s.take(ctx, step)
	}
	s.updateStatus(time.Now())
	_, at := s.plan()
	if s.failing != nil {
		return source.Version{}, &source.Error{Kind: source.KindOf(s.failing), Err: s.failing, Next: at}
	}
	return source.Version{Current: s.current(), Next: at}, nil
}

// current returns the version to publish; empty: there is none.
func (s *Source) current() string {
	if s.issued != nil {
		return s.issued.version
	}
	return s.published
}

// Fetch implements source.Source.
func (s *Source) Fetch(_ context.Context, version string, _ source.Label) (source.Secret, error) {
	if s.issued == nil || s.issued.version != version {
		err := fmt.Errorf("%s: the key of version %s is in the published files only", s.config.Name, version)
		return nil, &source.Error{Kind: source.Moved, Err: err}
	}
	return source.NewSecret(s.issued.content), nil
}

// Published implements source.Issuing: the key is forgotten, since the published directory has it.
func (s *Source) Published(version string, leaf *x509.Certificate) {
	if s.published != version {
		s.suggested, s.received = suggestion{}, time.Time{}
	}
	s.published, s.leaf = version, leaf
	if s.issued != nil && s.issued.version == version {
		s.received = s.issued.at
		s.issued, s.refused, s.refusals = nil, nil, 0
		if s.order != nil && s.order.order == nil {
			s.order = nil // it was to replace what could not be published before
		}
		if s.order == nil {
			s.failing, s.failures, s.boot, s.next = nil, 0, 0, time.Time{}
		}
	}
	s.updateStatus(time.Now())
}

// Refused implements source.Issuing.
func (s *Source) Refused(version string, reason error) {
	if s.issued == nil || s.issued.version != version || s.refused != nil {
		return
	}
	s.refuse(reason, time.Now())
	s.updateStatus(time.Now())
}

// refuse notes that what was issued cannot be published.
func (s *Source) refuse(reason error, now time.Time) {
	s.refused, s.last = reason, now
	s.refusals++
}

// Renew implements source.Issuing. Someone may have removed what was in the way, so nothing but the budget delays it.
func (s *Source) Renew() {
	s.renewal, s.next = true, time.Time{}
	if s.refused != nil {
		s.issued, s.refused = nil, nil
	}
}

// Status implements source.Issuing.
func (s *Source) Status() client.IssueStatus { return *s.status.Load() }

// take takes a step, and notes how it ended.
func (s *Source) take(ctx context.Context, step step) {
	var err error
	switch step {
	case begin:
		err = s.begin(ctx)
	case collect:
		err = s.collect(ctx)
	case suggest:
		s.suggest(ctx)
		return
	}
	now := time.Now()
	switch {
	case err == nil:
		s.failing, s.failures, s.boot, s.next = nil, 0, 0, time.Time{}
		s.attempted("issued")
		return
	case s.order != nil && (errors.Is(err, ErrLost) || now.Sub(s.order.begun) > maxOrderAge && !s.stands(err)):
		s.order = nil
	case errors.Is(err, ErrPending):
		s.failing = nil // failures count on: the order may get lost
		s.next = later(now.Add(CollectWait(now.Sub(s.order.begun))), nextOf(err))
		return
	}
	s.failing = fmt.Errorf("%s: %w", s.config.Name, err)
	s.failures++
	var left time.Duration
	n := s.failures - s.boot
	if s.published != "" {
		left = max(s.leaf.NotAfter.Sub(now), 1) // nothing is gained by haste once it has expired
	} else if !source.Answered(err) && s.boot < source.BootTries {
		s.boot, n = s.boot+1, 1
	}
	s.next = later(now.Add(Backoff(left, n, mathrand.Float64())), nextOf(err))
	s.attempted(string(source.KindOf(err)))
}

// stands reports whether an order was accepted that someone has to act upon: its certificate may be there and paid for,
// and another one could not be collected either.
func (s *Source) stands(err error) bool {
	return s.order.order != nil && source.KindOf(err) == source.Persistent
}

// nextOf returns when the authority wants to be asked again; the zero time if it does not say.
func nextOf(err error) time.Time {
	e, _ := errors.AsType[*source.Error](err)
	if e == nil {
		return time.Time{}
	}
	return e.Next
}

func (s *Source) attempted(result string) {
	if s.config.Attempted != nil {
		s.config.Attempted(result)
	}
}

// begin makes a key with its request, unless the last answer was lost, and orders a certificate.
func (s *Source) begin(ctx context.Context) error {
	if s.order == nil {
		o, err := s.newOrder(ctx)
		if err != nil {
			return err
		}
		s.order = o
	}
	accepted, err := s.config.Authority.Order(ctx, s.order.request)
	if err != nil {
		return err
	}
	s.log.Info("certificate ordered", "secret", s.config.Name, "authority", s.config.Authority.String())
	s.order.order, s.order.begun = accepted, time.Now()
	return ErrPending
}

func (s *Source) newOrder(ctx context.Context) (*order, error) {
	asked, err := s.config.Names(ctx)
	if err != nil {
		return nil, fmt.Errorf("find the names for a certificate: %w", err)
	}
	key, err := newKey(s.config.Key)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	o := &order{key: key, asked: asked, begun: time.Now()}
	o.request.Token = rand.Text()
	if o.request.CSR, err = x509.CreateCertificateRequest(rand.Reader, asked, key); err != nil {
		return nil, fmt.Errorf("make a certificate signing request: %w", err)
	}
	if s.config.Evidence == nil {
		return o, nil
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("encode the public key: %w", err)
	}
	value, err := s.config.Evidence(ctx, s.config.Gives[0], sha256.Sum256(spki))
	if err != nil {
		return nil, fmt.Errorf("get evidence for the new key: %w", err)
	}
	if value != nil {
		o.request.Extensions = []pkix.Extension{{Id: idPeCMW, Value: value}}
	}
	return o, nil
}

// collect asks for the certificate that is ordered. One that is not what was asked for, or cannot be used, is counted
// and not offered.
func (s *Source) collect(ctx context.Context) error {
	c, err := s.order.order.Collect(ctx)
	if err != nil && !errors.Is(err, ErrUnusable) {
		return err
	}
	now := time.Now()
	s.issuances = append(s.issuances, now)
	var p *pair
	if err == nil {
		p, err = newPair(c, s.order.key, s.order.asked, s.config.Gives, s.config.Spec)
	}
	s.order, s.renewal = nil, false
	if err != nil {
		s.issued = nil
		s.refuse(err, now)
		return &source.Error{Kind: source.Persistent, Err: err}
	}
	p.at = now
	s.issued, s.refused = p, nil
	s.log.Info("certificate issued", "secret", s.config.Name, "authority", s.config.Authority.String(),
		"serial", fmt.Sprintf("%x", p.leaf.SerialNumber), "not_after", p.leaf.NotAfter.UTC())
	return nil
}

// suggest asks the authority when to renew the published certificate. A node takes a moment of the window that follows
// from its certificate, as its own schedule does.
func (s *Source) suggest(ctx context.Context) {
	from, to, wait, err := s.config.Authority.(Suggester).RenewalWindow(ctx, s.leaf)
	s.suggested.again = time.Now().Add(wait)
	switch {
	case err != nil:
		s.log.Info("the authority does not suggest when to renew", "secret", s.config.Name, "err", err)
	case from.IsZero():
		s.suggested.at = time.Time{}
	default:
		s.suggested.at = from.Add(time.Duration(fraction(s.leaf) * float64(to.Sub(from))))
	}
}

// updateStatus takes a snapshot, and forgets issuances that count no more.
func (s *Source) updateStatus(now time.Time) {
	for len(s.issuances) > 0 && now.Sub(s.issuances[0]) >= 24*time.Hour {
		s.issuances = s.issuances[1:]
	}
	st := &client.IssueStatus{
		From: s.config.From, Authority: s.config.Authority.String(), State: client.IssueIdle,
		Issuances: len(s.issuances),
	}
	switch {
	case s.refused != nil:
		st.State = client.IssueRefused
	case s.failing != nil:
		st.State = client.IssueFailing
	case s.order != nil || s.published == "" && s.issued == nil:
		st.State = client.IssueOrdered
	case s.issued != nil:
		st.State = client.IssueReady
	}
	if s.leaf != nil {
		backdated := s.config.Authority.Backdated()
		st.Serial, st.NotAfter = fmt.Sprintf("%x", s.leaf.SerialNumber), s.leaf.NotAfter.UTC()
		st.Issued, st.RenewAt = issued(s.leaf, backdated).UTC(), s.scheduled().UTC()
		for _, e := range s.leaf.Extensions {
			st.Evidence = st.Evidence || e.Id.Equal(idPeCMW)
		}
	}
	s.status.Store(st)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

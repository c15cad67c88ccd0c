// Package acme is the certification authority behind an ACME directory (RFC 8555): it registers an account, orders a
// certificate for the names of a request, proves control over them by http-01 if that is wanted, and collects the
// certificate. Each call takes the steps that are possible and returns within ten seconds.
//
// The account's key is made here and stays in memory, so that each run has an account of its own. Registering accepts
// the authority's terms of service. ACME carries names and a key: whether the certificate suits is left to the caller.
package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/acme"

	"sevagent/internal/mtls/issue"
	"sevagent/internal/mtls/source"
)

// The values of Config.Challenge.
const (
	// None proves nothing: the authority has to know beforehand that the names are ours.
	None = "none"
	// HTTP01 answers the challenge http-01 at Config.Listen.
	HTTP01 = "http-01"
)

// limit bounds a call, waits for the authority included. An Authority has ten seconds.
const limit = 8 * time.Second

// Config is what an Authority needs.
type Config struct {
	// Directory is the URL of the authority's directory, https.
	Directory string
	// Roots verify the TLS certificate of the directory. Nil: those of the system.
	Roots *x509.CertPool
	// EAB returns the key ID and the MAC key of an external account binding, each time an account is registered.
	// Nil: there is none.
	EAB func(context.Context) (kid string, mac []byte, err error)
	// Contact are URLs under which the authority reaches the account's owner, such as mailto:. Optional.
	Contact []string
	// Profile is that of the certificate, one of those in the directory. Empty: the authority's default.
	Profile string
	// Challenge is None or HTTP01. Empty: None.
	Challenge string
	// Listen is the address at which http-01 is answered, while an order waits for it. An authority as RFC 8555 has it
	// asks port 80 of each name.
	Listen string
	// Anchors are the roots that certificates lead to. ACME does not name them. Nil: unknown.
	Anchors []*x509.Certificate
	Log     *slog.Logger
}

// Authority is an issue.Authority and an issue.Suggester.
type Authority struct {
	Config
	transport *transport
	http      *http.Client
	responder *responder
	key       *ecdsa.PrivateKey
	client    *acme.Client // nil: no account is known
	renewals  *string      // the URL for renewal information; empty if the directory has none, nil if unknown
}

// New returns an Authority. It asks nothing yet.
func New(c Config) *Authority {
	t := newTransport(c.Roots)
	return &Authority{
		Config: c, transport: t, http: &http.Client{Transport: t}, responder: newResponder(c.Listen),
	}
}

// String returns the URL of the directory.
func (a *Authority) String() string { return a.Directory }

// Backdated returns zero: ACME does not say when a certificate was issued, so it counts from its beginning.
func (a *Authority) Backdated() time.Duration { return 0 }

// Order places an order for the names of a request. ACME has no place for a token: after a lost answer the authority
// may return the order that it has, or make a second one, which expires.
func (a *Authority) Order(ctx context.Context, r issue.Request) (issue.Order, error) {
	a.transport.begin()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	names, err := identifiers(r)
	if err != nil {
		return nil, &source.Error{Kind: source.Persistent, Err: fmt.Errorf("order a certificate from %s: %w", a, err)}
	}
	o := &order{authority: a, csr: r.CSR, names: spell(names)}
	placed, err := a.place(ctx, names)
	if isProblem(err, "accountDoesNotExist") { // the authority has lost it
		a.client = nil
		placed, err = a.place(ctx, names)
	}
	if err != nil {
		return nil, a.failed("order a certificate for "+o.names, err)
	}
	o.uri = placed.URI
	return o, nil
}

// place sends an order, from an account that it registers first if there is none.
func (a *Authority) place(ctx context.Context, names []acme.AuthzID) (*acme.Order, error) {
	if err := a.register(ctx); err != nil {
		return nil, err
	}
	directory, err := a.client.Discover(ctx)
	if err != nil {
		return nil, err
	}
	var options []acme.OrderOption
	if a.Profile != "" {
		if _, ok := directory.Profiles[acme.ProfileName(a.Profile)]; !ok {
			return nil, source.Advise(persistent("the directory has no profile %q, but %s", a.Profile,
				spellProfiles(directory.Profiles)), "choose one of them as profile, or none")
		}
		options = append(options, acme.WithOrderIssuanceProfile(acme.ProfileName(a.Profile)))
	}
	placed, err := a.client.AuthorizeOrder(ctx, names, options...)
	if err != nil {
		if hasStatus(err, http.StatusNotFound) {
			a.client = nil // read the directory again: it may have changed
		}
		return nil, err
	}
	if placed.URI == "" {
		return nil, errors.New("the answer to an order does not say where the order is")
	}
	return placed, nil
}

// register makes an account, unless there is one.
func (a *Authority) register(ctx context.Context) error {
	if a.client != nil {
		return nil
	}
	if a.key == nil {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		a.key = key
	}
	client := &acme.Client{
		Key: a.key, HTTPClient: a.http, DirectoryURL: a.Directory, RetryBackoff: retryNonce, UserAgent: "sevagent",
	}
	if _, err := client.Discover(ctx); err != nil {
		return noDirectory(err)
	}
	account := &acme.Account{Contact: a.Contact}
	if a.EAB != nil {
		kid, mac, err := a.EAB(ctx)
		if err != nil {
			return fmt.Errorf("get the external account binding: %w", err)
		}
		account.ExternalAccountBinding = &acme.ExternalAccountBinding{KID: kid, Key: mac}
	}
	// An account that exists has had its answer lost.
	_, err := client.Register(ctx, account, acme.AcceptTOS)
	if err != nil && !errors.Is(err, acme.ErrAccountAlreadyExists) {
		return a.notRegistered(err)
	}
	a.client = client
	a.Log.Info("registered an account with the certification authority", "directory", a.Directory, "account", client.KID)
	return nil
}

// retryNonce lets the client repeat what failed because of a nonce, the only failure with status 400 that it repeats.
// When to repeat all others is for the caller to say.
func retryNonce(n int, _ *http.Request, res *http.Response) time.Duration {
	if res.StatusCode == http.StatusBadRequest && n <= 5 {
		return time.Millisecond
	}
	return 0
}

// identifiers returns the names of a request, or why ACME cannot order it.
func identifiers(r issue.Request) ([]acme.AuthzID, error) {
	if len(r.Extensions) > 0 {
		return nil, source.Advise(errors.New("ACME cannot carry extensions of the certificate, such as evidence"),
			"set evidence: none")
	}
	csr, err := x509.ParseCertificateRequest(r.CSR)
	if err != nil {
		return nil, fmt.Errorf("read the request: %w", err)
	}
	if len(csr.URIs) > 0 || len(csr.EmailAddresses) > 0 {
		return nil, source.Advise(errors.New("ACME orders DNS names and IP addresses only"), "remove uri")
	}
	var addresses []string
	for _, ip := range csr.IPAddresses {
		addresses = append(addresses, ip.String())
	}
	if len(csr.DNSNames)+len(addresses) == 0 {
		return nil, source.Advise(errors.New("the request has no DNS name"), "set dns")
	}
	if cn := csr.Subject.CommonName; cn != "" &&
		!slices.ContainsFunc(csr.DNSNames, func(name string) bool { return strings.EqualFold(name, cn) }) {
		err := fmt.Errorf("the common name %q is none of the DNS names, which ACME demands", cn)
		return nil, source.Advise(err, "leave out common_name, or add it to dns")
	}
	return append(acme.DomainIDs(csr.DNSNames...), acme.IPIDs(addresses...)...), nil
}

func spell(names []acme.AuthzID) string {
	var all []string
	for _, n := range names {
		all = append(all, n.Value)
	}
	return strings.Join(all, ", ")
}

func spellProfiles(profiles map[acme.ProfileName]string) string {
	if len(profiles) == 0 {
		return "none at all"
	}
	var all []string
	for _, name := range slices.Sorted(maps.Keys(profiles)) {
		all = append(all, string(name))
	}
	return strings.Join(all, ", ")
}

package acme

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/acme"

	"sevagent/internal/mtls/issue"
	"sevagent/internal/mtls/source"
)

// How long the authority may make us wait by Retry-After.
const (
	leastRetry = time.Second
	mostRetry  = time.Hour
	mostPoll   = time.Minute // for an order that it is working on
)

// standing are problems that need someone to act, by their type in RFC 8555 section 6.7 and in the draft on profiles,
// with what to do. The status does not tell, since authorities differ in it.
var standing = map[string]string{
	"externalAccountRequired": "set eab",
	"unauthorized":            "have the authority permit these names for this account",
	"rejectedIdentifier":      "change dns: the authority does not issue for this name",
	"unsupportedIdentifier":   "change dns: the authority does not issue for names of this kind",
	"badCSR":                  "compare key, dns and common_name with what the authority accepts",
	"badPublicKey":            "choose a key that the authority accepts",
	"badSignatureAlgorithm":   "use another authority: it does not accept ECDSA on P-256 for accounts",
	"caa":                     "permit the authority in the CAA record of the name",
	"invalidContact":          "change contact",
	"unsupportedContact":      "change contact",
	"invalidProfile":          "change profile",
	"userActionRequired":      "do what the authority demands",
	"malformed":               "check directory, dns and profile",
}

// passing are problems that go away or that another order may not have, with what to do if they do not.
var passing = map[string]string{
	"accountDoesNotExist": "",
	"badNonce":            "",
	"orderNotReady":       "",
	"rateLimited":         "",
	"serverInternal":      "",
	"tls":                 "",
	"connection":          "let the authority reach the name's port 80, and let that lead to challenge_listen",
	"dns":                 "let the authority's resolver find the name",
	"incorrectResponse":   "let the name's port 80 lead to challenge_listen of this node",
}

// problemType returns the type of a problem without its namespace.
func problemType(p *acme.Error) string {
	return p.ProblemType[strings.LastIndexByte(p.ProblemType, ':')+1:]
}

// isProblem reports whether an error is a problem of a type.
func isProblem(err error, kind string) bool {
	p, ok := errors.AsType[*acme.Error](err)
	return ok && problemType(p) == kind
}

// hasStatus reports whether an error is a problem with an HTTP status.
func hasStatus(err error, status int) bool {
	p, ok := errors.AsType[*acme.Error](err)
	return ok && p.StatusCode == status
}

// persistent returns a failure that someone has to act upon.
func persistent(format string, args ...any) error {
	return &source.Error{Kind: source.Persistent, Err: fmt.Errorf(format, args...)}
}

// failed returns the error of a call: what was tried, and when it makes sense to try again.
func (a *Authority) failed(what string, err error) error {
	err = explain(err)
	e := &source.Error{
		Kind: source.KindOf(err), Err: fmt.Errorf("%s from %s: %w", what, a.Directory, err), Date: a.transport.date,
	}
	most := mostRetry
	if errors.Is(err, issue.ErrPending) {
		most = mostPoll
	}
	if after := a.transport.retryAfter; after > 0 {
		e.Next = time.Now().Add(clamp(after, leastRetry, most))
	}
	return e
}

// explain classifies an error of the client, and says what to do about it. What is classified stays as it is.
func explain(err error) error {
	if e, ok := err.(*url.Error); ok { // not one that an error of Config.EAB has inside
		err = e.Err // without the URL, which repeats the directory
		if c, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
			return source.Advise(persistent("verify its TLS certificate: %w", c.Err), "set roots to what verifies it")
		} else if _, ok := errors.AsType[*source.Error](err); !ok {
			return source.Advise(err, "check that the node can reach it")
		}
	}
	if _, ok := errors.AsType[*source.Error](err); ok || errors.Is(err, issue.ErrPending) {
		return err
	}
	if p, ok := errors.AsType[*acme.Error](err); ok {
		return explainProblem(p, "")
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return source.Advise(errors.New("it does not answer in time"), "check that the node can reach it")
	}
	return err
}

// explainProblem makes one line of a problem. Advice for its type comes from the tables unless it is given.
func explainProblem(p *acme.Error, advice string) error {
	kind := source.Transient
	known, stands := standing[problemType(p)]
	if !stands {
		known = passing[problemType(p)]
	}
	_, passes := passing[problemType(p)]
	if stands || !passes && p.StatusCode >= 400 && p.StatusCode < 500 &&
		p.StatusCode != http.StatusTooManyRequests && p.StatusCode != http.StatusRequestTimeout {
		kind = source.Persistent
	}
	if advice == "" {
		advice = known
	}
	text := p.Detail
	for _, s := range p.Subproblems {
		text += ", "
		if s.Identifier != nil {
			text += s.Identifier.Value + ": "
		}
		text += s.Detail
	}
	if text = line(text); text == "" {
		text = "it does not say why"
	}
	if t := problemType(p); t != "" {
		text += " (" + line(t) + ")"
	} else if !strings.HasPrefix(text, strconv.Itoa(p.StatusCode)) { // a HEAD has the status as its text
		text += fmt.Sprintf(" (HTTP %d)", p.StatusCode)
	}
	return &source.Error{Kind: kind, Err: &refusal{text, p}, Advice: advice}
}

// refusal is a problem as one line.
type refusal struct {
	text    string
	problem *acme.Error
}

func (r *refusal) Error() string { return r.text }

func (r *refusal) Unwrap() error { return r.problem }

// line returns the authority's text as one line of bounded length.
func line(s string) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "?")), " ")
	if runes := []rune(s); len(runes) > 300 {
		return string(runes[:300]) + "…"
	}
	return s
}

// noDirectory explains why a directory cannot be read.
func noDirectory(err error) error {
	_, isNetwork := errors.AsType[*url.Error](err)
	if p, ok := errors.AsType[*acme.Error](err); ok {
		return explainProblem(p, "check directory")
	} else if isNetwork || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return err
	}
	return source.Advise(persistent("it is no ACME directory: %w", err), "check directory")
}

// notRegistered explains why there is no account. Some authorities answer a key ID that they do not know with a
// problem, others with a server error.
func (a *Authority) notRegistered(err error) error {
	p, ok := errors.AsType[*acme.Error](err)
	if !ok {
		return err
	}
	advice := ""
	switch problemType(p) {
	case "unauthorized", "malformed":
		advice = "check contact"
		if a.EAB != nil {
			advice = "check the key ID and the MAC key of eab, and that they are not used up"
		}
	case "serverInternal", "":
		if a.EAB != nil {
			advice = "if this lasts, check the key ID of eab: some authorities answer an unknown one like this"
		}
	}
	return fmt.Errorf("register an account: %w", explainProblem(p, advice))
}

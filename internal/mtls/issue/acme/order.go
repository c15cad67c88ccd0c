package acme

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/acme"

	"sevagent/internal/mtls/issue"
	"sevagent/internal/mtls/source"
)

// order is an issue.Order. Its state is the authority's: each step begins with a look at it, so that an answer that was
// lost is neither missed nor asked for twice.
type order struct {
	authority *Authority
	uri       string
	csr       []byte
	names     string
}

// Collect takes the steps that are possible: it answers challenges, finalizes the order, downloads the chain.
func (o *order) Collect(ctx context.Context) (issue.Certificate, error) {
	a := o.authority
	a.transport.begin()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	chain, err := o.step(ctx)
	if isProblem(err, "accountDoesNotExist") { // and the order went with the account
		a.client = nil
		err = lost("", err)
	}
	if errors.Is(err, issue.ErrLost) {
		a.responder.close()
	}
	if err != nil {
		return issue.Certificate{}, a.failed("collect the certificate for "+o.names, err)
	}
	return issue.Certificate{Chain: chain, Anchors: a.Anchors}, nil
}

func (o *order) step(ctx context.Context) ([]*x509.Certificate, error) {
	a := o.authority
	if err := a.register(ctx); err != nil {
		return nil, err
	}
	now, err := a.client.GetOrder(ctx, o.uri)
	if hasStatus(err, http.StatusNotFound) { // it has expired and been removed, say
		return nil, lost("", err)
	} else if err != nil {
		return nil, err
	}
	if now.Status == acme.StatusPending {
		if err := o.answer(ctx, now); err != nil {
			return nil, err
		}
		now, err = a.client.WaitOrder(ctx, o.uri)
		if err != nil {
			return nil, o.waited(ctx, err, o.uri)
		}
	}
	a.responder.close()
	var der [][]byte
	switch now.Status {
	case acme.StatusReady:
		der, _, err = a.client.CreateCertFromOrder(ctx, now, o.csr, true)
		if isProblem(err, "orderNotReady") {
			return nil, issue.ErrPending
		} else if err != nil {
			return nil, o.waited(ctx, err, now.FinalizeURL)
		}
	case acme.StatusProcessing:
		return nil, issue.ErrPending
	case acme.StatusValid:
		der, err = a.client.FetchCert(ctx, now.CertURL, true)
		if err != nil {
			return nil, err
		}
	case acme.StatusInvalid:
		return nil, o.invalid(ctx, now.Error)
	default:
		return nil, fmt.Errorf("the order has the unknown status %q", now.Status)
	}
	return parseChain(der)
}

// waited says what came of a step after which the client waits for the order: url is what it asked first.
func (o *order) waited(ctx context.Context, err error, url string) error {
	if e, ok := errors.AsType[*acme.OrderError](err); ok {
		return o.invalid(ctx, e.Problem)
	}
	if ctx.Err() != nil && o.authority.transport.answered[url] {
		return issue.ErrPending
	}
	return err
}

// answer proves control over each name that the authority has not authorized yet.
func (o *order) answer(ctx context.Context, now *acme.Order) error {
	a := o.authority
	for _, url := range now.AuthzURLs {
		authorization, err := a.client.GetAuthorization(ctx, url)
		if err != nil {
			return err
		}
		if authorization.Status != acme.StatusPending {
			continue // valid; or else the order is about to be invalid
		}
		name := authorization.Identifier.Value
		var offered []string
		var chosen *acme.Challenge
		for _, c := range authorization.Challenges {
			offered = append(offered, c.Type)
			if c.Type == a.Challenge {
				chosen = c
			}
		}
		if chosen == nil {
			slices.Sort(offered)
			err := persistent("%w: the authority wants proof of control over %s by %s, and challenge is %s",
				issue.ErrLost, name, strings.Join(offered, ", "), cmp.Or(a.Challenge, None))
			return source.Advise(err, "have it authorize the name beforehand, or change challenge")
		}
		response, err := a.client.HTTP01ChallengeResponse(chosen.Token)
		if err != nil {
			return err
		}
		if err := a.responder.serve(ctx, a.client.HTTP01ChallengePath(chosen.Token), response); err != nil {
			return source.Advise(persistent("answer the challenge for %s: %w", name, err), listenAdvice(err))
		}
		if chosen.Status != acme.StatusPending {
			continue // the authority is looking
		}
		accepted, err := a.client.Accept(ctx, chosen)
		if err != nil {
			return err
		} else if accepted.Status == acme.StatusPending && accepted.Error != nil { // step-ca: one may try again
			return fmt.Errorf("%s: %w", prove(name, chosen.Type), explain(accepted.Error))
		}
	}
	return nil
}

// invalid says why an order is lost: by the problem of a challenge, or that of the order itself.
func (o *order) invalid(ctx context.Context, problem *acme.Error) error {
	client := o.authority.client
	if now, err := client.GetOrder(ctx, o.uri); err == nil {
		for _, url := range now.AuthzURLs {
			authorization, err := client.GetAuthorization(ctx, url)
			if err != nil {
				continue
			}
			for _, c := range authorization.Challenges {
				if c.Error != nil && authorization.Status != acme.StatusValid {
					return lost(prove(authorization.Identifier.Value, c.Type)+": ", c.Error)
				}
			}
		}
	}
	if problem != nil {
		return lost("", problem)
	}
	return fmt.Errorf("%w: the authority has made it invalid, or it has expired, and gave no reason", issue.ErrLost)
}

func prove(name, challenge string) string {
	return fmt.Sprintf("prove control over %s by %s", name, challenge)
}

// lost returns that an order is lost, and why.
func lost(what string, cause error) error {
	return fmt.Errorf("%w: %s%w", issue.ErrLost, what, explain(cause))
}

// parseChain reads a chain, leaf first. A root at its end is left out: nothing needs it there.
func parseChain(der [][]byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for i, raw := range der {
		c, err := x509.ParseCertificate(raw)
		if err != nil {
			return nil, persistent("%w: read certificate %d of the chain: %w", issue.ErrUnusable, i+1, err)
		}
		if i > 0 && c.CheckSignatureFrom(c) == nil {
			break
		}
		chain = append(chain, c)
	}
	return chain, nil
}

// clamp returns d, but at least least and at most most.
func clamp(d, least, most time.Duration) time.Duration { return max(least, min(d, most)) }

package issue

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"time"
)

// Authority is a certification authority, as one Source asks it. It need not be safe for concurrent use, and a call
// returns within ten seconds. Its errors say what was tried on what and what to do, and are *source.Error where their
// kind is known.
type Authority interface {
	// Order asks for a certificate. After an answer that was lost it is called again with the same Request, for which
	// an authority that remembers it gives the same order.
	Order(ctx context.Context, r Request) (Order, error)
	// Backdated is how long before its issuance a certificate begins, so that its age can be told from itself.
	Backdated() time.Duration
	// String names the authority: an ARN, or the URL of a directory.
	String() string
}

// Order is an order that an Authority has accepted.
type Order interface {
	// Collect returns the certificate, taking the next step towards it if there is one. ErrPending: ask again in a
	// while. ErrLost: this order gives none any more. ErrUnusable: it has given one. After any other error it is asked
	// again as its kind says.
	Collect(ctx context.Context) (Certificate, error)
}

var (
	// ErrPending says that an order has no certificate yet.
	ErrPending = errors.New("the certificate is not issued yet")
	// ErrLost says that an order will never have one, so that another order is needed.
	ErrLost = errors.New("the order is lost")
	// ErrUnusable says that a certificate was issued, and paid for, with which nothing can be done. It counts as one that
	// cannot be published.
	ErrUnusable = errors.New("the certificate cannot be used")
)

// Request is what an order is made of.
type Request struct {
	// CSR is the certificate signing request, PKCS #10 in DER. Its names are those wanted.
	CSR []byte
	// Token stands for the CSR: at most 36 characters, different for each.
	Token string
	// Extensions are to be in the certificate beside those that the authority adds. They are not in the CSR.
	Extensions []pkix.Extension
}

// Certificate is what an authority has issued.
type Certificate struct {
	// Chain is the certificate with the intermediates that lead to an anchor, leaf first.
	Chain []*x509.Certificate
	// Anchors are the roots that it leads to. Empty: the authority does not say.
	Anchors []*x509.Certificate
}

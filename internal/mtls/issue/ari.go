package issue

import (
	"context"
	"crypto/x509"
	"time"
)

// Suggester is an Authority that suggests when to renew a certificate, as RFC 9773 has it (ACME renewal information).
type Suggester interface {
	// RenewalWindow returns the window in which the authority wants leaf to be renewed. A zero start: it suggests none.
	// The answer holds for retryAfter, which is at least a minute and, for lives above ten minutes, at most a tenth of
	// the certificate's life; that is so after an error too. An error never delays a renewal and fails nothing: it says
	// why there is no suggestion.
	RenewalWindow(ctx context.Context, leaf *x509.Certificate) (start, end time.Time, retryAfter time.Duration, err error)
}

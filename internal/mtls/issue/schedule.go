package issue

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"math"
	"time"
)

const (
	// collectMin and collectMax bound the wait between two questions after an ordered certificate; it grows with the
	// age of the order, of which it is a quarter.
	collectMin = time.Second
	collectMax = 30 * time.Second
	// maxOrderAge is how long an order may take before another one takes its place.
	maxOrderAge = time.Hour

	// Before there is a certificate, the waits after failures double from retryFirst to retryMax. Once there is one,
	// they grow from retryPublished by the factor retryGrowth, up to the part retryPart of what is left of it, at least
	// retryMax and at most retryLongest: nothing is lost by patience, and all authorities limit the calls of a whole
	// account, Private CA to 25 a second. A hundred thousand nodes whose certificates were due in an outage are to come
	// one by one when it ends (test/fleet).
	retryFirst     = time.Second
	retryMax       = 15 * time.Minute
	retryPublished = 2 * time.Minute
	retryGrowth    = 4
	retryPart      = 4
	retryLongest   = 2 * time.Hour

	// A certificate that cannot be published is followed by another after refusedMin, then after ever longer, up to
	// refusedMax: each may cost money.
	refusedMin = 15 * time.Minute
	refusedMax = 6 * time.Hour
	// maxHold bounds how much longer one is waited for that begins in the future.
	maxHold = time.Hour

	// maxIssuances bounds the certificates ordered within budgetWindow, whatever they are wanted for.
	maxIssuances = 6
	budgetWindow = time.Hour
)

// renewFrom and renewTo bound the part of a certificate's life after which it is renewed. The rest is more than a third,
// at which readiness begins to warn, even of a certificate that begins an hour before it was issued and lives for a day.
const (
	renewFrom = 0.50
	renewTo   = 0.64
)

// issued returns when a certificate was issued by an authority that has them begin earlier.
func issued(leaf *x509.Certificate, backdated time.Duration) time.Time {
	if at := leaf.NotBefore.Add(backdated); at.Before(leaf.NotAfter) {
		return at
	}
	return leaf.NotBefore
}

// renewAt returns when a certificate is to be renewed. It follows from the certificate alone, so that it stays the same
// after a restart, and from its hash, so that nodes which were certified together are not renewed together.
func renewAt(leaf *x509.Certificate, backdated time.Duration) time.Time {
	return RenewAt(issued(leaf, backdated), leaf.NotAfter, fraction(leaf))
}

// RenewAt is renewAt for the life of a certificate and its fraction.
func RenewAt(issued, notAfter time.Time, fraction float64) time.Time {
	part := renewFrom + (renewTo-renewFrom)*fraction
	return issued.Add(time.Duration(float64(notAfter.Sub(issued)) * part))
}

// fraction maps a certificate to a number from [0, 1).
func fraction(leaf *x509.Certificate) float64 {
	sum := sha256.Sum256(leaf.Raw)
	return float64(binary.BigEndian.Uint64(sum[:8])>>11) / (1 << 53)
}

// Reordered returns when a certificate is ordered anew after the configuration has changed at a moment. What is
// published works, and a fleet that is configured anew is not to come all at once.
func Reordered(changed time.Time, fraction float64) time.Time {
	return changed.Add(time.Duration(fraction * float64(retryMax)))
}

// CollectWait returns how long to wait before an order of an age is asked for its certificate again.
func CollectWait(age time.Duration) time.Duration {
	return min(collectMax, max(collectMin, age/4))
}

// Backoff returns how long to wait after the nth failure in a row, n from 1: between a half and the whole of what grows
// up to a longest wait. That is flatter at the end of an outage than to begin at nothing. left is how long the
// published certificate is still valid, and 0 if there is none. random is from [0, 1).
func Backoff(left time.Duration, n int, random float64) time.Duration {
	first, growth, longest := retryFirst, 2.0, retryMax
	if left > 0 {
		first, growth, longest = retryPublished, retryGrowth, min(retryLongest, max(retryMax, left/retryPart))
	}
	return time.Duration((0.5 + random/2) * min(float64(longest), float64(first)*math.Pow(growth, float64(n-1))))
}

// refusedWait returns how long to wait after the nth certificate in a row that could not be published, n from 1.
func refusedWait(n int) time.Duration {
	return time.Duration(min(float64(refusedMax), float64(refusedMin)*math.Pow(2, float64(n-1))))
}

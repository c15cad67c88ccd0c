package acme

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"strconv"
	"time"

	"sevagent/internal/mtls/source"
)

// maxResponse bounds a response. A chain of five certificates has less than 20 kB.
const maxResponse = 1 << 20

// transport carries the requests of one Authority, one after another: https alone, wherever a directory or a redirect
// leads, and responses of bounded length. It keeps what the client does not pass on.
type transport struct {
	base http.RoundTripper

	// Of the responses since begin.
	answered   map[string]bool // URLs
	retryAfter time.Duration   // of the last response, by the authority's clock; zero if it does not say
	date       time.Time       // the authority's clock at the last response
}

func newTransport(roots *x509.CertPool) *transport {
	base := http.DefaultTransport.(*http.Transport).Clone()
	base.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	base.IdleConnTimeout = 30 * time.Second // longer than the steps of an order are apart
	t := &transport{base: base}
	t.begin()
	return t
}

// begin starts a call of the Authority.
func (t *transport) begin() {
	t.answered, t.retryAfter, t.date = make(map[string]bool), 0, time.Time{}
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, source.Advise(persistent("it is at %s, and ACME needs https", r.URL), "change directory")
	}
	res, err := t.base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	t.answered[r.URL.String()] = true
	t.date, _ = http.ParseTime(res.Header.Get("Date"))
	t.retryAfter = retryAfter(res.Header, time.Now())
	res.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(res.Body, maxResponse), res.Body}
	return res, nil
}

// retryAfter returns what a response asks for: seconds, or a date, which is compared with the date of the response.
// Zero: nothing.
func retryAfter(h http.Header, now time.Time) time.Duration {
	value := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		now = date
	}
	return max(0, at.Sub(now))
}

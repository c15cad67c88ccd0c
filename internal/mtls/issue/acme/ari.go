package acme

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// RenewalWindow asks for renewal information (RFC 9773). The client of RFC 8555 knows neither it nor the field replaces
// of an order: an authority that counts replacements apart from its rate limits counts ours as new orders.
func (a *Authority) RenewalWindow(ctx context.Context, leaf *x509.Certificate) (
	start, end time.Time, again time.Duration, err error,
) {
	a.transport.begin()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	start, end, err = a.renewalWindow(ctx, leaf)
	again = a.transport.retryAfter
	if again == 0 {
		again = 6 * time.Hour // as RFC 9773 section 4.3.3 recommends after a failure
	}
	again = clamp(again, time.Minute, max(time.Minute, leaf.NotAfter.Sub(leaf.NotBefore)/10))
	if err != nil {
		err = a.failed("get renewal information", err)
	}
	return start, end, again, err
}

func (a *Authority) renewalWindow(ctx context.Context, leaf *x509.Certificate) (start, end time.Time, err error) {
	if a.renewals == nil {
		var directory struct {
			RenewalInfo string `json:"renewalInfo"`
		}
		if err := a.get(ctx, a.Directory, &directory); err != nil {
			return start, end, err
		}
		a.renewals = &directory.RenewalInfo
	}
	if *a.renewals == "" {
		return start, end, nil
	}
	id, err := certificateID(leaf)
	if err != nil {
		return start, end, err
	}
	var info struct {
		SuggestedWindow struct{ Start, End time.Time } `json:"suggestedWindow"`
	}
	if err := a.get(ctx, *a.renewals+"/"+id, &info); err != nil {
		return start, end, err
	}
	w := info.SuggestedWindow
	if w.Start.IsZero() || !w.End.After(w.Start) {
		return start, end, fmt.Errorf("the suggested window from %s to %s is none",
			w.Start.Format(time.RFC3339), w.End.Format(time.RFC3339))
	}
	return w.Start, w.End, nil
}

// get reads a resource that needs no signature.
func (a *Authority) get(ctx context.Context, url string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "sevagent")
	res, err := a.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("read %s: %s", url, res.Status)
	}
	if err := json.NewDecoder(res.Body).Decode(v); err != nil {
		return fmt.Errorf("read %s: %w", url, err)
	}
	return nil
}

// certificateID returns the unique identifier of RFC 9773 section 4.1: the key identifier of the issuer, and the
// content of the serial number in DER.
func certificateID(leaf *x509.Certificate) (string, error) {
	if len(leaf.AuthorityKeyId) == 0 || leaf.SerialNumber == nil || leaf.SerialNumber.Sign() <= 0 {
		return "", errors.New("the certificate has no authority key identifier, or no serial number")
	}
	serial := leaf.SerialNumber.Bytes()
	if serial[0]&0x80 != 0 {
		serial = append([]byte{0}, serial...) // or it would be negative
	}
	encode := base64.RawURLEncoding.EncodeToString
	return encode(leaf.AuthorityKeyId) + "." + encode(serial), nil
}

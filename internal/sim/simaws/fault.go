package simaws

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// Fault is a way for Secrets Manager to fail.
type Fault struct {
	// Operation that fails, such as GetSecretValue; empty: each.
	Operation string
	// Code is an error code such as ThrottlingException, or an HTTP status such as "503".
	Code string
	// Calls is how many calls fail; 0: all, until SetFault("").
	Calls int
}

// SetFault makes every request fail with an error code such as ThrottlingException, or with an HTTP status such as
// "503"; "": none. It replaces all earlier faults.
func (s *Secrets) SetFault(code string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
	if code != "" {
		s.faults = []Fault{{Code: code}}
	}
}

// Fail adds a fault. Where several apply, the first one does.
func (s *Secrets) Fail(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, f)
}

// SetLatency delays every response.
func (s *Secrets) SetLatency(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.latency = d
}

// SetSkew makes the Date of responses differ from this machine's clock.
func (s *Secrets) SetSkew(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.skew = d
}

// Calls counts the requests for an operation, served or not.
func (s *Secrets) Calls(operation string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[operation]
}

// count counts a call and returns the code of the fault that applies to it, "" if none does. mu is held.
func (s *Secrets) count(operation string) (code string) {
	if s.calls == nil {
		s.calls = make(map[string]int)
	}
	s.calls[operation]++
	i := slices.IndexFunc(s.faults, func(f Fault) bool { return f.Operation == "" || f.Operation == operation })
	if i < 0 {
		return ""
	}
	code = s.faults[i].Code
	if s.faults[i].Calls == 1 {
		s.faults = slices.Delete(s.faults, i, i+1)
	} else if s.faults[i].Calls > 1 {
		s.faults[i].Calls--
	}
	return code
}

// statuses has the error codes whose status is not 400: AWS Secrets Manager API Reference, "Common Error Types" and the
// errors of each operation. Throttling is a 400.
var statuses = map[string]int{
	"InternalServiceError": http.StatusInternalServerError, "InternalFailure": http.StatusInternalServerError,
	"ServiceUnavailable": http.StatusServiceUnavailable, "UnrecognizedClientException": http.StatusForbidden,
	"ExpiredTokenException": http.StatusForbidden,
}

// status returns the HTTP status of an error code. bare: the code is a status itself, and has no body.
func status(code string) (status int, bare bool) {
	if n, err := strconv.Atoi(code); err == nil {
		return n, true
	}
	if n, ok := statuses[code]; ok {
		return n, false
	}
	return http.StatusBadRequest, false
}

// wait waits for d, or until the client has left.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

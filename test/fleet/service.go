package fleet

import (
	"errors"
	"net/http"
	"time"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// Quota is what AWS grants an account in a region.
type Quota struct {
	// Rate is in calls a second. Zero: AWS publishes none.
	Rate float64
	// Burst is how many calls may come at once. Zero: as many as Rate.
	Burst float64
}

// Service is one operation of an API, with a token bucket as its quota.
type Service struct {
	Name  string
	Quota Quota

	down   func(moment) bool // nil: never
	bin    time.Duration     // of counts
	counts []int32           // calls in each bin, refused ones too
	from   moment            // when what is the most begins

	Calls, Throttled, Failed int
	Second, Ten              int // the most calls in one second, and in ten

	inSecond, inTen window
	tokens          float64
	filled          bool
	last            moment
}

// window counts the calls in a window of time.
type window struct {
	of    moment // the windows before
	calls int
}

// count counts a call, and returns how many there were in its window of that length.
func (w *window) count(at moment, length time.Duration) int {
	if of := at / length; of != w.of {
		*w = window{of: of}
	}
	w.calls++
	return w.calls
}

// What a call may end with, beside nil, as the SDK has it.
var (
	errNotListed       = errors.New("the cluster does not list it")
	errThrottled error = &smithy.GenericAPIError{Code: "ThrottlingException", Message: "Rate exceeded"}
	errDown      error = &smithyhttp.ResponseError{
		Response: &smithyhttp.Response{Response: &http.Response{StatusCode: http.StatusServiceUnavailable}},
		Err:      &smithy.GenericAPIError{Code: "InternalServiceError", Message: "unavailable"},
	}
)

// call counts a call at a moment, which is never before that of the call before.
func (s *Service) call(at moment) error {
	s.Calls++
	if second, ten := s.inSecond.count(at, time.Second), s.inTen.count(at, 10*time.Second); at >= s.from {
		s.Second, s.Ten = max(s.Second, second), max(s.Ten, ten)
	}
	if s.bin > 0 {
		i := int(at / s.bin)
		for len(s.counts) <= i {
			s.counts = append(s.counts, 0)
		}
		s.counts[i]++
	}
	if s.down != nil && s.down(at) {
		s.Failed++
		return errDown
	}
	if s.Quota.Rate == 0 {
		return nil
	}
	burst := max(s.Quota.Burst, s.Quota.Rate, 1)
	if !s.filled {
		s.tokens, s.filled = burst, true
	}
	s.tokens = min(burst, s.tokens+(at-s.last).Seconds()*s.Quota.Rate)
	s.last = at
	if s.tokens < 1 {
		s.Throttled++
		return errThrottled
	}
	s.tokens--
	return nil
}

// Rate returns the calls a second in the busiest ten seconds.
func (s *Service) Rate() float64 { return float64(s.Ten) / 10 }

// Share returns Rate as a part of the quota; zero where there is none.
func (s *Service) Share() float64 {
	if s.Quota.Rate == 0 {
		return 0
	}
	return s.Rate() / s.Quota.Rate
}

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	retries "github.com/aws/aws-sdk-go-v2/aws/retry"
)

// Pauses are those between attempts: First, and then twice as long each time up to Longest, less up to a half, since
// the nodes of a group boot together.
type Pauses struct{ First, Longest time.Duration }

// throttledPauses are the shortest after an answer that there were too many calls: the quota is the whole account's,
// and a thousand nodes that boot together would keep others from ECS for as long as they ask.
var throttledPauses = Pauses{4 * time.Second, 15 * time.Second}

// After returns the pause after err, the nth failure in a row, n from 1. random is from [0, 1).
func (p Pauses) After(err error, n int, random float64) time.Duration {
	if throttles.IsErrorThrottle(err) == aws.TrueTernary {
		p = Pauses{max(p.First, throttledPauses.First), max(p.Longest, throttledPauses.Longest)}
	}
	pause := min(float64(p.Longest), float64(p.First)*math.Pow(2, float64(n-1)))
	return time.Duration(pause * (1 - random/2))
}

var throttles = retries.IsErrorThrottles(retries.DefaultThrottles)

// What all nodes of a group ask the same services for, ProviderPauses until the cluster lists their capacity provider,
// and SignalPauses until CloudFormation takes their signal.
var (
	ProviderPauses = Pauses{250 * time.Millisecond, 10 * time.Second}
	SignalPauses   = Pauses{250 * time.Millisecond, 15 * time.Second}
)

// retry calls try until it succeeds, or fails for good, and pauses in between. When ctx ends, the error says why it
// ended, and then what try failed with last.
func retry(ctx context.Context, pauses Pauses, try func() (again bool, err error)) error {
	var last error
	for n := 1; ; n++ {
		again, err := try()
		if !again {
			return err
		}
		if last == nil || !over(ctx) { // else the error before explains more
			last = err
		}
		select {
		case <-ctx.Done():
			cause := context.Cause(ctx)
			if errors.Is(last, cause) {
				return last
			}
			return fmt.Errorf("%w: %w", cause, last)
		case <-time.After(pauses.After(err, n, rand.Float64())):
		}
	}
}

// over reports whether ctx has ended. A connection may notice its deadline before ctx does.
func over(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(deadline)
}

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// retry calls try until it succeeds, or fails for good, and pauses in between, twice as long each time, less up to a
// half: the nodes of a group boot together. When ctx ends, the error says why it ended, and then what try failed with
// last.
func retry(ctx context.Context, pause, longest time.Duration, try func() (again bool, err error)) error {
	var last error
	for {
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
		case <-time.After(pause - rand.N(pause/2+1)):
			pause = min(2*pause, longest)
		}
	}
}

// over reports whether ctx has ended. A connection may notice its deadline before ctx does.
func over(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(deadline)
}

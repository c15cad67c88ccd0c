package agent

import (
	"context"
	"math/rand/v2"
	"time"
)

// recheckInterval is how often the agent asks for a report that nobody else wants. Hosts get new firmware a few times
// a year and a certificate runs out over weeks, so hours are soon enough; the device is slow, its rate is shared with
// those who wait for evidence, and the host throttles. recheckJitter spreads it by ±20 %: a fleet boots together.
const (
	recheckInterval = 6 * time.Hour
	recheckJitter   = 0.2
)

// recheckAfter returns how long to wait before the next self-check. random is from [0, 1).
func recheckAfter(random float64) time.Duration {
	return time.Duration(float64(recheckInterval) * (1 - recheckJitter + 2*recheckJitter*random))
}

// recheck looks at the node's own report from time to time, once the gate is passed: without, drift and a certificate
// that runs out would only be seen where somebody asks for evidence.
func (a *agent) recheck(ctx context.Context) error {
	if a.attest == nil {
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(recheckAfter(rand.Float64())):
		}
		// In mode warn the gate may have gone on without the node's region: find it now.
		if err := a.attest.locate(ctx, a.cfg.Load().Attestation, a.cloud); err != nil && ctx.Err() == nil {
			a.log.Warn("self-check without the node's region", "component", "agent", "err", err)
		}
		// The worker notes the outcome, good or bad. A full queue it does not: then others are asking.
		_, _, _ = a.attest.worker.Evidence(ctx, bootClaims())
	}
}

package mtls

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"sevagent/internal/mtls/source"
)

// requestTimeout bounds one call of a Source, evidenceTimeout one of Config.Evidence.
const (
	requestTimeout  = 10 * time.Second
	evidenceTimeout = 20 * time.Second
)

// caller makes calls that may take long, and keeps an eye on the published directories while it waits: that AWS takes ten
// seconds to answer is no reason to leave a changed key file for as long.
type caller struct {
	metrics  *metrics
	progress atomic.Int64  // when the loop last moved on, Unix time in ns
	alarm    chan struct{} // size one: a guard has seen something
	onAlarm  func()
	running  sync.WaitGroup
}

// movedOn notes that the loop is alive.
func (c *caller) movedOn(now time.Time) { c.progress.Store(now.UnixNano()) }

// await makes one call. Only call's own handling of ctx ends it.
func await[T any](ctx context.Context, c *caller, timeout time.Duration, call func(context.Context) (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	c.movedOn(time.Now())
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	done := make(chan result, 1)
	c.running.Go(func() {
		v, err := call(ctx)
		done <- result{v, err}
	})
	for {
		select {
		case answer := <-done:
			return answer.value, answer.err
		case <-c.alarm:
			c.onAlarm()
		}
	}
}

// request makes one counted call of a Source.
func request[T any](ctx context.Context, c *caller, operation string, call func(context.Context) (T, error)) (T, error) {
	v, err := await(ctx, c, requestTimeout, call)
	result := "ok"
	if err != nil {
		result = string(source.KindOf(err))
	}
	c.metrics.requests.WithLabelValues(operation, result).Inc()
	return v, err
}

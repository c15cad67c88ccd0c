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

// caller does what may take long, and keeps an eye on the published directories while it waits: that AWS takes ten
// seconds to answer, or a set of certificates one to verify, is no reason to leave a changed key file for as long.
type caller struct {
	metrics   *metrics
	progress  atomic.Int64  // when the loop last moved on, Unix time in ns
	alarm     chan struct{} // size one: a guard has seen something
	onAlarm   func()
	verifying func() // for tests: called as each verification begins
	running   sync.WaitGroup
}

// answer is a call of something outside.
type answer[T any] func(context.Context) (T, error)

// movedOn notes that the loop is alive.
func (c *caller) movedOn(now time.Time) { c.progress.Store(now.UnixNano()) }

// await makes one call, with a deadline that the call itself has to heed.
func await[T any](ctx context.Context, c *caller, limit time.Duration, call answer[T]) (v T, err error) {
	c.movedOn(time.Now())
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c.beside(func() { v, err = call(ctx) })
	return v, err
}

// verify runs one verification of certificates, which is a pure function and bounded by certset. It must not touch what
// Run owns.
func verify[T any](c *caller, f func() (T, error)) (v T, err error) {
	c.movedOn(time.Now())
	c.beside(func() {
		if c.verifying != nil {
			c.verifying()
		}
		v, err = f()
	})
	return v, err
}

// beside returns when f does, and answers alarms until then.
func (c *caller) beside(f func()) {
	done := make(chan struct{})
	c.running.Go(func() {
		defer close(done)
		f()
	})
	for {
		select {
		case <-done:
			return
		case <-c.alarm:
			c.onAlarm()
		}
	}
}

// request makes one counted call of a Source.
func request[T any](ctx context.Context, c *caller, what string, call answer[T]) (T, error) {
	v, err := await(ctx, c, requestTimeout, call)
	result := "ok"
	if err != nil {
		result = string(source.KindOf(err))
	}
	c.metrics.requests.With(what, result).Inc()
	return v, err
}

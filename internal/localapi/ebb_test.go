package localapi

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestEbb: memory is given back once a flood has run off and stays away, and not for what is no flood.
func TestEbb(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEbb()
		var released atomic.Int32
		e.release = func() { released.Add(1) }
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { e.run(ctx); close(done) }()
		defer func() { stop(); <-done }()

		open := 0
		set := func(n int) { // makes n connections open
			t.Helper()
			for ; open < n; open++ {
				for _, state := range []http.ConnState{http.StateNew, http.StateActive, http.StateIdle} {
					e.track(state)
				}
			}
			for ; open > n; open-- {
				e.track(http.StateClosed)
			}
			synctest.Wait()
		}
		expect := func(when string, want int32) {
			t.Helper()
			synctest.Wait()
			if got := released.Load(); got != want {
				t.Errorf("%s: memory was given back %d times, want %d", when, got, want)
			}
		}
		set(floodSize - 1)
		set(0)
		time.Sleep(2 * ebbDelay)
		expect("after what is no flood", 0)

		set(2 * floodSize)
		set(floodSize)
		time.Sleep(2 * ebbDelay)
		expect("half of a flood is there", 0)
		set(floodSize / 2)
		expect("it has just gone", 0)
		time.Sleep(ebbDelay)
		expect("it is gone", 1)
		set(0)
		time.Sleep(2 * ebbDelay)
		expect("the rest, too", 1)

		set(floodSize)
		set(0)
		time.Sleep(ebbDelay / 2)
		set(floodSize) // comes back
		time.Sleep(2 * ebbDelay)
		expect("it came back", 1)
		set(0)
		time.Sleep(2 * ebbDelay)
		expect("it is gone again", 2)
	})
}

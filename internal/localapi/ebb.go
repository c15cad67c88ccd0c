package localapi

import (
	"context"
	"net/http"
	"runtime"
	"runtime/debug"
	"sync"
	"time"
)

// A flood is floodSize connections at once or more. Once three quarters of its highest mark are gone, and have been for
// ebbDelay, its memory is given back to the kernel: Go alone would keep that for the next one, which may never come.
const (
	floodSize = 256
	ebbDelay  = 5 * time.Second
)

// ebb gives memory back after a flood of connections.
type ebb struct {
	release func() // gives the memory back

	mu   sync.Mutex
	open int
	high int           // the most that were open since memory was given back
	low  chan struct{} // size one: a flood may be over
}

func newEbb() *ebb {
	return &ebb{release: releaseMemory, low: make(chan struct{}, 1)}
}

// releaseMemory collects garbage twice, since what lies in pools survives once.
func releaseMemory() {
	runtime.GC()
	debug.FreeOSMemory()
}

// track counts a connection, whose state has changed.
func (e *ebb) track(state http.ConnState) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch state {
	case http.StateNew:
		e.open++
		e.high = max(e.high, e.open)
	case http.StateClosed, http.StateHijacked:
		e.open--
	}
	if e.over() {
		select {
		case e.low <- struct{}{}:
		default:
		}
	}
}

// over reports whether there was a flood that has run off. e.mu is held.
func (e *ebb) over() bool { return e.high >= floodSize && e.open <= e.high/4 }

// run gives memory back until ctx ends.
func (e *ebb) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.low:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(ebbDelay):
		}
		e.mu.Lock()
		over := e.over()
		if over {
			e.high = e.open
		}
		e.mu.Unlock()
		if over {
			e.release()
		}
	}
}

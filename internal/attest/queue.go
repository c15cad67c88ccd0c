package attest

import (
	"sync"

	"sevagent/internal/evidence"
)

// queue holds the requests that wait for a report. It is bounded, and fair between callers: a batch takes from
// each waiting caller in turn, so that one with ten thousand requests delays another's single one by at most
// one batch. Callers are told apart by turn.
type queue struct {
	max, maxPerCaller int

	mu      sync.Mutex
	closed  bool
	waiting map[string][]*request // by turn
	turns   []string              // callers with something waiting, in the order of their turns
	size    int
}

func newQueue(max int) *queue {
	return &queue{max: max, maxPerCaller: max / 2, waiting: make(map[string][]*request)}
}

func (q *queue) add(r *request) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	caller := turn(r.claims.Caller)
	switch own := q.waiting[caller]; {
	case q.closed:
		return ErrStopped
	case q.size >= q.max || len(own) >= q.maxPerCaller:
		return ErrQueueFull
	case len(own) == 0:
		q.turns = append(q.turns, caller)
	}
	q.waiting[caller] = append(q.waiting[caller], r)
	q.size++
	return nil
}

// turn names whose turn a caller takes: a container has one whatever the user, since root in it may be any user, and
// all unknown callers share one, since they may be the same. On the host it is the user's.
func turn(c evidence.Caller) string {
	if c.Kind == evidence.CallerContainer {
		c = evidence.Caller{Kind: c.Kind, ContainerID: c.ContainerID}
	}
	return c.String()
}

// take removes up to n requests, one per caller and round. Requests whose caller has gone are dropped.
func (q *queue) take(n int) []*request {
	q.mu.Lock()
	defer q.mu.Unlock()
	batch := make([]*request, 0, min(n, q.size))
	for len(batch) < n && len(q.turns) > 0 {
		caller := q.turns[0]
		q.turns = q.turns[1:]
		own := q.waiting[caller]
		r := own[0]
		own[0] = nil
		if own = own[1:]; len(own) == 0 {
			delete(q.waiting, caller)
		} else {
			q.waiting[caller] = own
			q.turns = append(q.turns, caller)
		}
		q.size--
		if r.ctx.Err() == nil {
			batch = append(batch, r)
		}
	}
	return batch
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.size
}

// close refuses further requests and returns those that wait.
func (q *queue) close() []*request {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	return q.take(q.max)
}

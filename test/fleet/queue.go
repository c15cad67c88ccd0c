package fleet

import "time"

// moment is virtual time: nanoseconds since the simulation began.
type moment = time.Duration

// event is something that happens to a node.
type event struct {
	at   moment
	node int32
	what uint8  // of the scenario
	turn uint32 // of the node; an event of an earlier turn is void
}

// queue is a heap of events with four children to a parent, which is flatter than container/heap and needs no
// interface values. Events of the same moment come in a fixed order.
type queue []event

func before(a, b event) bool {
	if a.at != b.at {
		return a.at < b.at
	}
	return a.node < b.node
}

func (q *queue) push(e event) {
	h := append(*q, e)
	i := len(h) - 1
	for i > 0 {
		parent := (i - 1) / 4
		if !before(e, h[parent]) {
			break
		}
		h[i] = h[parent]
		i = parent
	}
	h[i] = e
	*q = h
}

func (q *queue) pop() event {
	h := *q
	first, last := h[0], h[len(h)-1]
	h = h[:len(h)-1]
	*q = h
	if len(h) == 0 {
		return first
	}
	i := 0
	for {
		child := 4*i + 1
		if child >= len(h) {
			break
		}
		least := child
		for c := child + 1; c < min(child+4, len(h)); c++ {
			if before(h[c], h[least]) {
				least = c
			}
		}
		if !before(h[least], last) {
			break
		}
		h[i] = h[least]
		i = least
	}
	h[i] = last
	return first
}

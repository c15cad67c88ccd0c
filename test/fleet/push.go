package fleet

import (
	"math/rand/v2"
	"time"
)

// Push is the way of a rotation to the nodes: EventBridge starts an SSM document by Run Command, once in each cluster.
type Push struct {
	// Cluster is how many nodes a cluster has at most.
	Cluster int
	// Delay is from the new version to the first node.
	Delay time.Duration
	// Concurrency is on how many nodes of a cluster a command runs at the same time, and Hold, from and to, how long
	// each takes its place, beside what the script waits there.
	Concurrency int
	Hold        [2]time.Duration
	// Splay is the longest that a node waits before it looks.
	Splay time.Duration
	// Keeps says that the script waits itself, and so keeps its place.
	Keeps bool
}

// hints returns when each node looks, from the new version on.
func (p Push) hints(nodes int, random *rand.Rand) []time.Duration {
	all := make([]time.Duration, 0, nodes)
	for len(all) < nodes {
		places := make([]time.Duration, p.Concurrency) // when each is free
		for i := range places {
			places[i] = p.Delay
		}
		for range min(p.Cluster, nodes-len(all)) {
			first := 0
			for i := range places {
				if places[i] < places[first] {
					first = i
				}
			}
			hold := between(p.Hold, random)
			// The script has whole seconds.
			splay := time.Duration(random.IntN(int(p.Splay/time.Second)+1)) * time.Second
			all = append(all, places[first]+hold/2+splay)
			if p.Keeps {
				hold += splay
			}
			places[first] += hold
		}
	}
	return all
}

func between(d [2]time.Duration, random *rand.Rand) time.Duration {
	return d[0] + time.Duration(random.Float64()*float64(d[1]-d[0]))
}

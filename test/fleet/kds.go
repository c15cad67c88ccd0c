package fleet

import (
	"math/rand/v2"
	"slices"
	"time"

	"sevagent/internal/attest"
)

// fromKDS returns how nodes on Dedicated Hosts that share one address get the certificates of their chips from AMD,
// each once.
func fromKDS(nodes int) (have []time.Duration, kds Service) {
	random := rand.New(rand.NewPCG(seed, uint64(nodes)))
	kds = Service{Quota: certificatesOfAMD}
	failures := make([]int, nodes)
	var q queue
	for i := range nodes {
		q.push(event{at: between(bootTimes, random) - bootTimes[0], node: int32(i)})
	}
	for len(q) > 0 {
		e := q.pop()
		if kds.call(e.at) == nil {
			have = append(have, e.at)
			continue
		}
		failures[e.node]++
		q.push(event{at: e.at + attest.FetchBackoff(failures[e.node], random.Float64()), node: e.node})
	}
	slices.Sort(have)
	return have, kds
}

package fleet

import (
	"math/rand/v2"
	"slices"
	"time"

	"sevagent/internal/bootstrap"
	"sevagent/internal/mtls"
	"sevagent/internal/mtls/issue"
)

// Boots is a fleet that comes up: bootstrap on each node, the agent's first certificate, the cluster.
type Boots struct {
	Nodes int
	// Launches is how EC2 launches instances: Burst at once, and Rate a second after that.
	Launches Quota
	// Boot is from an instance's launch to bootstrap's first call.
	Boot [2]time.Duration
	// Listed is when the clusters list their capacity providers. Zero: they have done so before.
	Listed moment

	Issues                       bool // from Private CA, and not from Secrets Manager
	Takes                        [2]time.Duration
	Describe, Get                Quota
	Read, Issue, Collect         Quota
	Clusters, Register, Signaled Quota

	End  moment
	Seed uint64
	Bin  time.Duration
}

// BootsResult is what became of it.
type BootsResult struct {
	Services []*Service
	Joined   []time.Duration // from each node's launch, in order
}

// What a booting node does next: the calls, in their order.
const (
	describing uint8 = iota
	fetching
	reading
	ordering
	collecting
	asking
	registering
	signaling
)

type bootingNode struct {
	launched     moment
	failures     int // of this step, as its loop counts
	begun, ready moment
}

// Run simulates it.
func (f Boots) Run() BootsResult {
	random := rand.New(rand.NewPCG(f.Seed, uint64(f.Nodes)))
	var r BootsResult
	add := func(name string, q Quota) *Service {
		s := &Service{Name: name, Quota: q, bin: f.Bin}
		r.Services = append(r.Services, s)
		return s
	}
	var services [8]*Service
	first := describing
	if f.Issues {
		first = reading
		services[reading] = add("GetCertificateAuthorityCertificate", f.Read)
		services[ordering] = add("IssueCertificate", f.Issue)
		services[collecting] = add("GetCertificate", f.Collect)
	} else {
		services[describing] = add("DescribeSecret", f.Describe)
		services[fetching] = add("GetSecretValue", f.Get)
	}
	services[asking] = add("DescribeClusters", f.Clusters)
	services[registering] = add("RegisterContainerInstance", f.Register)
	services[signaling] = add("SignalResource", f.Signaled)

	nodes := make([]bootingNode, f.Nodes)
	var q queue
	for i := range nodes {
		if late := i - int(f.Launches.Burst); late > 0 {
			nodes[i].launched = time.Duration(float64(late) / f.Launches.Rate * float64(time.Second))
		}
		q.push(event{at: nodes[i].launched + between(f.Boot, random), node: int32(i), what: first})
	}
	for len(q) > 0 {
		e := q.pop()
		if e.at >= f.End {
			break
		}
		n := &nodes[e.node]
		again := func(what uint8, wait time.Duration) { q.push(event{at: e.at + wait, node: e.node, what: what}) }
		next := func(what uint8) { n.failures = 0; again(what, 0) }
		err := services[e.what].call(e.at)
		if err == nil && e.what == asking && e.at < f.Listed {
			err = errNotListed
		}
		if err != nil {
			n.failures++
			switch e.what {
			case describing, fetching:
				again(describing, mtls.Backoff(n.failures, random.Float64()))
			case reading, ordering, collecting:
				again(e.what, issue.Backoff(0, n.failures, random.Float64()))
			case asking:
				again(asking, bootstrap.ProviderPauses.After(err, n.failures, random.Float64()))
			default: // the ECS agent's own repetition is not ours to know; none is needed here
				again(e.what, bootstrap.SignalPauses.After(err, n.failures, random.Float64()))
			}
			continue
		}
		switch e.what {
		case ordering:
			n.failures, n.begun, n.ready = 0, e.at, e.at+between(f.Takes, random)
			again(collecting, issue.CollectWait(0))
		case collecting:
			if e.at < n.ready {
				again(collecting, issue.CollectWait(e.at-n.begun))
				continue
			}
			next(asking)
		case describing:
			again(fetching, 0)
		case reading:
			again(ordering, 0)
		case fetching:
			next(asking)
		case signaling:
			r.Joined = append(r.Joined, e.at-n.launched)
		default: // asking, registering
			next(e.what + 1)
		}
	}
	slices.Sort(r.Joined)
	return r
}

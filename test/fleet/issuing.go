package fleet

import (
	"math/rand/v2"
	"slices"
	"time"

	"sevagent/internal/mtls/issue"
)

// Issuing is a fleet whose nodes order certificates from one AWS Private CA, and have done so for long.
type Issuing struct {
	Nodes   int
	Life    time.Duration // of a certificate
	Issue   Quota
	Collect Quota
	Takes   [2]time.Duration // from an order to its certificate

	Outage [2]moment // every call fails
	// Began is when all nodes were configured anew, so that each orders another certificate. Zero: they were not.
	Began moment
	Begin moment
	End   moment
	Seed  uint64
	Bin   time.Duration
}

// IssuingResult is what became of it.
type IssuingResult struct {
	Issue, Collect Service
	// Overdue is, for each node whose certificate was due in the outage, when it had the next one, from the outage's
	// end, in order.
	Overdue []time.Duration
	// Left is the least that was left of any certificate.
	Left   time.Duration
	Issued int
}

// What a node of an Issuing fleet does next.
const (
	order uint8 = iota
	collect
)

type issuingNode struct {
	ends     moment // of the certificate
	due      moment
	failures int
	begun    moment // of the order
	ready    moment // of its certificate
}

// Run simulates it.
func (f Issuing) Run() IssuingResult {
	random := rand.New(rand.NewPCG(f.Seed, uint64(f.Nodes)))
	r := IssuingResult{
		Issue:   Service{Name: "IssueCertificate", Quota: f.Issue, bin: f.Bin, from: f.Begin},
		Collect: Service{Name: "GetCertificate", Quota: f.Collect, bin: f.Bin, from: f.Begin},
		Left:    f.Life,
	}
	if f.Outage[1] > 0 {
		down := func(at moment) bool { return at >= f.Outage[0] && at < f.Outage[1] }
		r.Issue.down, r.Collect.down = down, down
	}
	renewal := func(issued moment) moment {
		return issue.RenewAt(epoch.Add(issued), epoch.Add(issued+f.Life), random.Float64()).Sub(epoch)
	}
	nodes := make([]issuingNode, f.Nodes)
	var q queue
	for i := range nodes {
		n := &nodes[i]
		age := renewal(0) // the age at which this one is renewed; it has reached any part of it
		n.due = time.Duration((1 - random.Float64()) * float64(age))
		n.ends = n.due - age + f.Life
		if f.Began > 0 {
			n.due = min(n.due, issue.Reordered(epoch.Add(f.Began), random.Float64()).Sub(epoch))
		}
		q.push(event{at: n.due, node: int32(i), what: order})
	}
	for len(q) > 0 {
		e := q.pop()
		if e.at >= f.End {
			break
		}
		n := &nodes[e.node]
		next := func(what uint8, at moment) { q.push(event{at: at, node: e.node, what: what}) }
		failed := func() {
			n.failures++
			next(e.what, e.at+issue.Backoff(max(n.ends-e.at, 1), n.failures, random.Float64()))
		}
		switch e.what {
		case order:
			r.Left = min(r.Left, n.ends-e.at)
			if r.Issue.call(e.at) != nil {
				failed()
				continue
			}
			r.Issued++
			n.begun, n.ready = e.at, e.at+between(f.Takes, random)
			next(collect, e.at+issue.CollectWait(0))
		case collect:
			switch err := r.Collect.call(e.at); {
			case err != nil:
				failed()
			case e.at < n.ready:
				next(collect, e.at+issue.CollectWait(e.at-n.begun))
			default:
				if n.due >= f.Outage[0] && n.due < f.Outage[1] {
					r.Overdue = append(r.Overdue, max(0, e.at-f.Outage[1]))
				}
				n.failures, n.ends, n.due = 0, n.ready+f.Life, renewal(n.ready)
				next(order, n.due)
			}
		}
	}
	slices.Sort(r.Overdue)
	return r
}

package fleet

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"sevagent/internal/mtls"
)

// epoch is when the simulations begin, for what the product computes with dates.
var epoch = time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)

// Secrets is a fleet whose certificates come from one secret of Secrets Manager.
type Secrets struct {
	Nodes    int
	Interval time.Duration // poll_interval
	Retryer  aws.Retryer   // of the client
	Describe Quota
	Get      Quota

	// Rotated is when a new version becomes AWSCURRENT. Zero: never.
	Rotated moment
	// Announced says that the secret's rotation is scheduled for Rotated, and that the new version is AWSPENDING for a
	// minute before.
	Announced bool
	// Push is how nodes hear of the rotation. Nil: by their polls alone.
	Push *Push
	// Life is that of the certificate, and Age how old it is when the simulation begins. Zero: unknown.
	Life, Age time.Duration
	// Outage is from when to when every call fails.
	Outage [2]moment

	Begin moment // of what is measured; before, the fleet finds its rhythm
	End   moment
	Seed  uint64
	Bin   time.Duration // of the counts over time
}

// SecretsResult is what became of it.
type SecretsResult struct {
	Describe, Get Service
	// Have is when each node has had the new version, from Rotated on or from the end of an outage that has hidden it,
	// in order. Nodes that do not have it are missing.
	Have []time.Duration
}

// What a node with a secret does next.
const (
	look  uint8 = iota // describe, then fetch what is new
	again              // the call that the SDK repeats
	hint               // look at once
)

type secretNode struct {
	turn     uint32
	failures uint16
	call     uint8 // see below
	attempt  uint8 // of the call, as the SDK counts
	current  bool  // it has the new version
	pending  bool  // it has fetched the pending one
	moved    bool  // the last answer named the new version
	waiting  bool  // and the last one a pending one
}

// The calls of one look.
const (
	describe uint8 = iota
	fetch
	fetchPending
)

// pendingFor is how long the new version is AWSPENDING before a scheduled rotation ends.
const pendingFor = time.Minute

// Run simulates it.
func (f Secrets) Run() SecretsResult {
	random := rand.New(rand.NewPCG(f.Seed, uint64(f.Nodes)))
	r := SecretsResult{
		Describe: Service{Name: "DescribeSecret", Quota: f.Describe, bin: f.Bin, from: f.Begin},
		Get:      Service{Name: "GetSecretValue", Quota: f.Get, bin: f.Bin, from: f.Begin},
	}
	if f.Outage[1] > 0 {
		down := func(at moment) bool { return at >= f.Outage[0] && at < f.Outage[1] }
		r.Describe.down, r.Get.down = down, down
	}
	outlook := mtls.Outlook{Interval: f.Interval}
	if f.Life > 0 {
		outlook.NotBefore = epoch.Add(-f.Age)
		outlook.NotAfter = outlook.NotBefore.Add(f.Life)
	}
	if f.Announced {
		outlook.NextRotation = epoch.Add(f.Rotated)
	}

	nodes := make([]secretNode, f.Nodes)
	var q queue
	for i := range nodes {
		first := time.Duration(random.Float64() * float64(outlook.NextPoll(epoch, random.Float64())))
		q.push(event{at: first, node: int32(i), what: look})
	}
	if f.Push != nil && f.Rotated > 0 {
		for i, at := range f.Push.hints(f.Nodes, random) {
			q.push(event{at: f.Rotated + at, node: int32(i), what: hint})
		}
	}
	repeats := map[error]bool{} // by the SDK
	for _, err := range []error{errThrottled, errDown} {
		repeats[err] = f.Retryer.IsErrorRetryable(err)
	}
	counted := max(f.Rotated, f.Outage[1])

	next := func(n *secretNode, node int32, what uint8, at moment) {
		n.turn++
		q.push(event{at: at, node: node, what: what, turn: n.turn})
	}
	done := func(n *secretNode, node int32, at moment) {
		n.failures = 0
		o := outlook
		o.Pending = n.waiting
		if f.Rotated > 0 && at >= f.Rotated {
			o.NextRotation = time.Time{} // the next one is days away
		}
		next(n, node, look, at+o.NextPoll(epoch.Add(at), random.Float64()))
	}
	for len(q) > 0 {
		e := q.pop()
		if e.at >= f.End {
			break
		}
		n := &nodes[e.node]
		switch {
		case e.what == hint:
			n.call, n.attempt = describe, 1
		case e.turn != n.turn:
			continue
		case e.what == look:
			n.call, n.attempt = describe, 1
		}
	calls:
		for {
			service := &r.Get
			if n.call == describe {
				service = &r.Describe
			}
			if err := service.call(e.at); err != nil {
				if int(n.attempt) < f.Retryer.MaxAttempts() && repeats[err] {
					wait, _ := f.Retryer.RetryDelay(int(n.attempt), err)
					n.attempt++
					next(n, e.node, again, e.at+wait)
					break calls
				}
				if n.call == fetchPending { // is no failure of the secret
					done(n, e.node, e.at)
					break calls
				}
				n.failures = uint16(min(int(n.failures)+1, math.MaxUint16))
				next(n, e.node, look, e.at+mtls.Backoff(int(n.failures), random.Float64()))
				break calls
			}
			n.attempt = 1
			switch n.call {
			case describe:
				n.moved = f.Rotated > 0 && e.at >= f.Rotated
				n.waiting = f.Announced && !n.moved && e.at >= f.Rotated-pendingFor
			case fetch:
				n.current = true
				r.Have = append(r.Have, max(0, e.at-counted))
			case fetchPending:
				n.pending = true
			}
			switch {
			case n.moved && !n.current:
				n.call = fetch
			case n.waiting && !n.pending:
				n.call = fetchPending
			default:
				done(n, e.node, e.at)
				break calls
			}
		}
	}
	slices.Sort(r.Have)
	return r
}

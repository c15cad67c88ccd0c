// Package cluster checks whether an ECS cluster is a confidential one. Inspect asks AWS and returns a Snapshot;
// Evaluate runs the checks, which are pure functions of the Snapshot.
//
// Everything is found from the cluster's name along what AWS itself links: cluster, capacity providers, their Auto
// Scaling groups, the groups' launch templates; and cluster, container instances, EC2 instances. Nothing is looked up
// by a pattern of names, which would take one cluster's parts for another's.
//
// A call that fails does not end the inspection. The checks that needed its answer are unknown, which is not a pass.
//
// What AWS says of a node is the host operator's word. Only the evidence that Collect returns, once verified, is proof.
package cluster

import (
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// Config is what an Inspector needs.
type Config struct {
	// AWS has the region, the credentials and, if set, the retryer. A nil retryer is the SDK's adaptive one, which
	// slows down as AWS throttles.
	AWS aws.Config
	// Cluster is the cluster's name or ARN.
	Cluster string
	// AllowCustomRoots: see Snapshot.
	AllowCustomRoots bool
	// Progress, if set, is called after each call with its name and the number of requests sent so far. The calls come
	// from several goroutines, but one at a time.
	Progress func(api string, calls int)
	// AnswerTimeout is how long Collect waits for nodes. Zero means two minutes.
	AnswerTimeout time.Duration
}

// How many requests may be under way at a time. AWS lets an account send tens of such calls a second.
const concurrency = 8

// A throttled account needs patience: with the adaptive mode's pauses, eight attempts are about a minute.
const attempts = 8

// Inspector asks AWS about one cluster. The clients are concrete on purpose: behind an interface, the linker would keep
// the hundreds of operations of EC2 that nobody calls.
type Inspector struct {
	cfg         Config
	ecs         *ecs.Client
	ec2         *ec2.Client
	autoscaling *autoscaling.Client
	ssm         *ssm.Client
	sts         *sts.Client
	counter     counter
	gate        chan struct{}
	progress    chan struct{} // size one: held while Progress runs
}

// New makes an Inspector, and asks nothing yet.
func New(cfg Config) *Inspector {
	in := &Inspector{cfg: cfg, gate: make(chan struct{}, concurrency), progress: make(chan struct{}, 1)}
	in.counter.calls = make(map[string]int)
	c := cfg.AWS.Copy()
	if c.Retryer == nil {
		c.Retryer = func() aws.Retryer {
			return retry.NewAdaptiveMode(func(o *retry.AdaptiveModeOptions) {
				o.StandardOptions = append(o.StandardOptions,
					func(o *retry.StandardOptions) { o.MaxAttempts = attempts })
			})
		}
	}
	c.APIOptions = append(c.APIOptions[:len(c.APIOptions):len(c.APIOptions)], in.counter.option)
	in.ecs, in.ec2 = ecs.NewFromConfig(c), ec2.NewFromConfig(c)
	in.autoscaling, in.ssm, in.sts = autoscaling.NewFromConfig(c), ssm.NewFromConfig(c), sts.NewFromConfig(c)
	return in
}

// Calls is what was sent so far.
func (in *Inspector) Calls() Calls { return in.counter.snapshot() }

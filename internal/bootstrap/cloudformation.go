package bootstrap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/cloudformation"
	"github.com/aws/aws-sdk-go-v2/service/cloudformation/types"
	"github.com/aws/smithy-go"

	"sevagent/internal/cli"
)

// target is whom to tell how the node came up. As signal.json it is what bootstrap leaves for 'bootstrap signal'.
type target struct {
	Cluster        string `json:"cluster"`
	Stack          string `json:"stack"`           // name or ID
	ReadyResource  string `json:"ready_resource"`  // the wait condition that a stack's creation waits for
	UpdateResource string `json:"update_resource"` // the Auto Scaling group, which waits in a rolling update
	Region         string `json:"region"`
	InstanceID     string `json:"instance_id"`
}

// resources are those to signal, in that order.
func (t target) resources() (ids []string) {
	for _, id := range []string{t.ReadyResource, t.UpdateResource} {
		if id != "" && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// reporter tells CloudFormation, once.
type reporter struct {
	target   target
	stateDir string
	timeout  time.Duration
	say      func(step, format string, args ...any)
}

// signaled is what signaled.json in the state directory holds: that this instance has told this stack. A second signal,
// after a reboot or a second run of bootstrap, could meet a rolling update of other nodes and be counted as one of theirs.
type signaled struct {
	InstanceID string    `json:"instance_id"`
	Stack      string    `json:"stack"`
	Status     string    `json:"status"`
	UniqueID   string    `json:"unique_id"`
	Accepted   []string  `json:"accepted"` // by these resources; none: nothing waited
	At         time.Time `json:"at"`
}

func (r reporter) file() string { return filepath.Join(r.stateDir, "signaled.json") }

// before returns what was told before, if it was.
func (r reporter) before() (s signaled, ok bool) {
	data, err := os.ReadFile(r.file())
	if err != nil || json.Unmarshal(data, &s) != nil {
		return s, false
	}
	return s, s.InstanceID == r.target.InstanceID && s.Stack == r.target.Stack
}

// success tells that the node is in the cluster. The instance ID as UniqueId is what CloudFormation asks for.
func (r reporter) success(ctx context.Context) error {
	return r.tell(ctx, types.ResourceSignalStatusSuccess, r.target.InstanceID)
}

// failure tells that it is not, and why.
func (r reporter) failure(ctx context.Context, why error) error {
	instance := r.target.InstanceID
	if instance == "" {
		instance = "unknown"
	}
	return r.tell(ctx, types.ResourceSignalStatusFailure, failureID(instance, why))
}

func (r reporter) tell(ctx context.Context, status types.ResourceSignalStatus, uniqueID string) error {
	if s, ok := r.before(); ok {
		r.say("signal", "none: %s told stack %s %s at %s", s.InstanceID, s.Stack, s.Status, s.At.Format(time.RFC3339))
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	cfg, err := loadAWS(ctx, r.target.Region)
	if err != nil {
		return err
	}
	client := cloudformation.NewFromConfig(cfg, func(o *cloudformation.Options) {
		o.HTTPClient = awshttp.NewBuildableClient().WithTimeout(10 * time.Second)
		// Throttling and 5xx: again until the deadline, with jitter. The SDK's quota of retries is for a service that
		// has other things to do.
		o.Retryer = retry.NewStandard(func(o *retry.StandardOptions) {
			o.MaxAttempts, o.MaxBackoff, o.RateLimiter = 1000, 20*time.Second, ratelimit.None
		})
	})
	accepted, err := r.send(ctx, client, status, uniqueID)
	if err != nil {
		return err
	}
	if len(accepted) == 0 {
		r.say("signal", "%s not needed: nothing in stack %s waits for this node", status, r.target.Stack)
	}
	if r.target.InstanceID == "" {
		return nil
	}
	text, err := json.Marshal(signaled{r.target.InstanceID, r.target.Stack, string(status), uniqueID, accepted, time.Now().UTC()})
	if err != nil {
		panic(err) // of text and a time: always marshals
	}
	_, err = writeIfChanged(r.file(), append(text, '\n'), 0o644)
	return err
}

// send signals every resource. A node can be faster than its stack: the wait condition begins to wait only once the
// capacity provider is the cluster's. So that one is asked again until it accepts, or says that it will not, or the
// deadline has come.
func (r reporter) send(ctx context.Context, client *cloudformation.Client, status types.ResourceSignalStatus, uniqueID string) (accepted []string, err error) {
	pending := r.target.resources()
	var last error // why the ready resource did not take it
	for pause := 250 * time.Millisecond; ; pause = min(2*pause, 15*time.Second) {
		var later []string
		for _, id := range pending {
			_, callErr := client.SignalResource(ctx, &cloudformation.SignalResourceInput{
				StackName: &r.target.Stack, LogicalResourceId: aws.String(id), Status: status, UniqueId: &uniqueID,
			})
			refusal, final := refusalOf(callErr)
			switch {
			case callErr == nil || repeated.MatchString(refusal):
				accepted = append(accepted, id)
				r.say("signal", "%s to %s as %s", status, id, uniqueID)
			case refusal == "":
				err = errors.Join(err, r.explain(id, callErr))
			case final || id != r.target.ReadyResource:
				// A group waits for the nodes of a rolling update before it launches them. To wait until it does would be to
				// be taken for one of them.
				r.say("signal", "%s does not wait: %s", id, refusal)
			default:
				later = append(later, id)
				last = r.explain(id, callErr)
			}
		}
		switch pending = later; {
		case len(accepted) > 0 && (err != nil || len(pending) == 0 || ctx.Err() != nil):
			return accepted, nil // that it was told is what must not be forgotten
		case err != nil:
			return nil, firstOf(err)
		case len(pending) == 0:
			return nil, nil
		}
		select {
		case <-ctx.Done():
			if len(accepted) > 0 {
				return accepted, nil
			}
			return nil, advised{fmt.Errorf("%w; it did not begin to wait within %v", last, r.timeout), "see the stack's events"}
		case <-time.After(pause):
		}
	}
}

// firstOf is the first of several errors: two resources are mostly refused for one reason.
func firstOf(err error) error {
	if all, ok := err.(interface{ Unwrap() []error }); ok {
		return all.Unwrap()[0]
	}
	return err
}

// CloudFormation refuses a signal to what does not wait with the code ValidationError, which it uses for every other
// mistake too: there is nothing but the message to tell them apart. "Stack arn:… is in CREATE_COMPLETE state and cannot be
// signaled" is what nodes get that Auto Scaling has added (aws-cloudformation/aws-cloudformation-templates issues 34 and
// 126, zalando-incubator/kubernetes-on-aws issue 538).
//
// What it says of a resource that has not begun is not documented; whatever is not known to be final is asked again.
var (
	inState  = regexp.MustCompile(`^(Stack|Resource)\b.* is in ([A-Z_]+) state and can ?not be signaled`)
	repeated = regexp.MustCompile(`^Signal with ID .* already exists`)
	noStack  = regexp.MustCompile(`^Stack .*does not exist`)
)

// waitingStates are those of a stack in which a resource that does not wait now may come to.
var waitingStates = []string{"CREATE_IN_PROGRESS", "UPDATE_IN_PROGRESS", "UPDATE_ROLLBACK_IN_PROGRESS", "REVIEW_IN_PROGRESS"}

// refusalOf returns the message of an error that says that a resource does not wait, and whether it can still begin to.
func refusalOf(err error) (message string, final bool) {
	api, ok := errors.AsType[smithy.APIError](err)
	if !ok || api.ErrorCode() != "ValidationError" {
		return "", false
	}
	message = api.ErrorMessage()
	if noStack.MatchString(message) {
		return "", false
	}
	switch m := inState.FindStringSubmatch(message); {
	case m == nil:
		return message, false
	case m[1] == "Stack":
		return message, !slices.Contains(waitingStates, m[2])
	default: // a resource that has not begun, or has begun anew, may still wait
		return message, strings.HasSuffix(m[2], "_COMPLETE") || strings.HasSuffix(m[2], "_FAILED")
	}
}

// explain says what to do about an error.
func (r reporter) explain(resource string, err error) error {
	err = fmt.Errorf("signal %s of stack %s: %w", resource, r.target.Stack, err)
	api, ok := errors.AsType[smithy.APIError](err)
	switch {
	case !ok || api.ErrorCode() == "Throttling" || api.ErrorFault() == smithy.FaultServer || errors.Is(err, context.DeadlineExceeded):
		return cli.Unreachable(err)
	case api.ErrorCode() == "AccessDenied":
		return advised{err, "allow cloudformation:SignalResource on the stack to the node's role"}
	}
	return err
}

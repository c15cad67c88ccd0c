package bootstrap

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/cloudformation"
	"github.com/aws/aws-sdk-go-v2/service/cloudformation/types"
	"github.com/aws/smithy-go"

	"sevagent/internal/cli"
	"sevagent/internal/pattern"
)

// Target is the cluster to join, and the stack resources to signal. Run leaves it as signal.json for Signal.
type Target struct {
	Cluster        string `json:"cluster"`
	Stack          string `json:"stack"`           // name or ID
	ReadyResource  string `json:"ready_resource"`  // the wait condition that a stack's creation waits for; "": none
	UpdateResource string `json:"update_resource"` // the Auto Scaling group, which waits in a rolling update; "": none
	Region         string `json:"region"`
	InstanceID     string `json:"instance_id"`
	Failure        string `json:"failure,omitempty"` // the ID of a failure that a warm pool kept from being signaled
}

// signaler signals CloudFormation, once.
type signaler struct {
	machine  machine
	target   Target
	stateDir string
	timeout  time.Duration
	report   report
}

// signaled is what signaled.json in the state directory records: that this instance has signaled this stack. A second
// signal, after a reboot or a second run of bootstrap, could meet a rolling update and be counted as another node's.
// Only success may follow failure: the node has joined after all.
type signaled struct {
	InstanceID string    `json:"instance_id"`
	Stack      string    `json:"stack"`
	Status     string    `json:"status"`
	UniqueID   string    `json:"unique_id"`
	Accepted   []string  `json:"accepted"` // by these resources; none: no resource waited
	At         time.Time `json:"at"`
}

func (s signaled) succeeded() bool { return s.Status == string(types.ResourceSignalStatusSuccess) }

func (r signaler) file() string { return filepath.Join(r.stateDir, "signaled.json") }

// before returns the signal that was sent before, if there was one.
func (r signaler) before() (s signaled, ok bool) {
	data, err := os.ReadFile(r.file())
	if err != nil || json.Unmarshal(data, &s) != nil {
		return s, false
	}
	return s, s.InstanceID == r.target.InstanceID && s.Stack == r.target.Stack
}

// success signals that the node is in the cluster. CloudFormation asks for the instance ID as UniqueId.
func (r signaler) success(ctx context.Context) error {
	return r.signal(ctx, types.ResourceSignalStatusSuccess, r.target.InstanceID)
}

// failure signals that it is not, and why. It returns why, and the error of the signal if that fails.
func (r signaler) failure(ctx context.Context, why error) error {
	instance := cmp.Or(r.target.InstanceID, "unknown")
	if err := r.signal(ctx, types.ResourceSignalStatusFailure, failureID(instance, why)); err != nil {
		return fmt.Errorf("%w; and CloudFormation could not be signaled: %v", why, err)
	}
	return why
}

func (r signaler) signal(ctx context.Context, status types.ResourceSignalStatus, uniqueID string) error {
	if s, ok := r.before(); ok && (s.succeeded() || status == types.ResourceSignalStatusFailure) {
		at := s.At.Format(time.RFC3339)
		r.report("signal", "none: %s signaled %s to stack %s at %s", s.InstanceID, s.Status, s.Stack, at)
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, r.timeout, fmt.Errorf("not signaled within %v", r.timeout))
	defer cancel()
	cfg, err := r.machine.loadAWS(r.target.Region)
	if err != nil {
		return err
	}
	client := cloudformation.NewFromConfig(cfg)
	var accepted []string
	var failure error
	// The group first: it takes the signal at once or never.
	for _, resource := range []string{r.target.UpdateResource, r.target.ReadyResource} {
		if resource == "" || slices.Contains(accepted, resource) {
			continue
		}
		ok, err := r.send(ctx, client, resource, status, uniqueID)
		if ok {
			accepted = append(accepted, resource)
		} else if err != nil {
			failure = err
		}
	}
	switch {
	case len(accepted) > 0: // what must be recorded is that it was signaled
	case failure != nil:
		return failure
	default:
		r.report("signal", "%s not needed: nothing in stack %s waits for this node", status, r.target.Stack)
	}
	if r.target.InstanceID == "" {
		return nil
	}
	record := signaled{r.target.InstanceID, r.target.Stack, string(status), uniqueID, accepted, time.Now().UTC()}
	_, err = writeIfChanged(r.file(), []byte(toJSON(record)+"\n"), 0o644)
	return err
}

// send signals a resource, and reports whether it accepted.
func (r signaler) send(
	ctx context.Context, client *cloudformation.Client,
	resource string, status types.ResourceSignalStatus, uniqueID string,
) (accepted bool, err error) {
	var refused error // by a resource that may begin to wait
	err = retry(ctx, SignalPauses, func() (again bool, err error) {
		_, err = client.SignalResource(ctx, &cloudformation.SignalResourceInput{
			StackName: &r.target.Stack, LogicalResourceId: &resource, Status: status, UniqueId: &uniqueID,
		})
		refusal, final := refusalOf(err)
		switch {
		case err == nil || repeated.MatchString(refusal):
			r.report("signal", "%s to %s as %s", status, resource, uniqueID)
			accepted = true
			return false, nil
		case refusal != "" && (final || resource != r.target.ReadyResource):
			// A group waits for the nodes of a rolling update before it launches them. A node that waited until the
			// group does would be counted as one of them.
			r.report("signal", "%s does not wait: %s", resource, refusal)
			return false, nil
		}
		if refusal != "" {
			// A node can be faster than its stack: the wait condition begins to wait only once the cluster has the
			// capacity provider.
			refused = err
			return true, err
		}
		return !permanent(err), inWords(err)
	})
	if err == nil {
		return accepted, nil
	}
	late := errors.Is(ctx.Err(), context.DeadlineExceeded)
	if late && refused != nil {
		err = fmt.Errorf("did not begin to wait within %v: %w", r.timeout, refused)
	}
	if err = r.explain(resource, err); late {
		err = advised{err, "see the stack's events"}
	}
	return false, err
}

// permanent reports whether trying again cannot help: the role lacks the permission, the stack does not exist, or there
// are no credentials to be had. Everything else may pass: the network and the service's own failures, throttling, a
// role whose credentials are late or not known everywhere yet, a clock that is being set.
func permanent(err error) bool {
	api, ok := errors.AsType[smithy.APIError](err)
	if !ok {
		return metadataOff(err)
	}
	return api.ErrorCode() == accessDenied ||
		api.ErrorCode() == "ValidationError" && noStack.MatchString(api.ErrorMessage())
}

const accessDenied = "AccessDenied"

// CloudFormation refuses a signal to a resource that does not wait with the code ValidationError, which it uses for
// every other mistake too: only the message tells them apart. "Stack arn:… is in CREATE_COMPLETE state and cannot be
// signaled" is the answer to nodes that Auto Scaling has added (aws-cloudformation/aws-cloudformation-templates issues
// 34 and 126, zalando-incubator/kubernetes-on-aws issue 538).
//
// Its answer for a resource that has not begun to wait is not documented; unless an answer is known to be final, the
// resource is asked again.
var (
	inState  = pattern.New(`^(Stack|Resource)\b.* is in ([A-Z_]+) state and can ?not be signaled`)
	repeated = pattern.New(`^Signal with ID .* already exists`)
	noStack  = pattern.New(`^Stack .*does not exist`)
)

// waitingStates are the stack's states in which a resource may still begin to wait.
var waitingStates = []string{
	"CREATE_IN_PROGRESS", "UPDATE_IN_PROGRESS", "UPDATE_ROLLBACK_IN_PROGRESS", "REVIEW_IN_PROGRESS",
}

// refusalOf returns CloudFormation's message if it refused because the resource does not wait, and whether that is
// final.
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

// explain adds to an error what was tried, and what to do about it.
func (r signaler) explain(resource string, err error) error {
	err = fmt.Errorf("signal %s of stack %s: %w", resource, r.target.Stack, err)
	api, ok := errors.AsType[smithy.APIError](err)
	switch {
	case !ok || api.ErrorCode() == "Throttling" || api.ErrorFault() == smithy.FaultServer ||
		errors.Is(err, context.DeadlineExceeded):
		return cli.Unreachable(err)
	case api.ErrorCode() == accessDenied:
		return advised{err, "grant the node's role cloudformation:SignalResource on the stack"}
	case noStack.MatchString(api.ErrorMessage()):
		return advised{err, "compare --stack and --region, which is " + r.target.Region + ", with the stack's"}
	}
	return err
}

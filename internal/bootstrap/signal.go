package bootstrap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/cloudformation/types"

	"sevagent/internal/cli"
	"sevagent/internal/sockets"
)

// signalFile is in the agent's configuration directory. sevagent-signal.service starts only if it is there.
const signalFile = "signal.json"

// Signal waits for the node's registration, and signals it, or its failure, to CloudFormation. Time in a warm pool does
// not count: it signals once the instance goes into service.
func Signal(ctx context.Context, o SignalOptions, out io.Writer) error {
	return thisMachine().signal(ctx, o, reportTo(out))
}

func (m machine) signal(ctx context.Context, o SignalOptions, report report) error {
	if err := o.check(); err != nil {
		return cli.Usage(err)
	}
	file := filepath.Join(o.Dirs.Config, signalFile)
	t, err := readTarget(file)
	if err != nil {
		return failed("signal", err)
	}
	// An ID that cannot be learned is no reason to fail a node that has joined: bootstrap asked for it.
	if id, err := m.instanceID(ctx); err == nil && id != t.InstanceID {
		return failed("signal", advised{fmt.Errorf("%s is of %s, and this is %s", file, t.InstanceID, id),
			"the AMI was made from a node; bootstrap has not run on this one yet"})
	}
	r := signaler{m, t, o.Dirs.State, o.SignalTimeout, report}
	if s, ok := r.before(); ok && s.succeeded() {
		return r.success(ctx) // which prints so
	}
	if t.Failure != "" {
		m.awaitService(ctx, report)
		return failed("signal", r.signal(ctx, types.ResourceSignalStatusFailure, t.Failure))
	}
	arn, err := m.registration(ctx, o, t.Cluster, report)
	if err == nil {
		report("registration", "%s", arn)
		return failed("signal", r.success(ctx))
	}
	if refused := refusal(o.Dirs.State); refused != nil {
		err = refused // the ECS agent does not run, and its log is of another time
	}
	err = failed("registration", err)
	if ctx.Err() != nil {
		return err // asked to stop; the next boot asks the ECS agent again
	}
	return r.failure(ctx, err)
}

// registration waits for the registration, while the instance is in service.
func (m machine) registration(
	ctx context.Context, o SignalOptions, cluster string, report report,
) (arn string, err error) {
	for {
		m.awaitService(ctx, report)
		arn, err = m.waitForRegistration(ctx, o, cluster)
		if m.warmPool(ctx) == "" || ctx.Err() != nil {
			return arn, err
		}
	}
}

// awaitService waits while the instance is in a warm pool.
func (m machine) awaitService(ctx context.Context, report report) {
	said := false
	for state := m.warmPool(ctx); state != "" && ctx.Err() == nil; state = m.warmPool(ctx) {
		if !said {
			report("warm pool", "%s: waiting until the instance goes into service", state)
		}
		said = true
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Second):
		}
	}
}

func readTarget(file string) (t Target, err error) {
	err = readRecord(file, &t)
	if errors.Is(err, fs.ErrNotExist) {
		return t, cli.Usage(advised{err, "bootstrap writes it when it is given --stack"})
	}
	if err != nil {
		return t, cli.Usage(advised{err, "run bootstrap again"})
	}
	named := t.ReadyResource != "" || t.UpdateResource != ""
	if t.Cluster == "" || t.Stack == "" || t.Region == "" || t.InstanceID == "" || !named {
		err := fmt.Errorf(
			"read %s: want cluster, stack, region, instance_id, and ready_resource or update_resource", file)
		return t, cli.Usage(advised{err, "run bootstrap again"})
	}
	return t, nil
}

// ecsMetadata is the ECS agent's answer (aws/amazon-ecs-agent: agent/handlers/v1/response.go, MetadataResponse).
type ecsMetadata struct {
	Cluster              string
	ContainerInstanceArn string
}

// waitForRegistration asks the ECS agent until it is registered to the cluster, and returns the container instance's
// ARN. The error ends with what was seen last or, since the agent answers only once it has registered, with what it
// logged last.
func (m machine) waitForRegistration(ctx context.Context, o SignalOptions, cluster string) (arn string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("not within %v", o.Timeout))
	defer cancel()
	answered := false
	err = retry(ctx, Pauses{200 * time.Millisecond, 5 * time.Second}, func() (again bool, err error) {
		a, err := m.askECSAgent(ctx, o.Introspection)
		answered = err == nil || errors.Is(err, sockets.ErrNotRoot)
		switch {
		case err != nil && refusal(o.Dirs.State) != nil:
			return false, refusal(o.Dirs.State)
		case err != nil:
			return true, cli.Unreachable(fmt.Errorf("ECS agent not reachable: %w", err))
		case a.Cluster[strings.LastIndex(a.Cluster, "/")+1:] != cluster:
			return true, fmt.Errorf("registered to %s instead of %s", a.Cluster, cluster)
		}
		arn = a.ContainerInstanceArn
		return false, nil
	})
	if err == nil {
		return arn, nil
	}
	if reason := lastECSError(m.ecsLog); reason != "" && !answered {
		err = fmt.Errorf("%w: ECS agent: %s", context.Cause(ctx), reason)
	}
	return "", advised{fmt.Errorf("wait for the ECS agent to register: %w", err),
		"see 'journalctl -u ecs' and /var/log/ecs/ecs-agent.log"}
}

// askECSAgent believes root alone: while the ECS agent is down, any process on the node can listen on its port.
func (m machine) askECSAgent(ctx context.Context, base string) (answer ecsMetadata, err error) {
	at, err := introspection(base)
	if err != nil {
		return answer, err
	}
	err = sockets.AskRoot(m.proc, at, func() error {
		resp, err := request(ctx, m.local, strings.TrimSuffix(base, "/")+"/v1/metadata")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("HTTP status %s", resp.Status)
		}
		return json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&answer)
	})
	if err == nil && answer.ContainerInstanceArn == "" {
		err = errors.New("its answer names no container instance") // the real one answers only once it has registered
	}
	return answer, err
}

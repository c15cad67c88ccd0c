package bootstrap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sevagent/internal/cli"
)

// signalFile is in the agent's configuration directory. sevagent-signal.service starts only if it is there.
const signalFile = "signal.json"

// Signal waits for the node's registration, and signals it, or its failure, to CloudFormation.
func Signal(ctx context.Context, o SignalOptions, out io.Writer) error {
	if err := o.check(); err != nil {
		return cli.Usage(err)
	}
	report := reportTo(out)
	file := filepath.Join(o.Dirs.Config, signalFile)
	t, err := readTarget(file)
	if err != nil {
		return failed("signal", err)
	}
	m, err := readMetadata(ctx)
	if err != nil {
		return failed("metadata", err)
	}
	if m.InstanceID != t.InstanceID {
		return failed("signal", advised{fmt.Errorf("%s is of %s, and this is %s", file, t.InstanceID, m.InstanceID),
			"the AMI was made from a node; bootstrap has not run on this one yet"})
	}
	r := signaler{t, o.Dirs.State, o.SignalTimeout, report}
	if _, ok := r.before(); ok {
		return r.success(ctx) // which prints so
	}
	arn, err := waitForRegistration(ctx, o, t.Cluster)
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

func readTarget(file string) (t Target, err error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return t, cli.Usage(advised{err, "bootstrap writes it when it is given --stack"})
	}
	if err != nil {
		return t, err
	}
	if err := json.Unmarshal(data, &t); err != nil {
		return t, cli.Usage(fmt.Errorf("read %s: %w", file, err))
	}
	if t.Cluster == "" || t.Stack == "" || t.Region == "" || t.InstanceID == "" || t.ReadyResource+t.UpdateResource == "" {
		return t, cli.Usagef("read %s: want cluster, stack, region, instance_id, and ready_resource or update_resource", file)
	}
	return t, nil
}

// ecsMetadata is the ECS agent's answer (aws/amazon-ecs-agent: agent/handlers/v1/response.go, MetadataResponse).
type ecsMetadata struct {
	Cluster              string
	ContainerInstanceArn string
}

// waitForRegistration asks the ECS agent until it is registered to the cluster, and returns the container instance's
// ARN. The error ends with what was seen last.
func waitForRegistration(ctx context.Context, o SignalOptions, cluster string) (arn string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("not within %v", o.Timeout))
	defer cancel()
	// Never through a proxy: Go bypasses it for 127.0.0.1, which is not documented for other loopback addresses.
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}
	err = retry(ctx, 200*time.Millisecond, 5*time.Second, func() (again bool, err error) {
		m, err := askECSAgent(ctx, client, o.Introspection)
		switch {
		case err != nil && refusal(o.Dirs.State) != nil:
			return false, refusal(o.Dirs.State)
		case err != nil:
			return true, cli.Unreachable(fmt.Errorf("ECS agent not reachable: %w", err))
		case m.ContainerInstanceArn == "":
			return true, fmt.Errorf("ECS agent runs, not registered to %s", cluster)
		case m.Cluster[strings.LastIndex(m.Cluster, "/")+1:] != cluster:
			return true, fmt.Errorf("registered to %s instead of %s", m.Cluster, cluster)
		}
		arn = m.ContainerInstanceArn
		return false, nil
	})
	if err != nil {
		return "", advised{fmt.Errorf("wait for the ECS agent to register: %w", err),
			"see 'journalctl -u ecs' and /var/log/ecs/ecs-agent.log"}
	}
	return arn, nil
}

func askECSAgent(ctx context.Context, client *http.Client, base string) (m ecsMetadata, err error) {
	resp, err := request(ctx, client, strings.TrimSuffix(base, "/")+"/v1/metadata")
	if err != nil {
		return m, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return m, fmt.Errorf("HTTP status %s", resp.Status)
	}
	err = json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&m)
	return m, err
}

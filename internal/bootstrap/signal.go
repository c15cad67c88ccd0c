package bootstrap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sevagent/internal/cli"
)

// signalFile is in the agent's configuration directory. sevagent-signal.service has it as its condition.
const signalFile = "signal.json"

// signalOptions are the flags of 'bootstrap signal'.
type signalOptions struct {
	configDir, stateDir    string
	introspection          string
	timeout, signalTimeout time.Duration
}

func (o signalOptions) check() error {
	var errs []error
	u, err := url.Parse(o.introspection)
	if err != nil || u.Scheme != "http" || !loopback(u.Hostname()) {
		errs = append(errs, fmt.Errorf("--introspection is %q, want http:// and a loopback address", o.introspection))
	}
	if o.timeout <= 0 || o.signalTimeout <= 0 {
		errs = append(errs, fmt.Errorf("--timeout is %v and --signal-timeout %v, want more than nothing", o.timeout, o.signalTimeout))
	}
	return errors.Join(errs...)
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// signal waits for the node's registration, and tells CloudFormation of it or of its failure.
func signal(ctx context.Context, o signalOptions, out io.Writer) error {
	say := func(step, format string, args ...any) {
		fmt.Fprintf(out, "%-12s %s\n", step, fmt.Sprintf(format, args...))
	}
	t, err := readTarget(filepath.Join(o.configDir, signalFile))
	if err != nil {
		return failed("signal", err)
	}
	m, err := readMetadata(ctx)
	if err != nil {
		return failed("metadata", err)
	}
	if m.InstanceID != t.InstanceID {
		return failed("signal", advised{fmt.Errorf("%s is of %s, and this is %s", filepath.Join(o.configDir, signalFile), t.InstanceID, m.InstanceID),
			"the AMI was made of a node; bootstrap has not run on this one yet"})
	}
	r := reporter{t, o.stateDir, o.signalTimeout, say}
	if _, ok := r.before(); ok {
		return r.success(ctx) // which says so
	}
	arn, err := waitForRegistration(ctx, o, t.Cluster)
	if err == nil {
		say("registration", "%s", arn)
		return failed("signal", r.success(ctx))
	}
	err = failed("registration", err)
	if ctx.Err() != nil {
		return err // told to stop; at the next boot it is asked again
	}
	if told := r.failure(ctx, err); told != nil {
		return fmt.Errorf("%w; and CloudFormation was not told: %v", err, told)
	}
	return err
}

func readTarget(file string) (t target, err error) {
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
	if t.Cluster == "" || t.Stack == "" || t.Region == "" || t.InstanceID == "" || len(t.resources()) == 0 {
		return t, cli.Usagef("read %s: want cluster, stack, region, instance_id, and ready_resource or update_resource", file)
	}
	return t, nil
}

// ecsMetadata is what the ECS agent says of itself (aws/amazon-ecs-agent: agent/handlers/v1/response.go, MetadataResponse).
type ecsMetadata struct {
	Cluster              string
	ContainerInstanceArn string
	Version              string
}

// waitForRegistration asks the ECS agent until it is registered to the cluster, and returns the container instance's
// ARN. The error says what was seen last.
func waitForRegistration(ctx context.Context, o signalOptions, cluster string) (arn string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("not within %v", o.timeout))
	defer cancel()
	// Never through a proxy: Go sends a request for 127.0.0.1 through none, but who says that of other loopback addresses?
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}
	last := cli.Unreachable(errors.New("the ECS agent has not answered yet"))
	for pause := 200 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		m, err := askECSAgent(ctx, client, o.introspection)
		switch {
		case ctx.Err() != nil: // what was seen before says more
		case err != nil:
			last = cli.Unreachable(fmt.Errorf("ECS agent not reachable: %w", err))
		case m.ContainerInstanceArn == "":
			last = fmt.Errorf("ECS agent runs, not registered to %s", cluster)
		case m.Cluster[strings.LastIndex(m.Cluster, "/")+1:] != cluster:
			last = fmt.Errorf("registered to %s instead of %s", m.Cluster, cluster)
		default:
			return m.ContainerInstanceArn, nil
		}
		select {
		case <-ctx.Done():
			return "", advised{fmt.Errorf("wait for the ECS agent to register: %w: %w", context.Cause(ctx), last),
				"see 'journalctl -u ecs' and /var/log/ecs/ecs-agent.log"}
		case <-time.After(pause):
		}
	}
}

func askECSAgent(ctx context.Context, client *http.Client, base string) (m ecsMetadata, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(base, "/")+"/v1/metadata", nil)
	if err != nil {
		return m, err
	}
	resp, err := client.Do(req)
	if err != nil {
		if wrapped, ok := errors.AsType[*url.Error](err); ok {
			err = wrapped.Err // less the URL, which is always the same
		}
		return m, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return m, fmt.Errorf("HTTP status %s", resp.Status)
	}
	err = json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&m)
	return m, err
}

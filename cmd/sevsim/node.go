package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"sevagent/internal/sim/simaws"
)

// readyResource is that of the stack that waits for the node.
const readyResource = "NodesReady"

func nodeCommand() *cobra.Command {
	d := &demo{instance: simaws.DefaultInstance(), stack: "demo"}
	var registers time.Duration
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Bring a simulated node up and leave it running until stopped",
		Long: `Bring a simulated node up and leave it running until stopped. It has an ECS
agent, which does not listen before it has registered the node, and a stack
that waits for the node's signal: 'bootstrap signal' sends it, in the
environment that the printed file has.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			d.out = cmd.OutOrStdout()
			return d.run(cmd.Context(), registers)
		},
	}
	cmd.Flags().DurationVar(&d.poll, "poll-interval", 5*time.Minute, "mtls.poll_interval of the agent\n")
	cmd.Flags().DurationVar(&registers, "register-after", 2*time.Second,
		"how long the ECS agent takes to register\n")
	cmd.Flags().BoolVar(&d.withTPM, "nitrotpm", false, "with a NitroTPM; needs root and /dev/fuse")
	instanceFlags(cmd, &d.instance)
	return cmd
}

// instanceFlags are those of the EC2 instance that is simulated.
func instanceFlags(cmd *cobra.Command, i *simaws.Instance) {
	cmd.Flags().StringVar(&i.ID, "instance-id", i.ID, "`ID` of the EC2 instance that the node is\n")
	cmd.Flags().Func("region", "the `REGION` it is in\n(default "+i.Region+")", func(region string) error {
		if region != i.Region { // and what is known of zones is not true there
			i.Region, i.AvailabilityZone, i.ZoneID = region, region+"a", ""
		}
		return nil
	})
}

// run brings a node up and leaves it running for experiments.
func (d *demo) run(ctx context.Context, registers time.Duration) (err error) {
	if err := d.prepare(ctx); err != nil {
		return fmt.Errorf("prepare the node: %w", err)
	}
	defer func() { err = errors.Join(err, d.cleanUp(false)) }()
	if d.withTPM && d.nitroCA == nil {
		return errors.New("simulate a NitroTPM: it takes root and /dev/fuse; leave --nitrotpm out")
	}
	agent, err := simaws.NewECSAgent("127.0.0.1:0")
	if err != nil {
		return err
	}
	defer agent.Close()
	signals, err := d.simulateStack(ctx)
	if err != nil {
		return err
	}
	if err := d.bootstrap(ctx); err != nil {
		return err
	}
	file, err := d.writeEnvironment(agent.URL())
	if err != nil {
		return err
	}
	fmt.Fprintf(d.out, "   The agent runs until you stop this, as process %d. To ask it: sevagent status --socket %s\n",
		d.agent.Process.Pid, d.socket())
	fmt.Fprintf(d.out, "   The ECS agent registers in %v. To wait for that and signal it: . %s; bootstrap signal\n",
		registers, file)
	registered := time.After(registers)
	for {
		select {
		case <-registered:
			arn := d.instance.ARN("ecs", "container-instance/demo/0123456789abcdef")
			if err := agent.Register("demo", arn); err != nil {
				return fmt.Errorf("register the node: %w", err)
			}
			fmt.Fprintf(d.out, "   The ECS agent has registered the node and listens: curl %s/v1/metadata\n", agent.URL())
		case s := <-signals:
			fmt.Fprintf(d.out, "   CloudFormation has a signal for %s: %s, %s\n", s.Resource, s.Status, s.UniqueID)
		case <-ctx.Done():
			return d.stop(context.WithoutCancel(ctx))
		}
	}
}

// simulateStack makes the stack that waits for the node, and returns the signals that it gets.
func (d *demo) simulateStack(ctx context.Context) (<-chan simaws.Signal, error) {
	service := &simaws.CloudFormation{Region: d.instance.Region, AccountID: d.instance.AccountID}
	service.SetStack(d.stack, "CREATE_IN_PROGRESS")
	service.SetResource(d.stack, readyResource, "CREATE_IN_PROGRESS", true)
	signals := make(chan simaws.Signal, 100)
	var mu sync.Mutex
	seen := 0
	url, err := serve(ctx, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		service.ServeHTTP(w, r)
		for _, s := range service.Signals()[seen:] {
			signals <- s
			seen++
		}
	}))
	d.env = append(d.env, "AWS_ENDPOINT_URL_CLOUDFORMATION="+url)
	d.stack = service.StackID(d.stack)
	return signals, err
}

// writeEnvironment writes a file for a shell, in which bootstrap finds this node.
func (d *demo) writeEnvironment(introspection string) (file string, err error) {
	var text strings.Builder
	for _, variable := range append(d.env,
		"SEVAGENT_BOOTSTRAP_CONFIG_DIR="+d.configDir(),
		"SEVAGENT_BOOTSTRAP_STATE_DIR="+filepath.Join(d.dir, "var/lib/sevagent"),
		"SEVAGENT_BOOTSTRAP_INTROSPECTION="+introspection,
	) {
		name, value, _ := strings.Cut(variable, "=")
		if name != "PATH" && name != "HOME" {
			fmt.Fprintf(&text, "export %s='%s'\n", name, value)
		}
	}
	file = filepath.Join(d.dir, "environment")
	return file, os.WriteFile(file, []byte(text.String()), 0o644)
}

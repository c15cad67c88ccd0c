package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"

	"sevagent/internal/cli"
)

// providerTry bounds one question to ECS.
const providerTry = 10 * time.Second

// waitForProvider waits until the cluster lists the node's capacity provider. ECS decides when a node registers which
// provider it belongs to, and never again: one that registers earlier is in the cluster, but managed scaling, draining
// and termination protection never know of it (aws/containers-roadmap issue 2055). A new stack launches its nodes
// before it associates the provider with the cluster, since the provider is made of the nodes' group.
func (n *node) waitForProvider(ctx context.Context) error {
	if n.Provider == "" {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, n.ProviderTimeout, fmt.Errorf("not within %v", n.ProviderTimeout))
	defer cancel()
	client, err := n.newECS(ctx)
	if err != nil {
		return err
	}
	waiting := false
	// Whatever goes wrong is tried again: the role of a new stack may get its rights seconds after the node's start.
	err = retry(ctx, ProviderPauses, func() (again bool, err error) {
		err = n.findProvider(ctx, client)
		if err != nil && !waiting {
			waiting = true
			n.report("provider", "waiting up to %v: %v", n.ProviderTimeout, err)
		}
		return err != nil, err
	})
	if err != nil {
		return advised{fmt.Errorf("wait for capacity provider %s: %w", n.Provider, err),
			"see the stack's events, and whether the node's role may call ecs:DescribeClusters on the cluster"}
	}
	n.report("provider", "%s is listed by cluster %s", n.Provider, n.Target.Cluster)
	return nil
}

func (n *node) newECS(ctx context.Context) (*ecs.Client, error) {
	cfg, err := n.machine.loadAWS(n.Target.Region)
	if err != nil {
		return nil, err
	}
	return ecs.NewFromConfig(cfg), nil
}

// findProvider returns nil if the cluster lists the provider.
func (n *node) findProvider(ctx context.Context, client *ecs.Client) error {
	ctx, cancel := context.WithTimeout(ctx, providerTry)
	defer cancel()
	answer, err := client.DescribeClusters(ctx, &ecs.DescribeClustersInput{Clusters: []string{n.Target.Cluster}})
	switch {
	case err != nil:
		return cli.Unreachable(fmt.Errorf("describe cluster %s: %w", n.Target.Cluster, inWords(err)))
	case len(answer.Clusters) == 0:
		return fmt.Errorf("there is no cluster %s", n.Target.Cluster)
	}
	cluster := answer.Clusters[0]
	switch {
	case aws.ToString(cluster.Status) != "ACTIVE":
		return fmt.Errorf("the cluster is %s", aws.ToString(cluster.Status))
	case !slices.Contains(cluster.CapacityProviders, n.Provider):
		return errors.New("the cluster does not list it")
	}
	return nil
}

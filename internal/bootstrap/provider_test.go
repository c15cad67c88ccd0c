package bootstrap

import (
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"sevagent/internal/sim/simaws"
)

// TestProvider holds the node's start of the ECS agent against what its cluster lists.
func TestProvider(t *testing.T) {
	l := newLab(t)
	clusters := &simaws.Clusters{Region: l.metadata.Instance.Region, AccountID: l.metadata.Instance.AccountID}
	server := httptest.NewServer(clusters)
	t.Cleanup(server.Close)
	t.Setenv("AWS_ENDPOINT_URL_ECS", server.URL)
	clusters.Set("prod", "other")
	l.options.Provider, l.options.ProviderTimeout = "prod-snp", 700*time.Millisecond

	l.fails("provider: wait for capacity provider prod-snp: not within 700ms: the cluster does not list it")
	starts := func(unit string) bool {
		return slices.Contains(l.systemd.calls, "queue start "+unit) ||
			slices.Contains(l.systemd.calls, "queue restart "+unit)
	}
	if starts(ecsUnit) || starts(signalUnit) {
		t.Errorf("the provider is not listed, and systemd was asked for %q", l.systemd.calls)
	}
	if err := l.mayJoin(); err == nil {
		t.Error("the provider is not listed, and the ECS agent may start")
	}

	clusters.Set("prod", "other", "prod-snp")
	l.succeeds()
	if !starts(ecsUnit) {
		t.Errorf("the provider is listed, and systemd was asked for %q", l.systemd.calls)
	}
	if err := l.mayJoin(); err != nil {
		t.Errorf("the provider is listed: %v", err)
	}
}

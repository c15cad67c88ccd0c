package lab

import (
	"context"
	"fmt"
	"os/exec"
	"testing"

	"sevagent/client"
)

// Agent is a real sevagent that runs until the test ends.
type Agent struct {
	*Process
	Client *client.Client
	t      testing.TB
}

// StartAgent runs a command that is the agent. socket is where it listens; empty: at the default path. It answers when
// StartAgent returns, and may not be ready.
func StartAgent(t testing.TB, socket string, cmd *exec.Cmd) *Agent {
	t.Helper()
	a := &Agent{Process: Start(t, "sevagent", cmd), Client: client.New(socket), t: t}
	Until(t, "the agent's socket", func() error {
		select {
		case <-a.Ended:
			t.Fatal("the agent has ended") // what it printed follows
		default:
		}
		_, err := a.Client.Health(t.Context())
		return err
	})
	return a
}

// UntilReady waits until the agent is ready: its proof is there, and certificates are published.
func (a *Agent) UntilReady() {
	a.t.Helper()
	Until(a.t, "the agent's readiness", func() error {
		return Ready(a.t.Context(), a.Client)
	})
}

// Refresh makes the agent look at its secrets, and returns the generation that is current afterwards.
func (a *Agent) Refresh() (generation string, err error) {
	r, err := a.Client.Refresh(a.t.Context())
	if err != nil {
		return "", err
	}
	return r.Generation, nil
}

// Ready reports why the agent of a node is not ready.
func Ready(ctx context.Context, c *client.Client) error {
	health, err := c.Health(ctx)
	if err == nil && !health.Ready() {
		err = fmt.Errorf("not ready: %+v", health.Checks)
	}
	return err
}

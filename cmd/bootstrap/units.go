package main

import (
	"context"
	"fmt"

	"github.com/coreos/go-systemd/v22/dbus"
)

// Values of --services.
const (
	servicesSystemd = "systemd"
	servicesNone    = "none"
)

// units starts services. The zero value starts none: somebody else does.
type units struct{ conn *dbus.Conn }

func connectUnits(ctx context.Context, services string) (units, error) {
	if services == servicesNone {
		return units{}, nil
	}
	conn, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return units{}, fmt.Errorf("connect to systemd: %w; use --services=%s where there is none", err, servicesNone)
	}
	return units{conn}, nil
}

func (u units) close() {
	if u.conn != nil {
		u.conn.Close()
	}
}

// startAgent starts sevagent.service, or restarts it if its configuration has changed. It waits for the job only
// as far as the queue: readiness is asked of the agent itself.
func (u units) startAgent(ctx context.Context, changed bool) error {
	if u.conn == nil {
		return nil
	}
	if err := u.conn.ReloadContext(ctx); err != nil {
		return fmt.Errorf("reload systemd: %w", err)
	}
	start := u.conn.StartUnitContext
	if changed {
		start = u.conn.RestartUnitContext
	}
	return queueJob(ctx, "sevagent.service", start)
}

// startECS starts ecs.service without waiting: the unit is ordered after cloud-final.service, within which
// bootstrap runs, so that waiting would never end (aws/amazon-ecs-agent issue 1707).
func (u units) startECS(ctx context.Context) error {
	if u.conn == nil {
		return nil
	}
	return queueJob(ctx, "ecs.service", u.conn.StartUnitContext)
}

// queueJob asks for a job in mode replace. Without a channel the call returns once the job is queued.
func queueJob(ctx context.Context, unit string, start func(context.Context, string, string, chan<- string) (int, error)) error {
	if _, err := start(ctx, unit, "replace", nil); err != nil {
		return fmt.Errorf("%s: %w", unit, err)
	}
	return nil
}

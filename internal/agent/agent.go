// Package agent is the daemon of a node. Its parts are packages of their own: the owner of the SNP device (attest), the
// publisher of certificates (mtls) with those that look after its readers (probe, readers), and the local API
// (localapi). This package puts them together: Run is the daemon's whole life.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"sevagent/client"
	"sevagent/internal/appraise"
	"sevagent/internal/attest"
	"sevagent/internal/cli"
	"sevagent/internal/config"
	"sevagent/internal/localapi"
	"sevagent/internal/mtls"
	"sevagent/internal/promtext"
)

// Config is what the daemon starts with.
type Config struct {
	// Config is the configuration, and Path where it was read: SIGHUP reads it again.
	config.Config
	Path string
	Log  *slog.Logger
	// Level is what Log filters by, so that log.level can change.
	Level *slog.LevelVar
	// OpenDevice opens the SNP device; nil: the one that the configuration names.
	OpenDevice func() (attest.Transport, error)
}

func (c Config) openDevice() (attest.Transport, error) {
	if c.OpenDevice != nil {
		return c.OpenDevice()
	}
	cfg := c.Config.Attestation
	return attest.Device{Transport: cfg.Transport, Path: cfg.Device, Configfs: cfg.Configfs}.Open()
}

// agent is the running daemon.
type agent struct {
	cfg         Config // as started
	log         *slog.Logger
	started     time.Time
	attestation *attestation
	publishing  *publishing
	readiness   atomic.Int32           // starting, ready or unready
	began       began                  // when each entry of the health document got its status
	refused     atomic.Pointer[string] // why the last reload of the configuration was refused; nil: it was not
}

// Run builds the parts and runs them until ctx ends or one fails. It reports its state to systemd.
func Run(ctx context.Context, c Config) error {
	log := c.Log.With("component", "agent")
	log.Info("starting", "version", cli.Version(), "config", c.Path)
	prepareProcess(log)
	registry := promtext.New()
	registry.Process()

	socket, tcp, err := listen(c.Config.Listen)
	if err != nil {
		return err
	}
	defer socket.Close()
	cloud := new(cloud)
	attestation, err := newAttestation(c, cloud, registry)
	if err != nil {
		return err
	}
	defer attestation.close()
	publishing, err := newPublishing(c.MTLS, cloud, attestation, c.Log, registry)
	if err != nil {
		return err
	}
	a := &agent{
		cfg:         c,
		log:         log,
		started:     time.Now(),
		attestation: attestation,
		publishing:  publishing,
	}
	api := localapi.New(localapi.Config{
		Version:      cli.Version(),
		Alive:        a.alive,
		Health:       a.health,
		Status:       a.status,
		Certificates: a.publishing.certificates,
		Evidence:     attestation.evidence,
		Callers: localapi.NewCallers(localapi.CallersConfig{
			Introspection: "http://127.0.0.1:51678", // the ECS agent's fixed port
			Node:          func() localapi.Node { return node(cloud.instance(), ecsConfigFile) },
			Log:           c.Log.With("component", "api"),
		}),
		BoundKey: a.publishing.boundKey,
		Refresh:  a.refresh,
		Metrics:  registry,
		Log:      c.Log.With("component", "api"),
	})

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return api.Run(ctx, socket, tcp) })
	group.Go(func() error { return attestation.run(ctx) })
	group.Go(func() error { attestation.identify(ctx); return nil })
	group.Go(func() error {
		if err := attestation.passGate(ctx); err != nil || ctx.Err() != nil {
			return err
		}
		group.Go(func() error { return attestation.recheck(ctx) })
		return a.publishing.run(ctx)
	})
	group.Go(func() error { return a.reconfigureOnHangup(ctx) })
	group.Go(func() error { return a.notify(ctx) })
	if err := group.Wait(); err != nil {
		return err
	}
	log.Info("stopped")
	return nil
}

// Prove gets and appraises one attestation report without running the daemon. It also returns the transport that
// reached the device.
func Prove(ctx context.Context, c Config) (transport string, verdict *appraise.Verdict, err error) {
	a, err := newAttestation(c, new(cloud), promtext.New())
	if err != nil {
		return "", nil, err
	}
	defer a.close()
	running, stop := context.WithCancel(ctx)
	var group errgroup.Group
	group.Go(func() error { return a.run(running) })
	defer group.Wait()
	defer stop()

	verdict, err = a.prove(ctx)
	for tries := 30; errors.Is(err, attest.ErrVCEKPending) && tries > 0 && ctx.Err() == nil; tries-- {
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
			verdict, err = a.prove(ctx)
		}
	}
	return a.worker.Transport(), verdict, withAttestationAdvice(err)
}

// refresh serves /v1/refresh.
func (a *agent) refresh(ctx context.Context, renew string) (*client.Refresh, error) {
	if !a.attestation.gate.Load().passed {
		return nil, errors.New("refresh: nothing is fetched before the boot gate is passed")
	}
	if renew == "" {
		r, err := a.publishing.rotator.Refresh(ctx)
		return &r, err
	}
	r, err := a.publishing.rotator.Renew(ctx, config.IssuePrefix+strings.TrimPrefix(renew, config.IssuePrefix))
	if _, unknown := errors.AsType[*mtls.UnknownError](err); unknown {
		err = fmt.Errorf("renew %q: %w", renew, localapi.ErrNoSource)
	}
	return &r, err
}

// reconfigureOnHangup re-reads the configuration on SIGHUP and pulls the secrets. A bad new configuration leaves the
// old one running.
func (a *agent) reconfigureOnHangup(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
			if err := a.reconfigure(ctx); err != nil {
				a.log.Error("configuration refused; the old one stays", "err", err)
				text := err.Error()
				a.refused.Store(&text)
				continue
			}
			a.refused.Store(nil)
			a.publishing.rotator.Hint()
		}
	}
}

// reconfigure re-reads the configuration. It logs the changes that need a restart and leaves them alone.
func (a *agent) reconfigure(ctx context.Context) error {
	cfg, err := config.Load(a.cfg.Path)
	if err != nil {
		return err
	}
	if err := cfg.MTLS.CheckRoots(); err != nil {
		return err
	}
	if err := a.attestation.reconfigure(ctx, cfg.Attestation); err != nil {
		return err
	}
	if keys := cfg.NeedsRestart(a.cfg.Config); keys != nil {
		a.log.Warn("some changes take effect at the next restart", "keys", keys)
	}
	if err := a.publishing.reconfigure(cfg.MTLS); err != nil {
		return err
	}
	a.cfg.Level.Set(cfg.Log.SlogLevel())
	a.log.Info("configuration reloaded")
	return nil
}

// notify sends systemd READY once the gate is passed and the first set published, WATCHDOG while no loop is stuck, and
// STOPPING at the end. Before READY, while no loop is stuck, it asks for more time, since it may be waiting for the end
// of an outage. Without systemd it does nothing.
func (a *agent) notify(ctx context.Context) error {
	send := func(state string) {
		if _, err := daemon.SdNotify(false, state); err != nil {
			a.log.Warn("cannot notify systemd", "state", state, "err", err)
		}
	}
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		interval = time.Minute
	}
	tick := time.NewTicker(interval / 3)
	defer tick.Stop()
	defer send(daemon.SdNotifyStopping)

	ready := a.publishing.rotator.Ready()
	send("STATUS=proving that this is a working SNP guest")
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ready:
			ready = nil
			a.log.Info("ready", "after", time.Since(a.started).Round(time.Millisecond))
			send(daemon.SdNotifyReady + "\nSTATUS=" + a.oneLine())
		case now := <-tick.C:
			a.health(now) // logs a change of readiness even without a request
			if err := a.alive(now); err != nil {
				a.log.Error("a loop is stuck", "err", err)
				continue
			}
			state := daemon.SdNotifyWatchdog + "\nSTATUS=" + a.oneLine()
			if ready != nil {
				state = fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d\nSTATUS=%s", interval.Microseconds(), a.oneLine())
			}
			send(state)
		}
	}
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"sevagent/internal/appraise"
	"sevagent/internal/attest"
	"sevagent/internal/cli"
	"sevagent/internal/config"
	"sevagent/internal/evidence"
	"sevagent/internal/localapi"
)

// agent is the running daemon: its parts, and what they have to do with each other.
type agent struct {
	configPath string
	log        *slog.Logger
	level      *slog.LevelVar
	started    time.Time
	attest     *attestation // nil if attestation.mode is off
	cloud      *cloud
	certificates
	cfg       atomic.Pointer[config.Config]
	gate      atomic.Pointer[gate]
	reloadErr atomic.Pointer[string] // why the last reload was refused, nil if it was not
}

// gate is the outcome of the check at boot.
type gate struct {
	passed bool
	at     time.Time
	err    error // why not; with passed: what a mode of warn let through
}

// attestation is the device, its worker and the judge.
type attestation struct {
	transport attest.Transport
	worker    *attest.Worker
	vceks     *attest.VCEKs          // nil if attestation.kds is ""
	region    atomic.Pointer[string] // the node's; nil: not known
}

// testOnlyTransport replaces the SNP device in this package's tests.
var testOnlyTransport func() (attest.Transport, error)

func openDevice(cfg config.Attestation) (attest.Transport, error) {
	if testOnlyTransport != nil {
		return testOnlyTransport()
	}
	return attest.Device{Transport: cfg.Transport, Path: cfg.Device, Configfs: cfg.Configfs}.Open()
}

// newAttestation opens the device and builds its worker. In mode warn an absent device is no error: every request
// then says what is missing.
func newAttestation(cfg config.Config, log *slog.Logger, registry prometheus.Registerer) (*attestation, error) {
	a := new(attestation)
	verifier, _, err := a.verifier(cfg.Attestation)
	if err != nil {
		return nil, err
	}
	a.transport, err = openDevice(cfg.Attestation)
	if err != nil {
		if cfg.Attestation.Mode == config.ModeEnforce {
			return nil, describeAttestation(err)
		}
		log.Warn("going on without the SNP device", "err", err, "advice", attest.Advice(err))
		a.transport = attest.Unavailable(err)
	}
	if cfg.Attestation.KDS != "" {
		a.vceks = attest.NewVCEKs(attest.VCEKsConfig{
			URL:     cfg.Attestation.KDS,
			Dir:     cfg.Attestation.Cache,
			Log:     log.With("component", "attest"),
			Metrics: registry,
		})
	}
	a.worker = attest.New(attest.Config{
		Transport: a.transport,
		Verifier:  verifier,
		Enforce:   cfg.Attestation.Mode == config.ModeEnforce,
		Rate:      cfg.Attestation.Rate,
		Burst:     cfg.Attestation.Burst,
		VCEKs:     a.vceks,
		Log:       log.With("component", "attest"),
		Metrics:   registry,
	})
	return a, nil
}

// verifier builds the judge that the configuration names, for the region as far as it is known.
func (a *attestation) verifier(cfg config.Attestation) (v *appraise.Verifier, policy appraise.Policy, err error) {
	if policy, err = config.LoadPolicy(cfg.Policy); err != nil {
		return nil, policy, cli.Usage(err)
	}
	region := ""
	if r := a.region.Load(); r != nil {
		region = *r
	}
	if v, err = appraise.New(appraise.Config{Policy: policy, Region: region}); err != nil {
		return nil, policy, cli.Usagef("attestation.policy %s: %w", cfg.Policy, err)
	}
	return v, policy, nil
}

// locate finds the node's region if the policy compares with it, and has the judge know it. The gate does not pass in
// mode enforce without it: where the report comes from would go unchecked. In mode warn the gate says so and goes on,
// and the form of CSP_ID is all that is judged until the next self-check finds the region.
func (a *attestation) locate(ctx context.Context, cfg config.Attestation, c *cloud) error {
	_, policy, err := a.verifier(cfg)
	if err != nil {
		return err
	}
	if !policy.NeedsRegion() || a.region.Load() != nil {
		return nil
	}
	region, _, err := c.find(ctx)
	if err != nil {
		return fmt.Errorf("find the region that csp_id is compared with: %w", err)
	}
	a.region.Store(&region)
	v, _, err := a.verifier(cfg)
	if err != nil {
		return err
	}
	a.worker.SetVerifier(v)
	return nil
}

// runAgent builds the parts, runs them until ctx ends or one fails, and tells systemd about it.
func runAgent(ctx context.Context, cfg config.Config, configPath string, stderr io.Writer) error {
	a := &agent{configPath: configPath, started: time.Now(), level: new(slog.LevelVar), cloud: new(cloud)}
	a.cfg.Store(&cfg)
	a.gate.Store(&gate{})
	a.log = newLogger(stderr, cfg.Log, a.level)
	a.log.Info("starting", "component", "agent", "version", cli.Version(), "config", configPath)
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	socket, tcp, err := listen(cfg.Listen)
	if err != nil {
		return err
	}
	defer socket.Close()
	if cfg.Attestation.Mode != config.ModeOff {
		if a.attest, err = newAttestation(cfg, a.log, registry); err != nil {
			return err
		}
		defer a.attest.transport.Close()
	}
	a.certificates = a.newCertificates(cfg, registry)
	api := localapi.New(localapi.Config{
		Version:      cli.Version(),
		Alive:        a.alive,
		Health:       a.health,
		Status:       func(now time.Time) any { return a.status(now) },
		Certificates: func() any { return a.publishedCertificates() },
		Evidence:     a.evidence,
		Callers: localapi.NewCallers(localapi.CallersConfig{
			Introspection: "http://127.0.0.1:51678", // the ECS agent's fixed port
			Log:           a.log.With("component", "api"),
		}),
		BoundKey: a.boundKey,
		Refresh:  a.refresh,
		Metrics:  registry,
		Log:      a.log.With("component", "api"),
	})

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return api.Run(ctx, socket, tcp) })
	if a.attest != nil {
		group.Go(func() error { return a.attest.worker.Run(ctx) })
		if a.attest.vceks != nil {
			group.Go(func() error { return a.attest.vceks.Run(ctx) })
		}
	}
	group.Go(func() error {
		if err := a.passGate(ctx); err != nil || ctx.Err() != nil {
			return err
		}
		group.Go(func() error { return a.recheck(ctx) })
		return a.certificates.run(ctx)
	})
	group.Go(func() error { return a.reloads(ctx) })
	group.Go(func() error { return a.notify(ctx) })
	err = group.Wait()
	a.log.Info("stopped", "component", "agent")
	return err
}

func (a *agent) refresh(ctx context.Context) (any, error) {
	if !a.gate.Load().passed {
		return nil, errors.New("refresh: nothing is fetched before the boot gate is passed")
	}
	return a.rotator.Refresh(ctx)
}

func (a *agent) boundKey(kind string) ([]byte, bool) {
	key, ok := a.rotator.SPKI(kind)
	return key[:], ok
}

// reload re-reads the configuration. What a running agent cannot change is logged and stays.
func (a *agent) reload(ctx context.Context) error {
	cfg, err := config.Load(a.configPath)
	if err != nil {
		return err
	}
	old := *a.cfg.Load()
	if a.attest != nil {
		if err := a.attest.locate(ctx, cfg.Attestation, a.cloud); err != nil {
			return err
		}
		verifier, _, err := a.attest.verifier(cfg.Attestation)
		if err != nil {
			return err
		}
		a.attest.worker.SetVerifier(verifier)
	}
	if keys := cfg.NeedsRestart(old); keys != nil {
		a.log.Warn("some changes take effect at the next restart", "component", "agent", "keys", keys)
	}
	cfg.Attestation.Mode = old.Attestation.Mode // a restart decides about the gate
	a.level.Set(cfg.Log.SlogLevel())
	a.cfg.Store(&cfg)
	a.certificates.apply(a.settings(cfg), cfg.MTLS)
	a.log.Info("configuration reloaded", "component", "agent")
	return nil
}

// passGate proves that this is a working SNP guest before anything is fetched or published. In mode enforce it
// returns nil only with a report that the policy accepts; what waiting cannot mend is an error at once.
func (a *agent) passGate(ctx context.Context) error {
	if a.attest == nil {
		a.gate.Store(&gate{passed: true, at: time.Now(), err: attest.ErrOff})
		return nil
	}
	enforce := a.cfg.Load().Attestation.Mode == config.ModeEnforce
	for wait := time.Second; ; wait = min(2*wait, 30*time.Second) {
		verdict, err := a.attest.prove(ctx, a.cfg.Load().Attestation, a.cloud)
		if ctx.Err() != nil {
			return nil
		}
		passed := err == nil || !enforce
		a.gate.Store(&gate{passed: passed, at: time.Now(), err: err})
		switch {
		case err == nil:
			a.log.Info("boot gate passed", "component", "agent", "verdict", verdictLine(verdict))
			return nil
		case passed:
			a.log.Warn("boot gate not passed; going on since attestation.mode is warn", "component", "agent", "err", err)
			return nil
		case attest.Permanent(err):
			return describeAttestation(err)
		}
		a.log.Warn("boot gate not passed yet", "component", "agent", "err", err, "retry_in", wait)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// prove gets a report of this node and has it judged.
func (a *attestation) prove(ctx context.Context, cfg config.Attestation, c *cloud) (*appraise.Verdict, error) {
	if err := a.locate(ctx, cfg, c); err != nil {
		return nil, err
	}
	_, verdict, err := a.worker.Evidence(ctx, bootClaims())
	if err != nil {
		return nil, err
	}
	return verdict, verdict.Err()
}

func (a *agent) evidence(ctx context.Context, claims evidence.Claims) (*evidence.Document, *appraise.Verdict, error) {
	if a.attest == nil {
		return nil, nil, attest.ErrOff
	}
	if !a.gate.Load().passed {
		return nil, nil, attest.ErrNotReady
	}
	return a.attest.worker.Evidence(ctx, claims)
}

// reloads re-reads the configuration on SIGHUP and pulls the secrets. A bad new configuration leaves the old one.
func (a *agent) reloads(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
			if err := a.reload(ctx); err != nil {
				a.log.Error("configuration not reloaded; the old one stays", "component", "agent", "err", err)
				text := err.Error()
				a.reloadErr.Store(&text)
				continue
			}
			a.reloadErr.Store(nil)
			a.rotator.Hint()
		}
	}
}

func newLogger(w io.Writer, cfg config.Log, level *slog.LevelVar) *slog.Logger {
	level.Set(cfg.SlogLevel())
	o := &slog.HandlerOptions{Level: level}
	text := cfg.Format == "text"
	if f, ok := w.(*os.File); ok && cfg.Format == "auto" {
		text = isTerminal(f)
	}
	if text {
		return slog.New(slog.NewTextHandler(w, o))
	}
	return slog.New(slog.NewJSONHandler(w, o))
}

// notify tells systemd: READY once the gate is passed and the first set published, WATCHDOG while the loops turn,
// STOPPING at the end; and before READY, while the loops turn, that it takes longer, since what it waits for may be an
// outage. Without systemd it does nothing.
func (a *agent) notify(ctx context.Context) error {
	say := func(state string) {
		if _, err := daemon.SdNotify(false, state); err != nil {
			a.log.Warn("systemd was not told", "component", "agent", "state", state, "err", err)
		}
	}
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		interval = time.Minute
	}
	tick := time.NewTicker(interval / 3)
	defer tick.Stop()
	defer say(daemon.SdNotifyStopping)
	ready := a.rotator.Ready()
	say("STATUS=proving that this is a working SNP guest")
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ready:
			ready = nil
			a.log.Info("ready", "component", "agent", "after", time.Since(a.started).Round(time.Millisecond))
			say(daemon.SdNotifyReady + "\nSTATUS=" + a.oneLine())
		case now := <-tick.C:
			if err := a.alive(now); err != nil {
				a.log.Error("a loop does not turn", "component", "agent", "err", err)
				continue
			}
			state := daemon.SdNotifyWatchdog + "\nSTATUS=" + a.oneLine()
			if ready != nil {
				state = fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d\nSTATUS=%s", interval.Microseconds(), a.oneLine())
			}
			say(state)
		}
	}
}

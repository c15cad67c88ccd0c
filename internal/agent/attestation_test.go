package agent

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"

	"sevagent/client"
	"sevagent/internal/appraise"
	"sevagent/internal/attest"
	"sevagent/internal/config"
	"sevagent/internal/must"
	"sevagent/internal/promtext"
	"sevagent/internal/sim"
	"sevagent/internal/sim/simdevice"
	"sevagent/internal/snp"
)

func TestRecheckAfter(t *testing.T) {
	for _, c := range []struct {
		random float64
		want   time.Duration
	}{
		{0, 4*time.Hour + 48*time.Minute},
		{0.5, 6 * time.Hour},
		{1, 7*time.Hour + 12*time.Minute},
	} {
		if got := recheckAfter(c.random); (got - c.want).Abs() > time.Millisecond {
			t.Errorf("recheckAfter(%v) = %v, want %v", c.random, got, c.want)
		}
	}
}

// countingTransport records when a simulated device was asked.
type countingTransport struct {
	simdevice.Transport
	mu    sync.Mutex
	asked []time.Time
}

func (c *countingTransport) Report(reportData [snp.ReportDataSize]byte) (attest.Quote, error) {
	c.mu.Lock()
	c.asked = append(c.asked, time.Now())
	c.mu.Unlock()
	return c.Transport.Report(reportData)
}

// simulatedAgent is an agent past its gate, over a simulated device. Nothing of it runs yet.
func simulatedAgent(t *testing.T, o sim.Options) (*agent, *countingTransport) {
	t.Helper()
	psp := must.Get(sim.New(o))(t, "make a simulated secure processor")
	dir := t.TempDir()
	must.Do(t, psp.Save(dir), "save the simulated secure processor")
	device := &countingTransport{Transport: simdevice.Transport{PSP: psp}}
	c := Config{
		Config: config.Default(), Log: slog.New(slog.DiscardHandler), Level: new(slog.LevelVar),
		OpenDevice: func() (attest.Transport, error) { return device, nil },
	}
	c.Config.Attestation.Policy, c.Config.Attestation.KDS = filepath.Join(dir, "policy.yaml"), ""
	c.Config.Attestation.NitroTPM = config.NitroTPMOff // not this machine's, and nothing runs here that serves it
	cloud, registry := &cloud{region: o.Region}, promtext.New()
	attestation := must.Get(newAttestation(c, cloud, registry))(t, "build the attestation of %+v", c.Config.Attestation)
	attestation.gate.Store(&gate{passed: true, at: time.Now()})
	publishing := must.Get(newPublishing(c.MTLS, cloud, attestation, c.Log, registry))(t, "build what publishes")
	return &agent{cfg: c, log: c.Log, started: time.Now(), attestation: attestation, publishing: publishing}, device
}

func TestRecheckShowsDriftThatNobodyAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := sim.DefaultOptions(time.Now())
		a, device := simulatedAgent(t, o)
		ctx, cancel := context.WithCancel(t.Context())
		var group errgroup.Group
		group.Go(func() error { return a.attestation.worker.Run(ctx) })
		group.Go(func() error { return a.attestation.recheck(ctx) })

		began := time.Now()
		time.Sleep(10 * 24 * time.Hour)
		synctest.Wait()
		device.mu.Lock()
		asked := slices.Clone(device.asked)
		device.mu.Unlock()
		if n := len(asked); n < 10*24*10/72 || n > 10*24*10/48 {
			t.Errorf("%d reports in ten days, want one every 4.8 to 7.2 hours", n)
		}
		for i, at := range asked {
			if wait := at.Sub(began); wait < recheckAfter(0) || wait > recheckAfter(1) {
				t.Errorf("report %d after %v, want 4.8 to 7.2 hours", i, wait)
			}
			began = at
		}

		// A failure is noted and does not end the loop.
		device.SetFault(sim.FaultBusy)
		time.Sleep(recheckAfter(1))
		synctest.Wait()
		if a.attestation.worker.State().Err == nil {
			t.Error("the failure of a self-check is not noted")
		}
		device.SetFault("")
		o.PlatformInfo |= snp.PlatformRAPLDis
		must.Do(t, device.SetOptions(o), "set the simulator's options")
		time.Sleep(recheckAfter(1))
		synctest.Wait()
		h := new(client.Health)
		a.attestation.health(h, time.Now())
		checks := h.Checks["attestation:drift"]
		if len(checks) != 1 || checks[0].Status != client.Warn ||
			checks[0].ComponentID != "platform_info" || !strings.HasPrefix(checks[0].Output, "0x27 (") ||
			!strings.Contains(checks[0].Output, " -> 0x2f (") {
			t.Errorf("attestation:drift is %+v, want one warning about platform_info from 0x27 to 0x2f", checks)
		}
		if h.Status != client.Warn {
			t.Errorf("the whole is %q, want warn: a node that drifted stays ready", h.Status)
		}
		shown := must.Get(json.Marshal(a.status(time.Now()).Attestation))(t, "encode the status")
		for _, want := range []string{
			`"drift":[{"at":"`, `"what":"platform_info","from":"0x27 (`, `"drift_since_start":[{`,
		} {
			if !strings.Contains(string(shown), want) {
				t.Errorf("status lacks %s:\n%s", want, shown)
			}
		}
		h = new(client.Health)
		a.attestation.health(h, time.Now().Add(driftShown))
		if checks := h.Checks["attestation:drift"]; checks != nil {
			t.Errorf("a day later attestation:drift is %+v, want nothing", checks)
		}

		cancel()
		if err := group.Wait(); err != nil {
			t.Errorf("stopping: %v", err)
		}
	})
}

// A verdict that later failures of the device have outlived says which report it is of, with what to do about both.
func TestVerdictHasItsAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, device := simulatedAgent(t, sim.DefaultOptions(time.Now()))
		ctx, cancel := context.WithCancel(t.Context())
		var group errgroup.Group
		group.Go(func() error { return a.attestation.worker.Run(ctx) })
		ask := func(fault string) client.Check {
			device.SetFault(fault)
			a.attestation.prove(ctx) // the health has the outcome
			return a.health(time.Now()).Checks["attestation:verdict"][0]
		}
		at := time.Now().UTC().Format(time.RFC3339)
		fresh := ask(sim.FaultVersion)
		if strings.Contains(fresh.Output, "by the report of") || !strings.Contains(fresh.Next, "update sevagent") {
			t.Errorf("the last verdict is %+v, want advice", fresh)
		}
		time.Sleep(time.Hour)
		old := ask(sim.FaultBusy)
		if !strings.HasSuffix(old.Output, " (by the report of "+at+", the last one)") || !old.Time.Equal(fresh.Time) {
			t.Errorf("an hour later it is %+v, want its time", old)
		}
		broken := a.health(time.Now()).Checks["attestation:device"][0]
		if broken.Status != client.Warn || !strings.Contains(broken.Next, "attestation.rate") {
			t.Errorf("the device is %+v, want a warning with advice", broken)
		}
		cancel()
		must.Do(t, group.Wait(), "stop")
	})
}

// TestGateWaitsForTheClock: an endorsement certificate that is not valid yet, as when the clock is behind at boot, is
// waited for with the reason in the health, not an error that ends the agent.
func TestGateWaitsForTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ahead = 10 * time.Minute
		o := sim.DefaultOptions(time.Now())
		o.NotBefore = time.Now().Add(ahead)
		a, _ := simulatedAgent(t, o)
		a.attestation.gate.Store(&gate{})
		ctx, cancel := context.WithCancel(t.Context())
		var group errgroup.Group
		group.Go(func() error { return a.attestation.worker.Run(ctx) })
		group.Go(func() error { return a.attestation.passGate(ctx) })

		began := time.Now()
		for !a.attestation.gate.Load().passed && time.Since(began) < 2*ahead {
			h := new(client.Health)
			time.Sleep(time.Second)
			synctest.Wait()
			a.attestation.health(h, time.Now())
			gate := h.Checks["attestation:gate"][0]
			if !a.attestation.gate.Load().passed &&
				(gate.Status != client.Fail || !strings.Contains(gate.Output, "certificate_not_yet_valid")) {
				t.Fatalf("after %v attestation:gate is %+v, want a failure with the reason", time.Since(began), gate)
			}
		}
		if waited := time.Since(began); waited < ahead || waited > ahead+gateClock+time.Second {
			t.Errorf("the gate is passed after %v, want it within %v of the certificate's start at %v", waited,
				gateClock, ahead)
		}
		cancel()
		must.Do(t, group.Wait(), "stop")
	})
}

// TestGateWait: what may be late at boot and costs nothing is asked for at a steady pace, the device ever more slowly.
func TestGateWait(t *testing.T) {
	noRegion := &notLocated{errors.New("ask the instance metadata service for the region: connection refused")}
	for _, c := range []struct {
		n    int
		err  error
		most time.Duration
	}{
		{1, noRegion, time.Second}, {20, noRegion, time.Second}, {61, noRegion, time.Second},
		{62, noRegion, 2 * time.Second}, {5000, noRegion, 30 * time.Second},
		{1, attest.ErrThrottled, time.Second}, {4, attest.ErrThrottled, 8 * time.Second},
		{5000, attest.ErrThrottled, 30 * time.Second},
		{3, &appraise.Rejection{Code: appraise.CodeCertificateNotYet}, 4 * time.Second},
		{5000, &appraise.Rejection{Code: appraise.CodeCertificateNotYet}, 5 * time.Second},
	} {
		if got := gateWait(c.n, c.err, 0); got != c.most {
			t.Errorf("attempt %d, %v: at most %v, want %v", c.n, c.err, got, c.most)
		}
		if got := gateWait(c.n, c.err, 1); got != c.most*4/5 {
			t.Errorf("attempt %d, %v: at least %v, want %v", c.n, c.err, got, c.most*4/5)
		}
	}
}

// TestGateWaitsForTheRegion: the policy compares reports with the region, which only the metadata service knows here.
func TestGateWaitsForTheRegion(t *testing.T) {
	a, _ := simulatedAgent(t, sim.DefaultOptions(time.Now()))
	a.attestation.cloud = new(cloud)
	a.attestation.region.Store(nil)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_REGION", "")
	if _, err := a.attestation.prove(t.Context()); err == nil {
		t.Fatal("proved without a region")
	} else if _, ok := errors.AsType[*notLocated](err); !ok || attest.Permanent(err) {
		t.Errorf("the error is %v, permanent: %v; want one that the gate waits for", err, attest.Permanent(err))
	}
}

func TestRecheckWithoutAttestation(t *testing.T) {
	if err := new(attestation).recheck(t.Context()); err != nil {
		t.Errorf("recheck = %v", err)
	}
}

func TestHealthOfTheEndorsementCertificate(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name     string
		notAfter time.Time
		want     string // start of the output; "": no entry
	}{
		{"not known", time.Time{}, ""},
		{"far", now.AddDate(0, 0, 31), ""},
		{"30 days", now.AddDate(0, 0, 30), "the endorsement certificate expires at 2026-03-31T12:00:00Z"},
		{"2 days", now.AddDate(0, 0, 2), "the endorsement certificate expires at 2026-03-03T12:00:00Z"},
		{"over", now.AddDate(0, 0, -1), "the endorsement certificate expired at 2026-02-28T12:00:00Z"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := new(client.Health)
			driftHealth(h, &attest.State{NotAfter: c.notAfter}, now)
			checks := h.Checks["attestation:certificate"]
			if c.want == "" {
				if checks != nil {
					t.Errorf("attestation:certificate is %+v, want none", checks)
				}
				return
			}
			if len(checks) != 1 || checks[0].Status != client.Warn || !strings.HasPrefix(checks[0].Output, c.want) {
				t.Errorf("attestation:certificate is %+v, want a warning %q", checks, c.want)
			}
		})
	}
}

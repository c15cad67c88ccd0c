package agent

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/client"
	"sevagent/internal/appraise"
	"sevagent/internal/attest"
	"sevagent/internal/cli"
	"sevagent/internal/localapi"
	"sevagent/internal/mtls"
	"sevagent/internal/probe"
	"sevagent/internal/readers"
	"sevagent/internal/reload"
)

// status is the answer of /v1/status.
type status struct {
	Version     string              `json:"version"`
	StartedAt   time.Time           `json:"started_at"`
	Health      *localapi.Health    `json:"health"`
	Attestation attestationStatus   `json:"attestation"`
	MTLS        *client.Publication `json:"mtls"`
	Endpoints   []probe.Result      `json:"endpoints"`
	Readers     *readers.Status     `json:"readers"`
	Reload      *reload.Status      `json:"reload"`
	ReloadError string              `json:"reload_error,omitempty"`
}

// attestationStatus is the node's own view of its proof.
type attestationStatus struct {
	Mode       string `json:"mode"`
	Transport  string `json:"transport,omitempty"`
	Region     string `json:"region,omitempty"`
	GatePassed bool   `json:"gate_passed"`
	// GateError is why the gate is not passed, or what mode warn let through.
	GateError string `json:"gate_error,omitempty"`
	// The rest tells of the last report. Verdict is its status: pass, warn, fail or unsupported_report_version.
	Verdict       string    `json:"verdict,omitempty"`
	Reason        string    `json:"reason,omitempty"`
	Policy        string    `json:"policy,omitempty"`
	Roots         string    `json:"roots,omitempty"`
	Signer        string    `json:"signer,omitempty"`
	CSPID         string    `json:"csp_id,omitempty"`
	ReportVersion uint32    `json:"report_version,omitempty"`
	Measurement   string    `json:"measurement,omitempty"`
	ReportedTCB   string    `json:"reported_tcb,omitempty"`
	Firmware      string    `json:"firmware,omitempty"`
	NotAfter      time.Time `json:"certificate_not_after,omitzero"`
	LastReport    time.Time `json:"last_report,omitzero"`
	LastError     string    `json:"last_error,omitempty"`
	// Drift has the last changes from one genuine report to the next, DriftSinceStart what the last one shows
	// otherwise than the first.
	Drift           []attest.Change `json:"drift,omitempty"`
	DriftSinceStart []attest.Change `json:"drift_since_start,omitempty"`
}

func (a *agent) status(now time.Time) *status {
	s := &status{
		Version: cli.Version(), StartedAt: a.started, Health: a.health(now),
		MTLS: a.rotator.Status(), Endpoints: a.prober.Status(), Readers: a.readers.Status(), Reload: a.certificates.reload.Status(),
	}
	if text := a.reloadErr.Load(); text != nil {
		s.ReloadError = *text
	}
	g := a.gate.Load()
	s.Attestation = attestationStatus{Mode: a.cfg.Load().Attestation.Mode, GatePassed: g.passed}
	if g.err != nil {
		s.Attestation.GateError = g.err.Error()
	}
	if a.attest == nil {
		return s
	}
	t := &s.Attestation
	t.Transport = a.attest.worker.Transport()
	if r := a.attest.region.Load(); r != nil {
		t.Region = *r
	}
	state := a.attest.worker.State()
	t.LastReport, t.Drift, t.DriftSinceStart = state.At, state.Drift, state.SinceStart
	if state.Err != nil {
		t.LastError = state.Err.Error()
	}
	if v := state.Verdict; v != nil {
		t.Verdict, t.Reason, t.Policy, t.Roots, t.Signer, t.CSPID, t.NotAfter = string(v.Status), v.Reason, v.Policy, v.Roots, v.Signer, v.CSPID, v.NotAfter
		if r := v.Report; r != nil {
			t.ReportVersion, t.ReportedTCB, t.Firmware = r.Version, r.ReportedTCB.String(), r.CurrentVersion.String()
			t.Measurement = fmt.Sprintf("%x", r.Measurement)
		}
	}
	return s
}

// publishedCertificates is the answer of /v1/certificates.
func (a *agent) publishedCertificates() any {
	s := a.rotator.Status()
	return struct {
		Path         string               `json:"path"`
		Generation   string               `json:"generation,omitempty"`
		PublishedAt  time.Time            `json:"published_at,omitzero"`
		Certificates []client.Certificate `json:"certificates"`
	}{s.Path, s.Generation, s.PublishedAt, s.Certificates}
}

// Times after which something is stuck. A device request lasts a minute at most, the kernel's own limit.
const (
	deviceSlow  = 10 * time.Second
	deviceStuck = 75 * time.Second
)

// alive is liveness: nil while the loops turn. What they get done is readiness.
func (a *agent) alive(now time.Time) error {
	if a.attest != nil {
		if busy := a.attest.worker.Busy(now); busy > deviceStuck {
			return fmt.Errorf("the SNP device has not answered for %v", busy.Round(time.Second))
		}
	}
	if !a.gate.Load().passed {
		return nil // the rotator has not been started
	}
	if stalled := now.Sub(a.rotator.Progress()); stalled > 2*mtls.MaxStall {
		return fmt.Errorf("the rotation of certificates has not turned for %v", stalled.Round(time.Second))
	}
	return nil
}

// health is readiness: gate passed and a valid set published. What the agent can go on without is a warning.
func (a *agent) health(now time.Time) *localapi.Health {
	h := new(localapi.Health)
	a.attestationHealth(h, now)
	a.publicationHealth(h, now)
	a.readersHealth(h)
	if text := a.reloadErr.Load(); text != nil {
		h.Add("configuration", localapi.Check{Status: localapi.StatusWarn, Output: "the last reload was refused: " + *text})
	}
	return h
}

func (a *agent) attestationHealth(h *localapi.Health, now time.Time) {
	g := a.gate.Load()
	gate := localapi.Check{Status: localapi.StatusPass, Time: g.at}
	switch {
	case !g.passed && g.err == nil:
		gate.Status, gate.Output = localapi.StatusFail, "not passed yet"
	case !g.passed:
		gate.Status, gate.Output = localapi.StatusFail, withAdvice(g.err)
	case g.err != nil:
		gate.Status, gate.Output = localapi.StatusWarn, withAdvice(g.err)
	}
	h.Add("attestation:gate", gate)
	if a.attest == nil {
		return
	}
	state := a.attest.worker.State()
	device := localapi.Check{ComponentID: a.attest.worker.Transport(), Status: localapi.StatusPass, Time: state.At}
	if busy := a.attest.worker.Busy(now); busy > deviceSlow {
		device.Status, device.Output = localapi.StatusWarn, fmt.Sprintf("a request has been under way for %v: the host throttles, or the device hangs", busy.Round(time.Second))
	} else if state.Err != nil {
		device.Status, device.Output = localapi.StatusWarn, withAdvice(state.Err)
	}
	h.Add("attestation:device", device)
	driftHealth(h, state, now)
	if v := state.Verdict; v != nil {
		if v.Roots == appraise.RootsCustom {
			h.Add("attestation:roots", localapi.Check{Status: localapi.StatusWarn, Output: "roots: custom; reports are judged by the policy's own roots, not by AMD's"})
		}
		if v.Status != appraise.Pass {
			h.Add("attestation:verdict", localapi.Check{Status: localapi.StatusWarn, Output: v.Code + ": " + v.Reason})
		}
	}
}

// driftShown is how long a change of the node's reports is a warning: long enough for whoever looks once a day.
const driftShown = 24 * time.Hour

// driftHealth warns of what the reports have shown otherwise lately, and of an endorsement certificate that should
// have been renewed.
func driftHealth(h *localapi.Health, state *attest.State, now time.Time) {
	for _, c := range state.Drift {
		if now.Sub(c.At) < driftShown {
			h.Add("attestation:drift", localapi.Check{Status: localapi.StatusWarn, Time: c.At, Output: fmt.Sprintf("%s: %s -> %s", c.What, c.From, c.To)})
		}
	}
	const advice = "; the host has not got its new one: stop and start the instance so that it moves to another host"
	date := state.NotAfter.UTC().Format(time.RFC3339)
	switch state.Expiry(now) {
	case "":
	case "expired":
		h.Add("attestation:certificate", localapi.Check{Status: localapi.StatusWarn, Time: state.At, Output: "the endorsement certificate expired at " + date + advice})
	default:
		h.Add("attestation:certificate", localapi.Check{Status: localapi.StatusWarn, Time: state.At, Output: "the endorsement certificate expires at " + date + advice})
	}
}

func withAdvice(err error) string {
	if advice := attest.Advice(err); advice != "" {
		return err.Error() + "; " + advice
	}
	return err.Error()
}

// oneLine is what `systemctl status` shows.
func (a *agent) oneLine() string {
	s := a.rotator.Status()
	line := fmt.Sprintf("attestation %s", a.cfg.Load().Attestation.Mode)
	switch g := a.gate.Load(); {
	case g.passed && g.err == nil:
		line = "attested"
	case !g.passed && g.err != nil:
		return strings.ReplaceAll("boot gate not passed: "+withAdvice(g.err), "\n", "; ")
	}
	if s.Generation == "" {
		line += ", no certificates"
		if s.Error != "" {
			line += strings.ReplaceAll(": "+s.Error, "\n", "; ")
		}
		return line
	}
	return fmt.Sprintf("%s, certificates until %s", line, s.NotAfter.UTC().Format(time.RFC3339))
}

func verdictLine(v *appraise.Verdict) string {
	line := fmt.Sprintf("%s (policy %s, roots: %s, signed by %s %s", v.Status, v.Policy, v.Roots, v.Signer, v.CSPID)
	if v.Report != nil {
		line += fmt.Sprintf(", TCB %v", v.Report.ReportedTCB)
	}
	return line + ")"
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

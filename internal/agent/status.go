package agent

import (
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"sevagent/client"
	"sevagent/internal/cli"
	"sevagent/internal/mtls"
)

// status serves /v1/status.
func (a *agent) status(now time.Time) *client.Status {
	p := a.publishing
	s := &client.Status{
		Version:     cli.Version(),
		StartedAt:   a.started,
		Cluster:     node(a.attestation.cloud.instance(), ecsConfigFile).Cluster,
		Health:      *a.health(now),
		Attestation: a.attestation.status(now),
		MTLS:        *p.rotator.Status(),
		Endpoints:   p.prober.Status(),
		Readers:     *p.readers.Status(),
	}
	if text := a.refused.Load(); text != nil {
		s.ReloadError = *text
	}
	return s
}

func (a *attestation) status(now time.Time) client.Attestation {
	g := a.gate.Load()
	s := client.Attestation{Mode: a.mode, GatePassed: g.passed}
	if g.err != nil {
		s.GateError = g.err.Error()
	}
	if a.off() {
		return s
	}
	s.Transport = a.worker.Transport()
	if r := a.region.Load(); r != nil {
		s.Region = *r
	}
	s.InstanceID = a.cloud.instance().ID
	state := a.worker.State()
	s.LastReport, s.Drift, s.DriftSinceStart = state.ReportAt, state.Drift, state.SinceStart
	if state.Err != nil {
		s.LastError = state.Err.Error()
	}
	s.Waiting, s.BusySeconds = a.worker.Waiting(), a.worker.Busy(now).Seconds()
	s.NitroTPM = a.nitroTPM()
	if v := state.Verdict; v != nil {
		s.Verdict, s.Reason, s.Policy, s.Roots = string(v.Status), v.Reason, v.Policy, v.Roots
		s.Signer, s.CSPID, s.NotAfter = v.Signer, v.CSPID, v.NotAfter
		if r := v.Report; r != nil {
			s.ReportVersion, s.ReportedTCB, s.Firmware = r.Version, r.ReportedTCB.String(), r.CurrentVersion.String()
			s.Measurement = fmt.Sprintf("%x", r.Measurement)
		}
	}
	return s
}

// nitroTPM is what the NitroTPM showed last; nil: none is asked.
func (a *attestation) nitroTPM() *client.NitroTPM {
	state := a.worker.SecondState()
	if state.At.IsZero() {
		return nil
	}
	s := &client.NitroTPM{LastDocument: state.At, Drift: state.Drift}
	if state.Err != nil {
		s.Error = state.Err.Error()
	}
	if d := state.Document; d != nil {
		s.InstanceID = d.InstanceID
		if image, ok := d.Image(); ok {
			s.Image = hex.EncodeToString(image[:])
		}
	}
	return s
}

// Times after which a device request is slow, and stuck. It lasts a minute at most, the kernel's own limit.
const (
	deviceSlow  = 10 * time.Second
	deviceStuck = 75 * time.Second
)

// alive reports liveness: nil while no loop is stuck. What the loops achieve is readiness.
func (a *agent) alive(now time.Time) error {
	if !a.attestation.off() {
		if busy := a.attestation.worker.Busy(now); busy > deviceStuck {
			return fmt.Errorf("the SNP device has not answered for %v", busy.Round(time.Second))
		}
	}
	if !a.attestation.gate.Load().passed {
		return nil // the rotator has not been started
	}
	if stalled := now.Sub(a.publishing.rotator.Progress()); stalled > 2*mtls.MaxStall {
		return fmt.Errorf("the rotation of certificates has been stuck for %v", stalled.Round(time.Second))
	}
	return nil
}

// oneLine is the state that `systemctl status` shows.
func (a *agent) oneLine() string {
	flat := func(text string) string { return cli.Visible(strings.ReplaceAll(text, "\n", "; ")) }
	line := "attestation " + a.attestation.mode
	switch g := a.attestation.gate.Load(); {
	case g.passed && g.err == nil:
		line = "attested"
	case !g.passed && g.err != nil:
		return flat("boot gate not passed: " + g.err.Error() + advice(g.err))
	}
	s := a.publishing.rotator.Status()
	if s.Generation == "" {
		line += ", no certificates"
		if s.Error != "" {
			line += flat(": " + s.Error)
		}
		return line
	}
	return fmt.Sprintf("%s, certificates until %s", line, s.NotAfter.UTC().Format(time.RFC3339))
}

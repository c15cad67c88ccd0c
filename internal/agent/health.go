package agent

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"sevagent/client"
	"sevagent/internal/appraise"
	"sevagent/internal/attest"
)

// health reports readiness: gate passed and a valid set published. What the agent can work without is a warning.
func (a *agent) health(now time.Time) *client.Health {
	h := new(client.Health)
	a.attestation.health(h, now)
	a.publishing.health(h, now)
	if text := a.refused.Load(); text != nil {
		h.Add("configuration", client.Check{Status: client.Warn, Output: "the last reload was refused: " + *text})
	}
	a.logReadiness(h)
	return h
}

// What was last seen of the node's readiness. Before it was ready first, it is starting.
const (
	starting = iota
	ready
	unready
)

// logReadiness logs each change of readiness, once.
func (a *agent) logReadiness(h *client.Health) {
	switch {
	case h.Ready() && a.readiness.CompareAndSwap(unready, ready):
		a.log.Info("the node is ready again")
	case h.Ready():
		a.readiness.CompareAndSwap(starting, ready)
	case a.readiness.CompareAndSwap(ready, unready):
		a.log.Error("the node is not ready any more", "checks", failing(h))
	}
}

// failing lists the checks that fail, with their reasons.
func failing(h *client.Health) (list []string) {
	for _, name := range slices.Sorted(maps.Keys(h.Checks)) {
		for _, c := range h.Checks[name] {
			if c.Status == client.Fail {
				list = append(list, strings.TrimSpace(name+" "+c.ComponentID)+": "+c.Output)
			}
		}
	}
	return list
}

func (a *attestation) health(h *client.Health, now time.Time) {
	g := a.gate.Load()
	gate := client.Check{Status: client.Pass, Time: g.at}
	switch {
	case !g.passed && g.err == nil:
		gate.Status, gate.Output = client.Fail, "not passed yet"
	case !g.passed:
		gate.Status, gate.Output = client.Fail, g.err.Error()+advice(g.err)
	case g.err != nil:
		gate.Status, gate.Output = client.Warn, g.err.Error()+advice(g.err)
	}
	h.Add("attestation:gate", gate)
	if a.off() {
		return
	}

	state := a.worker.State()
	device := client.Check{ComponentID: a.worker.Transport(), Status: client.Pass, Time: state.At}
	if busy := a.worker.Busy(now); busy > deviceSlow {
		device.Status = client.Warn
		device.Output = fmt.Sprintf("a request has been running for %v: the host throttles, or the device hangs",
			busy.Round(time.Second))
	} else if state.Err != nil {
		device.Status, device.Output = client.Warn, state.Err.Error()+advice(state.Err)
	}
	h.Add("attestation:device", device)

	a.nitroHealth(h)
	driftHealth(h, state, now)
	if v := state.Verdict; v != nil {
		if v.Roots == appraise.RootsCustom {
			const output = "roots: custom; reports are verified by the policy's own roots, not by AMD's"
			h.Add("attestation:roots", client.Check{Status: client.Warn, Output: output})
		}
		if v.Status != appraise.Pass {
			h.Add("attestation:verdict", client.Check{Status: client.Warn, Output: v.Code + ": " + v.Reason})
		}
	}
}

// nitroHealth warns where the NitroTPM gives nothing, or shows another boot than at first.
func (a *attestation) nitroHealth(h *client.Health) {
	s := a.nitroTPM()
	if s == nil {
		return
	}
	c := client.Check{Status: client.Pass, Time: s.LastDocument}
	switch {
	case s.Error != "":
		c.Status, c.Output = client.Warn, s.Error
	case len(s.Drift) > 0:
		c.Status, c.Output = client.Warn, "what the node was booted from has changed while it runs: "+s.Drift[0].What
	}
	h.Add("attestation:nitrotpm", c)
}

// driftShown is how long a change of the node's reports is a warning: long enough for an operator who looks once a day.
const driftShown = 24 * time.Hour

// driftHealth warns of recent changes in the reports, and of an endorsement certificate that should have been renewed.
func driftHealth(h *client.Health, state *attest.State, now time.Time) {
	for _, c := range state.Drift {
		if now.Sub(c.At) < driftShown {
			h.Add("attestation:drift", client.Check{
				Status: client.Warn, Time: c.At, Output: fmt.Sprintf("%s: %s -> %s", c.What, c.From, c.To),
			})
		}
	}
	verb := "expires"
	switch state.Expiry(now) {
	case "":
		return
	case "expired":
		verb = "expired"
	}
	h.Add("attestation:certificate", client.Check{
		Status: client.Warn, Time: state.At,
		Output: fmt.Sprintf("the endorsement certificate %s at %s and the host has no newer one; "+
			"stop and start the instance to move it to another host", verb, state.NotAfter.UTC().Format(time.RFC3339)),
	})
}

func (p *publishing) health(h *client.Health, now time.Time) {
	s := p.rotator.Status()
	publication := client.Check{ComponentID: s.Path, Status: client.Pass, Time: s.PublishedAt}
	switch {
	case len(s.Secrets) > 0 && !s.Ready:
		publication.Status, publication.Output = client.Fail, "nothing is published yet"
		if s.Error != "" {
			publication.Output += ": " + s.Error
		}
	case s.Error != "":
		publication.Status, publication.Output = client.Warn, s.Error
	}
	h.Add("mtls:publication", publication)
	guardHealth(h, s.Path, s.Guard)
	for _, e := range s.Expiry {
		expiryHealth(h, s, e, now)
	}

	for _, c := range s.Consumers {
		check := client.Check{ComponentID: c.Path, Status: client.Pass, Time: c.PublishedAt, Output: c.Error}
		if c.Error != "" {
			check.Status = client.Warn
		} else if len(c.Missing) > 0 {
			check.Status, check.Output = client.Warn, fmt.Sprintf("no secret gives %q", c.Missing)
		}
		h.Add("mtls:publication", check)
		guardHealth(h, c.Path, c.Guard)
	}
	for _, secret := range s.Secrets {
		secretHealth(h, secret, now)
	}
	if s.Clock.Error != "" {
		h.Add("mtls:clock", client.Check{Status: client.Warn, Time: s.Clock.Checked, Output: s.Clock.Error})
	}
	p.readersHealth(h)
}

// expiryHealth warns of a certificate that should have been renewed, and fails once one has expired.
func expiryHealth(h *client.Health, s *client.Publication, e client.Expiry, now time.Time) {
	c := client.Check{ComponentID: e.What(), Status: client.Warn}
	switch stage := e.Stage(now); {
	case stage == 0:
		return
	case stage == client.Expired:
		c.Status, c.Output = client.Fail, "expired"
	default:
		c.Output = "expires in " + e.Left(now)
	}
	c.Output += fmt.Sprintf(", at %s: %s; %s", e.NotAfter.UTC().Format(time.RFC3339), e.Subject, s.Renewal(e))
	h.Add("mtls:expiry", c)
}

func secretHealth(h *client.Health, secret client.SecretStatus, now time.Time) {
	c := client.Check{ComponentID: secret.Name, Status: client.Pass, Time: secret.LastChecked, Output: secret.Error}
	if secret.State != client.SecretCurrent {
		c.Status = client.Warn // the last good set stays published, or the publication's entry fails
		if c.Output == "" {
			c.Output = string(secret.State)
		}
	} else if i := secret.Issue; i != nil && !i.RenewAt.IsZero() && now.After(i.RenewAt.Add(i.NotAfter.Sub(i.Issued)/10)) {
		c.Status = client.Warn
		c.Output = fmt.Sprintf("%s was to be renewed at %s, and %s has not issued a certificate yet; the one that is "+
			"published expires at %s", secret.Name, i.RenewAt.UTC().Format(time.RFC3339), i.Authority,
			i.NotAfter.UTC().Format(time.RFC3339))
	}
	h.Add("mtls:secret", c)
	if p := secret.Preflight; p != nil && p.Result == "rejected" {
		h.Add("mtls:pending", client.Check{
			ComponentID: secret.Name, Status: client.Warn, Time: p.At,
			Output: "pending version " + p.Version + ": " + p.Reason,
		})
	}
}

// guardHealth fails where readers may find something other than what was published.
func guardHealth(h *client.Health, path string, g client.GuardStatus) {
	c := client.Check{ComponentID: path, Time: g.At}
	switch g.State {
	case client.GuardWarning:
		c.Status = client.Warn
	case client.GuardAlarm, client.GuardQuarantined:
		c.Status = client.Fail
	default:
		return
	}
	c.Output = string(g.State)
	if g.Error != "" {
		c.Output += ": " + g.Error
	}
	for _, f := range g.Findings {
		c.Output += "; " + f.String()
	}
	h.Add("mtls:guard", c)
}

// maxShown bounds the entries of one kind in the health document; the status has all.
const maxShown = 8

// readersHealth warns of problems that readers have. None affects the node's own readiness.
func (p *publishing) readersHealth(h *client.Health) {
	for _, e := range p.prober.Status() {
		if e.Result == client.ProbePending || e.Result == client.ProbeNoMaterial {
			continue
		}
		c := client.Check{ComponentID: e.Endpoint, Status: client.Pass, Time: e.LastProbe}
		if !e.OK() {
			c.Status, c.Output = client.Warn, string(e.Result)
			if e.Reason != "" {
				c.Output += ": " + e.Reason
			}
		}
		h.Add("mtls:endpoint", c)
	}
	stale := p.readers.Status()
	for _, r := range stale.Stale[:min(len(stale.Stale), maxShown)] {
		h.Add("mtls:stale_reader", client.Check{Status: client.Warn, Time: stale.Checked, Output: r.String()})
	}
}

package agent

import (
	"fmt"
	"strings"
	"time"

	"sevagent/client"
	"sevagent/internal/appraise"
	"sevagent/internal/attest"
	"sevagent/internal/tpm"
)

// health reports readiness: gate passed and a valid set published. What the agent can work without is a warning.
func (a *agent) health(now time.Time) *client.Health {
	h := new(client.Health)
	a.attestation.health(h, now)
	a.publishing.health(h, now)
	if text := a.refused.Load(); text != nil {
		h.Add("configuration", client.Check{
			Status: client.Warn, Output: "the last reload was refused: " + *text, Next: step("configuration", ""),
		})
	}
	a.began.note(h, now)
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

// failing lists the checks that fail, with their causes and next steps.
func failing(h *client.Health) (list []string) {
	for _, c := range h.Problems() {
		if c.Status == client.Fail {
			list = append(list, c.String())
		}
	}
	return list
}

func (a *attestation) health(h *client.Health, now time.Time) {
	g := a.gate.Load()
	gate := client.Check{Status: client.Pass, Time: g.at}
	switch {
	case !g.passed && g.err == nil:
		gate.Status, gate.Output, gate.Next = client.Fail, "not passed yet", step("attestation:gate pending", "")
	case !g.passed:
		gate.Status = client.Fail
		gate.Output, gate.Next = explain(g.err)
	case g.err != nil:
		gate.Status = client.Warn
		gate.Output, gate.Next = explain(g.err)
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
		device.Next = step("attestation:device slow", "")
	} else if state.Err != nil {
		device.Status = client.Warn
		device.Output, device.Next = explain(state.Err)
	}
	h.Add("attestation:device", device)

	a.nitroHealth(h)
	driftHealth(h, state, now)
	if v := state.Verdict; v != nil {
		if v.Roots == appraise.RootsCustom {
			const output = "roots: custom; reports are verified by the policy's own roots, not by AMD's"
			h.Add("attestation:roots", client.Check{
				Status: client.Warn, Time: state.ReportAt, Output: output, Next: step("attestation:roots", ""),
			})
		}
		if v.Status != appraise.Pass {
			c := client.Check{
				Status: client.Warn, Time: state.ReportAt,
				Output: v.Code + ": " + v.Reason, Next: attest.VerdictAdvice(v.Code),
			}
			if !state.ReportAt.Equal(state.At) {
				c.Output += " (by the report of " + state.ReportAt.UTC().Format(time.RFC3339) + ", the last one)"
			}
			h.Add("attestation:verdict", c)
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
		c.Status, c.Output, c.Next = client.Warn, s.Error, tpm.Advice(a.worker.SecondState().Err)
	case len(s.Drift) > 0:
		c.Status, c.Output = client.Warn, "what the node was booted from has changed while it runs: "+s.Drift[0].What
		c.Next = step("attestation:nitrotpm drift", "")
	}
	h.Add("attestation:nitrotpm", c)
}

// driftShown is how long a change of the node's reports is a warning: long enough for an operator who looks once a day.
const driftShown = 24 * time.Hour

// driftHealth warns of recent changes in the reports, and of an endorsement certificate that should have been renewed.
func driftHealth(h *client.Health, state *attest.State, now time.Time) {
	for _, c := range state.Drift {
		if now.Sub(c.At) < driftShown {
			problem := "attestation:drift"
			if attest.Grave(c) {
				problem = "attestation:drift grave"
			}
			h.Add("attestation:drift", client.Check{
				ComponentID: c.What, Status: client.Warn, Time: c.At, Since: c.At.UTC(),
				Output: fmt.Sprintf("%s -> %s", c.From, c.To), Next: step(problem, ""),
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
		Status: client.Warn, Time: state.At, Until: state.NotAfter.UTC(), Next: step("attestation:certificate", ""),
		Output: fmt.Sprintf("the endorsement certificate %s at %s and the host has no newer one", verb,
			state.NotAfter.UTC().Format(time.RFC3339)),
	})
}

func (p *publishing) health(h *client.Health, now time.Time) {
	s := p.rotator.Status()
	publication := client.Check{ComponentID: s.Path, Status: client.Pass, Time: s.PublishedAt}
	switch {
	case len(s.Secrets) > 0 && !s.Ready:
		publication.Status, publication.Output = client.Fail, "nothing is published yet"
		publication.Next = step("mtls:publication nothing", "")
		if s.Error != "" {
			publication.Output += ": " + s.Error
		}
	case s.Error != "":
		publication.Status, publication.Output, publication.Until = client.Warn, s.Error, s.NotAfter.UTC()
		publication.Next = step("mtls:publication failed", "")
	}
	h.Add("mtls:publication", publication)
	guardHealth(h, s.Path, s.Guard)
	for _, e := range s.Expiry {
		expiryHealth(h, e, now)
	}

	for _, c := range s.Consumers {
		check := client.Check{ComponentID: c.Path, Status: client.Pass, Time: c.PublishedAt, Output: c.Error}
		if c.Error != "" {
			check.Status, check.Next = client.Warn, step("mtls:publication failed", "")
		} else if len(c.Missing) > 0 {
			check.Status, check.Output = client.Warn, fmt.Sprintf("no secret gives %q", c.Missing)
			check.Next = step("mtls:publication missing", "")
		}
		h.Add("mtls:publication", check)
		guardHealth(h, c.Path, c.Guard)
	}
	for _, secret := range s.Secrets {
		secretHealth(h, s, secret, now)
	}
	if s.Clock.Error != "" {
		h.Add("mtls:clock", client.Check{
			Status: client.Warn, Time: s.Clock.Checked, Output: s.Clock.Error, Next: step("mtls:clock", ""),
		})
	}
	p.readersHealth(h)
}

// expiryHealth warns of a certificate that should have been renewed, and fails once one has expired.
func expiryHealth(h *client.Health, e client.Expiry, now time.Time) {
	c := client.Check{
		ComponentID: e.File, Status: client.Warn, Until: e.NotAfter.UTC(),
		Next: step("mtls:expiry "+kindOf(e.Secret), e.Secret),
	}
	switch stage := e.Stage(now); {
	case stage == 0:
		return
	case stage == client.Expired:
		c.Status, c.Output = client.Fail, "expired"
	default:
		c.Output = "expires in " + e.Left(now)
	}
	c.Output += fmt.Sprintf(", at %s: %s", e.NotAfter.UTC().Format(time.RFC3339), e.Subject)
	h.Add("mtls:expiry", c)
}

func secretHealth(h *client.Health, s *client.Publication, secret client.SecretStatus, now time.Time) {
	c := client.Check{ComponentID: secret.Name, Status: client.Pass, Time: secret.LastChecked}
	lasts := lastsUntil(s, secret.Name)
	if secret.State != client.SecretCurrent {
		// The last good set stays published, or the publication's entry fails.
		c.Status, c.Output, c.Until, c.Next = client.Warn, string(secret.State), lasts, secretStep(secret)
		if secret.Error != "" {
			c.Output += ": " + withoutName(secret.Error, secret.Name)
		}
	} else if i := secret.Issue; i != nil && !i.RenewAt.IsZero() && now.After(i.RenewAt.Add(i.NotAfter.Sub(i.Issued)/10)) {
		c.Status, c.Until, c.Next = client.Warn, i.NotAfter.UTC(), step("mtls:secret issue", secret.Name)
		c.Output = fmt.Sprintf("it was to be renewed at %s, and %s has not issued a certificate yet",
			i.RenewAt.UTC().Format(time.RFC3339), i.Authority)
	}
	h.Add("mtls:secret", c)
	if p := secret.Preflight; p != nil && p.Result == "rejected" {
		h.Add("mtls:pending", client.Check{
			ComponentID: secret.Name, Status: client.Warn, Time: p.At, Until: lasts,
			Output: "pending version " + p.Version + ": " + withoutName(p.Reason, secret.Name),
			Next:   step("mtls:pending", ""),
		})
	}
}

// lastsUntil returns when the first published file that a secret gives expires; zero: it gives none.
func lastsUntil(s *client.Publication, secret string) (end time.Time) {
	for _, e := range s.Expiry {
		if e.Secret == secret && (end.IsZero() || e.NotAfter.Before(end)) {
			end = e.NotAfter.UTC()
		}
	}
	return end
}

// withoutName leaves out of a cause the name of the secret, which stands beside it.
func withoutName(text, secret string) string {
	text = strings.TrimPrefix(text, "secret "+secret+": ")
	return strings.Replace(text, " secret "+secret+": ", " secret: ", 1)
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
	c.Output, c.Next = string(g.State), step("mtls:guard "+string(g.State), path)
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
			c.Next = step("mtls:endpoint "+string(e.Result), e.Endpoint)
			if e.Reason != "" {
				c.Output += ": " + e.Reason
			}
		}
		h.Add("mtls:endpoint", c)
	}
	stale := p.readers.Status()
	for _, r := range stale.Stale[:min(len(stale.Stale), maxShown)] {
		id := r.ContainerID
		if id == "" {
			id = fmt.Sprintf("process %d", r.PID)
		}
		h.Add("mtls:stale_reader", client.Check{
			ComponentID: id, Status: client.Warn, Time: stale.Checked,
			Output: r.String(), Next: step("mtls:stale_reader", ""),
		})
	}
}

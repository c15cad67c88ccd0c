package agent

import (
	"fmt"
	"time"

	"sevagent/client"
	"sevagent/internal/localapi"
	"sevagent/internal/mtls"
	"sevagent/internal/probe"
	"sevagent/internal/readers"
)

func (a *agent) publicationHealth(h *localapi.Health, now time.Time) {
	s := a.rotator.Status()
	publication := localapi.Check{ComponentID: s.Path, Status: localapi.StatusPass, Time: s.PublishedAt}
	switch {
	case len(s.Secrets) > 0 && !s.Ready:
		publication.Status, publication.Output = localapi.StatusFail, "nothing is published yet"
		if s.Error != "" {
			publication.Output += ": " + s.Error
		}
	case !s.NotAfter.IsZero() && mtls.Now(s, now).After(s.NotAfter):
		publication.Status, publication.Output = localapi.StatusFail, "the published certificate expired at "+date(s.NotAfter)
	case s.Error != "":
		publication.Status, publication.Output = localapi.StatusWarn, s.Error
	}
	h.Add("mtls:publication", publication)
	guardHealth(h, s.Path, s.Guard)
	for _, c := range s.Consumers {
		check := localapi.Check{ComponentID: c.Path, Status: localapi.StatusPass, Time: c.PublishedAt, Output: c.Error}
		if c.Error != "" {
			check.Status = localapi.StatusWarn
		} else if len(c.Missing) > 0 {
			check.Status, check.Output = localapi.StatusWarn, fmt.Sprintf("no secret gives %q", c.Missing)
		}
		h.Add("mtls:publication", check)
		guardHealth(h, c.Path, c.Guard)
	}
	for _, secret := range s.Secrets {
		secretHealth(h, secret)
	}
	if s.Clock.Error != "" {
		h.Add("mtls:clock", localapi.Check{Status: localapi.StatusWarn, Time: s.Clock.Checked, Output: s.Clock.Error})
	}
}

func secretHealth(h *localapi.Health, secret client.SecretStatus) {
	c := localapi.Check{ComponentID: secret.Name, Status: localapi.StatusPass, Time: secret.LastChecked, Output: secret.Error}
	if secret.State != client.SecretCurrent {
		c.Status = localapi.StatusWarn // the last good set is published, or its own entry fails
		if c.Output == "" {
			c.Output = string(secret.State)
		}
	}
	h.Add("mtls:secret", c)
	if p := secret.Preflight; p != nil && p.Result == client.PreflightRejected {
		h.Add("mtls:pending", localapi.Check{ComponentID: secret.Name, Status: localapi.StatusWarn, Time: p.At, Output: "pending version " + p.Version + ": " + p.Reason})
	}
}

// guardHealth fails where what readers find may not be what was published.
func guardHealth(h *localapi.Health, path string, g client.GuardStatus) {
	c := localapi.Check{ComponentID: path, Time: g.At}
	switch g.State {
	case client.GuardWarning:
		c.Status = localapi.StatusWarn
	case client.GuardAlarm, client.GuardQuarantined:
		c.Status = localapi.StatusFail
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

// readersHealth warns of what containers will find, or not. None of it is for the node's own readiness.
func (a *agent) readersHealth(h *localapi.Health) {
	for _, e := range a.prober.Status() {
		if e.Result == probe.Pending || e.Result == probe.NoMaterial {
			continue
		}
		c := localapi.Check{ComponentID: e.Endpoint, Status: localapi.StatusPass, Time: e.LastProbe}
		if !e.OK() {
			c.Status, c.Output = localapi.StatusWarn, string(e.Result)+reason(e.Reason)
		}
		h.Add("mtls:endpoint", c)
	}
	stale := a.readers.Status()
	for _, r := range stale.Stale[:min(len(stale.Stale), maxShown)] {
		h.Add("mtls:stale_reader", localapi.Check{Status: localapi.StatusWarn, Time: stale.Checked, Output: staleReader(r)})
	}
	if err := a.certificates.reload.Status().Error; err != "" {
		h.Add("mtls:reload", localapi.Check{Status: localapi.StatusWarn, Output: err})
	}
}

func staleReader(r readers.Reader) string {
	who := fmt.Sprintf("process %d (%s)", r.PID, r.Comm)
	if r.ContainerID != "" {
		who = "container " + r.ContainerID
	}
	if r.TaskID != "" {
		who += " of task " + r.TaskID
	}
	return fmt.Sprintf("%s mounts %d files or directories of an old generation, which a rotation does not reach; mount the published directory instead, and restart it", who, len(r.Files)+r.FilesOmitted)
}

package mtls

import (
	"time"

	"sevagent/client"
	"sevagent/internal/promtext"
)

// metrics of a Rotator. Every label value comes from a list in this package.
type metrics struct {
	requests       *promtext.Counters // operation, result
	publications   *promtext.Counters // result
	publishSeconds *promtext.Histogram
	rejections     *promtext.Counter
	secrets        *promtext.Gauges // state
	notAfter       *promtext.Gauges // certificate
	published      *promtext.Gauge
	checked        *promtext.Gauge
	heldUntil      *promtext.Gauge

	preflightRejections *promtext.Counter
	tampering           *promtext.Counters // what
	repairs             *promtext.Counters // result
	guard               *promtext.Gauges   // state
	skew                *promtext.Gauge
	callsPerMonth       *promtext.Gauge
	renewAt             *promtext.Gauges // source
	issuances           *promtext.Gauges // source
}

func newMetrics(reg *promtext.Registry) *metrics {
	gauge := func(name, help string) *promtext.Gauge { return reg.Gauge("sevagent_mtls_"+name, help) }
	gauges := func(name, help string, labels ...string) *promtext.Gauges {
		return reg.Gauges("sevagent_mtls_"+name, help, labels...)
	}
	counter := func(name, help string) *promtext.Counter { return reg.Counter("sevagent_mtls_"+name, help) }
	counters := func(name, help string, labels ...string) *promtext.Counters {
		return reg.Counters("sevagent_mtls_"+name, help, labels...)
	}
	return &metrics{
		requests: counters("requests_total",
			"Requests to sources of secrets, by operation and by how they ended.", "operation", "result"),
		publications: counters("publications_total",
			"Attempts to publish a generation, by how they ended: published, "+
				"failed (nothing was switched) or rolled_back.",
			"result"),
		publishSeconds: reg.Histogram("sevagent_mtls_publish_duration_seconds",
			"Time to publish a generation, evidence included.", .0002, .0005, .001, .002, .005, .01, .05, .25, 1, 5, 20),
		rejections: counter("rejections_total", "Versions of secrets that could not be published."),
		secrets:    gauges("secrets", "Configured secrets, by state.", "state"),
		notAfter: gauges("not_after_timestamp_seconds",
			"When the chain of the client, of the server, and the last of the anchors expires.", "certificate"),
		published: gauge("published_timestamp_seconds", "When the current generation was published."),
		checked: gauge("last_checked_timestamp_seconds",
			"When the source that has been silent longest last answered."),
		heldUntil: gauge("held_until_timestamp_seconds",
			"When the next version held for its dates will be published. 0: none is held."),
		preflightRejections: counter("preflight_rejections_total",
			"Pending versions of secrets that would be rejected once they are current."),
		tampering: counters("tampering_total",
			"What was found changed in a published directory by someone else.", "what"),
		repairs: counters("repairs_total",
			"Generations published to put back what was changed, by how that ended.", "result"),
		guard: gauges("guarded_directories", "Published directories, by what their guards report.", "state"),
		skew:  gauge("clock_skew_seconds", "How far the node's clock is ahead of the secrets' service's."),
		callsPerMonth: gauge("estimated_calls_per_month",
			"Calls to Secrets Manager in a month at the configured interval."),
		renewAt: gauges("issue_renew_timestamp_seconds",
			"When the next certificate for a key of this node is ordered, by source.", "source"),
		issuances: gauges("issue_issuances_24h",
			"Certificates issued for keys of this node in the last 24 hours, by source.", "source"),
	}
}

// update makes the gauges agree with a snapshot.
func (m *metrics) update(s *client.Publication) {
	count := make(map[client.SecretState]int)
	var checked, held time.Time
	m.renewAt.Reset()
	m.issuances.Reset()
	for i, secret := range s.Secrets {
		count[secret.State]++
		if issue := secret.Issue; issue != nil {
			m.renewAt.With(secret.Name).Set(timestamp(issue.RenewAt))
			m.issuances.With(secret.Name).Set(float64(issue.Issuances))
		}
		if i == 0 || secret.LastChecked.Before(checked) {
			checked = secret.LastChecked
		}
		if h := secret.HeldUntil; !h.IsZero() && (held.IsZero() || h.Before(held)) {
			held = h
		}
	}
	for _, state := range client.SecretStates() {
		m.secrets.With(string(state)).Set(float64(count[state]))
	}
	guards := map[client.GuardState]int{s.Guard.State: 1}
	for _, c := range s.Consumers {
		guards[c.Guard.State]++
	}
	for _, state := range client.GuardStates() {
		m.guard.With(string(state)).Set(float64(guards[state]))
	}
	m.skew.Set(s.Clock.SkewSeconds)
	m.callsPerMonth.Set(float64(s.Cost.CallsPerMonth))
	m.published.Set(timestamp(s.PublishedAt))
	m.checked.Set(timestamp(checked))
	m.heldUntil.Set(timestamp(held))

	first := make(map[string]time.Time)
	for _, e := range s.Expiry {
		if label, ok := map[string]string{"client.crt": "client", "server.crt": "server", "ca.crt": "ca"}[e.File]; ok {
			first[label] = e.NotAfter
		}
	}
	for _, label := range []string{"client", "server", "ca"} {
		if t, ok := first[label]; ok {
			m.notAfter.With(label).Set(timestamp(t))
		} else {
			m.notAfter.Drop(label)
		}
	}
}

func timestamp(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}

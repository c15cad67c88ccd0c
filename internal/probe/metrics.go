package probe

import (
	"time"

	"sevagent/client"
	"sevagent/internal/promtext"
)

// metrics are a Prober's. The label endpoint has the configured endpoints, and result the codes.
type metrics struct {
	success     *promtext.Gauges
	lastSuccess *promtext.Gauges
	notAfter    *promtext.Gauges
	handshake   *promtext.Gauges
	attempts    *promtext.Counters
}

func newMetrics(reg *promtext.Registry) *metrics {
	gauge := func(name, help string) *promtext.Gauges {
		return reg.Gauges("sevagent_mtls_probe_"+name, help, "endpoint")
	}
	return &metrics{
		success:     gauge("success", "Whether the last probe of the endpoint ended ok: 1 or 0."),
		lastSuccess: gauge("last_success_timestamp_seconds", "When the endpoint last was ok. Absent: never."),
		notAfter: gauge("server_not_after_timestamp_seconds",
			"When the certificate that the endpoint last showed expires."),
		handshake: gauge("handshake_seconds", "How long the last complete TLS handshake with the endpoint took."),
		attempts: reg.Counters("sevagent_mtls_probe_attempts_total",
			"Probes of the endpoint, by how they ended.", "endpoint", "result"),
	}
}

// record adds a finished probe. What the probe did not find out keeps its value.
func (m *metrics) record(r client.Endpoint) {
	m.attempts.With(r.Endpoint, string(r.Result)).Inc()
	success := 0.0
	if r.OK() {
		success = 1
		m.lastSuccess.With(r.Endpoint).Set(timestamp(r.LastSuccess))
	}
	m.success.With(r.Endpoint).Set(success)
	if r.Server != nil {
		m.notAfter.With(r.Endpoint).Set(timestamp(r.Server.NotAfter))
	}
	if r.HandshakeSeconds > 0 {
		m.handshake.With(r.Endpoint).Set(r.HandshakeSeconds)
	}
}

// drop removes all series of an endpoint.
func (m *metrics) drop(endpoint string) {
	for _, g := range []*promtext.Gauges{m.success, m.lastSuccess, m.notAfter, m.handshake} {
		g.Drop(endpoint)
	}
	m.attempts.DropFirst(endpoint)
}

func timestamp(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

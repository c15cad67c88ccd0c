package probe

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"sevagent/client"
)

// metrics are a Prober's. The label endpoint has the configured endpoints, and result the codes.
type metrics struct {
	success     *prometheus.GaugeVec
	lastSuccess *prometheus.GaugeVec
	notAfter    *prometheus.GaugeVec
	handshake   *prometheus.GaugeVec
	attempts    *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	gauge := func(name, help string) *prometheus.GaugeVec {
		return f.NewGaugeVec(prometheus.GaugeOpts{Name: "sevagent_mtls_probe_" + name, Help: help},
			[]string{"endpoint"})
	}
	return &metrics{
		success:     gauge("success", "Whether the last probe of the endpoint ended ok: 1 or 0."),
		lastSuccess: gauge("last_success_timestamp_seconds", "When the endpoint last was ok. Absent: never."),
		notAfter: gauge("server_not_after_timestamp_seconds",
			"When the certificate that the endpoint last showed expires."),
		handshake: gauge("handshake_seconds", "How long the last complete TLS handshake with the endpoint took."),
		attempts: f.NewCounterVec(prometheus.CounterOpts{
			Name: "sevagent_mtls_probe_attempts_total",
			Help: "Probes of the endpoint, by how they ended.",
		}, []string{"endpoint", "result"}),
	}
}

// record adds a finished probe. What the probe did not find out keeps its value.
func (m *metrics) record(r client.Endpoint) {
	m.attempts.WithLabelValues(r.Endpoint, string(r.Result)).Inc()
	success := 0.0
	if r.OK() {
		success = 1
		m.lastSuccess.WithLabelValues(r.Endpoint).Set(timestamp(r.LastSuccess))
	}
	m.success.WithLabelValues(r.Endpoint).Set(success)
	if r.Server != nil {
		m.notAfter.WithLabelValues(r.Endpoint).Set(timestamp(r.Server.NotAfter))
	}
	if r.HandshakeSeconds > 0 {
		m.handshake.WithLabelValues(r.Endpoint).Set(r.HandshakeSeconds)
	}
}

// drop removes all series of an endpoint.
func (m *metrics) drop(endpoint string) {
	for _, g := range []*prometheus.GaugeVec{m.success, m.lastSuccess, m.notAfter, m.handshake} {
		g.DeleteLabelValues(endpoint)
	}
	m.attempts.DeletePartialMatch(prometheus.Labels{"endpoint": endpoint})
}

func timestamp(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

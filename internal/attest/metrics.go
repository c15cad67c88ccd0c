package attest

import (
	"github.com/prometheus/client_golang/prometheus"

	"sevagent/internal/appraise"
)

type metrics struct {
	report, verify, batch    prometheus.Histogram
	second                   prometheus.Histogram
	throttled                prometheus.Counter
	failures, refused, drift *prometheus.CounterVec
	verdict                  *prometheus.GaugeVec
	notAfter, version        prometheus.Gauge
	tcb                      *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer, w *Worker) *metrics {
	const ns, sub = "sevagent", "attestation"
	histogram := func(name, help string, buckets ...float64) prometheus.Histogram {
		return prometheus.NewHistogram(
			prometheus.HistogramOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help, Buckets: buckets})
	}
	counter := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help}
	}
	gauge := func(name, help string) prometheus.GaugeOpts {
		return prometheus.GaugeOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help}
	}
	m := &metrics{
		report: histogram("report_seconds", "Time the device took for one report.",
			.005, .01, .02, .05, .1, .5, 2, 10, 30, 60),
		verify: histogram("verify_seconds", "Time one appraisal took.", .0005, .001, .002, .005, .01, .05),
		second: histogram("nitrotpm_seconds", "Time the NitroTPM took for one document.",
			.001, .005, .02, .1, .5, 2),
		batch: histogram("batch_requests", "Requests that shared one report.",
			prometheus.ExponentialBuckets(1, 4, 8)...),
		throttled: prometheus.NewCounter(
			counter("throttled_total", "Reports that were refused or slowed down by the host.")),
		failures: prometheus.NewCounterVec(
			counter("failures_total", "Device requests that gave no usable report, by code."), []string{"code"}),
		refused: prometheus.NewCounterVec(
			counter("refused_total", "Requests refused without asking the device, by code."), []string{"code"}),
		drift: prometheus.NewCounterVec(
			counter("drift_total", "Changes from one genuine report to the next, by what changed."), []string{"what"}),
		verdict: prometheus.NewGaugeVec(gauge("verdict", "1 for the status of the last verdict."), []string{"status"}),
		notAfter: prometheus.NewGauge(gauge("certificate_not_after_timestamp_seconds",
			"When the endorsement certificate of the last report expires.")),
		version: prometheus.NewGauge(gauge("report_version", "VERSION of the last report.")),
		tcb: prometheus.NewGaugeVec(
			gauge("reported_tcb", "REPORTED_TCB of the last report, by component."), []string{"component"}),
	}
	depth := prometheus.NewGaugeFunc(gauge("queue_requests", "Requests that wait for a report."),
		func() float64 { return float64(w.queue.len()) })
	for _, c := range compare(observation{}, observation{}) {
		m.drift.WithLabelValues(c.What) // zero from the start: an alert on an increase needs something to increase from
	}
	reg.MustRegister(m.report, m.verify, m.batch, m.second, m.throttled, m.failures, m.refused, m.drift, m.verdict,
		m.notAfter, m.version, m.tcb, depth)
	return m
}

func (m *metrics) note(v *appraise.Verdict, err error) {
	if err != nil {
		m.failures.WithLabelValues(Code(err)).Inc()
	}
	if v == nil || v.Report == nil {
		return
	}
	for _, s := range []appraise.Status{appraise.Pass, appraise.Warned, appraise.Fail, appraise.Unsupported} {
		value := 0.0
		if s == v.Status {
			value = 1
		}
		m.verdict.WithLabelValues(string(s)).Set(value)
	}
	m.version.Set(float64(v.Report.Version))
	if !v.NotAfter.IsZero() {
		m.notAfter.Set(float64(v.NotAfter.Unix()))
	}
	tcb := v.Report.ReportedTCB.Components()
	for name, value := range map[string]uint8{
		"bootloader": tcb.Bootloader, "tee": tcb.TEE, "snp": tcb.SNP, "microcode": tcb.Microcode,
	} {
		m.tcb.WithLabelValues(name).Set(float64(value))
	}
}

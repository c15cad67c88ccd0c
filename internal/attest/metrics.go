package attest

import (
	"sevagent/internal/appraise"
	"sevagent/internal/promtext"
)

type metrics struct {
	report, verify, batch    *promtext.Histogram
	second                   *promtext.Histogram
	throttled                *promtext.Counter
	failures, refused, drift *promtext.Counters
	verdict                  *promtext.Gauges
	notAfter, version        *promtext.Gauge
	tcb                      *promtext.Gauges
}

func newMetrics(reg *promtext.Registry, w *Worker) *metrics {
	const prefix = "sevagent_attestation_"
	m := &metrics{
		report: reg.Histogram(prefix+"report_seconds", "Time the device took for one report.",
			.005, .01, .02, .05, .1, .5, 2, 10, 30, 60),
		verify: reg.Histogram(prefix+"verify_seconds", "Time one appraisal took.", .0005, .001, .002, .005, .01, .05),
		second: reg.Histogram(prefix+"nitrotpm_seconds", "Time the NitroTPM took for one document.",
			.001, .005, .02, .1, .5, 2),
		batch: reg.Histogram(prefix+"batch_requests", "Requests that shared one report.",
			1, 4, 16, 64, 256, 1024, 4096, 16384),
		throttled: reg.Counter(prefix+"throttled_total", "Reports that were refused or slowed down by the host."),
		failures:  reg.Counters(prefix+"failures_total", "Device requests that gave no usable report, by code.", "code"),
		refused:   reg.Counters(prefix+"refused_total", "Requests refused without asking the device, by code.", "code"),
		drift: reg.Counters(prefix+"drift_total",
			"Changes from one genuine report to the next, by what changed.", "what"),
		verdict: reg.Gauges(prefix+"verdict", "1 for the status of the last verdict.", "status"),
		notAfter: reg.Gauge(prefix+"certificate_not_after_timestamp_seconds",
			"When the endorsement certificate of the last report expires."),
		version: reg.Gauge(prefix+"report_version", "VERSION of the last report."),
		tcb:     reg.Gauges(prefix+"reported_tcb", "REPORTED_TCB of the last report, by component.", "component"),
	}
	reg.GaugeFunc(prefix+"queue_requests", "Requests that wait for a report.",
		func() float64 { return float64(w.queue.len()) })
	for _, c := range compare(observation{}, observation{}) {
		m.drift.With(c.What) // zero from the start: an alert on an increase needs something to increase from
	}
	return m
}

func (m *metrics) note(v *appraise.Verdict, err error) {
	if err != nil {
		m.failures.With(Code(err)).Inc()
	}
	if v == nil || v.Report == nil {
		return
	}
	for _, s := range []appraise.Status{appraise.Pass, appraise.Warned, appraise.Fail, appraise.Unsupported} {
		value := 0.0
		if s == v.Status {
			value = 1
		}
		m.verdict.With(string(s)).Set(value)
	}
	m.version.Set(float64(v.Report.Version))
	if !v.NotAfter.IsZero() {
		m.notAfter.Set(float64(v.NotAfter.Unix()))
	}
	tcb := v.Report.ReportedTCB.Components()
	for name, value := range map[string]uint8{
		"bootloader": tcb.Bootloader, "tee": tcb.TEE, "snp": tcb.SNP, "microcode": tcb.Microcode,
	} {
		m.tcb.With(name).Set(float64(value))
	}
}

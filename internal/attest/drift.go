package attest

import (
	"fmt"
	"slices"
	"time"

	"sevagent/client"
	"sevagent/internal/appraise"
	"sevagent/internal/snp"
)

// maxDrift is how many changes State keeps: two firmware updates of a host that change all there is, and a margin.
const maxDrift = 32

// Grave reports whether no maintenance of the host explains c: a guest keeps its measurement and its cloud for life.
func Grave(c client.Drift) bool { return c.What == "measurement" || c.What == "csp_id" }

// observation holds the values of a report that can drift.
type observation struct {
	at                                               time.Time
	currentTCB, committedTCB, launchTCB, reportedTCB snp.TCBVersion
	reportVersion                                    uint32
	firmware, committedFirmware                      snp.FirmwareVersion
	platformInfo                                     snp.PlatformInfo
	measurement                                      [48]byte
	cspID                                            string
}

// observe takes from a genuine verdict what can drift; the caller says when.
func observe(v *appraise.Verdict) observation {
	r := v.Report
	return observation{
		currentTCB: r.CurrentTCB, committedTCB: r.CommittedTCB, launchTCB: r.LaunchTCB, reportedTCB: r.ReportedTCB,
		reportVersion: r.Version, firmware: r.CurrentVersion, committedFirmware: r.CommittedVersion,
		platformInfo: r.PlatformInfo, measurement: r.Measurement, cspID: v.CSPID,
	}
}

// changes returns what new shows otherwise than old, in a fixed order.
func changes(old, new observation) []client.Drift {
	return slices.DeleteFunc(compare(old, new), func(c client.Drift) bool { return c.From == c.To })
}

// compare returns everything that is watched, changed or not.
func compare(old, new observation) []client.Drift {
	pair := func(what string, text func(observation) string) client.Drift {
		return client.Drift{At: new.at, What: what, From: text(old), To: text(new)}
	}
	return []client.Drift{
		pair("current_tcb", func(o observation) string { return o.currentTCB.String() }),
		pair("committed_tcb", func(o observation) string { return o.committedTCB.String() }),
		pair("launch_tcb", func(o observation) string { return o.launchTCB.String() }),
		pair("reported_tcb", func(o observation) string { return o.reportedTCB.String() }),
		pair("report_version", func(o observation) string { return fmt.Sprint(o.reportVersion) }),
		pair("firmware", func(o observation) string { return o.firmware.String() }),
		pair("committed_firmware", func(o observation) string { return o.committedFirmware.String() }),
		pair("platform_info", func(o observation) string { return o.platformInfo.String() }),
		pair("measurement", func(o observation) string { return fmt.Sprintf("%x", o.measurement) }),
		pair("csp_id", func(o observation) string {
			if o.cspID == "" {
				return "none" // a VCEK has no CSP_ID
			}
			return o.cspID
		}),
	}
}

// genuine reports whether v's report is genuine, whatever the policy says of it. The values of any other report are
// only its maker's claims.
func genuine(v *appraise.Verdict) bool {
	switch v.Status {
	case appraise.Pass, appraise.Warned:
		return true
	}
	return v.Status == appraise.Fail && v.Code == appraise.CodePolicyRejected
}

// expiryStage says how near the end of an endorsement certificate is: "30d", "14d", "3d", "expired", or "" if it is
// far or not known. AWS issues its VLEKs for a year: a certificate that gets there means that the host has not got
// its new one.
func expiryStage(now, notAfter time.Time) (stage string) {
	const day = 24 * time.Hour
	left := notAfter.Sub(now)
	switch {
	case notAfter.IsZero() || left > 30*day:
		return ""
	case left > 14*day:
		return "30d"
	case left > 3*day:
		return "14d"
	case left >= 0:
		return "3d"
	}
	return "expired"
}

// Expiry says how near the end of the endorsement certificate is at the time now: "30d", "14d", "3d" and "expired",
// or "" if it is far or not known.
func (s *State) Expiry(now time.Time) string { return expiryStage(now, s.NotAfter) }

// watch adds to next, which nobody else sees yet, what a report changed. verdict is nil if none arrived; the
// certificate ages all the same.
func (w *Worker) watch(next *State, verdict *appraise.Verdict) {
	if verdict != nil && genuine(verdict) {
		seen := observe(verdict)
		seen.at = next.At
		if w.first == nil {
			w.first, w.last = &seen, &seen
		}
		news := changes(*w.last, seen)
		for _, c := range news {
			log := w.cfg.Log.Warn
			if Grave(c) {
				log = w.cfg.Log.Error
			}
			log("attestation drifted", "what", c.What, "from", c.From, "to", c.To)
			w.metrics.drift.With(c.What).Inc()
		}
		if news != nil {
			drift := slices.Concat(next.Drift, news) // a new array: the old one is others' to read
			next.Drift = drift[max(0, len(drift)-maxDrift):]
		}
		next.SinceStart = changes(*w.first, seen)
		w.last = &seen
	}
	if verdict != nil && !verdict.NotAfter.IsZero() { // signature and chain hold, though it may have expired
		next.NotAfter = verdict.NotAfter
	}
	stage := next.Expiry(next.At)
	switch {
	case stage == w.stage:
	case stage == "":
		w.cfg.Log.Info("endorsement certificate renewed", "not_after", next.NotAfter)
	case stage == "3d" || stage == "expired":
		w.cfg.Log.Error("endorsement certificate not renewed", "stage", stage, "not_after", next.NotAfter)
	default:
		w.cfg.Log.Warn("endorsement certificate not renewed", "stage", stage, "not_after", next.NotAfter)
	}
	w.stage = stage
}

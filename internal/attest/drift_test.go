package attest

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"sevagent/client"
	"sevagent/internal/appraise"
	"sevagent/internal/must"
	"sevagent/internal/promtext"
	"sevagent/internal/promtext/promtexttest"
	"sevagent/internal/sim"
	"sevagent/internal/snp"
)

// simDevice is a simulated device, whose reports are genuine for who trusts its root.
type simDevice struct{ *sim.PSP }

func (d simDevice) Report(reportData [snp.ReportDataSize]byte) (Quote, error) {
	report, certs, err := d.PSP.Report(reportData, 0)
	if err != nil {
		return Quote{}, ErrThrottled
	}
	return Quote{Report: report, CertTable: certs}, nil
}

func (simDevice) Name() string { return "simulated" }
func (simDevice) Close() error { return nil }

// node is a running worker over a simulated device.
type node struct {
	*Worker
	psp      *sim.PSP
	log      bytes.Buffer
	registry *promtext.Registry
}

func newNode(t *testing.T, o sim.Options) *node {
	t.Helper()
	psp := must.Get(sim.New(o))(t, "make a simulator")
	policy := must.Get(appraise.Builtin(appraise.AWSShared))(t, "take a built-in policy")
	policy.RootsPEM = psp.Roots()
	verifier := must.Get(appraise.New(appraise.Config{Policy: policy}))(t, "make a verifier")
	n := &node{psp: psp, registry: promtext.New()}
	n.Worker = New(Config{Transport: simDevice{psp}, Verifier: verifier, Enforce: true, Rate: 50, Burst: 50,
		Log: slog.New(slog.NewTextHandler(&n.log, nil)), Metrics: n.registry})
	run(t, n.Worker)
	return n
}

// ask asks for a report and returns the code of what went wrong, or "".
func (n *node) ask(t *testing.T) string {
	t.Helper()
	if _, _, err := n.Evidence(context.WithoutCancel(t.Context()), claims(1, 1)); err != nil {
		return Code(err)
	}
	return ""
}

// drifted returns the counters that are not zero.
func (n *node) drifted(t *testing.T) map[string]float64 {
	t.Helper()
	families := promtexttest.Families(t, n.registry)
	counts := make(map[string]float64)
	for _, f := range families {
		if f.GetName() != "sevagent_attestation_drift_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if v := m.GetCounter().GetValue(); v != 0 {
				counts[m.GetLabel()[0].GetValue()] = v
			}
		}
	}
	return counts
}

func genuineVerdict() *appraise.Verdict {
	tcb := snp.TCB{Bootloader: 4, SNP: 24, Microcode: 217}.Version()
	return &appraise.Verdict{Status: appraise.Pass, CSPID: "CN=cc-us-east-2.amazonaws.com", Report: &snp.Report{
		Version: 3, CurrentTCB: tcb, CommittedTCB: tcb, LaunchTCB: tcb, ReportedTCB: tcb, PlatformInfo: 0x25,
		CurrentVersion:   snp.FirmwareVersion{Major: 1, Minor: 55, Build: 29},
		CommittedVersion: snp.FirmwareVersion{Major: 1, Minor: 55, Build: 29},
	}}
}

func drift(at time.Time, what, from, to string) client.Drift {
	return client.Drift{At: at, What: what, From: from, To: to}
}

func TestChanges(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	newTCB := snp.TCB{Bootloader: 4, SNP: 29, Microcode: 222}.Version()
	zeros := strings.Repeat("00", 48)
	for _, c := range []struct {
		name   string
		change func(v *appraise.Verdict)
		want   []client.Drift
	}{
		{"nothing", func(v *appraise.Verdict) {}, []client.Drift{}},
		{"what differs in every report", func(v *appraise.Verdict) {
			v.Report.ReportData[0], v.Report.ReportID[0] = 1, 1
		}, []client.Drift{}},
		{"renewed certificate", func(v *appraise.Verdict) { v.NotAfter = at.AddDate(1, 0, 0) }, []client.Drift{}},
		{"current TCB", func(v *appraise.Verdict) { v.Report.CurrentTCB = newTCB },
			[]client.Drift{drift(at, "current_tcb", "4.0.24.217", "4.0.29.222")}},
		{"committed TCB", func(v *appraise.Verdict) { v.Report.CommittedTCB = newTCB },
			[]client.Drift{drift(at, "committed_tcb", "4.0.24.217", "4.0.29.222")}},
		{"launch TCB", func(v *appraise.Verdict) { v.Report.LaunchTCB = newTCB },
			[]client.Drift{drift(at, "launch_tcb", "4.0.24.217", "4.0.29.222")}},
		{"reported TCB", func(v *appraise.Verdict) { v.Report.ReportedTCB = newTCB },
			[]client.Drift{drift(at, "reported_tcb", "4.0.24.217", "4.0.29.222")}},
		{"reserved byte of a TCB", func(v *appraise.Verdict) { v.Report.CurrentTCB.Raw |= 7 << 24 },
			[]client.Drift{drift(at, "current_tcb", "4.0.24.217", "4.0.24.217 (0xd918000007000004)")}},
		{"report version", func(v *appraise.Verdict) { v.Report.Version = 5 },
			[]client.Drift{drift(at, "report_version", "3", "5")}},
		{"firmware, not committed", func(v *appraise.Verdict) { v.Report.CurrentVersion.Build = 30 },
			[]client.Drift{drift(at, "firmware", "1.55.29", "1.55.30")}},
		{"committed firmware", func(v *appraise.Verdict) { v.Report.CommittedVersion.Build = 30 },
			[]client.Drift{drift(at, "committed_firmware", "1.55.29", "1.55.30")}},
		{"platform info", func(v *appraise.Verdict) { v.Report.PlatformInfo = 0x125 },
			[]client.Drift{drift(at, "platform_info", "0x25 (SMT_EN, ECC_EN, ALIAS_CHECK_COMPLETE)",
				"0x125 (SMT_EN, ECC_EN, ALIAS_CHECK_COMPLETE, unknown 0x100)")}},
		{"measurement", func(v *appraise.Verdict) { v.Report.Measurement[0] = 0xab },
			[]client.Drift{drift(at, "measurement", zeros, "ab"+zeros[2:])}},
		{"CSP_ID", func(v *appraise.Verdict) { v.CSPID = "CN=cc-eu-west-1.amazonaws.com" },
			[]client.Drift{drift(at, "csp_id", "CN=cc-us-east-2.amazonaws.com", "CN=cc-eu-west-1.amazonaws.com")}},
		{"VCEK instead of VLEK", func(v *appraise.Verdict) { v.CSPID = "" },
			[]client.Drift{drift(at, "csp_id", "CN=cc-us-east-2.amazonaws.com", "none")}},
		{"several", func(v *appraise.Verdict) {
			v.Report.Version, v.Report.CurrentTCB, v.Report.ReportedTCB = 5, newTCB, newTCB
		}, []client.Drift{drift(at, "current_tcb", "4.0.24.217", "4.0.29.222"),
			drift(at, "reported_tcb", "4.0.24.217", "4.0.29.222"), drift(at, "report_version", "3", "5")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := genuineVerdict()
			old := observe(v)
			old.at = at.Add(-time.Hour)
			c.change(v)
			seen := observe(v)
			seen.at = at
			if diff := cmp.Diff(c.want, changes(old, seen)); diff != "" {
				t.Errorf("changes (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOnlyJudgedReportsAreGenuine(t *testing.T) {
	for _, c := range []struct {
		status appraise.Status
		code   string
		want   bool
	}{
		{appraise.Pass, "", true},
		{appraise.Warned, appraise.CodePolicyRejected, true},
		{appraise.Fail, appraise.CodePolicyRejected, true},
		{appraise.Fail, appraise.CodeSignatureInvalid, false},
		{appraise.Fail, appraise.CodeChainInvalid, false},
		{appraise.Fail, appraise.CodeCertificateMissing, false},
		{appraise.Fail, appraise.CodeReportMalformed, false},
		{appraise.Fail, appraise.CodeVerificationPanicking, false},
		{appraise.Unsupported, appraise.CodeUnsupportedVersion, false},
	} {
		if got := genuine(&appraise.Verdict{Status: c.status, Code: c.code}); got != c.want {
			t.Errorf("genuine(%s, %s) = %v, want %v", c.status, c.code, got, c.want)
		}
	}
}

func TestExpiryStage(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	const day = 24 * time.Hour
	for _, c := range []struct {
		name string
		left time.Duration
		want string
	}{
		{"a year", 365 * day, ""},
		{"just above 30 days", 30*day + 1, ""},
		{"30 days", 30 * day, "30d"},
		{"just above 14 days", 14*day + 1, "30d"},
		{"14 days", 14 * day, "14d"},
		{"just above 3 days", 3*day + 1, "14d"},
		{"3 days", 3 * day, "3d"},
		{"its last moment", 0, "3d"},
		{"just over", -1, "expired"},
		{"long ago", -365 * day, "expired"},
	} {
		if got := expiryStage(now, now.Add(c.left)); got != c.want {
			t.Errorf("%s: stage %q, want %q", c.name, got, c.want)
		}
	}
	if got := expiryStage(now, time.Time{}); got != "" {
		t.Errorf("no certificate yet: stage %q, want none", got)
	}
}

func TestDriftIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := sim.DefaultOptions(time.Now())
		n := newNode(t, o)
		for range 2 {
			if code := n.ask(t); code != "" {
				t.Fatalf("the first reports: %s: %v", code, n.State().Err)
			}
		}
		if s := n.State(); s.Drift != nil || len(s.SinceStart) != 0 {
			t.Fatalf("nothing has changed, yet drift is %v, since start %v", s.Drift, s.SinceStart)
		}

		time.Sleep(time.Hour)
		old := o
		o.PlatformInfo |= snp.PlatformRAPLDis
		must.Do(t, n.psp.SetOptions(o), "change the simulator's options")
		if code := n.ask(t); code != "" {
			t.Fatalf("after the change: %s", code)
		}
		before := n.State()
		want := []client.Drift{drift(time.Now(), "platform_info",
			snp.PlatformInfo(0x27).String(), snp.PlatformInfo(0x2f).String())}
		if diff := cmp.Diff(want, before.Drift); diff != "" {
			t.Errorf("drift (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(want, before.SinceStart); diff != "" {
			t.Errorf("since start (-want +got):\n%s", diff)
		}

		// Back again: a second change, but none against the first report.
		time.Sleep(time.Hour)
		must.Do(t, n.psp.SetOptions(old), "change the simulator's options")
		n.ask(t)
		want = append(want, drift(time.Now(), "platform_info", want[0].To, want[0].From))
		if diff := cmp.Diff(want, n.State().Drift); diff != "" {
			t.Errorf("drift after the way back (-want +got):\n%s", diff)
		}
		if s := n.State().SinceStart; len(s) != 0 {
			t.Errorf("since start: %v, want nothing", s)
		}
		if len(before.Drift) != 1 {
			t.Errorf("a State that was handed out has changed: %v", before.Drift)
		}
		if diff := cmp.Diff(map[string]float64{"platform_info": 2}, n.drifted(t)); diff != "" {
			t.Errorf("counted (-want +got):\n%s", diff)
		}
		if text := n.log.String(); strings.Count(text,
			`level=WARN msg="attestation drifted" what=platform_info from=`) != 2 {
			t.Errorf("log has not two warnings:\n%s", text)
		}
	})
}

func TestOnlyGenuineReportsDrift(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := sim.DefaultOptions(time.Now())
		n := newNode(t, o)
		n.psp.SetFault(sim.FaultFlip) // as the first report, it must not become what others are compared with
		for _, fault := range []string{
			sim.FaultFlip, "", sim.FaultFlip, sim.FaultVersion, sim.FaultTable, sim.FaultEcho, sim.FaultBusy, "",
		} {
			n.psp.SetFault(fault)
			n.ask(t)
		}
		if s := n.State(); s.Err != nil || s.Drift != nil {
			t.Errorf("after reports that are not genuine, drift is %v (err %v), want nothing", s.Drift, s.Err)
		}
		if s := n.State(); s.NotAfter.Unix() != o.NotAfter.Unix() {
			t.Errorf("NotAfter = %v, want %v", s.NotAfter, o.NotAfter)
		}

		// One that the policy rejects is genuine, and another machine's measurement needs someone to act.
		o.Measurement[0]++
		o.PlatformInfo &^= snp.PlatformAliasCheckComplete
		must.Do(t, n.psp.SetOptions(o), "change the simulator's options")
		if code := n.ask(t); code != appraise.CodePolicyRejected {
			t.Fatalf("code %q, want %q", code, appraise.CodePolicyRejected)
		}
		var what []string
		for _, c := range n.State().Drift {
			what = append(what, c.What)
		}
		if !slices.Equal(what, []string{"platform_info", "measurement"}) {
			t.Errorf("drift of %v, want platform_info and measurement", what)
		}
		if text := n.log.String(); !strings.Contains(text, `level=ERROR msg="attestation drifted" what=measurement`) {
			t.Errorf("log has no error about the measurement:\n%s", text)
		}
		drift := n.State().Drift
		n.psp.SetFault(sim.FaultBusy)
		n.ask(t)
		if diff := cmp.Diff(drift, n.State().Drift); diff != "" {
			t.Errorf("a failure changes what is kept (-want +got):\n%s", diff)
		}
	})
}

func TestDriftIsBounded(t *testing.T) {
	w := newWorker(t, &fakeDevice{}, 1, 1)
	var states []*State
	const reports = 3 * maxDrift
	for i := range reports {
		v := genuineVerdict()
		v.Report.Version = uint32(i)
		w.note(v, nil)
		states = append(states, w.State())
	}
	for i, s := range states {
		if want := min(i, maxDrift); len(s.Drift) != want {
			t.Fatalf("after %d reports: %d changes, want %d", i+1, len(s.Drift), want)
		}
		// Whatever came later, a State still ends with its own report.
		if i > 0 && s.Drift[len(s.Drift)-1].To != fmt.Sprint(i) {
			t.Errorf("after %d reports: the last change is %v", i+1, s.Drift[len(s.Drift)-1])
		}
	}
	last := states[reports-1]
	if len(last.SinceStart) != 1 || last.SinceStart[0].From != "0" || last.SinceStart[0].To != fmt.Sprint(reports-1) {
		t.Errorf("since start: %v, want report_version from 0 to %d", last.SinceStart, reports-1)
	}
}

// TestCertificateNotRenewed lets a VLEK run out, and be renewed at last.
func TestCertificateNotRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := sim.DefaultOptions(time.Now())
		o.NotAfter = time.Now().AddDate(0, 0, 40)
		n := newNode(t, o)
		for day := range 45 {
			if day == 10 {
				n.psp.SetFault(sim.FaultBusy) // a certificate ages also while the device gives nothing
			}
			if day == 20 {
				n.psp.SetFault("")
			}
			n.ask(t)
			time.Sleep(24 * time.Hour)
		}
		if err := n.State().Err; Code(err) != appraise.CodeCertificateExpired {
			t.Errorf("err = %v, want an expired certificate", err)
		}
		o.NotAfter = time.Now().AddDate(1, 0, 0)
		must.Do(t, n.psp.SetOptions(o), "change the simulator's options")
		n.ask(t)
		var got []string
		for line := range strings.Lines(n.log.String()) {
			if strings.Contains(line, "endorsement certificate") {
				_, line, _ = strings.Cut(line, "level=")
				line, _, _ = strings.Cut(line, " not_after=")
				got = append(got, line)
			}
		}
		want := []string{
			`WARN msg="endorsement certificate not renewed" stage=30d`,
			`WARN msg="endorsement certificate not renewed" stage=14d`,
			`ERROR msg="endorsement certificate not renewed" stage=3d`,
			`ERROR msg="endorsement certificate not renewed" stage=expired`,
			`INFO msg="endorsement certificate renewed"`,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("log (-want +got):\n%s", diff)
		}
		if s := n.State(); s.Drift != nil || s.Err != nil {
			t.Errorf("drift %v, err %v; a renewal is neither", s.Drift, s.Err)
		}
	})
}

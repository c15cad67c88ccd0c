package sim_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sevagent/internal/appraise"
	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/internal/snp"
)

// root is made once: generating its keys takes most of a test's time.
var root = sync.OnceValues(func() (*sim.PSP, error) { return sim.New(sim.DefaultOptions(time.Now())) })

func newPSP(t testing.TB) *sim.PSP {
	t.Helper()
	shared := must.Get(root())(t, "make the shared root")
	return must.Get(sim.Load(saved(t, shared), sim.DefaultOptions(time.Now())))(t, "load the shared root")
}

var zero [snp.ReportDataSize]byte

// getReport returns a report over data, and the certificate table that comes with it.
func getReport(t testing.TB, psp *sim.PSP, data [snp.ReportDataSize]byte) (report, table []byte) {
	t.Helper()
	report, table, err := psp.Report(data, 0)
	must.Do(t, err, "get a report")
	return report, table
}

// TestDelays: latency and hang take the stated time, one request after another, and end with the caller.
func TestDelays(t *testing.T) {
	psp := newPSP(t)
	o := sim.DefaultOptions(time.Now())
	o.Latency = 8 * time.Millisecond
	must.Do(t, psp.SetOptions(o), "set the latency")
	synctest.Test(t, func(t *testing.T) {
		// Channels belong to their bubble.
		psp := must.Get(sim.Load(saved(t, psp), o))(t, "load the secure processor in the bubble")
		took := func(want time.Duration, ctx context.Context, wantErr error) {
			t.Helper()
			began := time.Now()
			if _, _, err := psp.ReportContext(ctx, zero, 0); !errors.Is(err, wantErr) {
				t.Errorf("err = %v, want %v", err, wantErr)
			}
			if got := time.Since(began); got != want {
				t.Errorf("took %v, want %v", got, want)
			}
		}
		took(8*time.Millisecond, t.Context(), nil)

		began := time.Now()
		var callers sync.WaitGroup
		for range 5 {
			callers.Go(func() { psp.Report(zero, 0) })
		}
		callers.Wait()
		if got := time.Since(began); got != 40*time.Millisecond {
			t.Errorf("five requests took %v, want 40 ms", got)
		}

		psp.SetFault(sim.FaultHang)
		short, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var waiting sync.WaitGroup
		waiting.Go(func() { took(time.Minute, short, context.DeadlineExceeded) })
		waiting.Go(func() { took(time.Minute, short, context.DeadlineExceeded) }) // never served
		waiting.Wait()
		waiting.Go(func() {
			if _, _, err := psp.Report(zero, 0); err != nil {
				t.Errorf("after the hang: %v", err)
			}
		})
		time.Sleep(time.Minute)
		psp.SetFault("")
		waiting.Wait()
	})
}

// TestFaultFile: the file sets a fault for another process; SetFault takes precedence.
func TestFaultFile(t *testing.T) {
	psp := newPSP(t)
	psp.FaultFile = filepath.Join(t.TempDir(), "fault")
	status := func() uint64 {
		_, _, err := psp.Report(zero, 0)
		if host, ok := errors.AsType[*sim.HostError](err); ok {
			return host.ExitInfo2
		}
		must.Do(t, err, "get a report")
		return 0
	}
	if got := status(); got != 0 {
		t.Errorf("without the file: status %#x", got)
	}
	must.Do(t, os.WriteFile(psp.FaultFile, []byte("firmware 0x16\n"), 0o600), "write the fault file")
	if got := status(); got != 0x16 {
		t.Errorf("status %#x, want 0x16", got)
	}
	psp.SetFault("firmware 0x27")
	if got := status(); got != 0x27 {
		t.Errorf("status %#x, want 0x27", got)
	}
	psp.SetFault("")
	must.Do(t, os.Remove(psp.FaultFile), "remove the fault file")
	if got := status(); got != 0 {
		t.Errorf("after the file: status %#x", got)
	}
}

// TestBadReports: the faults that give a wrong report.
func TestBadReports(t *testing.T) {
	psp := newPSP(t)
	for _, c := range []struct {
		fault string
		wrong func(r *snp.Report, table []byte) bool
	}{
		{sim.FaultEcho, func(r *snp.Report, _ []byte) bool { return r.ReportData != zero }},
		{sim.FaultFlip, func(r *snp.Report, _ []byte) bool { return r.Measurement[0] != r.Measurement[1] }},
		{sim.FaultVersion, func(r *snp.Report, _ []byte) bool { return r.Version == 6 }},
		{sim.FaultTable, func(_ *snp.Report, table []byte) bool { _, err := snp.ParseCertTable(table); return err != nil }},
	} {
		psp.SetFault(c.fault)
		report, table := getReport(t, psp, zero)
		r, err := snp.ParseReport(report)
		if err != nil || !c.wrong(r, table) {
			t.Errorf("%s: the report does not have just this fault: %v", c.fault, err)
		}
	}
	for _, fault := range []string{"bussy", "firmware", "firmware x"} {
		psp.SetFault(fault)
		if _, _, err := psp.Report(zero, 0); err == nil {
			t.Errorf("%q is accepted as a fault", fault)
		}
	}
}

// TestRotation: a firmware update during requests.
func TestRotation(t *testing.T) {
	now := time.Now()
	psp := newPSP(t)
	var callers sync.WaitGroup
	for range 2 {
		callers.Go(func() {
			for range 10 {
				report, table, err := psp.Report(zero, 0)
				if err != nil {
					t.Errorf("get a report: %v", err)
					return
				}
				if v := judge(t, appraise.AWSShared, report, table, psp.Roots(), now); v.Status != appraise.Pass {
					t.Errorf("report and certificate do not match: %s %s", v.Status, v.Reason)
				}
			}
		})
	}
	before := psp.CertTable()
	o := sim.DefaultOptions(now)
	o.TCB.Microcode++
	if err := psp.SetOptions(o); err != nil {
		t.Errorf("update the firmware: %v", err)
	}
	callers.Wait()
	report, table := getReport(t, psp, zero)
	if r, err := snp.ParseReport(report); err != nil || r.ReportedTCB != o.TCB.Version() ||
		string(table) == string(before) {
		t.Errorf("after the update: TCB %v, %v", r.ReportedTCB, err)
	}
}

func BenchmarkReport(b *testing.B) {
	psp := newPSP(b)
	for b.Loop() {
		getReport(b, psp, zero)
	}
}

func BenchmarkNew(b *testing.B) {
	for b.Loop() {
		must.Get(sim.New(sim.DefaultOptions(time.Now())))(b, "make a secure processor")
	}
}

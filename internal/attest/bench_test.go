package attest

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"sevagent/internal/appraise"
	"sevagent/internal/must"
	"sevagent/internal/promtext"
	"sevagent/internal/sim"
	"sevagent/internal/snp"
)

// benchDevice is a simulated secure processor that takes as long as hardware does.
type benchDevice struct{ psp *sim.PSP }

func (d benchDevice) Report(reportData [snp.ReportDataSize]byte) (Quote, error) {
	report, certs, err := d.psp.Report(reportData, 0)
	return Quote{Report: report, CertTable: certs}, err
}

func (benchDevice) Name() string { return "simulated" }
func (benchDevice) Close() error { return nil }

// BenchmarkEvidence serves distinct nonces at the default rate of one device request a second, from a device that
// takes 8 ms. Each of the callers asks again as soon as it is served. It reports evidence a second, and what a caller
// waits, beside the same without batching.
func BenchmarkEvidence(b *testing.B) {
	for _, batch := range []int{maxBatch, 1} {
		for _, callers := range []int{1, 100, 1000, 5000} {
			name := fmt.Sprintf("batched/callers=%d", callers)
			if batch == 1 {
				name = fmt.Sprintf("unbatched/callers=%d", callers)
			}
			b.Run(name, func(b *testing.B) {
				for b.Loop() {
					var before, after runtime.MemStats
					runtime.ReadMemStats(&before)
					served, waits := load(b, batch, callers)
					runtime.ReadMemStats(&after)
					b.ReportMetric(served, "evidence/s")
					b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/float64(len(waits)), "B/request")
					b.ReportMetric(float64(after.Mallocs-before.Mallocs)/float64(len(waits)), "allocs/request")
					b.ReportMetric(float64(waits[len(waits)/2].Milliseconds()), "p50-ms")
					b.ReportMetric(float64(waits[len(waits)*99/100].Milliseconds()), "p99-ms")
				}
			})
		}
	}
}

// load runs callers for a few seconds.
func load(b *testing.B, batch, callers int) (perSecond float64, waits []time.Duration) {
	const duration = 5 * time.Second
	o := sim.DefaultOptions(time.Now())
	o.Latency = 8 * time.Millisecond
	psp := must.Get(sim.New(o))(b, "make a simulator")
	policy := must.Get(appraise.Builtin(appraise.AWSShared))(b, "take a built-in policy")
	policy.RootsPEM = psp.Roots()
	verifier := must.Get(appraise.New(appraise.Config{Policy: policy, Region: o.Region}))(b, "make a verifier")
	w := New(Config{Transport: benchDevice{psp}, Verifier: verifier, Enforce: true, Rate: 1, Burst: 1,
		Log: slog.New(slog.DiscardHandler), Metrics: promtext.New()})
	w.maxBatch = batch
	ctx, stop := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	timed, cancel := context.WithTimeout(ctx, duration)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for caller := range callers {
		wg.Go(func() {
			for n := uint64(0); timed.Err() == nil; n++ {
				began := time.Now()
				// The deadline is not the caller's: it would be refused at once near the end.
				answer := make(chan error, 1)
				go func() {
					doc, _, err := w.Evidence(ctx, claims(uint32(caller), n))
					if err == nil {
						_, _, err = doc.Encode()
					}
					answer <- err
				}()
				select {
				case err := <-answer:
					if err != nil {
						b.Errorf("get evidence: %v", err)
						return
					}
					mu.Lock()
					waits = append(waits, time.Since(began))
					mu.Unlock()
				case <-timed.Done():
					return
				}
			}
		})
	}
	wg.Wait()
	stop()
	must.Do(b, <-done, "run the worker")
	slices.Sort(waits)
	return float64(len(waits)) / duration.Seconds(), waits
}

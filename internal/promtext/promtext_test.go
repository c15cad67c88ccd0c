package promtext_test

import (
	"bytes"
	"math"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"sevagent/internal/must"
	"sevagent/internal/promtext"
	"sevagent/internal/promtext/promtexttest"
)

// TestAsPrometheus: what is written is, to the byte, what Prometheus's own library writes for the same metrics.
func TestAsPrometheus(t *testing.T) {
	const help = `A help with \ and "quotes"` + "\nand a line break."
	odd := []string{"plain", `back\slash`, `"quoted"`, "line\nbreak", "", "Größe", "comma,=", "\xff not UTF-8"}
	values := []float64{0, 1, -1, 0.25, 1e6, 1.5e21, 1e-7, math.Inf(1), math.Inf(-1), 1796094197.02, 123456789}

	ours, theirs := promtext.New(), prometheus.NewRegistry()
	one := prometheus.NewCounter(prometheus.CounterOpts{Name: "one_total", Help: help})
	many := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "many_total", Help: "Many."}, []string{"a", "b"})
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "gauge", Help: "A gauge."})
	gauges := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "gauges", Help: "Gauges."}, []string{"which"})
	empty := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "empty", Help: "None."}, []string{"which"})
	asked := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "asked", Help: "Asked."}, func() float64 { return 7.5 })
	bounds := []float64{.005, .01, 1, 1024, 1e6}
	sizes := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "sizes", Help: "Sizes.", Buckets: bounds})
	theirs.MustRegister(one, many, gauge, gauges, empty, asked, sizes)

	ourOne, ourMany := ours.Counter("one_total", help), ours.Counters("many_total", "Many.", "a", "b")
	ourGauge, ourGauges := ours.Gauge("gauge", "A gauge."), ours.Gauges("gauges", "Gauges.", "which")
	ours.Gauges("empty", "None.", "which")
	ours.GaugeFunc("asked", "Asked.", func() float64 { return 7.5 })
	ourSizes := ours.Histogram("sizes", "Sizes.", bounds...)

	gauge.Set(-2.5)
	ourGauge.Set(-2.5)
	for i, value := range values {
		one.Inc()
		ourOne.Inc()
		sizes.Observe(math.Abs(min(value, 1e9)))
		ourSizes.Observe(math.Abs(min(value, 1e9)))
		label := odd[i%len(odd)]
		if strings.ToValidUTF8(label, "") != label {
			continue // Prometheus's library gives no metrics at all with such a label
		}
		many.WithLabelValues(label, "x").Inc()
		ourMany.With(label, "x").Inc()
		many.WithLabelValues(label, "y").Inc()
		ourMany.With(label, "y").Inc()
		gauges.WithLabelValues(label).Set(value)
		ourGauges.With(label).Set(value)
	}
	for _, label := range []string{"comma,=", "plain"} {
		gauges.DeleteLabelValues(label)
		ourGauges.Drop(label)
		many.DeletePartialMatch(prometheus.Labels{"a": label})
		ourMany.DropFirst(label)
	}

	var got, want bytes.Buffer
	must.Do(t, ours.Write(&got), "write")
	for _, family := range must.Get(theirs.Gather())(t, "gather") {
		must.Get(expfmt.MetricFamilyToText(&want, family))(t, "write %s", family.GetName())
	}
	if diff := cmp.Diff(sorted(want.String()), sorted(got.String())); diff != "" {
		t.Errorf("Prometheus's library (-) and promtext (+):\n%s", diff)
	}
	ourMany.With("\xff", "x").Inc()
	promtexttest.Families(t, ours) // is still parsed
	ourGauges.Reset()
	for _, f := range promtexttest.Families(t, ours) {
		if f.GetName() == "gauges" {
			t.Errorf("after Reset: %v", f)
		}
	}
}

// sorted has the series of each family in the order of their text: the library orders them by value.
func sorted(text string) map[string]int {
	lines := make(map[string]int)
	for line := range strings.Lines(text) {
		lines[line]++
	}
	return lines
}

func TestMistakes(t *testing.T) {
	for name, f := range map[string]func(*promtext.Registry){
		"twice":          func(r *promtext.Registry) { r.Gauge("x", "."); r.Counter("x", ".") },
		"too few labels": func(r *promtext.Registry) { r.Counters("x", ".", "a", "b").With("1") },
		"no bucket":      func(r *promtext.Registry) { r.Histogram("x", ".") },
		"falling":        func(r *promtext.Registry) { r.Histogram("x", ".", 2, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			f(promtext.New())
		})
	}
}

// TestConcurrent is for the race detector.
func TestConcurrent(t *testing.T) {
	r := promtext.New()
	r.Process()
	counters, gauges := r.Counters("a_total", ".", "x"), r.Gauges("b", ".", "x")
	sizes := r.Histogram("c", ".", 1)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 100 {
				counters.With(string(rune('a' + i%3))).Inc()
				gauges.With("x").Set(float64(i))
				gauges.Reset()
				sizes.Observe(float64(i))
				if i%10 == 0 {
					must.Do(t, r.Write(new(bytes.Buffer)), "write")
				}
			}
		})
	}
	wg.Wait()
	sum := 0.0
	for _, f := range promtexttest.Families(t, r) {
		for _, m := range f.GetMetric() {
			if f.GetName() == "a_total" {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	if sum != 800 {
		t.Errorf("counted %v, want 800", sum)
	}
}

// TestProcess: the process's own metrics are well formed, and none of what Linux always shows is missing.
func TestProcess(t *testing.T) {
	r := promtext.New()
	r.Process()
	promtexttest.Lint(t, r)
	for _, f := range promtexttest.Families(t, r) {
		value := f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
		if value <= 0 && f.GetName() != "process_cpu_seconds_total" && f.GetName() != "go_memstats_last_gc_time_seconds" &&
			f.GetName() != "go_memstats_heap_released_bytes" {
			t.Errorf("%s is %v", f.GetName(), value)
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	r := promtext.New()
	r.Process()
	counters := r.Counters("sevagent_x_total", "Counters.", "which")
	for i := range 60 { // about as many series as the agent has
		counters.With(string(rune('a' + i))).Inc()
	}
	sizes := r.Histogram("sevagent_sizes", "Sizes.", 1, 2, 3, 4, 5, 6, 7, 8)
	sizes.Observe(3)
	b.ReportAllocs()
	for b.Loop() {
		must.Do(b, r.Write(new(bytes.Buffer)), "write")
	}
}

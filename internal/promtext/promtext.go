// Package promtext keeps metrics and writes them in Prometheus's text format, version 0.0.4. It is the part of
// Prometheus's client library that the agent needs, without the protocol buffers that it links.
//
// A metric is made by a Registry, once; from then on any goroutine may change it. Its name, labels and help are the
// caller's constants: a mistake in them panics.
package promtext

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// ContentType is that of what Write writes.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// Registry has the metrics of a process.
type Registry struct {
	mu       sync.Mutex
	families map[string]*family // by name
	before   []func()           // called before each Write
}

// New returns an empty Registry.
func New() *Registry { return &Registry{families: make(map[string]*family)} }

// family is one metric with all its series.
type family struct {
	name, help, kind string
	labels           []string
	buckets          []float64 // of a histogram

	mu     sync.Mutex
	series map[string]any // by labels as they are written: *Counter, *Gauge, *Histogram or func() float64
}

func (r *Registry) add(name, help, kind string, labels ...string) *family {
	f := &family{name: name, help: help, kind: kind, labels: labels, series: make(map[string]any)}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.families[name] != nil {
		panic("promtext: there are two metrics " + name)
	}
	r.families[name] = f
	return f
}

// with returns a series of f, and makes it if there is none.
func with[M any](f *family, values []string, start func() *M) *M {
	key := f.key(values)
	f.mu.Lock()
	defer f.mu.Unlock()
	m, ok := f.series[key].(*M)
	if !ok {
		m = start()
		f.series[key] = m
	}
	return m
}

// key is how the labels are written.
func (f *family) key(values []string) string {
	if len(values) != len(f.labels) {
		panic(fmt.Sprintf("promtext: %s has the labels %q, and not one each for %q", f.name, f.labels, values))
	}
	var b strings.Builder
	for i, label := range f.labels {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(label)
		b.WriteString(`="`)
		valueEscapes.WriteString(&b, strings.ToValidUTF8(values[i], "\uFFFD"))
		b.WriteByte('"')
	}
	return b.String()
}

var (
	valueEscapes = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
	helpEscapes  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
)

func (f *family) forget(values []string) {
	key := f.key(values)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.series, key)
}

// Counter counts events.
type Counter struct{ n atomic.Uint64 }

// Inc counts one.
func (c *Counter) Inc() { c.n.Add(1) }

// Counters are counters that differ in their labels.
type Counters struct{ f *family }

// Counter makes a counter.
func (r *Registry) Counter(name, help string) *Counter { return r.Counters(name, help).With() }

// Counters makes counters with these labels, none at first.
func (r *Registry) Counters(name, help string, labels ...string) *Counters {
	return &Counters{r.add(name, help, "counter", labels...)}
}

// With returns the counter with these values of the labels.
func (c *Counters) With(values ...string) *Counter {
	return with(c.f, values, func() *Counter { return new(Counter) })
}

// DropFirst removes all counters whose first label has this value.
func (c *Counters) DropFirst(value string) {
	first := &family{labels: c.f.labels[:1]}
	prefix := first.key([]string{value})
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	maps.DeleteFunc(c.f.series, func(key string, _ any) bool {
		return key == prefix || strings.HasPrefix(key, prefix+",")
	})
}

// Gauge is a value that goes up and down.
type Gauge struct{ bits atomic.Uint64 }

// Set sets the value.
func (g *Gauge) Set(value float64) { g.bits.Store(math.Float64bits(value)) }

// Gauges are gauges that differ in their labels.
type Gauges struct{ f *family }

// Gauge makes a gauge.
func (r *Registry) Gauge(name, help string) *Gauge { return r.Gauges(name, help).With() }

// Gauges makes gauges with these labels, none at first.
func (r *Registry) Gauges(name, help string, labels ...string) *Gauges {
	return &Gauges{r.add(name, help, "gauge", labels...)}
}

// With returns the gauge with these values of the labels.
func (g *Gauges) With(values ...string) *Gauge {
	return with(g.f, values, func() *Gauge { return new(Gauge) })
}

// Drop removes the gauge with these values of the labels.
func (g *Gauges) Drop(values ...string) { g.f.forget(values) }

// Reset removes all gauges.
func (g *Gauges) Reset() {
	g.f.mu.Lock()
	defer g.f.mu.Unlock()
	clear(g.f.series)
}

// GaugeFunc makes a gauge whose value is asked for.
func (r *Registry) GaugeFunc(name, help string, value func() float64) {
	r.add(name, help, "gauge").series[""] = value
}

// Histogram counts values by size.
type Histogram struct {
	bounds []float64 // rising; the last bucket has none

	mu     sync.Mutex
	counts []uint64 // one more than bounds
	sum    float64
}

// Histogram makes a histogram with these upper bounds of its buckets.
func (r *Registry) Histogram(name, help string, bounds ...float64) *Histogram {
	if !slices.IsSorted(bounds) || len(bounds) == 0 {
		panic("promtext: the buckets of " + name + " do not rise")
	}
	h := &Histogram{bounds: bounds, counts: make([]uint64, len(bounds)+1)}
	r.add(name, help, "histogram").series[""] = h
	return h
}

// Observe counts a value.
func (h *Histogram) Observe(value float64) {
	i, _ := slices.BinarySearch(h.bounds, value) // the first that is not below it
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counts[i]++
	h.sum += value
}

// Write writes all metrics, by name and labels.
func (r *Registry) Write(w io.Writer) error {
	r.mu.Lock()
	for _, f := range r.before {
		f()
	}
	families := slices.SortedFunc(maps.Values(r.families), func(a, b *family) int {
		return strings.Compare(a.name, b.name)
	})
	r.mu.Unlock()
	var text []byte
	for _, f := range families {
		text = f.appendTo(text)
	}
	_, err := w.Write(text)
	return err
}

func (f *family) appendTo(text []byte) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.series) == 0 {
		return text
	}
	text = append(text, "# HELP "+f.name+" "+helpEscapes.Replace(f.help)+"\n# TYPE "+f.name+" "+f.kind+"\n"...)
	for _, labels := range slices.Sorted(maps.Keys(f.series)) {
		switch m := f.series[labels].(type) {
		case *Counter:
			text = appendSample(text, f.name, labels, float64(m.n.Load()))
		case *Gauge:
			text = appendSample(text, f.name, labels, math.Float64frombits(m.bits.Load()))
		case func() float64:
			text = appendSample(text, f.name, labels, m())
		case *Histogram:
			text = m.appendTo(text, f.name)
		}
	}
	return text
}

func (h *Histogram) appendTo(text []byte, name string) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	count := uint64(0)
	for i, n := range h.counts {
		bound := math.Inf(1)
		if i < len(h.bounds) {
			bound = h.bounds[i]
		}
		count += n
		text = appendSample(text, name+"_bucket", `le="`+string(appendFloat(nil, bound))+`"`, float64(count))
	}
	text = appendSample(text, name+"_sum", "", h.sum)
	return appendSample(text, name+"_count", "", float64(count))
}

func appendSample(text []byte, name, labels string, value float64) []byte {
	text = append(text, name...)
	if labels != "" {
		text = append(text, '{')
		text = append(text, labels...)
		text = append(text, '}')
	}
	return append(appendFloat(append(text, ' '), value), '\n')
}

func appendFloat(text []byte, value float64) []byte {
	switch {
	case math.IsInf(value, 1):
		return append(text, "+Inf"...)
	case math.IsInf(value, -1):
		return append(text, "-Inf"...)
	}
	return strconv.AppendFloat(text, value, 'g', -1, 64)
}

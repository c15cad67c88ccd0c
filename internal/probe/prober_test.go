package probe

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"sevagent/client"
	"sevagent/internal/must"
	"sevagent/internal/promtext"
	"sevagent/internal/promtext/promtexttest"
)

// network replaces the real one, which synctest cannot wait for. It records every dial, and does what is set for the
// address; at all others nothing listens.
type network struct {
	mu      sync.Mutex
	dials   map[string][]time.Time
	do      map[string]func(context.Context) (net.Conn, error)
	running int
	most    int // at once
}

func (n *network) dial(ctx context.Context, _, address string) (net.Conn, error) {
	n.mu.Lock()
	n.dials[address] = append(n.dials[address], time.Now())
	do := n.do[address]
	n.running++
	n.most = max(n.most, n.running)
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		n.running--
		n.mu.Unlock()
	}()
	if do == nil {
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	}
	return do(ctx)
}

func (n *network) on(address string, do func(context.Context) (net.Conn, error)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.do[address] = do
}

// take returns the dials since the last call.
func (n *network) take() map[string][]time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	dials := n.dials
	n.dials = make(map[string][]time.Time)
	return dials
}

// count returns how many dials are under way, and how many were at most.
func (n *network) count() (running, most int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.running, n.most
}

func hang(ctx context.Context) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// mutual returns a dial function that reaches a good server.
func mutual(k pki) func(context.Context) (net.Conn, error) {
	config := k.server()
	return func(context.Context) (net.Conn, error) {
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			s := tls.Server(server, config)
			s.Handshake()
			io.Copy(io.Discard, s)
		}()
		return client, nil
	}
}

// node is a running Prober inside a synctest bubble.
type node struct {
	*Prober
	*network
	metrics *promtext.Registry
	log     *bytes.Buffer // to be read when the bubble is idle
	stop    func()
}

// start runs a Prober over a network of its own. Its Material is what material returns at each call.
func start(t *testing.T, material func() (*tls.Certificate, *x509.CertPool, error), s Settings) *node {
	n := &node{
		network: &network{dials: make(map[string][]time.Time),
			do: make(map[string]func(context.Context) (net.Conn, error))},
		metrics: promtext.New(),
		log:     new(bytes.Buffer),
	}
	n.Prober = New(Config{Material: material, Settings: s, Registerer: n.metrics,
		Log: slog.New(slog.NewTextHandler(io.MultiWriter(n.log, t.Output()), nil))})
	n.Prober.dial = n.network.dial
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return n
}

// series returns the values of a metric by endpoint, and by result where it has one.
func (n *node) series(t *testing.T, name string) map[string]float64 {
	t.Helper()
	list := make(map[string]float64)
	for _, f := range promtexttest.Families(t, n.metrics) {
		if f.GetName() != "sevagent_mtls_probe_"+name {
			continue
		}
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			list[strings.Join(labels, " ")] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return list
}

func (n *node) result(endpoint string) client.Endpoint {
	list := n.Status()
	return list[slices.IndexFunc(list, func(r client.Endpoint) bool { return r.Endpoint == endpoint })]
}

func names(n int) []string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("10.0.0.%d:443", i+1))
	}
	return list
}

// gaps returns the shortest and the longest time between two.
func gaps(times []time.Time) (shortest, longest time.Duration) {
	shortest = time.Duration(1<<63 - 1)
	for i := range len(times) - 1 {
		d := times[i+1].Sub(times[i])
		shortest, longest = min(shortest, d), max(longest, d)
	}
	return shortest, longest
}

func TestSchedule(t *testing.T) {
	k := newPKI(t)
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		n := start(t, k.material(k.ca), Settings{names(6), time.Minute})
		defer n.stop()
		for _, r := range n.Status() {
			if r.Result != client.ProbePending || r.OK() || !r.Since.IsZero() {
				t.Errorf("before the first probe: %+v", r)
			}
		}
		time.Sleep(time.Minute)
		var first []time.Time
		for name, times := range n.take() {
			first = append(first, times[0])
			if times[0].Sub(begin) >= time.Minute {
				t.Errorf("%s was first probed after %v", name, times[0].Sub(begin))
			}
		}
		slices.SortFunc(first, time.Time.Compare)
		if shortest, longest := gaps(first); len(first) != 6 || shortest < 10*time.Second-time.Microsecond ||
			longest > 10*time.Second+time.Microsecond {
			t.Errorf("%d first probes, from %v to %v apart, want 6, 10s apart", len(first), shortest, longest)
		}
		time.Sleep(5 * time.Hour)
		for name, times := range n.take() {
			shortest, longest := gaps(times)
			if shortest < 48*time.Second || longest > 72*time.Second || longest-shortest < 20*time.Second {
				t.Errorf("%s was probed every %v to %v, want 48s to 72s", name, shortest, longest)
			}
			if got := len(times); got < 270 || got > 330 {
				t.Errorf("%s was probed %d times in 5 hours", name, got)
			}
		}
		if r := n.Status()[5]; r.Result != client.ProbeRefused ||
			r.Failures < 270 || r.Since.Sub(begin) >= time.Minute ||
			time.Since(r.LastProbe) > 72*time.Second {
			t.Errorf("after five hours: %+v, want one long refusal", r)
		}
	})
}

// TestHanging: endpoints that never answer take 5 s each, four at a time, and the others are probed in between.
func TestHanging(t *testing.T) {
	k := newPKI(t)
	synctest.Test(t, func(t *testing.T) {
		n := start(t, k.material(k.ca), Settings{names(20), time.Minute})
		for _, name := range names(19) {
			n.on(name, hang)
		}
		time.Sleep(time.Hour)
		dials := n.take()
		for _, name := range names(20) {
			// 19 turns of 5 s are a load of 95/240; the worst that can be ahead of one is a queue of all the others.
			if shortest, longest := gaps(dials[name]); shortest < 48*time.Second ||
				longest > 72*time.Second+19*timeout/4+timeout {
				t.Errorf("%s was probed every %v to %v", name, shortest, longest)
			}
		}
		if _, most := n.count(); most != maxRunning {
			t.Errorf("%d probes at once, want %d", most, maxRunning)
		}
		if r := n.Status()[0]; r.Result != client.ProbeTimeout || r.Reachable {
			t.Errorf("an endpoint that hangs: %+v, want an unreachable one that timed out", r)
		}

		// More than there is time for: at most four at once, and each endpoint is probed.
		n.Apply(Settings{names(20), 5 * time.Second})
		n.take()
		time.Sleep(time.Hour)
		for name, times := range n.take() {
			if _, longest := gaps(times); longest > 40*time.Second {
				t.Errorf("%s had to wait for %v, want at most 40s", name, longest)
			}
		}
		if _, most := n.count(); most != maxRunning {
			t.Errorf("%d probes at once, want %d", most, maxRunning)
		}
		n.stop() // with four under way
		if running, _ := n.count(); running != 0 {
			t.Errorf("%d probes outlive Run", running)
		}
	})
}

func TestApply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newPKI(t)
		n := start(t, k.material(k.ca), Settings{})
		defer n.stop()
		n.on("127.0.0.1:1", mutual(k))
		time.Sleep(time.Hour)
		if text := must.Get(json.Marshal(n.Status()))(t, "encode the status"); string(text) != "[]" {
			t.Errorf("without endpoints: %s", text)
		}

		n.Apply(Settings{[]string{"127.0.0.1:1", "gone:1", "hangs:1", "gone:1"}, time.Hour})
		n.on("hangs:1", hang)
		time.Sleep(2 * time.Hour)
		stays := n.result("127.0.0.1:1")
		if len(n.Status()) != 3 || !stays.OK() || n.result("gone:1").Result != client.ProbeRefused {
			t.Fatalf("status %+v, want three endpoints, one ok and one refused", n.Status())
		}
		for _, name := range []string{"success", "attempts_total"} {
			if s := n.series(t, name); len(s) != 3 {
				t.Errorf("%s: %v", name, s)
			}
		}

		// A shorter interval applies to endpoints that stay, but not at once to all.
		n.take()
		n.Apply(Settings{[]string{"new:1", "127.0.0.1:1"}, 10 * time.Second})
		synctest.Wait()
		if got := []string{n.Status()[0].Endpoint, n.Status()[1].Endpoint}; !slices.Equal(got,
			[]string{"new:1", "127.0.0.1:1"}) {
			t.Errorf("in the order of the settings: %v", got)
		}
		if diff := cmp.Diff(stays, n.result("127.0.0.1:1")); diff != "" {
			t.Errorf("what is known of an endpoint that stays (-before +after):\n%s", diff)
		}
		for _, name := range []string{"success", "attempts_total"} {
			if s := n.series(t, name); len(s) != 1 {
				t.Errorf("%s, with the others dropped: %v", name, s)
			}
		}
		applied := time.Now()
		time.Sleep(10 * time.Minute)
		dials := n.take()
		if len(dials) != 2 {
			t.Errorf("dials after endpoints were dropped: %v", dials)
		}
		for name, times := range dials {
			if shortest, longest := gaps(times); times[0].Sub(applied) >= 10*time.Second || shortest < 8*time.Second ||
				longest > 12*time.Second {
				t.Errorf("%s was probed after %v, and then every %v to %v, want 8s to 12s",
					name, times[0].Sub(applied), shortest,
					longest)
			}
		}
		if r := n.result("127.0.0.1:1"); !r.Since.Equal(stays.Since) || r.Failures != 0 {
			t.Errorf("after a shorter interval: %+v, want the same success as before", r)
		}

		// So does a longer one.
		n.Apply(Settings{[]string{"127.0.0.1:1"}, time.Hour})
		synctest.Wait()
		last := n.result("127.0.0.1:1").LastProbe
		n.take()
		time.Sleep(2 * time.Hour)
		if times := n.take()["127.0.0.1:1"]; times[0].Sub(last) < 48*time.Minute ||
			times[0].Sub(last) > 72*time.Minute {
			t.Errorf("probed after %v, want 48m to 72m", times[0].Sub(last))
		}

		// An endpoint dropped during a probe leaves nothing behind.
		n.Apply(Settings{[]string{"hangs:1"}, time.Second})
		for len(n.take()["hangs:1"]) == 0 {
			time.Sleep(time.Second / 2)
		}
		n.Apply(Settings{nil, time.Second})
		time.Sleep(time.Minute)
		if s := n.series(t, "success"); len(s) != 0 || len(n.Status()) != 0 {
			t.Errorf("left behind: series %v, status %v", s, n.Status())
		}
	})
}

func TestHint(t *testing.T) {
	k := newPKI(t)
	synctest.Test(t, func(t *testing.T) {
		n := start(t, k.material(k.ca), Settings{names(8), 24 * time.Hour})
		defer n.stop()
		time.Sleep(24 * time.Hour)
		n.take()
		time.Sleep(time.Minute)
		n.take()

		for range 100 {
			n.Hint()
		}
		begin := time.Now()
		time.Sleep(11 * time.Second)
		var all []time.Time
		for name, times := range n.take() {
			if len(times) != 1 {
				t.Errorf("%s was probed %d times after hints", name, len(times))
			}
			all = append(all, times...)
		}
		slices.SortFunc(all, time.Time.Compare)
		if shortest, _ := gaps(all); len(all) != 8 || all[7].Sub(begin) > 10*time.Second ||
			shortest < hintSpread/8-time.Microsecond {
			t.Errorf("hinted probes: %v", all)
		}
		time.Sleep(18 * time.Hour)
		if dials := n.take(); len(dials) != 0 {
			t.Errorf("regular probes too soon after those hinted at: %v", dials)
		}

		// Constant hints give no more than a probe every few seconds.
		for range 600 {
			n.Hint()
			time.Sleep(100 * time.Millisecond)
		}
		for name, times := range n.take() {
			if shortest, longest := gaps(times); shortest < hintSpread || longest > 2*hintSpread {
				t.Errorf("%s was probed every %v to %v", name, shortest, longest)
			}
		}
	})
}

// TestHintDuringProbe: a probe that began with the old certificates does not count for the new ones.
func TestHintDuringProbe(t *testing.T) {
	k := newPKI(t)
	synctest.Test(t, func(t *testing.T) {
		n := start(t, k.material(k.ca), Settings{names(1), time.Hour})
		defer n.stop()
		n.on(names(1)[0], hang)
		for len(n.take()) == 0 {
			time.Sleep(time.Second)
		}
		n.Hint()
		time.Sleep(2 * hintSpread)
		if dials := n.take(); len(dials[names(1)[0]]) != 1 {
			t.Errorf("after a hint during a probe: %v", dials)
		}
	})
}

// TestLife: nothing is published, then something is; the endpoint fails, in one way and in another, and comes back.
func TestLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newPKI(t)
		var mu sync.Mutex
		material := func() (*tls.Certificate, *x509.CertPool, error) { return nil, nil, errors.New("nothing is there") }
		const endpoint = "127.0.0.1:443"
		n := start(t, func() (*tls.Certificate, *x509.CertPool, error) {
			mu.Lock()
			defer mu.Unlock()
			return material()
		}, Settings{[]string{endpoint}, time.Minute})
		defer n.stop()

		time.Sleep(time.Hour)
		r := n.result(endpoint)
		if r.Result != client.ProbeNoMaterial || r.Reason != "nothing is there" ||
			r.Failures == 0 || len(n.take()) != 0 ||
			n.log.Len() != 0 {
			t.Errorf("with nothing published: %+v, log %q", r, n.log)
		}

		n.on(endpoint, mutual(k))
		mu.Lock()
		material = k.material(k.ca)
		mu.Unlock()
		published := time.Now()
		n.Hint()
		time.Sleep(2 * hintSpread)
		good := n.result(endpoint)
		if !good.OK() || good.Failures != 0 || good.Since.Before(published) || good.LastSuccess.Before(good.Since) ||
			n.log.Len() != 0 {
			t.Errorf("with certificates: %+v, log %q", good, n.log)
		}

		time.Sleep(time.Hour)
		if r := n.result(endpoint); !r.OK() || !r.Since.Equal(good.Since) ||
			time.Since(r.LastSuccess) > 72*time.Second {
			t.Errorf("an hour later: %+v", r)
		}
		n.on(endpoint, nil)
		time.Sleep(time.Hour)
		n.on(endpoint, hang)
		time.Sleep(time.Hour)
		r = n.result(endpoint)
		if r.Result != client.ProbeTimeout || r.Failures < 90 || time.Since(r.Since) > time.Hour ||
			time.Since(r.LastSuccess) < 2*time.Hour || r.Server != nil {
			t.Errorf("after two kinds of failures: %+v", r)
		}
		if got, want := n.series(t, "success"), map[string]float64{endpoint: 0}; !cmp.Equal(got, want) {
			t.Errorf("success: %v, want %v", got, want)
		}
		n.on(endpoint, mutual(k))
		time.Sleep(time.Hour)
		if lines := strings.Split(strings.TrimSpace(n.log.String()), "\n"); len(lines) != 2 ||
			!strings.Contains(lines[0], "level=WARN") || !strings.Contains(lines[0], "result=refused") {
			t.Errorf("log, want the first failure and the recovery:\n%s", n.log)
		}

		r = n.result(endpoint)
		for name, want := range map[string]float64{
			"success":                            1,
			"last_success_timestamp_seconds":     float64(r.LastSuccess.UnixMilli()) / 1000,
			"server_not_after_timestamp_seconds": float64(r.Server.NotAfter.Unix()),
		} {
			if got := n.series(t, name)[endpoint]; got != want {
				t.Errorf("%s is %v, want %v", name, got, want)
			}
		}
		attempts := n.series(t, "attempts_total")
		for _, code := range []client.ProbeResult{client.ProbeOK, client.ProbeNoMaterial, client.ProbeRefused,
			client.ProbeTimeout} {
			if attempts[endpoint+" "+string(code)] < 40 {
				t.Errorf("attempts: %v, want some of %s", attempts, code)
			}
		}
		promtexttest.Lint(t, n.metrics)
	})
}

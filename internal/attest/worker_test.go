package attest

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sevagent/internal/appraise"
	"sevagent/internal/evidence"
	"sevagent/internal/must"
	"sevagent/internal/promtext"
	"sevagent/internal/snp"
)

// fakeDevice is a transport that answers with unsigned reports: enough where appraisal is not the point.
type fakeDevice struct {
	took    time.Duration
	err     error
	spoil   bool // answer with other REPORT_DATA than was asked for
	mu      sync.Mutex
	asked   []time.Time
	running atomic.Int32
}

func (d *fakeDevice) Report(reportData [snp.ReportDataSize]byte) (Quote, error) {
	if d.running.Add(1) > 1 {
		panic("two device requests at a time")
	}
	defer d.running.Add(-1)
	d.mu.Lock()
	d.asked = append(d.asked, time.Now())
	d.mu.Unlock()
	time.Sleep(d.took)
	if d.err != nil {
		return Quote{}, d.err
	}
	raw := make([]byte, snp.ReportSize)
	binary.LittleEndian.PutUint32(raw, snp.MaxKnownVersion)
	if d.spoil {
		reportData[0] ^= 1
	}
	copy(raw[0x50:], reportData[:])
	return Quote{Report: raw}, nil
}

func (d *fakeDevice) Name() string { return "fake" }
func (d *fakeDevice) Close() error { return nil }

func newWorker(t *testing.T, d Transport, rate float64, burst int) *Worker {
	t.Helper()
	policy := must.Get(appraise.Builtin(appraise.AWSShared))(t, "take a built-in policy")
	verifier := must.Get(appraise.New(appraise.Config{Policy: policy}))(t, "make a verifier")
	return New(Config{Transport: d, Verifier: verifier, Rate: rate, Burst: burst,
		Log: slog.New(slog.DiscardHandler), Metrics: promtext.New()})
}

// run runs the worker until the test ends.
func run(t *testing.T, w *Worker) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

func claims(uid uint32, n uint64) evidence.Claims {
	nonce := make([]byte, 16)
	binary.BigEndian.PutUint64(nonce, n)
	return evidence.Claims{Purpose: evidence.PurposeClient, Nonce: nonce, Caller: evidence.HostCaller(uid)}
}

func TestLoneRequestIsServedAtOnceAsTheRoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDevice{took: 8 * time.Millisecond}
		w := newWorker(t, d, 1, 1)
		run(t, w)
		began := time.Now()
		doc, _, err := w.Evidence(t.Context(), claims(1, 1))
		must.Do(t, err, "get evidence")
		if took := time.Since(began); took != d.took {
			t.Errorf("took %v, the device %v", took, d.took)
		}
		if len(doc.Batch.Path) != 0 || doc.Batch.Index != 0 {
			t.Errorf("batch = %+v, want a tree of one leaf", doc.Batch)
		}
	})
}

func TestRequestsThatWaitTogetherShareAReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDevice{took: 8 * time.Millisecond}
		w := newWorker(t, d, 1, 1)
		run(t, w)
		const callers = 1000
		var wg sync.WaitGroup
		docs := make([]*evidence.Document, callers)
		for i := range docs {
			wg.Go(func() {
				doc, _, err := w.Evidence(t.Context(), claims(uint32(i%7), uint64(i)))
				if err != nil {
					t.Errorf("caller %d: %v", i, err)
					return
				}
				docs[i] = doc
			})
		}
		wg.Wait()
		// The first may have gone alone; the rest shares one report a second later.
		if n := len(d.asked); n > 2 {
			t.Errorf("%d device requests for %d callers", n, callers)
		}
		for i, doc := range docs {
			if doc == nil {
				continue
			}
			report := must.Get(snp.ParseReport(doc.Report))(t, "parse a report")
			root, err := doc.Root()
			if err != nil || root != report.ReportData {
				t.Fatalf("caller %d: the inclusion path leads to %x, the report has %x (err %v)",
					i, root[:4], report.ReportData[:4], err)
			}
			if doc.Claims().Leaf() != claims(uint32(i%7), uint64(i)).Leaf() {
				t.Fatalf("caller %d got another's evidence", i)
			}
		}
	})
}

func TestDeviceIsAskedNoFasterThanTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDevice{}
		w := newWorker(t, d, 1, 4)
		run(t, w)
		for i := range 8 {
			_, _, err := w.Evidence(t.Context(), claims(1, uint64(i)))
			must.Do(t, err, "get evidence %d", i)
		}
		if took := d.asked[7].Sub(d.asked[0]); took < 4*time.Second {
			t.Errorf("8 requests within %v, want at least 4 s at rate 1/s and burst 4", took)
		}
	})
}

func TestFairness(t *testing.T) {
	q := newQueue(100)
	add := func(uid uint32, n int) {
		for i := range n {
			must.Do(t, q.add(&request{ctx: t.Context(), claims: claims(uid, uint64(i))}), "add a request")
		}
	}
	add(1, 50)
	add(2, 1)
	batch := q.take(4)
	var callers []uint32
	for _, r := range batch {
		callers = append(callers, *r.claims.Caller.UID)
	}
	if len(callers) != 4 || callers[1] != 2 {
		t.Errorf("the next batch serves callers %v, want caller 2 in it", callers)
	}
	if err := q.add(&request{ctx: t.Context(), claims: claims(2, 9)}); err != nil {
		t.Errorf("caller 2 is refused although only caller 1 has many waiting: %v", err)
	}
}

// TestOneTurnForAContainer: root in a container may ask as any user, and that must gain it nothing, neither turns nor
// places in the queue.
func TestOneTurnForAContainer(t *testing.T) {
	task := "arn:aws:ecs:us-east-2:123456789012:task/prod/0123456789abcdef0123456789abcdef"
	greedy, other := strings.Repeat("a", 64), strings.Repeat("b", 64)
	for name, c := range map[string]struct {
		flood func(i int) evidence.Caller
		other evidence.Caller
		same  bool // the other takes the turn of the flood
	}{
		"users of a container": {
			func(i int) evidence.Caller { return evidence.ContainerCaller(uint32(i), greedy, "") },
			evidence.ContainerCaller(0, other, ""), false},
		"a container whose task is known at times": {
			func(i int) evidence.Caller { return evidence.ContainerCaller(0, greedy, []string{"", task}[i%2]) },
			evidence.ContainerCaller(0, other, task), false},
		"against root of the host": {
			func(i int) evidence.Caller { return evidence.ContainerCaller(uint32(i), greedy, "") },
			evidence.HostCaller(0), false},
		"a user of the host": {
			func(int) evidence.Caller { return evidence.HostCaller(1000) }, evidence.HostCaller(1001), false},
		"unknown": {
			func(int) evidence.Caller { return evidence.Caller{Kind: evidence.CallerUnknown} },
			evidence.Caller{Kind: evidence.CallerUnknown}, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &fakeDevice{took: time.Second}
				w := newWorker(t, d, 1, 1)
				w.maxBatch = 2
				run(t, w)
				ask := func(caller evidence.Caller, n uint64) {
					c := claims(0, n)
					c.Caller = caller
					w.Evidence(t.Context(), c)
				}
				var flood sync.WaitGroup
				for i := range 20 {
					flood.Go(func() { ask(c.flood(i), uint64(i)) })
					synctest.Wait()
				}
				began := time.Now()
				ask(c.other, 100)
				// The device is busy with the first request; the next batch, another second, has both.
				if took := time.Since(began); took <= 2*time.Second == c.same {
					t.Errorf("the other caller waited %v; it has a turn of its own: %v", took, !c.same)
				}
				flood.Wait()
			})
		})
	}
	q := newQueue(4)
	for uid := range uint32(3) {
		err := q.add(&request{ctx: t.Context(), claims: evidence.Claims{Caller: evidence.ContainerCaller(uid, greedy, "")}})
		if full := errors.Is(err, ErrQueueFull); full != (uid == 2) {
			t.Errorf("request %d of four places, each as another user of one container: err = %v", uid+1, err)
		}
	}
}

func TestQueueIsBounded(t *testing.T) {
	q := newQueue(4)
	for i := range 2 {
		must.Do(t, q.add(&request{ctx: t.Context(), claims: claims(1, uint64(i))}), "add a request")
	}
	if err := q.add(&request{claims: claims(1, 3)}); !errors.Is(err, ErrQueueFull) {
		t.Errorf("one caller's third of four places: err = %v, want ErrQueueFull", err)
	}
	for i := range 2 {
		must.Do(t, q.add(&request{ctx: t.Context(), claims: claims(2, uint64(i))}), "add a request")
	}
	if err := q.add(&request{claims: claims(3, 1)}); !errors.Is(err, ErrQueueFull) {
		t.Errorf("fifth of four places: err = %v, want ErrQueueFull", err)
	}
	if n := len(q.close()); n != 4 {
		t.Errorf("%d requests were waiting, want 4", n)
	}
	if err := q.add(&request{claims: claims(3, 1)}); !errors.Is(err, ErrStopped) {
		t.Errorf("after close: err = %v, want ErrStopped", err)
	}
}

func TestWrongReportDataIsNotPassedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorker(t, &fakeDevice{spoil: true}, 1, 1)
		run(t, w)
		if _, _, err := w.Evidence(t.Context(), claims(1, 1)); !errors.Is(err, ErrReportDataMismatch) {
			t.Errorf("err = %v, want ErrReportDataMismatch", err)
		}
	})
}

func TestCallerMayLeaveWhileTheDeviceWorks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDevice{took: time.Second}
		w := newWorker(t, d, 10, 4)
		run(t, w)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, _, err := w.Evidence(ctx, claims(1, 1)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("err = %v, want the caller's deadline", err)
		}
		if _, _, err := w.Evidence(t.Context(), claims(1, 2)); err != nil {
			t.Errorf("the next caller: %v", err)
		}
	})
}

func TestDeadlineThatCannotBeMetIsRefusedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorker(t, &fakeDevice{}, 0.1, 1)
		run(t, w)
		_, _, err := w.Evidence(t.Context(), claims(1, 1))
		must.Do(t, err, "get evidence")
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		began := time.Now()
		if _, _, err := w.Evidence(ctx, claims(1, 2)); !errors.Is(err, ErrDeadline) {
			t.Errorf("err = %v, want ErrDeadline", err)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("refused only after %v", took)
		}
	})
}

// TestDeviceRestsAfterASlowRequest: a slow answer means that the host throttles, and going on would end in the
// loss of the key.
func TestDeviceRestsAfterASlowRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDevice{took: 4 * time.Second}
		w := newWorker(t, d, 10, 10)
		run(t, w)
		for i := range 2 {
			_, _, err := w.Evidence(t.Context(), claims(1, uint64(i)))
			must.Do(t, err, "get evidence %d", i)
		}
		if pause := d.asked[1].Sub(d.asked[0]) - d.took; pause < restAfterSlow {
			t.Errorf("the device was asked again after %v, want a rest of %v", pause, restAfterSlow)
		}
	})
}

func TestStoppingAnswersThoseWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorker(t, &fakeDevice{}, 0.01, 1)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		_, _, err := w.Evidence(t.Context(), claims(1, 1))
		must.Do(t, err, "get evidence")
		waiting := make(chan error, 1)
		go func() {
			_, _, err := w.Evidence(t.Context(), claims(1, 2))
			waiting <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-waiting; !errors.Is(err, ErrStopped) {
			t.Errorf("err = %v, want ErrStopped", err)
		}
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

func TestDeviceFailureIsKeptWithItsCode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorker(t, &fakeDevice{err: &FirmwareError{Status: 0x27}}, 1, 1)
		run(t, w)
		_, _, err := w.Evidence(t.Context(), claims(1, 1))
		if got := Code(err); got != "firmware_error" {
			t.Errorf("Code(%v) = %q", err, got)
		}
		if w.State().Err == nil {
			t.Error("State does not tell of the failure")
		}
	})
}

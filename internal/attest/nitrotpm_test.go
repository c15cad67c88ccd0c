package attest

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sevagent/internal/evidence"
	"sevagent/internal/must"
	"sevagent/internal/nitro"
	"sevagent/internal/sim/simnitro"
)

// documents is a NitroTPM that signs what it is asked for.
type documents struct {
	ca    *simnitro.CA
	pcrs  map[int][]byte
	err   error
	none  bool
	slow  time.Duration
	other bool // for another report
	asked atomic.Int64
}

// budget is the NitroTPM's own, which it keeps whatever the device does.
const budget = 2 * time.Second

func (d *documents) Document(ctx context.Context, userData, nonce [64]byte) ([]byte, *nitro.Document, error) {
	d.asked.Add(1)
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	select {
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	case <-time.After(d.slow):
	}
	if d.err != nil || d.none {
		return nil, nil, d.err
	}
	if d.other {
		userData[0]++
	}
	text, err := d.ca.Sign(simnitro.Fields{PCRs: d.pcrs, UserData: userData[:], Nonce: nonce[:], Time: time.Now()})
	if err != nil {
		return nil, nil, err
	}
	doc, err := nitro.Verify(text, nitro.Config{Roots: d.ca.Pool(), Now: time.Now()})
	return text, doc, err
}

func nitroWorker(t *testing.T, required bool) (*Worker, *documents) {
	t.Helper()
	ca := must.Get(simnitro.New())(t, "make a root for NitroTPMs")
	d := &documents{ca: ca}
	w := newWorker(t, &fakeDevice{}, 50, 64)
	w.cfg.Second = Second{NitroTPM: d, Required: required}
	run(t, w)
	return w, d
}

// Evidence has a document for its own report, one for each batch.
func TestSecondProof(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := nitroWorker(t, true)
		doc, _, err := w.Evidence(t.Context(), claims(1, 1))
		must.Do(t, err, "get evidence")
		got := must.Get(nitro.Verify(doc.NitroTPM, nitro.Config{Roots: d.ca.Pool(), Now: time.Now()}))(t,
			"verify the document")
		must.Do(t, got.Binds(doc.Report), "compare the document with the report")
		if s := w.SecondState(); s.Err != nil || s.Document.InstanceID != "i-0123456789abcdef0" || d.asked.Load() != 1 {
			t.Errorf("asked %d times; %+v", d.asked.Load(), s)
		}

		d.pcrs = simnitro.PCRs()
		d.pcrs[4][0]++
		_, _, err = w.Evidence(t.Context(), claims(1, 2))
		must.Do(t, err, "get evidence")
		if s := w.SecondState(); len(s.Drift) != 1 || s.Drift[0].What != "pcr4" {
			t.Errorf("another PCR4: %+v", s.Drift)
		}
	})
}

// A NitroTPM that gives nothing, or nothing for this report, is left out, or fails what requires it. It delays nobody
// for longer than its budget, and then it rests.
func TestSecondProofFails(t *testing.T) {
	for name, fail := range map[string]func(*documents){
		"fails":              func(d *documents) { d.err = errors.New("TPM_RC_LOCKOUT") },
		"hangs":              func(d *documents) { d.slow = time.Hour },
		"for another report": func(d *documents) { d.other = true },
	} {
		for _, required := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w, d := nitroWorker(t, required)
					fail(d)
					began := time.Now()
					var doc *evidence.Document
					var err error
					for i := range uint64(5) {
						doc, _, err = w.Evidence(t.Context(), claims(1, i))
					}
					if required {
						if !errors.Is(err, ErrNitroTPM) || Code(err) != "nitrotpm_failed" || Permanent(err) ||
							!strings.Contains(Advice(err), "TpmSupport") {
							t.Errorf("required: %v, %s; %s", err, Code(err), Advice(err))
						}
						return
					}
					if err != nil || doc.NitroTPM != nil || w.SecondState().Err == nil {
						t.Errorf("%v, a document of %d bytes, state %+v", err, len(doc.NitroTPM), w.SecondState())
					}
					if took := time.Since(began); d.asked.Load() != 1 || took > budget+time.Second {
						t.Errorf("asked %d times, and evidence took %v", d.asked.Load(), took)
					}
					time.Sleep(secondRest)
					d.err, d.slow, d.other = nil, 0, false
					if doc, _, err = w.Evidence(t.Context(), claims(1, 9)); err != nil || doc.NitroTPM == nil {
						t.Errorf("after its rest: %v, a document of %d bytes", err, len(doc.NitroTPM))
					}
				})
			})
		}
	}
}

// A node without one is no failure where none is required.
func TestNoSecondProof(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := nitroWorker(t, false)
		d.none = true
		doc, _, err := w.Evidence(t.Context(), claims(1, 1))
		if err != nil || doc.NitroTPM != nil || !w.SecondState().At.IsZero() {
			t.Errorf("%v; %+v", err, w.SecondState())
		}
	})
}

package attest

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"

	"sevagent/client"
	"sevagent/internal/nitro"
)

// NitroTPM gives verified documents of the node's NitroTPM, or nil where the node has none. Document returns within a
// budget of its own, whatever the device does: evidence waits that long.
type NitroTPM interface {
	Document(ctx context.Context, userData, nonce [64]byte) ([]byte, *nitro.Document, error)
}

// Second is the proof beside the report.
type Second struct {
	// NitroTPM is where it comes from. Nil: there is none.
	NitroTPM NitroTPM
	// Required refuses evidence without it.
	Required bool
}

// secondRest is how long a NitroTPM that has failed is left alone, unless it is required.
const secondRest = time.Minute

// SecondState is what the last document showed. It does not change.
type SecondState struct {
	// At is when the NitroTPM last answered or failed; zero: it was not asked.
	At time.Time
	// Err is why the last request gave nothing; nil: it gave a document.
	Err error
	// Document is the last one that was genuine and for the report, kept over later failures.
	Document *nitro.Document
	// Drift has the registers that differ from those of the first document.
	Drift []client.Drift
}

// second returns a document of the NitroTPM that commits to a report, nil if there is none.
func (w *Worker) second(report []byte) ([]byte, error) {
	s := w.cfg.Second
	last := w.secondState.Load()
	if s.NitroTPM == nil || !s.Required && last.Err != nil && time.Since(last.At) < secondRest {
		return nil, nil
	}
	userData, nonce := nitro.Binding(report)
	began := time.Now()
	text, doc, err := s.NitroTPM.Document(context.Background(), userData, nonce)
	if text == nil && err == nil {
		return nil, nil
	}
	w.metrics.second.Observe(time.Since(began).Seconds())
	if err == nil {
		err = doc.Binds(report)
	}
	w.noteSecond(doc, err)
	switch {
	case err == nil:
		return text, nil
	case s.Required:
		return nil, fmt.Errorf("%w: %w", ErrNitroTPM, err)
	}
	return nil, nil
}

// noteSecond keeps the outcome for SecondState, and logs a failure when it begins and when it ends.
func (w *Worker) noteSecond(doc *nitro.Document, err error) {
	last := w.secondState.Load()
	next := SecondState{At: time.Now(), Err: err, Document: last.Document, Drift: last.Drift}
	switch {
	case err != nil && last.Err == nil:
		w.cfg.Log.Warn("no document of the NitroTPM for evidence", "required", w.cfg.Second.Required, "err", err)
	case err == nil && last.Err != nil:
		w.cfg.Log.Info("evidence has documents of the NitroTPM again")
	}
	if err == nil {
		if w.booted == nil {
			w.booted = doc
		}
		next.Document, next.Drift = doc, bootDrift(w.booted, doc, next.At)
		if len(next.Drift) > 0 && len(last.Drift) == 0 {
			w.cfg.Log.Error("what the node was booted from has changed while it runs", "drift", next.Drift)
		}
	}
	w.secondState.Store(&next)
}

// bootRegisters say what an instance was booted from; they keep their values until the next boot.
var bootRegisters = []int{4, 7, 12}

// bootDrift returns the registers of the boot that differ between two documents.
func bootDrift(first, now *nitro.Document, at time.Time) (list []client.Drift) {
	for _, i := range bootRegisters {
		text := func(d *nitro.Document) string {
			if value, ok := d.PCRs[i]; ok {
				return hex.EncodeToString(value[:])
			}
			return "none"
		}
		if from, to := text(first), text(now); from != to {
			list = append(list, client.Drift{At: at, What: fmt.Sprintf("pcr%d", i), From: from, To: to})
		}
	}
	return list
}

// SecondState returns what the last document of the NitroTPM showed.
func (w *Worker) SecondState() *SecondState { return w.secondState.Load() }

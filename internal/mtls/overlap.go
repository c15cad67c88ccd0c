package mtls

import (
	"crypto/x509"
	"slices"
	"time"
)

// carried is an anchor that ca.crt holds although the secret does not any more: peers whose certificates it has issued
// have not all got new ones yet. It is bounded, and asked for, since after the loss of a CA's key that CA has to go at
// once.
type carried struct {
	cert  *x509.Certificate
	Until time.Time
}

// carry returns the anchors of what is published that bundles no longer have and that are to stay for a while.
func (r *Rotator) carry(bundles []*bundle, now time.Time) []carried {
	g := r.main().current
	overlap := r.settings.CAOverlap
	if g == nil || overlap <= 0 {
		return nil
	}
	next := anchors(bundles)
	if next == nil || slices.ContainsFunc(bundles, func(b *bundle) bool { return b.noOverlap }) {
		return nil
	}
	var list []carried
	keep := func(c *x509.Certificate, until time.Time) {
		same := func(o carried) bool { return o.cert.Equal(c) }
		if now.Before(until) && now.Before(c.NotAfter) && !slices.ContainsFunc(next, c.Equal) && !slices.ContainsFunc(list, same) {
			list = append(list, carried{c, until})
		}
	}
	for _, c := range anchors(g.bundles) {
		id := contentID(c.Raw)
		if slices.ContainsFunc(next, c.Equal) {
			delete(r.leaving, id)
			continue
		}
		// From when it was first missed, also if nothing can be published meanwhile.
		if _, known := r.leaving[id]; !known {
			r.leaving[id] = now.Add(overlap)
		}
		keep(c, earlier(r.leaving[id], now.Add(overlap)))
	}
	for _, c := range g.set.carried {
		keep(c.cert, earlier(c.Until, now.Add(overlap)))
	}
	return list
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func anchors(bundles []*bundle) []*x509.Certificate {
	for _, b := range bundles {
		if p := b.fields[caCert]; p != nil {
			return p.certs
		}
	}
	return nil
}

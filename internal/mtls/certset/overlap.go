package certset

import (
	"crypto/x509"
	"slices"
	"time"
)

// Overlap decides which anchors stay in ca.crt for a while after their secret has dropped them. The zero Overlap is
// ready to use.
type Overlap struct {
	until map[string]time.Time // when a dropped anchor goes, by the digest of the certificate
}

// Carry returns the anchors of the published set that next no longer has and that are to stay, for at most length after
// they were first missed.
func (o *Overlap) Carry(published *Set, next []*Bundle, length time.Duration, now time.Time) []Carried {
	if published == nil || length <= 0 {
		return nil
	}
	kept := anchors(next)
	if kept == nil || slices.ContainsFunc(next, func(b *Bundle) bool { return b.noOverlap }) {
		return nil
	}
	var list []Carried
	carry := func(c *x509.Certificate, until time.Time) {
		same := func(o Carried) bool { return o.Cert.Equal(c) }
		there := slices.ContainsFunc(kept, c.Equal) || slices.ContainsFunc(list, same)
		if !there && now.Before(until) && now.Before(c.NotAfter) {
			list = append(list, Carried{c, until})
		}
	}
	for _, c := range anchors(published.Bundles) {
		id := digest(c.Raw)
		if slices.ContainsFunc(kept, c.Equal) {
			delete(o.until, id)
			continue
		}
		// It counts from when the anchor was first missed, even if nothing can be published until later.
		if _, known := o.until[id]; !known {
			if o.until == nil {
				o.until = make(map[string]time.Time)
			}
			o.until[id] = now.Add(length)
		}
		carry(c, earlier(o.until[id], now.Add(length)))
	}
	for _, c := range published.Carried {
		carry(c.Cert, earlier(c.Until, now.Add(length)))
	}
	return list
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// anchors returns what the bundles give for ca.crt.
func anchors(bundles []*Bundle) []*x509.Certificate {
	var own, peers []*x509.Certificate
	for _, b := range bundles {
		if p := b.fields[caCert]; p != nil {
			own = append(own, p.certs...)
		}
		if p := b.fields[peerCA]; p != nil {
			peers = append(peers, p.certs...)
		}
	}
	if peers != nil {
		return peers
	}
	return own
}

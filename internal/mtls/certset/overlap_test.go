package certset

import (
	"slices"
	"testing"
	"time"

	"sevagent/internal/mtls/mtlstest"
)

func TestCarry(t *testing.T) {
	now := time.Now()
	first, second := mtlstest.NewCA(t, "first", nil), mtlstest.NewCA(t, "second", nil)
	third := mtlstest.NewCA(t, "third", nil, mtlstest.Valid(-time.Hour, 30*time.Minute))
	of := func(cas ...*mtlstest.CA) *Set {
		var text string
		for _, ca := range cas {
			text += mtlstest.CertPEM(ca.Cert)
		}
		return mustSet(t, mtlstest.Fields{caCert: text}.JSON(t))
	}
	dropping := mustSet(t, mtlstest.Fields{caCert: mtlstest.CertPEM(second.Cert), caOverlap: false}.JSON(t))
	carrying := of(second)
	carrying.Carried = []Carried{{first.Cert, now.Add(20 * time.Minute)}}

	type carried struct {
		name  string
		until time.Duration // from now
	}
	var o Overlap // the cases follow each other
	for _, c := range []struct {
		name      string
		at        time.Duration
		published *Set
		next      *Set
		length    time.Duration
		want      []carried
	}{
		{"nothing is published", 0, nil, of(second), time.Hour, nil},
		{"no overlap", 0, of(first), of(second), 0, nil},
		{"the secret wants none", 0, of(first), dropping, time.Hour, nil},
		{"no anchors follow", 0, of(first), mustSet(t, []byte(mtlstest.CertPEM(first.Cert))), time.Hour, nil},
		{"nothing is dropped", 0, of(first), of(second, first), time.Hour, nil},
		{"dropped", 0, of(first), of(second), time.Hour, []carried{{"first", time.Hour}}},
		{"still not published", 30 * time.Minute, of(first), of(second), time.Hour, []carried{{"first", time.Hour}}},
		{"shortened", 30 * time.Minute, of(first), of(second),
			10 * time.Minute, []carried{{"first", 40 * time.Minute}}},
		{"over", time.Hour, of(first), of(second), time.Hour, nil},
		{"back again", time.Hour, of(first), of(second, first), time.Hour, nil},
		{"dropped again", 2 * time.Hour, of(first), of(second), time.Hour, []carried{{"first", 3 * time.Hour}}},
		{"carried already", 0, carrying, of(second), time.Hour, []carried{{"first", 20 * time.Minute}}},
		{"carried, and shortened", 0, carrying, of(second), time.Minute, []carried{{"first", time.Minute}}},
		{"two at once", 0, carrying, of(third), time.Hour,
			[]carried{{"second", time.Hour}, {"first", 20 * time.Minute}}},
		{"expired", 40 * time.Minute, of(third), of(second), time.Hour, nil},
	} {
		var got []carried
		for _, k := range o.Carry(c.published, c.next.Bundles, c.length, now.Add(c.at)) {
			got = append(got, carried{k.Cert.Subject.CommonName, k.Until.Sub(now)})
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: carried %v, want %v", c.name, got, c.want)
		}
	}
}

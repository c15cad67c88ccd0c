package spiffe

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"flag"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/mtls/source"
	"sevagent/internal/must"
)

// TestHostile has an agent push what is wrong after something that is right and published: it stays, and the error says
// what is wrong.
func TestHostile(t *testing.T) {
	ca := mtlstest.NewCA(t, "trust domain", nil)
	for _, test := range []struct {
		name string
		send func(t *testing.T, c *stream)
		want string
		kind source.Kind
	}{
		{"a length that is too large", func(t *testing.T, c *stream) { c.push([]byte{0, 0, 0x10, 0, 1}) },
			"a message of 1048577 bytes", source.Transient},
		{"a compressed message", func(t *testing.T, c *stream) { c.push([]byte{1, 0, 0, 0, 0}) },
			"compressed message", source.Transient},
		{"half of a message", func(t *testing.T, c *stream) {
			f := frame(encodeOffers(issue(t, ca, testID, time.Hour)))
			c.push(f[:len(f)/2])
			c.close()
		}, "the stream broke after", source.Transient},
		{"half of a frame's head", func(t *testing.T, c *stream) { c.push([]byte{0, 0, 0}); c.close() },
			"the stream broke", source.Transient},
		{"no status", func(t *testing.T, c *stream) { c.close() }, "without a status", source.Transient},
		{"a status that is none", func(t *testing.T, c *stream) {
			c.do(func() { c.w.Header().Set(http.TrailerPrefix+"Grpc-Status", "seven") })
			c.close()
		}, `with the status "seven"`, source.Transient},
		{"unavailable", func(t *testing.T, c *stream) { c.end(14, strings.Repeat("x", 10_000)) },
			`gRPC status 14 ("` + strings.Repeat("x", maxText) + `")`, source.Transient},
		{"not a Workload API", func(t *testing.T, c *stream) { c.end(codeUnimplemented, "unknown service") },
			"correct its path", source.Persistent},
		{"a wrong wire type", func(t *testing.T, c *stream) { c.push(frame([]byte{1<<3 | wireVarint, 1})) },
			"field 1 has the wire type 0, want 2", source.Transient},
		{"a field that is cut off", func(t *testing.T, c *stream) { c.push(frame([]byte{1<<3 | wireBytes, 9, 1})) },
			"field 1 is cut off", source.Transient},
		{"no SVID", func(t *testing.T, c *stream) { c.push(frame(nil)) }, "has no SVID", source.Persistent},
		{"several SVIDs", func(t *testing.T, c *stream) {
			c.offer(issue(t, ca, testID, time.Hour), issue(t, ca, "spiffe://example.org/other", time.Hour))
		}, "offers spiffe://example.org/node, spiffe://example.org/other; set id", source.Persistent},
		{"too many SVIDs", func(t *testing.T, c *stream) {
			c.offer(slices.Repeat([]offer{issue(t, ca, testID, time.Hour)}, maxOffers+1)...)
		}, "more than 20 SVIDs", source.Transient},
		{"a field twice", func(t *testing.T, c *stream) {
			c.push(frame(field(nil, 1, field(field(nil, 1, []byte(testID)), 1, []byte(testID)))))
		}, "SVID 1: field 1 appears twice", source.Transient},
		{"a string that is none", func(t *testing.T, c *stream) {
			o := issue(t, ca, testID, time.Hour)
			o.hint = "\xff"
			c.offer(o)
		}, "SVID 1: a string is not UTF-8", source.Transient},
		{"no key", func(t *testing.T, c *stream) { o := issue(t, ca, testID, time.Hour); o.key = nil; c.offer(o) },
			"SVID 1: has no x509_svid_key", source.Transient},
		{"no bundle", func(t *testing.T, c *stream) { o := issue(t, ca, testID, time.Hour); o.bundle = nil; c.offer(o) },
			"SVID 1: has no bundle", source.Transient},
		{"a bundle of nonsense", func(t *testing.T, c *stream) {
			o := issue(t, ca, testID, time.Hour)
			o.bundle = []byte("nonsense")
			c.offer(o)
		}, "bundle does not parse", source.Transient},
		{"a key of nonsense", func(t *testing.T, c *stream) {
			o := issue(t, ca, testID, time.Hour)
			o.key = []byte("nonsense")
			c.offer(o)
		}, "the key is not PKCS #8", source.Transient},
		{"another's key", func(t *testing.T, c *stream) {
			o := issue(t, ca, testID, time.Hour)
			o.key = issue(t, ca, testID, time.Hour).key
			c.offer(o)
		}, "the key is not that of the certificate", source.Transient},
		{"an expired SVID", func(t *testing.T, c *stream) { c.offer(issue(t, ca, testID, -time.Second)) },
			"the certificate has expired", source.Transient},
		{"a certificate for another ID", func(t *testing.T, c *stream) {
			o := issue(t, ca, "spiffe://example.org/other", time.Hour)
			o.id = testID
			c.offer(o)
		}, "for another SPIFFE ID", source.Transient},
		{"a certificate for two IDs", func(t *testing.T, c *stream) {
			leaf, key := ca.Leaf(t, "node", identifier(t, testID),
				func(c *x509.Certificate) { c.URIs = append(c.URIs, &url.URL{Scheme: "spiffe", Host: "example.org"}) })
			c.offer(offerOf(t, testID, leaf, key, ca.Cert))
		}, "or for several URIs", source.Transient},
		{"a CA's certificate", func(t *testing.T, c *stream) {
			other := mtlstest.NewCA(t, "an intermediate", ca, identifier(t, testID))
			c.offer(offerOf(t, testID, other.Cert, other.Key, ca.Cert))
		}, "is a CA's", source.Transient},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				c := w.next().begin()
				c.offer(issue(t, ca, testID, time.Hour))
				if w.version() == "" {
					t.Fatalf("something right: %v", w.failure())
				}
				w.source.Published(w.version(), w.source.pushed.leaf)
				w.setAnswer(func(c *stream) { test.send(t, c.begin()) })
				test.send(t, c)
				time.Sleep(patience + 3*retryMax)
				err := w.failure()
				if err == nil || !strings.Contains(err.Error(), test.want) || source.KindOf(err) != test.kind {
					t.Errorf("%v (%s), want %q (%s)", err, source.KindOf(err), test.want, test.kind)
				}
				w.setAnswer(func(c *stream) { c.begin().offer(issue(t, ca, testID, 24*time.Hour)) })
				time.Sleep(retryMax + 2*openLook)
				if w.failure() != nil {
					t.Errorf("something right after that: %v", w.failure())
				}
			})
		})
	}
}

// TestNotGRPC is about servers of another kind.
func TestNotGRPC(t *testing.T) {
	for name, change := range map[string]func(http.Header) int{
		"HTTP status 404": func(h http.Header) int {
			h.Set("Content-Type", "application/grpc")
			return http.StatusNotFound
		},
		"HTTP status 302":  func(h http.Header) int { h.Set("Location", "http://localhost/"); return http.StatusFound },
		`type "text/html"`: func(h http.Header) int { h.Set("Content-Type", "text/html"); return http.StatusOK },
		`compressed ("gzip")`: func(h http.Header) int {
			h.Set("Content-Type", "application/grpc")
			h.Set("Grpc-Encoding", "gzip")
			return http.StatusOK
		},
		"connection error": func(h http.Header) int { h.Set("X", strings.Repeat("x", 2*maxHeader)); return http.StatusOK },
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			c := w.next()
			c.do(func() { c.w.WriteHeader(change(c.w.Header())) })
			c.close()
			if err := w.failure(); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%v, want one with %q", err, name)
			}
		})
	}
}

// seed is a message of one SVID, which is valid for a century.
const seed = "testdata/response.bin"

var update = flag.Bool("update", false, "make testdata anew")

func TestSeed(t *testing.T) {
	if !*update {
		t.Skip("only with -update")
	}
	ca := mtlstest.NewCA(t, "seed", nil, mtlstest.Valid(0, 100*365*24*time.Hour))
	must.Do(t, os.WriteFile(seed, encodeOffers(issue(t, ca, testID, 100*365*24*time.Hour)), 0o644), "write the seed")
}

// FuzzResponse holds the reading of a message to its laws: it never panics, an error does not repeat the key, what is
// read is read again from what we write of it, and what is accepted becomes a version of its own.
func FuzzResponse(f *testing.F) {
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	// Made once by TestSeed -update, since seeds that differ from process to process confuse the fuzzer.
	good := must.Get(os.ReadFile(seed))(f, "read the seed")
	if offers, err := parseResponse(good); err != nil || len(offers) != 1 {
		f.Fatalf("the seed gives %d offers, %v; want one", len(offers), err)
	} else if _, err := offers[0].verify([]string{"client"}, now); err != nil {
		f.Fatalf("the seed is refused: %v", err)
	}
	f.Add(good)
	f.Add(slices.Concat(good, good))
	f.Add(good[:len(good)/2])
	f.Add(field(field(slices.Clone(good), 2, []byte("a revocation list")), 3, []byte("another domain's bundle")))
	f.Add(append(binary.AppendUvarint(slices.Clone(good), 100<<3|wireVarint), 1))
	f.Add([]byte{1<<3 | wireBytes, 0})
	f.Add([]byte{9<<3 | wireFixed64, 0, 0, 0, 0, 0, 0, 0, 0, 9<<3 | wireFixed32, 0, 0, 0, 0, 9<<3 | 3})
	f.Add(bytes.Repeat([]byte{0xff}, 20))
	f.Add(binary.AppendUvarint([]byte{1<<3 | wireBytes}, 1<<63))

	f.Fuzz(func(t *testing.T, message []byte) {
		offers, err := parseResponse(message)
		if err != nil {
			if offers != nil {
				t.Error("both offers and an error")
			}
			return
		}
		if len(offers) > maxOffers {
			t.Errorf("%d offers", len(offers))
		}
		again, err := parseResponse(encodeOffers(offers...))
		if err != nil || !reflect.DeepEqual(offers, again) {
			t.Errorf("read %+v, and from what we write of it %+v, %v", offers, again, err)
		}
		for i := range offers {
			o, err := choose(offers[i:i+1], "")
			if err != nil {
				continue
			}
			v, err := o.verify([]string{"client"}, now)
			switch {
			case err != nil && len(o.key) > 20 && strings.Contains(err.Error(), string(o.key)):
				t.Errorf("error %q repeats the key", err)
			case err == nil && (v.version == "" || v.content == nil || checkID(v.id) != nil || v.leaf.NotAfter.Before(now)):
				t.Errorf("accepted %+v", v)
			}
		}
	})
}

// TestNothingOfMessage: nothing that is kept of a message keeps the key that it has.
func TestNothingOfMessage(t *testing.T) {
	o := issue(t, mtlstest.NewCA(t, "trust domain", nil), testID, time.Hour)
	message := encodeOffers(o)
	s := New(Config{Gives: []string{"client"}, Log: mtlstest.Log(t)})
	v := must.Get(s.read(message, time.Now()))(t, "read a message")
	raw, content := string(v.leaf.Raw), string(v.content())
	clear(message)
	if string(v.leaf.Raw) != raw || string(v.content()) != content || v.id != testID {
		t.Error("it refers to the message")
	}
}

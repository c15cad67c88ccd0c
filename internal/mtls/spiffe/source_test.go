package spiffe

import (
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"sevagent/client"
	"sevagent/internal/mtls/certset"
	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/mtls/source"
	"sevagent/internal/must"
)

// fetched returns the files of what is fetched, as they are published.
func (w *world) fetched(version string) map[string]string {
	w.t.Helper()
	secret := must.Get(w.source.Fetch(w.t.Context(), version, source.Current))(w.t, "fetch what was pushed")
	b := must.Get(certset.Parse("issue/node", version, secret(), certset.Reading{}))(w.t, "read what was fetched")
	set := must.Get(certset.Assemble([]*certset.Bundle{b}, nil, time.Now(), nil))(w.t, "assemble what was fetched")
	files := make(map[string]string)
	for _, f := range set.Files {
		files[f.Name] = string(f.Content)
	}
	return files
}

func TestPushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ca := mtlstest.NewCA(t, "trust domain", nil)
		if w.failure() != nil || w.version() != "" || w.source.Status().State != client.IssueOrdered {
			t.Errorf("before the first push: version %q, %v, the state %s, want none, no error, and ordered",
				w.version(), w.failure(), w.source.Status().State)
		}
		c := w.next().begin()

		first := issue(t, ca, testID, time.Hour)
		c.offer(first)
		one := w.version()
		if one == "" || w.changed.Load() != 1 {
			t.Fatalf("after a push: version %q, %d calls of Changed, want a version and one", one, w.changed.Load())
		}
		files := w.fetched(one)
		want := mtlstest.CertPEM(ca.Cert)
		if files["ca.crt"] != want || files["client.crt"] == "" || files["server.crt"] != files["client.crt"] {
			t.Errorf("the push gives %d files, want a client's and a server's of one certificate, and the bundle", len(files))
		}
		if st := w.source.Status(); st.State != client.IssueReady || st.Issuances != 1 || st.Serial != "" {
			t.Errorf("before the publication: %+v, want ready, one issuance, no serial number", st)
		}

		v := must.Get(first.verify([]string{"client", "server"}, time.Now()))(t, "read the offer")
		w.source.Published(one, v.leaf)
		if st := w.source.Status(); st.State != client.IssueIdle || !st.NotAfter.Equal(v.leaf.NotAfter) || st.Serial == "" {
			t.Errorf("after the publication: %+v, want idle, with the published certificate's dates", st)
		}
		if w.source.pushed.content != nil {
			t.Error("the key is kept although it is published")
		}

		c.offer(first)
		if w.version() != one || w.changed.Load() != 1 || w.source.pushed.content != nil {
			t.Error("the same message again is news, or its key is kept")
		}

		// The trust domain prepares its next root.
		next := mtlstest.NewCA(t, "trust domain", nil)
		both := first
		both.bundle = slices.Concat(next.Cert.Raw, ca.Cert.Raw)
		c.offer(both)
		two := w.version()
		if got := w.fetched(two)["ca.crt"]; two == one || strings.Count(got, "BEGIN CERTIFICATE") != 2 {
			t.Errorf("a second root gives the version %s after %s, and ca.crt is\n%s", two, one, got)
		}
		both.bundle = slices.Concat(ca.Cert.Raw, next.Cert.Raw, ca.Cert.Raw)
		c.offer(both)
		if w.version() != two || w.source.Status().Issuances != 1 {
			t.Error("another order of the bundle is another version, or another issuance")
		}

		time.Sleep(25 * time.Minute)
		c.offer(issue(t, next, testID, time.Hour))
		if st := w.source.Status(); w.version() == two || st.Issuances != 2 || st.State != client.IssueReady {
			t.Errorf("a new certificate: %+v, want two issuances, and ready", st)
		}
		if _, err := w.source.Fetch(t.Context(), two, source.Current); source.KindOf(err) != source.Moved {
			t.Errorf("fetch of what was replaced: %v, want that it moved", err)
		}
		w.source.Refused(w.version(), nil)
		if st := w.source.Status(); st.State != client.IssueRefused {
			t.Errorf("a version that cannot be published: %+v, want refused", st)
		}
		w.none()
	})
}

// TestRestart is about a version that an earlier run has published.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := mtlstest.NewCA(t, "trust domain", nil)
		o := issue(t, ca, testID, time.Hour)
		gives := []string{"client", "server"}
		v := must.Get(o.verify(gives, time.Now()))(t, "read the offer")

		w := newWorld(t)
		w.source.Published(v.version, v.leaf)
		if w.version() != v.version || w.source.Status().State != client.IssueIdle {
			t.Errorf("before the first push: %v, want the published version", w.failure())
		}
		c := w.next().begin()
		c.offer(o)
		if w.version() != v.version || w.changed.Load() != 0 || w.source.pushed.content != nil {
			t.Error("the same certificate after a restart is news, or its key is kept")
		}
		if st := w.source.Status(); st.Issuances != 0 {
			t.Errorf("the same certificate after a restart: %d issuances, want none", st.Issuances)
		}

		// The configuration has changed, so that the content is needed again.
		if _, err := w.source.Fetch(t.Context(), v.version, source.Current); source.KindOf(err) != source.Transient {
			t.Errorf("fetch of a key that was dropped: %v, want a transient error", err)
		}
		w.next().begin().offer(o)
		if w.changed.Load() != 1 {
			t.Error("that the key is here again is no news")
		}
		w.fetched(v.version)

		if other := must.Get(o.verify(gives[:1], time.Now()))(t, "read the offer"); other.version == v.version {
			t.Error("what the certificate is published as does not change the version")
		}
	})
}

// TestStale is about an agent that keeps the stream open and says nothing.
func TestStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ca := mtlstest.NewCA(t, "trust domain", nil)
		c := w.next().begin()
		began := time.Now()
		o := issue(t, ca, testID, time.Hour)
		c.offer(o)
		v := w.version()
		w.source.Published(v, w.source.pushed.leaf)

		for _, after := range []time.Duration{40 * time.Minute, 53*time.Minute + 20*time.Second} {
			c = w.next().begin()
			if late := time.Since(began) - after; late < 0 || late > 2*openLook {
				t.Errorf("it connects again after %v, want at %v or a moment later", time.Since(began), after)
			}
			c.offer(o)
			if w.version() != v || w.changed.Load() != 1 {
				t.Errorf("the same certificate again is news: %v", w.failure())
			}
		}

		// The agent has no new one to the end.
		time.Sleep(time.Until(began.Add(time.Hour + time.Second)))
		for len(w.streams) > 0 {
			w.next()
		}
		c = w.next().begin()
		c.offer(o)
		err := w.failure()
		if source.KindOf(err) != source.Transient || !strings.Contains(err.Error(), "has expired") {
			t.Errorf("an expired certificate: %v, want an error that says so", err)
		}
		if w.source.Status().State != client.IssueFailing {
			t.Errorf("an expired certificate: %+v, want failing", w.source.Status())
		}
		w.next().begin().offer(issue(t, ca, testID, time.Hour)) // without being asked to: a refused message is stale, too
		if w.failure() != nil || w.version() == v {
			t.Errorf("a new certificate after that: %v, want its version", w.failure())
		}
	})
}

// TestNoAnswer is about an agent that hangs.
func TestNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		began := time.Now()
		w.next()
		w.next().begin()
		if waited := time.Since(began); waited < answerWithin || waited > answerWithin+2*openLook+retryMax {
			t.Errorf("it connects again after %v, want after %v and the backoff", waited, answerWithin)
		}
		if err := w.failure(); source.KindOf(err) != source.Transient || !strings.Contains(err.Error(), "no answer within") {
			t.Errorf("no answer: %v, want an error that says so", err)
		}
		w.next() // headers alone are no answer
	})
}

// TestFrozen is about an agent whose process stands still, with a certificate that has long to live.
func TestFrozen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := w.next().begin()
		c.offer(issue(t, mtlstest.NewCA(t, "trust domain", nil), testID, 24*time.Hour))
		time.Sleep(time.Hour)
		if n := w.dials.Load(); n != 1 {
			t.Errorf("%d connections to an agent that is idle, want one", n)
		}
		close(w.frozen)
		time.Sleep(8 * time.Minute)
		if n := w.dials.Load(); n < 2 {
			t.Error("it does not notice within eight minutes that the agent answers nothing")
		}
	})
}

// TestDown is about a stream that breaks.
func TestDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ca := mtlstest.NewCA(t, "trust domain", nil)
		c := w.next().begin()
		c.offer(issue(t, ca, testID, 24*time.Hour))
		v := w.version()
		w.setSocket(0, syscall.ENOENT)
		c.end(0, "")
		time.Sleep(patience / 2)
		w.source.Published(v, w.source.pushed.leaf)
		if w.version() != v || w.changed.Load() != 1 {
			t.Errorf("the agent is away for a moment: %v, want no error", w.failure())
		}
		time.Sleep(5 * time.Minute)
		if err := w.failure(); source.KindOf(err) != source.Transient || w.changed.Load() != 2 {
			t.Errorf("the agent is away: %v and %d calls of Changed, want one transient error", err, w.changed.Load())
		}
		before := w.dials.Load()
		time.Sleep(time.Hour)
		if n := w.dials.Load() - before; n < 60 || n > 300 {
			t.Errorf("%d attempts within an hour, want about 120", n)
		}
		if w.changed.Load() != 2 {
			t.Errorf("%d calls of Changed, want none for the same error", w.changed.Load())
		}

		// It comes back, with a new socket.
		w.setSocket(2, nil)
		back := time.Now()
		c = w.next().begin()
		if waited := time.Since(back); waited > 2*closedLook {
			t.Errorf("a new socket is noticed after %v, want within %v", waited, closedLook)
		}
		c.offer(issue(t, ca, testID, 24*time.Hour))
		if w.failure() != nil || w.version() == v {
			t.Errorf("the agent is back: %v, want its new version", w.failure())
		}

		w.source.Published(w.version(), w.source.pushed.leaf)
		w.setSocket(0, syscall.ENOENT)
		c.close()
		time.Sleep(patience / 2)
		if w.failure() != nil {
			t.Errorf("the agent is away for a moment, for the second time: %v, want no error", w.failure())
		}
		w.setSocket(2, nil)
		w.next()

		// Another one takes its place, while the old one keeps the stream open.
		w.setSocket(3, nil)
		back = time.Now()
		c = w.next().begin()
		if waited := time.Since(back); waited > 2*openLook {
			t.Errorf("a new socket is noticed after %v, want within %v", waited, openLook)
		}

		o := issue(t, ca, testID, 24*time.Hour)
		c.offer(o)
		before = w.changed.Load()
		w.source.Renew()
		if d := must.Get(w.source.Describe(t.Context()))(t, "describe"); d.Next.IsZero() {
			t.Error("asked to renew, it does not want to be described again soon")
		}
		w.next().begin().offer(o)
		if d := must.Get(w.source.Describe(t.Context()))(t, "describe"); !d.Next.IsZero() || w.changed.Load() != before+1 {
			t.Error("that there is nothing newer is no answer to being asked to renew")
		}
		w.none()
	})
}

// TestRenewWhileDown connects at once.
func TestRenewWhileDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.setSocket(0, syscall.ENOENT)
		w.next().close()
		time.Sleep(time.Hour)
		w.setSocket(0, nil) // not to be seen
		began := time.Now()
		w.source.Renew()
		w.next()
		if waited := time.Since(began); waited != 0 {
			t.Errorf("it connects after %v, want at once", waited)
		}
	})
}

func TestDenied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ca := mtlstest.NewCA(t, "trust domain", nil)
		denied := func(when string) {
			t.Helper()
			err := w.failure()
			if source.KindOf(err) != source.Persistent || !strings.Contains(err.Error(), "unix:path:/usr/bin/sevagent") ||
				!strings.Contains(err.Error(), `"no identity \x1b issued"`) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %v, want a persistent error with advice", when, err)
			}
		}
		c := w.next()
		c.end(codePermissionDenied, "no identity \x1b issued")
		denied("nobody's entry")

		c = w.next().begin()
		c.offer(issue(t, ca, testID, time.Hour))
		if w.failure() != nil {
			t.Errorf("after the entry was made: %v", w.failure())
		}
		c.offer()
		if w.failure() == nil || w.source.pushed != nil {
			t.Error("a message without an identity does not replace the one before, which is not published yet")
		}
		c.offer(issue(t, ca, testID, time.Hour))
		c.end(codePermissionDenied, "no identity \x1b issued")
		denied("the entry is deleted")
		if w.source.pushed != nil {
			t.Error("the key is kept although it is withdrawn")
		}
	})
}

func TestChoose(t *testing.T) {
	offers := []offer{{id: testID, hint: "first"}, {id: "spiffe://example.org/b"}, {id: testID, hint: "second"}}
	for _, test := range []struct {
		name, id string
		offers   []offer
		want     string // the hint, or the error
	}{
		{"the only one", "", offers[:1], "first"},
		{"that asked for", "spiffe://example.org/b", offers, ""},
		{"two entries for one ID", testID, offers, "first"},
		{"two entries for one ID, and none asked for", "", []offer{offers[0], offers[2]}, "first"},
		{"several, and none asked for", "", offers, "offers spiffe://example.org/node, spiffe://example.org/b; set id"},
		{"another than asked for", "spiffe://example.org/c", offers[:2],
			"offers spiffe://example.org/node, spiffe://example.org/b, and not spiffe://example.org/c"},
		{"none", "", nil, "has no SVID"},
		{"no SPIFFE ID", "", []offer{{id: "spiffe://example.org/a b"}}, "its path"},
	} {
		o, err := choose(test.offers, test.id)
		switch {
		case err != nil && (test.want == "" || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		case err == nil && o.hint != test.want:
			t.Errorf("%s: it chose the one with the hint %q, want %q", test.name, o.hint, test.want)
		}
	}
}

func TestCheckID(t *testing.T) {
	for id, want := range map[string]bool{
		"spiffe://example.org":                              true,
		"spiffe://example.org/a/B_c.d-1":                    true,
		"spiffe://example.org/":                             false,
		"spiffe://example.org/a//b":                         false,
		"spiffe://example.org/../b":                         false,
		"spiffe://Example.org/b":                            false,
		"spiffe://example.org:80/b":                         false,
		"spiffe:///b":                                       false,
		"https://example.org/b":                             false,
		"spiffe://example.org/b?c":                          false,
		"spiffe://" + strings.Repeat("a", 256):              false,
		"spiffe://example.org/" + strings.Repeat("a", 2048): false,
	} {
		if err := checkID(id); (err == nil) != want {
			t.Errorf("%.60s: %v, want valid: %v", id, err, want)
		}
	}
}

func TestBackoff(t *testing.T) {
	for n, want := range map[int]time.Duration{1: time.Second, 4: 8 * time.Second, 7: time.Minute, 1000: time.Minute} {
		if got := backoff(n, 1); got != want {
			t.Errorf("failure %d: up to %v, want %v", n, got, want)
		}
	}
	if got := backoff(1, 0); got != retryMin/10 {
		t.Errorf("the least is %v, want %v", got, retryMin/10)
	}
}

package mtls

import (
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"sevagent/client"
	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/mtls/source"
)

// expired lists the published files that have expired.
func (n *node) expired() (files []string) {
	for _, e := range n.Status().Expiry {
		if e.Stage(time.Now()) == client.Expired {
			files = append(files, e.File)
		}
	}
	return files
}

// A set that has expired stays through a restart, also one that was published again after its end: its files are
// guarded, reported as expired, and replaced by a renewed version.
func TestExpiredSetAfterRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := mtlstest.NewCA(t, "ca", nil)
		path := filepath.Join(mtlstest.MemoryDir(t), "mtls")
		s := newFake(ca.ClientSecret(t, "first", mtlstest.Valid(-time.Hour, 48*time.Hour)))
		var log lockedBuffer
		var g *fakeGuard
		restart := func() *node {
			g = &fakeGuard{changed: make(chan struct{}, 1)}
			return start(t, path, map[string]source.Source{"a": s}, func(c *Config) {
				c.Log = slog.New(slog.NewTextHandler(&log, nil))
				c.newGuard = func(string) sentinel { return g }
			})
		}
		n := restart()
		n.after(49 * time.Hour)
		for _, when := range []string{"expired", "published again after that"} {
			generation, files := n.Status().Generation, n.read(t)
			n.stop()
			s.counts()
			log.take()
			n = restart()
			n.after(time.Hour)
			n.isReady(t, true)
			if n.Status().Generation != generation {
				t.Fatalf("%s: generation %q after a restart, want %s; the log:\n%s",
					when, n.Status().Generation, generation, log.take())
			}
			if diff := cmp.Diff([]string{"client.crt"}, n.expired()); diff != "" {
				t.Errorf("%s: expired files (-want +got):\n%s", when, diff)
			}
			if n := strings.Count(log.take(), "level=ERROR msg=\"a published certificate has expired"); n != 1 {
				t.Errorf("%s: logged %d times", when, n)
			}
			if _, f := s.counts(); f != 0 || n.secret("a").State != client.SecretCurrent {
				t.Errorf("%s: %d fetches, secret %+v", when, f, n.secret("a"))
			}

			g.find(changed)
			synctest.Wait()
			if n.Status().Generation == generation || n.Status().Guard.Repairs != 1 {
				t.Errorf("%s: a changed file is not put back: %+v", when, n.Status().Guard)
			}
			delete(files, "manifest.json")
			again := n.read(t)
			delete(again, "manifest.json")
			if diff := cmp.Diff(files, again); diff != "" {
				t.Errorf("%s: put back are other files (-want +got):\n%s", when, diff)
			}
		}

		s.put("version-2", ca.ClientSecret(t, "second"))
		n.after(6 * time.Minute)
		if n.subject(t) != "second" || n.expired() != nil {
			t.Errorf("published %q, expired are %q", n.subject(t), n.expired())
		}
	})
}

// When an anchor expires, and not only with the next rotation, the set is put together again: there may be another path
// that lasts, for which the anchor is in the way of OpenSSL. One that is in nobody's way stays, with a warning.
func TestAnchorExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, other := mtlstest.NewCA(t, "old root", nil), mtlstest.NewCA(t, "other", nil, mtlstest.Valid(0, 24*time.Hour))
		root := mtlstest.NewCA(t, "root", nil, mtlstest.Valid(0, 48*time.Hour))
		cross := mtlstest.NewCAFor(t, "root", root.Key, old)
		leaf, key := root.Leaf(t, "node")
		s := newFake(mtlstest.Fields{
			"client_cert": mtlstest.CertPEM(leaf, cross.Cert), "client_key": mtlstest.KeyPEM(t, key),
			"ca_cert": mtlstest.CertPEM(root.Cert, old.Cert, other.Cert),
		}.JSON(t))
		path := filepath.Join(mtlstest.MemoryDir(t), "mtls")
		n := start(t, path, map[string]source.Source{"a": s})
		want := func(when string, published int, anchors ...string) {
			t.Helper()
			if diff := cmp.Diff(anchors, n.anchorNames(t)); diff != "" {
				t.Errorf("ca.crt %s (-want +got):\n%s", when, diff)
			}
			if got := int(n.published.Load()); got != published || n.expired() != nil {
				t.Errorf("%s there were %d publications, want %d; expired are %q", when, got, published, n.expired())
			}
		}
		warned := func(words string) bool {
			return slices.ContainsFunc(n.Status().Warnings, func(w string) bool { return strings.Contains(w, words) })
		}
		want("at first", 1, "root", "old root", "other")

		n.after(time.Until(other.Cert.NotAfter) + time.Second)
		want("when one expired that is in nobody's way", 1, "root", "old root", "other")
		if !warned(`ca_cert: "CN=other" expired on`) {
			t.Errorf("warnings %q", n.Status().Warnings)
		}
		n.after(time.Until(root.Cert.NotAfter) + time.Second)
		want("when the root expired", 2, "old root", "other")
		if !warned(`"CN=root" expired on`) {
			t.Errorf("warnings %q", n.Status().Warnings)
		}
		n.after(240 * time.Hour)
		want("long after", 2, "old root", "other")
		n.stop()
		n = start(t, path, map[string]source.Source{"a": s})
		want("after a restart", 0, "old root", "other")
	})
}

// An issued certificate that has expired while the agent did not run, and whose authority cannot be reached, stays and
// is reported; its successor is ordered as soon as that is possible.
func TestExpiredIssuedAfterRestart(t *testing.T) {
	withIssuing(t, func(t *testing.T, a *authority, n *node) {
		generation := n.Status().Generation
		n.stop()
		time.Sleep(30 * time.Hour)
		a.err = errors.New("connection refused")
		n = start(t, n.path, map[string]source.Source{"a": a.issuing("1")})
		n.after(time.Minute)
		n.isReady(t, true)
		if n.Status().Generation != generation || !slices.Equal(n.expired(), []string{"client.crt"}) {
			t.Errorf("generation %q after a restart, want %s; expired are %q", n.Status().Generation, generation, n.expired())
		}
		if st := n.issue(); st.State != client.IssueFailing {
			t.Errorf("its source is %+v", st)
		}
		a.err = nil
		n.after(2 * time.Hour)
		if n.Status().Generation == generation || n.expired() != nil || n.secret("a").State != client.SecretCurrent {
			t.Errorf("not renewed: %+v", n.secret("a"))
		}
	})
}

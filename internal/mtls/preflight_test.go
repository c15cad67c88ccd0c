package mtls

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sevagent/client"
	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/mtls/source"
)

// pend makes content the pending version.
func (f *fakeSecret) pend(version string, content []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pending = version
	if content == nil {
		delete(f.versions, version)
	} else {
		f.versions[version] = content
	}
}

// meet has do run before each fetch is answered.
func (f *fakeSecret) meet(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onFetch = do
}

func TestPreflight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, other := mtlstest.NewCA(t, "ca", nil), mtlstest.NewCA(t, "other", nil)
		s := newFake(ca.ClientSecret(t, "first"))
		n := start(t, filepath.Join(mtlstest.MemoryDir(t), "mtls"), map[string]source.Source{"a": s})
		if p := n.secret("a").Preflight; p != nil {
			t.Errorf("nothing is pending, and the preflight says %+v", p)
		}
		leaf, key := other.Leaf(t, "second")
		foreign := mtlstest.Fields{"client_cert": mtlstest.CertPEM(leaf), "client_key": mtlstest.KeyPEM(t, key),
			"ca_cert": mtlstest.CertPEM(ca.Cert)}.JSON(t)
		for _, c := range []struct {
			name, version  string
			content        []byte
			result, reason string
		}{
			{"good", "p1", ca.ClientSecret(t, "second"), "ok", ""},
			{"from tomorrow", "p2", ca.ClientSecret(t, "second", mtlstest.Valid(24*time.Hour, 48*time.Hour)), "ok", ""},
			{"foreign CA", "p3", foreign, "rejected",
				"this version would be rejected because secret a: client_cert: does not lead to ca_cert"},
			{"expired", "p4", ca.ClientSecret(t, "second", mtlstest.Valid(-48*time.Hour, -24*time.Hour)), "rejected",
				"expired on"},
			{"no PEM", "p5", []byte(`{"client_cert": "x"}`), "rejected", "client_cert"},
		} {
			s.pend(c.version, c.content)
			n.after(6 * time.Minute)
			p := n.secret("a").Preflight
			if p == nil || p.Result != c.result || p.Version != c.version || !strings.Contains(p.Reason, c.reason) ||
				(c.reason == "") != (p.Reason == "") {
				t.Errorf("%s: %+v, want %s, %q", c.name, p, c.result, c.reason)
			}
			if got := n.secret("a"); got.State != client.SecretCurrent || n.subject(t) != "first" {
				t.Errorf("%s: a pending version changed the state to %s", c.name, got.State)
			}
		}
		if got := n.metric(t, "preflight_rejections_total"); got != 3 {
			t.Errorf("%v rejections counted, want 3", got)
		}

		// It is fetched once, and forgotten when it is current.
		s.counts()
		n.after(10 * time.Minute)
		if _, fetches := s.counts(); fetches != 0 {
			t.Errorf("%d fetches of a version that has been judged", fetches)
		}
		s.pend("", nil)
		n.after(6 * time.Minute)
		if p := n.secret("a").Preflight; p != nil {
			t.Errorf("nothing is pending any more, and the preflight says %+v", p)
		}
	})
}

// A pending version has to fit with the other secrets as they are, or with their pending versions.
func TestPreflightOfSeveral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, next := mtlstest.NewCA(t, "old", nil), mtlstest.NewCA(t, "next", nil)
		a, b := newFake(old.PairSecret(t, "first")), newFake(old.AnchorSecret(t))
		n := start(t, filepath.Join(mtlstest.MemoryDir(t), "mtls"), map[string]source.Source{"a": a, "b": b})
		result := func(when, secret, want string) {
			t.Helper()
			if p := n.secret(secret).Preflight; p == nil || p.Result != want {
				t.Errorf("%s: %s: %+v, want %s", when, secret, p, want)
			}
		}
		b.pend("p1", next.AnchorSecret(t))
		n.after(6 * time.Minute)
		result("anchors that the certificate does not lead to", "b", "rejected")
		a.pend("p1", next.PairSecret(t, "second"))
		n.after(6 * time.Minute)
		result("with a certificate that does", "a", "ok")
		result("with a certificate that does", "b", "ok")
	})
}

// What cannot be read says nothing: the label may come before the content.
func TestPreflightUnread(t *testing.T) {
	withNode(t, func(t *testing.T, ca *mtlstest.CA, s *fakeSecret, n *node) {
		s.meet(func() { s.err = errors.New("AccessDeniedException") })
		s.pend("p1", ca.ClientSecret(t, "second"))
		n.after(time.Minute * 7)
		s.fail(nil)
		if p := n.secret("a").Preflight; p == nil || p.Result != "unknown" ||
			!strings.Contains(p.Reason, "AccessDenied") {
			t.Errorf("%+v, want unknown", p)
		}
		s.meet(nil)
		n.after(time.Minute * 7)
		if p := n.secret("a").Preflight; p == nil || p.Result != "ok" || p.Version != "p1" {
			t.Errorf("%+v, want ok", p)
		}
	})
}

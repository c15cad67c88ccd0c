package mtls

import (
	"crypto/x509"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"sevagent/client"
	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/mtls/source"
	"sevagent/internal/must"
)

// TestIssuerEnds: a CA above the certificate has to be replaced two lives of certificates before its end, also after a
// restart; and what was reported of it is not reported of its successor.
func TestIssuerEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		root := a.ca
		a.ca, a.anchor = mtlstest.NewCA(t, "issuer", root, mtlstest.Valid(0, 80*time.Hour)), root.Cert
		a.intermediates = []*x509.Certificate{a.ca.Cert}
		var log lockedBuffer
		path := filepath.Join(mtlstest.MemoryDir(t), "mtls")
		begin := func() *node {
			return start(t, path, map[string]source.Source{"a": a.issuing("1")}, func(c *Config) {
				c.Log = slog.New(slog.NewTextHandler(&log, nil))
			})
		}
		ofCA := func(n *node) (list []client.Expiry) {
			for _, e := range n.Status().Expiry {
				if !e.ReplaceBy.IsZero() {
					list = append(list, e)
				}
			}
			return list
		}
		n := begin()
		n.after(time.Minute)
		list := ofCA(n)
		end := a.ca.Cert.NotAfter
		if len(list) != 1 || list[0].Subject != "CN=issuer" || !list[0].ReplaceBy.Equal(end.Add(-48*time.Hour)) {
			t.Fatalf("%+v; want that the issuer, which ends at %v, is replaced two days before", list, end)
		}
		last := end.Add(-24 * time.Hour)
		if v := n.metric(t, "not_after_timestamp_seconds", "client"); v > float64(last.Unix()) {
			t.Errorf("the metric of the client's certificate is the CA's: %v", v)
		}
		n.after(time.Until(end.Add(-49 * time.Hour)))
		const warning = "advice=\"renew this CA's certificate, or take another CA\""
		if text := log.take(); strings.Contains(text, warning) {
			t.Errorf("warned too early:\n%s", text)
		}
		n.after(2 * time.Hour)
		if text := log.take(); strings.Count(text, warning) != 1 || !strings.Contains(text, `subject="CN=issuer"`) {
			t.Errorf("want one warning of the CA; the log:\n%s", text)
		}
		n.stop()
		n = begin()
		n.after(time.Minute)
		if list := ofCA(n); len(list) != 1 || list[0].Stage(time.Now()) != 1 {
			t.Errorf("after a restart: %+v", list)
		}
		a.ca = mtlstest.NewCA(t, "next", root)
		a.intermediates = []*x509.Certificate{a.ca.Cert}
		must.Get(n.Renew(t.Context(), "a"))(t, "renew")
		if list := ofCA(n); len(list) != 1 || list[0].Subject == "CN=issuer" || list[0].Stage(time.Now()) != 0 {
			t.Errorf("after the CA was replaced: %+v", list)
		}
	})
}

// TestIssuingAnchorsFollow: where the root of a CA changes, a node has the new one in ca.crt with its next certificate,
// beside the old one for ca_overlap, and no later than that certificate is due.
func TestIssuingAnchorsFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		n := start(t, filepath.Join(mtlstest.MemoryDir(t), "mtls"), map[string]source.Source{"a": a.issuing("1")},
			func(c *Config) { c.Settings.CAOverlap = 10 * time.Hour })
		n.after(time.Minute)
		due := n.issue().RenewAt
		a.ca = mtlstest.NewCA(t, "next root", nil)
		must.Get(n.Refresh(t.Context()))(t, "refresh")
		n.after(time.Until(due) - time.Minute)
		want := func(when string, anchors ...string) {
			t.Helper()
			if diff := cmp.Diff(anchors, n.anchorNames(t)); diff != "" {
				t.Errorf("ca.crt %s (-want +got):\n%s", when, diff)
			}
		}
		want("before the next certificate is due", "ca")
		n.after(2 * time.Minute)
		want("with the next certificate", "next root", "ca")
		n.after(10 * time.Hour)
		want("after the overlap", "next root")
		if a.orders != 2 || n.secret("a").State != client.SecretCurrent {
			t.Errorf("%d orders; %+v", a.orders, n.secret("a"))
		}
	})
}

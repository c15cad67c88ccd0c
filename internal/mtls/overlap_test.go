package mtls

import (
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"sevagent/internal/config"
	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/mtls/source"
)

// anchorNames are the common names in the published ca.crt.
func (n *node) anchorNames(t *testing.T) (list []string) {
	t.Helper()
	return subjects(t, []byte(mtlstest.Read(t, filepath.Join(n.path, "ca.crt"))))
}

func TestOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		want := func(n *node, when string, names ...string) {
			t.Helper()
			if diff := cmp.Diff(names, n.anchorNames(t)); diff != "" {
				t.Errorf("ca.crt %s (-want +got):\n%s", when, diff)
			}
		}
		first, second, third := mtlstest.NewCA(t, "first", nil), mtlstest.NewCA(t,
			"second", nil), mtlstest.NewCA(t, "third",
			nil)
		s := newFake(first.ClientSecret(t, "a"))
		path := filepath.Join(mtlstest.MemoryDir(t), "mtls")
		overlap := func(c *Config) { c.Settings.CAOverlap = 24 * time.Hour }
		n := start(t, path, map[string]source.Source{"a": s}, overlap)
		want(n, "at first", "first")

		s.put("version-2", second.ClientSecret(t, "b"))
		n.after(6 * time.Minute)
		want(n, "after a change of the CA", "second", "first")
		if o := n.Status().CAOverlap; len(o) != 1 || o[0].Subject != "CN=first" ||
			!o[0].Until.After(time.Now().Add(23*time.Hour)) {
			t.Errorf("status: %+v", o)
		}

		// It survives a rotation within the CA and a restart, and adds up.
		s.put("version-3", second.ClientSecret(t, "c"))
		n.after(6 * time.Hour)
		want(n, "after a rotation", "second", "first")
		generation := n.Status().Generation
		n.stop()
		n = start(t, path, map[string]source.Source{"a": s}, overlap)
		want(n, "after a restart", "second", "first")
		if n.Status().Generation != generation {
			t.Error("the restart published")
		}
		s.put("version-4", third.ClientSecret(t, "d"))
		n.after(6 * time.Hour)
		want(n, "after another change", "third", "second", "first")

		n.after(13 * time.Hour)
		want(n, "when the first is due to go", "third", "second")
		n.after(24 * time.Hour)
		want(n, "when all are", "third")
		if o := n.Status().CAOverlap; len(o) != 0 {
			t.Errorf("status: %+v", o)
		}
	})
}

// An anchor that is to go while nothing can be published is no reason for a busy loop.
func TestOverlapEndsWhileNothingCanBePublished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := mtlstest.NewCA(t, "first", nil), mtlstest.NewCA(t, "second", nil)
		s := newFake(first.ClientSecret(t, "a"))
		d := new(fakeDevice)
		d.says("x", nil)
		n := start(t, filepath.Join(mtlstest.MemoryDir(t), "mtls"), map[string]source.Source{"a": s}, func(c *Config) {
			c.Settings.CAOverlap = time.Hour
			c.Evidence = d.evidence
		})
		s.put("version-2", second.ClientSecret(t, "b"))
		n.after(6 * time.Minute)
		d.says("", errTest)
		n.after(2 * time.Hour)
		if asked := d.says("", errTest); asked == 0 || asked > 60 {
			t.Errorf("evidence was asked for %d times in an hour", asked)
		}
		settings := n.config.Settings
		settings.Secrets = nil
		n.Apply(settings)
		n.after(time.Hour)
	})
}

// While the node's own directory cannot be published to, the bound counts all the same, and a consumer that can be is
// not published to again and again. One without ca.crt hears nothing of it.
func TestOverlapOfConsumers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := mtlstest.NewCA(t, "first", nil), mtlstest.NewCA(t, "second", nil)
		s := newFake(first.ClientSecret(t, "a"))
		d := new(fakeDevice)
		d.says("x", nil)
		path := filepath.Join(mtlstest.MemoryDir(t), "mtls")
		n := start(t, path, map[string]source.Source{"a": s}, func(c *Config) {
			c.Settings.CAOverlap = time.Hour
			c.Settings.Consumers = []config.Consumer{{Name: "trust", Owner: own, Files: []string{"ca.crt"}},
				{Name: "web", Owner: own, Files: []string{"client.pem"}}}
			c.Evidence = d.evidence
		})
		n.published.Store(0)
		d.says("", errTest)
		s.put("version-2", second.ClientSecret(t, "b"))
		n.after(3 * time.Hour)
		if got := n.published.Load(); got < 1 || got > 3 {
			t.Errorf("%d times something was published in three hours", got)
		}
		trust := func() int { return strings.Count(mtlstest.Read(t, filepath.Join(path, "trust/ca.crt")), "BEGIN") }
		if trust() != 1 {
			t.Errorf("the consumer's ca.crt holds %d anchors, two hours after the overlap", trust())
		}
		d.says("y", nil)
		n.after(10 * time.Minute)
		generation := n.Status().GenerationOf("web")
		n.after(2 * time.Hour)
		if got := n.Status().GenerationOf("web"); got != generation {
			t.Error("a consumer without ca.crt was published to when the overlap ended")
		}
	})
}

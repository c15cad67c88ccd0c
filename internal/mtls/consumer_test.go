package mtls

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"sevagent/internal/config"
	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/mtls/source"
	"sevagent/internal/must"
)

func consumers(list ...config.Consumer) func(*Config) {
	return func(c *Config) { c.Settings.Consumers = list }
}

// names lists what a user sees in a directory.
func names(t testing.TB, dir string) (list []string) {
	t.Helper()
	for _, e := range must.Get(os.ReadDir(dir))(t, "list what a user sees") {
		if !strings.HasPrefix(e.Name(), "..") {
			list = append(list, e.Name())
		}
	}
	return list
}

func TestConsumers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := mtlstest.NewCA(t, "ca", nil)
		s := newFake(ca.ServerSecret(t, "first"))
		path := filepath.Join(mtlstest.MemoryDir(t), "mtls")
		var bound []string
		n := start(t, path, map[string]source.Source{"a": s},
			consumers(config.Consumer{Name: "web", Owner: own, Files: []string{"server.pem", "ca.crt"}},
				config.Consumer{Name: "trust", Owner: own, Files: []string{"ca.crt", "cert-3.pem"}}),
			func(c *Config) {
				c.Evidence = func(_ context.Context, kind string, _ [sha256.Size]byte) ([]byte, error) {
					bound = append(bound, kind)
					return []byte("evidence for " + kind), nil
				}
			})
		n.isReady(t, true)

		want := []string{"ca.crt", "evidence.json", "manifest.json", "server.pem"}
		if diff := cmp.Diff(want, names(t, filepath.Join(path, "web"))); diff != "" {
			t.Errorf("web (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"ca.crt", "manifest.json"}, names(t, filepath.Join(path, "trust"))); diff != "" {
			t.Errorf("trust (-want +got):\n%s", diff)
		}
		if got := mtlstest.Read(t, filepath.Join(path, "web/evidence.json")); got != "evidence for server" {
			t.Errorf("web's evidence is %q", got)
		}
		if diff := cmp.Diff([]string{"client", "server"}, bound); diff != "" {
			t.Errorf("evidence asked for (-want +got):\n%s", diff)
		}
		if mtlstest.Read(t, filepath.Join(path, "web/server.pem")) !=
			mtlstest.Read(t, filepath.Join(path, "server.pem")) {
			t.Error("web has another server.pem")
		}
		status := n.Status().Consumers
		if len(status) != 2 || status[0].Name != "web" || status[0].Error != "" ||
			!slices.Equal(status[1].Missing, []string{"cert-3.pem"}) {
			t.Errorf("status: %+v", status)
		}

		// A rotation reaches them all, and a restart changes none.
		s.put("version-2", ca.ServerSecret(t, "second"))
		n.after(6 * time.Minute)
		if mtlstest.Read(t, filepath.Join(path, "web/server.pem")) !=
			mtlstest.Read(t, filepath.Join(path, "server.pem")) {
			t.Error("web has another server.pem after a rotation")
		}
		before := []string{n.Status().Generation, n.Status().Consumers[0].Generation,
			n.Status().Consumers[1].Generation}
		n.stop()
		n = start(t, path, map[string]source.Source{"a": s}, consumers(n.config.Settings.Consumers...),
			func(c *Config) { c.Evidence = n.config.Evidence })
		n.isReady(t, true)
		after := []string{n.Status().Generation, n.Status().Consumers[0].Generation, n.Status().Consumers[1].Generation}
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("generations (-before +after a restart):\n%s", diff)
		}

		// One that is dropped goes, since nobody tends it any more; also one that was dropped while the agent did not
		// run.
		settings := n.config.Settings
		settings.Consumers = settings.Consumers[:1]
		n.Apply(settings)
		n.after(time.Second)
		gone := func(name string) {
			t.Helper()
			if _, err := os.Lstat(filepath.Join(path, name)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the dropped consumer %s is still there: %v", name, err)
			}
		}
		gone("trust")
		if len(n.Status().Consumers) != 1 {
			t.Errorf("status: %+v", n.Status().Consumers)
		}
		n.stop()
		must.Do(t, os.Mkdir(filepath.Join(path, "mine"), 0o755), "make a directory that is no consumer's")
		start(t, path, map[string]source.Source{"a": s})
		gone("web")
		if _, err := os.Lstat(filepath.Join(path, "mine")); err != nil {
			t.Errorf("a directory that is nobody's consumer's: %v", err)
		}
	})
}

// A link in the place of a consumer's directory is never gone through: neither out of the published directory nor,
// worse, into it.
func TestConsumerBehindALink(t *testing.T) {
	for name, target := range map[string]string{"out": "../elsewhere", "in": "."} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca := mtlstest.NewCA(t, "ca", nil)
				s := newFake(ca.ClientSecret(t, "first"))
				path := filepath.Join(mtlstest.MemoryDir(t), "mtls")
				elsewhere := filepath.Join(filepath.Dir(path), "elsewhere")
				n := start(t, path, map[string]source.Source{"a": s},
					consumers(config.Consumer{Name: "web", Owner: own, Files: []string{"client.pem"}}))
				web := filepath.Join(path, "web")
				must.Do(t, errors.Join(os.Mkdir(elsewhere, 0o755),
					os.Rename(web, web+"-away"), os.Symlink(target, web)),
					"put a link in place of web")
				s.put("version-2", ca.ClientSecret(t, "second"))
				n.after(6 * time.Minute)
				if entries, err := os.ReadDir(elsewhere); err != nil || len(entries) != 0 {
					t.Errorf("published elsewhere: %v, %v", entries, err)
				}
				if fi, err := os.Lstat(web); err != nil || !fi.IsDir() {
					t.Errorf("web is %v, %v; want a directory", fi, err)
				}
				if n.subject(t) != "second" || !slices.Contains(names(t, path), "ca.crt") ||
					mtlstest.Read(t, filepath.Join(web, "client.pem")) != mtlstest.Read(t,
						filepath.Join(path, "client.pem")) {
					t.Errorf("the node's own directory holds %v", names(t, path))
				}
			})
		})
	}
}

// One directory that cannot be published to does not keep the others from being renewed.
func TestConsumerFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := mtlstest.NewCA(t, "ca", nil)
		s := newFake(ca.ClientSecret(t, "first"))
		path := filepath.Join(mtlstest.MemoryDir(t), "mtls")
		must.Do(t, errors.Join(os.Mkdir(path, 0o755), os.WriteFile(filepath.Join(path, "web"), nil, 0o644)),
			"put a file in place of web")
		n := start(t, path, map[string]source.Source{"a": s},
			consumers(config.Consumer{Name: "web", Owner: own, Files: []string{"client.pem"}},
				config.Consumer{Name: "api", Owner: own, Files: []string{"client.pem"}}))
		n.isReady(t, false)
		if n.subject(t) != "first" || mtlstest.Read(t, filepath.Join(path, "api/client.pem")) == "" {
			t.Error("the others are not published")
		}
		if got := n.Status().Consumers[0].Error; !strings.Contains(got, filepath.Join(path, "web")) {
			t.Errorf("web's error is %q", got)
		}
		must.Do(t, os.Remove(filepath.Join(path, "web")), "remove it")
		n.after(10 * time.Minute)
		n.isReady(t, true)
		if n.Status().Consumers[0].Error != "" ||
			mtlstest.Read(t, filepath.Join(path, "web/client.pem")) != mtlstest.Read(t,
				filepath.Join(path, "client.pem")) {
			t.Errorf("web is not published: %+v", n.Status().Consumers[0])
		}
	})
}

func TestConsumerChangesOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to give files away")
	}
	synctest.Test(t, func(t *testing.T) {
		ca := mtlstest.NewCA(t, "ca", nil)
		path := filepath.Join(mtlstest.MemoryDir(t), "mtls")
		n := start(t, path, map[string]source.Source{"a": newFake(ca.ClientSecret(t, "first"))},
			consumers(config.Consumer{Name: "web", Owner: config.Owner{UID: 101, GID: 101},
				Files: []string{"client.pem"}}))
		settings := n.config.Settings
		settings.Consumers = []config.Consumer{{Name: "web",
			Owner: config.Owner{UID: 202, GID: 202}, Files: []string{"client.pem"}}}
		if st := mtlstest.Stat(t, filepath.Join(path, "web/client.pem")); st.Uid != 101 || st.Gid != 101 {
			t.Errorf("owner %d:%d, want 101:101", st.Uid, st.Gid)
		}
		main := n.Status().Generation
		n.Apply(settings)
		n.after(time.Second)
		if st := mtlstest.Stat(t, filepath.Join(path, "web/client.pem")); st.Uid != 202 || st.Gid != 202 {
			t.Errorf("owner %d:%d, want 202:202", st.Uid, st.Gid)
		}
		if n.Status().Generation != main {
			t.Error("the node's own directory was published again")
		}
	})
}

// fakeDevice makes evidence.
type fakeDevice struct {
	mu     sync.Mutex
	answer []byte
	err    error
	asked  int
}

// says sets the answer, and returns how often it was asked for until now.
func (d *fakeDevice) says(answer string, err error) (asked int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answer, d.err = nil, err
	if answer != "" {
		d.answer = []byte(answer)
	}
	asked, d.asked = d.asked, 0
	return asked
}

func (d *fakeDevice) evidence(context.Context, string, [sha256.Size]byte) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked++
	return d.answer, d.err
}

// Evidence belongs to a generation: without it there is none, unless there is to be none.
func TestEvidence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := mtlstest.NewCA(t, "ca", nil)
		s := newFake(ca.ClientSecret(t, "first"))
		path := filepath.Join(mtlstest.MemoryDir(t), "mtls")
		d := new(fakeDevice)
		evidence := func(c *Config) { c.Evidence = d.evidence }
		d.says("", errors.New("device is busy"))
		n := start(t, path, map[string]source.Source{"a": s}, evidence)
		n.isReady(t, false)
		if got := n.Status().Error; !strings.Contains(got, "get evidence for the client certificate: device is busy") {
			t.Errorf("error %q", got)
		}
		d.says("first", nil)
		n.after(time.Minute)
		n.isReady(t, true)

		// None is to be had for the next certificate: the last good set stays.
		d.says("", errors.New("device is busy"))
		s.put("version-2", ca.ClientSecret(t, "second"))
		n.after(6 * time.Minute)
		if got := n.subject(t); got != "first" || mtlstest.Read(t, filepath.Join(path, "evidence.json")) != "first" {
			t.Errorf("published %q without evidence", got)
		}
		d.says("second", nil)
		n.after(6 * time.Minute)
		if got := n.subject(t); got != "second" || mtlstest.Read(t, filepath.Join(path, "evidence.json")) != "second" {
			t.Errorf("published %q", got)
		}

		// There is to be none any more: that is no reason to publish, now or at the next start.
		d.says("", nil)
		generation := n.Status().Generation
		n.stop()
		n = start(t, path, map[string]source.Source{"a": s}, evidence)
		if n.Status().Generation != generation {
			t.Error("a restart published")
		}
		s.put("version-3", ca.ClientSecret(t, "third"))
		n.after(6 * time.Minute)
		if _, err := os.Stat(filepath.Join(path, "evidence.json")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("evidence of another key is still there: %v", err)
		}
		generation = n.Status().Generation
		n.stop()
		n = start(t, path, map[string]source.Source{"a": s}, evidence)
		if n.Status().Generation != generation {
			t.Error("a restart published what had no evidence and needs none")
		}
		n.stop()

		// And when there is to be some again, there is.
		d.says("third", nil)
		start(t, path, map[string]source.Source{"a": s}, evidence)
		if got := mtlstest.Read(t, filepath.Join(path, "evidence.json")); got != "third" {
			t.Errorf("evidence is %q", got)
		}
	})
}

package mtls

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"sevagent/client"
	"sevagent/internal/mtls/guard"
	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/mtls/source"
	"sevagent/internal/must"
	"sevagent/internal/promtext"
	"sevagent/internal/sim"
)

// fakeGuard finds what the test says, until the next publication puts it right.
type fakeGuard struct {
	changed  chan struct{}
	findings []guard.Finding
	verified atomic.Int64
	stay     bool // the findings, also after a publication
	expected int
}

func (g *fakeGuard) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}
func (g *fakeGuard) Changed() <-chan struct{} { return g.changed }
func (g *fakeGuard) Verify() []guard.Finding {
	g.verified.Add(1)
	return g.findings
}
func (g *fakeGuard) Expect(*guard.Tree) {
	g.expected++
	if !g.stay {
		g.findings = nil
	}
}

func (g *fakeGuard) find(findings ...guard.Finding) {
	g.findings = findings
	g.changed <- struct{}{}
}

// guarded starts a Rotator with a fake guard for the node's own directory.
func guarded(t *testing.T, s source.Source, change ...func(*Config)) (*node, *fakeGuard) {
	t.Helper()
	g := &fakeGuard{changed: make(chan struct{}, 1)}
	change = append(change, func(c *Config) { c.newGuard = func(string) sentinel { return g } })
	n := start(t, filepath.Join(mtlstest.MemoryDir(t), "mtls"), map[string]source.Source{"a": s}, change...)
	n.isReady(t, true)
	return n, g
}

// breakDirectory makes publication fail until restore is called.
func (n *node) breakDirectory(t *testing.T) (restore func()) {
	t.Helper()
	away := n.path + "-away"
	must.Do(t, errors.Join(os.Rename(n.path, away), os.WriteFile(n.path, nil, 0o644)), "put a file in its place")
	return func() {
		t.Helper()
		must.Do(t, errors.Join(os.Remove(n.path), os.Rename(away, n.path)), "put the directory back")
	}
}

var changed = guard.Finding{
	Finding:    client.Finding{Path: "..gen-x/client.key", What: client.FoundContent, Detail: "is not 5 bytes long"},
	Repairable: true,
}

// foreign is a finding that misleads nobody, mounted one that no publication puts right.
var (
	foreign = guard.Finding{Finding: client.Finding{Path: "x", What: client.FoundExtra, Warning: true}}
	mounted = guard.Finding{Finding: client.Finding{Path: ".", What: client.FoundMount, Detail: "by tmpfs"}}
)

func TestGuardRepairs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := mtlstest.NewCA(t, "ca", nil)
		s := newFake(ca.ClientSecret(t, "first"))
		n, g := guarded(t, s)
		generation := n.Status().Generation
		if got := n.Status().Guard.State; got != client.GuardOff && got != client.GuardOK {
			t.Errorf("state %s before anything has happened", got)
		}
		n.after(10 * time.Second)
		g.find()
		synctest.Wait()
		if got := n.Status().Guard.State; got != client.GuardOK || n.Status().Generation != generation {
			t.Errorf("state %s after a look that found nothing", got)
		}

		for i := range maxRepairs {
			before := n.Status().Generation
			n.after(time.Second)
			g.find(changed)
			synctest.Wait()
			st := n.Status()
			if st.Generation == before || st.Guard.State != client.GuardOK || st.Guard.Repairs != i+1 ||
				len(st.Guard.Findings) != 1 || st.Guard.At.IsZero() {
				t.Fatalf("repair %d: generation %s, %+v", i, st.Generation, st.Guard)
			}
		}
		before := n.Status().Generation
		g.find(changed)
		synctest.Wait()
		if st := n.Status(); st.Guard.State != client.GuardQuarantined || st.Generation != before {
			t.Errorf("after %d repairs in ten minutes: %+v", maxRepairs, st.Guard)
		}
		if n.metric(t, "repairs_total", "repaired") != maxRepairs ||
			n.metric(t, "tampering_total", "content") != maxRepairs+1 ||
			n.metric(t, "guarded_directories", "quarantined") != 1 {
			t.Error("the metrics tell something else")
		}

		// The alarm stays, whatever becomes of it; rotation goes on.
		g.findings = nil
		n.after(time.Hour)
		g.find()
		synctest.Wait()
		if got := n.Status().Guard.State; got != client.GuardQuarantined {
			t.Errorf("the alarm went away: %s", got)
		}
		s.put("version-2", ca.ClientSecret(t, "second"))
		n.after(6 * time.Minute)
		if n.subject(t) != "second" {
			t.Error("a rotation is not published in quarantine")
		}
	})
}

// TestGuardWhileJudging: a set that takes long to verify, current or pending, does not delay a repair.
func TestGuardWhileJudging(t *testing.T) {
	const long = time.Minute
	synctest.Test(t, func(t *testing.T) {
		var slow atomic.Bool
		ca := mtlstest.NewCA(t, "ca", nil)
		s := newFake(ca.ClientSecret(t, "first"))
		n, g := guarded(t, s, func(c *Config) {
			c.verifying = func() {
				if slow.Load() {
					time.Sleep(long)
				}
			}
		})
		slow.Store(true)
		s.put("version-2", ca.ClientSecret(t, "second"))
		s.pend("version-3", ca.ClientSecret(t, "third"))
		n.Hint()
		for _, step := range []string{"parse the current version", "parse the pending version",
			"assemble a set with the pending version", "assemble the set"} {
			n.after(long / 2) // in the middle of the step
			before := n.Status().Guard.Repairs
			g.find(changed)
			synctest.Wait()
			if got := n.Status().Guard.Repairs; got != before+1 {
				t.Errorf("%s: a changed file is not put back until that ends", step)
			}
			n.after(long / 2)
		}
		if got := n.subject(t); got != "second" {
			t.Errorf("published %q at the end of the last step, want the second", got)
		}
	})
}

// Where the published directory is gone or is another one, the files are published for new containers, and the alarm
// stays for those that hold the old one.
func TestGuardOfALostDirectory(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(path string) error
		what   client.FindingKind
	}{
		"replaced": {func(
			path string) error {
			return errors.Join(os.Rename(path, path+"-old"), os.Mkdir(path, 0o755))
		},
			client.FoundOtherDirectory},
		"removed": {func(path string) error { return os.Rename(path, path+"-old") }, client.FoundRemoved},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca := mtlstest.NewCA(t, "ca", nil)
				n, g := guarded(t, newFake(ca.ClientSecret(t, "first")))
				must.Do(t, c.damage(n.path), "take the directory away")
				g.find(guard.Finding{Finding: client.Finding{Path: ".", What: c.what}})
				synctest.Wait()
				if got := n.subject(t); got != "first" {
					t.Errorf("published %q in the new directory, want the first", got)
				}
				for _, findings := range [][]guard.Finding{nil, {foreign}, nil} {
					g.find(findings...)
					n.after(time.Minute)
					if st := n.Status().Guard; st.State != client.GuardAlarm || st.Repairs != 1 {
						t.Errorf("after a look that found %v: %+v, want that the alarm stays", findings, st)
					}
				}
			})
		})
	}
}

// A repair that cannot be made is tried again, ever more slowly, and does not count as one.
func TestGuardRepairFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := mtlstest.NewCA(t, "ca", nil)
		n, g := guarded(t, newFake(ca.ClientSecret(t, "first")))
		restore := n.breakDirectory(t)
		expected := g.expected
		for range 21 {
			g.find(changed)
			n.after(time.Minute)
		}
		st := n.Status().Guard
		if st.State != client.GuardAlarm || st.Repairs != 0 || !strings.Contains(st.Error, "not a directory") {
			t.Errorf("the directory is a file: %+v, want an alarm that says so", st)
		}
		if failed := n.metric(t, "repairs_total", "failed"); failed < 5 || failed > 25 {
			t.Errorf("%v attempts in 20 minutes, want 5 to 25", failed)
		}
		if g.expected != expected {
			t.Error("what was changed became what is expected")
		}

		// What cannot be repaired, or need not be, is not looked at in a loop.
		for _, rest := range []guard.Finding{foreign, mounted} {
			g.find(rest)
			synctest.Wait()
			before := g.verified.Load()
			n.after(time.Minute)
			if looks := g.verified.Load() - before; looks > 5 {
				t.Errorf("%d looks in a minute at %s", looks, rest)
			}
		}
		restore()
		g.find(changed)
		n.after(6 * time.Minute)
		if st := n.Status().Guard; st.State != client.GuardOK || st.Repairs != 1 {
			t.Errorf("once it can be made: %+v, want one repair", st)
		}
	})
}

// While AWS does not answer, a change is put back all the same.
func TestGuardWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := mtlstest.NewCA(t, "ca", nil)
		s := &slowSource{fakeSecret: newFake(ca.ClientSecret(t, "first"))}
		n, g := guarded(t, s)
		s.takes.Store(int64(9 * time.Second))
		n.Hint()
		n.after(time.Second)
		before, asked := n.Status().Generation, time.Now()
		g.find(changed)
		synctest.Wait()
		if n.Status().Generation == before || time.Since(asked) > 0 {
			t.Error("nothing was put back while a request was under way")
		}
	})
}

// slowSource takes its time.
type slowSource struct {
	*fakeSecret
	takes atomic.Int64
}

func (s *slowSource) Describe(ctx context.Context) (source.Version, error) {
	select {
	case <-ctx.Done():
		return source.Version{}, ctx.Err()
	case <-time.After(time.Duration(s.takes.Load())):
	}
	return s.fakeSecret.Describe(ctx)
}

// TestGuardForReal changes what a running Rotator has published, with the real guard, and waits for it to be put back.
// How long that may take is for package guard to test.
func TestGuardForReal(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	path := filepath.Join(mtlstest.MemoryDir(t), "mtls")
	r := New(Config{
		Log: mtlstest.Log(t), Registerer: promtext.New(),
		Settings: Settings{settings(path), []NamedSource{{"a", newFake(ca.ClientSecret(t, "first"))}}},
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	until := func(what string, met func(*client.Publication) bool) {
		t.Helper()
		for hang := time.Now().Add(time.Minute); !met(r.Status()); time.Sleep(time.Millisecond) {
			if time.Now().After(hang) {
				t.Fatalf("waiting for %s: %+v", what, r.Status())
			}
		}
	}
	until("the publication", func(s *client.Publication) bool { return s.Ready && s.Guard.State == client.GuardOK })

	key := filepath.Join(path, "client.key")
	want := mtlstest.Read(t, key)
	f, err := os.OpenFile(key, os.O_WRONLY, 0)
	f.Close()
	if immutable := errors.Is(err, syscall.EPERM); os.Getuid() == 0 && r.Status().Guard.Immutable != immutable {
		t.Errorf("immutable: %v, and root opens client.key for writing: %v", r.Status().Guard.Immutable, err)
	}
	for i, c := range []struct {
		name   string
		damage func(generation string) error
		what   client.FindingKind
	}{
		{"file replaced", func(generation string) error {
			other := filepath.Join(filepath.Dir(path), "other")
			return errors.Join(os.WriteFile(other, nil, 0o444),
				os.Rename(other, filepath.Join(generation, "client.key")))
		}, client.FoundReplaced},
		{"mode", func(generation string) error {
			return os.Chmod(filepath.Join(generation, "client.crt"), 0o640)
		}, client.FoundMode},
		{"link", func(string) error {
			link := filepath.Join(path, "client.crt")
			return errors.Join(os.Remove(link), os.Symlink("..prev/client.crt", link))
		}, client.FoundRetargeted},
	} {
		sim.ClearImmutable(path)
		must.Do(t, c.damage(filepath.Join(path, r.Status().Generation)), "damage: %s", c.name)
		until("the repair of "+c.name, func(s *client.Publication) bool { return s.Guard.Repairs == i+1 })
		if got := mtlstest.Read(t, key); got != want {
			t.Errorf("%s: client.key is not what it was", c.name)
		}
		found := func(f client.Finding) bool { return f.What == c.what }
		if st := r.Status().Guard; st.State != client.GuardOK || !slices.ContainsFunc(st.Findings, found) {
			t.Errorf("%s: %+v, want %s", c.name, st, c.what)
		}
	}
}

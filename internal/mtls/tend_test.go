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

	"github.com/prometheus/client_golang/prometheus"

	"sevagent/client"
	"sevagent/internal/mtls/guard"
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

// guarded starts a Rotator with a fake guard.
func guarded(t *testing.T, s Source) (*node, *fakeGuard) {
	t.Helper()
	g := &fakeGuard{changed: make(chan struct{}, 1)}
	n := startGuarded(t, filepath.Join(memoryDir(t), "mtls"), map[string]Source{"a": s}, g)
	n.isReady(t, true)
	return n, g
}

var changed = guard.Finding{
	Finding:    client.Finding{Path: "..gen-x/client.key", What: client.FoundContent, Detail: "is not 5 bytes long"},
	Repairable: true,
}

func TestGuardRepairs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, "ca", nil)
		s := newFake(ca.clientSecret(t, "first"))
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
			if st.Generation == before || st.Guard.State != client.GuardOK || st.Guard.Repairs != i+1 || len(st.Guard.Findings) != 1 || st.Guard.At.IsZero() {
				t.Fatalf("repair %d: generation %s, %+v", i, st.Generation, st.Guard)
			}
		}
		before := n.Status().Generation
		g.find(changed)
		synctest.Wait()
		if st := n.Status(); st.Guard.State != client.GuardQuarantined || st.Generation != before {
			t.Errorf("after %d repairs in ten minutes: %+v", maxRepairs, st.Guard)
		}
		if n.metric(t, "repairs_total", "repaired") != maxRepairs || n.metric(t, "tampering_total", "content") != maxRepairs+1 || n.metric(t, "guarded_directories", "quarantined") != 1 {
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
		s.put("version-2", ca.clientSecret(t, "second"))
		n.after(6 * time.Minute)
		if n.subject(t) != "second" {
			t.Error("a rotation is not published in quarantine")
		}
	})
}

// Five an hour are accidents, which are put back for ever.
func TestGuardBudgetIsOfTenMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, "ca", nil)
		n, g := guarded(t, newFake(ca.clientSecret(t, "first")))
		for range 4 * maxRepairs {
			n.after(3 * time.Minute)
			g.find(changed)
			synctest.Wait()
		}
		if st := n.Status().Guard; st.State != client.GuardOK || st.Repairs != 4*maxRepairs {
			t.Errorf("%+v", st)
		}
	})
}

func TestGuardCannotRepair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, "ca", nil)
		n, g := guarded(t, newFake(ca.clientSecret(t, "first")))
		generation := n.Status().Generation
		over := guard.Finding{Finding: client.Finding{Path: ".", What: client.FoundMount, Detail: "by tmpfs"}}
		g.find(over)
		synctest.Wait()
		if st := n.Status(); st.Guard.State != client.GuardAlarm || st.Generation != generation {
			t.Errorf("mounted over: %+v", st.Guard)
		}
		g.findings = nil
		g.find()
		synctest.Wait()
		if st := n.Status().Guard; st.State != client.GuardOK || !slices.Equal(st.Findings, []client.Finding{over.Finding}) {
			t.Errorf("mounted over no more: %+v", st)
		}
		g.find(guard.Finding{Finding: client.Finding{Path: "x", What: client.FoundExtra, Warning: true}})
		synctest.Wait()
		if st := n.Status(); st.Guard.State != client.GuardWarning || st.Generation != generation {
			t.Errorf("a foreign file: %+v", st.Guard)
		}
	})
}

// Into a directory that has taken the place of the published one the files are put for those who come, and the alarm
// stays for those who hold the old one.
func TestGuardOfAReplacedDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, "ca", nil)
		n, g := guarded(t, newFake(ca.clientSecret(t, "first")))
		if err := errors.Join(os.Rename(n.path, n.path+"-old"), os.Mkdir(n.path, 0o755)); err != nil {
			t.Fatal(err)
		}
		g.find(guard.Finding{Finding: client.Finding{Path: ".", What: client.FoundOtherDirectory}})
		synctest.Wait()
		if got := n.subject(t); got != "first" {
			t.Errorf("published %q in the new directory", got)
		}
		g.find()
		n.after(time.Hour)
		if st := n.Status().Guard; st.State != client.GuardAlarm || st.Repairs != 1 {
			t.Errorf("%+v, want that the alarm stays", st)
		}
	})
}

// The directory itself is gone: it is made again, for those who come.
func TestGuardOfARemovedDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, "ca", nil)
		n, g := guarded(t, newFake(ca.clientSecret(t, "first")))
		if err := os.Rename(n.path, n.path+"-old"); err != nil {
			t.Fatal(err)
		}
		g.find(guard.Finding{Finding: client.Finding{Path: ".", What: client.FoundRemoved}})
		synctest.Wait()
		if got := n.subject(t); got != "first" || n.Status().Guard.State != client.GuardAlarm {
			t.Errorf("published %q, %+v", got, n.Status().Guard)
		}
		// A foreign file that comes and goes does not end the alarm.
		g.find(guard.Finding{Finding: client.Finding{Path: "x", What: client.FoundExtra, Warning: true}})
		synctest.Wait()
		g.find()
		synctest.Wait()
		if st := n.Status().Guard; st.State != client.GuardAlarm {
			t.Errorf("%+v", st)
		}
	})
}

// A repair that cannot be made is tried again, ever more slowly, and does not count as one.
func TestGuardRepairFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, "ca", nil)
		n, g := guarded(t, newFake(ca.clientSecret(t, "first")))
		var fails atomic.Bool
		fails.Store(true)
		n.main().pub.testOnlyFail = func(string) error {
			if fails.Load() {
				return errTest
			}
			return nil
		}
		expected := g.expected
		g.find(changed)
		for range 20 {
			n.after(time.Minute)
			g.find(changed)
		}
		synctest.Wait()
		st := n.Status().Guard
		if st.State != client.GuardAlarm || st.Repairs != 0 || !strings.Contains(st.Error, "connection refused") {
			t.Errorf("%+v", st)
		}
		if failed := n.metric(t, "repairs_total", "failed"); failed < 5 || failed > 25 {
			t.Errorf("%v attempts in 20 minutes", failed)
		}
		if g.expected != expected {
			t.Error("what was changed became what is expected")
		}
		fails.Store(false)
		n.after(6 * time.Minute)
		if st := n.Status().Guard; st.State != client.GuardOK || st.Repairs != 1 {
			t.Errorf("once it can be made: %+v", st)
		}
	})
}

// While AWS does not answer, a change is put back all the same.
func TestGuardWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, "ca", nil)
		s := &slowSource{fakeSecret: newFake(ca.clientSecret(t, "first"))}
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

func (s *slowSource) Describe(ctx context.Context) (Version, error) {
	select {
	case <-ctx.Done():
		return Version{}, ctx.Err()
	case <-time.After(time.Duration(s.takes.Load())):
	}
	return s.fakeSecret.Describe(ctx)
}

// TestGuardForReal changes what a running Rotator has published, with the real guard, and waits for it to be put back.
func TestGuardForReal(t *testing.T) {
	ca := newCA(t, "ca", nil)
	path := filepath.Join(memoryDir(t), "mtls")
	generations := make(chan string, 16)
	r := New(Config{
		Path: path, AllowDisk: true, Log: testLog(t), Registerer: prometheus.NewRegistry(), Published: func(g string) { generations <- g },
		Settings: Settings{
			Secrets:      []NamedSource{{"a", newFake(ca.clientSecret(t, "first"))}},
			PollInterval: time.Hour, Owner: ours.owner, KeyMode: ours.keyMode, CertMode: ours.certMode,
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	next := func() string {
		t.Helper()
		select {
		case g := <-generations:
			return g
		case <-time.After(10 * time.Second):
			t.Fatalf("nothing was published; %+v", r.Status().Guard)
			return ""
		}
	}
	generation := next()
	for deadline := time.Now().Add(10 * time.Second); r.Status().Generation != generation; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) { // the status follows the publication
			t.Fatalf("%+v", r.Status())
		}
	}
	want := mustRead(t, filepath.Join(path, "client.key"))
	if os.Getuid() == 0 && r.Status().Guard.Immutable != immutableHere(t, path) {
		t.Errorf("immutable: %v, and the file system says otherwise", r.Status().Guard.Immutable)
	}
	file := func(name string) string { return filepath.Join(path, generation, name) }
	for i, c := range []struct {
		name   string
		damage func() error
		what   client.FindingKind
	}{
		{"file replaced", func() error {
			other := filepath.Join(filepath.Dir(path), "other")
			return errors.Join(os.WriteFile(other, []byte("x"), 0o444), os.Rename(other, file("client.key")))
		}, client.FoundReplaced},
		{"mode", func() error { return os.Chmod(file("client.crt"), 0o640) }, client.FoundMode},
		{"link", func() error {
			return errors.Join(os.Remove(filepath.Join(path, "client.crt")), os.Symlink("..prev/client.crt", filepath.Join(path, "client.crt")))
		}, client.FoundRetargeted},
	} {
		sim.Soften(path)
		began := time.Now()
		if err := c.damage(); err != nil {
			t.Fatal(err)
		}
		generation = next()
		took := time.Since(began)
		t.Logf("%s: put back after %v", c.name, took)
		if took > time.Second {
			t.Errorf("%s: put back after %v, want a second at most", c.name, took)
		}
		if got := mustRead(t, filepath.Join(path, "client.key")); got != want {
			t.Errorf("%s: client.key is not what it was", c.name)
		}
		// The status follows the publication.
		for r.Status().Guard.Repairs != i+1 {
			if time.Since(began) > 10*time.Second {
				t.Fatalf("%s: %+v", c.name, r.Status().Guard)
			}
			time.Sleep(time.Millisecond)
		}
		if st := r.Status().Guard; st.State != client.GuardOK || !slices.ContainsFunc(st.Findings, func(f client.Finding) bool { return f.What == c.what }) {
			t.Errorf("%s: %+v, want %s", c.name, st, c.what)
		}
	}
}

// immutableHere reports whether a file can have the attribute where path is.
func immutableHere(t *testing.T, path string) bool {
	t.Helper()
	f, err := os.Create(filepath.Join(filepath.Dir(path), "try"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ok, err := setImmutable(int(f.Fd()), true)
	if err != nil {
		t.Fatal(err)
	}
	setImmutable(int(f.Fd()), false)
	return ok
}

func TestImmutable(t *testing.T) {
	ca := newCA(t, "ca", nil)
	d := newDirectory(t)
	s, bundles := mustSet(t, ca.clientSecret(t, "first"))
	if os.Getuid() != 0 || !immutableHere(t, d.path) {
		t.Skip("needs root and a file system with the immutable attribute")
	}
	first := d.mustPublish(s, bundles)
	if !first.immutable {
		t.Error("the generation does not know that it is immutable")
	}
	file := filepath.Join(d.path, first.name(), "client.key")
	refused := func(when string) {
		t.Helper()
		for what, err := range map[string]error{
			"write":  os.WriteFile(file, []byte("x"), 0o600),
			"chmod":  os.Chmod(file, 0o644),
			"remove": os.Remove(file),
			"link":   os.Link(file, filepath.Join(d.path, "link")),
			"rename": os.Rename(file, file+"2"),
			"create": os.WriteFile(filepath.Join(filepath.Dir(file), "new"), nil, 0o600),
		} {
			if !errors.Is(err, syscall.EPERM) {
				t.Errorf("%s: %s: %v, want that it is not permitted", when, what, err)
			}
		}
	}
	refused("current")
	next, bundles := mustSet(t, ca.clientSecret(t, "second"))
	d.mustPublish(next, bundles)
	if err := softenAll(d.path); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(d.path, "..data", "client.key"), 0o440); err != nil {
		t.Errorf("when the agent has stopped: %v", err)
	}
	g, err := d.recover()
	if err != nil || !g.immutable {
		t.Errorf("recovered: %v", err)
	}
	file = filepath.Join(d.path, g.name(), "client.key")
	refused("after a restart")
	for range maxRetired + 2 { // until the first is removed
		next, bundles := mustSet(t, ca.clientSecret(t, "more"))
		d.mustPublish(next, bundles)
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an old generation is still there: %v", err)
	}
}

func TestOpens(t *testing.T) {
	dir := memoryDir(t)
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "a"), nil, 0o644), os.WriteFile(filepath.Join(dir, "b"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	o := newOpens()
	defer o.close()
	open := func(name string) {
		t.Helper()
		mustRead(t, filepath.Join(dir, name))
	}
	open("a")
	if n := o.drain(); n != 0 {
		t.Errorf("%d opens before anything is followed", n)
	}
	o.follow(dir)
	open("a")
	open("b")
	if n := o.drain(); n != 2 {
		t.Errorf("%d opens, want 2", n)
	}
	if n := o.drain(); n != 0 {
		t.Errorf("%d opens, and nobody opened anything", n)
	}

	// A reader that is at work puts the switch off, and one that never ends does not for ever.
	began := time.Now()
	if n := o.settle(); n != 0 || time.Since(began) < quietFor {
		t.Errorf("quiet after %v, %d opens", time.Since(began), n)
	}
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			default:
				os.ReadFile(filepath.Join(dir, "a"))
				os.ReadFile(filepath.Join(dir, "b"))
			}
		}
	}()
	for o.drain() == 0 {
	}
	began = time.Now()
	n := o.settle()
	took := time.Since(began)
	close(stop)
	<-ended
	if n == 0 || took < quietFor || took > 20*quietMax { // a busy machine may give the reader a break
		t.Errorf("settled after %v with %d opens, want at most %v", took, n, quietMax)
	}

	other := memoryDir(t)
	o.follow(other)
	open("a")
	if n := o.drain(); n != 0 {
		t.Errorf("%d opens in a directory that is not followed any more", n)
	}
}

// Whatever is in the place of the current generation, of its links and of ..prev, the next publication goes through.
func TestPublishOverRubble(t *testing.T) {
	ca := newCA(t, "ca", nil)
	for name, damage := range map[string]func(dir, gen string) error{
		"file for the generation": func(dir, gen string) error {
			return errors.Join(os.RemoveAll(gen), os.WriteFile(gen, nil, 0o644))
		},
		"link for the generation": func(dir, gen string) error { return errors.Join(os.RemoveAll(gen), os.Symlink("/etc", gen)) },
		"no generation, and a directory for a link": func(dir, gen string) error {
			link := filepath.Join(dir, "client.crt")
			return errors.Join(os.RemoveAll(gen), os.Remove(link), os.MkdirAll(filepath.Join(link, "x"), 0o755))
		},
		"directory for ..prev": func(dir, gen string) error { return os.MkdirAll(filepath.Join(dir, prevLink, "x"), 0o755) },
		"directory for ..data": func(dir, gen string) error {
			data := filepath.Join(dir, dataLink)
			return errors.Join(os.Remove(data), os.MkdirAll(filepath.Join(data, "x"), 0o755))
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDirectory(t)
			first, bundles := mustSet(t, ca.clientSecret(t, "first"))
			g := d.mustPublish(first, bundles)
			sim.Soften(d.path)
			if err := damage(d.path, filepath.Join(d.path, g.name())); err != nil {
				t.Fatal(err)
			}
			next, bundles := mustSet(t, ca.clientSecret(t, "second"))
			d.mustPublish(next, bundles)
			d.holds(next)
		})
	}
}

// After a repair that failed, what cannot be repaired, or need not be, is not looked at in a loop.
func TestGuardDoesNotSpin(t *testing.T) {
	for name, rest := range map[string]guard.Finding{
		"warning":    {Finding: client.Finding{Path: "x", What: client.FoundExtra, Warning: true}},
		"unmendable": {Finding: client.Finding{Path: ".", What: client.FoundMount}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca := newCA(t, "ca", nil)
				n, g := guarded(t, newFake(ca.clientSecret(t, "first")))
				var fails atomic.Bool
				fails.Store(true)
				n.main().pub.testOnlyFail = func(string) error {
					if fails.Load() {
						return errTest
					}
					return nil
				}
				g.find(changed)
				synctest.Wait()
				g.find(rest)
				synctest.Wait()
				before := g.verified.Load()
				n.after(time.Minute)
				if looks := g.verified.Load() - before; looks > 5 {
					t.Errorf("%d looks in a minute", looks)
				}
			})
		})
	}
}

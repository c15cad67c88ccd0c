package certs_test

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sevagent/client/certs"
	"sevagent/internal/must"
	"sevagent/internal/sim/simca"
)

// published is a directory in the layout of internal/mtls.
type published struct {
	t    testing.TB
	path string
	n    int
}

type files map[string]string

func newPublished(t testing.TB) *published { return &published{t: t, path: t.TempDir()} }

func (p *published) gen(n int) string {
	return filepath.Join(p.path, fmt.Sprintf("..gen-20261124T024112.%06dZ-3f9c1a2b", n))
}

// publish switches to a new generation, and returns its name. It may run in any goroutine.
func (p *published) publish(f files) string {
	p.n++
	err := os.Mkdir(p.gen(p.n), 0o755)
	for file, content := range f {
		err = errors.Join(err, os.WriteFile(filepath.Join(p.gen(p.n), file), []byte(content), 0o600))
		if p.n == 1 {
			err = errors.Join(err, os.Symlink("..data/"+file, filepath.Join(p.path, file)))
		}
	}
	name := filepath.Base(p.gen(p.n))
	tmp := filepath.Join(p.path, "..data_tmp")
	err = errors.Join(err, os.Symlink(name, tmp), os.Rename(tmp, filepath.Join(p.path, "..data")))
	if err != nil {
		p.t.Errorf("publish %s: %v", name, err)
	}
	return name
}

func (p *published) open() *certs.Directory {
	p.t.Helper()
	return must.Get(certs.Open(p.path))(p.t, "open %s", p.path)
}

func newCA(t testing.TB, name string) *simca.CA {
	t.Helper()
	root := must.Get(simca.New(name, time.Now()))(t, "make the root %s", name)
	return must.Get(root.Intermediate(name+" intermediate", time.Now()))(t, "make the intermediate of %s", name)
}

func issue(t testing.TB, ca *simca.CA, name string) simca.Leaf {
	t.Helper()
	return must.Get(ca.Issue(name, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)))(t,
		"issue a leaf for %s", name)
}

// whole is all files of a generation, with leaves named client-name and server-name.
func whole(t testing.TB, ca *simca.CA, name string) files {
	t.Helper()
	c, s := issue(t, ca, "client-"+name), issue(t, ca, "server-"+name)
	return files{
		"ca.crt": ca.PEM(), "manifest.json": "{}",
		"client.crt": c.Cert, "client.key": c.Key, "client.pem": c.Key + c.Cert,
		"server.crt": s.Cert, "server.key": s.Key, "server.pem": s.Key + s.Cert,
	}
}

func (f files) only(names ...string) files {
	g := files{}
	for _, name := range names {
		g[name] = f[name]
	}
	return g
}

// holds fails the test unless d is at a generation with these leaves, without an error.
func holds(t *testing.T, d *certs.Directory, generation, name string) {
	t.Helper()
	s := d.Set()
	if s.Generation != generation || s.Client.Leaf.Subject.CommonName != "client-"+name ||
		s.Server.Leaf.Subject.CommonName != "server-"+name {
		t.Errorf("set is %s with %s and %s, want %s with those of %s", s.Generation, s.Client.Leaf.Subject,
			s.Server.Leaf.Subject, generation, name)
	}
	if err := d.Err(); err != nil {
		t.Errorf("the directory reports %v", err)
	}
}

func TestSetFollows(t *testing.T) {
	p, ca := newPublished(t), newCA(t, "ca")
	first := p.publish(whole(t, ca, "1"))
	d := p.open()
	holds(t, d, first, "1")
	s := d.Set()
	if d.Set() != s {
		t.Error("the set is another pointer although nothing has changed")
	}
	if len(s.Client.Certificate) != 2 {
		t.Errorf("the chain has %d certificates, want leaf and intermediate", len(s.Client.Certificate))
	}
	if !s.NotAfter.Equal(s.Server.Leaf.NotAfter) && !s.NotAfter.Equal(s.Client.Leaf.NotAfter) ||
		string(s.RootsPEM) != ca.PEM() {
		t.Errorf("NotAfter %v, RootsPEM %q", s.NotAfter, s.RootsPEM)
	}
	second := p.publish(whole(t, newCA(t, "another"), "2"))
	holds(t, d, second, "2")
	if s.Generation != first || string(s.RootsPEM) != ca.PEM() {
		t.Error("a set that a caller holds has changed")
	}
}

func TestSubsets(t *testing.T) {
	ca := newCA(t, "ca")
	all := whole(t, ca, "x")
	for _, test := range []struct {
		name                  string
		files                 files
		client, server, roots bool
	}{
		{"all", all, true, true, true},
		{"ca.crt alone", all.only("ca.crt"), false, false, true},
		{"client.pem alone", all.only("client.pem"), true, false, false},
		{"two files for a pair", all.only("client.crt", "client.key", "ca.crt"), true, false, true},
		{"a server", all.only("server.pem", "ca.crt"), false, true, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPublished(t)
			p.publish(test.files)
			s := p.open().Set()
			if (s.Client != nil) != test.client || (s.Server != nil) != test.server ||
				(s.RootsPEM != nil) != test.roots {
				t.Errorf("client %v, server %v, roots %v", s.Client != nil, s.Server != nil, s.RootsPEM != nil)
			}
			if s.NotAfter.IsZero() == (test.client || test.server) {
				t.Errorf("NotAfter is %v", s.NotAfter)
			}
			want := x509.NewCertPool()
			want.AppendCertsFromPEM([]byte(test.files["ca.crt"]))
			if s.Roots == nil || !s.Roots.Equal(want) {
				t.Error("Roots are not those of ca.crt")
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	ca := newCA(t, "ca")
	good := whole(t, ca, "x")
	broken := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("no certificate")})
	generation := func(f files) func(*published) { return func(p *published) { p.publish(f) } }
	link := func(target string) func(*published) {
		return func(p *published) { os.Symlink(target, filepath.Join(p.path, "..data")) }
	}
	for _, test := range []struct {
		name     string
		prepare  func(*published)
		want     string
		notExist bool
	}{
		{"nothing is there", func(p *published) { p.path += "/none" },
			"is the published directory mounted there", true},
		{"an empty directory", func(*published) {}, "is the published directory mounted there", true},
		{"a single file", func(p *published) { p.publish(good); p.path += "/client.pem" },
			"as a directory and not a single file", false},
		{"a link out of the directory", link("../elsewhere"), "leads out of its directory", false},
		{"an absolute link", link("/etc"), "leads out of its directory", false},
		{"a link to the parent", link(".."), "leads out of its directory", false},
		{"a link to nothing", link("..gen-1"), "there is no ca.crt", true},
		{"no file of ours", generation(files{"cert-0.pem": good["ca.crt"]}), "there is no ca.crt", true},
		{"a certificate without its key", generation(good.only("ca.crt", "client.crt")),
			"client.crt and client.key: one is there without the other", false},
		{"a key that does not match", generation(files{"client.crt": good["client.crt"],
			"client.key": good["server.key"]}), "private key does not match", false},
		{"an anchor that is no PEM", generation(files{"ca.crt": "none"}),
			"ca.crt: there is no certificate in it", false},
		{"an anchor that does not parse", generation(files{"ca.crt": good["ca.crt"] + string(broken)}),
			"ca.crt: x509:", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPublished(t)
			test.prepare(p)
			d, err := certs.Open(p.path)
			if err == nil || d != nil || !strings.Contains(err.Error(), test.want) ||
				errors.Is(err, fs.ErrNotExist) != test.notExist {
				t.Errorf("Open fails with %v, want %q, fs.ErrNotExist: %v", err, test.want, test.notExist)
			}
		})
	}
}

// A generation that cannot be loaded leaves the last good set in use, until there is a better one.
func TestKeepsTheLastGoodSet(t *testing.T) {
	ca := newCA(t, "ca")
	good, other := whole(t, ca, "1"), whole(t, ca, "2")
	for name, harm := range map[string]func(p *published){
		"key mismatch": func(p *published) {
			p.publish(files{"ca.crt": ca.PEM(), "client.pem": other["client.key"] + good["client.crt"]})
		},
		"damaged anchor": func(p *published) {
			p.publish(files{"ca.crt": "-----BEGIN", "client.pem": good["client.pem"]})
		},
		"empty generation":   func(p *published) { p.publish(nil) },
		"generation removed": func(p *published) { p.publish(other); os.RemoveAll(p.gen(p.n)) },
		"link removed":       func(p *published) { os.Remove(filepath.Join(p.path, "..data")) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPublished(t)
			first := p.publish(good)
			d := p.open()
			harm(p)
			if s := d.Set(); s.Generation != first {
				t.Errorf("set is %s, want %s", s.Generation, first)
			}
			if d.Err() == nil {
				t.Error("no error")
			}
			holds(t, d, p.publish(other), "2")
		})
	}
}

// A loaded generation may be removed: everything is in memory.
func TestLoadedGenerationRemoved(t *testing.T) {
	p := newPublished(t)
	first := p.publish(whole(t, newCA(t, "ca"), "1"))
	d := p.open()
	must.Do(t, os.RemoveAll(p.gen(1)), "remove the generation that was loaded")
	holds(t, d, first, "1")
}

// A generation that fails is retried after a second and not before, for transient causes.
func TestRetry(t *testing.T) {
	p := newPublished(t)
	all := whole(t, newCA(t, "ca"), "1")
	p.publish(all)
	synctest.Test(t, func(t *testing.T) {
		d := p.open()
		second := p.publish(nil)
		err := d.Err()
		if err == nil {
			t.Fatal("no error")
		}
		must.Do(t, os.WriteFile(filepath.Join(p.gen(2), "ca.crt"), []byte(all["ca.crt"]), 0o600),
			"repair the new generation")
		time.Sleep(time.Second - time.Nanosecond)
		if again := d.Err(); again != err {
			t.Errorf("tried again within a second: %v", again)
		}
		time.Sleep(time.Nanosecond)
		if s := d.Set(); s.Generation != second || d.Err() != nil {
			t.Errorf("set is %s, want %s; %v", s.Generation, second, d.Err())
		}
	})
}

// Sets and handshakes during a rotation each millisecond, of which only two generations are kept: none is mixed, and
// none fails. All anchors are in each ca.crt, since the two ends look at different times; the first tells the
// generation.
func TestRotationStorm(t *testing.T) {
	const rotations, kinds = 500, 4
	var cas []*simca.CA
	for i := range kinds {
		cas = append(cas, newCA(t, fmt.Sprint(i)))
	}
	var kind []files
	for i := range kinds {
		f := whole(t, cas[i], fmt.Sprint(i))
		f["ca.crt"] = ""
		for j := range kinds {
			f["ca.crt"] += cas[(i+j)%kinds].PEM()
		}
		if i%2 == 0 { // both ways to read a pair
			f = f.only("ca.crt", "client.crt", "client.key", "server.crt", "server.key")
		} else {
			f = f.only("ca.crt", "client.pem", "server.pem")
		}
		kind = append(kind, f)
	}
	p := newPublished(t)
	p.publish(kind[0])
	d := p.open()
	clientConfig, serverConfig := d.ClientConfig("localhost"), d.ServerConfig()

	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for i := range rotations {
			<-tick.C
			p.publish(kind[(i+1)%kinds])
			os.RemoveAll(p.gen(p.n - 2))
		}
	}()
	checkSet := func() {
		s := d.Set()
		block, _ := pem.Decode(s.RootsPEM)
		anchor, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Errorf("parse the first anchor: %v", err)
			return
		}
		n := anchor.Subject.CommonName
		if c, s := s.Client.Leaf.Subject.CommonName, s.Server.Leaf.Subject.CommonName; c != "client-"+n ||
			s != "server-"+n {
			t.Errorf("anchor %s with %s and %s", n, c, s)
		}
	}
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			for running := true; running; {
				select {
				case <-done:
					running = false // once more, when it has ended
				default:
				}
				checkSet()
				config := clientConfig
				if i%2 == 0 {
					config = d.Set().ClientConfig("localhost")
				}
				if client, server := handshake(config, serverConfig); client != nil || server != nil {
					t.Errorf("client: %v; server: %v", client, server)
				}
			}
		})
	}
	wg.Wait()
	holds(t, d, filepath.Base(p.gen(rotations+1)), fmt.Sprint(rotations%kinds))
}

// BenchmarkSet is what each handshake pays when nothing has changed.
func BenchmarkSet(b *testing.B) {
	p := newPublished(b)
	p.publish(whole(b, newCA(b, "ca"), "1"))
	d := p.open()
	b.ReportAllocs()
	for b.Loop() {
		d.Set()
	}
}

// BenchmarkLoad is what a rotation costs.
func BenchmarkLoad(b *testing.B) {
	p := newPublished(b)
	p.publish(whole(b, newCA(b, "ca"), "1"))
	b.ReportAllocs()
	for b.Loop() {
		p.open()
	}
}

// BenchmarkHandshake is a whole one, without a session to resume.
func BenchmarkHandshake(b *testing.B) {
	p := newPublished(b)
	p.publish(whole(b, newCA(b, "ca"), "1"))
	d := p.open()
	client, server := d.ClientConfig("localhost"), d.ServerConfig()
	for b.Loop() {
		if c, s := handshake(client, server); c != nil || s != nil {
			b.Fatal(c, s)
		}
	}
}

package mtls

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"sevagent/client"
	"sevagent/internal/config"
	"sevagent/internal/mtls/directory"
	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/mtls/source"
	"sevagent/internal/must"
	"sevagent/internal/promtext"
	"sevagent/internal/promtext/promtexttest"
	"sevagent/internal/sim"
)

// fakeSecret is a secret whose versions a test controls.
type fakeSecret struct {
	mu        sync.Mutex
	versions  map[string][]byte
	current   string
	pending   string
	rotation  time.Time
	err       error          // of both operations
	onFetch   func()         // runs before a fetch is answered
	ahead     *time.Duration // of the service's clock; nil: it has none
	describes int
	fetches   int
}

func newFake(content []byte) *fakeSecret {
	f := &fakeSecret{versions: make(map[string][]byte)}
	f.put("version-1", content)
	return f
}

func (f *fakeSecret) put(version string, content []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.versions[version], f.current = content, version
}

func (f *fakeSecret) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

// counts returns the requests since the last call.
func (f *fakeSecret) counts() (describes, fetches int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	describes, fetches = f.describes, f.fetches
	f.describes, f.fetches = 0, 0
	return describes, fetches
}

func (f *fakeSecret) Describe(context.Context) (source.Version, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.describes++
	return source.Version{Current: f.current, Pending: f.pending, NextRotation: f.rotation, Date: f.date()}, f.err
}

// date is what the service's clock says.
func (f *fakeSecret) date() time.Time {
	if f.ahead == nil {
		return time.Time{}
	}
	return time.Now().Add(*f.ahead).Truncate(time.Second)
}

func (f *fakeSecret) Fetch(_ context.Context, version string, label source.Label) (source.Secret, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fetches++
	if f.onFetch != nil {
		f.onFetch()
	}
	if f.err != nil {
		return nil, f.err
	}
	if version != map[source.Label]string{source.Current: f.current, source.Pending: f.pending}[label] {
		return nil, &source.Error{Kind: source.Moved, Err: errors.New("ResourceNotFoundException")}
	}
	return source.NewSecret(f.versions[version]), nil
}

// ours are settings that need no privileges.
var (
	own  = config.Owner{UID: os.Getuid(), GID: os.Getgid()}
	ours = directory.Access{Owner: directory.Owner(own), KeyMode: 0o400, CertMode: 0o444}
)

func settings(path string) config.MTLS {
	return config.MTLS{
		Path: path, AllowDisk: true, PollInterval: 5 * time.Minute,
		Owner: own, KeyMode: ours.KeyMode, CertMode: ours.CertMode,
	}
}

// node is a running Rotator inside a synctest bubble.
type node struct {
	*Rotator
	path    string
	config  Config
	metrics *promtext.Registry
	stop    func()

	published atomic.Int64 // how often OnPublish was called
}

func start(t *testing.T, path string, secrets map[string]source.Source, change ...func(*Config)) *node {
	t.Helper()
	n := &node{path: path, metrics: promtext.New()}
	n.config = Config{
		Settings:   Settings{MTLS: settings(path)},
		Registerer: n.metrics,
		Log:        mtlstest.Log(t),
		newGuard:   func(string) sentinel { return nil },
	}
	for _, name := range []string{"a", "b", "c"} {
		if s := secrets[name]; s != nil {
			n.config.Settings.Secrets = append(n.config.Settings.Secrets, NamedSource{name, s})
		}
	}
	for _, c := range change {
		c(&n.config)
	}
	n.Rotator = New(n.config)
	n.OnPublish(func(string) { n.published.Add(1) })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	n.stop = func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		done <- nil
	}
	t.Cleanup(n.stop)
	synctest.Wait()
	return n
}

// withNode runs a test in a bubble, with a node that has published the first version of its only secret, a.
func withNode(t *testing.T, test func(t *testing.T, ca *mtlstest.CA, s *fakeSecret, n *node)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ca := mtlstest.NewCA(t, "ca", nil)
		s := newFake(ca.ClientSecret(t, "first"))
		test(t, ca, s, start(t, filepath.Join(mtlstest.MemoryDir(t), "mtls"), map[string]source.Source{"a": s}))
	})
}

// read returns what a consumer reads, by the names of the links.
func (n *node) read(t *testing.T) map[string]string {
	t.Helper()
	files := make(map[string]string)
	for _, name := range names(t, n.path) {
		files[name] = mtlstest.Read(t, filepath.Join(n.path, name))
	}
	return files
}

// after lets time pass. Run locks the inbox at each turn, and so what a test has changed before is, to the race
// detector, changed before what fakes read then: time does not count there.
func (n *node) after(d time.Duration) *client.Publication {
	n.inbox.next()
	time.Sleep(d)
	synctest.Wait()
	return n.Status()
}

func (n *node) secret(name string) client.SecretStatus {
	for _, s := range n.Status().Secrets {
		if s.Name == name {
			return s
		}
	}
	return client.SecretStatus{}
}

func (n *node) isReady(t *testing.T, want bool) {
	t.Helper()
	got := true
	select {
	case <-n.Ready():
	default:
		got = false
	}
	if got != want || n.Status().Ready != want {
		t.Errorf("ready is %v (status %v), want %v", got, n.Status().Ready, want)
	}
}

// subject is the common name of the published client certificate, as a consumer finds it. Empty: there is none.
func (n *node) subject(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(n.path, "client.pem"))
	if err != nil {
		return ""
	}
	return subjects(t, content)[0]
}

// subjects lists the common names of the certificates in a PEM file.
func subjects(t *testing.T, content []byte) (names []string) {
	t.Helper()
	for {
		var block *pem.Block
		if block, content = pem.Decode(content); block == nil {
			return names
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatalf("parse a published certificate: %v", err)
		}
		names = append(names, c.Subject.CommonName)
	}
}

func TestRotation(t *testing.T) {
	withNode(t, func(t *testing.T, ca *mtlstest.CA, s *fakeSecret, n *node) {
		n.isReady(t, true)
		if got := n.subject(t); got != "first" {
			t.Errorf("published %q at the start", got)
		}
		if d, f := s.counts(); d != 1 || f != 1 {
			t.Errorf("%d describes and %d fetches at the start, want one each", d, f)
		}

		n.after(time.Hour)
		if d, f := s.counts(); d < 10 || d > 15 || f != 0 {
			t.Errorf("%d describes and %d fetches in a quiet hour, want 12 ± 20 %% and none", d, f)
		}

		s.put("version-2", ca.ClientSecret(t, "second"))
		status := n.after(6 * time.Minute)
		if got := n.subject(t); got != "second" {
			t.Errorf("published %q six minutes after a rotation", got)
		}
		if d, f := s.counts(); f != 1 {
			t.Errorf("%d describes and %d fetches, want one fetch", d, f)
		}
		if c := status.Certificates; len(c) != 2 || c[1].Subject != "CN=second" || c[1].File != "client.crt" ||
			c[1].Secret != "a" || c[1].Version != "version-2" {
			t.Errorf("certificates %+v", c)
		}
		want := client.SecretStatus{Name: "a", State: client.SecretCurrent,
			Published: "version-2", Version: "version-2"}
		got := n.secret("a")
		got.LastChecked, got.NextCheck = time.Time{}, time.Time{}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("secret (-want +got):\n%s", diff)
		}
		if sum, ok := n.SPKI("client"); !ok || fmt.Sprintf("%x", sum) != status.Certificates[1].SPKISHA256 {
			t.Errorf("SPKI is %x, %v", sum, ok)
		}
		if _, ok := n.SPKI("server"); ok {
			t.Error("there is a server certificate")
		}

		// AWSCURRENT moves back: what differs counts, not what is newer.
		s.put("version-1", ca.ClientSecret(t, "first"))
		n.after(6 * time.Minute)
		if got := n.subject(t); got != "first" {
			t.Errorf("published %q after a roll-back", got)
		}
	})
}

func TestRestartServesAtOnce(t *testing.T) {
	withNode(t, func(t *testing.T, ca *mtlstest.CA, s *fakeSecret, n *node) {
		path := n.path
		generation := n.Status().Generation
		n.stop()
		s.counts()

		s.fail(errors.New("connection refused"))
		n = start(t, path, map[string]source.Source{"a": s})
		n.isReady(t, true)
		if n.Status().Generation != generation || n.secret("a").State != client.SecretUnreachable {
			t.Errorf("generation %s, secret %+v", n.Status().Generation, n.secret("a"))
		}
		s.fail(nil)
		n.after(time.Hour)
		if n.Status().Generation != generation {
			t.Error("an unchanged secret was published again")
		}
		if _, f := s.counts(); f != 0 {
			t.Errorf("an unchanged secret was fetched %d times", f)
		}
		n.stop()

		// What the manifest says is compared with the new settings, too.
		n = start(t, path, map[string]source.Source{"a": s}, func(c *Config) { c.Settings.KeyMode = 0o440 })
		if n.Status().Generation == generation ||
			mtlstest.Stat(t, filepath.Join(path, "client.key")).Mode&0o777 != 0o440 {
			t.Error("another key_mode was not applied")
		}
	})
}

// An agent whose default mode was 0440 has published: the first start with another default publishes the same again, in
// the consumers' directories too, and takes the group's right away, even while Secrets Manager cannot be reached.
func TestUpgradeOfModes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := mtlstest.NewCA(t, "ca", nil)
		s := newFake(ca.ClientSecret(t, "first"))
		path := filepath.Join(mtlstest.MemoryDir(t), "mtls")
		web := config.Consumer{Name: "web", Owner: own,
			Files: []string{"client.pem", "credential-bundle.private-key.pem"}}
		n := start(t, path, map[string]source.Source{"a": s}, consumers(web),
			func(c *Config) { c.Settings.KeyMode = 0o440 })
		content := func() (text string) {
			for _, name := range []string{"client.crt", "client.key", "client.pem", "ca.crt", "web/client.pem",
				"web/credential-bundle.private-key.pem"} {
				text += mtlstest.Read(t, filepath.Join(path, name))
			}
			return text
		}
		before, old := content(), n.Status().Generation
		n.stop()

		s.fail(errors.New("connection refused"))
		n = start(t, path, map[string]source.Source{"a": s}, consumers(web),
			func(c *Config) { c.Settings.KeyMode = config.Default().MTLS.KeyMode })
		n.isReady(t, true)
		modes := func() (list []string) {
			for _, name := range []string{"client.key", "client.pem", "web/client.pem",
				"web/credential-bundle.private-key.pem", "client.crt"} {
				list = append(list, fmt.Sprintf("%s %04o", name, mtlstest.Stat(t, filepath.Join(path, name)).Mode&0o777))
			}
			return list
		}
		want := []string{"client.key 0400", "client.pem 0400", "web/client.pem 0400",
			"web/credential-bundle.private-key.pem 0400", "client.crt 0444"}
		if diff := cmp.Diff(want, modes()); diff != "" {
			t.Errorf("after the upgrade (-want +got):\n%s", diff)
		}
		generation, published := n.Status().Generation, n.Status().Consumers[0].Generation
		if content() != before {
			t.Error("the upgrade changed what the files hold")
		}
		if s := n.Status(); generation == old || len(s.Guard.Findings) != 0 || s.Guard.Repairs != 0 {
			t.Errorf("generation %s after %s; the guard is %+v", generation, old, s.Guard)
		}

		// It is restored from there, and stays.
		n.stop()
		n = start(t, path, map[string]source.Source{"a": s}, consumers(web))
		n.isReady(t, true)
		if got := n.Status(); got.Generation != generation || got.Consumers[0].Generation != published {
			t.Errorf("generations %s and %s, and after another restart %+v", generation, published, got)
		}
	})
}

// A version that cannot be published leaves the last good one, says why, and is not fetched again.
func TestRejectedVersion(t *testing.T) {
	withNode(t, func(t *testing.T, ca *mtlstest.CA, s *fakeSecret, n *node) {
		generation := n.Status().Generation
		s.counts()
		for i, bad := range [][]byte{
			nil,
			[]byte("garbage"),
			ca.ClientSecret(t, "expired", mtlstest.Valid(-2*time.Hour, -time.Hour)),
		} {
			version := fmt.Sprintf("bad-%d", i)
			s.put(version, bad)
			n.after(time.Hour)
			if d, f := s.counts(); d < 5 || f != 1 {
				t.Errorf("%s: %d describes and %d fetches, want many and one", version, d, f)
			}
			if got := n.secret("a"); got.State != client.SecretRejected || got.Version != version ||
				got.Published != "version-1" || !strings.HasPrefix(got.Error, "secret a: ") {
				t.Errorf("%s: secret %+v", version, got)
			}
			if n.Status().Generation != generation {
				t.Errorf("%s: the directory was changed", version)
			}
			n.isReady(t, true)
		}
		if _, err := n.Refresh(t.Context()); err == nil ||
			!strings.Contains(err.Error(), "secret a: client_cert: expired on") {
			t.Errorf("refresh: %v, want the reason", err)
		}
		// The label goes back to what is published.
		s.put("version-1", ca.ClientSecret(t, "first"))
		n.after(6 * time.Minute)
		if got := n.secret("a"); got.State != client.SecretCurrent ||
			got.Error != "" || n.Status().Generation != generation {
			t.Errorf("secret %+v, generation %s", got, n.Status().Generation)
		}
		s.put("version-2", ca.ClientSecret(t, "second"))
		n.after(6 * time.Minute)
		if got := n.subject(t); got != "second" || n.secret("a").Error != "" {
			t.Errorf("published %q, secret %+v", got, n.secret("a"))
		}
	})
}

// A version that takes files away is rejected, whatever form it has, until the configuration allows it. So is one that
// is pending.
func TestVersionTakesFilesAway(t *testing.T) {
	withNode(t, func(t *testing.T, ca *mtlstest.CA, s *fakeSecret, n *node) {
		fields := ca.ClientFields(t, "second")
		plain := fields["client_key"].(string) + fields["client_cert"].(string)
		anchors := mtlstest.Fields{"ca_cert": fields["ca_cert"]}.JSON(t)
		broken := strings.ReplaceAll(string(fields.JSON(t)), `\n`, "\n") // as a shell's here document writes it
		before := n.read(t)
		for name, c := range map[string]struct{ content, want string }{
			"broken JSON":  {broken, "secret a: begins as JSON, and is malformed at byte "},
			"PEM":          {plain, "secret a: does not give ca.crt, client.crt, client.key, client.pem, which "},
			"anchors only": {string(anchors), "secret a: does not give client.crt, client.key, client.pem, which "},
		} {
			s.put(name, []byte(c.content))
			n.after(6 * time.Minute)
			if got := n.secret("a"); got.State != client.SecretRejected || !strings.HasPrefix(got.Error, c.want) {
				t.Errorf("%s: secret %+v, want it rejected: %s", name, got, c.want)
			}
			if diff := cmp.Diff(before, n.read(t)); diff != "" {
				t.Errorf("%s: the directory was changed (-want +got):\n%s", name, diff)
			}
		}

		s.put("version-1", ca.ClientSecret(t, "first"))
		s.pend("anchors only", anchors)
		n.after(6 * time.Minute)
		if p := n.secret("a").Preflight; p == nil || p.Result != client.PreflightRejected {
			t.Errorf("a pending version that takes files away: %+v, want it rejected", p)
		}

		s.put("anchors only", anchors)
		n.config.Settings.AllowRemoval = true
		n.Apply(n.config.Settings)
		n.after(time.Second)
		if got := n.read(t); n.secret("a").State != client.SecretCurrent ||
			got["client.crt"] != "" || got["ca.crt"] == "" {
			t.Errorf("secret %+v, published %q; want what the configuration allows", n.secret("a"), got)
		}
	})
}

// A file of a plain secret changes its name with the secret's place, which takes nothing away.
func TestPlainSecretMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := mtlstest.NewCA(t, "ca", nil)
		bundle, rest := newFake([]byte(mtlstest.CertPEM(ca.Cert))), newFake([]byte(mtlstest.CertPEM(ca.Cert)))
		n := start(t, mtlstest.MemoryDir(t), map[string]source.Source{"a": rest, "b": bundle})
		defer n.stop()
		n.after(time.Second)

		bundle.put("version-2", []byte(mtlstest.CertPEM(mtlstest.NewCA(t, "other", nil).Cert)))
		n.config.Settings.Secrets = n.config.Settings.Secrets[1:]
		n.Apply(n.config.Settings)
		n.after(time.Second)
		if got := n.read(t); n.secret("b").State != client.SecretCurrent ||
			subjects(t, []byte(got["cert-0.pem"]))[0] != "other" {
			t.Errorf("secret %+v, published %q", n.secret("b"), got)
		}
	})
}

// A plain secret's file keeps its name whatever is in it, and its readers need the key.
func TestPlainSecretKeepsItsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fields := mtlstest.NewCA(t, "ca", nil).ClientFields(t, "node")
		cert, key := fields["client_cert"].(string), fields["client_key"].(string)
		s := newFake([]byte(key + cert))
		n := start(t, mtlstest.MemoryDir(t), map[string]source.Source{"a": s})
		defer n.stop()
		n.after(time.Second)

		s.put("version-2", []byte(cert))
		n.after(6 * time.Minute)
		const want = "secret a: does not give cert-0.pem with its private key, which the version before gave"
		if got := n.secret("a"); got.State != client.SecretRejected || !strings.HasPrefix(got.Error, want) {
			t.Errorf("secret %+v, want it rejected: %s", got, want)
		}
		s.put("version-3", []byte(cert+key))
		n.after(6 * time.Minute)
		if got := n.secret("a"); got.State != client.SecretCurrent {
			t.Errorf("secret %+v, want it published", got)
		}
	})
}

// After a restart, the files do not say which secret has given which anchor of ca.crt: the secrets are read again, and
// what one of them alone gives is not published without the other.
func TestAnchorsOfTwoSecretsAfterRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two, three := mtlstest.NewCA(t, "one", nil), mtlstest.NewCA(t, "two", nil), mtlstest.NewCA(t, "three", nil)
		path := filepath.Join(mtlstest.MemoryDir(t), "mtls")
		a, b := newFake(one.AnchorSecret(t)), newFake(two.AnchorSecret(t))
		sources := map[string]source.Source{"a": a, "b": b}
		n := start(t, path, sources)
		n.after(time.Second)
		n.stop()

		a.put("version-2", three.AnchorSecret(t))
		b.fail(errors.New("out of reach"))
		n = start(t, path, sources)
		defer n.stop()
		n.after(time.Second)
		if diff := cmp.Diff([]string{"one", "two"}, n.anchorNames(t)); diff != "" {
			t.Errorf("with one secret out of reach, ca.crt (-want +got):\n%s", diff)
		}
		b.fail(nil)
		n.after(10 * time.Minute)
		if diff := cmp.Diff([]string{"three", "two"}, n.anchorNames(t)); diff != "" {
			t.Errorf("ca.crt (-want +got):\n%s", diff)
		}
	})
}

// lockedBuffer is what a Rotator logs while a test reads it.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(text []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(text)
}

// take returns what was logged since the last call.
func (b *lockedBuffer) take() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.text.Reset()
	return b.text.String()
}

// The end of a chain is announced in time, whichever certificate ends it, and once at each stage.
func TestExpiryIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		root := mtlstest.NewCA(t, "root", nil)
		short := mtlstest.NewCA(t, "short", root, mtlstest.Valid(0, 240*time.Hour))
		leaf, key := short.Leaf(t, "node")
		s := newFake(mtlstest.Fields{
			"client_cert": mtlstest.CertPEM(leaf, short.Cert), "client_key": mtlstest.KeyPEM(t, key),
			"ca_cert": mtlstest.CertPEM(root.Cert),
		}.JSON(t))
		n := start(t, mtlstest.MemoryDir(t), map[string]source.Source{"a": s}, func(c *Config) {
			c.Log = slog.New(slog.NewTextHandler(&log, nil))
		})
		until := func(left time.Duration) (lines []string) {
			n.after(time.Until(short.Cert.NotAfter) - left)
			for line := range strings.Lines(log.take()) {
				if strings.Contains(line, "a published certificate") {
					lines = append(lines, line)
				}
			}
			return lines
		}
		want := func(lines []string, words ...string) {
			t.Helper()
			if len(lines) != 1 || slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(lines[0], w) }) {
				t.Errorf("logged %q, want one line with %q", lines, words)
			}
		}
		if lines := until(90 * time.Hour); lines != nil {
			t.Errorf("logged %q, long before the end", lines)
		}
		want(until(70*time.Hour), "level=WARN", "file=client.crt", `subject="CN=short"`, "secret=a", `left="3 days"`)
		want(until(20*time.Hour), "level=WARN", `left="23 hours"`)
		want(until(2*time.Hour), "level=WARN", `left="2 hours"`)
		want(until(10*time.Minute), "level=WARN", `left="59 minutes"`)
		want(until(-time.Minute), "level=ERROR", "has expired")
		if lines := until(-time.Hour); lines != nil {
			t.Errorf("logged again: %q", lines)
		}
		if got := n.metric(t, "not_after_timestamp_seconds", "client"); got != timestamp(short.Cert.NotAfter) {
			t.Errorf("the metric has %v, want the end of the intermediate, %v", got, timestamp(short.Cert.NotAfter))
		}
		n.stop()
	})
}

// Nothing is published, and the node is not ready, until every secret has given something.
func TestFirstPublicationIsComplete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := mtlstest.NewCA(t, "ca", nil)
		good, late := newFake(ca.ClientSecret(t, "first")), newFake([]byte(mtlstest.CertPEM(ca.Cert)))
		late.fail(&source.Error{Kind: source.Persistent, Err: errors.New("AccessDeniedException")})
		n := start(t, filepath.Join(mtlstest.MemoryDir(t), "mtls"), map[string]source.Source{"a": good, "b": late})
		n.after(time.Minute)
		n.isReady(t, false)
		if n.Status().Error == "" || n.secret("b").State != client.SecretDenied || n.subject(t) != "" {
			t.Errorf("status %+v", n.Status())
		}
		late.fail(&source.Error{
			Kind: source.Persistent, Missing: true, Err: errors.New("ResourceNotFoundException"), Advice: "create it",
		})
		n.after(10 * time.Minute)
		if got := n.secret("b"); got.State != client.SecretMissing || got.Error != "ResourceNotFoundException" ||
			got.Next != "create it" {
			t.Errorf("a secret that does not exist: %+v", got)
		}
		if d, _ := late.counts(); d < 3 {
			t.Errorf("%d looks in the first minute: the role may just not be there yet", d)
		}
		late.fail(nil)
		n.after(5 * time.Minute)
		n.isReady(t, true)
		if got := n.read(t); got["cert-1.pem"] != mtlstest.CertPEM(ca.Cert) || n.subject(t) != "first" {
			t.Errorf("published %v", got)
		}
		if _, f := good.counts(); f != 1 {
			t.Errorf("the good secret was fetched %d times", f)
		}
	})
}

// TestLateAtBoot: a service that is not reached yet, for want of a network, a region or credentials, is found within a
// second of when it can be. One that answers is asked ever more slowly from its first answer on.
func TestLateAtBoot(t *testing.T) {
	for _, late := range []time.Duration{3 * time.Second, 12 * time.Second, 20 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			s := newFake(mtlstest.NewCA(t, "ca", nil).ClientSecret(t, "first"))
			s.fail(errors.New("describe secret a: the metadata service knows no role of this instance"))
			n := start(t, filepath.Join(mtlstest.MemoryDir(t), "mtls"), map[string]source.Source{"a": s})
			n.after(late)
			n.isReady(t, false)
			s.fail(nil)
			n.after(time.Second)
			n.isReady(t, true)
		})
	}
	synctest.Test(t, func(t *testing.T) {
		s := newFake(mtlstest.NewCA(t, "ca", nil).ClientSecret(t, "first"))
		s.fail(errors.New("no route to host"))
		n := start(t, filepath.Join(mtlstest.MemoryDir(t), "mtls"), map[string]source.Source{"a": s})
		n.after(30 * time.Second)
		s.fail(&source.Error{Kind: source.Transient, Err: errors.New("ThrottlingException"), Date: time.Now()})
		s.counts()
		n.after(10 * time.Second)
		if d, _ := s.counts(); d < 2 {
			t.Errorf("%d looks in the ten seconds after the first answer, want it asked as after a first failure", d)
		}
		n.after(time.Hour)
		if d, _ := s.counts(); d > 60 {
			t.Errorf("%d looks in an hour at a service that throttles, want ever fewer", d)
		}
		s.fail(errors.New("no route to host"))
		n.after(time.Hour)
		s.counts()
		n.after(time.Hour)
		if d, _ := s.counts(); d > 60 {
			t.Errorf("%d looks in an hour at a service that has not been reached for one, want ever fewer", d)
		}
	})
}

// Certificate and CA come from two secrets that are rotated one after the other: the first waits for the second.
func TestSecretsRotateTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, order := range []string{"ab", "ba"} {
			old, next := mtlstest.NewCA(t, "old", nil), mtlstest.NewCA(t, "next", nil)
			a, b := newFake(old.PairSecret(t, "first")), newFake(old.AnchorSecret(t))
			n := start(t, filepath.Join(mtlstest.MemoryDir(t), "mtls"), map[string]source.Source{"a": a, "b": b})
			n.isReady(t, true)
			rotate := func(which byte) {
				if which == 'a' {
					a.put("version-2", next.PairSecret(t, "second"))
				} else {
					b.put("version-2", next.AnchorSecret(t))
				}
				n.after(10 * time.Minute)
			}
			rotate(order[0])
			if got := n.secret(order[:1]); n.subject(t) != "first" || got.State != client.SecretRejected ||
				!strings.Contains(got.Error, "does not lead to ca_cert") {
				t.Errorf("%s: published %q, secret %+v", order, n.subject(t), got)
			}
			rotate(order[1])
			if n.subject(t) != "second" || n.read(t)["ca.crt"] != mtlstest.CertPEM(next.Cert) ||
				n.secret("a").Error != "" ||
				n.secret("b").Error != "" {
				t.Errorf("%s: published %q, secrets %+v", order, n.subject(t), n.Status().Secrets)
			}
			if _, f := a.counts(); f != 2 {
				t.Errorf("%s: a was fetched %d times, want twice", order, f)
			}
			n.stop()
		}
	})
}

// A leaf from tomorrow is published tomorrow, to the second, without being fetched again.
func TestHeldVersion(t *testing.T) {
	withNode(t, func(t *testing.T, ca *mtlstest.CA, s *fakeSecret, n *node) {
		begin := time.Now().Add(24 * time.Hour)
		s.put("version-2", ca.ClientSecret(t, "second", mtlstest.Valid(24*time.Hour, 48*time.Hour)))
		n.after(10 * time.Minute)
		if got := n.secret("a"); got.State != client.SecretHeld || !got.HeldUntil.Equal(begin) {
			t.Errorf("secret %+v, want held until %v", got, begin)
		}
		if got := n.metric(t, "held_until_timestamp_seconds"); got != float64(begin.Unix()) {
			t.Errorf("held_until metric is %v, want %v", got, begin.Unix())
		}
		if _, err := n.Refresh(t.Context()); err != nil {
			t.Errorf("to be held is no error, but %v", err)
		}
		n.after(time.Until(begin) - time.Second)
		if got := n.subject(t); got != "first" {
			t.Errorf("published %q a second early", got)
		}
		n.after(time.Second)
		if got := n.subject(t); got != "second" || n.secret("a").State != client.SecretCurrent {
			t.Errorf("published %q at that moment, secret %+v", got, n.secret("a"))
		}
		if _, f := s.counts(); f != 2 {
			t.Errorf("%d fetches, want 2", f)
		}
	})
}

// A version comes of age while another secret, which has given nothing, is in the way. (If the loop were to spin, time
// would stand still here.)
func TestHeldVersionInTheWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := mtlstest.NewCA(t, "ca", nil)
		s, missing := newFake(ca.ClientSecret(t, "first",
			mtlstest.Valid(time.Hour, 48*time.Hour))), newFake([]byte(mtlstest.CertPEM(ca.Cert)))
		missing.fail(errors.New("connection refused"))
		n := start(t, filepath.Join(mtlstest.MemoryDir(t), "mtls"), map[string]source.Source{"a": s})
		if got := n.secret("a"); got.State != client.SecretHeld {
			t.Errorf("secret %+v", got)
		}
		settings := n.config.Settings
		settings.Secrets = append(settings.Secrets, NamedSource{"b", missing})
		n.Apply(settings)
		n.after(2 * time.Hour)
		n.isReady(t, false)
		missing.fail(nil)
		n.after(6 * time.Minute)
		n.isReady(t, true)
	})
}

// The label moves between the two calls, once or for ever.
func TestLabelRace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := mtlstest.NewCA(t, "ca", nil)
		s := newFake(ca.ClientSecret(t, "first"))
		moves, second := 1, ca.ClientSecret(t, "second")
		s.onFetch = func() {
			if moves > 0 {
				moves--
				s.current += "x"
				s.versions[s.current] = second
			}
		}
		n := start(t, filepath.Join(mtlstest.MemoryDir(t), "mtls"), map[string]source.Source{"a": s})
		if d, f := s.counts(); d != 2 || f != 2 || n.subject(t) != "second" {
			t.Errorf("%d describes, %d fetches, published %q; want it to look again at once", d, f, n.subject(t))
		}
		s.mu.Lock()
		moves, s.current = 1000, "restless"
		s.mu.Unlock()
		n.Hint()
		synctest.Wait()
		if d, f := s.counts(); d != maxRaces || f != maxRaces {
			t.Errorf("%d describes, %d fetches in a row, want %d", d, f, maxRaces)
		}
		if got := n.secret("a"); got.State != client.SecretUnreachable {
			t.Errorf("secret %+v", got)
		}
	})
}

func TestBackoffAndRecovery(t *testing.T) {
	withNode(t, func(t *testing.T, ca *mtlstest.CA, s *fakeSecret, n *node) {
		generation := n.Status().Generation

		s.fail(&source.Error{Kind: source.Transient, Err: errors.New("ThrottlingException")})
		n.after(time.Hour)
		s.counts()
		n.after(10 * time.Hour)
		if d, _ := s.counts(); d < 150 || d > 350 {
			t.Errorf("%d looks in ten hours, want one in two and a half minutes", d)
		}
		if got := n.secret("a"); got.State != client.SecretUnreachable || got.Error != "ThrottlingException" {
			t.Errorf("secret %+v", got)
		}
		s.fail(&source.Error{Kind: source.Persistent, Err: errors.New("AccessDeniedException")})
		n.after(10 * time.Hour)
		s.counts()
		n.after(10 * time.Hour)
		if d, _ := s.counts(); d < 30 || d > 50 {
			t.Errorf("%d looks in ten hours, want one in a quarter of an hour", d)
		}
		if got := n.secret("a"); got.State != client.SecretDenied {
			t.Errorf("secret %+v", got)
		}
		if n.Status().Generation != generation {
			t.Error("the directory was changed")
		}
		n.isReady(t, true)

		s.fail(nil)
		if _, err := n.Refresh(t.Context()); err != nil || n.secret("a").State != client.SecretCurrent {
			t.Errorf("refresh: %v, secret %+v", err, n.secret("a"))
		}
		if got := n.metric(t, "requests_total", "describe", "persistent"); got < 60 {
			t.Errorf("%v persistent failures counted", got)
		}
	})
}

func TestRefresh(t *testing.T) {
	withNode(t, func(t *testing.T, ca *mtlstest.CA, s *fakeSecret, n *node) {
		first := n.Status().Generation
		s.counts()

		change, err := n.Refresh(t.Context())
		if err != nil || change.Changed || change.Generation != first {
			t.Errorf("nothing has changed: %+v, %v", change, err)
		}
		s.put("version-2", ca.ClientSecret(t, "second"))
		change, err = n.Refresh(t.Context())
		if err != nil || !change.Changed || change.Previous != first || change.Generation != n.Status().Generation ||
			change.Secrets[0].Published != "version-2" {
			t.Errorf("after a rotation: %+v, %v", change, err)
		}
		if got := n.subject(t); got != "second" {
			t.Errorf("published %q when the refresh was answered", got)
		}
		n.stop()
		if _, err := n.Refresh(t.Context()); err == nil {
			t.Error("a stopped rotator has refreshed")
		}
	})
}

// Refreshes that come while one is under way share the next.
func TestRefreshIsCoalesced(t *testing.T) {
	withNode(t, func(t *testing.T, ca *mtlstest.CA, s *fakeSecret, n *node) {
		s.counts()
		s.put("version-2", ca.ClientSecret(t, "second"))
		release := make(chan struct{})
		s.mu.Lock()
		s.onFetch = func() { <-release }
		s.mu.Unlock()
		var wg sync.WaitGroup
		ask := func() {
			wg.Go(func() {
				if _, err := n.Refresh(t.Context()); err != nil {
					t.Errorf("refresh: %v", err)
				}
			})
		}
		ask()
		synctest.Wait() // it is at the source
		for range 50 {
			ask()
		}
		synctest.Wait()
		close(release)
		wg.Wait()
		if d, f := s.counts(); d != 2 || f != 1 {
			t.Errorf("%d describes and %d fetches for 51 refreshes, want 2 and 1", d, f)
		}
	})
}

func TestApply(t *testing.T) {
	withNode(t, func(t *testing.T, ca *mtlstest.CA, a *fakeSecret, n *node) {
		b := newFake([]byte(mtlstest.CertPEM(ca.Cert)))
		apply := func(change func(*Settings)) {
			s := n.config.Settings
			change(&s)
			n.Apply(s)
			synctest.Wait()
		}
		apply(func(s *Settings) { s.CertMode = 0o400 })
		if st := mtlstest.Stat(t, filepath.Join(n.path, "client.crt")); st.Mode&0o777 != 0o400 {
			t.Errorf("cert_mode is %o after a change to 0400", st.Mode&0o777)
		}
		if _, f := a.counts(); f != 1 {
			t.Errorf("%d fetches, want that of the start", f)
		}
		apply(func(s *Settings) { s.Secrets = []NamedSource{{"b", b}, {"a", a}} })
		if got := n.read(t); got["cert-0.pem"] != mtlstest.CertPEM(ca.Cert) {
			t.Errorf("a second secret was added: published %v", got)
		}
		apply(func(s *Settings) { s.Secrets = []NamedSource{{"a", a}, {"b", b}} })
		if got := n.read(t); got["cert-1.pem"] != mtlstest.CertPEM(ca.Cert) || got["cert-0.pem"] != "" {
			t.Errorf("the order was changed: published %v", got)
		}

		// A secret that cannot be had does not keep the others from being renewed.
		b2 := newFake(nil)
		b2.fail(&source.Error{Kind: source.Persistent, Err: errors.New("ResourceNotFoundException")})
		apply(func(s *Settings) { s.Secrets = []NamedSource{{"missing", b2}, {"a", a}} })
		a.put("version-2", ca.ClientSecret(t, "second"))
		n.after(10 * time.Minute)
		if got := n.subject(t); got != "second" || n.secret("missing").State != client.SecretDenied {
			t.Errorf("published %q, secrets %+v", got, n.Status().Secrets)
		}

		apply(func(s *Settings) { s.PollInterval = time.Second })
		a.counts()
		n.after(time.Minute)
		if d, _ := a.counts(); d < 45 || d > 80 {
			t.Errorf("%d looks in a minute at an interval of a second", d)
		}
		bad := newFake([]byte("garbage"))
		apply(func(s *Settings) { s.Secrets = []NamedSource{{"bad", bad}} })
		if n.subject(t) != "second" || n.secret("bad").State != client.SecretRejected || n.secret("bad").Published != "" {
			t.Errorf("nothing but garbage: published %q, status %+v", n.subject(t), n.Status())
		}
		apply(func(s *Settings) { s.Secrets = nil })
		a.counts()
		n.after(time.Hour)
		if d, _ := a.counts(); d != 0 || n.subject(t) != "second" {
			t.Errorf("without secrets: %d looks, published %q", d, n.subject(t))
		}
	})
}

func TestNoSecrets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(mtlstest.MemoryDir(t), "mtls")
		n := start(t, path, nil, func(c *Config) { c.Settings.AllowDisk = false })
		n.isReady(t, true)
		if _, err := n.Refresh(t.Context()); err != nil {
			t.Errorf("refresh without secrets: %v", err)
		}
		if _, err := os.Stat(path); err == nil {
			t.Error("the directory was made")
		}
	})
}

// A device that hangs is given up before the loop looks stuck.
func TestDeviceHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := mtlstest.NewCA(t, "ca", nil)
		s := newFake(ca.ClientSecret(t, "first"))
		n := start(t, filepath.Join(mtlstest.MemoryDir(t), "mtls"), map[string]source.Source{"a": s}, func(c *Config) {
			c.Evidence = func(ctx context.Context, _ string, _ [sha256.Size]byte) ([]byte, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
		})
		for range 600 {
			n.after(time.Second)
			if age := time.Since(n.Progress()); age >= MaxStall {
				t.Fatalf("no progress for %v", age)
			}
		}
		if n.isReady(t, false); n.subject(t) != "" {
			t.Errorf("published %q without evidence", n.subject(t))
		}
		if _, f := s.counts(); f != 1 {
			t.Errorf("%d fetches, want 1", f)
		}
	})
}

// The same bytes under another version ID do not disturb readers.
func TestSameBytes(t *testing.T) {
	withNode(t, func(t *testing.T, _ *mtlstest.CA, s *fakeSecret, n *node) {
		generation := n.Status().Generation
		s.put("version-2", s.versions["version-1"])
		n.after(10 * time.Minute)
		if got := n.secret("a"); n.Status().Generation != generation || got.State != client.SecretCurrent ||
			got.Published != "version-2" {
			t.Errorf("generation %s, secret %+v", n.Status().Generation, got)
		}
	})
}

// The directory is not there yet, as when the mount comes late.
func TestDirectoryComesLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := mtlstest.NewCA(t, "ca", nil)
		above := filepath.Join(mtlstest.MemoryDir(t), "file")
		must.Do(t, os.WriteFile(above, nil, 0o644), "put a file in the way")
		n := start(t, filepath.Join(above, "mtls"), map[string]source.Source{"a": newFake(ca.ClientSecret(t, "first"))})
		n.after(time.Minute)
		n.isReady(t, false)
		if got := n.Status().Error; !strings.HasPrefix(got, "publish to "+n.path) {
			t.Errorf("error %q", got)
		}
		must.Do(t, errors.Join(os.Remove(above), os.Mkdir(above, 0o755)), "make a directory of it")
		n.after(5 * time.Minute)
		n.isReady(t, true)
	})
}

// Damage found at the start is repaired from what is there, even when the source is out of reach.
func TestDamageIsRepairedAtStart(t *testing.T) {
	withNode(t, func(t *testing.T, ca *mtlstest.CA, s *fakeSecret, n *node) {
		path := n.path
		generation := n.Status().Generation
		n.stop()
		sim.ClearImmutable(path)
		must.Do(t, os.Chmod(filepath.Join(path, "client.key"), 0o444), "open the key to all")
		s.fail(errors.New("connection refused"))
		var broken atomic.Bool
		broken.Store(true)
		g := &fakeGuard{changed: make(chan struct{}, 1)}
		n = start(t, path, map[string]source.Source{"a": s}, func(c *Config) {
			c.newGuard = func(string) sentinel { return g }
			c.Evidence = func(context.Context, string, [sha256.Size]byte) ([]byte, error) {
				if broken.Load() {
					return nil, errors.New("throttled")
				}
				return []byte("{}"), nil
			}
		})
		n.isReady(t, false)
		g.find() // that nothing is new does not make it good
		synctest.Wait()
		if got := n.Status().Guard.State; got == client.GuardOK {
			t.Errorf("the guard is %s although the directory is damaged", got)
		}
		broken.Store(false)
		n.after(time.Minute)
		n.isReady(t, true)
		if n.Status().Generation == generation ||
			mtlstest.Stat(t, filepath.Join(path, "client.key")).Mode&0o777 != uint32(ours.KeyMode) {
			t.Errorf("generation %s still has mode %o", n.Status().Generation,
				mtlstest.Stat(t, filepath.Join(path, "client.key")).Mode)
		}
	})
}

func TestMetrics(t *testing.T) {
	withNode(t, func(t *testing.T, _ *mtlstest.CA, _ *fakeSecret, n *node) {
		promtexttest.Lint(t, n.metrics)
		now := float64(time.Now().Unix())
		for name, c := range map[string]struct{ got, want float64 }{
			"not_after":    {n.metric(t, "not_after_timestamp_seconds", "client"), float64(n.Status().NotAfter.Unix())},
			"publications": {n.metric(t, "publications_total", "published"), 1},
			"current":      {n.metric(t, "secrets", "current"), 1},
			"published":    {n.metric(t, "published_timestamp_seconds"), now},
			"checked":      {n.metric(t, "last_checked_timestamp_seconds"), now},
			"describes":    {n.metric(t, "requests_total", "describe", "ok"), 1},
		} {
			if c.got != c.want {
				t.Errorf("%s is %v, want %v", name, c.got, c.want)
			}
		}
	})
}

// metric reads a counter or a gauge by name and label values.
func (n *node) metric(t *testing.T, name string, labels ...string) float64 {
	t.Helper()
	for _, family := range promtexttest.Families(t, n.metrics) {
		if family.GetName() != "sevagent_mtls_"+name {
			continue
		}
		for _, m := range family.GetMetric() {
			var got []string
			for _, l := range m.GetLabel() {
				got = append(got, l.GetValue())
			}
			if slices.Equal(got, labels) {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	t.Errorf("there is no metric %s%v", name, labels)
	return 0
}

var errTest = errors.New("connection refused")

package mtls

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"sevagent/client"
	"sevagent/internal/mtls/guard"
)

// directory is one published directory: the node's own, or that of a consumer below it. Owned by Run.
type directory struct {
	consumer Consumer // Name is empty for the node's own, which has every file
	pub      *publisher
	log      *slog.Logger
	access   access
	opens    *opens
	guard    sentinel
	tree     *guard.Tree // what it expects
	suspect  atomic.Bool // guard wants it looked at
	watched  bool        // guard runs
	stop     context.CancelFunc

	opened  bool        // recover has run
	current *generation // nil: nothing that may be served
	publish attempt
	repair  attempt     // since the last one that succeeded
	repairs []time.Time // that succeeded, in the last repairWindow
	lost    bool        // the directory itself was replaced: containers hold another one
	state   client.GuardStatus
	found   []guard.Finding // the same as in state
	missing []string        // of the consumer's files
	allowed []string        // the names of consumers' directories in it
}

// sentinel is what a directory wants of a guard.Guard.
type sentinel interface {
	Run(context.Context) error
	Changed() <-chan struct{}
	Expect(*guard.Tree)
	Verify() []guard.Finding
}

// Consumer is a directory of its own below the published one, for containers that are to see no more than they need.
type Consumer struct {
	// Name of the directory: letters, digits and dashes, so that it is no file's.
	Name  string
	Owner Owner
	// Files to publish there, such as client.pem.
	Files []string
}

// close ends what watches and protects the directory.
func (d *directory) close() {
	if d.stop != nil {
		d.stop()
	}
	d.opens.close()
	if d.opened {
		if err := softenAll(d.pub.path); err != nil {
			d.log.Warn("published files may stay immutable", "path", d.pub.path, "err", err)
		}
	}
}

func (d *directory) generation() string {
	if d.current == nil {
		return ""
	}
	return d.current.name()
}

// intact: is what the manifest of the current generation says what lies there, as far as is known?
func (d *directory) intact() bool {
	return d.current != nil && d.current.set != nil && !d.current.damaged
}

// open looks at the directory for the first time.
func (d *directory) open(now time.Time) error {
	root, err := d.pub.open()
	if err != nil {
		return fmt.Errorf("publish to %s: %w", d.pub.path, err)
	}
	defer root.Close()
	d.opened = true
	d.publish = attempt{}
	var g *generation
	if d.consumer.Name == "" {
		g, err = d.pub.recover(root, now)
	} else {
		g, err = d.pub.recoverFiles(root)
	}
	switch {
	case g == nil && errors.Is(err, errNothing):
		d.log.Info("starting with an empty directory", "path", d.pub.path)
		return nil
	case g == nil:
		d.log.Warn("what an earlier run has published is of no use", "path", d.pub.path, "err", err)
		return nil
	case g.damaged:
		d.log.Warn("what an earlier run has published was changed, it will be published afresh", "path", d.pub.path, "generation", g.name(), "err", err)
	default:
		d.log.Info("serving what an earlier run has published", "path", d.pub.path, "generation", g.name(), "not_after", g.manifest.NotAfter)
	}
	d.current = g
	d.opens.follow(filepath.Join(d.pub.path, g.name()))
	d.expect() // if it is damaged, what is wrong is found and put back by that
	return nil
}

// serves reports whether s is what the directory holds already, whatever the versions are called, and notes it then.
func (d *directory) serves(s *set, bundles []*bundle, withEvidence bool) bool {
	g := d.current
	if g == nil || g.damaged || withEvidence && g.evidence == nil || !g.manifest.describes(s, d.access) {
		return false
	}
	next := *g
	next.set, next.bundles = s, bundles
	d.current = &next
	return true
}

// switchTo makes s the current generation.
func (d *directory) switchTo(s *set, bundles []*bundle, evidence []byte, now time.Time) error {
	g, err := d.pub.publish(s, bundles, evidence, d.access, d.current, now)
	if err != nil {
		return fmt.Errorf("publish to %s: %w", d.pub.path, err) // what lies there is what lay there
	}
	d.current = g
	d.opens.follow(filepath.Join(d.pub.path, g.name()))
	d.expect()
	return nil
}

// expect tells the guard what lies there now, as it should be.
func (d *directory) expect() {
	if d.guard == nil || d.current == nil {
		return
	}
	tree, err := d.capture()
	if err != nil {
		// What was captured later could be what someone has made of it: it is published again instead.
		d.log.Warn("the published files are not guarded", "path", d.pub.path, "err", err)
		d.state.State, d.state.Error = client.GuardAlarm, err.Error()
		d.repair.next = time.Now().Add(retryMin)
	}
	if d.tree != nil && tree != nil && !tree.SameDirectory(d.tree) {
		d.lost = true
		d.state.State = client.GuardAlarm
		d.log.Error("the published directory is another one than before: containers that mount it hold the old one; restart them", "path", d.pub.path)
	}
	d.tree = tree
	d.guard.Expect(tree)
}

// allow tells the guard which names are consumers', and nothing else: to look at the files anew could make a change
// by someone else what is expected.
func (d *directory) allow() {
	if d.guard != nil && d.tree != nil {
		d.tree = d.tree.Allow(d.allowed)
		d.guard.Expect(d.tree)
	}
}

// capture records what the current generation and the links to it should be.
func (d *directory) capture() (*guard.Tree, error) {
	g := d.current
	l := guard.Layout{Generation: g.name(), Links: map[string]string{dataLink: g.name()}, Allowed: d.allowed}
	if previous, err := os.Readlink(filepath.Join(d.pub.path, prevLink)); err == nil {
		l.Links[prevLink] = previous
	}
	for _, name := range g.manifest.links() {
		l.Links[name] = dataLink + "/" + name
	}
	l.Files = append(l.Files, guard.File{
		Name: manifestFile, Size: len(g.encoded), SHA256: sha256.Sum256(g.encoded), Mode: g.access.certMode, UID: g.access.owner.UID, GID: g.access.owner.GID,
	})
	for _, e := range g.manifest.Files {
		mode, err := strconv.ParseUint(e.Mode, 8, 9)
		if err != nil {
			return nil, fmt.Errorf("%s: mode in %s: %w", e.File, manifestFile, err)
		}
		f := guard.File{Name: e.File, Size: e.Size, Mode: fs.FileMode(mode), UID: g.access.owner.UID, GID: g.access.owner.GID}
		if _, err := hex.Decode(f.SHA256[:], []byte(e.SHA256)); err != nil {
			return nil, fmt.Errorf("%s: SHA-256 in %s: %w", e.File, manifestFile, err)
		}
		l.Files = append(l.Files, f)
	}
	return guard.Capture(d.pub.path, l)
}

// withdraw removes a consumer's directory, which nothing tends any more. The current generation goes after the others and
// before the links: by its manifest the next start recognises what a crash has left.
func (p *publisher) withdraw() error {
	if _, err := os.Lstat(p.path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	root, err := p.open()
	if err != nil {
		return err
	}
	defer root.Close()
	current := linkedGeneration(root, dataLink)
	errs := []error{mendLinks(root, nil), removeIfThere(root, prevLink)}
	names, err := readNames(root)
	errs = append(errs, err)
	for _, name := range names {
		if name != current && (strings.HasPrefix(name, genPrefix) || isTmpName(name)) {
			errs = append(errs, removeGeneration(root, name))
		}
	}
	if current != "" {
		errs = append(errs, removeGeneration(root, current))
	}
	return errors.Join(append(errs, removeIfThere(root, dataLink), os.Remove(p.path))...)
}

// withdrawForgotten removes directories of consumers that the configuration has lost while the agent did not run.
func (r *Rotator) withdrawForgotten() {
	root, err := r.main().pub.open()
	if err != nil {
		return // it was open a moment ago; the guard will say
	}
	defer root.Close()
	names, err := readNames(root)
	if err != nil {
		return
	}
	for _, name := range names {
		if strings.HasPrefix(name, "..") || slices.Contains(r.main().allowed, name) {
			continue
		}
		if fi, err := root.Lstat(name); err != nil || !fi.IsDir() {
			continue
		}
		sub, err := root.OpenRoot(name)
		if err != nil {
			continue
		}
		m, err := readManifestOf(sub, linkedGeneration(sub, dataLink))
		sub.Close()
		if err == nil && m.Consumer == name {
			r.withdraw(r.newPublisher(name))
		}
	}
}

func (r *Rotator) withdraw(p *publisher) {
	if err := p.withdraw(); err != nil {
		r.log.Error("a consumer's directory is not tended any more, and something of it is still there; remove it", "path", p.path, "err", err)
		return
	}
	r.log.Info("a consumer's directory is withdrawn", "path", p.path)
}

// subset is what a consumer gets of s, and the files that it would like and that are not there.
func (c Consumer) subset(s *set) (*set, []string) {
	if c.Name == "" {
		return s, nil
	}
	sub := &set{sources: s.sources, leaves: make(map[string]*x509.Certificate)}
	if slices.Contains(c.Files, fileOf(caCert)) {
		sub.carried = s.carried
	}
	var missing []string
	for _, name := range c.Files {
		i := slices.IndexFunc(s.files, func(f file) bool { return f.name == name })
		if i < 0 {
			missing = append(missing, name)
			continue
		}
		sub.files = append(sub.files, s.files[i])
		for kind, l := range s.leaves {
			if name == kind+".crt" || name == kind+".pem" {
				sub.leaves[kind] = l
			}
		}
	}
	slices.SortFunc(sub.files, func(a, b file) int { return cmp.Compare(a.name, b.name) })
	return sub, missing
}

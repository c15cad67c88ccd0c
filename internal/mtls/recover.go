package mtls

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// errNothing: there is no generation yet.
var errNothing = errors.New("nothing is published")

// recover finishes or undoes what an earlier run left behind, whether it ended well or was killed in the middle of a
// publication, and returns the current generation if it may be served as it is: complete, unchanged, and valid now.
//
// An error means that a new one is needed. With it may come a damaged generation, whose content is good but whose
// owner, modes or links are not what the manifest says: that content need not be fetched again.
func (p *publisher) recover(root *os.Root, now time.Time) (*generation, error) {
	current := linkedGeneration(root, dataLink)
	if err := sweepLeftovers(root, current); err != nil {
		return nil, err
	}
	if current == "" {
		return nil, errNothing
	}
	g, err := load(root, current, now)
	if g == nil {
		return nil, fmt.Errorf("generation %s: %w", current, err)
	}
	err = errors.Join(err, p.finish(root, g))
	g.damaged = err != nil
	return g, err
}

// sweepLeftovers removes what has never been published: half-made links, and generations that were not sealed, or
// sealed but not switched to, which are those later than the current one.
func sweepLeftovers(root *os.Root, current string) error {
	names, err := readNames(root)
	if err != nil {
		return err
	}
	unlinked, err := generations(root)
	if err != nil {
		return err
	}
	for _, name := range names {
		switch {
		case isTmpName(name):
		case slices.Contains(unlinked, name):
			fi, err := root.Lstat(name)
			if err != nil {
				return err
			}
			if fi.Mode().Perm() != 0o700 && name < current {
				continue // it was current once
			}
		default:
			continue
		}
		soften(root, name) // it may be a generation
		if err := root.RemoveAll(name); err != nil {
			return err
		}
	}
	return nil
}

// load reads a generation back, as bundles and as a set. Without error it is byte for byte, owner and mode included,
// what its manifest says and what this program would publish from the same secrets now.
func load(root *os.Root, name string, now time.Time) (*generation, error) {
	gen, err := root.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	defer gen.Close()
	m, encoded, err := readManifest(gen, name)
	if err != nil {
		return nil, err
	}
	g := &generation{manifest: m, encoded: encoded}
	if g.access, err = m.access(); err != nil {
		return nil, err
	}
	for _, s := range m.Secrets {
		g.bundles = append(g.bundles, &bundle{secret: s.Secret, version: s.Version, fields: make(map[string]*part)})
	}
	contents, drift, err := readFiles(gen, m)
	if err != nil {
		return nil, err
	}
	var overlap []carried
	for _, e := range m.Files {
		content := contents[e.File]
		if e.File == evidenceFile {
			g.evidence = content
			delete(contents, e.File)
			continue
		}
		if err := g.takeFile(e, content, m, &overlap); err != nil {
			return nil, err
		}
	}
	g.set, err = assemble(g.bundles, nil, now, overlap)
	if err != nil {
		return nil, err
	}
	if len(g.set.files) != len(contents) {
		return nil, fmt.Errorf("holds %d files, its secrets give %d", len(contents), len(g.set.files))
	}
	for _, f := range g.set.files {
		if string(contents[f.name]) != string(f.content) {
			return nil, fmt.Errorf("%s is not what its secret gives", f.name)
		}
	}
	return g, drift
}

// readFiles reads the files of a manifest. An error means that the content of one is not what was published; drift is
// what else is not.
func readFiles(gen *os.Root, m *manifest) (contents map[string][]byte, drift, err error) {
	contents = make(map[string][]byte)
	for _, e := range m.Files {
		content, st, err := readBounded(gen, e.File, maxManifestBytes)
		if err != nil {
			return nil, nil, err
		}
		if err := e.checkContent(content); err != nil {
			return nil, nil, err
		}
		drift = errors.Join(drift, m.checkAccess(e, st))
		contents[e.File] = content
	}
	return contents, drift, nil
}

// recoverFiles is recover for a consumer's directory. What is in it is the node's set or not, so that the files need
// only be those of the manifest; the generation has no set.
func (p *publisher) recoverFiles(root *os.Root) (*generation, error) {
	current := linkedGeneration(root, dataLink)
	if err := sweepLeftovers(root, current); err != nil {
		return nil, err
	}
	if current == "" {
		return nil, errNothing
	}
	gen, err := root.OpenRoot(current)
	if err != nil {
		return nil, err
	}
	defer gen.Close()
	m, encoded, err := readManifest(gen, current)
	if err != nil {
		return nil, fmt.Errorf("generation %s: %w", current, err)
	}
	contents, drift, err := readFiles(gen, m)
	if err != nil {
		return nil, fmt.Errorf("generation %s: %w", current, err)
	}
	g := &generation{manifest: m, encoded: encoded, evidence: contents[evidenceFile]}
	if g.access, err = m.access(); err != nil {
		return nil, fmt.Errorf("generation %s: %w", current, err)
	}
	err = errors.Join(drift, p.finish(root, g))
	g.damaged = err != nil
	return g, err
}

// finish does what a crash right after the switch has left undone. Done twice it does no harm.
func (p *publisher) finish(root *os.Root, g *generation) error {
	err := errors.Join(checkGenerationDir(root, g.name()), mendLinks(root, g.manifest.links()), syncRoot(root))
	g.immutable = harden(root, g.name())
	if previous := linkedGeneration(root, prevLink); previous != "" && previous != g.name() {
		harden(root, previous)
		if err := wake(root, previous); err != nil {
			p.log.Warn("readers that watch files were not woken", "generation", previous, "err", err)
		}
	}
	return err
}

// checkGenerationDir reports whether nobody but the agent can change the directory of a generation.
func checkGenerationDir(root *os.Root, name string) error {
	fi, err := root.Lstat(name)
	if err != nil {
		return err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); !ok || fi.Mode().Perm() != 0o755 || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s has mode %04o, or another owner than the agent", name, fi.Mode().Perm())
	}
	return nil
}

// takeFile puts the content of a file back into the field of the secret that it came from, and into overlap the anchors
// that came from none.
func (g *generation) takeFile(e manifestEntry, content []byte, m *manifest, overlap *[]carried) error {
	for i, b := range g.bundles {
		if (sourceVersion{b.secret, b.version}) != (sourceVersion{e.Secret, e.Version}) {
			continue
		}
		var p *part
		var err error
		switch field := fieldOf(e.File); {
		case e.File == kindClient+".pem" || e.File == kindServer+".pem":
			return nil // made from the others
		case field != "":
			if p, err = parseField(field, string(content)); err == nil {
				if field == caCert {
					p, *overlap = m.splitOverlap(p)
				}
				b.fields[field] = p
			}
		case e.File == "cert-"+strconv.Itoa(i)+".pem":
			if p, err = parsePlain(string(content)); err == nil {
				b.fields[plain] = p
			}
		default:
			continue // the same secret may be listed again further down
		}
		if err != nil {
			return fmt.Errorf("%s: %w", e.File, err)
		}
		return nil
	}
	return fmt.Errorf("%s is of none of its secrets", e.File)
}

// splitOverlap parts ca.crt into what its secret has given and what was carried over.
func (m *manifest) splitOverlap(p *part) (own *part, over []carried) {
	own = new(part)
	for _, c := range p.certs {
		i := slices.IndexFunc(m.CAOverlap, func(o manifestOverlap) bool { return o.SHA256 == contentID(c.Raw) })
		if i < 0 {
			own.add(c)
		} else {
			over = append(over, carried{c, m.CAOverlap[i].Until})
		}
	}
	return own, over
}

func fieldOf(name string) string {
	for _, field := range jsonFields {
		if fileOf(field) == name {
			return field
		}
	}
	return ""
}

// checkAccess compares owner and mode with the manifest.
func (m *manifest) checkAccess(e manifestEntry, st *unix.Stat_t) error {
	mode, owner := modeString(fs.FileMode(st.Mode)), Owner{int(st.Uid), int(st.Gid)}.String()
	if mode != e.Mode || owner != m.Owner {
		return fmt.Errorf("%s has mode %s and owner %s, want %s and %s", e.File, mode, owner, e.Mode, m.Owner)
	}
	return nil
}

package mtls

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
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
	if _, bound := g.set.binding(); bound && p.evidence != nil && !slices.Contains(g.manifest.links(), evidenceFile) {
		err = errors.Join(err, fmt.Errorf("%s is missing", evidenceFile))
	}
	// A crash right after the switch has left these undone. Done twice they do no harm.
	err = errors.Join(err, mendLinks(root, g.manifest.links()), syncRoot(root))
	if previous := linkedGeneration(root, prevLink); previous != "" && previous != current {
		if err := wake(root, previous); err != nil {
			p.log.Warn("readers that watch files were not woken", "generation", previous, "err", err)
		}
	}
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
	m, err := readManifest(gen, name)
	if err != nil {
		return nil, err
	}
	g := &generation{manifest: m}
	for _, s := range m.Secrets {
		g.bundles = append(g.bundles, &bundle{secret: s.Secret, version: s.Version, fields: make(map[string]*part)})
	}
	contents := make(map[string][]byte)
	var drift []error
	for _, e := range m.Files {
		content, st, err := readBounded(gen, e.File, maxManifestBytes)
		if err != nil {
			return nil, err
		}
		if err := e.checkContent(content); err != nil {
			return nil, err
		}
		drift = append(drift, e.checkAccess(st))
		if e.File == evidenceFile {
			continue
		}
		contents[e.File] = content
		if err := g.takeFile(e, content); err != nil {
			return nil, err
		}
	}
	g.set, err = assemble(g.bundles, nil, now)
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
	if g.access, err = m.access(g.set); err != nil {
		return nil, err
	}
	return g, errors.Join(drift...)
}

// takeFile puts the content of a file back into the field of the secret that it came from.
func (g *generation) takeFile(e manifestEntry, content []byte) error {
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

func fieldOf(name string) string {
	for _, field := range jsonFields {
		if fileOf(field) == name {
			return field
		}
	}
	return ""
}

// checkAccess compares owner and mode with the manifest.
func (e manifestEntry) checkAccess(st *unix.Stat_t) error {
	mode, owner := modeString(fs.FileMode(st.Mode)), Owner{int(st.Uid), int(st.Gid)}.String()
	if mode != e.Mode || owner != e.Owner {
		return fmt.Errorf("%s has mode %s and owner %s, want %s and %s", e.File, mode, owner, e.Mode, e.Owner)
	}
	return nil
}

// access recovers the settings that a generation was published with.
func (m *manifest) access(s *set) (access, error) {
	var a access
	for _, e := range m.Files {
		mode, err := strconv.ParseUint(e.Mode, 8, 9)
		if err != nil {
			return a, fmt.Errorf("%s: mode %q in %s", e.File, e.Mode, manifestFile)
		}
		if _, err := fmt.Sscanf(e.Owner, "%d:%d", &a.owner.UID, &a.owner.GID); err != nil {
			return a, fmt.Errorf("%s: owner %q in %s", e.File, e.Owner, manifestFile)
		}
		for _, f := range s.files {
			if f.name == e.File && f.private {
				a.keyMode = fs.FileMode(mode)
			} else if f.name == e.File {
				a.certMode = fs.FileMode(mode)
			}
		}
	}
	return a, nil
}

package mtls

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// publisher switches the published directory from one set to the next.
type publisher struct {
	path      string
	allowDisk bool
	consumer  string // whose directory below the node's own it is; empty: the node's
	log       *slog.Logger
	// quiet is waited upon before a switch; nil: nothing is.
	quiet func()

	// testOnlyBefore is asked before each step. Its error ends the publication there and then, as a crash would.
	testOnlyBefore func(step string) error
	// testOnlyFail is asked after each step, which fails by its error.
	testOnlyFail func(step string) error
}

// generation is a set as it lies in the directory.
type generation struct {
	manifest *manifest
	encoded  []byte // manifest.json
	set      *set
	bundles  []*bundle
	access   access
	evidence []byte // nil: none
	// immutable: nobody without CAP_LINUX_IMMUTABLE can change it.
	immutable bool
	// damaged: found at start with good content, but not as the manifest wants it.
	damaged bool
}

func (g *generation) name() string { return g.manifest.Generation }

// errRolledBack marks a publication that had been switched to before it failed.
var errRolledBack = errors.New("went back to the generation before")

// publish makes s the current generation, with evidence.json unless that is nil, or leaves the current one and says
// why. It takes a fraction of a millisecond beside the wait for a quiet moment.
//
// was is the generation that readers have been using, whatever ..data says now; nil: what it says.
func (p *publisher) publish(s *set, bundles []*bundle, evidence []byte, a access, was *generation, now time.Time) (*generation, error) {
	files := slices.Clone(s.files)
	if evidence != nil {
		files = append(files, file{name: evidenceFile, content: evidence})
	}
	root, err := p.open()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	dir, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	entries, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	// The clock may have been set back, or not have moved: a name that is taken is no reason to fail.
	for slices.Contains(entries, generationName(s.sources, now)) {
		now = now.Add(time.Microsecond)
	}
	previous := linkedGeneration(root, dataLink)
	var ours []string
	if was != nil {
		ours = was.manifest.links()
		if fi, err := root.Lstat(was.name()); err == nil && fi.IsDir() {
			previous = was.name()
		}
	}
	m := newManifest(generationName(s.sources, now), s, files, a, now)
	m.Consumer = p.consumer
	encoded := m.encode()
	files = append(files, file{name: manifestFile, content: encoded})
	pub := &publication{
		publisher: p,
		root:      root,
		dir:       dir,
		entries:   entries,
		ours:      ours,
		name:      m.Generation,
		previous:  previous,
		formerly:  linkedGeneration(root, prevLink),
		set:       s,
		files:     files,
		access:    a,
		now:       now,
		self:      Owner{os.Geteuid(), os.Getegid()},
		memory:    checkFileSystem(p.path, false) == nil,
		immutable: true,
	}
	err = pub.run()
	if errors.Is(err, unix.ENOSPC) && !pub.committed && collect(root, 0, now) == nil {
		// A reader that is half-way through an old generation is worth less than a new one.
		err = pub.run()
	}
	if err != nil {
		return nil, err
	}
	if pub.crowded {
		if err := collect(root, maxRetired, now); err != nil {
			p.log.Warn("old generations stay", "err", err)
		}
	}
	return &generation{manifest: m, encoded: encoded, set: s, bundles: bundles, access: a, evidence: evidence, immutable: pub.immutable}, nil
}

// publication is one run of publish.
type publication struct {
	*publisher
	root      *os.Root
	dir       *os.File // the same
	entries   []string // in it, to begin with
	ours      []string // names of which links of ours have been there
	gen       *genDir  // the new generation, once it is there
	old       *genDir  // the current one so far, once it is retired
	name      string
	previous  string // the current generation so far; empty: none
	formerly  string // where ..prev has led; empty: nowhere
	set       *set
	files     []file
	access    access
	now       time.Time
	self      Owner // of what we make
	memory    bool  // nothing needs flushing
	immutable bool  // so far
	committed bool  // ..data has been switched
	crowded   bool  // there are more generations than there should be
}

// step is the unit in which a publication may be cut off: each leaves the old set or the new one.
type step struct {
	name string
	do   func() error
}

func (p *publication) run() error {
	steps, err := p.plan()
	if err != nil {
		return err
	}
	defer func() {
		for _, g := range []*genDir{p.gen, p.old} {
			if g != nil {
				g.close()
			}
		}
		p.gen, p.old = nil, nil
	}()
	for _, s := range steps {
		if p.testOnlyBefore != nil {
			if err := p.testOnlyBefore(s.name); err != nil {
				return err
			}
		}
		err := s.do()
		if err == nil && p.testOnlyFail != nil {
			err = p.testOnlyFail(s.name)
		}
		if err != nil {
			return p.undo(fmt.Errorf("%s: %w", s.name, err))
		}
	}
	return nil
}

func (p *publication) plan() ([]step, error) {
	missing, unwanted, err := userLinks(p.root, p.entries, p.names(), p.ours)
	if err != nil {
		return nil, err
	}
	p.crowded = len(p.entries) > maxRetired+len(p.files)
	steps := []step{{"make " + p.name, p.makeGeneration}}
	for _, f := range p.files {
		steps = append(steps, step{"write " + f.name, func() error { return p.write(f) }})
	}
	steps = append(steps, step{"seal " + p.name, p.seal})
	if p.previous != "" {
		// Before the switch, so that a crash between the two cannot leave the old set without its grace.
		steps = append(steps,
			step{"retire " + p.previous, p.retire},
			step{"link " + prevLink, func() error { return setLink(p.root, prevLink, p.previous) }})
	}
	if p.previous != "" && p.quiet != nil {
		steps = append(steps, step{"wait for a quiet moment", func() error { p.quiet(); return nil }})
	}
	steps = append(steps,
		step{"stage " + dataLink, p.stage},
		step{"switch " + dataLink, p.commit},
		step{"flush the switch", p.flush})
	// A user's link must not be there before what it leads to (kubernetes/kubernetes#93686), nor after.
	for _, name := range missing {
		steps = append(steps, step{"link " + name, func() error { return setLink(p.root, name, dataLink+"/"+name) }})
	}
	for _, name := range unwanted {
		steps = append(steps, step{"unlink " + name, func() error { return removeIfThere(p.root, name) }})
	}
	if len(missing)+len(unwanted) > 0 {
		steps = append(steps, step{"flush the links", p.flush})
	}
	steps = append(steps, step{"load what was published", p.selfTest})
	if p.previous != "" {
		steps = append(steps, step{"wake readers of " + p.previous, p.wakePrevious})
	}
	return steps, nil
}

func (p *publication) names() []string {
	names := make([]string, len(p.files))
	for i, f := range p.files {
		names[i] = f.name
	}
	return names
}

// makeGeneration makes the directory for the agent alone. Its mode tells, after a crash, that it was not complete.
func (p *publication) makeGeneration() error {
	if err := p.root.Mkdir(p.name, 0o700); err != nil {
		return err
	}
	var err error
	p.gen, err = openGenerationAt(p.dir, p.name)
	return err
}

// write makes one file of the new generation: owner and mode before content, flushed, and read back. It does not
// need atomicfile's rename, since nobody looks into the generation before the switch.
func (p *publication) write(f file) error {
	return p.gen.with(f.name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, func(fd int) error {
		if err := unix.Fchmod(fd, uint32(p.access.mode(f))); err != nil {
			return err
		}
		if p.access.owner != p.self {
			if err := unix.Fchown(fd, p.access.owner.UID, p.access.owner.GID); err != nil {
				return fmt.Errorf("give it to owner %d:%d: %w; sevagent.service has CAP_CHOWN only from a drop-in, see the agent's configuration", p.access.owner.UID, p.access.owner.GID, err)
			}
		}
		if err := writeFD(fd, f.content); err != nil {
			return err
		}
		if !p.memory {
			if err := unix.Fsync(fd); err != nil {
				return err
			}
		}
		// Through the same descriptor: the new owner may be someone whose files we cannot open.
		got := make([]byte, len(f.content)+1)
		if n, err := unix.Pread(fd, got, 0); err != nil || !bytes.Equal(got[:n], f.content) {
			return fmt.Errorf("reads back differently (%d bytes of %d, %v)", n, len(f.content), err)
		}
		return p.protect(fd)
	})
}

// protect makes a file or the directory of the new generation immutable, where that can be had.
func (p *publication) protect(fd int) error {
	ok, err := p.setter()(fd, true)
	p.immutable = p.immutable && ok
	return err
}

func (p *publication) setter() func(fd int, on bool) (bool, error) {
	if p.memory {
		return setOnly
	}
	return setImmutable
}

// seal opens the complete generation to readers and makes it durable.
func (p *publication) seal() error {
	if err := unix.Fchmod(p.gen.fd, 0o755); err != nil {
		return err
	}
	if err := p.protect(p.gen.fd); err != nil {
		return err
	}
	if p.memory {
		return nil
	}
	return unix.Fsync(p.gen.fd)
}

func (p *publication) retire() (err error) {
	if p.old, err = openGenerationAt(p.dir, p.previous); err != nil {
		return err
	}
	return p.old.retire(p.now)
}

func (p *publication) flush() error {
	if p.memory {
		return nil
	}
	return p.dir.Sync()
}

func (p *publication) stage() error { return stageLink(p.root, tmpName(dataLink), p.name) }

// commit is the moment from which on readers get the new set.
func (p *publication) commit() error {
	if err := renameOver(p.root, tmpName(dataLink), dataLink); err != nil {
		return err
	}
	p.committed = true
	return nil
}

// selfTest reads the new set the way a consumer does: by path, through the links. The content has been validated in
// memory, so that it is the same content is all there is to see.
func (p *publication) selfTest() error {
	var held, there unix.Stat_t
	if err := unix.Fstat(int(p.dir.Fd()), &held); err != nil {
		return err
	}
	if err := unix.Stat(p.path, &there); err != nil {
		return &fs.PathError{Op: "stat", Path: p.path, Err: err}
	}
	if held.Dev != there.Dev || held.Ino != there.Ino {
		return fmt.Errorf("%s has been replaced or mounted over", p.path)
	}
	for _, f := range p.files {
		if err := checkFile(filepath.Join(p.path, f.name), f.content); err != nil {
			return err
		}
	}
	return nil
}

// checkFile reports whether a consumer finds content at path.
func checkFile(path string, content []byte) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	got := make([]byte, len(content)+1)
	if n, err := unix.Read(fd, got); err != nil || !bytes.Equal(got[:n], content) {
		return fmt.Errorf("%s is not what was written (%v)", path, err)
	}
	return nil
}

// wakePrevious comes last, so that whoever is woken finds what will stay. The switch stands even if this fails.
func (p *publication) wakePrevious() error {
	if err := p.old.each(func(fd int) error { return poke(fd, p.setter()) }); err != nil {
		p.log.Warn("readers that watch files were not woken", "generation", p.previous, "err", err)
	}
	return nil
}

// undo leaves the directory as it was before the publication, and adds to the cause what it could not mend. What
// goes wrong after the switch is not the fault of the set, which was valid in memory: it will be tried again.
func (p *publication) undo(cause error) error {
	errs := []error{cause}
	try := func(err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("undo: %w", err))
		}
	}
	for _, link := range []string{dataLink, prevLink} {
		try(clearTmp(p.root, tmpName(link)))
	}
	switch {
	case p.previous == "":
	case p.formerly == "":
		try(removeIfThere(p.root, prevLink))
	default:
		try(setLink(p.root, prevLink, p.formerly))
	}
	if p.previous != "" {
		harden(p.root, p.previous)
	}
	if !p.committed {
		try(removeGeneration(p.root, p.name))
		return errors.Join(errs...)
	}
	errs[0] = fmt.Errorf("%w; %w", cause, errRolledBack)
	if p.previous == "" {
		try(removeIfThere(p.root, dataLink))
		try(mendLinks(p.root, nil))
	} else {
		try(setLink(p.root, dataLink, p.previous))
		m, err := readManifestOf(p.root, p.previous)
		try(err)
		if err == nil {
			try(mendLinks(p.root, m.links()))
		}
	}
	try(syncRoot(p.root))
	// Some readers may have it open by now: it goes like any other that was current once.
	try(retire(p.root, p.name, p.now))
	try(wake(p.root, p.name))
	return errors.Join(errs...)
}

package directory

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/internal/mtls/certset"
)

// ErrRolledBack marks a publication that readers may have seen before it failed.
var ErrRolledBack = errors.New("went back to the generation before")

func (d *Directory) publish(s *certset.Set, evidence []byte, a Access, now time.Time) (*Generation, error) {
	files := slices.Clone(s.Files)
	if evidence != nil {
		files = append(files, certset.File{Name: evidenceFile, Content: evidence})
	}
	root, err := d.open()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	handle, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	entries, err := handle.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	// The clock may have been set back, or not have moved: a name that is taken is no reason to fail.
	origins := s.Origins()
	for slices.Contains(entries, generationName(origins, now)) {
		now = now.Add(time.Microsecond)
	}
	previous := linkedGeneration(root, dataLink)
	var ours []string
	if was := d.current; was != nil { // what readers have been using, wherever ..data leads now
		ours = was.manifest.links()
		if fi, err := root.Lstat(was.Name()); err == nil && fi.IsDir() {
			previous = was.Name()
		}
	}
	m := newManifest(generationName(origins, now), s, files, a, now)
	m.Consumer = d.consumer
	encoded := m.encode()
	files = append(files, certset.File{Name: manifestFile, Content: encoded})
	pub := &publication{
		Directory: d,
		root:      root,
		dir:       handle,
		entries:   entries,
		ours:      ours,
		name:      m.Generation,
		previous:  previous,
		formerly:  linkedGeneration(root, prevLink),
		files:     files,
		access:    a,
		now:       now,
		self:      Owner{os.Geteuid(), os.Getegid()},
		memory:    !d.allowDisk || checkFileSystem(d.path, false) == nil,
		immutable: true,
	}
	err = pub.run()
	if errors.Is(err, unix.ENOSPC) && !pub.committed && collect(root, 0, now) == nil {
		// A reader that is half-way through an old generation matters less than the new one.
		err = pub.run()
	}
	if err != nil {
		return nil, err
	}
	if pub.crowded {
		if err := collect(root, maxRetired, now); err != nil {
			d.log.Warn("cannot remove old generations", "path", d.path, "err", err)
		}
	}
	return &Generation{
		Set: s, Evidence: evidence, Immutable: pub.immutable, manifest: m, encoded: encoded, access: a,
	}, nil
}

// publication is one run of publish.
type publication struct {
	*Directory
	root      *os.Root
	dir       *os.File // the same
	entries   []string // in it, before the first step
	ours      []string // the links we published before
	gen       *genDir  // the new generation, once it is there
	old       *genDir  // the current one so far, once it is retired
	name      string
	previous  string // the current generation so far; empty: none
	formerly  string // where ..prev has led; empty: nowhere
	files     []certset.File
	access    Access
	now       time.Time
	self      Owner  // of what we make
	memory    bool   // nothing needs flushing
	immutable bool   // so far
	committed bool   // ..data has been switched
	buf       []byte // for what is read back
	crowded   bool   // there are more generations than there should be
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
		steps = append(steps, step{"write " + f.Name, func() error { return p.write(f) }})
	}
	steps = append(steps, step{"seal " + p.name, p.seal})
	if p.previous != "" {
		// Before the switch, so that a crash between the two cannot leave the old set without its grace.
		steps = append(steps,
			step{"retire " + p.previous, p.retire},
			step{"link " + prevLink, func() error { return setLink(p.root, prevLink, p.previous) }})
	}
	steps = append(steps, step{"stage " + dataLink, p.stage})
	if p.previous != "" && p.opens != nil {
		// Nothing comes between it and the switch: the gap may be short.
		steps = append(steps, step{"wait for a gap between reads", func() error { p.opens.waitForGap(); return nil }})
	}
	steps = append(steps,
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
		names[i] = f.Name
	}
	return names
}

// makeGeneration makes the directory for the agent alone. By its mode the next start sees, after a crash, that it was
// not complete.
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
func (p *publication) write(f certset.File) error {
	return p.gen.with(f.Name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, func(fd int) error {
		if err := unix.Fchmod(fd, uint32(p.access.mode(f))); err != nil {
			return err
		}
		if p.access.Owner != p.self {
			if err := unix.Fchown(fd, p.access.Owner.UID, p.access.Owner.GID); err != nil {
				const advice = "sevagent.service has CAP_CHOWN only from a drop-in, see the agent's configuration"
				return fmt.Errorf("give it to owner %s: %w; %s", p.access.Owner, err, advice)
			}
		}
		if err := writeFD(fd, f.Content); err != nil {
			return err
		}
		if !p.memory {
			if err := unix.Fsync(fd); err != nil {
				return err
			}
		}
		// Through the same descriptor: the new owner may be someone whose files we cannot open.
		if err := p.readBack(fd, f.Content); err != nil {
			return err
		}
		return p.protect(fd)
	})
}

// readBack returns an error unless an open file has this content.
func (p *publication) readBack(fd int, content []byte) error {
	p.buf = slices.Grow(p.buf[:0], len(content)+1)[:len(content)+1]
	n, err := unix.Pread(fd, p.buf, 0)
	if err != nil || !bytes.Equal(p.buf[:n], content) {
		return fmt.Errorf("reads back differently (%d bytes of %d, %v)", n, len(content), err)
	}
	return nil
}

// protect makes a file or the directory of the new generation immutable, where that is possible.
func (p *publication) protect(fd int) error {
	ok, err := setImmutable(fd, true)
	p.immutable = p.immutable && ok
	return err
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

// commit is the moment after which readers get the new set.
func (p *publication) commit() error {
	if err := renameOver(p.root, tmpName(dataLink), dataLink); err != nil {
		return err
	}
	p.committed = true
	return nil
}

// selfTest reads the new set the way a consumer does: by name, through the links, in the directory that the path leads
// to. The content has been validated in memory, so that all that is left to verify is that it is the same.
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
		if err := p.checkFile(f); err != nil {
			return &fs.PathError{Op: "use", Path: filepath.Join(p.path, f.Name), Err: err}
		}
	}
	return nil
}

// checkFile returns an error unless a consumer finds a file as it was written.
func (p *publication) checkFile(f certset.File) error {
	fd, err := unix.Openat(int(p.dir.Fd()), f.Name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return p.readBack(fd, f.Content)
}

// wakePrevious comes last, so that the readers that it wakes find what will stay. The switch stands even if it fails.
func (p *publication) wakePrevious() error {
	if err := p.old.each(touch); err != nil {
		p.log.Warn("cannot wake readers that watch files", "generation", p.previous, "err", err)
	}
	return nil
}

// undo leaves the directory as it was before the publication, and adds to the cause what it could not restore. What
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
		makeImmutable(p.root, p.previous)
	}
	if !p.committed {
		try(removeGeneration(p.root, p.name))
		return errors.Join(errs...)
	}
	errs[0] = fmt.Errorf("%w; %w", cause, ErrRolledBack)
	if p.previous == "" {
		try(removeIfThere(p.root, dataLink))
		try(repairLinks(p.root, nil))
	} else {
		try(setLink(p.root, dataLink, p.previous))
		m, err := readManifestOf(p.root, p.previous)
		try(err)
		if err == nil {
			try(repairLinks(p.root, m.links()))
		}
	}
	try(syncRoot(p.root))
	// Some readers may have it open by now: it goes like any other that was current once.
	try(retire(p.root, p.name, p.now))
	try(wakeReaders(p.root, p.name))
	return errors.Join(errs...)
}

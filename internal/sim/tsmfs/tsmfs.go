// Package tsmfs is the kernel's configfs-tsm report directory (Documentation/ABI/testing/configfs-tsm-report) as a FUSE
// file system over a simulated secure processor. Modes, errors and the time at which a write takes effect are the
// kernel's, as compared with Linux 6.12.
package tsmfs

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"sevagent/internal/sim"
	"sevagent/internal/sim/simfuse"
	"sevagent/internal/snp"
)

// Mount mounts the directory; it needs root and /dev/fuse.
func Mount(dir string, psp *sim.PSP) (*fuse.Server, error) {
	server, err := simfuse.Mount(dir, &root{psp: psp}, &fs.Options{
		MountOptions:   fuse.MountOptions{AllowOther: true, FsName: "configfs", Name: "tsm", DirectMount: true},
		RootStableAttr: &fs.StableAttr{Ino: 1},
	})
	if err != nil {
		return nil, fmt.Errorf("mount a simulated configfs-tsm at %s: %w", dir, err)
	}
	return server, nil
}

// attributes of an entry and their modes.
var attributes = map[string]uint32{
	"generation": 0o444, "provider": 0o444, "privlevel": 0o200, "privlevel_floor": 0o444,
	"inblob": 0o200, "outblob": 0o444, "auxblob": 0o444,
}

type root struct {
	fs.Inode
	psp *sim.PSP
}

var (
	_ fs.NodeMkdirer = (*root)(nil)
	_ fs.NodeRmdirer = (*root)(nil)
)

func (r *root) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	e := &entry{psp: r.psp}
	dir := r.NewInode(ctx, e, fs.StableAttr{Mode: fuse.S_IFDIR})
	for name, mode := range attributes {
		file := r.NewPersistentInode(ctx, &attribute{entry: e, name: name, mode: mode}, fs.StableAttr{Mode: fuse.S_IFREG})
		dir.AddChild(name, file, false)
	}
	out.Mode = fuse.S_IFDIR | 0o755
	return dir, 0
}

// Rmdir removes an entry with its attributes, which cannot be removed one by one.
func (r *root) Rmdir(_ context.Context, name string) syscall.Errno {
	if entry := r.GetChild(name); entry != nil {
		entry.RmAllChildren() // or they would stay in memory
	}
	return 0
}

// entry is one report directory.
type entry struct {
	fs.Inode
	psp *sim.PSP

	mu            sync.Mutex
	written, read uint64 // generations: of the last write, and of the report that was made
	privlevel     uint32
	in, out, aux  []byte
}

var _ fs.NodeGetattrer = (*entry)(nil)

func (e *entry) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = 0o755
	return 0
}

// report makes a report unless there is one for the last write. mu is held.
func (e *entry) report(ctx context.Context) syscall.Errno {
	if e.out != nil && e.read == e.written {
		return 0
	}
	if len(e.in) != snp.ReportDataSize {
		return syscall.EINVAL
	}
	out, aux, err := e.psp.ReportContext(ctx, [snp.ReportDataSize]byte(e.in), e.privlevel)
	if host, ok := errors.AsType[*sim.HostError](err); ok {
		return host.Errno()
	}
	if ctx.Err() != nil {
		return syscall.EINTR
	}
	if err != nil {
		return syscall.EIO
	}
	e.out, e.aux, e.read = out, aux, e.written
	return 0
}

// attribute is one file of an entry.
type attribute struct {
	fs.Inode
	entry *entry
	name  string
	mode  uint32
}

var (
	_ fs.NodeGetattrer = (*attribute)(nil)
	_ fs.NodeSetattrer = (*attribute)(nil)
	_ fs.NodeOpener    = (*attribute)(nil)
)

func (a *attribute) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = a.mode
	return 0
}

// Setattr accepts and ignores what O_TRUNC asks for, as configfs does.
func (a *attribute) Setattr(ctx context.Context, f fs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return a.Getattr(ctx, f, out)
}

func (a *attribute) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	writes := flags&syscall.O_ACCMODE != syscall.O_RDONLY
	if writes && a.mode&0o200 == 0 || !writes && a.mode&0o400 == 0 {
		return nil, 0, syscall.EACCES
	}
	return &handle{attribute: a}, fuse.FOPEN_DIRECT_IO, 0
}

// handle is an open file: the first read makes its content, and a binary write takes effect at close, where its error
// is lost, as in the kernel.
type handle struct {
	attribute *attribute

	mu      sync.Mutex
	content []byte
	loaded  bool
	pending []byte
}

var (
	_ fs.FileReader  = (*handle)(nil)
	_ fs.FileWriter  = (*handle)(nil)
	_ fs.FileFlusher = (*handle)(nil)
)

func (h *handle) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.loaded {
		content, errno := h.attribute.load(ctx)
		if errno != 0 {
			return nil, errno
		}
		h.content, h.loaded = content, true
	}
	rest := h.content[min(off, int64(len(h.content))):]
	return fuse.ReadResultData(rest[:min(len(rest), len(dest))]), 0
}

func (a *attribute) load(ctx context.Context) ([]byte, syscall.Errno) {
	e := a.entry
	e.mu.Lock()
	defer e.mu.Unlock()
	switch a.name {
	case "generation":
		return fmt.Appendf(nil, "%d\n", e.written), 0
	case "provider":
		return []byte("sev_guest\n"), 0
	case "privlevel_floor":
		return fmt.Appendf(nil, "%d\n", e.psp.VMPL()), 0
	}
	if errno := e.report(ctx); errno != 0 {
		return nil, errno
	}
	if a.name == "auxblob" {
		return e.aux, 0
	}
	return e.out, 0
}

func (h *handle) Write(_ context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.attribute.name == "privlevel" { // text: takes effect at once
		level, err := strconv.ParseUint(strings.TrimSpace(string(data)), 0, 32)
		if err != nil || level > 3 {
			return 0, syscall.EINVAL
		}
		e := h.attribute.entry
		e.mu.Lock()
		defer e.mu.Unlock()
		e.privlevel = uint32(level)
		e.written++
		return uint32(len(data)), 0
	}
	end := off + int64(len(data))
	if end > snp.ReportDataSize {
		return 0, syscall.EFBIG
	}
	if missing := end - int64(len(h.pending)); missing > 0 {
		h.pending = append(h.pending, make([]byte, missing)...)
	}
	copy(h.pending[off:], data)
	return uint32(len(data)), 0
}

func (h *handle) Flush(context.Context) syscall.Errno {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pending != nil {
		e := h.attribute.entry
		e.mu.Lock()
		defer e.mu.Unlock()
		e.in, h.pending = h.pending, nil
		e.written++
	}
	return 0
}

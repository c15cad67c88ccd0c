package nitrotpm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"sevagent/internal/sim/simfuse"
)

// Mount mounts a directory with the files tpm0 and tpmrm0; it needs root and /dev/fuse.
func Mount(dir string, t *TPM) (*fuse.Server, error) {
	root := new(fs.Inode)
	server, err := simfuse.Mount(dir, root, &fs.Options{
		MountOptions: fuse.MountOptions{FsName: "nitrotpm", Name: "tpm", DirectMount: true},
		OnAdd: func(ctx context.Context) {
			for _, name := range []string{Raw, Manager} {
				root.AddChild(name, root.NewPersistentInode(ctx, &node{tpm: t, name: name}, fs.StableAttr{}), false)
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("mount a simulated NitroTPM at %s: %w", dir, err)
	}
	return server, nil
}

type node struct {
	fs.Inode
	tpm  *TPM
	name string
}

var (
	_ fs.NodeGetattrer = (*node)(nil)
	_ fs.NodeSetattrer = (*node)(nil)
	_ fs.NodeOpener    = (*node)(nil)
)

func (n *node) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = 0o600
	return 0
}

func (n *node) Setattr(ctx context.Context, f fs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return n.Getattr(ctx, f, out)
}

func (n *node) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	f, errno := n.tpm.open(n.name)
	if errno != 0 {
		return nil, 0, errno
	}
	return &handle{f}, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NONSEEKABLE, 0
}

// handle is an open file behind FUSE. What a killed client leaves open is released by the kernel.
type handle struct{ file *file }

var (
	_ fs.FileReader   = (*handle)(nil)
	_ fs.FileWriter   = (*handle)(nil)
	_ fs.FileReleaser = (*handle)(nil)
)

func (h *handle) Read(_ context.Context, dest []byte, _ int64) (fuse.ReadResult, syscall.Errno) {
	n, err := h.file.Read(dest)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fs.ToErrno(err)
	}
	return fuse.ReadResultData(dest[:n]), 0
}

func (h *handle) Write(ctx context.Context, data []byte, _ int64) (uint32, syscall.Errno) {
	n, err := h.file.write(ctx, data)
	if err != nil {
		return 0, fs.ToErrno(err)
	}
	return uint32(n), 0
}

func (h *handle) Release(context.Context) syscall.Errno { return fs.ToErrno(h.file.Close()) }

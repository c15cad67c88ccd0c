// Package simfuse mounts the simulated devices that are files.
package simfuse

import (
	"os"
	"path/filepath"
	"strconv"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Mount mounts a file system. It keeps the connection to the kernel from programs that this process starts, which
// go-fuse does not (fuse/mount_linux.go, mountDirect): with it, a client would outlive a server that was killed, in a
// call that nobody can answer or interrupt.
func Mount(dir string, root fs.InodeEmbedder, options *fs.Options) (*fuse.Server, error) {
	server, err := fs.Mount(dir, root, options)
	if err != nil {
		return nil, err
	}
	open, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		return nil, err
	}
	for _, path := range open {
		if target, err := os.Readlink(path); err != nil || target != "/dev/fuse" {
			continue
		}
		if fd, err := strconv.Atoi(filepath.Base(path)); err == nil {
			unix.CloseOnExec(fd)
		}
	}
	return server, nil
}

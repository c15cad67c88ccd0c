package cli

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"sevagent/internal/must"
)

// A pipe gets the content and stays a pipe.
func TestWriteOutputPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	must.Do(t, syscall.Mkfifo(path, 0o600), "make a pipe")
	reader := must.Get(os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0))(t, "open the pipe")
	defer reader.Close()
	must.Do(t, WriteOutput(t.Context(), path, io.Discard, []byte("text")), "write the output")
	if text, err := io.ReadAll(reader); err != nil || string(text) != "text" {
		t.Errorf("the pipe's reader gets %q (%v)", text, err)
	}
	if fi, err := os.Lstat(path); err != nil || fi.Mode().Type() != fs.ModeNamedPipe {
		t.Errorf("the pipe is now %v (%v)", fi.Mode(), err)
	}
}

// A pipe that nobody reads does not hold an interrupted command.
func TestWriteOutputPipeInterrupted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	must.Do(t, syscall.Mkfifo(path, 0o600), "make a pipe")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := WriteOutput(ctx, path, io.Discard, []byte("text")); !errors.Is(err, context.Canceled) {
		t.Errorf("WriteOutput returns %v, want context.Canceled", err)
	}
}

// A device is written to and stays. These two are nodes of our own for the kernel's null and full.
func TestWriteOutputDevice(t *testing.T) {
	dir := t.TempDir()
	for name, want := range map[int]error{3: nil, 7: syscall.ENOSPC} {
		path := filepath.Join(dir, "device")
		if err := syscall.Mknod(path, syscall.S_IFCHR|0o666, 1<<8|name); err != nil {
			t.Skip("cannot make a device node, which needs root:", err)
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Skip("cannot use a device node here:", err)
		}
		f.Close()
		if err := WriteOutput(t.Context(), path, io.Discard, []byte("text")); !errors.Is(err, want) {
			t.Errorf("writing to device 1:%d returns %v, want %v", name, err, want)
		}
		if fi, err := os.Lstat(path); err != nil || fi.Mode()&fs.ModeCharDevice == 0 {
			t.Errorf("device 1:%d is now %v (%v)", name, fi.Mode(), err)
		}
		must.Do(t, os.Remove(path), "remove the device node")
	}
}

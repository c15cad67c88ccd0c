package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"sevagent/internal/atomicfile"
)

// WriteOutput writes content to path, a file that a person named with -o or --output. An empty path, and "-", mean
// stdout.
//
// A regular file, or a new one, appears with its whole content at once. Whatever else lies at path is written to and
// stays what it is: a device, a pipe, a symbolic link and what that leads to. Replacing those too, as a rename does,
// would let root destroy /dev/null.
func WriteOutput(ctx context.Context, path string, stdout io.Writer, content []byte) error {
	return writeOutput(ctx, path, stdout, content, 0o644)
}

// WritePrivateOutput is WriteOutput, but only the user can read a new file.
func WritePrivateOutput(ctx context.Context, path string, stdout io.Writer, content []byte) error {
	return writeOutput(ctx, path, stdout, content, 0o600)
}

func writeOutput(ctx context.Context, path string, stdout io.Writer, content []byte, perm fs.FileMode) error {
	if path == "" || path == "-" {
		_, err := stdout.Write(content)
		return err
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return atomicfile.Write(path, content, perm)
	case err != nil:
		return fmt.Errorf("write output: %w", err)
	case info.Mode().IsRegular():
		return atomicfile.Write(path, content, info.Mode().Perm())
	}
	f, err := openThrough(ctx, path)
	if err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Close())
}

// openThrough opens for writing what lies at path, or what a symbolic link there leads to. It waits for the reader of a
// pipe as a shell does, but no longer than until ctx ends: an open that blocks would ignore Ctrl-C.
func openThrough(ctx context.Context, path string) (*os.File, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().IsRegular():
		return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	case err != nil:
		return nil, err
	case info.Mode().Type() != fs.ModeNamedPipe:
		return os.OpenFile(path, os.O_WRONLY, 0)
	}
	for {
		f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0)
		if !errors.Is(err, syscall.ENXIO) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for a reader of %s: %w", path, context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// output is a command's standard output. It remembers the first write that failed, because most of what prints, help
// and completions of cobra among it, drops the error: a full disk would pass for success.
type output struct {
	io.Writer
	err error
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.Writer.Write(p)
	if err != nil && o.err == nil {
		o.err = err
	}
	return n, err
}

// result returns the error of a command that returned err: a failed write, unless something else failed.
func (o *output) result(err error) error {
	if o.err != nil && (err == nil || errors.Is(err, o.err)) {
		return fmt.Errorf("write standard output: %w", o.err)
	}
	return err
}

// BestEffort returns the standard output of a command whose lines accompany its work: losing them does not fail it.
func BestEffort(stdout io.Writer) io.Writer {
	if o, ok := stdout.(*output); ok {
		return o.Writer
	}
	return stdout
}

// Colours reports whether text on w may have colours: w is a terminal that shows them, and the user has not declined
// them (https://no-color.org).
func Colours(w io.Writer) bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && IsTerminal(w)
}

// IsTerminal reports whether w is a terminal that understands escape sequences.
func IsTerminal(w io.Writer) bool {
	f, ok := BestEffort(w).(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && enableEscapes(f)
}

package source

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// maxFileBytes bounds a file. The bundles of anchors that clouds and distributions hand out have 100 to 300 KiB.
const maxFileBytes = 1 << 20

// File reads a secret from a local file, the file:///path of the configuration. The value is the path; the version is
// the SHA-256 of the content.
type File string

// Describe returns the SHA-256 of the file as the current version.
func (path File) Describe(context.Context) (Version, error) {
	content, err := path.read()
	if err != nil {
		return Version{}, err
	}
	return Version{Current: digest(content)}, nil
}

// Fetch returns the content of the file if it still is that version.
func (path File) Fetch(_ context.Context, versionID string, _ Label) (Secret, error) {
	content, err := path.read()
	if err != nil {
		return nil, err
	}
	if digest(content) != versionID {
		return nil, &Error{Kind: Moved, Err: fmt.Errorf("read %s: it has just been changed", string(path))}
	}
	return NewSecret(content), nil
}

// read returns the content. A file caught half-written gives a version of its own: it is validated like any other, and
// the next poll finds the whole one.
func (path File) read() ([]byte, error) {
	// Opening a FIFO would wait for a writer, hence O_NONBLOCK.
	f, err := os.OpenFile(string(path), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil, &Error{Kind: Persistent, Missing: errors.Is(err, fs.ErrNotExist), Err: err}
	} else if err != nil {
		return nil, err
	}
	defer f.Close()

	if fi, err := f.Stat(); err != nil {
		return nil, err
	} else if !fi.Mode().IsRegular() {
		return nil, &Error{Kind: Persistent, Err: fmt.Errorf("read %s: not a regular file", string(path))}
	}
	content, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(content) > maxFileBytes {
		return nil, &Error{Kind: Persistent,
			Err: fmt.Errorf("read %s: larger than %d bytes", string(path), maxFileBytes)}
	}
	return content, nil
}

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

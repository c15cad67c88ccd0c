package mtls

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

// FileSource reads a secret from a local file, the file:///path of the configuration. The value is the path; the
// version is the SHA-256 of the content.
type FileSource string

var _ Source = FileSource("")

// Describe returns the SHA-256 of the file as the current version.
func (path FileSource) Describe(context.Context) (Version, error) {
	content, err := path.read()
	if err != nil {
		return Version{}, err
	}
	return Version{Current: contentID(content)}, nil
}

// Fetch returns the content of the file if it still is that version.
func (path FileSource) Fetch(_ context.Context, versionID string, _ Label) (Secret, error) {
	content, err := path.read()
	if err != nil {
		return nil, err
	}
	if contentID(content) != versionID {
		return nil, &SourceError{Kind: LabelMoved, Err: fmt.Errorf("read %s: changed meanwhile", string(path))}
	}
	return NewSecret(content), nil
}

// read returns at most maxSecretBytes. A file caught half-written gives a version of its own: it is refused or not
// like any other, and the next poll finds the whole one.
func (path FileSource) read() ([]byte, error) {
	// Opening a FIFO would wait for a writer, hence O_NONBLOCK.
	f, err := os.OpenFile(string(path), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return nil, &SourceError{Kind: Persistent, Err: err}
		}
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil {
		return nil, err
	} else if !fi.Mode().IsRegular() {
		return nil, &SourceError{Kind: Persistent, Err: fmt.Errorf("read %s: not a regular file", string(path))}
	}
	content, err := io.ReadAll(io.LimitReader(f, maxSecretBytes+1))
	if err != nil {
		return nil, err
	}
	if len(content) > maxSecretBytes {
		return nil, &SourceError{Kind: Persistent, Err: fmt.Errorf("read %s: larger than %d bytes", string(path), maxSecretBytes)}
	}
	return content, nil
}

func contentID(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

package config

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Names in a configuration directory.
const (
	baseFile = "config.yaml"
	overlay  = "conf.d"
)

// maxFile bounds a configuration, policy or roots file, in bytes.
const maxFile = 1 << 20

// listFiles returns the files of a configuration in the order in which they are read, where a later one overrides the
// keys that it sets: the file at path itself, or config.yaml and conf.d/*.yaml of a directory, both of which may be
// absent.
func listFiles(path string) (files []string, err error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() {
		return []string{path}, nil
	}
	base := filepath.Join(path, baseFile)
	if _, err := os.Lstat(base); err == nil {
		files = append(files, base)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Join(path, overlay)) // in the order of the names
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		// Names with a dot in front are an editor's, or a file that is being written.
		if name := e.Name(); strings.HasSuffix(name, ".yaml") && name[0] != '.' {
			files = append(files, filepath.Join(path, overlay, name))
		}
	}
	return files, nil
}

// readFile returns the content of a file, or its first maxFile+1 bytes.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile+1))
}

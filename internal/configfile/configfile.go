// Package configfile says of which files the agent's configuration consists. What is in them is package config's; a
// program that wants to know no more than where the agent listens has it from here, and starts the faster for it.
package configfile

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Names in a configuration directory.
const (
	Base    = "config.yaml"
	overlay = "conf.d"
)

// Max bounds a configuration, policy or roots file, in bytes.
const Max = 1 << 20

// List returns the files of a configuration in the order in which they are read, a later one overriding the keys that
// it sets: the file at path itself, or config.yaml and conf.d/*.yaml of a directory, both of which may be absent.
func List(path string) (files []string, err error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() {
		return []string{path}, nil
	}
	base := filepath.Join(path, Base)
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

// Read returns the content of a file, of one that is too large Max+1 bytes.
func Read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, Max+1))
}

// Socket returns listen.socket of the configuration at path, empty where nothing sets it. Whether the rest of the
// configuration is right does not matter: a running agent can be asked beside a file that has become wrong.
func Socket(path string) string {
	files, err := List(path)
	if err != nil {
		return ""
	}
	var c struct {
		Listen struct {
			Socket string `yaml:"socket"`
		} `yaml:"listen"`
	}
	for _, file := range files {
		if data, err := Read(file); err == nil && len(data) <= Max {
			_ = yaml.Unmarshal(data, &c) // what it could not read, it has left as it was
		}
	}
	return c.Listen.Socket
}

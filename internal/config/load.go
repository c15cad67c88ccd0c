package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Load reads a file, or a directory with config.yaml and conf.d/*.yaml, both of which may be absent. The error names
// every mistake in every file.
func Load(path string) (Config, error) {
	files, err := configFiles(path)
	if err != nil {
		return Config{}, fmt.Errorf("read the configuration: %w", err)
	}
	return load(files, nil)
}

// Check reports what Load would say of the directory dir if its file name had the given content. The directory need
// not exist.
func Check(dir, name string, content []byte) error {
	files, err := configFiles(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the configuration: %w", err)
	}
	file, base := filepath.Join(dir, name), filepath.Join(dir, baseName)
	if !slices.Contains(files, file) {
		files = append(files, file)
		slices.SortFunc(files, func(a, b string) int {
			switch base {
			case a:
				return -1
			case b:
				return 1
			}
			return strings.Compare(a, b)
		})
	}
	_, err = load(files, map[string][]byte{file: content})
	return err
}

// Names in a configuration directory.
const (
	baseName    = "config.yaml"
	overlayName = "conf.d"
)

// configFiles returns the files of a configuration in the order in which they are read.
func configFiles(path string) (files []string, err error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() {
		return []string{path}, nil
	}
	base := filepath.Join(path, baseName)
	if _, err := os.Lstat(base); err == nil {
		files = append(files, base)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Join(path, overlayName)) // in the order of the names
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		// Names with a dot in front are an editor's, or a file that is being written.
		if name := e.Name(); strings.HasSuffix(name, ".yaml") && name[0] != '.' {
			files = append(files, filepath.Join(path, overlayName, name))
		}
	}
	return files, nil
}

// load decodes the files over the defaults and validates the result. instead holds content to take in place of a
// file's.
func load(files []string, instead map[string][]byte) (Config, error) {
	cfg := Default()
	d := newDecoder()
	var errs []error
	for _, file := range files {
		data, ok := instead[file]
		if !ok {
			var err error
			if data, err = readFile(file); err != nil {
				errs = append(errs, fmt.Errorf("read the configuration: %w", err))
				continue
			}
		}
		d.read(file, data, &cfg)
	}
	cfg.validate(&d.mistakes)
	if err := errors.Join(append(errs, d.errors()...)...); err != nil {
		return Config{}, err
	}
	return cfg, nil
}

// readFile reads at most maxFile bytes and one more, by which its caller sees that there are too many.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile+1))
}

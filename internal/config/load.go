package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Load reads a file, or a directory with config.yaml and conf.d/*.yaml, both of which may be absent.
func Load(path string) (Config, error) {
	files, err := configFiles(path)
	if err != nil {
		return Config{}, err
	}
	return load(files, nil)
}

// Check reports what Load would say of the directory dir if its file name had the given content.
func Check(dir, name string, content []byte) error {
	files, err := configFiles(dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return err
	}
	file := filepath.Join(dir, name)
	if !slices.Contains(files, file) {
		// config.yaml stays first; the others are in the order of their names.
		files = append(files, file)
		slices.SortFunc(files, func(a, b string) int {
			if base := filepath.Join(dir, "config.yaml"); a == base || b == base {
				return map[bool]int{true: -1, false: 1}[a == base]
			}
			return compareNames(a, b)
		})
	}
	_, err = load(files, map[string][]byte{file: content})
	return err
}

func compareNames(a, b string) int {
	if a < b {
		return -1
	}
	if a > b {
		return 1
	}
	return 0
}

func configFiles(path string) ([]string, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	if !fi.IsDir() {
		return []string{path}, nil
	}
	var files []string
	base := filepath.Join(path, "config.yaml")
	if _, err := os.Stat(base); err == nil {
		files = append(files, base)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	more, err := filepath.Glob(filepath.Join(path, "conf.d", "*.yaml")) // in the order of the names
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	return append(files, more...), nil
}

// load decodes the files over the defaults and validates the result. instead holds content to take in place of a
// file's.
func load(files []string, instead map[string][]byte) (Config, error) {
	cfg := Default()
	places := make(map[string]place)
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
		d := decoder{file: file, places: places}
		d.read(data, &cfg)
		errs = append(errs, d.errs...)
	}
	if err := errors.Join(append(errs, cfg.validate(places)...)...); err != nil {
		return Config{}, err
	}
	return cfg, nil
}

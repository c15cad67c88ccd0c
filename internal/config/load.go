package config

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
)

// Load reads a file, or a directory with config.yaml and conf.d/*.yaml, both of which may be absent. The error names
// every mistake in every file.
func Load(path string) (Config, error) {
	files, err := listFiles(path)
	if err != nil {
		return Config{}, fmt.Errorf("read the configuration: %w", err)
	}
	return load(files, nil)
}

// Check returns what Load would of the directory dir if its file name had the given content. The directory need not
// exist.
func Check(dir, name string, content []byte) (Config, error) {
	files, err := listFiles(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Config{}, fmt.Errorf("read the configuration: %w", err)
	}
	file, base := filepath.Join(dir, name), filepath.Join(dir, baseFile)
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
	return load(files, map[string][]byte{file: content})
}

// Socket returns listen.socket of the configuration at path as far as it can be read. Mistakes elsewhere do not matter:
// a running agent can be asked although a file has become wrong since.
func Socket(path string) string {
	files, err := listFiles(path)
	if err != nil {
		return Default().Listen.Socket
	}
	cfg, _ := decode(files, nil)
	return cfg.Listen.Socket
}

func load(files []string, instead map[string][]byte) (Config, error) {
	cfg, err := decode(files, instead)
	if err != nil {
		return Config{}, err
	}
	return cfg, nil
}

// decode reads the files over the defaults and validates the result, which has all that could be read. instead holds
// content to take in place of a file's.
func decode(files []string, instead map[string][]byte) (Config, error) {
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
	return cfg, errors.Join(append(errs, d.errors()...)...)
}

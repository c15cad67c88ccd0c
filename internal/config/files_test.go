package config

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tree writes files, by name, and returns the directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		write(t, dir, name, content)
	}
	return dir
}

func TestListFiles(t *testing.T) {
	dir := tree(t, map[string]string{"conf.d/50-bootstrap.yaml": "", "conf.d/10-site.yaml": "",
		"config.yaml": "", "conf.d/.50-bootstrap.yaml.tmp-1.yaml": "", "conf.d/README": "", "other.yaml": ""})
	files, err := listFiles(dir)
	want := []string{filepath.Join(dir, "config.yaml"), filepath.Join(dir, "conf.d/10-site.yaml"),
		filepath.Join(dir, "conf.d/50-bootstrap.yaml")}
	if err != nil || !slices.Equal(files, want) {
		t.Errorf("%q, %v; want %q", files, err, want)
	}
	file := filepath.Join(dir, "other.yaml")
	if files, err := listFiles(file); err != nil || !slices.Equal(files, []string{file}) {
		t.Errorf("a file: %q, %v", files, err)
	}
	if files, err := listFiles(t.TempDir()); err != nil || len(files) != 0 {
		t.Errorf("an empty directory: %q, %v", files, err)
	}
	if _, err := listFiles(filepath.Join(dir, "absent")); err == nil {
		t.Error("no error of an absent path")
	}
}

func TestSocket(t *testing.T) {
	const here, there = "listen: {socket: /run/here}\n", "listen:\n  socket: /run/there # moved\n"
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"nothing": {map[string]string{}, "/run/sevagent/sevagent.sock"},
		"set":     {map[string]string{"config.yaml": here}, "/run/here"},
		"set again": {map[string]string{"config.yaml": here, "conf.d/50-bootstrap.yaml": there},
			"/run/there"},
		"another key": {map[string]string{"config.yaml": here,
			"conf.d/50-bootstrap.yaml": "listen: {tcp: \"\"}\n"}, "/run/here"},
		"a wrong value elsewhere": {map[string]string{"config.yaml": "mtls: {poll_interval: [5]}\n" + here},
			"/run/here"},
		"a later file is broken": {map[string]string{"config.yaml": here,
			"conf.d/50-bootstrap.yaml": "listen: {socket: [\n"}, "/run/here"},
		"not a text": {map[string]string{"config.yaml": here,
			"conf.d/50-bootstrap.yaml": "listen: {socket: [a]}\n"}, "/run/here"},
		"too large": {map[string]string{"config.yaml": there + strings.Repeat("#", maxFile)},
			"/run/sevagent/sevagent.sock"},
	} {
		if got := Socket(tree(t, c.files)); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if got := Socket("/nowhere/at/all"); got != "/run/sevagent/sevagent.sock" {
		t.Errorf("an absent path: %q", got)
	}
}

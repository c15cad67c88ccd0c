package bootstrap

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/coreos/go-systemd/v22/unit"

	"sevagent/internal/config"
)

// unitDir is where an administrator's units are. They come before those of packages.
const unitDir = "/etc/systemd/system"

// testOnlyUnitDir takes its place.
var testOnlyUnitDir string

// mtlsDropIn is the drop-in that gives sevagent.service another published directory, below unitDir.
const mtlsDropIn = agentUnit + ".d/50-mtls-path.conf"

// ourUnit is the first line of what is written there. By it, what an earlier run has left is found.
const ourUnit = "# Written by sevagent's bootstrap for mtls.path; removed when that is the package's again.\n"

// mountUnit is etc-ecs-mtls.mount of the package, less its comments; a test compares the two.
const mountUnit = `[Unit]
Description=Published certificates of the ECS node (memory)
Documentation=man:sevagent(1)
ConditionDirectoryNotEmpty=!PATH

[Mount]
What=tmpfs
Where=PATH
Type=tmpfs
Options=mode=0755,size=16M,nr_inodes=16k,nosuid,nodev,noexec
DirectoryMode=0755
`

// published is what systemd has to know of a published directory that is not the package's: the zero value, of the
// package's own, is nothing.
type published struct {
	files map[string][]byte // by path below unitDir
	disk  string            // a directory that no mount unit makes
}

// publishedAt is for mtls.path and mtls.allow_disk of the agent's configuration.
func publishedAt(path string, allowDisk bool) (p published, err error) {
	if path == config.Default().MTLS.Path {
		return p, nil
	}
	text, err := unitPath(path)
	if err != nil {
		return p, err
	}
	p.files = map[string][]byte{mtlsDropIn: fmt.Appendf(nil, "%s\n[Unit]\nRequiresMountsFor=%s\n\n[Service]\nReadWritePaths=%[2]s\n", ourUnit, quoted(text))}
	if allowDisk {
		p.disk = path
		return p, nil
	}
	p.files[unit.UnitNamePathEscape(path)+".mount"] = []byte(ourUnit + "\n" + strings.ReplaceAll(mountUnit, "PATH", text))
	return p, nil
}

// unitPath is a path as unit files have it, but for quotes. What systemd would read differently in one of the places where
// it stands, or not at all, is refused: Where= takes a line as it is, ReadWritePaths= is a list of words in which a
// backslash escapes nothing (systemd: src/core/load-fragment.c).
func unitPath(path string) (string, error) {
	switch {
	case !utf8.ValidString(path) || strings.ContainsFunc(path, unicode.IsControl):
		return "", errors.New("a unit file cannot have it: control characters, or not UTF-8")
	case strings.ContainsAny(path, `"'\`):
		return "", errors.New("a unit file cannot have it: quotes or a backslash")
	case strings.HasSuffix(path, " "):
		return "", errors.New("a unit file cannot have it: a blank at its end")
	case filepath.Clean(path) == "/":
		return "", errors.New("nothing can be mounted there")
	case len(unit.UnitNamePathEscape(path)+".mount") > 255: // systemd: src/basic/unit-name.h, UNIT_NAME_MAX
		return "", errors.New("too long for the name of a mount unit")
	}
	return strings.ReplaceAll(path, "%", "%%"), nil
}

// quoted is for lists of words.
func quoted(text string) string {
	if strings.Contains(text, " ") {
		return `"` + text + `"`
	}
	return text
}

// place writes the files, removes what an earlier run has left, and reports whether anything has changed. What is mounted
// stays so.
func (p published) place(say func(step, format string, args ...any)) (changed bool, err error) {
	dir := unitDir
	if testOnlyUnitDir != "" {
		dir = testOnlyUnitDir
	}
	if p.disk != "" {
		if err := os.MkdirAll(p.disk, 0o755); err != nil {
			return false, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.files)) {
		file := filepath.Join(dir, name)
		written, err := writeIfChanged(file, p.files[name], 0o644)
		if err != nil {
			return changed, err
		}
		changed = changed || written
		say("mtls.path", "%s %s", file, wording(written))
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return changed, nil
	}
	if err != nil {
		return changed, err
	}
	stale := []string{mtlsDropIn}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".mount") && e.Type().IsRegular() {
			stale = append(stale, e.Name())
		}
	}
	for _, name := range stale {
		if _, keep := p.files[name]; keep {
			continue
		}
		file := filepath.Join(dir, name)
		content, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !bytes.HasPrefix(content, []byte(ourUnit)) {
			continue // not ours
		}
		if err == nil {
			err = os.Remove(file)
		}
		if err != nil {
			return changed, err
		}
		changed = true
		say("mtls.path", "%s removed", file)
	}
	return changed, nil
}

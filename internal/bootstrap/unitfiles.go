package bootstrap

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/coreos/go-systemd/v22/unit"

	"sevagent/internal/config"
)

const runDir = "/run/"

// dropIn is the file, below the unit directory, with what sevagent.service is granted beyond the package's unit.
const dropIn = agentUnit + ".d/50-bootstrap.conf"

// signalDropIn is the same for sevagent-signal.service.
const signalDropIn = signalUnit + ".d/50-bootstrap.conf"

// passedOn are the variables of bootstrap's environment that units get, too: they describe the network that all of the
// node's programs are in. What may be secret is not among them; a proxy's URL may have a password.
var passedOn = []string{"AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", dualStack, "AWS_USE_FIPS_ENDPOINT"}

const dualStack = "AWS_USE_DUALSTACK_ENDPOINT"

// environment returns a line Environment= for each variable that is passed on. Their values need no quotes: the SDK,
// which has read them by now, refuses all but a few words.
func environment(lookup func(string) string) (lines []string) {
	for _, name := range passedOn {
		if value := lookup(name); value != "" {
			lines = append(lines, "Environment="+name+"="+value)
		}
	}
	return lines
}

// ourUnit is the first line of each file that bootstrap writes there, and marks what an earlier run has left.
const ourUnit = "# Written by sevagent's bootstrap, for what the configuration asks; removed when it no longer does.\n"

// mountUnit is etc-ecs-mtls.mount of the package without its comments; TestUnitFiles compares the two.
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

// unitFiles are what systemd needs for the agent's configuration: nothing, the zero value, for what the package's units
// provide.
type unitFiles struct {
	files map[string][]byte // by path below the unit directory
	disk  string            // a directory that no mount unit makes
}

// unitFilesFor returns the files for another published directory, for files that are not root's, and for the network.
func unitFilesFor(mtls config.MTLS, lookup func(string) string) (u unitFiles, err error) {
	if under, ok := strings.CutPrefix(mtls.Path, "/var"+runDir); ok {
		return u, fmt.Errorf("mtls.path is %q: /var/run is a link, through which systemd mounts nothing; use %s",
			mtls.Path, runDir+under)
	}
	text, err := unitPath(mtls.Path)
	if err != nil {
		return u, fmt.Errorf("mtls.path is %q: %w", mtls.Path, err)
	}
	u.files = make(map[string][]byte)
	var order, grants []string
	if mtls.Path != config.Default().MTLS.Path {
		order = append(order, "RequiresMountsFor="+quoted(text))
		if strings.HasPrefix(text, runDir) { // the agent has one of its own
			if text, err = bindPath(mtls.Path); err != nil {
				return u, fmt.Errorf("mtls.path is %q: %w", mtls.Path, err)
			}
			grants = append(grants, "BindPaths="+quoted(text))
		} else {
			grants = append(grants, "ReadWritePaths="+quoted(text))
		}
		if mtls.AllowDisk {
			u.disk = mtls.Path
		} else {
			mount := ourUnit + "\n" + strings.ReplaceAll(mountUnit, "PATH", text)
			u.files[unit.UnitNamePathEscape(mtls.Path)+".mount"] = []byte(mount)
		}
	}
	owned := func(c config.Consumer) bool { return c.Owner != config.Owner{} }
	if mtls.Owner != (config.Owner{}) || slices.ContainsFunc(mtls.Consumers, owned) {
		grants = append(grants,
			"# mtls.owner: to give files away, and to check and renew them afterwards.",
			"CapabilityBoundingSet=CAP_CHOWN CAP_FOWNER CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH",
			"SystemCallFilter=@chown")
	}
	issue, err := grantsOf(mtls.Issue)
	if err != nil {
		return u, err
	}
	grants = append(grants, issue...)
	if network := environment(lookup); network != nil {
		grants = append(grants, network...)
		u.files[signalDropIn] = []byte(ourUnit + "\n[Service]\n" + strings.Join(network, "\n") + "\n")
	}
	if grants == nil {
		return u, nil
	}
	var b strings.Builder
	b.WriteString(ourUnit)
	if order != nil {
		fmt.Fprintf(&b, "\n[Unit]\n%s\n", strings.Join(order, "\n"))
	}
	fmt.Fprintf(&b, "\n[Service]\n%s\n", strings.Join(grants, "\n"))
	u.files[dropIn] = []byte(b.String())
	return u, nil
}

// grantsOf returns what sources of certificates need beyond the package's unit.
func grantsOf(list []config.Issue) (grants []string, err error) {
	for _, s := range list {
		switch {
		case s.From == config.FromSPIFFE:
			dir := filepath.Dir(cmp.Or(s.Socket, config.SPIFFESocket))
			text, err := bindPath(dir)
			if text+"/" == runDir || dir+"/" == "/var"+runDir {
				err = errors.New("has the sockets of others, too, such as Docker's; give the socket a directory of its own")
			}
			if err != nil {
				return nil, fmt.Errorf("the directory of mtls.issue's socket is %q: %w", dir, err)
			}
			grants = append(grants,
				"# mtls.issue from spiffe. The directory has to be there first, and to stay when the SPIRE agent restarts.",
				"BindReadOnlyPaths="+quoted("-"+text))
		case s.Challenge == "http-01":
			_, port, _ := strings.Cut(s.ChallengeListen[strings.LastIndexByte(s.ChallengeListen, ']')+1:], ":")
			if n, err := strconv.Atoi(port); err == nil && n < 1024 {
				grants = append(grants, "# mtls.issue, challenge_listen.", "CapabilityBoundingSet=CAP_NET_BIND_SERVICE")
			}
		}
	}
	return grants, nil
}

// bindPath returns a path for BindPaths=, in the agent's own /run.
func bindPath(path string) (string, error) {
	if strings.Contains(path, ":") {
		return "", errors.New("must not contain a colon: unit files cannot express it")
	}
	if under, ok := strings.CutPrefix(path, "/var"+runDir); ok { // a link to the same
		path = runDir + under
	}
	return unitPath(path)
}

// unitPath returns a path as unit files have it, but for quotes. It refuses what systemd would read differently, or not
// at all, in one of the places where the path stands: Where= takes a line as it is, ReadWritePaths= is a list of words
// in which a backslash escapes nothing (systemd: src/core/load-fragment.c).
func unitPath(path string) (string, error) {
	switch {
	case !utf8.ValidString(path) || strings.ContainsFunc(path, unicode.IsControl):
		return "", errors.New("must be UTF-8 without control characters: unit files cannot express them")
	case strings.ContainsAny(path, `"'\`):
		return "", errors.New("must not contain quotes or a backslash: unit files cannot express them")
	case strings.HasSuffix(path, " "):
		return "", errors.New("must not end in a blank: unit files cannot express it")
	case filepath.Clean(path) == "/":
		return "", errors.New("nothing can be mounted there")
	case len(unit.UnitNamePathEscape(path)+".mount") > 255: // systemd: src/basic/unit-name.h, UNIT_NAME_MAX
		return "", errors.New("too long for the name of a mount unit")
	}
	return strings.ReplaceAll(path, "%", "%%"), nil
}

// quoted returns a path for a list of words.
func quoted(text string) string {
	if strings.Contains(text, " ") {
		return `"` + text + `"`
	}
	return text
}

// place writes the files to dir, removes what an earlier run has left, and reports whether anything has changed. It
// unmounts nothing.
func (u unitFiles) place(dir string, report report) (changed bool, err error) {
	if u.disk != "" {
		if err := os.MkdirAll(u.disk, 0o755); err != nil {
			return false, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(u.files)) {
		file := filepath.Join(dir, name)
		written, err := writeIfChanged(file, u.files[name], 0o644)
		if err != nil {
			return changed, err
		}
		changed = changed || written
		report("units", "%s %s", file, wording(written))
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return changed, nil
	}
	if err != nil {
		return changed, err
	}
	stale := []string{dropIn, signalDropIn}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".mount") && e.Type().IsRegular() {
			stale = append(stale, e.Name())
		}
	}
	for _, name := range stale {
		if _, keep := u.files[name]; keep {
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
		report("units", "%s removed", file)
	}
	return changed, nil
}

package main

import (
	"cmp"
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

var licenceFile = regexp.MustCompile(`(?i)^(LICEN[CS]E|COPYING|NOTICE|PATENTS)([._-].*)?$`)

// notices returns the licences and notices of every module that is linked into the programs, and of Go's standard
// library. A text that several modules share is there once.
func notices(binaries []string) (string, error) {
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("go env: %w", err)
	}
	linked := make(map[string]string) // module → directory of its source
	for _, name := range binaries {
		info, err := buildinfo.ReadFile(name)
		if err != nil {
			return "", err
		}
		linked["Go standard library "+info.GoVersion] = strings.TrimSpace(string(goroot))
		for _, dep := range info.Deps {
			linked[dep.Path+" "+dep.Version] = ""
		}
	}
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Path}} {{.Version}}\t{{.Dir}}", "all").Output()
	if err != nil {
		return "", fmt.Errorf("go list -m: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		module, dir, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if _, ok := linked[module]; ok {
			linked[module] = dir
		}
	}

	users := make(map[string][]string) // text → modules
	for module, dir := range linked {
		entries, err := os.ReadDir(cmp.Or(dir, "."+module)) // the latter is not there, and the error says so
		if err != nil {
			return "", fmt.Errorf("licence of %s: %w", module, err)
		}
		found := false
		for _, e := range entries {
			if e.IsDir() || !licenceFile.MatchString(e.Name()) {
				continue
			}
			text, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				return "", err
			}
			key := strings.TrimSpace(strings.ReplaceAll(string(text), "\r\n", "\n"))
			users[key] = append(users[key], module)
			found = true
		}
		if !found {
			return "", fmt.Errorf("licence of %s: there is none in %s", module, dir)
		}
	}
	type notice struct{ modules, text string }
	var all []notice
	for text, modules := range users {
		slices.Sort(modules)
		all = append(all, notice{strings.Join(modules, "\n"), text})
	}
	slices.SortFunc(all, func(a, b notice) int {
		return cmp.Or(cmp.Compare(a.modules, b.modules), cmp.Compare(a.text, b.text))
	})

	var b strings.Builder
	b.WriteString("Licences and notices of what is linked into the programs\n")
	for _, n := range all {
		fmt.Fprintf(&b, "\n%s\n\n%s\n\n%s\n", strings.Repeat("=", 78), n.modules, n.text)
	}
	return b.String(), nil
}

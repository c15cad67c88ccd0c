package bootstrap

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sevagent/internal/config"
)

// TestMountUnit holds the unit to the package's, of which it is a copy for another path.
func TestMountUnit(t *testing.T) {
	packaged, err := os.ReadFile("../../systemd/etc-ecs-mtls.mount")
	if err != nil {
		t.Fatal(err)
	}
	var lines strings.Builder
	for line := range strings.Lines(string(packaged)) {
		if !strings.HasPrefix(line, "#") {
			lines.WriteString(line)
		}
	}
	if got, want := strings.ReplaceAll(mountUnit, "PATH", "/etc/ecs/mtls"), strings.TrimSpace(lines.String())+"\n"; got != want {
		t.Errorf("mountUnit is\n%s\nand the package's\n%s", got, want)
	}
}

func TestUnitPath(t *testing.T) {
	for path, want := range map[string]string{
		"/srv/mtls": "/srv/mtls", "/srv/50%": "/srv/50%%", "/a b": "/a b", "/ü": "/ü", "/srv/$HOME;#x": "/srv/$HOME;#x",
		"/": "", "/a\nb": "", "/a\tb": "", "/a\\b": "", `/a"b`: "", "/a'b": "", "/a ": "", "/\xff": "", "/" + strings.Repeat("é", 40): "",
	} {
		got, err := unitPath(path)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("unitPath(%q) = %q, %v; want %q", path, got, err, want)
		}
	}
}

// TestUnitNames compares with systemd's own tool what it would name the units.
func TestUnitNames(t *testing.T) {
	if _, err := exec.LookPath("systemd-escape"); err != nil {
		t.Skip("needs systemd-escape; the names are tested in testdata, too")
	}
	for _, path := range []string{"/srv/mtls", "/srv/with-dash", "/srv/50%", "/a b", "/.hidden/.x", "/ü/é", "/srv/a:b_c.d@e,f"} {
		p, err := unitFilesFor(config.MTLS{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("systemd-escape", "--path", "--suffix=mount", path).Output()
		if err != nil {
			t.Fatal(err)
		}
		if name := strings.TrimSpace(string(out)); p.files[name] == nil {
			t.Errorf("%s: there is no %s", path, name)
		}
	}
}

// TestPlaceFails leaves the error to see.
func TestPlaceFails(t *testing.T) {
	testOnlyUnitDir = filepath.Join(t.TempDir(), "units")
	defer func() { testOnlyUnitDir = "" }()
	say := func(string, string, ...any) {}
	if changed, err := (unitFiles{}).place(say); changed || err != nil {
		t.Errorf("without a directory: %v, %v", changed, err)
	}
	if err := os.WriteFile(testOnlyUnitDir, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := unitFilesFor(config.MTLS{Path: "/srv/mtls"})
	if err != nil {
		t.Fatal(err)
	}
	if changed, err := p.place(say); changed || err == nil {
		t.Errorf("a file in the directory's place: %v, %v", changed, err)
	}
}

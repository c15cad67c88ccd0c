package bootstrap

import (
	"errors"
	"os"
	"strings"
	"testing"

	"sevagent/internal/config"
	"sevagent/internal/must"
)

const marker = "# Written by sevagent's bootstrap, for what the configuration asks; removed when it no longer does.\n\n"

// TestUnitFiles takes a node through several published directories: systemd has to know each before the agent starts.
func TestUnitFiles(t *testing.T) {
	const dropIn, others = "units/sevagent.service.d/50-bootstrap.conf", "[Mount]\nWhat=/dev/nvme1n1\nWhere=/data\n"
	l := newLab(t)
	is := func(name, want string) {
		t.Helper()
		if got := l.read(name); got != want {
			t.Errorf("%s is\n%s\nwant\n%s", name, got, want)
		}
	}
	config := func(yaml string) { l.write("etc/sevagent/config.yaml", yaml) }

	l.options.MTLSPath = "/srv/tls-100%/of mine"
	l.succeeds()
	is(`units/srv-tls\x2d100\x25-of\x20mine.mount`, marker+`[Unit]
Description=Published certificates of the ECS node (memory)
Documentation=man:sevagent(1)
ConditionDirectoryNotEmpty=!/srv/tls-100%%/of mine

[Mount]
What=tmpfs
Where=/srv/tls-100%%/of mine
Type=tmpfs
Options=mode=0755,size=16M,nr_inodes=16k,nosuid,nodev,noexec
DirectoryMode=0755
`)
	is(dropIn, marker+`[Unit]
RequiresMountsFor="/srv/tls-100%%/of mine"

[Service]
ReadWritePaths="/srv/tls-100%%/of mine"
`)
	l.asked("unmask ecs.service", "reload", "reload", "enable sevagent.service", "wait restart sevagent.service",
		"enable ecs.service", "queue restart ecs.service")

	// Run again, nothing is written.
	l.succeeds()
	if out := l.out.String(); strings.Contains(out, "written") {
		t.Errorf("the second run changed something:\n%s", out)
	}

	// Another directory: the former one's unit goes, and those of others stay.
	l.write("units/data.mount", others)
	l.options.MTLSPath = "/srv/new"
	l.succeeds()
	is(`units/srv-tls\x2d100\x25-of\x20mine.mount`, "")
	is("units/data.mount", others)
	l.holds("units/srv-new.mount", "Where=/srv/new\n")
	l.holds(dropIn, "RequiresMountsFor=/srv/new\n")
	if !strings.Contains(strings.Join(l.systemd.calls, "\n"), "wait restart sevagent.service") {
		t.Errorf("the agent was not restarted for another directory: systemd was asked for %q", l.systemd.calls)
	}

	// On a disk there is nothing to mount, and the directory is made.
	config("mtls: {allow_disk: true}")
	l.options.MTLSPath = l.path("disk/mtls")
	l.succeeds()
	is("units/srv-new.mount", "")
	l.holds(dropIn, "ReadWritePaths="+l.path("disk/mtls")+"\n")
	if _, err := os.Stat(l.path("disk/mtls")); err != nil {
		t.Errorf("the directory on disk was not made: %v", err)
	}

	// The operator's own file is as good as the flag.
	config("mtls: {path: /srv/own}")
	l.options.MTLSPath = ""
	l.succeeds()
	l.holds("units/srv-own.mount", "Where=/srv/own\n")
	l.holds(dropIn, "ReadWritePaths=/srv/own\n")

	// Files of others, and Docker's API, take what the package's unit does not grant.
	config(`mtls: {reload: true, consumers: [{name: web, owner: "101:101", files: [server.pem]}]}`)
	l.options.MTLSPath = "/run/tls"
	l.succeeds()
	l.holds("units/run-tls.mount", "Where=/run/tls\n")
	is(dropIn, marker+`[Unit]
RequiresMountsFor=/run/tls
After=docker.socket docker.service

[Service]
BindPaths=/run/tls
# mtls.owner: to give files away, and to check and renew them afterwards.
CapabilityBoundingSet=CAP_CHOWN CAP_FOWNER CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH
SystemCallFilter=@chown
# mtls.reload: Docker's API, and with it all that root can do.
BindPaths=-/run/docker.sock
`)

	// The package's directory again: all of it goes.
	config("{}")
	l.options.MTLSPath = "/etc/ecs/mtls"
	l.succeeds()
	is("units/srv-own.mount", "")
	is("units/run-tls.mount", "")
	is(dropIn, "")

	// A file that an operator has put there is not touched.
	l.write(dropIn, others)
	l.options.MTLSPath = ""
	l.succeeds()
	is(dropIn, others)
	is("units/data.mount", others)

	// A path that unit files cannot express is refused before anything is written.
	before := l.read("etc/sevagent/conf.d/50-bootstrap.yaml")
	l.options.MTLSPath = `/srv/"quoted"`
	l.fails(`options: --mtls-path is "/srv/\"quoted\"": must not contain quotes or a backslash: unit files cannot`)
	l.options.MTLSPath = "/var/run/tls"
	l.fails("through which systemd mounts nothing; use /run/tls")
	l.options.MTLSPath = ""
	config(`mtls: {path: "/srv/it's"}`)
	l.fails("agent configuration: mtls.path is ")
	is("etc/sevagent/conf.d/50-bootstrap.yaml", before)
	is("units/data.mount", others)

	// Where systemd is not used, no units are written.
	config("{}")
	l.options.MTLSPath, l.options.Services = "/srv/none", ServicesNone
	l.succeeds()
	is("units/srv-none.mount", "")
}

// TestMountUnit holds the unit to the package's, of which it is a copy for another path.
func TestMountUnit(t *testing.T) {
	packaged := must.Get(os.ReadFile("../../systemd/etc-ecs-mtls.mount"))(t, "read the package's unit")
	var lines strings.Builder
	for line := range strings.Lines(string(packaged)) {
		if !strings.HasPrefix(line, "#") {
			lines.WriteString(line)
		}
	}
	want := strings.TrimSpace(lines.String()) + "\n"
	if got := strings.ReplaceAll(mountUnit, "PATH", "/etc/ecs/mtls"); got != want {
		t.Errorf("mountUnit is\n%s\nand the package's\n%s", got, want)
	}
}

func TestUnitPath(t *testing.T) {
	for path, want := range map[string]string{
		"/srv/mtls": "/srv/mtls", "/srv/50%": "/srv/50%%", "/a b": "/a b", "/ü": "/ü", "/srv/$HOME;#x": "/srv/$HOME;#x",
		"/": "", "/a\nb": "", "/a\tb": "", "/a\\b": "", `/a"b`: "", "/a'b": "", "/a ": "", "/\xff": "",
		"/" + strings.Repeat("é", 40): "",
	} {
		got, err := unitPath(path)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("unitPath(%q) = %q, %v; want %q", path, got, err, want)
		}
	}
}

// TestPlaceFails: a unit directory need not exist, but an error in it is returned.
func TestPlaceFails(t *testing.T) {
	l := newLab(t)
	place := func(u unitFiles) (bool, error) { return u.place(l.machine.unitDir, reportTo(&l.out)) }
	if changed, err := place(unitFiles{}); changed || err != nil {
		t.Errorf("without a directory: %v, %v", changed, err)
	}
	l.write("units", "")
	p := must.Get(unitFilesFor(config.MTLS{Path: "/srv/mtls"}))(t, "plan the units of /srv/mtls")
	if changed, err := place(p); changed || err == nil || errors.Is(err, os.ErrNotExist) {
		t.Errorf("with a file in the directory's place: %v, %v", changed, err)
	}
}

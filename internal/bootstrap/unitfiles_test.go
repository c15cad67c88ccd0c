package bootstrap

import (
	"os"
	"regexp"
	"strings"
	"testing"

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
	is(`units/srv-tls\x2d100\x25-of\x20mine.mount`, marker+packagedMount(t, "/srv/tls-100%%/of mine"))
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

	// Files of others take what the package's unit does not grant.
	config(`mtls: {consumers: [{name: web, owner: "101:101", files: [server.pem]}]}`)
	l.options.MTLSPath = "/run/tls"
	l.succeeds()
	l.holds("units/run-tls.mount", "Where=/run/tls\n")
	is(dropIn, marker+`[Unit]
RequiresMountsFor=/run/tls

[Service]
BindPaths=/run/tls
# mtls.owner: to give files away, and to check and renew them afterwards.
CapabilityBoundingSet=CAP_CHOWN CAP_FOWNER CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH
SystemCallFilter=@chown
`)

	// So do those that options name, in the package's directory.
	const owned = marker + `[Service]
# mtls.owner: to give files away, and to check and renew them afterwards.
CapabilityBoundingSet=CAP_CHOWN CAP_FOWNER CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH
SystemCallFilter=@chown
`
	config("{}")
	l.options.MTLSPath = "/etc/ecs/mtls"
	l.options.MTLSOwner = "0:5000"
	l.succeeds()
	is(dropIn, owned)
	l.options.MTLSOwner, l.options.Consumers = "0:0", []string{"api=1000:1000=client.pem,ca.crt"}
	l.succeeds()
	is(dropIn, owned)

	// Sources of certificates need a socket in /run, or a port of root's.
	l.options.MTLSOwner, l.options.Consumers = "", nil
	l.options.Issue = []string{
		`{"name": "spire", "from": "spiffe", "gives": ["client"]}`,
		`{"name": "web", "from": "acme", "gives": ["server"], "directory": "https://ca.example.org/dir", ` +
			`"dns": ["a.example.org"], "challenge": "http-01", "challenge_listen": "[::]:80"}`,
	}
	l.succeeds()
	is(dropIn, marker+`[Service]
# mtls.issue from spiffe. The directory has to be there first, and to stay when the SPIRE agent restarts.
BindReadOnlyPaths=-/run/spire/agent/public
# mtls.issue, challenge_listen.
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
`)
	l.options.Issue[1] = strings.Replace(l.options.Issue[1], "[::]:80", ":8080", 1)
	l.succeeds()
	if text := l.read(dropIn); strings.Contains(text, "CAP_NET_BIND_SERVICE") {
		t.Errorf("a port above 1023 needs no capability:\n%s", text)
	}
	for _, dir := range []string{"/run", "/var/run"} {
		l.options.Issue = []string{`{"name": "a", "from": "spiffe", "gives": ["client"], "socket": "` + dir + `/api.sock"}`}
		l.fails(`the directory of mtls.issue's socket is "` + dir + `": has the sockets of others`)
	}
	l.options.Issue, l.options.MTLSOwner = nil, "0:0"

	// A file of the AMI that is read after bootstrap's has the last word.
	l.options.Consumers = nil
	l.write("etc/sevagent/conf.d/60-owner.yaml", `mtls: {owner: "0:5000", key_mode: "0440"}`)
	l.succeeds()
	is(dropIn, owned)

	// The package's directory and root again: all of it goes.
	l.write("etc/sevagent/conf.d/60-owner.yaml", "")
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

	// A unit that cannot be written is an error.
	l.options.Services = ServicesSystemd
	l.write("units/srv-none.mount/in-the-way", "")
	l.fails("units: write ")
}

// packagedMount is the package's mount unit, without its comments, for another path.
func packagedMount(t *testing.T, path string) string {
	packaged := must.Get(os.ReadFile("../../systemd/etc-ecs-mtls.mount"))(t, "read the package's unit")
	text := regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(string(packaged), "")
	return strings.TrimSpace(strings.ReplaceAll(text, "/etc/ecs/mtls", path)) + "\n"
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

// TestEnvironment: units get what describes the node's network, and lose it with the next run that does not have it.
func TestEnvironment(t *testing.T) {
	l := newLab(t)
	l.options.Target.Stack, l.options.Target.ReadyResource = "prod", "NodesReady"
	t.Setenv("AWS_USE_DUALSTACK_ENDPOINT", "true")
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "IPv6")
	t.Setenv("HTTPS_PROXY", "http://user:secret@192.0.2.1:3128")
	l.succeeds()
	const want = marker + `[Service]
Environment=AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE=IPv6
Environment=AWS_USE_DUALSTACK_ENDPOINT=true
`
	files := []string{"units/sevagent.service.d/50-bootstrap.conf", "units/sevagent-signal.service.d/50-bootstrap.conf"}
	for _, name := range files {
		if got := l.read(name); got != want {
			t.Errorf("%s is\n%s\nwant\n%s", name, got, want)
		}
	}
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "")
	t.Setenv("AWS_USE_DUALSTACK_ENDPOINT", "true\nExecStart=/bin/false")
	l.fails(`AWS_USE_DUALSTACK_ENDPOINT is "true\n`)
	t.Setenv("AWS_USE_DUALSTACK_ENDPOINT", "")
	l.succeeds()
	for _, name := range files {
		if got := l.read(name); got != "" {
			t.Errorf("%s is still there:\n%s", name, got)
		}
	}
}

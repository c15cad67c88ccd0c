package bootstrap

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sevagent/internal/must"
)

// TestInstall: Docker and the ECS agent are installed where they are missing, and only after the proof. apt and dpkg
// are fakes here; gpg, gpgv and the signature are not.
func TestInstall(t *testing.T) {
	if _, err := exec.LookPath("gpg"); err != nil {
		t.Skip("needs gpg")
	}
	gpgv, err := exec.LookPath("gpgv")
	if err != nil {
		t.Skip("needs gpgv")
	}
	l := newLab(t)
	l.write("bin/apt-get", "#!/bin/sh\necho \"$@\" >>"+l.path("apt.log")+"\n")
	l.write("bin/dpkg-query", "#!/bin/sh\n[ -n \"$DPKG_STATUS\" ] || exit 1\nprintf %s \"$DPKG_STATUS\"\n")
	must.Do(t, os.Symlink(gpgv, l.path("bin/gpgv")), "link gpgv")
	key, other := newKey(l), newKey(l)
	key.sign("deb")
	other.sign("foreign")
	l.machine.ecsKey = key.fingerprint
	t.Setenv("PATH", l.path("bin")) // without Docker
	l.options.Install = Install{InstallAuto, l.path("deb"), key.file}
	installs := func(want bool, why string) {
		t.Helper()
		if got := strings.Contains(l.read("apt.log"), "amazon-ecs-init.deb"); got != want {
			t.Errorf("%s: the package is installed: %v, want %v; apt-get was called with\n%s",
				why, got, want, l.read("apt.log"))
		}
		os.Remove(l.path("apt.log"))
	}

	// A failure before the proof installs nothing.
	l.systemd.units[agentUnit] = agentFailed
	l.fails("start sevagent: ")
	installs(false, "before the proof")
	l.systemd.units[agentUnit] = fakeUnit{result: "done"}

	delete(l.systemd.units, ecsUnit) // the package brings it
	l.fails("start ecs: ecs.service: no job for it")
	l.holds("apt.log", "install --yes docker.io")
	l.holds("apt.log", "install --yes --option=Dpkg::Options::=--force-confold ")
	installs(true, "the real package")
	l.systemd.units[ecsUnit] = fakeUnit{}
	l.succeeds()
	os.Remove(l.path("apt.log"))

	// A package that its signature is not for.
	l.write("tampered", "another package")
	l.write("tampered.asc", l.read("deb.asc"))
	l.options.Install.Package = l.path("tampered")
	l.fails("verify " + l.path("tampered") + ": gpgv: exit status 1: gpgv: BAD signature from")
	installs(false, "a tampered package")

	// A good signature by another key, alone in the keyring and behind the real one.
	l.options.Install.Package = l.path("foreign")
	l.write("both.gpg", l.read(filepath.Base(key.file))+l.read(filepath.Base(other.file)))
	for _, ring := range []string{other.file, l.path("both.gpg")} {
		l.options.Install.Key = ring
		l.fails("gpgv: signed by [" + other.fingerprint + "], want " + key.fingerprint)
		installs(false, "a package signed by another key, keyring "+ring)
	}

	// An armored keyring, as Amazon publishes its own.
	l.options.Install = Install{InstallAuto, l.path("deb"), key.armored}
	l.succeeds()
	installs(true, "an armored key")
	l.write("noise.asc", "no key")
	l.options.Install.Key = l.path("noise.asc")
	l.fails("gpgv: exit status 2: gpgv: Can't check signature: No public key")
	installs(false, "no key at all")
	l.options.Install.Key = key.file

	// Already there, or not wanted.
	os.Remove(l.path("apt.log"))
	t.Setenv("DPKG_STATUS", "install ok installed")
	l.write("bin/docker", "#!/bin/sh\n")
	l.succeeds()
	t.Setenv("DPKG_STATUS", "")
	l.options.Install.When = InstallNever
	l.succeeds()
	if log := l.read("apt.log"); log != "" {
		t.Errorf("apt-get was called with\n%s", log)
	}

	l.options.Install = Install{When: "sometimes", Key: "http://example.com/key"}
	l.fails(`--install-ecs is "sometimes"`)
	l.fails(`--ecs-key is "http://example.com/key", want an https:// URL`)
}

// TestAptBusy: an apt-get that fails, since another holds its lock for instance, is started again for some minutes.
func TestAptBusy(t *testing.T) {
	dir := t.TempDir()
	calls := filepath.Join(dir, "calls")
	write := func(name, text string) {
		must.Do(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755), "write %s", name)
	}
	// It fails as often as the file has lines.
	write("apt-get", "#!/bin/sh\necho \"$3\" >>"+calls+"\ncd "+dir+`
[ -s fails ] || exit 0
sed -i 1d fails
echo 'E: Could not get lock /var/lib/apt/lists/lock. It is held by process 1234 (apt-get)'
exit 100
`)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	install := []string{"install", "--yes", "docker.io"}
	for name, c := range map[string]struct {
		args  []string
		fails int
		calls string
	}{
		"update":  {[]string{"update"}, 3, "update\nupdate\nupdate\nupdate\n"},
		"install": {install, 1, "install\nupdate\ninstall\n"},
		"lists":   {install, 2, "install\nupdate\nupdate\ninstall\n"},
	} {
		write("fails", strings.Repeat("once\n", c.fails))
		write("calls", "")
		synctest.Test(t, func(t *testing.T) {
			must.Do(t, apt(t.Context(), c.args...), "%s, with a lock that is held", name)
		})
		if got := string(must.Get(os.ReadFile(calls))(t, "read the calls")); got != c.calls {
			t.Errorf("%s called apt-get for\n%s\nwant\n%s", name, got, c.calls)
		}
	}
	write("fails", strings.Repeat("always\n", 1000))
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		wantError(t, apt(t.Context(), "update"),
			"apt-get update: exit status 100: E: Could not get lock /var/lib/apt/lists/lock.")
		if d := time.Since(began); d < installRetries || d > installRetries+time.Minute {
			t.Errorf("apt-get was tried for %v, want %v", d, installRetries)
		}
	})
}

// testKey signs by a subkey, as Amazon does.
type testKey struct {
	*lab
	home, fingerprint, file, armored string
}

func newKey(l *lab) testKey {
	home := must.Get(os.MkdirTemp("", "gpg"))(l, "make a directory with a short path") // as sockets have
	k := testKey{lab: l, home: home}
	k.file, k.armored = l.path(filepath.Base(home)+".gpg"), l.path(filepath.Base(home)+".asc")
	l.Cleanup(func() {
		exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		os.RemoveAll(home)
	})
	k.gpg("--quick-generate-key", "test@example.com", "rsa2048", "sign", "never")
	_, list, _ := strings.Cut(k.gpg("--list-keys", "--with-colons"), "\nfpr:")
	k.fingerprint = strings.Trim(list[:strings.IndexByte(list, '\n')], ":")
	k.gpg("--quick-add-key", k.fingerprint, "rsa2048", "sign", "never")
	k.gpg("--output", k.file, "--export")
	k.gpg("--armor", "--output", k.armored, "--export")
	return k
}

func (k testKey) gpg(args ...string) string {
	k.Helper()
	quiet := []string{"--homedir", k.home, "--batch", "--quiet", "--yes", "--pinentry-mode=loopback", "--passphrase="}
	out, err := exec.Command("gpg", append(quiet, args...)...).CombinedOutput()
	must.Do(k, err, "gpg %v: %s", args, out)
	return string(out)
}

// sign makes a package and its signature.
func (k testKey) sign(name string) {
	k.write(name, "a package")
	k.gpg("--armor", "--output", k.path(name+".asc"), "--detach-sign", k.path(name))
}

func TestECSPackageURL(t *testing.T) {
	for region, bucket := range map[string]string{
		"us-east-2":  "https://s3.us-east-2.amazonaws.com/amazon-ecs-agent-us-east-2/",
		"cn-north-1": "https://s3.cn-north-1.amazonaws.com.cn/amazon-ecs-agent-cn-north-1/",
	} {
		want := bucket + "amazon-ecs-init-latest.amd64.deb"
		if got := ecsPackageURL(region); got != want {
			t.Errorf("the package for %s is at %s, want %s", region, got, want)
		}
	}
	t.Setenv("AWS_USE_DUALSTACK_ENDPOINT", "true")
	if got := ecsPackageURL("us-east-2"); !strings.HasPrefix(got, "https://s3.dualstack.us-east-2.amazonaws.com/") {
		t.Errorf("for IPv6 the package is at %s", got)
	}
}

// TestDownload breaks the server once, and redirects where nothing may be fetched from.
func TestDownload(t *testing.T) {
	calls, redirected := 0, 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch calls++; {
		case r.URL.Path == "/away":
			redirected++
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
		case r.URL.Path == "/gone":
			http.NotFound(w, r)
		case calls == 1:
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			fmt.Fprint(w, "content")
		}
	}))
	defer server.Close()
	to := filepath.Join(t.TempDir(), "file")
	must.Do(t, download(t.Context(), downloader(), server.URL+"/file", to, 7), "download over a server that fails once")
	if data, err := os.ReadFile(to); err != nil || string(data) != "content" {
		t.Errorf("downloaded %q, %v", data, err)
	}
	for path, want := range map[string]string{
		"/file": "more than 6 bytes", "/gone": "HTTP status 404", "/away": "refuse the redirect to http://192.0.2.1/",
	} {
		wantError(t, download(t.Context(), downloader(), server.URL+path, to, 6), want)
	}
	if redirected != 1 {
		t.Errorf("after the refused redirect, the server was asked %d times, want once", redirected)
	}
}

// TestDownloadLate: a network or a server that is not well yet is tried for some minutes.
func TestDownloadLate(t *testing.T) {
	to := filepath.Join(t.TempDir(), "file")
	for name, ill := range map[string]error{"refused": errRefused, "503": status(503), "429": status(429)} {
		synctest.Test(t, func(t *testing.T) {
			began, late := time.Now(), 2*time.Minute
			client := &http.Client{Transport: roundTrip(func(req *http.Request) (*http.Response, error) {
				rec := httptest.NewRecorder()
				code, isStatus := ill.(status)
				switch {
				case time.Since(began) >= late:
					rec.WriteString("content")
				case isStatus:
					rec.WriteHeader(int(code))
				default:
					return nil, ill
				}
				return rec.Result(), nil
			})}
			must.Do(t, download(t.Context(), client, "https://example.com/file", to, 7), "download after %s", name)
			if text := must.Get(os.ReadFile(to))(t, "read the file"); string(text) != "content" {
				t.Errorf("%s: downloaded %q", name, text)
			}
			late = time.Hour
			began = time.Now()
			err := download(t.Context(), client, "https://example.com/file", to, 7)
			if d := time.Since(began); err == nil || d < installRetries || d > installRetries+time.Minute {
				t.Errorf("%s: it was tried for %v, want %v; error %v", name, d, installRetries, err)
			}
		})
	}
}

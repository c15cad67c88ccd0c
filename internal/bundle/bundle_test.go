package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sevagent/internal/must"
	"sevagent/internal/visible/visibletest"
)

const key = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----\n"

// pack packs a node with this configuration. The agent answers each request with its path, and programs print their
// names, unless they are broken.
func pack(t *testing.T, yaml string, broken bool) (files map[string]string, missing []string) {
	t.Helper()
	dir := must.Get(os.MkdirTemp("", "b"))(t, "make a directory with a short path")
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	if !broken {
		l := must.Get(net.Listen("unix", socket))(t, "listen")
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusServiceUnavailable)
			enc := json.NewEncoder(w)
			enc.SetEscapeHTML(false)
			enc.Encode([]string{r.URL.Path, visibletest.Hostile, key})
		}))
		s.Listener = l
		s.Start()
		defer s.Close()
	}
	etc := filepath.Join(dir, "etc")
	must.Do(t, os.Mkdir(etc, 0o755), "make a directory")
	must.Do(t, os.WriteFile(filepath.Join(etc, "config.yaml"), []byte(yaml), 0o600), "write a configuration")
	c := Config{
		Socket: socket, Path: etc, Version: "sevagent v1.2.3", Name: "sevagent-node",
		Now: time.Date(2026, 12, 1, 9, 0, 0, 0, time.UTC),
		Status: func(context.Context) ([]byte, error) {
			if broken {
				return nil, errors.New("no\nagent")
			}
			return []byte("ready\n"), nil
		},
		Run: func(_ context.Context, name string, args ...string) ([]byte, error) {
			if broken {
				return []byte("some of it\n"), fmt.Errorf("%s: %w", name, os.ErrPermission)
			}
			return []byte(name + " " + strings.Join(args, " ") + "\n" + visibletest.Hostile + "\n" + key), nil
		},
	}
	var b bytes.Buffer
	missing = must.Get(Pack(t.Context(), &b, c))(t, "pack")
	files = make(map[string]string)
	archive := tar.NewReader(must.Get(gzip.NewReader(&b))(t, "decompress"))
	for {
		h, err := archive.Next()
		if err == io.EOF {
			return files, missing
		}
		must.Do(t, err, "read the archive")
		name, inside := strings.CutPrefix(h.Name, "sevagent-node/")
		if !inside || h.Mode != 0o600 || !h.ModTime.Equal(c.Now) {
			t.Errorf("%s has mode %o and time %v", h.Name, h.Mode, h.ModTime)
		}
		files[name] = string(must.Get(io.ReadAll(archive))(t, "read %s", h.Name))
	}
}

func TestPack(t *testing.T) {
	files, missing := pack(t, "# hunter2\nmtls: {secrets: [node/mtls], path: /nonexistent/mtls}\n", false)
	for name, want := range map[string]string{
		"README.txt": "journal.txt\n", "version.txt": "sevagent v1.2.3\n", "status.txt": "ready\n",
		"system.txt": "$ uptime\nuptime", "configuration.yaml": "- name: node/mtls\n",
		"configuration-files.txt": "/etc/config.yaml\"\n", "status.json": "/v1/status", "readyz.json": "/readyz",
		"healthz.json": "/healthz", "certificates.json": "/v1/certificates", "metrics.txt": "/metrics",
		"units.txt": "systemctl show", "journal.txt": "--unit=sevagent.service",
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s is %q, want %q in it", name, files[name], want)
		}
	}
	for name, text := range files {
		for _, secret := range []string{"PRIVATE KEY-", "MHcC", "hunter2"} {
			if strings.Contains(text, secret) {
				t.Errorf("%s has %s: %q", name, secret, text)
			}
		}
	}
	for _, name := range []string{"journal.txt", "units.txt", "status.json", "metrics.txt"} {
		visibletest.Check(t, strings.ReplaceAll(files[name], "\n", " "))
	}
	if len(missing) != 1 || !strings.HasPrefix(missing[0], "published.txt: ") {
		t.Errorf("missing: %q, want the published files alone", missing)
	}
	if strings.Contains(files["units.txt"], "Environment") {
		t.Errorf("units.txt has environments: %s", files["units.txt"])
	}
}

// What cannot be had is named, and does not keep the rest out; a configuration with mistakes is not repeated.
func TestPackInTrouble(t *testing.T) {
	files, missing := pack(t, "hmac_key: hunter2\n"+"mtls: {path: /nonexistent}\n", true)
	for _, name := range []string{
		"status.txt: no agent", "status.json: ask the agent for /v1/status: ", "metrics.txt: ", "configuration.yaml: ",
		"units.txt: systemctl: permission denied", "journal.txt: journalctl: permission denied", "system.txt: ",
	} {
		if !strings.Contains(files["README.txt"], "\n"+name) || !strings.Contains(strings.Join(missing, "\n"), name) {
			t.Errorf("%q is neither in README.txt nor in %q:\n%s", name, missing, files["README.txt"])
		}
	}
	if files["journal.txt"] != "some of it\n" || files["version.txt"] == "" || files["status.txt"] != "" {
		t.Errorf("the archive has %q", files)
	}
	for name, text := range files {
		if strings.Contains(text, "hunter2") {
			t.Errorf("%s repeats the configuration: %s", name, text)
		}
	}
}

// A part that is too long is cut, and a command that is interrupted packs nothing.
func TestLimits(t *testing.T) {
	long := part{"x", func(context.Context) ([]byte, error) { return append(make([]byte, partBytes), "end"...), nil }}
	content, err := long.within(t.Context())
	if len(content) != partBytes || !bytes.HasSuffix(content, []byte("end")) || err == nil {
		t.Errorf("%d bytes, %v; want the last %d and an error", len(content), err, partBytes)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := Config{Status: func(context.Context) ([]byte, error) { return nil, nil }}
	if _, err := Pack(ctx, io.Discard, c); !errors.Is(err, context.Canceled) {
		t.Errorf("Pack = %v, want %v", err, context.Canceled)
	}
}

// Private keys are removed to their end, or to that of the text.
func TestClean(t *testing.T) {
	for text, want := range map[string]string{
		"a\n" + key + "b": "a\n[a private key was removed here]\nb",
		"a" + key[:45]:    "a[a private key was removed here]",
		`-----BEGIN PRIVATE KEY-----\nMHc\n-----END PRIVATE KEY-----\n"`: `[a private key was removed here]\n"`,
		"-----BEGIN CERTIFICATE-----":                                    "-----BEGIN CERTIFICATE-----",
	} {
		if got := string(clean("x.json", []byte(text))); got != want {
			t.Errorf("clean(%q) = %q, want %q", text, got, want)
		}
	}
}

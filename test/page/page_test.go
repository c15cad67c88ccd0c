//go:build node

// Package page looks at the product's pages as people do: in Chromium, wide and narrow, by day and by night, and with
// what reads a page to those who do not see it.
package page

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/internal/must"
	"sevagent/internal/sim/simca"
	"sevagent/test/lab"
)

// view is what the browser found at one width, in one scheme.
type view struct {
	Scheme     string            `json:"scheme"`
	Width      int               `json:"width"`
	Violations []json.RawMessage `json:"violations"` // of axe's rules
	Complaints []string          `json:"complaints"` // of the browser: errors of scripts, breaches of the policy
	Overflow   int               `json:"overflow"`   // pixels that the page is too wide
	Text       string            `json:"text"`
	Title      string            `json:"title"`
}

func browse(t *testing.T, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), filepath.Join(lab.Repository(), ".cache/browser/bin/python"),
		append([]string{"browse.py"}, args...)...)
	cmd.Env = lab.Environment("HOME="+t.TempDir(), "PYTHONDONTWRITEBYTECODE=1")
	return cmd
}

// inspect fails if a page is not sound at a width, in a scheme, or without scripts, and returns its views.
func inspect(t *testing.T, name, url string) (views []view) {
	t.Helper()
	shots := t.TempDir()
	if dir := os.Getenv("SEVAGENT_SCREENSHOTS"); dir != "" {
		shots = filepath.Join(dir, name)
		must.Do(t, os.MkdirAll(shots, 0o755), "make a directory for the screenshots")
	}
	must.Do(t, json.Unmarshal([]byte(lab.MustRun(t, browse(t, "inspect", url, shots))), &views), "read what was found")
	if len(views) != 7 {
		t.Fatalf("%d views, want 7", len(views))
	}
	for _, v := range views {
		for _, violation := range v.Violations {
			t.Errorf("%s, %s, %d pixels: axe: %s", name, v.Scheme, v.Width, violation)
		}
		for _, c := range v.Complaints {
			t.Errorf("%s, %s, %d pixels: the browser complains: %s", name, v.Scheme, v.Width, c)
		}
		if v.Overflow > 0 {
			t.Errorf("%s, %s: %d pixels wide, it scrolls sideways by %d", name, v.Scheme, v.Width, v.Overflow)
		}
	}
	return views
}

// node is an agent with a simulated device and one secret in a file.
type node struct {
	*lab.Agent
	ca          *simca.CA
	url, secret string
}

func newNode(t *testing.T) *node {
	dir := t.TempDir()
	n := &node{ca: lab.NewCA(t, "CA of the page"), secret: filepath.Join(dir, "secret.json")}
	lab.Write(t, n.secret, lab.ClientSecret(t, n.ca, "orders"))
	must.Do(t, os.MkdirAll(filepath.Join(dir, "device"), 0o755), "make a directory for the device")
	must.Get(lab.NewDevice(filepath.Join(dir, "device")))(t, "make a device")
	must.Do(t, unix.Mkfifo(filepath.Join(dir, "sev-guest"), 0o600), "make a pipe in the device's place")
	device := lab.Start(t, "sevsim", exec.Command(lab.Bin("sevsim"), "device", "--dir", filepath.Join(dir, "device"),
		"--socket", filepath.Join(dir, "device.sock")))
	lab.Until(t, "the device", func() error {
		if !strings.Contains(device.Output.String(), "ready") {
			return fmt.Errorf("it says %q", device.Output)
		}
		return nil
	})
	must.Do(t, os.MkdirAll(filepath.Join(dir, "mtls"), 0o755), "make the directory to publish in")
	tcp, socket := lab.FreeAddress(t), filepath.Join(dir, "s.sock")
	n.url = "http://" + tcp + "/"
	lab.Write(t, filepath.Join(dir, "config.yaml"), fmt.Sprintf(`
attestation: {policy: %[1]s/device/policy.yaml, transport: ioctl, device: %[1]s/sev-guest, rate: 50, burst: 64}
mtls:
  path: %[1]s/mtls
  secrets: ["file://%[2]s"]
  owner: "%[3]d:%[4]d"
  allow_disk: true
  endpoints: ["127.0.0.1:1"]
listen: {socket: %[5]s, tcp: "%[6]s"}
`, dir, n.secret, os.Getuid(), os.Getgid(), socket, tcp))
	cmd := exec.Command(lab.Bin("sevsim"), "exec", "--device", filepath.Join(dir, "device.sock"), "--",
		lab.Bin("sevagent"), "run", "--config", filepath.Join(dir, "config.yaml"))
	cmd.Env = lab.Environment("AWS_EC2_METADATA_DISABLED=true", "AWS_REGION=us-east-2")
	n.Agent = lab.StartAgent(t, socket, cmd)
	n.UntilReady()
	return n
}

func (n *node) put(t *testing.T, secret string) {
	t.Helper()
	must.Do(t, lab.Replace(n.secret, secret), "replace the secret")
	must.Get(n.Refresh())(t, "refresh")
}

// short is a secret whose certificate has used up most of its life.
func (n *node) short(t *testing.T) string {
	now := time.Now()
	leaf := must.Get(n.ca.Issue("short", now.Add(-100*24*time.Hour), now.Add(5*24*time.Hour)))(t, "issue a certificate")
	return string(must.Get(json.Marshal(map[string]string{
		"client_cert": leaf.Cert, "client_key": leaf.Key, "ca_cert": n.ca.PEM(),
	}))(t, "make a secret"))
}

// TestPage: what is wrong comes first, and the page is sound at every width.
func TestPage(t *testing.T) {
	n := newNode(t)
	for _, v := range inspect(t, "ready", n.url) {
		if !strings.Contains(v.Text, "CN=orders") || !strings.Contains(v.Text, "Boot gate") {
			t.Errorf("%s, %d pixels: the page shows neither the certificate nor the gate:\n%s", v.Scheme, v.Width, v.Text)
		}
	}
	n.put(t, n.short(t))
	lab.Write(t, n.secret, "{")
	if _, err := n.Refresh(); err == nil {
		t.Error("a broken secret is accepted")
	}
	for _, v := range inspect(t, "warnings", n.url) {
		wrong, rest, _ := strings.Cut(v.Text, "Certificates\n")
		for _, want := range []string{"mtls:secret", "mtls:expiry", "mtls:endpoint", "attestation:roots"} {
			if !strings.Contains(wrong, want) {
				t.Errorf("%s, %d pixels: %s does not stand first:\n%s", v.Scheme, v.Width, want, v.Text)
			}
		}
		if !strings.Contains(rest, "CN=short") {
			t.Errorf("%s, %d pixels: the page does not show the last good certificate", v.Scheme, v.Width)
		}
	}
}

// TestPageIsLive: an open page follows a rotation.
func TestPageIsLive(t *testing.T) {
	n := newNode(t)
	cmd := browse(t, "follow", n.url, "CN=second")
	out := must.Get(cmd.StdoutPipe())(t, "make a pipe")
	var errs strings.Builder
	cmd.Stderr = &errs
	must.Do(t, cmd.Start(), "start the browser")
	var said []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if said = append(said, lines.Text()); lines.Text() == "shown" {
			n.put(t, lab.ClientSecret(t, n.ca, "second"))
		}
	}
	if err := cmd.Wait(); err != nil || strings.Join(said, " ") != "shown changed" {
		t.Errorf("%v; the browser said %q\n%s", err, said, errs.String())
	}
}

// TestReport: the report of sevctl verify is sound, and its matrix of nodes and checks can be sorted.
func TestReport(t *testing.T) {
	report := lab.Read(t, filepath.Join(lab.Repository(), "cmd/sevctl/testdata/verify/html.golden"))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		if r.URL.Path == "/" {
			io.WriteString(w, report)
		}
	}))
	defer server.Close()
	inspect(t, "report", server.URL+"/")

	var orders []struct {
		Column, Order string
		Rows          []string
	}
	must.Do(t, json.Unmarshal([]byte(lab.MustRun(t, browse(t, "sort", server.URL+"/"))), &orders), "read the orders")
	if len(orders) < 4 {
		t.Fatalf("%d orders, want two for each of two columns at least", len(orders))
	}
	up, down := orders[0], orders[1]
	if len(up.Rows) < 2 || !slices.IsSorted(up.Rows) || up.Order != "ascending" || down.Order != "descending" {
		t.Errorf("by %s: %+v, then %+v", up.Column, up, down)
	}
	if slices.Reverse(up.Rows); !slices.Equal(up.Rows, down.Rows) {
		t.Errorf("the second click gives %q, want %q", down.Rows, up.Rows)
	}
}

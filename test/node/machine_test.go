//go:build node

// Package node tests the unmodified binaries, with their default paths, among real peers: instance metadata answers on
// the real 169.254.169.254, Secrets Manager is moto, driven by the real aws CLI, and the SNP device is simulated behind
// real ioctls and behind a real file system. test/run prepares the namespaces that it runs in.
package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"sevagent/internal/must"
	"sevagent/internal/sim/simca"
	"sevagent/test/lab"
)

const (
	devNode    = "/dev/sev-guest"
	tsm        = "/sys/kernel/config/tsm/report"
	secretName = "node/mtls"
)

// machine is one run of the test machine: metadata, Secrets Manager and the simulated device.
type machine struct {
	t     *testing.T
	moto  string // its address
	dir   string // of the device's root
	env   []string
	ca    *simca.CA
	agent *lab.Agent
}

// newMachine starts the peers. mount says whether configfs-tsm is there, node whether /dev/sev-guest is.
func newMachine(t *testing.T, mount, node bool) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir(), ca: lab.NewCA(t, "Node test CA")}
	for _, dir := range []string{lab.ConfigDir, "/run/sevagent", "/etc/ecs"} {
		must.Do(t, os.RemoveAll(dir), "remove what another test has left")
	}
	must.Do(t, os.MkdirAll(lab.Published, 0o755), "make the published directory")
	lab.Mount(t, lab.Published)
	if node { // opens as /dev/null does; sevsim exec diverts its ioctls
		must.Do(t, syscall.Mknod(devNode, syscall.S_IFCHR|0o600, 1<<8|3), "make a device node")
		t.Cleanup(func() { os.Remove(devNode) })
	}

	metadata := freeAddress(t)
	host, port, _ := net.SplitHostPort(metadata)
	lab.Start(t, "ec2-metadata-mock", exec.Command(filepath.Join(lab.Repository(), ".cache/bin/ec2-metadata-mock"),
		"-n", host, "-p", port, "--imdsv2", "-c", m.metadata()))
	serialize(t, "169.254.169.254:80", metadata)
	m.moto = freeAddress(t)
	host, port, _ = net.SplitHostPort(m.moto)
	lab.Start(t, "moto_server", exec.Command(lab.Python("moto_server"), "-H", host, "-p", port))
	args := []string{"device", "--dir", m.dir, "--socket", m.deviceSocket()}
	if mount {
		args = append(args, "--configfs", tsm)
	}
	device := lab.Start(t, "sevsim", exec.Command(lab.Bin("sevsim"), args...))

	for _, address := range []string{metadata, m.moto} {
		lab.Until(t, "a peer at "+address, func() error {
			conn, err := net.Dial("tcp", address)
			if err == nil {
				conn.Close()
			}
			return err
		})
	}
	lab.Until(t, "the simulated device", func() error {
		if device.Output.String() != "ready\n" {
			return errors.New(device.Output.String())
		}
		return nil
	})
	// The product learns nothing from the environment but where Secrets Manager is, and of a proxy that must not be
	// asked.
	proxy := "http://" + unasked(t)
	m.env = lab.Environment("AWS_ENDPOINT_URL_SECRETS_MANAGER=http://"+m.moto,
		"HTTP_PROXY="+proxy, "HTTPS_PROXY="+proxy, "ALL_PROXY="+proxy)
	return m
}

// unasked is the address of a proxy that fails the test if it is asked: what answers on the node goes direct.
func unasked(t *testing.T) string {
	t.Helper()
	l := must.Get(net.Listen("tcp", "127.0.0.1:0"))(t, "listen as a proxy")
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("the proxy was asked: %s %s", r.Method, r.RequestURI)
		w.WriteHeader(http.StatusServiceUnavailable)
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return l.Addr().String()
}

// freeAddress is an address of loopback that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	free := must.Get(net.Listen("tcp", "127.0.0.1:0"))(t, "find a free port")
	defer free.Close()
	return free.Addr().String()
}

// serialize passes requests on one at a time: ec2-metadata-mock keeps its tokens in a map without a lock, and the Go
// runtime ends it when two are asked for at once.
func serialize(t *testing.T, address, backend string) {
	t.Helper()
	var one sync.Mutex
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: backend})
	}}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		one.Lock()
		defer one.Unlock()
		proxy.ServeHTTP(w, r)
	})}
	l := must.Get(net.Listen("tcp", address))(t, "listen where instances find their metadata")
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
}

func (m *machine) deviceSocket() string { return filepath.Join(m.dir, "device.sock") }

// metadata is a configuration of ec2-metadata-mock for an m6a.large in us-east-2.
func (m *machine) metadata() string {
	file := filepath.Join(m.t.TempDir(), "metadata.json")
	lab.Write(m.t, file, `{"dynamic": {"values": {"instance-identity-document": {
	  "accountId": "111122223333", "architecture": "x86_64", "availabilityZone": "us-east-2a",
	  "imageId": "ami-0123456789abcdef0", "instanceId": "i-0123456789abcdef0", "instanceType": "m6a.large",
	  "pendingTime": "2026-01-01T00:00:00Z",
	  "privateIp": "10.0.0.10", "region": "us-east-2", "version": "2017-09-30"}}},
	 "metadata": {"values": {"placement-region": "us-east-2", "instance-id": "i-0123456789abcdef0"}}}`)
	return file
}

// startAgent runs the unmodified agent, its ioctls diverted to the simulated device.
func (m *machine) startAgent() {
	m.t.Helper()
	cmd := exec.Command(lab.Bin("sevsim"), "exec", "--device", m.deviceSocket(), "--", lab.Bin("sevagent"), "run")
	cmd.Env = m.env
	m.agent = lab.StartAgent(m.t, "", cmd)
}

// configure writes the operator's configuration: the simulator's roots, and a rate that does not slow the tests down.
func (m *machine) configure(more string) {
	m.t.Helper()
	lab.Write(m.t, lab.ConfigDir+"/config.yaml",
		fmt.Sprintf("attestation: {policy: %s/policy.yaml, rate: 50, burst: 64}\n%s", m.dir, more))
}

func (m *machine) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(lab.Bin(name), args...)
	cmd.Env = m.env
	return cmd
}

func (m *machine) must(name string, args ...string) string {
	m.t.Helper()
	return lab.MustRun(m.t, m.command(name, args...))
}

// fails runs a command that has to end with a status, and to name a reason.
func (m *machine) fails(t *testing.T, want int, reason, name string, args ...string) {
	t.Helper()
	if _, errs, status := lab.Run(t, m.command(name, args...)); status != want || !strings.Contains(errs, reason) {
		t.Errorf("%s %s: exit status %d, want %d, and %q, want it to name %q", name, strings.Join(args, " "), status,
			want, errs, reason)
	}
}

// aws runs the real aws CLI against moto.
func (m *machine) aws(args ...string) string {
	m.t.Helper()
	cmd := exec.Command(lab.Python("aws"), append([]string{"--endpoint-url", "http://" + m.moto, "--region",
		"us-east-2"}, args...)...)
	cmd.Env = lab.Environment("AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test", "AWS_PAGER=",
		"AWS_EC2_METADATA_DISABLED=true")
	return lab.MustRun(m.t, cmd)
}

// put makes another version of the secret the current one.
func (m *machine) put(text string) {
	m.t.Helper()
	m.aws("secretsmanager", "put-secret-value", "--secret-id", secretName, "--secret-string", text)
}

// bootstrap runs the real bootstrap and, in systemd's place, starts the agent once it has been configured.
func (m *machine) bootstrap() {
	m.t.Helper()
	bootstrap := lab.Start(m.t, "bootstrap", m.command("bootstrap", "--cluster", "test", "--mtls-secret", secretName,
		"--services", "none", "--timeout", lab.Hang.String()))
	lab.Until(m.t, "bootstrap's configuration", func() error {
		_, err := os.Stat(lab.ConfigDir + "/conf.d/50-bootstrap.yaml")
		return err
	})
	m.startAgent()
	if bootstrap.Failed() {
		m.t.Fatal("bootstrap failed") // what it printed follows
	}
}

// health asks the agent over loopback TCP.
func (m *machine) health() (status int, checks string) {
	m.t.Helper()
	resp, err := http.Get("http://127.0.0.1:9180/readyz")
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body := must.Get(io.ReadAll(resp.Body))(m.t, "read the agent's health")
	must.Do(m.t, json.Unmarshal(body, new(json.RawMessage)), "decode the agent's health")
	return resp.StatusCode, string(body)
}

// untilHealth waits until the agent's health names something.
func (m *machine) untilHealth(want string) (status int) {
	m.t.Helper()
	lab.Until(m.t, "health to name "+want, func() (err error) {
		var checks string
		if status, checks = m.health(); !strings.Contains(checks, want) {
			err = errors.New(checks)
		}
		return err
	})
	return status
}

//go:build system

// Package spire tests the source over the SPIFFE Workload API against a server and an agent of SPIRE, as they are.
// test/run builds them, and makes a network of loopback alone.
package spire

import (
	"context"
	"crypto/sha1"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sevagent/client"
	"sevagent/internal/mtls/certset"
	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/mtls/source"
	"sevagent/internal/mtls/spiffe"
	"sevagent/internal/must"
	"sevagent/test/lab"
)

const (
	trustDomain = "example.org"
	nodeID      = "spiffe://example.org/node"
	// life of the certificates from their issuance, before which they begin. SPIRE pushes the next at half of it all.
	life      = 30 * time.Second
	backdated = 10 * time.Second
)

// domain is a trust domain of one server and one agent.
type domain struct {
	t           *testing.T
	dir         string
	socket      string // the Workload API's
	attestation *x509.Certificate
}

// program is one of SPIRE's.
func program(name string) string { return lab.Pinned("spire", name) }

// newDomain starts a server.
func newDomain(t *testing.T) *domain {
	t.Helper()
	dir := t.TempDir()
	d := &domain{t: t, dir: dir, socket: filepath.Join(dir, "public/api.sock")}

	// Attestation by a certificate is one that an agent can repeat after a restart, as those of AWS are.
	ca := mtlstest.NewCA(t, "nodes", nil)
	leaf, key := ca.Leaf(t, "node")
	d.attestation = leaf
	lab.Write(t, filepath.Join(dir, "nodes.pem"), mtlstest.CertPEM(ca.Cert))
	lab.Write(t, filepath.Join(dir, "node.pem"), mtlstest.CertPEM(leaf))
	lab.Write(t, filepath.Join(dir, "node.key"), mtlstest.KeyPEM(t, key))
	lab.Write(t, filepath.Join(dir, "server.conf"), d.expand(`
server {
    bind_address = "127.0.0.1"
    bind_port = "8081"
    socket_path = "DIR/server.sock"
    data_dir = "DIR/server"
    trust_domain = "example.org"
    log_level = "WARN"
    experimental {
        cache_reload_interval = "1s"
    }
}
plugins {
    DataStore "sql" {
        plugin_data {
            database_type = "sqlite3"
            connection_string = "DIR/server.sqlite3"
        }
    }
    NodeAttestor "x509pop" {
        plugin_data {
            ca_bundle_path = "DIR/nodes.pem"
        }
    }
    KeyManager "memory" {
        plugin_data = {}
    }
}
`))
	lab.Write(t, filepath.Join(dir, "agent.conf"), d.expand(`
agent {
    data_dir = "DIR/agent"
    server_address = "127.0.0.1"
    server_port = "8081"
    socket_path = "DIR/public/api.sock"
    trust_bundle_path = "DIR/bundle.pem"
    trust_domain = "example.org"
    log_level = "WARN"
    experimental {
        sync_interval = "1s"
    }
}
plugins {
    NodeAttestor "x509pop" {
        plugin_data {
            private_key_path = "DIR/node.key"
            certificate_path = "DIR/node.pem"
        }
    }
    KeyManager "memory" {
        plugin_data = {}
    }
    WorkloadAttestor "unix" {
        plugin_data {
            discover_workload_path = true
        }
    }
}
`))
	lab.Start(t, "spire-server",
		exec.Command(program("spire-server"), "run", "-config", filepath.Join(dir, "server.conf")))
	lab.Until(t, "the bundle of SPIRE's server", func() error {
		out, err := exec.Command(program("spire-server"), "bundle", "show", "-socketPath", d.serverSocket()).Output()
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "bundle.pem"), out, 0o644)
	})
	return d
}

func (d *domain) expand(text string) string { return strings.ReplaceAll(text, "DIR", d.dir) }

func (d *domain) serverSocket() string { return filepath.Join(d.dir, "server.sock") }

// server runs a command of the server's command line.
func (d *domain) server(args ...string) string {
	d.t.Helper()
	return lab.MustRun(d.t, exec.Command(program("spire-server"), append(args, "-socketPath", d.serverSocket())...))
}

// agent starts the agent by a command in front of it, or none.
func (d *domain) agent(before ...string) *lab.Process {
	d.t.Helper()
	args := append(before, program("spire-agent"), "run", "-config", filepath.Join(d.dir, "agent.conf"))
	return lab.Start(d.t, "spire-agent", exec.Command(args[0], args[1:]...))
}

// entry has the server give this program an identity, and returns the entry's ID.
func (d *domain) entry(id string) string {
	d.t.Helper()
	self := must.Get(os.Executable())(d.t, "find this program")
	parent := fmt.Sprintf("spiffe://%s/spire/agent/x509pop/%x", trustDomain, sha1.Sum(d.attestation.Raw))
	out := d.server("entry", "create", "-spiffeID", id, "-parentID", parent, "-selector", "unix:path:"+self,
		"-dns", "node.example.org", "-x509SVIDTTL", fmt.Sprint(int(life.Seconds())))
	for line := range strings.Lines(out) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "Entry ID" {
			return strings.TrimSpace(value)
		}
	}
	d.t.Fatalf("the server has made an entry without an ID:\n%s", out)
	return ""
}

// node is a Source that runs until the test ends.
type node struct {
	*spiffe.Source
	t       *testing.T
	changed chan struct{}
}

func (d *domain) node(change ...func(*spiffe.Config)) *node {
	n := &node{t: d.t, changed: make(chan struct{}, 1)}
	c := spiffe.Config{
		Name: "issue/node", Socket: d.socket, Gives: []string{"client", "server"}, Log: slog.New(slog.DiscardHandler),
		Changed: func() {
			select {
			case n.changed <- struct{}{}:
			default:
			}
		},
	}
	for _, f := range change {
		f(&c)
	}
	n.Source = spiffe.New(c)
	ctx, cancel := context.WithCancel(d.t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		n.Run(ctx)
	}()
	d.t.Cleanup(func() {
		cancel()
		<-ended
	})
	return n
}

// until waits for a change after which there is what is wanted. No polls: Changed has to announce it.
func (n *node) until(what string, check func(v source.Version, err error) bool) source.Version {
	n.t.Helper()
	for deadline := time.After(lab.Hang); ; {
		v, err := n.Describe(n.t.Context())
		if check(v, err) {
			return v
		}
		select {
		case <-n.changed:
		case <-deadline:
			n.t.Fatalf("wait for %s: there is the version %q, %v; status %+v", what, v.Current, err, n.Status())
		}
	}
}

// publish waits for a version other than the one before, puts it together as it is published, and returns its files.
func (n *node) publish(what string, not string) (version string, files map[string]string) {
	n.t.Helper()
	v := n.until(what, func(v source.Version, err error) bool { return err == nil && v.Current != "" && v.Current != not })
	secret := must.Get(n.Fetch(n.t.Context(), v.Current, source.Current))(n.t, "fetch %s", what)
	b := must.Get(certset.Parse("issue/node", v.Current, secret(), certset.Reading{}))(n.t, "read %s", what)
	set := must.Get(certset.Assemble([]*certset.Bundle{b}, nil, time.Now(), nil))(n.t, "assemble %s", what)
	files = make(map[string]string)
	for _, f := range set.Files {
		files[f.Name] = string(f.Content)
	}
	n.Published(v.Current, first(n.t, files["client.crt"]))
	if st := n.Status(); st.State != client.IssueIdle || st.Serial == "" {
		n.t.Errorf("after the publication of %s: %+v, want idle", what, st)
	}
	return v.Current, files
}

// first returns the first certificate of a file.
func first(t *testing.T, text string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatalf("there is no certificate in\n%s", text)
	}
	return must.Get(x509.ParseCertificate(block.Bytes))(t, "parse a certificate")
}

func roots(files map[string]string) int { return strings.Count(files["ca.crt"], "BEGIN CERTIFICATE") }

// refused reports whether an error is one that needs somebody to act, and contains the text.
func refused(err error, text string) bool {
	return err != nil && source.KindOf(err) == source.Persistent && strings.Contains(err.Error(), text)
}

func TestSPIRE(t *testing.T) {
	d := newDomain(t)
	n := d.node()
	n.until("word that there is no socket", func(_ source.Version, err error) bool {
		return err != nil && source.KindOf(err) == source.Transient && strings.Contains(err.Error(), "start the SPIRE agent")
	})

	agent := d.agent()
	n.until("word that there is no entry", func(_ source.Version, err error) bool {
		return refused(err, "-selector unix:path:/usr/bin/sevagent")
	})

	entry := d.entry(nodeID)
	one, files := n.publish("the first certificate", "")
	leaf := first(t, files["client.crt"])
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != nodeID || files["server.crt"] != files["client.crt"] ||
		roots(files) != 1 {
		t.Errorf("the first certificate is for %v, with %d roots; want %s, for a client and a server, and one root",
			leaf.URIs, roots(files), nodeID)
	}

	two, files := n.publish("the push at half of its life", one)
	next := first(t, files["client.crt"])
	at := next.NotBefore.Add(backdated) // SPIRE spreads agents by a tenth of the half
	if lived := leaf.NotAfter.Sub(leaf.NotBefore); at.Before(leaf.NotBefore.Add(lived * 4 / 10)) {
		t.Errorf("after a certificate from %v to %v comes one that was issued at %v", leaf.NotBefore, leaf.NotAfter, at)
	}

	// The server prepares its next CA: both are trusted before it signs.
	d.server("localauthority", "x509", "prepare")
	for version := two; roots(files) != 2; {
		version, files = n.publish("a bundle of two roots", version)
	}

	// The agent restarts: the socket is another one.
	before := ctime(t, d.socket)
	agent.Stop(t, syscall.SIGTERM)
	n.until("word that the agent is away", func(source.Version, error) bool {
		return n.Status().State == client.IssueFailing // a version that was pushed before is there to be published
	})
	d.agent()
	held := n.until("a certificate of the agent that is back", func(v source.Version, err error) bool {
		return err == nil && v.Current != "" && n.Status().State != client.IssueFailing
	})
	if ctime(t, d.socket) == before {
		t.Error("the socket is the same after the agent's restart: this test tests nothing")
	}
	if st := n.Status(); st.Issuances < 3 {
		t.Errorf("after three certificates: %+v", st)
	}

	// Two identities, and none is asked for.
	other := d.entry("spiffe://example.org/other")
	n.until("word of two identities", func(_ source.Version, err error) bool {
		return refused(err, nodeID) && strings.Contains(err.Error(), "spiffe://example.org/other") &&
			strings.Contains(err.Error(), "set id")
	})
	chosen := d.node(func(c *spiffe.Config) { c.ID = "spiffe://example.org/other" })
	_, files = chosen.publish("the certificate that was asked for", "")
	if leaf := first(t, files["client.crt"]); leaf.URIs[0].String() != "spiffe://example.org/other" {
		t.Errorf("asked for one of two identities, it gives %s", leaf.URIs[0])
	}
	d.server("entry", "delete", "-entryID", other)
	n.until("the one identity", func(v source.Version, err error) bool { return err == nil && v.Current != held.Current })

	d.server("entry", "delete", "-entryID", entry)
	n.until("word that the entry is gone", func(_ source.Version, err error) bool {
		return refused(err, "PermissionDenied")
	})
}

// ctime tells two sockets of one path apart.
func ctime(t *testing.T, path string) syscall.Timespec {
	t.Helper()
	var st syscall.Stat_t
	must.Do(t, syscall.Stat(path, &st), "look at the socket")
	return st.Ctim
}

// TestContainer has the agent run in a PID namespace of its own, as one in a container does, and as anything in a
// container that poses as it.
func TestContainer(t *testing.T) {
	d := newDomain(t)
	agent := d.agent("unshare", "--pid", "--fork", "--kill-child")
	defer agent.Stop(t, syscall.SIGKILL) // unshare leaves other signals to its child
	d.node().until("word of an agent in a container", func(_ source.Version, err error) bool {
		return refused(err, "in a container")
	})
	d.node(func(c *spiffe.Config) { c.Contained = true }).until("an answer of one that is believed",
		func(_ source.Version, err error) bool {
			return err != nil && !strings.Contains(err.Error(), "in a container")
		})
}

package lab

import (
	"crypto/sha1"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sevagent/internal/mtls/mtlstest"
)

// SPIRE is the trust domain example.org of one server and one agent.
type SPIRE struct {
	Socket      string   // the Workload API's
	Process     *Process // the server
	t           testing.TB
	dir         string
	attestation *x509.Certificate
}

// NewSPIRE starts a server, which keeps what it keeps in a directory, as its agent does. Both log from a level on.
func NewSPIRE(t testing.TB, dir, level string) *SPIRE {
	t.Helper()
	d := &SPIRE{t: t, dir: dir, Socket: filepath.Join(dir, "public/api.sock")}

	// Attestation by a certificate is one that an agent can repeat after a restart, as those of AWS are.
	ca := mtlstest.NewCA(t, "nodes", nil)
	leaf, key := ca.Leaf(t, "node")
	d.attestation = leaf
	expand := strings.NewReplacer("DIR", dir, "LEVEL", level).Replace
	Write(t, filepath.Join(dir, "nodes.pem"), mtlstest.CertPEM(ca.Cert))
	Write(t, filepath.Join(dir, "node.pem"), mtlstest.CertPEM(leaf))
	Write(t, filepath.Join(dir, "node.key"), mtlstest.KeyPEM(t, key))
	Write(t, filepath.Join(dir, "server.conf"), expand(`
server {
    bind_address = "127.0.0.1"
    bind_port = "8081"
    socket_path = "DIR/server.sock"
    data_dir = "DIR/server"
    trust_domain = "example.org"
    log_level = "LEVEL"
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
	Write(t, filepath.Join(dir, "agent.conf"), expand(`
agent {
    data_dir = "DIR/agent"
    server_address = "127.0.0.1"
    server_port = "8081"
    socket_path = "DIR/public/api.sock"
    trust_bundle_path = "DIR/bundle.pem"
    trust_domain = "example.org"
    log_level = "LEVEL"
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
	d.Process = Start(t, "spire-server",
		exec.Command(Pinned("spire", "spire-server"), "run", "-config", filepath.Join(dir, "server.conf")))
	Until(t, "the bundle of SPIRE's server", func() error {
		show := exec.Command(Pinned("spire", "spire-server"), "bundle", "show", "-socketPath", d.serverSocket())
		out, err := show.Output()
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "bundle.pem"), out, 0o644)
	})
	return d
}

func (d *SPIRE) serverSocket() string { return filepath.Join(d.dir, "server.sock") }

// Server runs a command of the server's command line.
func (d *SPIRE) Server(args ...string) string {
	d.t.Helper()
	return MustRun(d.t, exec.Command(Pinned("spire", "spire-server"), append(args, "-socketPath", d.serverSocket())...))
}

// Agent starts the agent by a command in front of it, or none.
func (d *SPIRE) Agent(before ...string) *Process {
	d.t.Helper()
	args := append(before, Pinned("spire", "spire-agent"), "run", "-config", filepath.Join(d.dir, "agent.conf"))
	return Start(d.t, "spire-agent", exec.Command(args[0], args[1:]...))
}

// Entry has the server give whatever a selector selects an identity, with certificates of a life, and returns the
// entry's ID.
func (d *SPIRE) Entry(id, selector string, life time.Duration) string {
	d.t.Helper()
	parent := fmt.Sprintf("spiffe://example.org/spire/agent/x509pop/%x", sha1.Sum(d.attestation.Raw))
	out := d.Server("entry", "create", "-spiffeID", id, "-parentID", parent, "-selector", selector,
		"-dns", "node.example.org", "-x509SVIDTTL", fmt.Sprint(int(life.Seconds())))
	for line := range strings.Lines(out) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "Entry ID" {
			return strings.TrimSpace(value)
		}
	}
	d.t.Fatalf("the server has made an entry without an ID:\n%s", out)
	return ""
}

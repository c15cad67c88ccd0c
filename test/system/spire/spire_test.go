//go:build system

// Package spire tests the source over the SPIFFE Workload API against a server and an agent of SPIRE, as they are.
// test/run builds them, and makes a network of loopback alone.
package spire

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"sevagent/client"
	"sevagent/internal/mtls/certset"
	"sevagent/internal/mtls/source"
	"sevagent/internal/mtls/spiffe"
	"sevagent/internal/must"
	"sevagent/test/lab"
)

const (
	nodeID = "spiffe://example.org/node"
	// life of the certificates from their issuance, before which they begin. SPIRE pushes the next at half of it all.
	life      = 30 * time.Second
	backdated = 10 * time.Second
)

// domain is a trust domain.
type domain struct {
	*lab.SPIRE
	t *testing.T
}

func newDomain(t *testing.T) *domain {
	t.Helper()
	return &domain{lab.NewSPIRE(t, t.TempDir(), "WARN"), t}
}

// entry has the server give this program an identity, and returns the entry's ID.
func (d *domain) entry(id string) string {
	d.t.Helper()
	return d.Entry(id, "unix:path:"+must.Get(os.Executable())(d.t, "find this program"), life)
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
		Name: "issue/node", Socket: d.Socket, Gives: []string{"client", "server"}, Log: slog.New(slog.DiscardHandler),
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

	agent := d.Agent()
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
	d.Server("localauthority", "x509", "prepare")
	for version := two; roots(files) != 2; {
		version, files = n.publish("a bundle of two roots", version)
	}

	// The agent restarts: the socket is another one.
	before := ctime(t, d.Socket)
	agent.Stop(t, syscall.SIGTERM)
	n.until("word that the agent is away", func(source.Version, error) bool {
		return n.Status().State == client.IssueFailing // a version that was pushed before is there to be published
	})
	d.Agent()
	held := n.until("a certificate of the agent that is back", func(v source.Version, err error) bool {
		return err == nil && v.Current != "" && n.Status().State != client.IssueFailing
	})
	if ctime(t, d.Socket) == before {
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
	d.Server("entry", "delete", "-entryID", other)
	n.until("the one identity", func(v source.Version, err error) bool { return err == nil && v.Current != held.Current })

	d.Server("entry", "delete", "-entryID", entry)
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
	agent := d.Agent("unshare", "--pid", "--fork", "--kill-child")
	defer agent.Stop(t, syscall.SIGKILL) // unshare leaves other signals to its child
	d.node().until("word of an agent in a container", func(_ source.Version, err error) bool {
		return refused(err, "in a container")
	})
	d.node(func(c *spiffe.Config) { c.Contained = true }).until("an answer of one that is believed",
		func(_ source.Version, err error) bool {
			return err != nil && !strings.Contains(err.Error(), "in a container")
		})
}

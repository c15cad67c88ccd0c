//go:build node

package readers

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sevagent/internal/must"
	"sevagent/internal/sim/simca"
	"sevagent/test/lab"
)

const (
	consumerDir = lab.Published + "/web"
	secretFile  = "/run/secret.json"
)

// machine is the node: a real agent, its secret, and a server for the clients among the readers.
type machine struct {
	t        *testing.T
	work     string
	agent    *lab.Agent
	cas      [2]*simca.CA // they issue the versions in turn
	peers    *simca.CA    // of the programs that the readers talk to
	n        int          // version of the secret
	orders   atomic.Pointer[tls.Config]
	refused  atomic.Pointer[string] // the first handshake that failed at the server
	watching string                 // the recipe
}

func newMachine(t *testing.T, snippets ...string) *machine {
	t.Helper()
	m := &machine{t: t, work: "/run/readers"} // for every user, unlike t.TempDir
	must.Do(t, os.Mkdir(m.work, 0o755), "make a directory")
	for i, ca := range []**simca.CA{&m.cas[0], &m.cas[1], &m.peers} {
		*ca = lab.NewCA(t, fmt.Sprintf("CA %d", i))
	}
	m.serveOrders()
	lab.Mount(t, lab.Published)
	lab.Write(t, lab.ConfigDir+"/config.yaml", `
attestation: {mode: "off"}
mtls: {secrets: ["file://`+secretFile+`"], poll_interval: 24h}
listen: {tcp: ""}
`)
	for i, text := range snippets {
		lab.Write(t, fmt.Sprintf("%s/conf.d/%d0-test.yaml", lab.ConfigDir, i+1), text)
	}
	m.put(false)
	m.agent = lab.StartAgent(t, "", exec.Command(lab.Bin("sevagent"), "run"))
	m.agent.UntilReady()
	for _, dir := range []string{lab.Published, consumerDir} {
		lab.Read(t, filepath.Join(dir, "server.pem"))
	}
	return m
}

func (m *machine) issue(ca *simca.CA, name string) simca.Leaf {
	m.t.Helper()
	return must.Get(ca.IssueFrom(simca.Template{
		Name: name, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(0, 0, 90),
		DNSNames: []string{"orders.internal", "web.internal"},
		Usages:   []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}))(m.t, "issue a certificate for %s", name)
}

// name is the common name of the leaves of the present version.
func (m *machine) name() string { return fmt.Sprintf("version-%d", m.n) }

func (m *machine) ca() *simca.CA { return m.cas[m.n%2] }

// put makes the next version. Its leaves come from the one CA or the other. Its anchors are that CA and that of the
// peers or, if alone is set, that CA only.
func (m *machine) put(alone bool) {
	m.t.Helper()
	m.n++
	anchors := m.ca().PEM()
	if !alone {
		anchors += m.peers.PEM()
	}
	text := lab.Secret(m.issue(m.ca(), m.name()), m.issue(m.ca(), m.name()), anchors)
	must.Do(m.t, lab.Replace(secretFile, text), "replace the secret")
}

func current(t *testing.T) string {
	t.Helper()
	return must.Get(os.Readlink(lab.Published+"/..data"))(t, "read the current generation")
}

// rotate publishes the next version, and returns when the agent has acknowledged it.
func (m *machine) rotate(alone bool) {
	m.t.Helper()
	before := current(m.t)
	m.put(alone)
	if generation := must.Get(m.agent.Refresh())(m.t, "refresh to %s", m.name()); generation == before {
		m.t.Fatalf("%s changed nothing", m.name())
	}
}

func pool(cas ...*simca.CA) *x509.CertPool {
	p := x509.NewCertPool()
	for _, ca := range cas {
		p.AddCert(ca.Cert)
	}
	return p
}

func (m *machine) pair(ca *simca.CA, name string) tls.Certificate {
	m.t.Helper()
	leaf := m.issue(ca, name)
	return must.Get(tls.X509KeyPair([]byte(leaf.Cert), []byte(leaf.Key)))(m.t, "load the certificate of %s", name)
}

// serveOrders is the server that the clients call. It answers with the name of the certificate they show.
func (m *machine) serveOrders() {
	m.t.Helper()
	m.talkAs(m.peers, m.cas[:]...)
	l := must.Get(net.Listen("tcp", "127.0.0.1:443"))(m.t, "serve the clients")
	server := &http.Server{
		TLSConfig: &tls.Config{
			GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return m.orders.Load(), nil },
		},
		ErrorLog: log.New(refusals{&m.refused}, "", 0),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, r.TLS.PeerCertificates[0].Subject.CommonName)
		}),
	}
	server.SetKeepAlivesEnabled(false) // a handshake for each request
	go server.ServeTLS(l, "", "")
	m.t.Cleanup(func() { server.Close() })
}

// talkAs makes the peers' certificates ones of a CA, and has them accept those of clients.
func (m *machine) talkAs(ca *simca.CA, clients ...*simca.CA) {
	m.t.Helper()
	m.orders.Store(&tls.Config{
		Certificates: []tls.Certificate{m.pair(ca, "orders.internal")}, ClientAuth: tls.RequireAndVerifyClientCert,
		ClientCAs: pool(clients...), RootCAs: pool(clients...), ServerName: "web.internal",
		SessionTicketsDisabled: true,
	})
}

type refusals struct{ first *atomic.Pointer[string] }

func (r refusals) Write(line []byte) (int, error) {
	text := string(line)
	r.first.CompareAndSwap(nil, &text)
	return len(line), nil
}

// call makes a request of a server among the readers, and returns the name of the certificate it showed.
func (m *machine) call(addr string) (string, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), lab.Hang)
	defer cancel()
	conn, err := (&tls.Dialer{Config: m.orders.Load()}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	// With an answer, the server has accepted our certificate too.
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: web.internal\r\nConnection: close\r\n\r\n"); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(io.LimitReader(conn, 4<<10))
	if !bytes.HasPrefix(answer, []byte("HTTP/1.1 200 ")) && !bytes.HasPrefix(answer, []byte("HTTP/1.0 200 ")) {
		return "", fmt.Errorf("answer %.100q, %v", answer, err)
	}
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName, nil
}

// container makes a command that sees a published directory at its place, read-only, in a mount namespace of its own.
func container(source string, user int, args ...string) *exec.Cmd {
	script := `mount --bind "$0" ` + lab.Published + ` && mount -o remount,bind,ro ` + lab.Published +
		` && exec setpriv --reuid "$1" --regid "$1" --clear-groups "${@:2}"`
	cmd := exec.Command("bash", append([]string{"-c", script, source, fmt.Sprint(user)}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	cmd.Env = lab.Environment()
	return cmd
}

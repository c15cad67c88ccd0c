package certs_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"sevagent/client/certs"
	"sevagent/internal/must"
	"sevagent/internal/sim/simca"
)

// handshake returns the error of each end. With TLS 1.3 a client is done before the server has verified its
// certificate; so the server sends a byte when it accepts.
func handshake(client, server *tls.Config) (clientErr, serverErr error) {
	_, clientErr, serverErr = handshakeState(client, server)
	return clientErr, serverErr
}

func handshakeState(client, server *tls.Config) (cs tls.ConnectionState, clientErr, serverErr error) {
	a, b := socketPair()
	defer a.Close()
	served := make(chan error, 1)
	go func() {
		defer b.Close()
		conn := tls.Server(b, server)
		err := conn.Handshake()
		if err == nil {
			_, err = conn.Write([]byte{1})
		}
		served <- err
	}()
	conn := tls.Client(a, client)
	if clientErr = conn.Handshake(); clientErr == nil {
		_, clientErr = io.ReadFull(conn, make([]byte, 1))
	}
	a.Close()
	return conn.ConnectionState(), clientErr, <-served
}

// socketPair is net.Pipe with a buffer, without which two ends that both refuse wait for each other.
func socketPair() (a, b net.Conn) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket pair")
		if conns[i], err = net.FileConn(f); err != nil {
			panic(err)
		}
		f.Close()
	}
	return conns[0], conns[1]
}

// plain is the configuration of a peer that does not use this package.
func plain(t *testing.T, ca *simca.CA, name string, trusted *simca.CA) *tls.Config {
	t.Helper()
	leaf := issue(t, ca, name)
	pair := must.Get(tls.X509KeyPair([]byte(leaf.Cert), []byte(leaf.Key)))(t, "load the pair of %s", name)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(trusted.PEM()))
	return &tls.Config{
		Certificates: []tls.Certificate{pair}, RootCAs: pool, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, ServerName: "localhost",
		// Whatever the server asks for.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil },
	}
}

func refused(err error) bool {
	_, ok := errors.AsType[*tls.CertificateVerificationError](err)
	return ok
}

// Configurations made before a rotation use what comes after it, at both ends and in both versions.
func TestConfigsFollow(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			first, second := newCA(t, "first"), newCA(t, "second")
			p := newPublished(t)
			p.publish(whole(t, first, "1"))
			d := p.open()
			client, server := d.ClientConfig("localhost"), d.ServerConfig()
			client.MaxVersion = version
			// connect returns which certificates the two ends saw.
			connect := func() (atServer, atClient string) {
				t.Helper()
				server.VerifyConnection = func(cs tls.ConnectionState) error {
					atServer = cs.PeerCertificates[0].Subject.CommonName
					return nil
				}
				cs, clientErr, serverErr := handshakeState(client, server)
				if clientErr != nil || serverErr != nil {
					t.Fatalf("client: %v; server: %v", clientErr, serverErr)
				}
				if cs.Version != version {
					t.Fatalf("version is %s", tls.VersionName(cs.Version))
				}
				return atServer, cs.PeerCertificates[0].Subject.CommonName
			}
			if c, s := connect(); c != "client-1" || s != "server-1" {
				t.Errorf("first: %s, %s", c, s)
			}
			p.publish(whole(t, first, "2")) // new leaves
			if c, s := connect(); c != "client-2" || s != "server-2" {
				t.Errorf("after the leaves: %s, %s", c, s)
			}
			p.publish(whole(t, second, "3")) // a new CA
			if c, s := connect(); c != "client-3" || s != "server-3" {
				t.Errorf("after the CA: %s, %s", c, s)
			}

			// Peers that stayed with the old CA are refused, those of the new one are not.
			old, renewed := plain(t, first, "old", second), plain(t, second, "new", second)
			old.MaxVersion, renewed.MaxVersion = version, version
			if clientErr, _ := handshake(client, old); !refused(clientErr) {
				t.Errorf("client with a server of the old CA: %v", clientErr)
			}
			if clientErr, _ := handshake(d.Set().ClientConfig("localhost"), old); !refused(clientErr) {
				t.Errorf("client of the set with a server of the old CA: %v", clientErr)
			}
			if _, serverErr := handshake(old, server); !refused(serverErr) {
				t.Errorf("server with a client of the old CA: %v", serverErr)
			}
			if clientErr, serverErr := handshake(client, renewed); clientErr != nil || serverErr != nil {
				t.Errorf("client with a server of the new CA: %v, %v", clientErr, serverErr)
			}
			if clientErr, serverErr := handshake(renewed, server); clientErr != nil || serverErr != nil {
				t.Errorf("server with a client of the new CA: %v, %v", clientErr, serverErr)
			}
		})
	}
}

// InsecureSkipVerify must not weaken anything: what crypto/tls rejects, ClientConfig rejects.
func TestClientVerifies(t *testing.T) {
	ca := newCA(t, "ca")
	p := newPublished(t)
	p.publish(whole(t, ca, "1"))
	d := p.open()
	server := d.ServerConfig()
	leafOf := func(usage x509.ExtKeyUsage, expired bool) *tls.Config {
		c := plain(t, ca, "x", ca)
		template := simca.Template{Name: "x", DNSNames: []string{"localhost"}, Usages: []x509.ExtKeyUsage{usage}}
		template.NotBefore, template.NotAfter = c.Certificates[0].Leaf.NotBefore, c.Certificates[0].Leaf.NotAfter
		if expired {
			template.NotBefore = template.NotBefore.AddDate(0, 0, -1)
			template.NotAfter = template.NotAfter.AddDate(0, 0, -1)
		}
		leaf := must.Get(ca.IssueFrom(template))(t, "issue a leaf")
		pair := must.Get(tls.X509KeyPair([]byte(leaf.Cert), []byte(leaf.Key)))(t, "load its pair")
		c.Certificates = []tls.Certificate{pair}
		return c
	}
	for _, test := range []struct {
		name, serverName string
		server           *tls.Config
		want             string
	}{
		{"its name", "server-1", server, ""},
		{"its address", "127.0.0.1", server, ""},
		{"another name", "elsewhere", server, "certificate is valid for server-1, localhost, not elsewhere"},
		{"another address", "127.0.0.2", server, "not 127.0.0.2"},
		{"a certificate for clients", "localhost", leafOf(x509.ExtKeyUsageClientAuth, false), "incompatible key usage"},
		{"one that has expired", "localhost", leafOf(x509.ExtKeyUsageServerAuth, true), "expired"},
		{"an unknown authority", "localhost", plain(t, newCA(t, "another"), "x", ca), "unknown authority"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for name, client := range map[string]*tls.Config{
				"directory": d.ClientConfig(test.serverName), "set": d.Set().ClientConfig(test.serverName),
			} {
				err, _ := handshake(client, test.server)
				if test.want == "" && err != nil || test.want != "" &&
					(!refused(err) || !strings.Contains(err.Error(), test.want)) {
					t.Errorf("%s: %v, want %q", name, err, test.want)
				}
			}
		})
	}
	t.Run("no name", func(t *testing.T) {
		client := d.ClientConfig("")
		if err, _ := handshake(client, server); err == nil || !strings.Contains(err.Error(), "its name is unknown") {
			t.Errorf("a client without a name: %v", err)
		}
		client = client.Clone() // as a library does
		client.ServerName = "localhost"
		if err, _ := handshake(client, server); err != nil {
			t.Errorf("a clone with a name: %v", err)
		}
		client.ServerName = "elsewhere"
		if err, _ := handshake(client, server); !refused(err) {
			t.Errorf("another name: %v", err)
		}
	})
}

// What is not published has no substitute: no anchors means no trust, not trust in the host's.
func TestMissingFiles(t *testing.T) {
	ca := newCA(t, "ca")
	all := whole(t, ca, "1")
	open := func(names ...string) *certs.Directory {
		p := newPublished(t)
		p.publish(all.only(names...))
		return p.open()
	}
	peer := plain(t, ca, "peer", ca)

	noAnchor := open("client.pem", "server.pem")
	if err, _ := handshake(noAnchor.ClientConfig("localhost"), peer); !refused(err) {
		t.Errorf("client without ca.crt: %v", err)
	}
	if err, _ := handshake(noAnchor.Set().ClientConfig("localhost"), peer); !refused(err) {
		t.Errorf("client of the set without ca.crt: %v", err)
	}
	if _, err := handshake(peer, noAnchor.ServerConfig()); !refused(err) {
		t.Errorf("server without ca.crt: %v", err)
	}

	anchor := open("ca.crt")
	lenient := peer.Clone()
	lenient.ClientAuth = tls.VerifyClientCertIfGiven
	for name, client := range map[string]*tls.Config{
		"directory": anchor.ClientConfig("localhost"), "set": anchor.Set().ClientConfig("localhost"),
	} {
		if clientErr, serverErr := handshake(client, lenient); clientErr != nil || serverErr != nil {
			t.Errorf("%s: client with ca.crt alone: %v, %v", name, clientErr, serverErr)
		}
		if _, err := handshake(client, peer); err == nil {
			t.Errorf("%s: a server that requires a certificate got none, and went on", name)
		}
	}
	if _, err := handshake(peer, anchor.ServerConfig()); err == nil ||
		!strings.Contains(err.Error(), "no server certificate in ..gen-") {
		t.Errorf("server with ca.crt alone: %v", err)
	}
}

// A session from before a rotation of trust cannot be resumed after it.
func TestResumption(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			first, second := newCA(t, "first"), newCA(t, "second")
			p := newPublished(t)
			p.publish(whole(t, first, "1"))
			d := p.open()
			resumed := func(client, server *tls.Config) (bool, error) {
				cs, clientErr, serverErr := handshakeState(client, server)
				return cs.DidResume, errors.Join(clientErr, serverErr)
			}
			peer := plain(t, first, "peer", first)
			peer.ClientSessionCache, peer.MaxVersion = tls.NewLRUClientSessionCache(8), version
			server := d.ServerConfig()
			// With a client that asks for it, our server never resumes, even if configured to.
			server.SessionTicketsDisabled = false
			for range 2 {
				if did, err := resumed(peer, server); did || err != nil {
					t.Errorf("our server: resumed %v, %v", did, err)
				}
			}
			// With a server that offers it, our client does not resume.
			client := d.ClientConfig("localhost")
			client.ClientSessionCache, client.MaxVersion = tls.NewLRUClientSessionCache(8), version
			for range 2 {
				if did, err := resumed(client, peer); did || err != nil {
					t.Errorf("our client: resumed %v, %v", did, err)
				}
			}
			// If its owner configures it, then not across a rotation of trust.
			client.SessionTicketsDisabled = false
			for i := range 2 {
				if did, err := resumed(client, peer); did != (i == 1) || err != nil {
					t.Errorf("a client that was told to, time %d: resumed %v, %v", i, did, err)
				}
			}
			p.publish(whole(t, second, "2"))
			if _, err, _ := handshakeState(client, peer); !refused(err) {
				t.Errorf("a session with a server that is not trusted any more: %v", err)
			}
			if did, err := resumed(peer, server); did || err == nil {
				t.Errorf("a client that is not trusted any more: resumed %v, %v", did, err)
			}
		})
	}
}

// net/http over loopback, with HTTP/1.1 and HTTP/2, while everything rotates.
func TestHTTP(t *testing.T) {
	p := newPublished(t)
	p.publish(whole(t, newCA(t, "first"), "1"))
	d := p.open()
	listener := must.Get(net.Listen("tcp", "127.0.0.1:0"))(t, "listen on loopback")
	server := &http.Server{
		TLSConfig: d.ServerConfig(),
		ErrorLog:  log.New(t.Output(), "", 0),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, r.Proto+" "+r.TLS.PeerCertificates[0].Subject.CommonName)
		}),
	}
	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(listener, "", "") }()
	t.Cleanup(func() {
		server.Close()
		<-served
	})
	one := &http.Client{Transport: &http.Transport{DialTLSContext: d.DialTLS, DisableKeepAlives: true}}
	two := &http.Client{Transport: &http.Transport{TLSClientConfig: d.ClientConfig("localhost"),
		ForceAttemptHTTP2: true}}
	get := func(client *http.Client, want string) {
		t.Helper()
		defer client.CloseIdleConnections()
		resp, err := client.Get("https://" + listener.Addr().String())
		if err != nil {
			t.Errorf("get as %s: %v", want, err)
			return
		}
		defer resp.Body.Close()
		if got, err := io.ReadAll(resp.Body); string(got) != want || err != nil {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
	get(one, "HTTP/1.1 client-1")
	get(two, "HTTP/2.0 client-1")
	p.publish(whole(t, newCA(t, "second"), "2"))
	get(one, "HTTP/1.1 client-2")
	get(two, "HTTP/2.0 client-2")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.DialTLS(ctx, "tcp", listener.Addr().String()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

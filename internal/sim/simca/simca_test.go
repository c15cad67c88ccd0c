package simca_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net"
	"testing"
	"time"

	"sevagent/internal/must"
	"sevagent/internal/sim/simca"
)

// TestMutualTLS: client and server of one secret, issued by an intermediate, accept each other by its anchor.
func TestMutualTLS(t *testing.T) {
	now := time.Now()
	root := must.Get(simca.New("root", now))(t, "make a root")
	ca := must.Get(root.Intermediate("intermediate", now))(t, "make an intermediate")
	issue := func(name string, usage x509.ExtKeyUsage) simca.Leaf {
		leaf := must.Get(ca.IssueFrom(simca.Template{
			Name: name, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
			DNSNames: []string{name + ".test"}, Usages: []x509.ExtKeyUsage{usage},
		}))(t, "issue a leaf for %s", name)
		return leaf
	}
	client, server := issue("client", x509.ExtKeyUsageClientAuth), issue("server", x509.ExtKeyUsageServerAuth)
	text := must.Get(ca.Secret(client, server))(t, "make the secret")
	var secret map[string]string
	if err := json.Unmarshal([]byte(text), &secret); err != nil || len(secret) != 5 {
		t.Fatalf("%d fields, %v, want 5", len(secret), err)
	}
	anchors := x509.NewCertPool()
	anchors.AppendCertsFromPEM([]byte(secret["ca_cert"]))
	config := func(prefix string) *tls.Config {
		cert, key := []byte(secret[prefix+"_cert"]), []byte(secret[prefix+"_key"])
		pair := must.Get(tls.X509KeyPair(cert, key))(t, "load the pair of the %s", prefix)
		return &tls.Config{
			Certificates: []tls.Certificate{pair}, RootCAs: anchors, ClientCAs: anchors,
			ClientAuth: tls.RequireAndVerifyClientCert, ServerName: "server.test",
		}
	}
	c, s := net.Pipe()
	defer c.Close()
	defer s.Close()
	served := make(chan error, 1)
	go func() { served <- tls.Server(s, config("server")).Handshake() }()
	if err := tls.Client(c, config("client")).Handshake(); err != nil {
		t.Errorf("the client rejects the server: %v", err)
	}
	if err := <-served; err != nil {
		t.Errorf("the server rejects the client: %v", err)
	}
}

// TestClientSecret: a root's own leaf, for a client alone.
func TestClientSecret(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	ca := must.Get(simca.New("root", now))(t, "make a root")
	text := must.Get(ca.ClientSecret("node", now))(t, "make the client's secret")
	var secret map[string]string
	if err := json.Unmarshal([]byte(text), &secret); err != nil || len(secret) != 3 {
		t.Fatalf("%d fields, %v, want 3", len(secret), err)
	}
	cert, key := []byte(secret["client_cert"]), []byte(secret["client_key"])
	pair := must.Get(tls.X509KeyPair(cert, key))(t, "load the client's pair")
	anchors := x509.NewCertPool()
	anchors.AppendCertsFromPEM([]byte(secret["ca_cert"]))
	for at, good := range map[time.Time]bool{
		now: true, now.AddDate(0, 0, 89): true, now.AddDate(0, 0, 91): false, now.Add(-2 * time.Hour): false,
	} {
		_, err := pair.Leaf.Verify(x509.VerifyOptions{
			Roots: anchors, CurrentTime: at, DNSName: "localhost", KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		})
		if (err == nil) != good {
			t.Errorf("at %v: %v", at, err)
		}
	}
}

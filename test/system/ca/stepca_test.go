//go:build system

// Package ca holds the client of ACME against step-ca, an authority that companies run in their own network, which
// issues for clients too and has no authorization beforehand: each order is proved by http-01.
package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sevagent/internal/mtls/issue"
	"sevagent/internal/mtls/issue/acme"
	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/mtls/source"
	"sevagent/internal/must"
	"sevagent/test/lab"
)

func TestStepCA(t *testing.T) {
	root := mtlstest.NewCA(t, "root", nil)
	intermediate := mtlstest.NewCA(t, "intermediate", root)
	dir := t.TempDir()
	file := func(name, text string) string {
		lab.Write(t, filepath.Join(dir, name), text)
		return filepath.Join(dir, name)
	}
	listen, answers := lab.FreeAddress(t), lab.FreeAddress(t)
	provisioner := func(name string, more map[string]any) map[string]any {
		p := map[string]any{
			"type": "ACME", "name": name, "challenges": []string{"http-01"},
			"claims": map[string]any{"defaultTLSCertDuration": "1h"},
		}
		for k, v := range more {
			p[k] = v
		}
		return p
	}
	client := `{"subject": {{ toJson .Subject }}, "sans": {{ toJson .SANs }}, "keyUsage": ["digitalSignature"],
		"extKeyUsage": ["clientAuth"]}`
	config := must.Get(json.Marshal(map[string]any{
		"root": file("root.pem", mtlstest.CertPEM(root.Cert)), "crt": file("ca.pem", mtlstest.CertPEM(intermediate.Cert)),
		"key": file("ca.key", mtlstest.KeyPEM(t, intermediate.Key)), "address": listen, "dnsNames": []string{"127.0.0.1"},
		"logger": map[string]any{"format": "text"},
		"db":     map[string]any{"type": "badgerv2", "dataSource": filepath.Join(dir, "db")},
		"authority": map[string]any{"provisioners": []any{
			provisioner("both", nil),
			provisioner("client", map[string]any{"options": map[string]any{"x509": map[string]any{"template": client}}}),
			provisioner("bound", map[string]any{"requireEAB": true}),
		}},
	}))(t, "encode the configuration of step-ca")
	_, port, _ := net.SplitHostPort(answers)
	step := exec.Command(lab.Pinned("step-ca", "step-ca"), file("ca.json", string(config)),
		"--acme-http-port", port, "--insecure",
		"--resolver", lab.StartResolver(t))
	step.Env = lab.Environment("STEPPATH=" + dir)
	lab.UntilOpen(t, lab.Start(t, "step-ca", step), listen)

	anchors := x509.NewCertPool()
	anchors.AddCert(root.Cert)
	configure := func(provisioner string) acme.Config {
		return acme.Config{
			Directory: "https://" + listen + "/acme/" + provisioner + "/directory", Roots: anchors,
			Challenge: acme.HTTP01, Listen: answers, Anchors: []*x509.Certificate{root.Cert}, Log: mtlstest.Log(t),
		}
	}
	pair := func(c issue.Certificate, key *ecdsa.PrivateKey) tls.Certificate {
		p := tls.Certificate{PrivateKey: key}
		for _, cert := range c.Chain {
			p.Certificate = append(p.Certificate, cert.Raw)
		}
		return p
	}

	// One authority for both, and one that issues for clients alone: each twice, for the second is a renewal.
	both, clients := acme.New(configure("both")), acme.New(configure("client"))
	for range 2 {
		server, serverKey := lab.Order(t, both, anchors, x509.ExtKeyUsageServerAuth, "enclave.cluster.test")
		peer, peerKey := lab.Order(t, clients, anchors, x509.ExtKeyUsageClientAuth,
			"node.cluster.test", "i-0123.cluster.test")
		if u := peer.Chain[0].ExtKeyUsage; len(u) != 1 || u[0] != x509.ExtKeyUsageClientAuth {
			t.Errorf("the client's usages are %v, want that of a client alone", u)
		}
		lab.Order(t, both, anchors, x509.ExtKeyUsageClientAuth, "node.cluster.test")
		if err := handshake(pair(server, serverKey), pair(peer, peerKey), anchors); err != nil {
			t.Errorf("client and server of one authority: %v", err)
		}
	}
	// step-ca has no renewal information: nothing is suggested, which is no failure.
	leaf, _ := lab.Order(t, both, anchors, x509.ExtKeyUsageServerAuth, "enclave.cluster.test")
	start, _, again, err := both.RenewalWindow(t.Context(), leaf.Chain[0])
	if err != nil || !start.IsZero() || again != leaf.Chain[0].NotAfter.Sub(leaf.Chain[0].NotBefore)/10 {
		t.Errorf("renewal from %v (%v), ask again after %v; want no suggestion for a tenth of the life", start, err, again)
	}

	// A key ID that it does not know is an error of the server, as an outage is. The message gives the other reason.
	bound := configure("bound")
	bound.EAB = func(context.Context) (string, []byte, error) { return "unknown", make([]byte, 32), nil }
	r, _ := lab.NewRequest(t, &x509.CertificateRequest{DNSNames: []string{"node.cluster.test"}})
	_, err = acme.New(bound).Order(t.Context(), r)
	if err == nil || source.KindOf(err) != source.Transient || !strings.Contains(err.Error(), "check the key ID of eab") {
		t.Errorf("unknown key ID: %v, want a transient error that says to check it", err)
	}
	bound.EAB = nil
	_, err = acme.New(bound).Order(t.Context(), r)
	if source.KindOf(err) != source.Persistent || !strings.Contains(err.Error(), "set eab") {
		t.Errorf("no external account binding: %v, want a persistent error that says to set it", err)
	}

	// What cannot be proved may be tried again, with this authority. The reason is there at once.
	elsewhere := configure("both")
	elsewhere.Listen = "127.0.0.1:0"
	o := must.Get(acme.New(elsewhere).Order(t.Context(), r))(t, "order")
	for range 2 {
		_, err = lab.Collect(t.Context(), o)
		if err == nil || source.KindOf(err) != source.Transient || errors.Is(err, issue.ErrPending) ||
			errors.Is(err, issue.ErrLost) || !strings.Contains(err.Error(), "by http-01: The server could not connect") {
			t.Errorf("nothing answers: %v, want a transient error with the authority's reason", err)
		}
	}
}

// handshake connects a client and a server that verify each other.
func handshake(server, client tls.Certificate, anchors *x509.CertPool) error {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s := tls.Server(a, &tls.Config{
		Certificates: []tls.Certificate{server}, ClientCAs: anchors, ClientAuth: tls.RequireAndVerifyClientCert,
	})
	served := make(chan error, 1)
	go func() { served <- s.HandshakeContext(ctx) }()
	err := tls.Client(b, &tls.Config{
		Certificates: []tls.Certificate{client}, RootCAs: anchors, ServerName: "enclave.cluster.test",
		SessionTicketsDisabled: true, MaxVersion: tls.VersionTLS12, // in which both have the last word before it ends
	}).HandshakeContext(ctx)
	return errors.Join(err, <-served)
}

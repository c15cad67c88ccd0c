package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// born gives the node another configuration, in which it makes its key by itself. A peer then verifies the certificate
// that it is shown, with the evidence in that.
func (d *demo) born(ctx context.Context) error {
	config := fmt.Sprintf(`mtls:
  secrets: []
  issue:
  - name: node
    from: acm-pca
    gives: [client]
    ca: %s
    dns: ["{private_dns}"]
    evidence: extension
`, d.authority.ARN())
	file := filepath.Join(d.configDir(), "conf.d/60-issue.yaml")
	fmt.Fprintf(d.out, "   %s:\n", file)
	d.printIndented([]byte(config))
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return err
	}
	if err := d.agent.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if err := d.agent.Wait(); err != nil {
		return err
	}
	if err := d.startAgent(ctx); err != nil {
		return err
	}
	if err := d.waitFor(ctx, d.instance.ID); err != nil {
		return err
	}
	fmt.Fprintln(d.out, "   The key was made in the agent's memory, and only the published files have it. Renewed twice:")
	keys := make(map[string]bool)
	for i := range 3 {
		if i > 0 {
			output, err := d.command(ctx, "sevagent", "refresh", "--renew", "node", "--socket", d.socket()).CombinedOutput()
			if err != nil {
				d.printIndented(output)
				return err
			}
		}
		cert, err := d.client()
		if err != nil {
			return err
		}
		key, err := os.ReadFile(filepath.Join(d.mtls, "client.key"))
		if err != nil {
			return err
		}
		keys[string(key)] = true
		fmt.Fprintf(d.out, "     %s, %s, serial %x\n", cert.Subject, strings.Join(cert.DNSNames, ", "), cert.SerialNumber)
	}
	if len(keys) != 3 {
		return fmt.Errorf("%d keys for 3 certificates", len(keys))
	}
	if _, err := d.runCommand(ctx, "sevagent", "status", "--socket", d.socket()); err != nil {
		return err
	}
	return d.meet(ctx)
}

// waitFor waits until the certificate of a name is published.
func (d *demo) waitFor(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		if cert, err := d.client(); err == nil && cert.Subject.CommonName == name {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no certificate of %s was published", name)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// meet has a container of the node connect to a peer by mTLS, and the peer verify what it was shown.
func (d *demo) meet(ctx context.Context) error {
	shown, err := d.handshake(ctx)
	if err != nil {
		return fmt.Errorf("connect to a peer: %w", err)
	}
	file := filepath.Join(d.dir, "peer.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: shown.Raw})
	if err := os.WriteFile(file, text, 0o644); err != nil {
		return err
	}
	fmt.Fprintln(d.out, "   A peer has verified its chain in a TLS handshake. Its evidence, from the same certificate:")
	policy := filepath.Join(d.dir, "sim/policy.yaml")
	_, err = d.runCommand(ctx, "sevctl", "evidence", "verify", file, "--any-nonce", "--policy", policy,
		"--allow-custom-roots", "--region", d.instance.Region)
	return err
}

// handshake returns the certificate that a TLS server is shown by the holder of client.pem.
func (d *demo) handshake(ctx context.Context) (*x509.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(d.mtls, "client.crt"), filepath.Join(d.mtls, "client.key"))
	if err != nil {
		return nil, err
	}
	anchors, err := os.ReadFile(filepath.Join(d.mtls, "ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(anchors)
	leaf, err := d.ca.Issue("peer", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	if err != nil {
		return nil, err
	}
	server, err := tls.X509KeyPair([]byte(leaf.Cert), []byte(leaf.Key))
	if err != nil {
		return nil, err
	}
	near, far := net.Pipe()
	defer near.Close()
	peer := tls.Server(far, &tls.Config{
		Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots,
	})
	done := make(chan error, 1)
	go func() {
		defer far.Close()
		done <- peer.HandshakeContext(ctx)
	}()
	node := tls.Client(near, &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, ServerName: "localhost"})
	if err := errors.Join(node.HandshakeContext(ctx), <-done); err != nil {
		return nil, err
	}
	return peer.ConnectionState().PeerCertificates[0], nil
}

package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
)

// DialTLS connects to the server named in addr, with a certificate and trust anchors of one generation, verified as
// crypto/tls always does. It fits http.Transport.DialTLSContext, with HTTP/1.1.
func (d *Directory) DialTLS(ctx context.Context, network, addr string) (net.Conn, error) {
	return (&tls.Dialer{Config: d.Set().ClientConfig("")}).DialContext(ctx, network, addr)
}

// ClientConfig returns the configuration for a connection that is made now: an ordinary one, which does not follow
// later rotations. An empty name is for dialers that set one, as tls.Dialer and http.Transport do.
func (s *Set) ClientConfig(serverName string) *tls.Config {
	config := clientConfig(serverName, func() *Set { return s })
	config.RootCAs = s.Roots
	return config
}

// ClientConfig returns a configuration that follows rotations, for libraries that ask for one and keep it: gRPC,
// database drivers, http.Transport with HTTP/2. The server must prove serverName. If that is empty, it is the name that
// the library sets in its copy; this cannot be an IP address, which crypto/tls does not pass on: name it here.
//
// Its RootCAs could not follow. So InsecureSkipVerify is set, which turns off the verification by crypto/tls, and
// VerifyConnection does the same with the newest trust anchors, in every handshake. Do not replace VerifyConnection; to
// verify more, call it first. A rotation during a handshake may give it the anchors of one generation and the
// certificate of the next; in DialTLS it cannot.
func (d *Directory) ClientConfig(serverName string) *tls.Config {
	config := clientConfig(serverName, d.Set)
	config.InsecureSkipVerify = true
	config.VerifyConnection = func(cs tls.ConnectionState) error {
		name := serverName
		if name == "" {
			name = cs.ServerName
		}
		return d.Set().verifyServer(cs.PeerCertificates, name)
	}
	return config
}

// clientConfig holds what both kinds have in common. Sessions are not resumed, even with a ClientSessionCache: a
// resumed one relies on what an earlier handshake verified, possibly with trust anchors that are gone.
func clientConfig(serverName string, set func() *Set) *tls.Config {
	return &tls.Config{
		ServerName:             serverName,
		MinVersion:             tls.VersionTLS12,
		SessionTicketsDisabled: true,
		// The server's list of CAs is a hint, which Certificates would obey: during a rotation of the CA the server
		// should report why it rejects our certificate, rather than that there was none.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if c := set().Client; c != nil {
				return c, nil
			}
			return new(tls.Certificate), nil // send none; the server decides
		},
	}
}

// verifyServer does what crypto/tls does without InsecureSkipVerify.
func (s *Set) verifyServer(chain []*x509.Certificate, name string) error {
	switch {
	case name == "":
		return errors.New("verify the server's certificate: its name is unknown; give ClientConfig one")
	case len(chain) == 0:
		return errors.New("verify the server's certificate: there is none")
	}
	// KeyUsages is left out, which means server authentication.
	opts := x509.VerifyOptions{Roots: s.Roots, DNSName: name, Intermediates: x509.NewCertPool()}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := chain[0].Verify(opts); err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: chain, Err: err}
	}
	return nil
}

// ServerConfig returns a configuration that follows rotations: each connection gets the server certificate and, for
// clients, which must have a certificate, the trust anchors of one generation.
//
// Before its first use it may be changed: NextProtos, a stricter MinVersion, VerifyConnection to check who the client
// is, another ClientAuth. http.Server finds what it needs for HTTP/2. Make one for each server.
//
// Sessions are never resumed. A ticket would vouch for a client that was verified with trust anchors that are gone, and
// a full handshake costs about a millisecond.
func (d *Directory) ServerConfig() *tls.Config {
	config := &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		set := d.Set()
		if set.Server == nil {
			return nil, fmt.Errorf("there is no server certificate in %s of %s", set.Generation, d.path)
		}
		c := config.Clone()
		c.GetConfigForClient, c.GetCertificate = nil, nil
		c.Certificates, c.ClientCAs = []tls.Certificate{*set.Server}, set.Roots
		c.SessionTicketsDisabled = true
		return c, nil
	}
	return config
}

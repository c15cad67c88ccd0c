package probe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"sevagent/client"
)

// probe makes one handshake with an endpoint. It sets the fields that one probe can know.
func (p *Prober) probe(ctx context.Context, endpoint string) client.Endpoint {
	start := time.Now()
	r := client.Endpoint{Endpoint: endpoint, LastProbe: start.UTC()}
	cert, roots, err := p.material()
	if err == nil && (cert == nil || roots == nil) { // no roots would mean the system's
		err = errors.New("nothing is published yet")
	}
	if err != nil {
		fail(&r, client.ProbeNoMaterial, err)
		return r
	}

	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	conn, err := p.dial(ctx, "tcp", endpoint)
	if err != nil {
		fail(&r, dialCode(err), err)
		return r
	}
	defer conn.Close()
	r.ConnectSeconds = time.Since(start).Seconds()
	r.Reachable, r.Address = true, conn.RemoteAddr().String()
	p.handshake(ctx, conn, &r, cert, roots)
	return r
}

func (p *Prober) handshake(ctx context.Context, conn net.Conn, r *client.Endpoint, cert *tls.Certificate,
	roots *x509.CertPool) {
	host, _, err := net.SplitHostPort(r.Endpoint)
	if err != nil {
		fail(r, client.ProbeUnreachable, err)
		return
	}
	var verdict client.ProbeResult // on the server's certificate, if it is bad
	var asked bool                 // the server requested our certificate
	c := tls.Client(conn, &tls.Config{
		ServerName:         host,
		InsecureSkipVerify: true, // VerifyConnection verifies, after it has recorded the server's certificate
		VerifyConnection: func(s tls.ConnectionState) (err error) {
			r.TLSVersion, r.Server = tls.VersionName(s.Version), describe(s.PeerCertificates[0])
			verdict, err = verify(s.PeerCertificates, roots, host)
			return err
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			asked = true
			return cert, nil // even if the server names other issuers: its own response says more than our silence
		},
	})
	defer c.Close()

	start := time.Now()
	err = c.HandshakeContext(ctx)
	if took := time.Since(start); err == nil {
		r.HandshakeSeconds = took.Seconds()
		if !asked {
			fail(r, client.ProbeNotRequested,
				errors.New("the server does not ask for a client certificate: anyone may connect"))
			return
		}
		// The verdict takes a round trip, as the handshake did.
		err = listen(ctx, c, p.linger+took)
	}
	switch op, _ := errors.AsType[*net.OpError](err); {
	case err == nil:
		r.Result = client.ProbeOK
	case verdict != "":
		fail(r, verdict, err)
	case isTimeout(err):
		fail(r, client.ProbeTimeout, fmt.Errorf("the handshake did not end within %v", p.timeout))
	case op != nil && op.Op == "remote error": // crypto/tls marks a received alert in this way
		when := "before it had our certificate"
		if asked {
			when = "to our certificate"
		}
		fail(r, client.ProbeAlert, fmt.Errorf("the server answered %s with the alert %q", when,
			strings.TrimPrefix(op.Err.Error(), "tls: ")))
	case asked && hungUp(err):
		fail(r, client.ProbeClosed,
			fmt.Errorf("the server had our certificate and closed the connection with no alert: %w", err))
	case hungUp(err):
		fail(r, client.ProbeProtocol, fmt.Errorf("the server closed the connection: %w", err))
	default:
		fail(r, client.ProbeProtocol, err)
	}
}

// listen waits for the server's verdict on our certificate. Both silence and data count as acceptance.
func listen(ctx context.Context, c *tls.Conn, wait time.Duration) error {
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if n, err := c.Read(make([]byte, 1)); n == 0 && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return nil
}

// verify checks the server's chain, and then its name: who issued a certificate matters more than whose it is.
func verify(chain []*x509.Certificate, roots *x509.CertPool, host string) (client.ProbeResult, error) {
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates})
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return client.ProbeExpired, err
	}
	if err != nil {
		return client.ProbeUntrusted, err
	}
	if err := chain[0].VerifyHostname(host); err != nil {
		return client.ProbeNameMismatch, err
	}
	return "", nil
}

func fail(r *client.Endpoint, code client.ProbeResult, err error) {
	r.Result, r.Reason = code, clip(strings.TrimPrefix(strings.TrimPrefix(err.Error(), "tls: "), "x509: "))
}

func dialCode(err error) client.ProbeResult {
	_, dns := errors.AsType[*net.DNSError](err)
	switch {
	case dns:
		return client.ProbeDNS
	case errors.Is(err, syscall.ECONNREFUSED):
		return client.ProbeRefused
	case isTimeout(err):
		return client.ProbeTimeout
	}
	return client.ProbeUnreachable
}

func isTimeout(err error) bool {
	t, ok := errors.AsType[net.Error](err) // context.DeadlineExceeded is one
	return ok && t.Timeout()
}

func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

package program

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// shutdownTimeout is how long requests have to finish when the program is stopped.
const shutdownTimeout = 5 * time.Second

// LoadPair reads a leaf with its intermediates, and its private key, from PEM files. They may be the same file.
func LoadPair(cert, key string) (tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("load a certificate: %w", err)
	}
	return pair, nil
}

// LoadAnchors reads trust anchors from a PEM file. A change of the CA needs two of them, the old CA and the new one.
func LoadAnchors(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("load trust anchors: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("load trust anchors: %s contains no certificate", file)
	}
	return pool, nil
}

// ServerFiles are the PEM files of a server that accepts clients of one CA only.
type ServerFiles struct{ cert, key, ca string }

// Flags declares the flags that name the files.
func (s *ServerFiles) Flags(f *Flags) {
	f.StringVar(&s.cert, "cert", "", "PEM file with this server's leaf and intermediates")
	f.StringVar(&s.key, "key", "", "PEM file with the leaf's private key")
	f.StringVar(&s.ca, "ca", "", "PEM file with the trust anchors of clients")
}

// Load makes a configuration that requires a certificate of every client. It accepts TLS 1.3 only, whose exporter is
// unique to a connection, and issues no session tickets: a resumed connection would rely on the trust anchors of an
// earlier one, and would not prove possession of the key.
func (s *ServerFiles) Load() (*tls.Config, error) {
	pair, err := LoadPair(s.cert, s.key)
	if err != nil {
		return nil, err
	}
	anchors, err := LoadAnchors(s.ca)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: anchors, SessionTicketsDisabled: true,
	}, nil
}

// Serve serves on address until ctx ends, and then lets requests finish. At SIGHUP it calls reload, if that is not nil,
// which has to leave everything unchanged if it fails. The server's TLSConfig has to follow what is current.
func Serve(
	ctx context.Context, server *http.Server, address string, reload func() error, stdout, stderr io.Writer,
) error {
	hup := make(chan os.Signal, 1)
	if reload != nil {
		signal.Notify(hup, syscall.SIGHUP)
		defer signal.Stop(hup)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	fmt.Fprintf(stdout, "listening on %s\n", listener.Addr())

	server.ErrorLog = log.New(stderr, "", 0) // failed handshakes, for example
	server.ReadHeaderTimeout, server.ReadTimeout = 5*time.Second, 30*time.Second
	server.WriteTimeout, server.IdleTimeout = time.Minute, 2*time.Minute
	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(listener, "", "") }()
	for {
		select {
		case <-hup:
			if err := reload(); err != nil {
				fmt.Fprintf(stderr, "reload: %v; the old certificates stay in use\n", err)
			} else {
				fmt.Fprintln(stdout, "reloaded")
			}
		case err := <-served:
			return fmt.Errorf("serve: %w", err)
		case <-ctx.Done():
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
			defer cancel()
			err := server.Shutdown(ctx)
			if served := <-served; !errors.Is(served, http.ErrServerClosed) {
				err = errors.Join(err, served)
			}
			return err
		}
	}
}

// Package enclave holds what the example programs that stand in for a Nitro Enclave have in common: certificates from
// files, read at the start and again at SIGHUP, and a server that goes on serving meanwhile. An enclave has no agent
// and no published directory; how the files get into it, in its image or encrypted for a key that KMS releases only to
// it, is out of scope here.
package enclave

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

// Serve serves on address until ctx ends, and then lets requests finish. At SIGHUP it calls reload, which has to leave
// everything unchanged if it fails. The server's TLSConfig has to return the current state from GetConfigForClient.
func Serve(
	ctx context.Context, server *http.Server, address string, reload func() error, stdout, stderr io.Writer,
) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
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

// Package enclave holds what the example programs that stand for a Nitro Enclave have in common: certificates from
// files, read at the start and again at SIGHUP, and a server that goes on meanwhile. An enclave has no agent and no
// published directory; how the files get into it, inside its image or through a key that KMS releases to it alone, is
// its own business.
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

// shutdownTimeout is what requests have to finish when the program is told to stop.
const shutdownTimeout = 5 * time.Second

// LoadPair reads a leaf with its intermediates, and its private key, from PEM files. They may be the same file.
func LoadPair(cert, key string) (tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("load a certificate: %w", err)
	}
	return pair, nil
}

// LoadAnchors reads trust anchors from a PEM file. Two of them, the old CA and the new one, is what a change of the CA needs.
func LoadAnchors(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("load trust anchors: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("load trust anchors: %s has no certificate", file)
	}
	return pool, nil
}

// Serve serves on address until ctx ends, and then lets requests finish. At SIGHUP it calls reload, whose error leaves
// everything as it was. The server's TLSConfig has to tell what is current by GetConfigForClient.
func Serve(ctx context.Context, server *http.Server, address string, reload func() error, stdout, stderr io.Writer) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	fmt.Fprintf(stdout, "listening on %s\n", listener.Addr())

	server.ErrorLog = log.New(stderr, "", 0) // handshakes that fail, for one
	server.ReadHeaderTimeout, server.ReadTimeout = 5*time.Second, 30*time.Second
	server.WriteTimeout, server.IdleTimeout = time.Minute, 2*time.Minute
	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(listener, "", "") }()
	for {
		select {
		case <-hup:
			if err := reload(); err != nil {
				fmt.Fprintf(stderr, "reload: %v; the certificates from before stay\n", err)
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

// Command server stands in for a service in a Nitro Enclave: it requires client certificates of a CA, and greets each
// caller by the name in its certificate. It reads its files again at SIGHUP. docs/patterns.md explains it.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"

	"sevagent/examples/enclave-client/enclave"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(exitStatus(err))
	}
}

// usageError is wrong usage or configuration.
type usageError struct{ error }

func exitStatus(err error) int {
	if _, ok := errors.AsType[usageError](err); ok {
		return 2
	}
	return 1
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var files files
	f := flag.NewFlagSet("server", flag.ContinueOnError)
	f.SetOutput(io.Discard) // main reports what is wrong
	listen := f.String("listen", "127.0.0.1:8443", "address to listen on")
	f.StringVar(&files.cert, "cert", "", "PEM file with this server's leaf and intermediates")
	f.StringVar(&files.key, "key", "", "PEM file with the leaf's private key")
	f.StringVar(&files.ca, "ca", "", "PEM file with the trust anchors of clients")
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		f.SetOutput(stdout)
		f.PrintDefaults()
		return nil
	} else if err != nil {
		return usageError{err}
	}
	if f.NArg() > 0 {
		return usageError{fmt.Errorf("%q is not a flag", f.Arg(0))}
	}

	var current atomic.Pointer[tls.Config] // leaf, key and trust anchors change together
	reload := func() error {
		config, err := files.load()
		if err == nil {
			current.Store(config)
		}
		return err
	}
	if err := reload(); err != nil {
		return usageError{err}
	}
	server := &http.Server{
		Handler: http.HandlerFunc(hello),
		TLSConfig: &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return current.Load(), nil
		}},
	}
	return enclave.Serve(ctx, server, *listen, reload, stdout, stderr)
}

type files struct{ cert, key, ca string }

// load makes a configuration that admits nobody without a certificate. It issues no session tickets: a resumed
// connection would rely on the trust anchors of an earlier one.
func (f files) load() (*tls.Config, error) {
	pair, err := enclave.LoadPair(f.cert, f.key)
	if err != nil {
		return nil, err
	}
	anchors, err := enclave.LoadAnchors(f.ca)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: anchors, SessionTicketsDisabled: true,
	}, nil
}

// hello is the service. The handshake has proved who the caller is.
func hello(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "hello %s\n", r.TLS.PeerCertificates[0].Subject)
}

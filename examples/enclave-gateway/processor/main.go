// Command processor is an example of an ECS task that serves a gateway in a Nitro Enclave: it processes what the
// gateway has decrypted, and admits nobody else. docs/patterns.md explains it.
package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"sevagent/client/certs"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "processor:", err)
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

const (
	maxBody         = 1 << 20 // bytes of a request
	shutdownTimeout = 5 * time.Second
)

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var allow []string
	f := flag.NewFlagSet("processor", flag.ContinueOnError)
	f.SetOutput(io.Discard) // main reports what is wrong
	listen := f.String("listen", ":8443", "address to listen on")
	mtlsDir := f.String("mtls-dir", certs.DefaultDir, "the published directory")
	const usage = "a DNS name or URI that a caller's certificate has to have; repeatable; default: any of the CA"
	f.Func("allow", usage, func(name string) error {
		if name == "" {
			return errors.New("empty") // an unset variable must not open the door
		}
		allow = append(allow, name)
		return nil
	})
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
	dir, err := certs.Open(*mtlsDir)
	if err != nil {
		return err
	}
	if dir.Set().Server == nil {
		return fmt.Errorf("%s has no server certificate; put server_cert and server_key into the secret", *mtlsDir)
	}
	config := dir.ServerConfig() // follows rotations, and requires a client certificate
	config.MinVersion = tls.VersionTLS13
	if allow != nil {
		config.VerifyConnection = func(cs tls.ConnectionState) error { return allowed(cs.PeerCertificates[0], allow) }
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	fmt.Fprintf(stdout, "listening on %s\n", listener.Addr())

	// There is one path, and no health check without a certificate: a caller without one gets nothing.
	p := processor{log: log.New(stdout, "", 0)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /{$}", p.process)
	server := &http.Server{
		Handler: mux, TLSConfig: config, ErrorLog: log.New(stderr, "", 0), // failed handshakes, for example
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second,
		WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute,
	}
	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(listener, "", "") }()
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		err := server.Shutdown(ctx)
		<-served
		return err
	}
}

// allowed returns an error if leaf, a verified certificate, has none of the names of admitted callers.
func allowed(leaf *x509.Certificate, names []string) error {
	for _, name := range leaf.DNSNames {
		if slices.Contains(names, name) {
			return nil
		}
	}
	for _, uri := range leaf.URIs {
		if slices.Contains(names, uri.String()) {
			return nil
		}
	}
	return fmt.Errorf("the caller %s has none of the names %q", leaf.Subject, names)
}

type processor struct{ log *log.Logger }

// result describes a body. The body itself is neither kept nor logged.
type result struct {
	SHA256 string `json:"sha256"`
	Length int    `json:"length"`
}

func (p processor) process(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		http.Error(w, "the body is too large", http.StatusRequestEntityTooLarge)
		return
	} else if err != nil {
		return // the gateway has gone
	}
	if !json.Valid(body) {
		http.Error(w, "the body is not JSON", http.StatusBadRequest)
		return
	}
	p.log.Printf("%s: %d bytes", r.TLS.PeerCertificates[0].Subject, len(body))
	sum := sha256.Sum256(body)
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(result{SHA256: hex.EncodeToString(sum[:]), Length: len(body)})
}

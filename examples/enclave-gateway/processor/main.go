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
	"fmt"
	"io"
	"log"
	"net/http"
	"slices"

	"sevagent/client/certs"
	"sevagent/examples/program"
)

func main() { program.Main("processor", run) }

const maxBody = 1 << 20 // bytes of a request

func run(ctx context.Context, f *program.Flags, stdout, stderr io.Writer) error {
	var allow []string
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
	if err := f.Parse(); err != nil {
		return err
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
	// There is one path, and no health check without a certificate: a caller without one gets nothing.
	p := processor{log: log.New(stdout, "", 0)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /{$}", p.process)
	server := &http.Server{Handler: mux, TLSConfig: config}
	return program.Serve(ctx, server, *listen, nil, stdout, stderr)
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

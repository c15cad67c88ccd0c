// Command server stands in for a service in a Nitro Enclave: it requires client certificates of a CA, and greets each
// caller by the name in its certificate. It reads its files again at SIGHUP. docs/patterns.md explains it.
package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"

	"sevagent/examples/program"
)

func main() { program.Main("server", run) }

func run(ctx context.Context, f *program.Flags, stdout, stderr io.Writer) error {
	var files program.ServerFiles
	listen := f.String("listen", "127.0.0.1:8443", "address to listen on")
	files.Flags(f)
	if err := f.Parse(); err != nil {
		return err
	}

	var current atomic.Pointer[tls.Config] // leaf, key and trust anchors change together
	reload := func() error {
		config, err := files.Load()
		if err == nil {
			current.Store(config)
		}
		return err
	}
	if err := reload(); err != nil {
		return program.Usage(err)
	}
	server := &http.Server{
		Handler: http.HandlerFunc(hello),
		TLSConfig: &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return current.Load(), nil
		}},
	}
	return program.Serve(ctx, server, *listen, reload, stdout, stderr)
}

// hello is the service. The handshake has proved who the caller is.
func hello(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "hello %s\n", r.TLS.PeerCertificates[0].Subject)
}

// Command gateway stands in for a gateway in a Nitro Enclave: it terminates TLS connections from outside, passes each
// body to the processor, an ECS task, over mutual TLS, and returns the result. It reads its files again at SIGHUP.
// docs/patterns.md explains it.
package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"sevagent/examples/program"
)

func main() { program.Main("gateway", run) }

const (
	maxBody        = 1 << 20 // bytes of a request, and of a result
	processTimeout = 30 * time.Second
)

func run(ctx context.Context, f *program.Flags, stdout, stderr io.Writer) error {
	var o options
	listen := f.String("listen", ":443", "address to listen on for the outside")
	f.StringVar(&o.cert, "cert", "", "PEM file with the leaf, and intermediates, that the outside sees")
	f.StringVar(&o.key, "key", "", "PEM file with its private key")
	f.StringVar(&o.processor, "processor", "", "host:port of the processor")
	f.StringVar(&o.name, "processor-name", "", "name in the processor's certificate (default: the host of --processor)")
	f.StringVar(&o.clientCert, "client-cert", "", "PEM file with the leaf that the processor sees (default: --cert)")
	f.StringVar(&o.clientKey, "client-key", "", "PEM file with its private key (default: --key)")
	f.StringVar(&o.ca, "ca", "", "PEM file with the trust anchors of the processor")
	if err := f.Parse(); err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(o.processor)
	if err != nil {
		return program.Usage(errors.New("want --processor host:port"))
	}
	o.name, o.clientCert, o.clientKey = cmp.Or(o.name, host), cmp.Or(o.clientCert, o.cert), cmp.Or(o.clientKey, o.key)

	g := &gateway{url: "https://" + o.processor + "/", log: log.New(stderr, "", 0)}
	reload := func() error {
		next, err := o.load()
		if err != nil {
			return err
		}
		if old := g.current.Swap(next); old != nil {
			old.processor.CloseIdleConnections() // those in use close 30 s after their last request
		}
		return nil
	}
	if err := reload(); err != nil {
		return program.Usage(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /{$}", g.forward)
	server := &http.Server{
		Handler: mux,
		TLSConfig: &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return g.current.Load().outside, nil
		}},
	}
	return program.Serve(ctx, server, *listen, reload, stdout, stderr)
}

// options are the flags.
type options struct {
	cert, key, processor, name, clientCert, clientKey, ca string
}

// identity is made from one state of the files. It never changes.
type identity struct {
	outside   *tls.Config
	processor *http.Client // with its own connections, so that no later identity uses them
}

func (o *options) load() (*identity, error) {
	outer, err := program.LoadPair(o.cert, o.key)
	if err != nil {
		return nil, err
	}
	inner, err := program.LoadPair(o.clientCert, o.clientKey)
	if err != nil {
		return nil, err
	}
	anchors, err := program.LoadAnchors(o.ca)
	if err != nil {
		return nil, err
	}
	toProcessor := &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: anchors, ServerName: o.name,
		// Not Certificates, which would withhold ours if the processor's list of CAs lacks its issuer: let the
		// processor report why it refuses it.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &inner, nil },
	}
	return &identity{
		outside: &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{outer}},
		// Keeps connections for a shorter time than the processor does, or a request could meet one that is closing.
		processor: &http.Client{
			Timeout:   processTimeout,
			Transport: &http.Transport{TLSClientConfig: toProcessor, IdleConnTimeout: 30 * time.Second},
			// No redirects: the body goes nowhere else.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

type gateway struct {
	url     string
	log     *log.Logger
	current atomic.Pointer[identity]
}

// forward passes the body on and returns the result. A real gateway would decrypt and encrypt the content here.
func (g *gateway) forward(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		http.Error(w, "the body is too large", http.StatusRequestEntityTooLarge)
		return
	} else if err != nil {
		return // the caller has gone
	}
	status, contentType, reply, err := g.process(r.Context(), body)
	if err != nil {
		g.log.Print(err) // callers from outside must not see what went wrong inside
		http.Error(w, "the processor does not answer", http.StatusBadGateway)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	w.Write(reply)
}

// process asks the processor.
func (g *gateway) process(ctx context.Context, body []byte) (status int, contentType string, reply []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, g.url, bytes.NewReader(body))
	if err != nil {
		return 0, "", nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := g.current.Load().processor.Do(req)
	if err != nil {
		return 0, "", nil, fmt.Errorf("call the processor: %w", err)
	}
	defer resp.Body.Close()
	reply, err = io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err == nil && len(reply) > maxBody {
		err = fmt.Errorf("more than %d bytes", maxBody)
	}
	if err != nil {
		return 0, "", nil, fmt.Errorf("read the processor's reply: %w", err)
	}
	return resp.StatusCode, resp.Header.Get("Content-Type"), reply, nil
}

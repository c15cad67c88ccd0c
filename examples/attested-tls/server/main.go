// Command server is an example of a relying party, which may run in a Nitro Enclave: a TLS server that accepts a client
// only with evidence that the key of the certificate presented in this very connection is published on a genuine
// SEV-SNP guest. docs/attested-tls.md explains it.
package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	attestedtls "sevagent/examples/attested-tls"
	"sevagent/examples/program"
	"sevagent/verify"
)

func main() { program.Main("server", run) }

// options are the flags.
type options struct {
	listen, policy, region string
	files                  program.ServerFiles
	allowCustomRoots, once bool
	certificates           bool
	simulate               string
}

func run(ctx context.Context, f *program.Flags, stdout, _ io.Writer) error {
	var o options
	f.StringVar(&o.listen, "listen", "127.0.0.1:8443", "address to listen on")
	o.files.Flags(f)
	f.StringVar(&o.policy, "policy", "aws-shared",
		"a built-in policy (aws-shared, aws-dedicated) or a policy file")
	f.BoolVar(&o.allowCustomRoots, "allow-custom-roots", false,
		"accept a policy with roots of its own, for simulators: such evidence proves nothing about hardware")
	f.StringVar(&o.region, "region", "", "the EC2 region that evidence must come from")
	f.BoolVar(&o.certificates, "certificate-evidence", false,
		"rely on the evidence in a client's certificate, if it carries any, which is as old as its key")
	f.StringVar(&o.simulate, "simulate-enclave", "",
		"stand in for an enclave: write root.pem and measurements.json of a simulated one to this directory")
	f.BoolVar(&o.once, "once", false, "serve one connection, and exit with status 0 if the client was accepted")
	if err := f.Parse(); err != nil {
		return err
	}
	verifier, err := o.verifier()
	if err != nil {
		return program.Usage(err)
	}
	tlsConfig, err := o.files.Load()
	if err != nil {
		return program.Usage(err)
	}
	s := &server{tlsConfig: tlsConfig, verifier: verifier, certificates: o.certificates, out: stdout}
	if o.simulate != "" {
		if s.enclave, err = simulateEnclave(o.simulate); err != nil {
			return program.Usage(err)
		}
	}
	l, err := net.Listen("tcp", o.listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	fmt.Fprintf(stdout, "listening on %s\n", l.Addr())
	return s.serve(ctx, l, o.once)
}

// verifier returns a verifier for the flags. --region is required, unless the policy does not compare regions.
func (o *options) verifier() (*verify.Verifier, error) {
	policy, err := verify.BuiltinPolicy(o.policy)
	if strings.ContainsAny(o.policy, "/.") {
		var file []byte
		if file, err = os.ReadFile(o.policy); err == nil {
			policy, err = verify.ParsePolicy(o.policy, file, o.readRoots)
		}
	}
	if err != nil {
		return nil, err
	}
	return verify.New(verify.Config{Policy: policy, Region: o.region, AllowCustomRoots: o.allowCustomRoots})
}

// readRoots reads the roots that a policy names, if they are accepted.
func (o *options) readRoots(path string) ([]byte, error) {
	if !o.allowCustomRoots {
		return nil, errors.New("they are not AMD's; for a simulator, give --allow-custom-roots")
	}
	return os.ReadFile(path)
}

// maxConnections bounds how many clients are served at a time. Others wait in the kernel's backlog.
const maxConnections = 64

type server struct {
	tlsConfig    *tls.Config
	verifier     *verify.Verifier
	certificates bool    // rely on their evidence
	enclave      enclave // nil: it shows no document

	mu  sync.Mutex // guards out
	out io.Writer
}

// serve serves until ctx ends or, with once, one connection. It closes l, and waits for the clients that it accepted.
func (s *server) serve(ctx context.Context, l net.Listener, once bool) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	var clients sync.WaitGroup
	defer clients.Wait()
	free := make(chan struct{}, maxConnections)
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept a connection: %w", err)
		}
		if once {
			return s.handle(ctx, conn)
		}
		free <- struct{}{}
		clients.Go(func() {
			s.handle(ctx, conn)
			<-free
		})
	}
}

// handle serves one client, and reports the outcome to it and on the output.
func (s *server) handle(ctx context.Context, raw net.Conn) error {
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(attestedtls.Timeout))
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	conn := tls.Server(raw, s.tlsConfig)
	leaf, err := s.attest(ctx, conn)
	name := "?"
	if leaf != nil {
		name = leaf.Subject.String()
	}
	answer := attestedtls.Accepted
	if err != nil {
		answer = err.Error()
	}
	s.mu.Lock()
	fmt.Fprintf(s.out, "%s %q: %s\n", raw.RemoteAddr(), name, answer)
	s.mu.Unlock()
	if leaf == nil { // there is no connection to answer on
		return err
	}
	if writeErr := attestedtls.WriteMessage(conn, []byte(answer)); err == nil && writeErr != nil {
		err = fmt.Errorf("answer: %w", writeErr)
	}
	// A real server would serve the client now, in this connection. The next one has to be attested again.
	conn.Close()
	return err
}

// attest performs the handshake and the exchange. The leaf is nil if the handshake failed.
func (s *server) attest(ctx context.Context, conn *tls.Conn) (*x509.Certificate, error) {
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	state := conn.ConnectionState()
	leaf := state.PeerCertificates[0]
	if err := s.showEnclave(conn); err != nil {
		return leaf, err
	}
	if s.certificates {
		if found, err := verifyCertificate(s.verifier, leaf); found {
			return leaf, errors.Join(err, attestedtls.WriteMessage(conn, nil))
		}
	}
	random := make([]byte, attestedtls.NonceSize)
	rand.Read(random) // does not fail
	nonce, err := attestedtls.Nonce(state, random)
	if err != nil {
		return leaf, err
	}
	if err := attestedtls.WriteMessage(conn, random); err != nil {
		return leaf, fmt.Errorf("send the nonce: %w", err)
	}
	doc, err := attestedtls.ReadMessage(conn)
	if err != nil {
		return leaf, err
	}
	return leaf, verifyPeer(s.verifier, doc, nonce, leaf)
}

// Command client is an example of a container that proves to a relying party, within one TLS connection, that the
// connection's key is published on an SEV-SNP guest. docs/attested-tls.md explains it.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"sevagent/client"
	attestedtls "sevagent/examples/attested-tls"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
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

func run(ctx context.Context, args []string, stdout io.Writer) error {
	f := flag.NewFlagSet("client", flag.ContinueOnError)
	f.SetOutput(io.Discard) // main reports what is wrong
	connect := f.String("connect", "", "host:port of the relying party")
	serverName := f.String("server-name", "", "name in the relying party's certificate (default: the host of --connect)")
	mtlsDir := f.String("mtls-dir", "/etc/ecs/mtls", "the published directory")
	socket := f.String("socket", client.DefaultSocket, "the agent's socket")
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		f.SetOutput(stdout)
		f.PrintDefaults()
		return nil
	} else if err != nil {
		return usageError{err}
	}
	host, _, err := net.SplitHostPort(*connect)
	if err != nil || f.NArg() > 0 {
		return usageError{errors.New("give --connect host:port, and flags only")}
	}
	if *serverName == "" {
		*serverName = host
	}
	tlsConfig, err := loadTLS(*mtlsDir, *serverName)
	if err != nil {
		return usageError{err}
	}
	ctx, cancel := context.WithTimeout(ctx, attestedtls.Timeout)
	defer cancel()
	answer, err := attest(ctx, *connect, tlsConfig, client.New(*socket))
	if err != nil {
		return err
	}
	if answer != attestedtls.Accepted {
		return fmt.Errorf("%s refuses: %q", *connect, answer)
	}
	fmt.Fprintf(stdout, "%s: %s\n", *connect, answer)
	return nil
}

// loadTLS reads what is published now. Call it for every connection: certificates rotate, and the agent binds evidence
// to the key that is published when it is asked. After a rotation between the two, the server refuses the evidence; the
// next connection has the new key.
func loadTLS(dir, serverName string) (*tls.Config, error) {
	file := filepath.Join(dir, "client.pem") // key, leaf, intermediates
	pair, err := tls.LoadX509KeyPair(file, file)
	if err != nil {
		return nil, fmt.Errorf("load the published certificate: %w", err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("load the published trust anchors: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, errors.New("load the published trust anchors: ca.crt has no certificate")
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair},
		RootCAs: pool, ServerName: serverName,
	}, nil
}

// attest connects, sends the proof, and returns the server's answer.
func attest(ctx context.Context, address string, tlsConfig *tls.Config, agent *client.Client) (string, error) {
	conn, err := (&tls.Dialer{Config: tlsConfig}).DialContext(ctx, "tcp", address)
	if err != nil {
		return "", fmt.Errorf("connect: %w", err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	random, err := attestedtls.ReadMessage(conn)
	if err != nil {
		return "", err // for example, the server refused our certificate
	}
	nonce, err := attestedtls.Nonce(conn.(*tls.Conn).ConnectionState(), random)
	if err != nil {
		return "", err
	}
	doc, err := agent.Evidence(ctx, nonce, client.BindClient)
	if err != nil {
		return "", err
	}
	if err := attestedtls.WriteMessage(conn, doc.Raw); err != nil {
		return "", fmt.Errorf("send the evidence: %w", err)
	}
	answer, err := attestedtls.ReadMessage(conn)
	return string(answer), err
}

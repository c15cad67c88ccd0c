// Command client is an example of a container that proves to a relying party, within one TLS connection, that the
// connection's key is published on an SEV-SNP guest. docs/attested-tls.md explains it.
package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"sevagent/client"
	"sevagent/client/certs"
	attestedtls "sevagent/examples/attested-tls"
	"sevagent/examples/program"
)

func main() { program.Main("client", run) }

func run(ctx context.Context, f *program.Flags, stdout, _ io.Writer) error {
	connect := f.String("connect", "", "host:port of the relying party")
	serverName := f.String("server-name", "",
		"name in the relying party's certificate (default: the host of --connect)")
	mtlsDir := f.String("mtls-dir", certs.DefaultDir, "the published directory")
	socket := f.String("socket", client.DefaultSocket, "the agent's socket")
	enclave := f.String("enclave", "", "file with the measurements of the enclave that the relying party has to be, as "+
		"nitro-cli build-enclave prints them")
	roots := f.String("enclave-roots", "",
		"PEM file with a simulator's root of enclaves, instead of AWS's: that proves nothing about hardware")
	if err := f.Parse(); err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(*connect)
	if err != nil {
		return program.Usage(errors.New("want --connect host:port"))
	}
	prove := func([]byte, tls.ConnectionState) error { return nil }
	if *enclave != "" {
		want, err := readMeasurements(*enclave)
		if err != nil {
			return program.Usage(err)
		}
		verifier, err := enclaveVerifier(*roots)
		if err != nil {
			return program.Usage(err)
		}
		prove = func(doc []byte, state tls.ConnectionState) error {
			userData, nonce, err := attestedtls.EnclaveFields(state, state.PeerCertificates[0].RawSubjectPublicKeyInfo)
			if err != nil {
				return err
			}
			return verifyEnclave(verifier, want, doc, userData, nonce, time.Now())
		}
	} else if *roots != "" {
		return program.Usage(errors.New("--enclave-roots needs --enclave"))
	}
	// Open the directory for every connection: certificates rotate, and the agent binds evidence to the key that is
	// published when it is asked. After a rotation between the two, the server refuses the evidence; the next
	// connection has the new key.
	published, err := certs.Open(*mtlsDir)
	if err != nil {
		return program.Usage(err)
	}
	tlsConfig := published.Set().ClientConfig(cmp.Or(*serverName, host))
	tlsConfig.MinVersion = tls.VersionTLS13

	ctx, cancel := context.WithTimeout(ctx, attestedtls.Timeout)
	defer cancel()
	answer, err := attest(ctx, *connect, tlsConfig, prove, client.New(*socket))
	if err != nil {
		return err
	}
	if answer != attestedtls.Accepted {
		return fmt.Errorf("%s refuses: %q", *connect, answer)
	}
	fmt.Fprintf(stdout, "%s: %s\n", *connect, answer)
	return nil
}

// attest connects, has the server prove itself, sends the proof, and returns the server's answer.
func attest(ctx context.Context, address string, tlsConfig *tls.Config,
	prove func(doc []byte, state tls.ConnectionState) error, agent *client.Client) (string, error) {
	conn, err := (&tls.Dialer{Config: tlsConfig}).DialContext(ctx, "tcp", address)
	if err != nil {
		return "", fmt.Errorf("connect: %w", err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	state := conn.(*tls.Conn).ConnectionState()
	enclave, err := attestedtls.ReadMessage(conn)
	if err != nil {
		return "", err // for example, the server refused our certificate
	}
	if err := prove(enclave, state); err != nil {
		return "", err // before anything is sent to it
	}
	random, err := attestedtls.ReadMessage(conn)
	if err != nil {
		return "", err
	}
	if len(random) == 0 { // the server relies on what the certificate carries
		answer, err := attestedtls.ReadMessage(conn)
		return string(answer), err
	}
	nonce, err := attestedtls.Nonce(state, random)
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

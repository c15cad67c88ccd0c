// Command enclave-client is an example of an ECS task that is the client of a service in a Nitro Enclave. It calls the
// service repeatedly, each time with the newest certificate that sevagent has published on the node.
// docs/patterns.md explains it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"sevagent/client/certs"
	"sevagent/examples/program"
)

func main() { program.Main("enclave-client", run) }

const (
	callTimeout = 10 * time.Second
	maxReply    = 4 << 10 // bytes of a reply that are shown
)

func run(ctx context.Context, f *program.Flags, stdout, stderr io.Writer) error {
	endpoint := f.String("endpoint", "", "host:port of the service; its certificate has to name the host")
	interval := f.Duration("interval", 5*time.Second, "time between two calls")
	count := f.Int("count", 0, "stop after this many calls; 0: run until stopped")
	mtlsDir := f.String("mtls-dir", certs.DefaultDir, "the published directory")
	if err := f.Parse(); err != nil {
		return err
	}
	if _, _, err := net.SplitHostPort(*endpoint); err != nil || *interval <= 0 {
		return program.Usage(errors.New("want --endpoint host:port and a positive --interval"))
	}
	dir, err := certs.Open(*mtlsDir)
	if err != nil {
		return err
	}
	c := &caller{
		dir: dir, url: "https://" + *endpoint + "/", stdout: stdout, stderr: stderr,
		// Keeps connections for 30 s between calls, which has to be shorter than the server's idle timeout.
		transport: &http.Transport{DialTLSContext: dir.DialTLS, IdleConnTimeout: 30 * time.Second},
	}
	return c.run(ctx, *interval, *count)
}

// caller calls the service. Its fields are owned by run.
type caller struct {
	dir            *certs.Directory
	url            string
	transport      *http.Transport
	set            *certs.Set // in use
	stdout, stderr io.Writer
}

// run reports failed calls and goes on; at the end it returns an error if any failed.
func (c *caller) run(ctx context.Context, interval time.Duration, count int) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	failed := 0
	for n := 1; ; n++ {
		if err := c.call(ctx); ctx.Err() != nil {
			break // stopped during the call
		} else if err != nil {
			failed++
			fmt.Fprintln(c.stderr, err)
		}
		if n == count {
			break
		}
		select {
		case <-tick.C:
			continue
		case <-ctx.Done():
		}
		break
	}
	if failed > 0 {
		return fmt.Errorf("%d calls failed", failed)
	}
	return nil
}

// call makes one call and prints the outcome.
func (c *caller) call(ctx context.Context) error {
	// A new connection has the newest certificate in any case; a kept one has that of its handshake. The pointer
	// changes with a new generation: then no connection is kept. (A generation that appears after this line may be
	// used one call before its name is printed.)
	if set := c.dir.Set(); set != c.set {
		c.transport.CloseIdleConnections()
		c.set = set
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url, nil)
	if err != nil {
		return err
	}
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("call %s with %s: %w", c.url, c.set.Generation, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return fmt.Errorf("read the reply of %s: %w", c.url, err)
	}
	fmt.Fprintf(c.stdout, "%s %s %q\n", resp.Status, c.set.Generation, strings.TrimSpace(string(body)))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("call %s: %s", c.url, resp.Status)
	}
	return nil
}

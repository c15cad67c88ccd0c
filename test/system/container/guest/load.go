package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	api "sevagent/client"
	"sevagent/test/lab"
)

// Load is what the clients saw.
type Load struct {
	Requests, Evidence int
	Later              int      // answers that ask to try again: 503 with Retry-After
	Slowest            string   // of what was answered
	Failures           []string // requests without the answer that they should have, at most ten
	Failed             int
}

const (
	postAsk     = `{"nonce":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","bind":"none"}`
	clientCount = 8
)

// load keeps eight clients busy until it is stopped, and then reports how they fared: half of them ask on a new
// connection each time, half keep theirs for as long as the agent does; a quarter asks for evidence. It writes the file
// anew every tenth of a second.
func load(ctx context.Context, socket, file string) error {
	var mu sync.Mutex
	var seen Load
	var slowest time.Duration
	note := func(evidence bool, took time.Duration, err error) {
		mu.Lock()
		defer mu.Unlock()
		seen.Requests++
		if evidence {
			seen.Evidence++
		}
		slowest = max(slowest, took)
		if errors.Is(err, errLater) {
			seen.Later++
		} else if err != nil {
			if seen.Failed++; len(seen.Failures) < 10 {
				seen.Failures = append(seen.Failures, err.Error())
			}
		}
	}
	write := func() error {
		mu.Lock()
		defer mu.Unlock()
		seen.Slowest = slowest.String()
		text, err := json.Marshal(seen)
		if err != nil {
			return err
		}
		return lab.Replace(file, string(text))
	}
	var clients sync.WaitGroup
	for i := range clientCount {
		clients.Go(func() {
			c := newClient(socket, i%2 == 1, i%4 < 2)
			for ctx.Err() == nil {
				began := time.Now()
				err := c.ask()
				note(c.evidence, time.Since(began), err)
				if c.evidence {
					time.Sleep(20 * time.Millisecond) // the device's rate is limited
				} else {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
			if err := write(); err != nil {
				return err
			}
		case <-ctx.Done():
		}
	}
	clients.Wait()
	return write()
}

var errLater = errors.New("try again later")

// client asks the agent, each time on a new connection or on one that it keeps.
type client struct {
	http.Client
	evidence bool
}

func newClient(socket string, keep, evidence bool) *client {
	return &client{evidence: evidence, Client: http.Client{Timeout: lab.Hang, Transport: &http.Transport{
		DisableKeepAlives: !keep,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}}
}

// ask makes one request. What is sent and not answered is an error: net/http does not send again what has a body that
// it cannot read twice.
func (c *client) ask() error {
	method, path, text := http.MethodGet, "/healthz", ""
	if c.evidence {
		method, path, text = http.MethodPost, "/v1/evidence", postAsk
	}
	req, err := http.NewRequest(method, "http://sevagent"+path, io.NopCloser(strings.NewReader(text)))
	if err != nil {
		return err
	}
	req.ContentLength = int64(len(text))
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return fmt.Errorf("%s %s: %w", method, path, err)
	case resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != "" && c.evidence:
		return errLater
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%s %s: status %d: %s", method, path, resp.StatusCode, strings.TrimSpace(string(body)))
	}
	return nil
}

// refresh makes the agent publish again and again until it is stopped, and writes how often that succeeded.
func refresh(ctx context.Context, socket, file string) error {
	agent := api.New(socket)
	for n := 0; ctx.Err() == nil; time.Sleep(3 * time.Millisecond) {
		if _, err := agent.Refresh(ctx); err == nil { // else it may have been killed
			n++
		}
		if err := os.WriteFile(file, fmt.Append(nil, n), 0o644); err != nil {
			return err
		}
	}
	return nil
}

package main

import (
	"bufio"
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

	"golang.org/x/sys/unix"

	api "sevagent/client"
	"sevagent/test/lab"
)

// Load is what the clients saw.
type Load struct {
	Requests, Evidence int
	Reconnects         int      // connections that were closed between two requests
	Later              int      // answers that ask to try again: 503 with Retry-After
	Slowest            string   // of what was answered
	Failures           []string // requests without the answer that they should have, at most ten
	Failed             int
}

const (
	getHealth   = "GET /healthz HTTP/1.1\r\nHost: sevagent\r\n\r\n"
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
	note := func(evidence bool, reconnects int, took time.Duration, err error) {
		mu.Lock()
		defer mu.Unlock()
		seen.Requests++
		if evidence {
			seen.Evidence++
		}
		seen.Reconnects += reconnects
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
			c := client{socket: socket, keep: i%2 == 1, evidence: i%4 < 2}
			for ctx.Err() == nil {
				began := time.Now()
				reconnects, err := c.ask()
				note(c.evidence, reconnects, time.Since(began), err)
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

// client is one that does no more than it has to: what is sent and not answered is an error, even where net/http would
// have sent it again.
type client struct {
	socket         string
	keep, evidence bool

	conn net.Conn
	r    *bufio.Reader
}

func (c *client) ask() (reconnects int, err error) {
	if c.conn != nil && closed(c.conn) {
		c.conn.Close()
		c.conn, reconnects = nil, 1
	}
	reused := c.conn != nil
	if !reused {
		if c.conn, err = net.DialTimeout("unix", c.socket, 30*time.Second); err != nil {
			return reconnects, err
		}
		c.r = bufio.NewReader(c.conn)
	}
	close, err := c.request()
	if err != nil {
		err = fmt.Errorf("evidence %v, connection used before %v: %w", c.evidence, reused, err)
	}
	if err != nil || close || !c.keep {
		c.conn.Close()
		c.conn = nil
	}
	return reconnects, err
}

func (c *client) request() (close bool, err error) {
	c.conn.SetDeadline(time.Now().Add(60 * time.Second))
	text := getHealth
	if c.evidence {
		text = fmt.Sprintf("POST /v1/evidence HTTP/1.1\r\nHost: sevagent\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(postAsk), postAsk)
	}
	if _, err := io.WriteString(c.conn, text); err != nil {
		return true, fmt.Errorf("send: %w", err)
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return true, fmt.Errorf("receive: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return true, fmt.Errorf("receive the body: %w", err)
	}
	if resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != "" && c.evidence {
		return resp.Close, errLater
	}
	if resp.StatusCode != http.StatusOK {
		return resp.Close, fmt.Errorf("status %d: %s", resp.StatusCode, strings.TrimSpace(string(body)))
	}
	return resp.Close, nil
}

// closed reports whether the other end has closed an idle connection.
func closed(conn net.Conn) bool {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return true
	}
	gone := true
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		gone = !errors.Is(err, unix.EAGAIN)
		return true
	})
	return gone || err != nil
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

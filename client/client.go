// Package client talks to the sevagent of the node that the program runs on.
//
// A container gets the agent's socket by mounting the directory /run/sevagent read-only. Mount the directory,
// not the socket itself: a restarted agent may make a new one.
//
//	c := client.New("")
//	doc, err := c.Evidence(ctx, nonce, client.BindNone)
//
// Evidence is for someone else to verify; that it came from the agent proves nothing.
package client

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"
)

// DefaultSocket is where the agent listens.
const DefaultSocket = "/run/sevagent/sevagent.sock"

// What evidence may be bound to, besides the nonce.
const (
	BindNone   = "none"
	BindClient = "client" // the published client certificate's key
	BindServer = "server" // the published server certificate's key
)

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 1 << 20

// Client talks to the local agent, over a connection of its own for each call. It is safe for concurrent use.
type Client struct{ socket string }

// New returns a client of the agent at a socket; empty: DefaultSocket. Nothing is connected yet.
func New(socket string) *Client {
	if socket == "" {
		socket = DefaultSocket
	}
	return &Client{socket: socket}
}

// Problem is the agent's refusal: an RFC 9457 document. Branch on Code; docs/api.md lists the codes.
type Problem struct {
	Status int    `json:"status"`
	Code   string `json:"code"`
	Detail string `json:"detail"`
	Advice string `json:"advice"`
	// RetryAfter is how long to wait before asking again; zero: the agent did not say.
	RetryAfter time.Duration `json:"-"`
}

func (p *Problem) Error() string {
	if p.Advice == "" {
		return fmt.Sprintf("%s (%s)", p.Detail, p.Code)
	}
	return fmt.Sprintf("%s (%s); %s", p.Detail, p.Code, p.Advice)
}

// UnreachableError means that the agent did not answer: it does not run, or the socket is not mounted.
type UnreachableError struct {
	Socket string
	Err    error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("ask the agent at %s: %v; is sevagent running, and the socket's directory mounted?", e.Socket, e.Err)
}

func (e *UnreachableError) Unwrap() error { return e.Err }

// Evidence asks for evidence over nonce, 16 to 64 bytes, bound to BindNone, BindClient or BindServer. The answer
// is the JSON document of docs/evidence.md.
func (c *Client) Evidence(ctx context.Context, nonce []byte, bind string) ([]byte, error) {
	body, err := json.Marshal(map[string]string{"nonce": base64.RawURLEncoding.EncodeToString(nonce), "bind": bind})
	if err != nil {
		return nil, err
	}
	return c.do(ctx, http.MethodPost, "/v1/evidence", body)
}

// Status returns the agent's state, JSON.
func (c *Client) Status(ctx context.Context) ([]byte, error) {
	return c.do(ctx, http.MethodGet, "/v1/status", nil)
}

// Certificates returns what is published, JSON.
func (c *Client) Certificates(ctx context.Context) ([]byte, error) {
	return c.do(ctx, http.MethodGet, "/v1/certificates", nil)
}

// Ready returns the agent's health document and whether it is ready.
func (c *Client) Ready(ctx context.Context) (health []byte, ready bool, err error) {
	resp, err := c.send(ctx, http.MethodGet, "/readyz", nil)
	if err != nil {
		return nil, false, err
	}
	defer resp.Body.Close()
	health, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return health, resp.StatusCode == http.StatusOK, err
}

// Refresh makes the agent pull its secrets now, and returns what changed, JSON. It is for root.
func (c *Client) Refresh(ctx context.Context) ([]byte, error) {
	return c.do(ctx, http.MethodPost, "/v1/refresh", []byte("{}"))
}

// send makes one request on a connection that ends with the answer's body. It is no http.Client: with one connection
// and no proxy, redirect or cookie to think of, that would be most of the time that a short-lived command takes.
func (c *Client) send(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://sevagent"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Close = true
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, &UnreachableError{Socket: c.socket, Err: err}
	}
	// An end of ctx ends reads and writes that wait.
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	finish := func() {
		stop()
		conn.Close()
	}
	// Who is turned away has an answer, although no one reads the request.
	if err = req.Write(conn); err == nil || errors.Is(err, syscall.EPIPE) {
		resp, readErr := http.ReadResponse(bufio.NewReader(conn), req)
		if readErr == nil {
			resp.Body = &answerBody{resp.Body, finish}
			return resp, nil
		}
		err = cmp.Or(err, readErr)
	}
	finish()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return nil, &UnreachableError{Socket: c.socket, Err: err}
}

// busy is how long a connection is tried while more wait for the agent than the kernel lets wait.
const busy = 2 * time.Second

// dial connects. A blocking connect(2) would wait for its turn; Go's gets EAGAIN.
func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	for end, wait := time.Now().Add(busy), time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", c.socket)
		if !errors.Is(err, syscall.EAGAIN) || time.Now().After(end) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(wait):
		}
	}
}

// answerBody ends the connection when it is closed. The body's own Close comes second: it reads to the end, which an
// answer over the limit may not have.
type answerBody struct {
	io.ReadCloser
	finish func()
}

func (b *answerBody) Close() error {
	b.finish()
	return b.ReadCloser.Close()
}

func (c *Client) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, &UnreachableError{Socket: c.socket, Err: err}
	}
	if len(answer) > maxAnswer {
		return nil, fmt.Errorf("read the agent's answer to %s: more than %d bytes", path, maxAnswer)
	}
	if resp.StatusCode == http.StatusOK {
		return answer, nil
	}
	p := &Problem{Status: resp.StatusCode}
	if json.Unmarshal(answer, p) != nil || p.Code == "" {
		return nil, fmt.Errorf("ask the agent for %s: status %s without a problem document", path, resp.Status)
	}
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
		p.RetryAfter = time.Duration(seconds) * time.Second
	}
	return nil, p
}

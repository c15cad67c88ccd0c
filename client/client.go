// Package client talks to the sevagent of the node that the program runs on.
//
// A container gets the agent's socket by mounting the directory /run/sevagent read-only. Mount the directory,
// not the socket itself: a restarted agent may make a new one.
//
//	c := client.New("")
//	e, err := c.Evidence(ctx, nonce, client.BindNone)
//
// Evidence is for a relying party to verify; that it came from the agent proves nothing.
package client

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"sevagent/internal/evidence"
)

// DefaultSocket is where the agent listens.
const DefaultSocket = "/run/sevagent/sevagent.sock"

// What evidence may be bound to, besides the nonce.
const (
	BindNone   = evidence.BindNone
	BindClient = evidence.BindClient // the published client certificate's key
	BindServer = evidence.BindServer // the published server certificate's key
)

// maxAnswer bounds the bytes that are read of a response.
const maxAnswer = 1 << 20

// Client talks to the local agent, over a connection of its own for each call. It is safe for concurrent use.
type Client struct{ socket string }

// New returns a client of the agent at a socket; empty: DefaultSocket. It does not connect yet.
func New(socket string) *Client {
	if socket == "" {
		socket = DefaultSocket
	}
	return &Client{socket: socket}
}

// Problem is the agent's error response, an RFC 9457 document: application/problem+json. Code is stable and the field
// to branch on (docs/api.md lists the codes); Detail and Advice are for people.
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"` // the HTTP status
	Code   string `json:"code"`
	Detail string `json:"detail"`
	Advice string `json:"advice,omitempty"`
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
	const format = "ask the agent at %s: %v; is sevagent running, and the socket's directory mounted?"
	return fmt.Sprintf(format, e.Socket, e.Err)
}

func (e *UnreachableError) Unwrap() error { return e.Err }

// Evidence is the answer of POST /v1/evidence.
type Evidence struct {
	// Raw is the document of docs/evidence.md as the agent sent it: pass this to the relying party.
	Raw json.RawMessage
	// Document is the same, decoded. It is the node's word until a relying party has verified the report in it.
	Document evidence.Document
}

// Evidence asks for evidence over nonce, 16 to 64 bytes, bound to BindNone, BindClient or BindServer.
func (c *Client) Evidence(ctx context.Context, nonce []byte, bind string) (*Evidence, error) {
	body, err := json.Marshal(EvidenceRequest{Nonce: nonce, Bind: bind})
	if err != nil {
		return nil, err
	}
	e := new(Evidence)
	if err := c.call(ctx, http.MethodPost, "/v1/evidence", body, &e.Raw); err != nil {
		return nil, err
	}
	return e, decode("/v1/evidence", e.Raw, &e.Document)
}

// EvidenceRequest is the body of POST /v1/evidence.
type EvidenceRequest struct {
	Nonce evidence.B64URL `json:"nonce"`
	Bind  string          `json:"bind"` // empty: BindNone
}

// Status returns the agent's state.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	s := new(Status)
	return s, c.call(ctx, http.MethodGet, "/v1/status", nil, s)
}

// Certificates returns what is published.
func (c *Client) Certificates(ctx context.Context) (*Certificates, error) {
	list := new(Certificates)
	return list, c.call(ctx, http.MethodGet, "/v1/certificates", nil, list)
}

// Health returns the agent's health document, whether the node is ready or not.
func (c *Client) Health(ctx context.Context) (*Health, error) {
	h := new(Health)
	return h, c.call(ctx, http.MethodGet, "/readyz", nil, h)
}

// Refresh makes the agent pull its secrets now, and returns what changed. It is for root.
func (c *Client) Refresh(ctx context.Context) (*Refresh, error) {
	r := new(Refresh)
	return r, c.call(ctx, http.MethodPost, "/v1/refresh", []byte("{}"), r)
}

// Renew makes the agent order a new certificate from a source of mtls.issue, and returns once that is published. It is
// for root.
func (c *Client) Renew(ctx context.Context, name string) (*Refresh, error) {
	body, err := json.Marshal(RefreshRequest{Renew: name})
	if err != nil {
		return nil, err
	}
	r := new(Refresh)
	return r, c.call(ctx, http.MethodPost, "/v1/refresh", body, r)
}

// send makes one request on a connection that is closed with the response's body. An http.Client would take most of the
// time of a short-lived command, and there is one connection, no proxy, no redirect and no cookie.
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
	// The end of ctx ends pending reads and writes.
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	finish := func() {
		stop()
		conn.Close()
	}
	// A rejected caller gets a response even though its request is not read.
	if err = req.Write(conn); err == nil || errors.Is(err, syscall.EPIPE) {
		resp, readErr := http.ReadResponse(bufio.NewReader(conn), req)
		if readErr == nil {
			resp.Body = &answerBody{resp.Body, finish}
			return resp, nil
		}
		err = cmp.Or(err, readErr)
	}
	finish()
	return nil, &UnreachableError{Socket: c.socket, Err: cmp.Or(ctx.Err(), err)}
}

// busy is how long to keep trying to connect while the agent's backlog is full.
const busy = 2 * time.Second

// dial connects. A blocking connect(2) would wait for a place in the backlog; Go's gets EAGAIN.
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

// answerBody closes the connection when it is closed. The body's own Close comes second: it reads to the end, and a
// response over the limit may have none.
type answerBody struct {
	io.ReadCloser
	finish func()
}

func (b *answerBody) Close() error {
	b.finish()
	return b.ReadCloser.Close()
}

// call makes one request and decodes the response. A Problem is an error; a health document never is, although it has
// status 503 if the node is not ready.
func (c *Client) call(ctx context.Context, method, path string, body []byte, into any) error {
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return &UnreachableError{Socket: c.socket, Err: cmp.Or(ctx.Err(), err)}
	}
	if len(answer) > maxAnswer {
		return fmt.Errorf("read the agent's answer to %s: more than %d bytes", path, maxAnswer)
	}
	if resp.StatusCode == http.StatusOK || resp.Header.Get("Content-Type") == "application/health+json" {
		return decode(path, answer, into)
	}
	p := &Problem{Status: resp.StatusCode}
	if json.Unmarshal(answer, p) != nil || p.Code == "" {
		return fmt.Errorf("ask the agent for %s: status %s without a problem document", path, resp.Status)
	}
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
		p.RetryAfter = time.Duration(seconds) * time.Second
	}
	return p
}

// decode ignores unknown fields: the agent may be newer than the program that asks.
func decode(path string, answer []byte, into any) error {
	if err := json.Unmarshal(answer, into); err != nil {
		return fmt.Errorf("read the agent's answer to %s: %w", path, err)
	}
	return nil
}

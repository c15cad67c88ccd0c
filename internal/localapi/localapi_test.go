package localapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sevagent/internal/appraise"
	"sevagent/internal/attest"
	"sevagent/internal/evidence"
	"sevagent/internal/localapi"
)

// node is a server over fixed answers, on a socket and on loopback TCP.
type node struct {
	t        *testing.T
	socket   string
	tcp      string
	health   string
	evidence error
	claims   evidence.Claims // of the last request for evidence
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir, err := os.MkdirTemp("", "la") // sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, socket: filepath.Join(dir, "s"), health: localapi.StatusPass}
	socket, err := net.Listen("unix", n.socket)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.tcp = tcp.Addr().String()
	server := localapi.New(localapi.Config{
		Version: "v1",
		Alive:   func(time.Time) error { return nil },
		Health: func(time.Time) *localapi.Health {
			h := new(localapi.Health)
			h.Add("x", localapi.Check{Status: localapi.StatusPass})
			h.Add("x", localapi.Check{Status: n.health, Output: "<b>reason</b>"})
			return h
		},
		Status:       func(time.Time) any { return map[string]string{"a": "<script>"} },
		Certificates: func() any { return map[string]string{} },
		Evidence: func(_ context.Context, c evidence.Claims) (*evidence.Document, *appraise.Verdict, error) {
			n.claims = c
			if n.evidence != nil {
				return nil, nil, n.evidence
			}
			doc, err := evidence.Build(c, 0, nil, nil, nil, nil, time.Unix(0, 0))
			return doc, nil, err
		},
		BoundKey: func(kind string) ([]byte, bool) { return make([]byte, 32), kind == "client" },
		Refresh:  func(context.Context) (any, error) { return map[string]bool{"changed": false}, nil },
		Metrics:  prometheus.NewRegistry(),
		Log:      slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx, socket, tcp) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		os.RemoveAll(dir)
	})
	return n
}

type answer struct {
	status int
	body   string
	header http.Header
}

func (a answer) code() string {
	var p localapi.Problem
	json.Unmarshal([]byte(a.body), &p)
	return p.Code
}

func (n *node) do(network, method, path, body string, header ...string) answer {
	n.t.Helper()
	address := n.socket
	if network == "tcp" {
		address = n.tcp
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		}}}
	req, err := http.NewRequestWithContext(n.t.Context(), method, "http://127.0.0.1"+path, strings.NewReader(body))
	if err != nil {
		n.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		n.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	return answer{resp.StatusCode, string(text), resp.Header}
}

const nonce = `"nonce": "AAECAwQFBgcICQoLDA0ODw"` // 16 bytes

func TestRequests(t *testing.T) {
	n := newNode(t)
	for _, c := range []struct {
		name, network, method, path, body string
		header                            []string
		status                            int
		code                              string
	}{
		{"liveness", "unix", "GET", "/healthz", "", nil, 200, ""},
		{"liveness on TCP", "tcp", "GET", "/healthz", "", nil, 200, ""},
		{"readiness", "tcp", "GET", "/readyz", "", nil, 200, ""},
		{"metrics", "tcp", "GET", "/metrics", "", nil, 200, ""},
		{"status", "tcp", "GET", "/v1/status", "", nil, 200, ""},
		{"certificates", "tcp", "GET", "/v1/certificates", "", nil, 200, ""},
		{"page", "tcp", "GET", "/", "", nil, 200, ""},
		{"evidence", "unix", "POST", "/v1/evidence", "{" + nonce + "}", nil, 200, ""},
		{"evidence bound", "unix", "POST", "/v1/evidence", "{" + nonce + `, "bind": "client"}`, nil, 200, ""},
		{"refresh", "unix", "POST", "/v1/refresh", "", nil, 200, ""},

		{"evidence on TCP", "tcp", "POST", "/v1/evidence", "{" + nonce + "}", nil, 403, "socket_only"},
		{"refresh on TCP", "tcp", "POST", "/v1/refresh", "", nil, 403, "socket_only"},
		{"foreign host", "tcp", "GET", "/v1/status", "", []string{"Host", "evil.example.com"}, 403, "foreign_host"},
		{"foreign origin", "tcp", "GET", "/v1/status", "", []string{"Origin", "http://evil.example.com"}, 403, "foreign_host"},
		{"null origin", "tcp", "GET", "/v1/status", "", []string{"Origin", "null"}, 403, "foreign_host"},
		{"own origin", "tcp", "GET", "/v1/status", "", []string{"Origin", "http://localhost:9180"}, 200, ""},
		{"no such path", "unix", "GET", "/v1/secrets", "", nil, 404, "not_found"},
		{"traversal", "unix", "GET", "/v1/../../etc/passwd", "", nil, 404, "not_found"},
		{"wrong method", "unix", "GET", "/v1/evidence", "", nil, 405, "method_not_allowed"},
		{"delete", "tcp", "DELETE", "/v1/status", "", nil, 405, "method_not_allowed"},
		{"no body", "unix", "POST", "/v1/evidence", "", nil, 400, "bad_request"},
		{"no nonce", "unix", "POST", "/v1/evidence", "{}", nil, 400, "bad_request"},
		{"15 bytes", "unix", "POST", "/v1/evidence", `{"nonce": "AAECAwQFBgcICQoLDA0O"}`, nil, 400, "bad_request"},
		{"65 bytes", "unix", "POST", "/v1/evidence", `{"nonce": "` + strings.Repeat("AAAA", 21) + `AAA"}`, nil, 400, "bad_request"},
		{"not base64url", "unix", "POST", "/v1/evidence", `{"nonce": "+++++++++++++++++++++w=="}`, nil, 400, "bad_request"},
		{"unknown field", "unix", "POST", "/v1/evidence", "{" + nonce + `, "report_data": "00"}`, nil, 400, "bad_request"},
		{"two values", "unix", "POST", "/v1/evidence", "{" + nonce + "}{}", nil, 400, "bad_request"},
		{"unknown bind", "unix", "POST", "/v1/evidence", "{" + nonce + `, "bind": "peer"}`, nil, 400, "bad_request"},
		{"bind without certificate", "unix", "POST", "/v1/evidence", "{" + nonce + `, "bind": "server"}`, nil, 409, "no_certificate"},
		{"large body", "unix", "POST", "/v1/evidence", `{"nonce": "` + strings.Repeat("A", 5000) + `"}`, nil, 413, "bad_request"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := n.do(c.network, c.method, c.path, c.body, c.header...)
			if got.status != c.status || got.code() != c.code {
				t.Errorf("%d %q: %s, want %d %q", got.status, got.code(), got.body, c.status, c.code)
			}
			if c.code != "" && got.header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("Content-Type = %q", got.header.Get("Content-Type"))
			}
		})
	}
}

func TestCallerIsKnownByItsSocket(t *testing.T) {
	n := newNode(t)
	n.do("unix", "POST", "/v1/evidence", "{"+nonce+"}")
	if got := n.claims.Caller.UID; got != uint32(os.Getuid()) {
		t.Errorf("caller is uid %d, want %d", got, os.Getuid())
	}
	if n.claims.Purpose != evidence.PurposeClient {
		t.Errorf("purpose is %q", n.claims.Purpose)
	}
}

func TestReadiness(t *testing.T) {
	n := newNode(t)
	for _, c := range []struct {
		health string
		status int
	}{{localapi.StatusPass, 200}, {localapi.StatusWarn, 200}, {localapi.StatusFail, 503}} {
		n.health = c.health
		got := n.do("tcp", "GET", "/readyz", "")
		var h localapi.Health
		if err := json.Unmarshal([]byte(got.body), &h); err != nil {
			t.Fatal(err)
		}
		if got.status != c.status || h.Status != c.health || got.header.Get("Content-Type") != "application/health+json" {
			t.Errorf("%s: %d %s %s", c.health, got.status, h.Status, got.header.Get("Content-Type"))
		}
		if got.status == 503 && got.header.Get("Retry-After") == "" {
			t.Error("503 without Retry-After")
		}
	}
}

func TestDeviceErrorsBecomeProblems(t *testing.T) {
	n := newNode(t)
	for _, c := range []struct {
		err    error
		status int
		code   string
	}{
		{attest.ErrNoDevice, 503, "device_missing"},
		{fmt.Errorf("ask for evidence: %w", attest.ErrQueueFull), 429, "queue_full"},
		{attest.ErrThrottled, 503, "throttled"},
		{attest.ErrVMPCKDisabled, 503, "vmpck_disabled"},
		{&attest.FirmwareError{Status: 0x27}, 503, "firmware_error"},
		{context.DeadlineExceeded, 503, "deadline"},
		{&appraise.Rejection{Code: "policy_rejected", Reason: "x"}, 503, "policy_rejected"},
		{errors.New("else"), 503, "attestation_failed"},
	} {
		n.evidence = c.err
		got := n.do("unix", "POST", "/v1/evidence", "{"+nonce+"}")
		if got.status != c.status || got.code() != c.code || got.header.Get("Retry-After") == "" {
			t.Errorf("%v: %d %q, Retry-After %q, want %d %q", c.err, got.status, got.code(), got.header.Get("Retry-After"), c.status, c.code)
		}
	}
}

// TestPageIsSelfContained: no script, no address, and nothing of the status unescaped.
func TestPageIsSelfContained(t *testing.T) {
	body := newNode(t).do("tcp", "GET", "/", "").body
	for _, bad := range []string{"<script", "http:", "https:", "<b>", "{{"} {
		if strings.Contains(body, bad) {
			t.Errorf("the page contains %q", bad)
		}
	}
	if !strings.Contains(body, "&lt;b&gt;reason") {
		t.Error("the page does not show the reason")
	}
}

// TestSlowClientsAreCutOff: one that never ends its header holds no one up, and is gone after five seconds.
func TestSlowClientsAreCutOff(t *testing.T) {
	if testing.Short() {
		t.Skip("takes the header timeout, five seconds")
	}
	n := newNode(t)
	n.do("unix", "GET", "/healthz", "") // the server is up, on both
	n.do("tcp", "GET", "/healthz", "")
	before := runtime.NumGoroutine()
	var conns []net.Conn
	for range 200 {
		c, err := net.Dial("unix", n.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost:")
		conns = append(conns, c)
	}
	if got := n.do("unix", "GET", "/healthz", ""); got.status != 200 {
		t.Errorf("another caller: %d", got.status)
	}
	for i, c := range conns {
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.ReadAll(c); err != nil {
			t.Fatalf("connection %d stays open: %v", i, err)
		}
	}
	// Nothing of them is left behind.
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before the slow clients came", runtime.NumGoroutine(), before)
		}
	}
}

// On loopback there is nobody to tell from another: all have 64 connections.
func TestConnectionsOnLoopback(t *testing.T) {
	n := newNode(t)
	n.do("tcp", "GET", "/healthz", "") // the server is up; it keeps one connection, or none
	var last net.Conn
	for range 64 + 1 {
		c, err := net.Dial("tcp", n.tcp)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		last = c
	}
	resp, err := http.ReadResponse(bufio.NewReader(last), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusTooManyRequests {
		t.Errorf("one more is answered %s", resp.Status)
	}
	if got := n.do("unix", "GET", "/healthz", ""); got.status != http.StatusOK {
		t.Errorf("the socket meanwhile: %d", got.status)
	}
}

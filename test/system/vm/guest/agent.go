package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

const (
	socket = "/run/sevagent/sevagent.sock"
	policy = "/lab/device/policy.yaml"
)

var agent = &http.Client{Transport: &http.Transport{
	MaxIdleConnsPerHost: 8,
	DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	},
}}

// ask asks the agent over its socket.
func ask(method, path, body string) (int, []byte, error) {
	req, err := http.NewRequest(method, "http://sevagent"+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := agent.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, text, err
}

// must is ask, for an answer with status 200.
func must(method, path, body string) ([]byte, error) {
	status, text, err := ask(method, path, body)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%s %s: %d %s", method, path, status, text)
	}
	return text, err
}

func ready() error {
	_, err := must("GET", "/readyz", "")
	return err
}

// rotateOnce publishes another version.
func rotateOnce() error {
	if err := renew(); err != nil {
		return err
	}
	_, err := must("POST", "/v1/refresh", "")
	return err
}

func evidence() error {
	nonce := make([]byte, 32)
	rand.Read(nonce)
	_, err := must("POST", "/v1/evidence", fmt.Sprintf(`{"nonce": %q, "bind": "client"}`, base64.RawURLEncoding.EncodeToString(nonce)))
	return err
}

// status is what is needed of `sevagent status --json`.
type status struct {
	Attestation struct {
		Transport  string `json:"transport"`
		GatePassed bool   `json:"gate_passed"`
		Verdict    string `json:"verdict"`
		Roots      string `json:"roots"`
		Signer     string `json:"signer"`
	} `json:"attestation"`
}

func getStatus() (s status, err error) {
	text, err := command("sevagent", "status", "--json")
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	return s, err
}

// command runs one to its end, and returns what it prints.
func command(name string, args ...string) ([]byte, error) {
	cmd := exec.Command(name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s%s", name, strings.Join(args, " "), err, stderr.Bytes(), stdout.Bytes())
	}
	return stdout.Bytes(), nil
}

// show returns a property of a unit.
func show(unit, property string) (string, error) {
	text, err := command("systemctl", "show", "--value", "--property", property, unit)
	return strings.TrimSpace(string(text)), err
}

// number returns a property of a unit that is one.
func number(unit, property string) (uint64, error) {
	text, err := show(unit, property)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s of %s: %w", property, unit, err)
	}
	return n, nil
}

// state wants a unit to be in one.
func state(unit, want string) error {
	got, err := show(unit, "ActiveState")
	if err == nil && got != want {
		text, _ := command("journalctl", "--no-pager", "--output=cat", "--lines=5", "--unit", unit)
		err = fmt.Errorf("%s is %s, want %s: %s", unit, got, want, text)
	}
	return err
}

// configure adds to the agent's configuration and to its unit; it takes effect at the next start.
func configure(yaml, unit string) error {
	if err := os.WriteFile("/etc/sevagent/conf.d/90-lab.yaml", []byte(yaml), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile("/etc/systemd/system/sevagent.service.d/90-lab.conf", []byte(unit), 0o644); err != nil {
		return err
	}
	_, err := command("systemctl", "daemon-reload")
	return err
}

// publishTo has the agent publish on a disk. service is for its unit.
func publishTo(dir, service string) error {
	return configure(fmt.Sprintf("mtls: {path: %s, allow_disk: true}\n", dir), fmt.Sprintf("[Unit]\nRequiresMountsFor=%[1]s\n[Service]\nReadWritePaths=%[1]s\n%[2]s", dir, service))
}

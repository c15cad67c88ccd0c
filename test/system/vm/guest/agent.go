package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"sevagent/client"
	"sevagent/test/lab"
)

const policy = "/lab/device/policy.yaml"

var agent = client.New("")

func ready() error { return lab.Ready(context.Background(), agent) }

// rotateOnce publishes another version.
func rotateOnce() error {
	if err := renew(); err != nil {
		return err
	}
	_, err := agent.Refresh(context.Background())
	return err
}

func evidence() error {
	nonce := make([]byte, 32)
	rand.Read(nonce)
	_, err := agent.Evidence(context.Background(), nonce, client.BindClient)
	return err
}

// attestation is what the command says of it.
func attestation() (client.Attestation, error) {
	var s client.Status
	text, err := command("sevagent", "status", "--json")
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	return s.Attestation, err
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

// state checks that a unit is in a state.
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
	return configure(fmt.Sprintf("mtls: {path: %s, allow_disk: true}\n", dir),
		fmt.Sprintf("[Unit]\nRequiresMountsFor=%[1]s\n[Service]\nReadWritePaths=%[1]s\n%[2]s", dir, service))
}

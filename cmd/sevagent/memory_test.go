package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"sevagent/client"
	"sevagent/internal/must"
)

// TestMemoryIsPrivate: another process of the agent's user, which is not root, can read neither its memory nor its
// environment.
func TestMemoryIsPrivate(t *testing.T) {
	dir := must.Get(os.MkdirTemp("", "ag"))(t, "make a directory") // one that another user can use
	defer os.RemoveAll(dir)
	must.Do(t, os.Chmod(dir, 0o777), "open the directory to others")
	user := new(syscall.SysProcAttr)
	if os.Getuid() == 0 {
		user.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	}
	program := filepath.Join(dir, "sevagent") // TestMain goes by the name
	self := must.Get(os.ReadFile(must.Get(os.Executable())(t, "find the program")))(t, "read the program")
	must.Do(t, os.WriteFile(program, self, 0o755), "copy the program")
	socket := filepath.Join(dir, "socket")
	config := filepath.Join(dir, "config.yaml")
	text := fmt.Sprintf("attestation: {mode: \"off\"}\nlisten: {socket: %s, tcp: \"\"}\n"+
		"mtls: {path: %s, allow_disk: true}\n",
		socket, filepath.Join(dir, "mtls"))
	must.Do(t, os.WriteFile(config, []byte(text), 0o644), "write the configuration")

	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	agent := exec.CommandContext(ctx, program, "run", "--config", config)
	agent.SysProcAttr, agent.Env = user, append(os.Environ(), "AWS_EC2_METADATA_DISABLED=true")
	agent.Cancel = func() error { return agent.Process.Signal(syscall.SIGTERM) }
	var output bytes.Buffer
	agent.Stdout, agent.Stderr = &output, &output
	must.Do(t, agent.Start(), "start the agent")
	defer func() {
		stop()
		agent.Wait()
	}()
	for {
		if _, err := client.New(socket).Status(ctx); err == nil {
			break
		} else if ctx.Err() != nil {
			t.Fatalf("the agent does not answer: %v\n%s", err, output.String())
		}
		time.Sleep(10 * time.Millisecond)
	}

	for file, private := range map[string]bool{
		"environ": true, "maps": true, "auxv": true, "mem": true, "status": false,
	} {
		path := fmt.Sprintf("/proc/%d/%s", agent.Process.Pid, file)
		open := exec.CommandContext(ctx, "dd", "if="+path, "count=0") // reads nothing
		open.SysProcAttr = user
		if err := open.Run(); (err != nil) != private {
			t.Errorf("open %s as the agent's user: %v, want that it is refused: %v", path, err, private)
		}
	}
}

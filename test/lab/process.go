package lab

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sevagent/internal/must"
)

// Environment is that of a program on a node: no proxies, no certificates, no AWS but what more says.
func Environment(more ...string) []string {
	return append([]string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent"}, more...)
}

// Process is a program that runs until the test ends.
type Process struct {
	*os.Process
	Ended  <-chan struct{} // closed when it has
	Output *Output         // what it has printed, unless the command had a place for its standard output
	name   string
	cmd    *exec.Cmd
}

// Output is what a program prints, and can be read while it does.
type Output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *Output) Write(text []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(text)
}

func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// Start runs a program until the test ends, and shows what it printed if the test fails.
func Start(t testing.TB, name string, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{Output: new(Output), name: name, cmd: cmd}
	if cmd.Stdout == nil {
		cmd.Stdout = p.Output
	}
	cmd.Stderr = p.Output
	if cmd.Env == nil {
		cmd.Env = Environment()
	}
	must.Do(t, cmd.Start(), "start %s", name)
	p.Process = cmd.Process
	ended := make(chan struct{})
	p.Ended = ended
	go func() {
		cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		p.Stop(t, syscall.SIGTERM)
		if text := p.Output.String(); t.Failed() && text != "" {
			t.Logf("%s printed:\n%s", name, Tail(text))
		}
	})
	return p
}

// Stop sends a signal that ends the program, and returns when it has ended.
func (p *Process) Stop(t testing.TB, signal syscall.Signal) {
	t.Helper()
	p.Signal(signal)
	select {
	case <-p.Ended:
	case <-time.After(Hang):
		t.Errorf("%s does not end on %v", p.name, signal)
		p.Kill()
		<-p.Ended
	}
}

// Failed waits for the end of the program, and reports whether its exit status is not 0.
func (p *Process) Failed() bool {
	<-p.Ended
	return !p.cmd.ProcessState.Success()
}

// Run runs a command to its end, and returns what it printed and its exit status.
func Run(t testing.TB, cmd *exec.Cmd) (stdout, stderr string, status int) {
	t.Helper()
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatalf("run %s: %v", strings.Join(cmd.Args, " "), err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// MustRun is Run for a command that has to succeed.
func MustRun(t testing.TB, cmd *exec.Cmd) (stdout string) {
	t.Helper()
	out, errs, status := Run(t, cmd)
	if status != 0 {
		t.Fatalf("%s: exit status %d\n%s%s", strings.Join(cmd.Args, " "), status, Tail(out), Tail(errs))
	}
	return out
}

//go:build node

// Package docker tests the unmodified agent with a real Docker daemon: signals to containers, containers that a
// rotation does not reach, and containers that are up to no good. test/run prepares the namespaces that it runs in.
package docker

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sevagent/internal/must"
	"sevagent/test/lab"
)

// The images. That of the container's own process, and the same with a label of its own.
const (
	image = "inhabitant"
)

// task is what the ECS agent would call the containers' task.
var task = os.Getenv("SEVAGENT_TASK")

func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) != "" {
		if err := inhabit(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if lab.Work() == "" {
		fmt.Println("skipped: test/docker: run by test/run")
		return
	}
	os.Exit(run(m))
}

// errCannot: Docker does not work here, whatever the agent does.
var errCannot = errors.New("docker does not work here")

func run(m *testing.M) int {
	stop, err := startDocker()
	defer stop()
	if errors.Is(err, errCannot) {
		fmt.Println("skipped: test/docker:", err)
		return 0
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// startDocker starts a daemon at Docker's default socket, in a /run of our own, with the images, and sees a container
// through.
func startDocker() (stop func(), err error) {
	dir := filepath.Join(lab.Work(), "machine/docker")
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return func() {}, err
	}
	cmd := exec.Command("dockerd", "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "pid"), "--host", "unix:///run/docker.sock",
		"--bridge=none", "--iptables=false", "--ip6tables=false", "--exec-opt", "native.cgroupdriver=cgroupfs",
		"--cgroup-parent", "/ecs/"+task)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return func() {}, fmt.Errorf("%w: %v", errCannot, err)
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	stop = func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(lab.Hang):
			cmd.Process.Kill()
			<-ended
		}
		log.Close()
	}
	cannot := func(err error) error {
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("%w: %v; dockerd printed:\n%s", errCannot, err, text[max(0, len(text)-2000):])
	}
	if err := lab.Poll(func() error {
		select {
		case <-ended:
			return nil
		default:
			_, err := docker(nil, "version")
			return err
		}
	}); err != nil {
		return stop, cannot(err)
	}
	if err := makeImage(image); err != nil {
		return stop, cannot(err)
	}
	if _, err := docker(nil, "run", "--rm", "--network", "none", image); err != nil {
		return stop, cannot(err)
	}
	return stop, nil
}

// makeImage makes an image of nothing but this binary.
func makeImage(name string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	content, err := os.ReadFile(self)
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	err = w.WriteHeader(&tar.Header{Name: "inhabitant", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content))})
	if err == nil {
		_, err = w.Write(content)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		return err
	}
	_, err = docker(&archive, "import", "--change", `ENTRYPOINT ["/inhabitant"]`, "--change", "ENV "+roleVariable+"=1",
		"-", name)
	return err
}

// docker runs a command of Docker's client.
func docker(stdin io.Reader, args ...string) (string, error) {
	cmd := exec.Command("docker", args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("docker %s: %v: %s", args[0], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// container is one that runs an inhabitant.
type container struct {
	t       *testing.T
	name    string
	id      string
	stdin   io.WriteCloser
	replies chan reply
}

// startContainer runs a container until the test ends.
func startContainer(t *testing.T, image string, args ...string) *container {
	t.Helper()
	create := append([]string{"create", "-i"}, args...)
	if !slices.ContainsFunc(args, func(arg string) bool { return strings.HasPrefix(arg, "--network") }) {
		create = append(create, "--network=none")
	}
	id := must.Get(docker(nil, append(create, image)...))(t, "create a container")
	cmd := exec.Command("docker", "start", "-a", "-i", id)
	stdin := must.Get(cmd.StdinPipe())(t, "make a pipe")
	stdout, in, err := os.Pipe()
	must.Do(t, err, "make a pipe")
	cmd.Stdout, cmd.Env = in, os.Environ()
	p := lab.Start(t, "container "+strings.Join(args, " "), cmd)
	in.Close()
	c := &container{t: t, name: strings.Join(args, " "), id: id, stdin: stdin, replies: make(chan reply)}
	go func() {
		defer stdout.Close()
		defer close(c.replies)
		for dec := json.NewDecoder(stdout); ; {
			var r reply
			if dec.Decode(&r) != nil {
				return
			}
			select {
			case c.replies <- r:
			case <-t.Context().Done():
			}
		}
	}()
	t.Cleanup(func() {
		c.remove()
		<-p.Ended
	})
	c.ask("signals") // it has its handlers
	return c
}

func (c *container) remove() {
	c.t.Helper()
	if _, err := docker(nil, "rm", "-f", c.id); err != nil && !strings.Contains(err.Error(), "No such container") {
		c.t.Error("remove a container:", err)
	}
}

// ask has the inhabitant do something, and returns what it says of it.
func (c *container) ask(command string) reply {
	c.t.Helper()
	if _, err := io.WriteString(c.stdin, command+"\n"); err != nil {
		c.t.Fatalf("container %s: %s: %v", c.name, command, err)
	}
	select {
	case r, ok := <-c.replies:
		if !ok || r.Err != "" {
			c.t.Fatalf("container %s: %s: %s", c.name, command, r.Err)
		}
		return r
	case <-time.After(lab.Hang):
		c.t.Fatalf("container %s: %s: no answer", c.name, command)
		panic("not reached")
	}
}

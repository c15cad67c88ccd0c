package localapi

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sevagent/internal/appraise"
	"sevagent/internal/attest"
	"sevagent/internal/evidence"
	"sevagent/internal/must"
	"sevagent/internal/promtext"
	"sevagent/internal/sim"
	"sevagent/internal/sim/simdevice"
	"sevagent/internal/snp"
)

// memorySocket names, to a copy of this program, the socket on which to serve evidence until its input ends.
const memorySocket = "SEVAGENT_TEST_MEMORY_SOCKET"

// What the unit gives the agent, and how many may wait for it.
const (
	unitMemory = 256 << 20
	goMemory   = unitMemory / 10 * 7
	waiting    = 6000
)

// gated is a simulated device that answers once a line comes.
type gated struct {
	attest.Transport
	open chan struct{}
}

func (g gated) Report(reportData [snp.ReportDataSize]byte) (attest.Quote, error) {
	<-g.open
	return g.Transport.Report(reportData)
}

// TestMemoryServer is no test: it serves evidence of a simulated device on memorySocket.
func TestMemoryServer(t *testing.T) {
	socket := os.Getenv(memorySocket)
	if socket == "" {
		t.Skip("TestMemory starts it")
	}
	o := sim.DefaultOptions(time.Now())
	psp := must.Get(sim.New(o))(t, "make a simulator")
	policy := must.Get(appraise.Builtin(appraise.AWSShared))(t, "take a built-in policy")
	policy.RootsPEM = psp.Roots()
	verifier := must.Get(appraise.New(appraise.Config{Policy: policy, Region: o.Region}))(t, "make a verifier")
	device := gated{simdevice.Transport{PSP: psp}, make(chan struct{})}
	worker := attest.New(attest.Config{Transport: device, Verifier: verifier, Enforce: true, Rate: 100, Burst: 100,
		Log: slog.New(slog.DiscardHandler), Metrics: promtext.New()})
	// The callers are one service of the node's own user, which has no limit of connections.
	callers, proc := newCallers(t, "")
	proc.set(os.Getppid(), service, stat("x", "S", 1))
	server := New(Config{
		Callers: callers, Evidence: worker.Evidence, Metrics: promtext.New(),
		Log:      slog.New(slog.DiscardHandler),
		BoundKey: func(string) ([]byte, bool) { return make([]byte, sha256.Size), true },
	})
	listener := must.Get(net.Listen("unix", socket))(t, "listen")
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { must.Do(t, worker.Run(ctx), "run the worker") })
	running.Go(func() { must.Do(t, server.Run(ctx, listener, nil), "run the server") })

	line := make([]byte, 1)
	must.Get(io.ReadFull(os.Stdin, line))(t, "wait until all callers wait")
	close(device.open)
	os.Stdin.Read(line)
	stop()
	running.Wait()
}

// TestMemory: as many callers as may wait at once get their evidence within the memory of the unit, whose kernel kills
// what needs more. It counts what the kernel keeps for the connections, too, if it can make a cgroup.
func TestMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("needs six thousand connections")
	}
	var limit syscall.Rlimit
	must.Do(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit), "read the limit of open files")
	if limit.Max < waiting+1000 {
		t.Skipf("may open %d files, needs %d", limit.Max, waiting+1000)
	}
	dir := must.Get(os.MkdirTemp("", "la"))(t, "make a directory for the socket") // sockets have short paths
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	// Without the race detector, which needs several times the memory.
	program := filepath.Join(dir, "localapi.test")
	build := exec.Command("go", "test", "-c", "-race=false", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the server: %v\n%s", err, out)
	}
	group, why := newMemoryGroup(t, unitMemory)
	if why != nil {
		t.Logf("the limit is that of the process alone: %v", why)
	}
	server := exec.Command(program, "-test.run=^TestMemoryServer$")
	server.Env = append(os.Environ(), memorySocket+"="+socket, "GOMEMLIMIT="+strconv.Itoa(goMemory))
	var output bytes.Buffer
	server.Stdout, server.Stderr = &output, &output
	lines := must.Get(server.StdinPipe())(t, "make a pipe")
	must.Do(t, group.start(server), "start the server")
	defer func() {
		lines.Close()
		if err := server.Wait(); err != nil {
			t.Errorf("the server: %v\n%s", err, output.String())
		}
	}()

	connections := make([]net.Conn, 0, waiting)
	for i := range waiting {
		conn, err := dial(t.Context(), socket)
		must.Do(t, err, "connect caller %d", i)
		defer conn.Close()
		body := fmt.Sprintf(`{"nonce": %q, "bind": "client"}`, nonceOf(i))
		fmt.Fprintf(conn, "POST /v1/evidence HTTP/1.1\r\nHost: s\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		connections = append(connections, conn)
	}
	before := residentPeak(t, server.Process.Pid)
	must.Get(lines.Write([]byte("\n")))(t, "open the gate")

	// Nobody reads before everybody is answered: the worst that callers can do.
	for i, conn := range connections {
		must.Do(t, awaitAnswer(conn), "wait for the answer to caller %d", i)
	}
	var failed sync.Map
	var readers sync.WaitGroup
	for i, conn := range connections {
		readers.Go(func() {
			if err := readEvidence(conn, i); err != nil {
				failed.Store(i, err)
			}
		})
	}
	readers.Wait()
	late := 0
	failed.Range(func(i, err any) bool {
		if errors.Is(err.(error), io.ErrUnexpectedEOF) { // cut off: on a busy machine, it read too late
			late++
			return true
		}
		t.Errorf("caller %d: %v", i, err)
		return false
	})
	if late > 0 {
		t.Logf("%d of %d callers read too late", late, waiting)
	}
	after := residentPeak(t, server.Process.Pid)
	t.Logf("%d callers: %d kB each while they wait, %d at the end", waiting, before/waiting>>10, after/waiting>>10)
	if peak := group.peak(t); peak > 0 {
		t.Logf("with the kernel's part: %d kB each, %d MB in total", peak/waiting>>10, peak>>20)
	}
	if after > unitMemory {
		t.Errorf("the server needed %d MB, the unit has %d", after>>20, unitMemory>>20)
	}
}

func dial(ctx context.Context, socket string) (conn net.Conn, err error) {
	for range 1000 {
		conn, err = new(net.Dialer).DialContext(ctx, "unix", socket)
		notYet := errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)
		if !notYet && !errors.Is(err, syscall.EAGAIN) {
			return conn, err
		}
		time.Sleep(10 * time.Millisecond) // until it listens, or has accepted some
	}
	return nil, err
}

// awaitAnswer returns when conn has something to read, and leaves it there.
func awaitAnswer(conn net.Conn) error {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		_, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK)
		return !errors.Is(err, syscall.EAGAIN)
	})
}

// readEvidence reads the evidence of caller i.
func readEvidence(conn net.Conn, i int) error {
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%s: %s", resp.Status, text)
	case resp.ContentLength != int64(len(text)):
		return fmt.Errorf("%d bytes, Content-Length is %d", len(text), resp.ContentLength)
	}
	doc, err := evidence.Parse(text)
	if err != nil {
		return err
	}
	root, err := doc.Root()
	if err != nil {
		return err
	}
	report, err := snp.ParseReport(doc.Report)
	if err != nil {
		return err
	}
	got := base64.RawURLEncoding.EncodeToString(doc.Nonce)
	if want := nonceOf(i); got != want || report.ReportData != root {
		return fmt.Errorf("nonce %s, want %s, REPORT_DATA %x, want %x", got, want, report.ReportData, root)
	}
	return nil
}

// nonceOf is caller i's nonce.
func nonceOf(i int) string { return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%016d", i)) }

// residentPeak returns the most memory that a process had resident, in bytes.
func residentPeak(t *testing.T, pid int) int {
	t.Helper()
	status := must.Get(os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)))(t, "read the server's status")
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	number, _, _ := strings.Cut(strings.TrimSpace(rest), " kB")
	return must.Get(strconv.Atoi(number))(t, "read VmHWM") << 10
}

// memoryGroup is a cgroup with a limit on memory; the zero value is none.
type memoryGroup struct {
	dir      string
	peakFile string
}

func newMemoryGroup(t *testing.T, limit int) (memoryGroup, error) {
	if os.Getuid() != 0 {
		return memoryGroup{}, errors.New("only root makes cgroups")
	}
	for _, v := range []struct{ root, limit, peak string }{
		{"/sys/fs/cgroup", "memory.max", "memory.peak"},
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"},
	} {
		if _, err := os.Stat(filepath.Join(v.root, "cgroup.procs")); err != nil {
			continue
		}
		dir := filepath.Join(v.root, fmt.Sprintf("sevagent-test-%d", os.Getpid()))
		if err := os.Mkdir(dir, 0o755); err != nil {
			return memoryGroup{}, err
		}
		t.Cleanup(func() { os.Remove(dir) })
		if err := os.WriteFile(filepath.Join(dir, v.limit), []byte(strconv.Itoa(limit)), 0); err != nil {
			return memoryGroup{}, err
		}
		return memoryGroup{dir, filepath.Join(dir, v.peak)}, nil
	}
	return memoryGroup{}, errors.New("no hierarchy of cgroups is mounted")
}

func (g memoryGroup) start(cmd *exec.Cmd) error {
	if g.dir == "" {
		return cmd.Start()
	}
	cmd.Path, cmd.Args = "/bin/sh", append([]string{"sh", "-c", `echo $$ >"$0" && exec "$@"`,
		filepath.Join(g.dir, "cgroup.procs")}, cmd.Args...)
	return cmd.Start()
}

func (g memoryGroup) peak(t *testing.T) int {
	t.Helper()
	if g.dir == "" {
		return 0
	}
	text := must.Get(os.ReadFile(g.peakFile))(t, "read the cgroup's peak")
	return must.Get(strconv.Atoi(strings.TrimSpace(string(text))))(t, "read a number")
}

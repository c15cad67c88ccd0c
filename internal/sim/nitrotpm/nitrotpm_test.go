package nitrotpm_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/internal/must"
	"sevagent/internal/sim/nitrotpm"
	"sevagent/internal/sim/simnitro"
	"sevagent/internal/tpm"
)

func simulated(t *testing.T) (*nitrotpm.TPM, *simnitro.CA) {
	t.Helper()
	ca := must.Get(simnitro.New())(t, "make a root")
	return nitrotpm.New(ca), ca
}

// send sends a command and returns the code of its answer and what follows it. Parts are numbers, or bytes.
func send(t *testing.T, f io.ReadWriter, tag uint16, code uint32, parts ...any) (uint32, []byte) {
	t.Helper()
	command := make([]byte, 10)
	for _, part := range parts {
		command = must.Get(binary.Append(command, binary.BigEndian, part))(t, "write a command")
	}
	binary.BigEndian.PutUint16(command, tag)
	binary.BigEndian.PutUint32(command[2:], uint32(len(command)))
	binary.BigEndian.PutUint32(command[6:], code)
	must.Get(f.Write(command))(t, "send the command %#x", code)
	answer := make([]byte, 4096)
	n := must.Get(f.Read(answer))(t, "read the answer to %#x", code)
	if n < 10 || binary.BigEndian.Uint32(answer[2:]) != uint32(n) {
		t.Fatalf("an answer of %d bytes: %x", n, answer[:n])
	}
	return binary.BigEndian.Uint32(answer[6:]), answer[10:n]
}

const (
	plain, sessions = 0x8001, 0x8002
	owner           = uint32(0x40000001)
	index           = uint32(0x01800000)
)

// password is an authorisation area with one password.
func password(p string) []byte {
	area := binary.BigEndian.AppendUint32(nil, uint32(9+len(p)))
	area = append(area, 0x40, 0, 0, 9, 0, 0, 0, 0, byte(len(p)))
	return append(area, p...)
}

// define defines an index of 8192 bytes with the password "secret".
func define(t *testing.T, f io.ReadWriter, index, attributes uint32) uint32 {
	t.Helper()
	rc, _ := send(t, f, sessions, 0x12a, owner, password(""), uint16(6), []byte("secret"),
		uint16(14), index, uint16(0xb), attributes, uint16(0), uint16(8192))
	return rc
}

// TestRefusals: what swtpm and the specification say of mistakes.
func TestRefusals(t *testing.T) {
	sim, _ := simulated(t)
	f := must.Get(sim.Open(nitrotpm.Raw))(t, "open the TPM")
	want := func(what string, want uint32) func(uint32, []byte) {
		return func(got uint32, _ []byte) {
			t.Helper()
			if got != want {
				t.Errorf("%s: %#x, want %#x", what, got, want)
			}
		}
	}
	const attributes, noDA = 0x00040004, 0x02040004
	want("an unknown command", 0x143)(send(t, f, plain, 0x144))
	want("no authorisation", 0x125)(send(t, f, plain, 0x122, owner, owner))
	want("an index that is not there", 0x28b)(send(t, f, sessions, 0x122, owner, index, password("")))
	want("the owner's password", 0x9a2)(send(t, f, sessions, 0x12a, owner, password("x"), uint16(0), uint16(0)))
	want("define", 0)(define(t, f, index, attributes), nil)
	want("define twice", 0x14c)(define(t, f, index, attributes), nil)
	want("read before a write", 0x14a)(send(t, f, sessions, 0x14e, index, index, password("secret"), uint16(1), uint16(0)))
	want("write", 0)(send(t, f, sessions, 0x137, index, index, password("secret"), uint16(1), []byte{1}, uint16(0)))
	want("write beyond the end", 0x146)(
		send(t, f, sessions, 0x137, index, index, password("secret"), uint16(1), []byte{1}, uint16(8192)))
	want("read too much at once", 0x1d5)(
		send(t, f, sessions, 0x14e, index, index, password("secret"), uint16(2049), uint16(0)))
	want("something after the parameters", 0x095)(
		send(t, f, sessions, 0x14e, index, index, password("secret"), uint16(1), uint16(0), uint16(0)))
	if rc, out := send(t, f, sessions, 0x14e, index, index, password("secret"), uint16(2), uint16(0)); rc != 0 ||
		!bytes.Equal(out[:8], []byte{0, 0, 0, 4, 0, 2, 1, 0xff}) {
		t.Errorf("read: %#x, %x; want what was written, then 0xff", rc, out)
	}

	// Wrong passwords count, unless the index is exempt.
	want("define with NO_DA", 0)(define(t, f, index+1, noDA), nil)
	for range 40 {
		want("a wrong password with NO_DA", 0x9a2)(
			send(t, f, sessions, 0x14e, index+1, index+1, password("wrong"), uint16(1), uint16(0)))
	}
	for range 32 {
		want("a wrong password", 0x98e)(
			send(t, f, sessions, 0x14e, index, index, password("wrong"), uint16(1), uint16(0)))
	}
	want("the right one after 32 wrong ones", 0x921)(
		send(t, f, sessions, 0x14e, index, index, password("secret"), uint16(1), uint16(0)))

	for i := range uint32(2) {
		want("define more", 0)(define(t, f, index+2+i, noDA), nil)
	}
	want("define a fifth", 0x14b)(define(t, f, index+4, noDA), nil)
	sim.Restart()
	if indices, _, _ := sim.Left(); indices != 4 {
		t.Errorf("after a restart there are %d indices, want 4", indices)
	}
}

// TestHMAC: a session's HMAC that is wrong is refused. That right ones are accepted, AWS's client shows.
func TestHMAC(t *testing.T) {
	sim, _ := simulated(t)
	f := must.Get(sim.Open(nitrotpm.Raw))(t, "open the TPM")
	if rc := define(t, f, index, 0x02040004); rc != 0 {
		t.Fatalf("define: %#x", rc)
	}
	null := uint32(0x40000007)
	unsalted := []any{null, null, uint16(32), make([]byte, 32), uint16(0), byte(0), uint16(0x10), uint16(0xb)}
	rc, out := send(t, f, plain, 0x176, unsalted...)
	if rc != 0 {
		t.Fatalf("start a session: %#x", rc)
	}
	area := append(append(out[:4:4], 0, 32), make([]byte, 32)...)
	area = append(append(area, 1, 0, 32), make([]byte, 32)...)
	rc, _ = send(t, f, sessions, 0x137, index, index, uint32(len(area)), area, uint16(1), []byte{1}, uint16(0))
	if rc != 0x9a2 {
		t.Errorf("a wrong HMAC: %#x, want 0x9a2", rc)
	}
	if _, _, left := sim.Left(); left != 1 {
		t.Errorf("%d sessions, want 1", left)
	}
	// The manager's end with their user.
	managed := must.Get(sim.Open(nitrotpm.Manager))(t, "open the resource manager")
	send(t, managed, plain, 0x176, unsalted...)
	if _, _, left := sim.Left(); left != 2 {
		t.Errorf("%d sessions, want 2", left)
	}
	must.Do(t, managed.Close(), "close the resource manager")
	if _, _, left := sim.Left(); left != 1 {
		t.Errorf("%d sessions after the resource manager was closed, want 1", left)
	}
}

// mount mounts the simulator until the test ends.
func mount(t *testing.T, sim *nitrotpm.TPM) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("there is no /dev/fuse")
	}
	dir := t.TempDir()
	server := must.Get(nitrotpm.Mount(dir, sim))(t, "mount the file system")
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Errorf("unmount: %v", err)
		}
		server.Wait()
	})
	return dir
}

// TestFiles: the files are those of the kernel, and the product's client works through them.
func TestFiles(t *testing.T) {
	sim, ca := simulated(t)
	dir := mount(t, sim)
	raw := filepath.Join(dir, nitrotpm.Raw)
	f := must.Get(os.OpenFile(raw, os.O_RDWR, 0))(t, "open the TPM")
	if _, err := os.OpenFile(raw, os.O_RDWR, 0); !errors.Is(err, unix.EBUSY) {
		t.Errorf("a second user: %v, want EBUSY", err)
	}
	inherited := must.Get(exec.Command("ls", "-l", "/proc/self/fd").Output())(t, "list the files that a child has open")
	if bytes.Contains(inherited, []byte("/dev/fuse")) {
		t.Errorf("a child has the connection to the kernel open:\n%s", inherited)
	}
	capability := []any{uint32(6), uint32(0x12c), uint32(1)}
	if rc, out := send(t, f, plain, 0x17a, capability...); rc != 0 || len(out) != 17 {
		t.Errorf("GetCapability: %#x, %x", rc, out)
	}
	if n, err := f.Read(make([]byte, 10)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("after the answer: %d bytes, %v, want the end", n, err)
	}
	must.Get(f.Write([]byte{0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 8}))(t, "ask for random bytes")
	if _, err := f.Write(make([]byte, 10)); !errors.Is(err, unix.EBUSY) {
		t.Errorf("a command before the answer is read: %v, want EBUSY", err)
	}
	must.Do(t, f.Close(), "close the TPM")

	sim.SetFault(nitrotpm.FaultManager)
	agent := tpm.New(tpm.Config{
		Paths: []string{filepath.Join(dir, nitrotpm.Manager), raw}, Roots: ca.Pool(), Budget: time.Minute,
		Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- agent.Run(ctx) }()
	for range 3 {
		_, _, err := agent.Document(t.Context(), [64]byte{1}, [64]byte{2})
		must.Do(t, err, "get a document")
	}
	if s := agent.State(); s.Path != raw {
		t.Errorf("the document came through %s, want %s", s.Path, raw)
	}
	cancel()
	must.Do(t, <-ended, "run the agent's part")
	if indices, objects, sessions := sim.Left(); indices+objects+sessions != 0 {
		t.Errorf("left: %d indices, %d objects, %d sessions", indices, objects, sessions)
	}
}

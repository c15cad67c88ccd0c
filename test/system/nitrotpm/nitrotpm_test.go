//go:build system

// Package nitrotpm holds the simulated NitroTPM against AWS's own client, and the agent's client against the simulator
// and swtpm: each proves another. AWS's speaks to the TPM in salted sessions with encrypted parameters, the agent's with
// a password.
package nitrotpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sevagent/internal/must"
	"sevagent/internal/nitro"
	"sevagent/internal/sim/nitrotpm"
	"sevagent/internal/sim/simnitro"
	"sevagent/internal/tpm"
	"sevagent/test/lab"
)

// environment makes the programs of test/system/nitrotpm/make find their libraries.
func environment(t *testing.T, more ...string) []string {
	t.Helper()
	libraries := must.Get(filepath.Glob(filepath.Join(peers("root/usr/lib"), "*-linux-gnu*")))(t, "find the libraries")
	if len(libraries) != 1 {
		t.Fatalf("libraries in %q, want one directory", libraries)
	}
	return lab.Environment(append(more, "LD_LIBRARY_PATH="+libraries[0]+":"+filepath.Join(libraries[0], "swtpm"))...)
}

func peers(path string) string { return filepath.Join(lab.Repository(), ".cache/nitrotpm", path) }

// node is a simulated NitroTPM behind files, with both clients.
type node struct {
	sim *nitrotpm.TPM
	ca  *simnitro.CA
	dir string
}

func start(t *testing.T) *node {
	t.Helper()
	n := &node{ca: must.Get(simnitro.New())(t, "make a root"), dir: t.TempDir()}
	n.sim = nitrotpm.New(n.ca)
	server := must.Get(nitrotpm.Mount(n.dir, n.sim))(t, "mount a simulated NitroTPM")
	t.Cleanup(func() {
		must.Do(t, server.Unmount(), "unmount the simulated NitroTPM")
		server.Wait()
	})
	return n
}

// aws is AWS's client, with the contents of its options' files.
func (n *node) aws(t *testing.T, options map[string][]byte) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), peers("bin/nitro-tpm-attest"))
	dir := t.TempDir()
	for option, content := range options {
		path := filepath.Join(dir, option)
		lab.Write(t, path, string(content))
		cmd.Args = append(cmd.Args, "--"+option, path)
	}
	cmd.Env = environment(t, "TPM_DEVICE="+filepath.Join(n.dir, nitrotpm.Raw))
	return cmd
}

// agent runs the agent's client until the test ends.
func (n *node) agent(t *testing.T, open func(string) (io.ReadWriteCloser, error), files ...string) *tpm.TPM {
	t.Helper()
	var paths []string
	for _, f := range files {
		paths = append(paths, filepath.Join(n.dir, f))
	}
	agent := tpm.New(tpm.Config{
		Paths: paths, Open: open, Roots: n.ca.Pool(), Budget: time.Minute, Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- agent.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		must.Do(t, <-ended, "run the agent's client")
	})
	return agent
}

func (n *node) empty(t *testing.T) {
	t.Helper()
	if indices, objects, sessions := n.sim.Left(); indices+objects+sessions != 0 {
		t.Errorf("left in the TPM: %d indices, %d objects, %d sessions", indices, objects, sessions)
	}
}

// TestBothClients: AWS's client is content with the simulator, and prints the document that the agent gets.
func TestBothClients(t *testing.T) {
	n := start(t)
	userData, nonce := [64]byte{1, 2, 3}, [64]byte{4, 5, 6}
	fields := map[string][]byte{"user-data": userData[:], "nonce": nonce[:]}
	theirs := []byte(lab.MustRun(t, n.aws(t, fields)))
	n.empty(t)
	agent := n.agent(t, nil, nitrotpm.Manager, nitrotpm.Raw)
	ours, _, err := agent.Document(t.Context(), userData, nonce)
	must.Do(t, err, "get a document with the agent's client")
	n.empty(t)
	verify := func(document []byte) *nitro.Document {
		t.Helper()
		d, err := nitro.Verify(document, nitro.Config{Roots: n.ca.Pool(), Now: time.Now()})
		if err != nil {
			t.Fatalf("verify: %v", err)
		}
		return d
	}
	a, b := verify(theirs), verify(ours)
	b.Timestamp = a.Timestamp
	if got, want := fmt.Sprintf("%+v", b), fmt.Sprintf("%+v", a); got != want {
		t.Errorf("AWS's client and the agent's get different documents:\n%s\n%s", want, got)
	}
	if !bytes.Equal(a.UserData, userData[:]) || !bytes.Equal(a.Nonce, nonce[:]) || a.PublicKey != nil {
		t.Errorf("the document of AWS's client does not carry what was asked for: %+v", a)
	}

	// The largest fields, and one byte more.
	large := bytes.Repeat([]byte{7}, 1024)
	all := map[string][]byte{"user-data": large, "nonce": large, "public-key": large}
	if d := verify([]byte(lab.MustRun(t, n.aws(t, all)))); len(d.UserData)+len(d.Nonce)+len(d.PublicKey) != 3*1024 {
		t.Errorf("fields of %d, %d and %d bytes, want 1024 each", len(d.UserData), len(d.Nonce), len(d.PublicKey))
	}
	_, said, status := lab.Run(t, n.aws(t, map[string][]byte{"user-data": append(large, 7)}))
	if status == 0 || !strings.Contains(said, "InputTooLarge") {
		t.Errorf("1025 bytes: exit status %d, %s", status, said)
	}
	n.empty(t)
}

// TestSideBySide: AWS's client has /dev/tpm0 for itself; the agent goes through the resource manager, or waits.
func TestSideBySide(t *testing.T) {
	n := start(t)
	for _, path := range []string{nitrotpm.Manager, nitrotpm.Raw} {
		agent := n.agent(t, nil, path)
		stop := make(chan struct{})
		ended := make(chan error, 1)
		go func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					ended <- nil
					return
				case <-time.After(5 * time.Millisecond): // or AWS's client, which does not wait, has no chance
				}
				_, _, err := agent.Document(t.Context(), [64]byte{byte(i)}, [64]byte{})
				if path == nitrotpm.Raw && errors.Is(err, tpm.ErrBusy) {
					err = nil
				}
				if err != nil {
					ended <- err
					return
				}
			}
		}()
		documents := 0
		for i := 0; i < 20 && documents < 3; i++ {
			_, said, status := lab.Run(t, n.aws(t, nil))
			if status == 0 {
				documents++
			} else if path == nitrotpm.Manager || !strings.Contains(said, "busy") && !strings.Contains(said, "0x000a0008") {
				t.Errorf("AWS's client beside the agent on %s: %s", path, said)
				break
			}
		}
		if path == nitrotpm.Manager && documents != 3 {
			t.Errorf("AWS's client got %d documents of 3", documents)
		}
		close(stop)
		if err := <-ended; err != nil {
			t.Errorf("the agent beside AWS's client on %s: %v", path, err)
		}
		n.sim.Restart() // an AWS client that failed halfway leaves its sessions
	}
}

// TestKilled: AWS's client, killed in the vendor command, leaves an index, a key and a session each time, until there is
// no room. The agent leaves nothing that its next start does not remove.
func TestKilled(t *testing.T) {
	n := start(t)
	for i := range 4 {
		n.sim.SetFault(nitrotpm.FaultHang)
		client := lab.Start(t, "nitro-tpm-attest", n.aws(t, nil))
		lab.Until(t, "AWS's client is at the vendor command", func() error {
			if !n.sim.Hangs() {
				return errors.New("it is not")
			}
			return nil
		})
		client.Stop(t, syscall.SIGKILL)
		n.sim.SetFault("")
		lab.Until(t, "the device is free", func() error {
			f, err := n.sim.Open(nitrotpm.Raw) // not through FUSE, which releases later
			if err == nil {
				err = f.Close()
			}
			return err
		})
		if indices, objects, _ := n.sim.Left(); indices != i+1 || objects != i+1 {
			t.Errorf("after %d kills: %d indices and %d keys are left", i+1, indices, objects)
		}
	}
	if _, said, status := lab.Run(t, n.aws(t, nil)); status == 0 || !strings.Contains(said, "0x14b") {
		t.Errorf("AWS's client with four indices left: exit status %d, %s; want NV_SPACE", status, said)
	}
	agent := n.agent(t, nil, nitrotpm.Manager)
	if _, _, err := agent.Document(t.Context(), [64]byte{}, [64]byte{}); tpm.Code(err) != "nitrotpm_nv_space" ||
		!strings.Contains(err.Error(), "its indices: [0x") {
		t.Errorf("the agent's error is %v, want that there is no room, and which indices there are", err)
	}
}

// swtpm is a connection to swtpm under which it passes for a NitroTPM: its name is another, the index smaller, and the
// vendor command answers an error. All else is swtpm's.
type swtpm struct {
	net.Conn
	codes   []uint32 // of answers other than success
	done    []uint32 // commands
	command []byte
}

func (s *swtpm) Close() error { return nil } // it stays for the next document

func (s *swtpm) Write(command []byte) (int, error) {
	be := binary.BigEndian
	s.command = slices.Clone(command)
	code := be.Uint32(command[6:])
	s.done = append(s.done, code)
	switch code {
	case 0x12a: // the last field of the public area, and of the command, is the size
		be.PutUint16(s.command[len(s.command)-2:], 2048)
	case 0x20000001: // a write of the answer, under the same authorisation
		answer := append([]byte("\xa1\x65Error\x6dInternalError"), 0xff, 0xff)
		s.command = be.AppendUint16(s.command, uint16(len(answer)))
		s.command = be.AppendUint16(append(s.command, answer...), 0)
		be.PutUint32(s.command[2:], uint32(len(s.command)))
		be.PutUint32(s.command[6:], 0x137)
	}
	if _, err := s.Conn.Write(s.command); err != nil {
		return 0, err
	}
	return len(command), nil
}

func (s *swtpm) Read(p []byte) (int, error) {
	be := binary.BigEndian
	if _, err := io.ReadFull(s.Conn, p[:10]); err != nil {
		return 0, err
	}
	n, err := io.ReadFull(s.Conn, p[10:be.Uint32(p[2:])])
	if rc := be.Uint32(p[6:]); rc != 0 {
		s.codes = append(s.codes, rc)
	}
	if be.Uint32(s.command[6:]) == 0x17a && be.Uint32(s.command[14:]) == 0x106 { // the vendor's name
		copy(p[23:], "Nitr")
		copy(p[31:], "oTPM")
	}
	return 10 + n, err
}

// TestSwtpm: swtpm takes the agent's commands, and puts the first use of an index off. It cannot be a NitroTPM: no index
// has more than 2048 bytes.
func TestSwtpm(t *testing.T) {
	n := &node{ca: must.Get(simnitro.New())(t, "make a root"), dir: t.TempDir()}
	socket := filepath.Join(n.dir, "socket")
	server := exec.Command(peers("root/usr/bin/swtpm"), "socket", "--tpm2", "--tpmstate", "dir="+n.dir,
		"--server", "type=unixio,path="+socket, "--flags", "not-need-init,startup-clear")
	server.Env = environment(t)
	lab.Start(t, "swtpm", server)
	var conn net.Conn
	lab.Until(t, "swtpm listens", func() (err error) {
		conn, err = net.Dial("unix", socket)
		return err
	})
	t.Cleanup(func() { conn.Close() })

	s := &swtpm{Conn: conn}
	agent := n.agent(t, func(string) (io.ReadWriteCloser, error) { return s, nil }, "swtpm")
	for i := range 3 {
		_, _, err := agent.Document(t.Context(), [64]byte{1}, [64]byte{2})
		if refused, ok := errors.AsType[*tpm.RefusedError](err); !ok || refused.Name != "InternalError" {
			t.Fatalf("request %d: %v, want the refusal that was written into the index", i, err)
		}
	}
	// At the start there is no index to remove; the first write is put off.
	if want := []uint32{0x28b, 0x922}; !slices.Equal(s.codes, want) {
		t.Errorf("swtpm refused with %#x, want %#x", s.codes, want)
	}
	if want := []uint32{0x12a, 0x137, 0x20000001, 0x14e, 0x122}; !slices.Equal(s.done[len(s.done)-5:], want) {
		t.Errorf("the last commands are %#x, want %#x", s.done[len(s.done)-5:], want)
	}

	// As itself, it is no NitroTPM, and nothing in it is touched.
	plain := n.agent(t, func(string) (io.ReadWriteCloser, error) { return itself{s}, nil }, "swtpm")
	before := len(s.done)
	if _, _, err := plain.Document(t.Context(), [64]byte{1}, [64]byte{2}); !errors.Is(err, tpm.ErrNotNitro) {
		t.Errorf("error %v, want ErrNotNitro", err)
	}
	for _, code := range s.done[before:] {
		if code != 0x17a {
			t.Errorf("the command %#x was sent to swtpm", code)
		}
	}
}

// itself is swtpm under its own name.
type itself struct{ *swtpm }

func (s itself) Read(p []byte) (int, error) {
	n, err := s.swtpm.Read(p)
	if at := bytes.Index(p[:n], []byte("Nitr")); at >= 0 {
		copy(p[at:], "SW  ")
	}
	return n, err
}

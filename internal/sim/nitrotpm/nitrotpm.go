// Package nitrotpm is a NitroTPM in memory: the commands of TPM 2.0 that clients use on the way to an attestation
// document, and AWS's vendor command that makes it. HMACs are verified and made and parameters encrypted, so that a
// client that gets them wrong is refused; whether the simulator gets them right is for AWS's own client to say, in
// test/system/nitrotpm. It speaks through files as the kernel's do: Open within the process, Mount for other processes.
package nitrotpm

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"sevagent/internal/sim/simnitro"
)

// Faults that a TPM can be made to show, by SetFault or by the content of the fault file. An argument follows after a
// space.
const (
	FaultAbsent   = "absent"   // no device
	FaultForeign  = "foreign"  // a TPM that is not AWS's: it knows no vendor command and no large index
	FaultManager  = "manager"  // the kernel's resource manager refuses the vendor command
	FaultUnlisted = "unlisted" // the vendor command is not in the list of commands, so that the manager refuses it too
	FaultBusy     = "busy"     // another process has the device open
	FaultRetry    = "retry"    // followed by a number: so many uses of an index give RETRY before one works
	FaultCode     = "code"     // followed by command and code in hexadecimal: what this command always gives
	FaultOwner    = "owner"    // the owner has a password
	FaultHang     = "hang"     // the vendor command gives no answer until the fault is over
	FaultSlow     = "slow"     // followed by a duration: so long takes each command
	FaultError    = "error"    // followed by a word: the vendor command's answer is this error
	FaultEcho     = "echo"     // user_data of the document is not what was asked for
	FaultNonce    = "nonce"    // nonce is not
	FaultKey      = "key"      // a public_key that nobody asked for
	FaultEnclave  = "enclave"  // the document is an enclave's
	FaultGarbage  = "garbage"  // the answer is no CBOR
)

// room is how many bytes of NV memory there are for indices: four of the largest, with their public areas.
const room = 4 * (maxIndex + 256)

// TPM is a simulated NitroTPM.
type TPM struct {
	// Sign makes a document; New has it from a CA.
	Sign func(simnitro.Fields) ([]byte, error)
	// Fields are what documents say, but for the three fields that clients choose, and for a zero Time, which stands
	// for the clock's.
	Fields simnitro.Fields
	// FaultFile, if not empty, names a file whose content is the fault while none is set.
	FaultFile string

	key func() (*rsa.PrivateKey, error) // of every primary object

	rules map[uint32]rule

	hanging atomic.Bool

	opening   sync.Mutex
	exclusive bool // somebody has tpm0 open
	fault     string

	mu       sync.Mutex // one command at a time
	sessions map[uint32]*session
	objects  map[uint32]*object
	indices  map[uint32]*index
	retried  int
	tries    int // wrong passwords that count towards lockout
	commands []uint32
}

// New returns a TPM whose documents are signed under ca.
func New(ca *simnitro.CA) *TPM {
	return &TPM{
		Sign:     ca.Sign,
		rules:    makeRules(),
		key:      sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) }),
		sessions: make(map[uint32]*session), objects: make(map[uint32]*object), indices: make(map[uint32]*index),
	}
}

// SetFault makes the TPM show a fault until it is set to "". It takes precedence over the fault file.
func (t *TPM) SetFault(fault string) {
	t.opening.Lock()
	t.fault = fault
	t.opening.Unlock()
	t.mu.Lock()
	t.retried = 0
	t.mu.Unlock()
}

// has reports whether a fault is shown, and its argument.
func (t *TPM) has(name string) (argument string, ok bool) {
	t.opening.Lock()
	fault := t.fault
	t.opening.Unlock()
	if fault == "" && t.FaultFile != "" {
		text, _ := os.ReadFile(t.FaultFile) // absent: no fault
		fault = string(text)
	}
	current, argument, _ := strings.Cut(strings.TrimSpace(fault), " ")
	return argument, current == name
}

func (t *TPM) shows(name string) bool {
	_, ok := t.has(name)
	return ok
}

// Left returns what clients left behind: NV indices, persistent and transient objects, sessions.
func (t *TPM) Left() (indices, objects, sessions int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.indices), len(t.objects), len(t.sessions)
}

// Hangs reports whether a vendor command is waiting for the end of FaultHang.
func (t *TPM) Hangs() bool { return t.hanging.Load() }

// Commands returns the codes of the commands so far.
func (t *TPM) Commands() []uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]uint32(nil), t.commands...)
}

// Restart ends sessions and transient objects; NV memory and persistent objects stay, as over a reboot.
func (t *TPM) Restart() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.sessions)
	for handle := range t.objects {
		if handle>>24 == 0x80 {
			delete(t.objects, handle)
		}
	}
}

// Names of the two files: the TPM itself, which one process at a time may open, and the kernel's resource manager.
const (
	Raw     = "tpm0"
	Manager = "tpmrm0"
)

// Open opens one of the two files, by its name in any directory, as the kernel would.
func (t *TPM) Open(path string) (io.ReadWriteCloser, error) {
	f, errno := t.open(filepath.Base(path))
	if errno != 0 {
		return nil, &os.PathError{Op: "open", Path: path, Err: errno}
	}
	return f, nil
}

// file is an open file of the TPM: a command is written, its answer read. Linux, drivers/char/tpm/tpm-dev-common.c.
type file struct {
	tpm     *TPM
	managed bool

	mu       sync.Mutex
	closed   bool
	response []byte
	sessions map[uint32]bool // of the manager's user; owned by execute
}

func (t *TPM) open(name string) (*file, syscall.Errno) {
	if name != Raw && name != Manager || t.shows(FaultAbsent) {
		return nil, syscall.ENOENT
	}
	if name == Manager {
		return &file{tpm: t, managed: true, sessions: make(map[uint32]bool)}, 0
	}
	busy := t.shows(FaultBusy)
	t.opening.Lock()
	defer t.opening.Unlock()
	if t.exclusive || busy {
		return nil, syscall.EBUSY
	}
	t.exclusive = true
	return &file{tpm: t}, 0
}

// Write executes a command, and keeps the answer.
func (f *file) Write(command []byte) (int, error) { return f.write(context.Background(), command) }

// write ends with ctx, and leaves a command that hangs unexecuted then.
func (f *file) write(ctx context.Context, command []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return 0, os.ErrClosed
	case len(f.response) > 0:
		return 0, syscall.EBUSY
	case len(command) > maxCommand:
		return 0, syscall.E2BIG
	case len(command) < 10:
		return 0, syscall.EINVAL
	}
	if !f.tpm.pauses(ctx, binary.BigEndian.Uint32(command[6:])) {
		return 0, syscall.EINTR
	}
	f.response = f.tpm.execute(f, slices.Clone(command)) // the caller's memory is the caller's
	return len(command), nil
}

// Read returns the answer, then the end of the file.
func (f *file) Read(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return 0, os.ErrClosed
	}
	if len(f.response) == 0 {
		return 0, io.EOF
	}
	n := copy(p, f.response)
	f.response = f.response[n:]
	return n, nil
}

// Close closes the file. The manager flushes what its user has left.
func (f *file) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return os.ErrClosed
	}
	f.closed = true
	if !f.managed {
		f.tpm.opening.Lock()
		f.tpm.exclusive = false
		f.tpm.opening.Unlock()
		return nil
	}
	f.tpm.mu.Lock()
	defer f.tpm.mu.Unlock()
	for handle := range f.sessions {
		delete(f.tpm.sessions, handle)
	}
	return nil
}

// pauses is what happens before a command: a slow TPM, or one that hangs. It reports false when ctx ends.
func (t *TPM) pauses(ctx context.Context, code uint32) bool {
	if text, ok := t.has(FaultSlow); ok {
		d, _ := time.ParseDuration(text)
		time.Sleep(d)
	}
	defer t.hanging.Store(false)
	for code == ccNSM && t.shows(FaultHang) {
		t.hanging.Store(true)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(5 * time.Millisecond):
		}
	}
	return true
}

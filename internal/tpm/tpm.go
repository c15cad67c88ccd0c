// Package tpm is the sole owner of the NitroTPM, from which AWS's hypervisor gives documents about the instance's boot.
// It promises that
//
//   - the TPM is asked by one worker, one document at a time, and is open only while it is;
//   - a caller waits no longer than a budget of time, however long the TPM takes: the kernel may block for minutes;
//   - nothing stays in the TPM's memory, neither after a failure nor, once the agent has started again, after a kill;
//   - no document is passed on unless it is verified and carries the fields that were asked for.
//
// A random password keeps other users of the TPM away from the buffer in which request and answer lie. It does not keep
// the hypervisor away, which signs the document anyway.
package tpm

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/internal/nitro"
)

// DefaultBudget is how long a document may take, waiting included, and so how long a slow NitroTPM delays evidence.
const DefaultBudget = 2 * time.Second

// maxQueue is the most requests that wait.
const maxQueue = 16

// Config is what a TPM needs.
type Config struct {
	// Paths are the devices, in the order in which they are tried; nil: /dev/tpmrm0, then /dev/tpm0. The first is the
	// kernel's resource manager, which many may use, but which may not pass AWS's command.
	Paths []string
	// Open opens one of them; nil: as a file.
	Open func(path string) (io.ReadWriteCloser, error)
	// Roots are the trust anchors of documents; nil: AWS's.
	Roots *x509.CertPool
	// Budget is how long a caller waits at most; zero: DefaultBudget.
	Budget time.Duration
	Log    *slog.Logger
}

// TPM serves documents. New makes one, Run runs it.
type TPM struct {
	cfg     Config
	queue   chan *request
	stopped chan struct{} // closed when Run ends
	state   atomic.Pointer[State]
	// busySince is when the running request began, zero if none runs. Unix nanoseconds.
	busySince atomic.Int64

	known   []int // by path: zero, or the chunk of a NitroTPM; owned by Run
	skip    int   // the paths before this one do not pass AWS's command; owned by Run
	failing string
}

// State is what the last request showed. It does not change.
type State struct {
	// Path is the device that gave the last document; "": none yet.
	Path string
	// At is when the TPM was last asked; zero: never.
	At time.Time
	// Took is how long that lasted.
	Took time.Duration
	// Err is nil or why it gave nothing.
	Err error
	// Document is the last document, kept over later failures.
	Document *nitro.Document
	// Documents and Failures count.
	Documents, Failures uint64
}

type request struct {
	ctx             context.Context
	userData, nonce [64]byte
	done            chan answer // size one
}

type answer struct {
	document []byte
	verified *nitro.Document
	err      error
}

// New returns a TPM that nothing runs yet.
func New(cfg Config) *TPM {
	if cfg.Paths == nil {
		cfg.Paths = []string{"/dev/tpmrm0", "/dev/tpm0"}
	}
	if cfg.Open == nil {
		cfg.Open = openFile
	}
	if cfg.Budget == 0 {
		cfg.Budget = DefaultBudget
	}
	t := &TPM{
		cfg: cfg, queue: make(chan *request, maxQueue), stopped: make(chan struct{}), known: make([]int, len(cfg.Paths)),
	}
	t.state.Store(&State{})
	return t
}

// State returns what the last request showed.
func (t *TPM) State() *State { return t.state.Load() }

// Busy returns for how long the running request has been under way, zero if none is.
func (t *TPM) Busy(now time.Time) time.Duration {
	since := t.busySince.Load()
	if since == 0 {
		return 0
	}
	return now.Sub(time.Unix(0, since))
}

// Document waits for a document with these fields, and without a public key. It returns after the budget at the latest,
// and at once while an earlier request has run over its own.
func (t *TPM) Document(ctx context.Context, userData, nonce [64]byte) ([]byte, *nitro.Document, error) {
	if busy := t.Busy(time.Now()); busy > t.cfg.Budget {
		return nil, nil, fmt.Errorf("ask for a NitroTPM document: a command has been running for %v: %w",
			busy.Round(time.Second), ErrSlow)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, t.cfg.Budget, ErrSlow)
	defer cancel()
	r := &request{ctx: ctx, userData: userData, nonce: nonce, done: make(chan answer, 1)}
	select {
	case <-t.stopped:
		return nil, nil, fmt.Errorf("ask for a NitroTPM document: %w", ErrStopped)
	case t.queue <- r:
	default:
		return nil, nil, fmt.Errorf("ask for a NitroTPM document: %w", ErrQueueFull)
	}
	select {
	case a := <-r.done:
		return a.document, a.verified, a.err
	case <-ctx.Done():
		return nil, nil, fmt.Errorf("wait for a NitroTPM document: %w", context.Cause(ctx))
	case <-t.stopped:
		return nil, nil, fmt.Errorf("wait for a NitroTPM document: %w", ErrStopped)
	}
}

// Run removes what a killed agent has left in the TPM, and serves requests until ctx ends. A command that is under way
// then is waited for: the kernel would hold the process until it ends anyway.
func (t *TPM) Run(ctx context.Context) error {
	defer close(t.stopped)
	t.clear(ctx)
	for {
		select {
		case <-ctx.Done():
			return nil
		case r := <-t.queue:
			if r.ctx.Err() == nil {
				t.serve(r)
			}
		}
	}
}

// clear removes the index at the start.
func (t *TPM) clear(ctx context.Context) {
	ctx, cancel := context.WithTimeoutCause(ctx, t.cfg.Budget, ErrSlow)
	defer cancel()
	t.busySince.Store(time.Now().UnixNano())
	_, _, err := t.each(ctx, func(c *connection) ([]byte, error) { return nil, c.undefine(ctx) })
	t.busySince.Store(0)
	if err == nil || errors.Is(err, context.Canceled) {
		return
	}
	t.note(State{At: time.Now(), Err: fmt.Errorf("clear the NitroTPM: %w", err)})
}

// serve makes one document, verifies it and answers.
func (t *TPM) serve(r *request) {
	next := *t.state.Load()
	next.At = time.Now()
	t.busySince.Store(next.At.UnixNano())
	request := encodeRequest(r.userData, r.nonce)
	document, path, err := t.each(r.ctx, func(c *connection) ([]byte, error) { return c.exchange(r.ctx, request) })
	t.busySince.Store(0)
	next.Took = time.Since(next.At)
	var verified *nitro.Document
	if err == nil {
		verified, err = t.verify(document, r)
	}
	if errors.Is(err, context.Canceled) { // the caller has gone: that says nothing about the TPM
		return
	}
	if err != nil {
		next.Err = fmt.Errorf("get a NitroTPM document: %w", err)
		next.Failures++
		document = nil
	} else {
		next.Err, next.Path, next.Document = nil, path, verified
		next.Documents++
	}
	t.note(next)
	r.done <- answer{document, verified, next.Err}
}

// verify verifies a document, and that it is the one that was asked for.
func (t *TPM) verify(document []byte, r *request) (*nitro.Document, error) {
	d, err := nitro.Verify(document, nitro.Config{Roots: t.cfg.Roots, Now: time.Now()})
	switch {
	case err != nil:
		return nil, fmt.Errorf("verify the document: %w", err)
	case d.Kind != nitro.NitroTPM:
		return nil, fmt.Errorf("verify the document: it is of %v: %w", d.Kind, ErrEcho)
	case !bytes.Equal(d.UserData, r.userData[:]):
		return nil, fmt.Errorf("verify the document: its user_data is another: %w", ErrEcho)
	case !bytes.Equal(d.Nonce, r.nonce[:]):
		return nil, fmt.Errorf("verify the document: its nonce is another: %w", ErrEcho)
	case d.PublicKey != nil:
		return nil, fmt.Errorf("verify the document: it has a public_key: %w", ErrEcho)
	}
	return d, nil
}

// note keeps the outcome of a request for State and the log. A failure is logged when it begins and when it ends. That
// there is no NitroTPM is no failure of this package's.
func (t *TPM) note(next State) {
	t.state.Store(&next)
	code := ""
	if next.Err != nil {
		code = Code(next.Err)
	}
	switch {
	case code == t.failing:
	case code == "":
		t.cfg.Log.Info("the NitroTPM works again", "device", next.Path)
	case errors.Is(next.Err, ErrAbsent), errors.Is(next.Err, ErrNotNitro):
		t.cfg.Log.Info("there is no NitroTPM", "code", code, "err", next.Err)
	default:
		t.cfg.Log.Warn("the NitroTPM failed", "code", code, "err", next.Err, "advice", Advice(next.Err))
	}
	t.failing = code
}

// each opens the devices in turn until use succeeds on one, or fails otherwise than for want of AWS's command. The
// first that there is carries the lock against other agents, whichever is used in the end.
func (t *TPM) each(
	ctx context.Context, use func(*connection) ([]byte, error),
) (document []byte, path string, err error) {
	failed := fmt.Errorf("open %q: %w", t.cfg.Paths, ErrAbsent)
	locked := false
	for i, path := range t.cfg.Paths {
		f, err := t.open(ctx, path)
		if errors.Is(err, ErrAbsent) {
			continue
		}
		if err != nil {
			return nil, "", err
		}
		defer f.Close()
		if !locked {
			if err := lock(ctx, f, path); err != nil {
				return nil, "", err
			}
			locked = true
		}
		if i < t.skip {
			continue
		}
		document, err := t.use(ctx, i, f, use)
		if !errors.Is(err, ErrNotNitro) {
			return document, path, err
		}
		failed = fmt.Errorf("%s: %w", path, err)
		t.skip = i + 1
	}
	t.skip = 0 // look again next time
	return nil, "", failed
}

func (t *TPM) use(ctx context.Context, i int, f io.ReadWriter, use func(*connection) ([]byte, error)) ([]byte, error) {
	c := &connection{ReadWriter: f, password: make([]byte, 32), chunk: t.known[i]}
	rand.Read(c.password)
	if c.chunk == 0 {
		if err := c.probe(ctx); err != nil {
			return nil, err
		}
		t.known[i] = c.chunk
	}
	return use(c)
}

// open opens a device, again for a while if another process has it open.
func (t *TPM) open(ctx context.Context, path string) (f io.ReadWriteCloser, err error) {
	err = repeat(ctx, ErrBusy, func() error {
		f, err = t.cfg.Open(path)
		return deviceError(err)
	})
	return f, err
}

// repeat repeats what fails with one error, as long and as often as a command.
func repeat(ctx context.Context, with error, try func() error) error {
	pause := firstPause
	for i := 1; ; i++ {
		err := try()
		if !errors.Is(err, with) || i == attempts {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
}

// openFile opens a device for calls that block. An os.File of OpenFile's would not: the kernel then executes commands
// in the background, and a read before the end finds nothing, which looks like the end of the file.
func openFile(path string) (io.ReadWriteCloser, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// lock takes an advisory lock, which ends when the file is closed.
func lock(ctx context.Context, device io.ReadWriteCloser, path string) error {
	f, ok := device.(*os.File)
	if !ok {
		return nil
	}
	return repeat(ctx, ErrInUse, func() error {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("lock %s: %w", path, ErrInUse)
		}
		if err != nil {
			return fmt.Errorf("lock %s: %w", path, err)
		}
		return nil
	})
}

// Package tpm is the sole owner of the node's NitroTPM. It gets attestation documents from it, and promises that
//
//   - one document is made at a time, and the device is open only while one is;
//   - a caller never waits beyond its deadline, although a command in the kernel cannot be interrupted;
//   - what a killed agent has left in the TPM's memory is cleared before anything is put there;
//   - nothing is left there afterwards.
package tpm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// What can go wrong before a TPM answers.
var (
	// ErrAbsent: there is no TPM.
	ErrAbsent = errors.New("there is no TPM")
	// ErrNotNitro: the TPM is none of AWS's.
	ErrNotNitro = errors.New("the TPM is no NitroTPM: it does not know AWS's command")
	// ErrBusy: the TPM is in use.
	ErrBusy = errors.New("the TPM is in use")
)

// Config is what a TPM needs.
type Config struct {
	// Paths are the devices to try: the kernel's resource manager, which many may use, and the TPM itself.
	Paths []string
	// Open opens one of Paths. Nil: as a device.
	Open func(path string) (io.ReadWriteCloser, error)
	Log  *slog.Logger
}

// TPM makes documents.
type TPM struct {
	config Config
	slot   chan struct{}          // size one: a document is being made
	path   atomic.Pointer[string] // that has worked; nil: none yet
}

// New returns a TPM. It opens nothing yet.
func New(c Config) *TPM {
	if c.Open == nil {
		c.Open = open
	}
	return &TPM{config: c, slot: make(chan struct{}, 1)}
}

// Path names the device that has given a document; empty: none yet.
func (t *TPM) Path() string {
	if p := t.path.Load(); p != nil {
		return *p
	}
	return ""
}

// Document returns an attestation document with these fields and without a public_key. When ctx ends, the caller goes,
// and the next one finds the TPM busy until it has answered.
func (t *TPM) Document(ctx context.Context, userData, nonce [64]byte) ([]byte, error) {
	select {
	case t.slot <- struct{}{}:
	default:
		select {
		case t.slot <- struct{}{}:
		case <-ctx.Done():
			return nil, fmt.Errorf("ask the NitroTPM: %w by an earlier request that it has not answered", ErrBusy)
		}
	}
	type answer struct {
		document []byte
		err      error
	}
	done := make(chan answer, 1)
	go func() {
		defer func() { <-t.slot }()
		document, err := t.document(userData, nonce)
		done <- answer{document, err}
	}()
	select {
	case a := <-done:
		return a.document, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("ask the NitroTPM: %w", ctx.Err())
	}
}

// document asks one device after the other, first the one that has worked.
func (t *TPM) document(userData, nonce [64]byte) ([]byte, error) {
	paths := t.config.Paths
	if p := t.path.Load(); p != nil {
		paths = []string{*p}
	}
	reason := ErrAbsent
	for _, path := range paths {
		document, err := t.ask(path, userData, nonce)
		switch {
		case err == nil:
			if t.path.Load() == nil {
				t.config.Log.Info("the NitroTPM gives documents", "device", path)
				t.path.Store(&path)
			}
			return document, nil
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENXIO), errors.Is(err, syscall.ENODEV):
		case codeIs(err, 0x143, 0x2D5): // an unknown command; or an index of a size that only AWS's have
			reason = ErrNotNitro
		default:
			return nil, fmt.Errorf("ask the NitroTPM at %s: %w%s", path, err, advice(err))
		}
	}
	return nil, reason
}

// ask makes a document by one device.
func (t *TPM) ask(path string, userData, nonce [64]byte) (document []byte, err error) {
	device, err := t.config.Open(path)
	if errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, ErrBusy
	}
	if err != nil {
		return nil, err
	}
	defer device.Close()
	s := &session{device, make([]byte, 32)}
	rand.Read(s.secret)
	_ = s.undefine() // of a killed agent; most of the time there is none, and define says what else is wrong
	if err := s.define(); err != nil {
		return nil, err
	}
	defer func() {
		if undefined := s.undefine(); err == nil {
			err = undefined
		}
	}()
	if err := s.write(encode(userData, nonce)); err != nil {
		return nil, err
	}
	if err := s.request(); err != nil {
		return nil, err
	}
	answer, err := s.read(0, chunk)
	if err != nil {
		return nil, err
	}
	start, size, err := decode(answer)
	if err != nil {
		return nil, err
	}
	for len(answer) < start+size {
		more, err := s.read(len(answer), min(chunk, start+size-len(answer)))
		if err != nil {
			return nil, err
		}
		answer = append(answer, more...)
	}
	return answer[start : start+size], nil
}

// open opens a device for one process of ours at a time.
func open(path string) (io.ReadWriteCloser, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
	}
	return f, nil
}

// advice says what an operator does, after a semicolon, or "".
func advice(err error) string {
	switch {
	case errors.Is(err, ErrBusy):
		return "; stop the other program that has it open"
	case errors.Is(err, fs.ErrPermission):
		return "; allow the device to sevagent.service (DeviceAllow=)"
	case codeIs(err, 0x14B):
		return "; its memory is full: remove NV indices that others have left, by tpm2_nvundefine"
	case codeIs(err, 0x9A2, 0x98E):
		return "; its owner has a password, with which the agent cannot work: clear it by tpm2_changeauth -c owner"
	case codeIs(err, 0x921):
		return "; it is locked after wrong passwords: wait, or reset it by tpm2_dictionarylockout -c"
	}
	return ""
}

// Package cuse serves a simulated secure processor as a character device, /dev/sev-guest, through the kernel's CUSE
// (fs/fuse/cuse.c), without cgo. A program opens it and makes ioctls, as with the device of the real driver.
package cuse

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"sevagent/internal/sim"
)

// The part of the protocol that a device with ioctls needs: include/uapi/linux/fuse.h.
const (
	opInit      = 4096 // CUSE_INIT
	opOpen      = 14
	opRelease   = 18
	opFlush     = 25
	opInterrupt = 36
	opIoctl     = 39

	unrestrictedIoctl = 1 << 0 // CUSE_UNRESTRICTED_IOCTL: the device follows pointers
	ioctlRetry        = 1 << 2 // FUSE_IOCTL_RETRY

	major, minor = 7, 31 // of the protocol

	inHeaderSize  = 40 // struct fuse_in_header: len u32, opcode u32, unique u64, ...
	outHeaderSize = 16 // struct fuse_out_header: len u32, error i32, unique u64
	initOutSize   = 72 // struct cuse_init_out
	openOutSize   = 16 // struct fuse_open_out
	ioctlInSize   = 32 // struct fuse_ioctl_in: fh u64, flags u32, cmd u32, arg u64, in_size u32, out_size u32

	maxTransfer = 128 << 10
)

var le = binary.LittleEndian

// Serve makes /dev/NAME and serves it until ctx ends. It calls ready once the kernel knows the device.
func Serve(ctx context.Context, name string, psp *sim.PSP, ready func()) error {
	f, err := os.OpenFile("/dev/cuse", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("make a character device: %w", err)
	}
	return serve(ctx, f, name, psp, ready)
}

// device is an open /dev/cuse.
type device struct {
	f   *os.File
	psp *sim.PSP

	mu      sync.Mutex
	waiting map[uint64]context.CancelFunc // the ioctls that are being served
}

// serve closes f.
func serve(ctx context.Context, f *os.File, name string, psp *sim.PSP, ready func()) error {
	d := &device{f: f, psp: psp, waiting: make(map[uint64]context.CancelFunc)}
	ctx, cancel := context.WithCancel(ctx)
	var answers sync.WaitGroup
	defer answers.Wait()
	defer cancel()
	closed := make(chan struct{})
	context.AfterFunc(ctx, func() { f.Close(); close(closed) })
	defer func() { cancel(); <-closed }()
	for {
		b := make([]byte, maxTransfer+4096)
		n, err := f.Read(b)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINTR): // the request was withdrawn
			continue
		case err != nil:
			return fmt.Errorf("serve the simulated device: %w", err)
		case n < inHeaderSize:
			return fmt.Errorf("serve the simulated device: %w", io.ErrUnexpectedEOF)
		}
		op, unique, body := le.Uint32(b[4:]), le.Uint64(b[8:]), b[inHeaderSize:n]
		switch {
		case op == opInit:
			d.reply(unique, 0, initReply(name))
			ready()
		case op == opOpen:
			d.reply(unique, 0, make([]byte, openOutSize))
		case op == opRelease || op == opFlush:
			d.reply(unique, 0, nil)
		case op == opInterrupt && len(body) >= 8: // has no answer
			d.interrupt(le.Uint64(body))
		case op == opIoctl && len(body) >= ioctlInSize:
			ctx, done := d.begin(ctx, unique)
			answers.Go(func() {
				defer done()
				d.reply(unique, 0, d.ioctl(ctx, body))
			})
		default:
			d.reply(unique, unix.ENOSYS, nil)
		}
	}
}

// initReply is struct cuse_init_out and the device's properties.
func initReply(name string) []byte {
	out := make([]byte, initOutSize)
	le.PutUint32(out[0:], major)
	le.PutUint32(out[4:], minor)
	le.PutUint32(out[12:], unrestrictedIoctl)
	le.PutUint32(out[16:], maxTransfer)
	le.PutUint32(out[20:], maxTransfer)
	return append(out, "DEVNAME="+name+"\x00"...)
}

// reply answers a request. Its failure is no error if the program or ctx has ended.
func (d *device) reply(unique uint64, errno unix.Errno, body []byte) {
	b := make([]byte, outHeaderSize, outHeaderSize+len(body))
	le.PutUint32(b[0:], uint32(outHeaderSize+len(body)))
	le.PutUint32(b[4:], uint32(-int32(errno)))
	le.PutUint64(b[8:], unique)
	_, err := d.f.Write(append(b, body...))
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, fs.ErrClosed) {
		fmt.Fprintln(os.Stderr, "answer as the simulated device:", err)
	}
}

func (d *device) begin(ctx context.Context, unique uint64) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiting[unique] = cancel
	return ctx, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.waiting, unique)
		cancel()
	}
}

// interrupt ends an ioctl whose program has received a signal.
func (d *device) interrupt(unique uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if cancel := d.waiting[unique]; cancel != nil {
		cancel()
	}
}

// ioctl answers struct fuse_ioctl_in and its data with struct fuse_ioctl_out and its data.
func (d *device) ioctl(ctx context.Context, body []byte) []byte {
	cmd, arg := le.Uint32(body[12:]), le.Uint64(body[16:])
	inSize, outSize := le.Uint32(body[24:]), le.Uint32(body[28:])
	in := body[ioctlInSize:]
	mem := &memory{in: in[:min(int(inSize), len(in))], out: make([]byte, outSize)}
	errno := d.psp.Ioctl(ctx, cmd, arg, mem)
	reply := make([]byte, 16) // struct fuse_ioctl_out: result i32, flags u32, in_iovs u32, out_iovs u32
	if mem.missing {
		le.PutUint32(reply[4:], ioctlRetry)
		le.PutUint32(reply[8:], uint32(len(mem.reads)))
		le.PutUint32(reply[12:], uint32(len(mem.writes)))
		for _, a := range append(mem.reads, mem.writes...) {
			reply = le.AppendUint64(reply, a.address)
			reply = le.AppendUint64(reply, uint64(a.n))
		}
		return reply
	}
	// The kernel copies the data even with an error.
	le.PutUint32(reply[0:], uint32(-int32(errno)))
	return append(reply, mem.out[:mem.written]...)
}

// memory is what the kernel has copied from the program's memory, and will copy there. In each round of an ioctl it
// copies what the previous round asked for, in that order; since the code that asks is the same each time, the n-th
// read finds the n-th piece. Once a piece is missing, the round is over, and all pieces are requested.
type memory struct {
	in, out []byte
	written int // length of the part of out that has been written to

	reads, writes []area
	known         [][]byte // content of reads
	reserved      int      // length of writes
	missing       bool
}

type area struct {
	address uint64
	n       int
}

func (m *memory) Read(address uint64, into []byte) error {
	m.reads = append(m.reads, area{address, len(into)})
	if len(m.in) < len(into) {
		m.missing = true
		return unix.EFAULT
	}
	copy(into, m.in)
	m.known = append(m.known, m.in[:len(into)])
	m.in = m.in[len(into):]
	return nil
}

// Reserve fills out with the program's memory, as far as it is known: the kernel copies a prefix of out, including what
// was not written to.
func (m *memory) Reserve(address uint64, n int) error {
	m.writes = append(m.writes, area{address, n})
	at := m.reserved
	m.reserved += n
	if len(m.out) < m.reserved {
		m.missing = true
		return unix.EFAULT
	}
	for i, r := range m.reads {
		if r.address == address && i < len(m.known) {
			copy(m.out[at:m.reserved], m.known[i])
		}
	}
	return nil
}

func (m *memory) Write(address uint64, data []byte) error {
	at := 0
	for _, w := range m.writes {
		if w.address == address && len(data) <= w.n {
			copy(m.out[at:], data)
			m.written = max(m.written, at+w.n)
			return nil
		}
		at += w.n
	}
	return unix.EFAULT
}

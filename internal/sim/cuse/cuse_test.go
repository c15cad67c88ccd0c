package cuse

import (
	"bytes"
	"context"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/internal/snp"
)

// kernel is the other end of /dev/cuse, with the memory of a program that begins at base.
type kernel struct {
	t      *testing.T
	f      *os.File
	unique uint64
	memory []byte
	rounds int
}

const (
	base                   = 0x7000_0000_0000
	reqAt, respAt, certsAt = base + 0x100, base + 0x1000, base + 0x2000

	getReport, getExtReport = 0xc0205300, 0xc0205302
)

// start serves a PSP to a kernel until the test ends.
func start(t *testing.T) (*kernel, *sim.PSP) {
	t.Helper()
	psp := must.Get(sim.New(sim.DefaultOptions(time.Now())))(t, "make a simulated secure processor")
	const flags = unix.SOCK_SEQPACKET | unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC
	pair := must.Get(unix.Socketpair(unix.AF_UNIX, flags, 0))(t, "make a socket pair")
	k := &kernel{t: t, f: os.NewFile(uintptr(pair[0]), "kernel"), memory: make([]byte, 0x6000)}
	ctx, cancel := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error)
	go func() {
		ended <- serve(ctx, os.NewFile(uintptr(pair[1]), "cuse"), "sev-guest", psp, func() { close(ready) })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve the device: %v", err)
		}
		k.f.Close()
	})
	reply := k.answer(k.send(opInit, make([]byte, 16)))
	if name := string(reply[initOutSize:]); name != "DEVNAME=sev-guest\x00" ||
		le.Uint32(reply) != major || le.Uint32(reply[12:]) != unrestrictedIoctl {
		t.Errorf("CUSE_INIT is answered by %q", reply)
	}
	<-ready
	if reply := k.answer(k.send(opOpen, make([]byte, 8))); len(reply) != openOutSize {
		t.Errorf("FUSE_OPEN is answered by %d bytes, want %d", len(reply), openOutSize)
	}
	return k, psp
}

// send sends a request, and returns its number.
func (k *kernel) send(op uint32, body []byte) uint64 {
	k.t.Helper()
	k.unique += 2
	b := make([]byte, inHeaderSize, inHeaderSize+len(body))
	le.PutUint32(b[0:], uint32(len(b)+len(body)))
	le.PutUint32(b[4:], op)
	le.PutUint64(b[8:], k.unique)
	must.Get(k.f.Write(append(b, body...)))(k.t, "send a request as the kernel")
	return k.unique
}

// answer returns the response to request unique.
func (k *kernel) answer(unique uint64) []byte {
	k.t.Helper()
	k.f.SetReadDeadline(time.Now().Add(2 * time.Minute))
	b := make([]byte, maxTransfer)
	n := must.Get(k.f.Read(b))(k.t, "read the answer as the kernel")
	if int(le.Uint32(b)) != n || le.Uint32(b[4:]) != 0 || le.Uint64(b[8:]) != unique {
		k.t.Fatalf("the answer's header is %x, for request %d and %d bytes", b[:outHeaderSize], unique, n)
	}
	return b[outHeaderSize:n]
}

// ioctl performs the rounds of fuse_do_ioctl, and returns the result: 0 or a negative errno.
func (k *kernel) ioctl(cmd uint32) int32 {
	k.t.Helper()
	var in, out [][]byte
	for k.rounds = 1; k.rounds < 10; k.rounds++ {
		sent := bytes.Join(in, nil)
		body := make([]byte, ioctlInSize)
		le.PutUint32(body[12:], cmd)
		le.PutUint64(body[16:], base)
		le.PutUint32(body[24:], uint32(len(sent)))
		le.PutUint32(body[28:], uint32(len(bytes.Join(out, nil))))
		reply := k.answer(k.send(opIoctl, append(body, sent...)))
		data := reply[16:]
		if le.Uint32(reply[4:])&ioctlRetry == 0 {
			for _, area := range out {
				data = data[copy(area, data):]
			}
			if len(data) != 0 {
				k.t.Errorf("%d bytes more than were asked for", len(data))
			}
			return int32(le.Uint32(reply))
		}
		areas := make([][]byte, le.Uint32(reply[8:])+le.Uint32(reply[12:]))
		for i := range areas {
			at, n := le.Uint64(data[16*i:])-base, le.Uint64(data[16*i+8:])
			if at > uint64(len(k.memory)) || n > uint64(len(k.memory))-at {
				return -int32(unix.EFAULT)
			}
			areas[i] = k.memory[at:][:n]
		}
		in, out = areas[:le.Uint32(reply[8:])], areas[le.Uint32(reply[8:]):]
	}
	k.t.Fatal("the ioctl does not end")
	return 0
}

// request writes a request into the memory, with room for n bytes of certificates.
func (k *kernel) request(n uint32) {
	clear(k.memory)
	k.memory[0] = 1
	le.PutUint64(k.memory[8:], reqAt)
	le.PutUint64(k.memory[16:], respAt)
	req := k.memory[reqAt-base:]
	req[0] = 7
	le.PutUint64(req[96:], certsAt)
	le.PutUint32(req[104:], n)
}

func (k *kernel) report() *snp.Report {
	k.t.Helper()
	resp := k.memory[respAt-base:]
	return must.Get(snp.ParseReport(resp[0x20:][:le.Uint32(resp[4:])]))(k.t, "parse the report")
}

func TestReport(t *testing.T) {
	k, _ := start(t)
	k.request(0)
	if result := k.ioctl(getReport); result != 0 || k.report().ReportData[0] != 7 {
		t.Errorf("result %d, report %+v", result, k.report())
	}
	// What the kernel has no reason to copy is unchanged.
	if le.Uint64(k.memory[8:]) != reqAt || k.memory[reqAt-base] != 7 {
		t.Errorf("the request has become %x", k.memory[:0x110])
	}
}

// TestExtendedReport: first the length, then the certificates.
func TestExtendedReport(t *testing.T) {
	k, psp := start(t)
	k.request(0)
	if result := k.ioctl(getExtReport); result != -int32(unix.EIO) || le.Uint64(k.memory[24:]) != 1<<32 {
		t.Errorf("length query: %d, exitinfo2 %#x", result, le.Uint64(k.memory[24:]))
	}
	n := le.Uint32(k.memory[reqAt-base+104:])
	k.request(n)
	if result := k.ioctl(getExtReport); result != 0 || k.report().ReportData[0] != 7 {
		t.Errorf("result %d, report %+v", result, k.report())
	}
	if k.rounds != 4 { // the request, what it points to, the places for the answer, the answer
		t.Errorf("%d rounds, want 4", k.rounds)
	}
	if !bytes.HasPrefix(k.memory[certsAt-base:], psp.CertTable()) {
		t.Error("the certificate table is not the simulated host's")
	}
}

func TestRefusal(t *testing.T) {
	k, psp := start(t)
	for _, c := range []struct {
		fault  string
		change func()
		errno  unix.Errno
	}{
		{fault: sim.FaultWiped, errno: unix.ENOTTY},
		{fault: sim.FaultBusy, errno: unix.EIO},
		{change: func() { le.PutUint64(k.memory[8:], 16) }, errno: unix.EFAULT},
		{change: func() { k.memory[0] = 0 }, errno: unix.EINVAL},
	} {
		psp.SetFault(c.fault)
		k.request(0x4000)
		if c.change != nil {
			c.change()
		}
		if result := k.ioctl(getExtReport); result != -int32(c.errno) {
			t.Errorf("fault %q: result %d, want %v", c.fault, result, c.errno)
		}
	}
}

// TestInterrupt: a program that gets a signal while the device hangs is released.
func TestInterrupt(t *testing.T) {
	k, psp := start(t)
	psp.SetFault(sim.FaultHang)
	k.request(0)
	body := make([]byte, ioctlInSize, 0x200)
	le.PutUint32(body[12:], getReport)
	le.PutUint64(body[16:], base)
	le.PutUint32(body[24:], 32+96)
	le.PutUint32(body[28:], 32+96+4000)
	body = append(append(body, k.memory[:32]...), k.memory[reqAt-base:][:96]...)
	hanging := k.send(opIoctl, body)
	k.send(opInterrupt, le.AppendUint64(nil, hanging))
	if reply := k.answer(hanging); int32(le.Uint32(reply)) != -int32(unix.EINTR) {
		t.Errorf("result %d, want EINTR", int32(le.Uint32(reply)))
	}
}

func TestUnknownRequest(t *testing.T) {
	k, _ := start(t)
	k.send(15, nil) // FUSE_READ
	b := make([]byte, outHeaderSize)
	if _, err := k.f.Read(b); err != nil || int32(le.Uint32(b[4:])) != -int32(unix.ENOSYS) {
		t.Errorf("answer %x, %v; want ENOSYS", b, err)
	}
}

package directory

import (
	"bytes"
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"
)

// quietMax is how long a switch waits for quietFor, or for the moment between two sets that turns finds.
const quietMax = 100 * time.Millisecond

// opens notices when files of one generation are opened by anyone, also through a bind mount in another namespace. A
// nil *opens, where inotify is not available, notices nothing. fsnotify does not report IN_OPEN.
type opens struct {
	fd    int
	watch int // -1: none
}

func newOpens() *opens {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil
	}
	return &opens{fd: fd, watch: -1}
}

func (o *opens) close() {
	if o != nil {
		unix.Close(o.fd)
	}
}

// follow starts watching the generation at path in place of the one before.
func (o *opens) follow(path string) {
	if o == nil {
		return
	}
	if o.watch >= 0 {
		unix.InotifyRmWatch(o.fd, uint32(o.watch))
	}
	o.drain(nil)
	watch, err := unix.InotifyAddWatch(o.fd, path, unix.IN_OPEN|unix.IN_ONLYDIR|unix.IN_DONT_FOLLOW)
	if err != nil {
		watch = -1
	}
	o.watch = watch
}

// drain forgets what has been reported so far, and reports whether that was anything. It calls each, unless that is
// nil, with the name of each file.
func (o *opens) drain(each func(name string)) (seen bool) {
	if o == nil || o.watch < 0 {
		return false
	}
	var buf [16 << 10]byte
	for {
		size, err := unix.Read(o.fd, buf[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || size <= 0 {
			return seen
		}
		seen = true
		for b := buf[:size]; each != nil && len(b) >= unix.SizeofInotifyEvent; {
			// struct inotify_event: the length of the name, which is padded with zeros, comes last.
			end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[unix.SizeofInotifyEvent-4:]))
			name, _, _ := bytes.Cut(b[unix.SizeofInotifyEvent:end], []byte{0})
			each(string(name))
			b = b[end:]
		}
	}
}

// waitForGap returns when no file has been opened for quietFor, or right after a reader has opened the last file of a
// set, at the latest after quietMax. Readers that never pause that long would otherwise be met at a moment that is not
// chosen at all, or worse: in the longest pause there is, which may be that between their two opens.
func (o *opens) waitForGap() {
	if o == nil || o.watch < 0 {
		return
	}
	o.drain(nil)
	var t turns
	for began := time.Now(); ; {
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(o.fd), Events: unix.POLLIN}}, int(quietFor.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil || ready == 0 {
			return
		}
		between, since := false, time.Since(began)
		o.drain(func(name string) { between = t.opened(name, since) })
		if between || since >= quietMax {
			return
		}
	}
}

package directory

import (
	"time"

	"golang.org/x/sys/unix"
)

const (
	// quietFor is how long no file of the current generation must have been opened before it is switched, and quietMax
	// how long a switch waits for that. A reader that opens client.crt and then client.key by path gets two
	// that do not match if the switch falls between the two; most such readers take less than this, and for one that
	// takes 5 ms it makes the window 17 times smaller. Every switch is later by quietFor at least.
	quietFor = 8 * time.Millisecond
	quietMax = 100 * time.Millisecond
)

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
	o.drain()
	watch, err := unix.InotifyAddWatch(o.fd, path, unix.IN_OPEN|unix.IN_ONLYDIR|unix.IN_DONT_FOLLOW)
	if err != nil {
		watch = -1
	}
	o.watch = watch
}

// drain forgets what has been reported so far, and reports whether that was anything.
func (o *opens) drain() (seen bool) {
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
	}
}

// waitForQuiet returns when no file has been opened for quietFor, at the latest after quietMax.
func (o *opens) waitForQuiet() {
	if o == nil || o.watch < 0 {
		return
	}
	for deadline := time.Now().Add(quietMax); ; {
		o.drain()
		if !time.Now().Before(deadline) {
			return
		}
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(o.fd), Events: unix.POLLIN}}, int(quietFor.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil || ready == 0 {
			return
		}
	}
}

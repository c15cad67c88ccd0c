package mtls

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// quietFor is how long nobody must have opened a file of the current generation before it is switched, and
	// quietMax how long a switch waits for that. A reader that opens client.crt and then client.key by path gets two
	// that do not match if the switch falls between the two; most such readers take less than this, and for one that
	// takes 5 ms it makes the window 17 times smaller. Every switch is later by quietFor at least.
	quietFor = 8 * time.Millisecond
	quietMax = 100 * time.Millisecond
)

// opens tells when files of one generation are opened, by whoever it is: also through a bind mount in another
// namespace. It is nil, and tells nothing, where inotify is not to be had. fsnotify does not report IN_OPEN.
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

// follow makes the generation at path the one that is told of.
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

// drain returns how many opens have been reported since the last drain. The kernel folds equal ones that follow each
// other into one, so it is a lower bound.
func (o *opens) drain() (n int) {
	if o == nil || o.watch < 0 {
		return 0
	}
	var buf [16 << 10]byte
	for {
		size, err := unix.Read(o.fd, buf[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || size < unix.SizeofInotifyEvent {
			return n
		}
		// struct inotify_event: int wd; uint32_t mask, cookie, len; char name[len].
		for rest := buf[:size]; len(rest) >= unix.SizeofInotifyEvent; {
			watch, mask := int(int32(binary.NativeEndian.Uint32(rest))), binary.NativeEndian.Uint32(rest[4:])
			length := int(binary.NativeEndian.Uint32(rest[12:]))
			if watch == o.watch && mask&unix.IN_OPEN != 0 && mask&unix.IN_ISDIR == 0 {
				n++
			}
			rest = rest[min(len(rest), unix.SizeofInotifyEvent+length):]
		}
	}
}

// settle waits until nobody has opened a file for quietFor, at most quietMax, and returns the opens it has seen.
func (o *opens) settle() (n int) {
	if o == nil || o.watch < 0 {
		return 0
	}
	for deadline := time.Now().Add(quietMax); ; {
		n += o.drain()
		if !time.Now().Before(deadline) {
			return n
		}
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(o.fd), Events: unix.POLLIN}}, int(quietFor.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil || ready == 0 {
			return n
		}
	}
}

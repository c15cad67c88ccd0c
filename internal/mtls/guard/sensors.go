package guard

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// sensors are what Run listens to. All but stir is owned by Run.
type sensors struct {
	path string
	stir chan<- struct{}

	watcher *fsnotify.Watcher
	watched []string

	mounts *os.File      // closed to end the goroutine that polls; nil: there is none
	polled chan struct{} // closed when that goroutine has ended
	work   sync.WaitGroup
}

// renew replaces all watches by those that the tree needs. Its error says what cannot be watched. What is missing is no
// error: the directory above it is watched, and the owner is about to look.
func (s *sensors) renew(t *Tree) error {
	return errors.Join(s.renewFiles(t), s.renewMounts())
}

func (s *sensors) renewFiles(t *Tree) error {
	if s.watcher == nil {
		w, err := fsnotify.NewWatcher()
		if err != nil {
			return fmt.Errorf("watch %s: %w", s.path, err)
		}
		s.watcher = w
		s.work.Go(func() { s.pump(w) })
	}
	for _, path := range s.watched {
		s.watcher.Remove(path) // an error says that the kernel has removed it already
	}
	s.watched = nil
	if t != nil {
		gen := filepath.Join(s.path, t.gen.name)
		s.watched = append(s.watched, filepath.Dir(s.path), s.path, gen)
		for _, f := range t.files {
			s.watched = append(s.watched, filepath.Join(gen, f.Name))
		}
	}
	for _, path := range s.watched {
		err := s.watcher.Add(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) &&
			!errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
			return fmt.Errorf("watch %s: %w", path, err) // the others would fail alike
		}
	}
	return nil
}

// pump receives the watcher's events. It never calls the watcher, which may hold its lock while it sends an error
// (fsnotify 1.10.1, inotify.handleEvent, for a file that was moved and then removed): the goroutine that waits for the
// lock must not be the one that receives the error.
func (s *sensors) pump(w *fsnotify.Watcher) {
	for {
		select {
		case event, ok := <-w.Events:
			if !ok {
				return
			}
			if s.concerns(event.Name) {
				signal(s.stir)
			}
		case _, ok := <-w.Errors: // an overflow, for one: anything may have been missed
			if !ok {
				return
			}
			signal(s.stir)
		}
	}
}

// concerns reports whether an event is about the directory and not a neighbour of it. The directory above is named only
// when it is itself moved.
func (s *sensors) concerns(name string) bool {
	return name == s.path || strings.HasPrefix(name, s.path+"/") || name == filepath.Dir(s.path)
}

// renewMounts starts a goroutine that watches the mount table, unless one runs.
func (s *sensors) renewMounts() error {
	if s.mounts != nil {
		select {
		case <-s.polled:
			s.mounts.Close()
			s.mounts = nil
		default:
			return nil
		}
	}
	// Not os.Open, which would add it to the runtime's epoll: the kernel reports each change once, to the first poll.
	table, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("watch the mount table: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		unix.Close(table)
		return fmt.Errorf("watch the mount table: %w", err)
	}
	polled := make(chan struct{})
	s.mounts, s.polled = w, polled
	s.work.Go(func() {
		defer close(polled)
		defer unix.Close(table)
		defer r.Close()
		pollMounts(table, int(r.Fd()), s.stir)
	})
	return nil
}

// pollMounts signals stir at each change of the mount table, until the other end of the pipe is closed. The kernel
// compares with what it last reported to this descriptor, so nothing has to be read and nothing is missed.
func pollMounts(table, end int, stir chan<- struct{}) {
	fds := []unix.PollFd{{Fd: int32(table), Events: unix.POLLPRI}, {Fd: int32(end)}} // POLLERR and POLLHUP always come
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil, fds[1].Revents != 0:
			return // after an error, the next renewal tries again
		}
		signal(stir)
	}
}

func (s *sensors) close() {
	if s.watcher != nil {
		s.watcher.Close()
	}
	if s.mounts != nil {
		s.mounts.Close()
	}
	s.work.Wait()
}

// signal asks for another look, unless one has been asked for already.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

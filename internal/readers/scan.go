package readers

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"sevagent/client"
	"sevagent/internal/cgroup"
)

// Limits of a scan. What exceeds them is counted, or shown in the status as an error.
const (
	maxProcesses = 10_000
	maxMountinfo = 1 << 20
	maxSmallFile = 64 << 10 // cgroup, comm
	maxFiles     = 32       // of one namespace
	maxText      = 256      // bytes of a mount point
)

// reader is a container, or another mount namespace, that holds a generation.
type reader struct {
	client.StaleReader
	key string // the same from one scan to the next
}

// placeOf returns where the published directory is.
func placeOf(proc, path string) (place, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return place{}, err
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return place{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	text, whole, err := readSome(os.Open, filepath.Join(proc, "self/mountinfo"), maxMountinfo)
	if err != nil {
		return place{}, err
	}
	device := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	dir, ok := locate(text, path, device)
	if !ok && !whole {
		return place{}, fmt.Errorf("our own mountinfo has more than %d bytes", maxMountinfo)
	}
	if !ok {
		return place{}, fmt.Errorf("no mount of device %s is above %s", device, path)
	}
	return dir, nil
}

// scan returns the readers that hold something in the published directory, old or current, in order of their keys. The
// error says what could not be examined; the readers that were found are valid all the same.
//
// A process is reached through its opened directory in proc, so that all reads are of one process, even if its pid is
// given to another in between. One that ends during the scan is no error.
func scan(proc, own string, dir place) ([]reader, error) {
	pids, err := processes(proc)
	if err != nil {
		return nil, err
	}
	var problems []error
	if pids, err = bound(pids); err != nil {
		problems = append(problems, err)
	}
	members := make(map[string][]int) // by mount namespace
	var order []string
	for _, pid := range pids {
		name, err := namespace(proc, pid)
		if err != nil {
			if !vanished(err) {
				problems = append(problems, err)
			}
			continue
		}
		if name == own {
			continue
		}
		if members[name] == nil {
			order = append(order, name)
		}
		members[name] = append(members[name], pid)
	}
	found := make(map[string]*reader)
	for _, name := range order {
		r, err := scanNamespace(proc, name, members[name], dir)
		if err != nil {
			problems = append(problems, err)
		}
		switch {
		case r == nil:
		case found[r.key] == nil:
			found[r.key] = r
		default: // another namespace of the same container
			found[r.key].add(r)
		}
	}
	var list []reader
	for _, key := range slices.Sorted(maps.Keys(found)) {
		list = append(list, *found[key])
	}
	return list, errors.Join(firstFew(problems)...)
}

// add adds the files of a namespace of the same container.
func (r *reader) add(other *reader) {
	r.FilesOmitted += other.FilesOmitted
	for _, f := range other.Files {
		switch {
		case slices.Contains(r.Files, f):
		case len(r.Files) < maxFiles:
			r.Files = append(r.Files, f)
		default:
			r.FilesOmitted++
		}
	}
}

// firstFew keeps an error message short.
func firstFew(problems []error) []error {
	const few = 3
	if len(problems) > few {
		return append(slices.Clip(problems[:few]), fmt.Errorf("and %d more", len(problems)-few))
	}
	return problems
}

// processes returns the pids in proc, in order: the first process of a container is most often the lowest.
func processes(proc string) ([]int, error) {
	d, err := os.Open(proc)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, nil
}

// bound drops the pids beyond maxProcesses.
func bound(pids []int) ([]int, error) {
	if len(pids) <= maxProcesses {
		return pids, nil
	}
	return pids[:maxProcesses], fmt.Errorf("looked at %d of %d processes", maxProcesses, len(pids))
}

func openProcess(proc string, pid int) (*os.Root, error) {
	return os.OpenRoot(filepath.Join(proc, strconv.Itoa(pid)))
}

// namespace names the mount namespace of a process. Without CAP_SYS_PTRACE the kernel hides the name, but still shows
// the mounts: a container then stands for its namespace, and a process of no container for its own.
func namespace(proc string, pid int) (string, error) {
	p, err := openProcess(proc, pid)
	if err != nil {
		return "", err
	}
	defer p.Close()
	name, err := p.Readlink("ns/mnt")
	if !errors.Is(err, fs.ErrPermission) {
		return name, err
	}
	text, _, err := readSome(p.Open, "cgroup", maxSmallFile)
	if err != nil {
		return "", err
	}
	if id := cgroup.Of(text, nil).ContainerID; id != "" {
		return id, nil
	}
	return "pid:" + strconv.Itoa(pid), nil
}

// scanNamespace returns what is pinned in a mount namespace, nil if nothing is. Any process of the namespace shows its
// mounts, but not every one need be in the container: nsenter(1) joins one and not the other.
func scanNamespace(proc, name string, pids []int, dir place) (r *reader, err error) {
	for _, pid := range pids {
		p, e := openProcess(proc, pid)
		if e != nil {
			continue // vanished
		}
		if r == nil {
			r, e = scanProcess(p, name, pid, dir)
			if e != nil && !vanished(e) {
				err = fmt.Errorf("read the mounts of process %d: %w", pid, e)
			}
			if r == nil && !vanished(e) {
				p.Close()
				return nil, err
			}
		} else {
			r.identify(p, pid) // if it vanishes, there may be another
		}
		p.Close()
		if r != nil && r.ContainerID != "" {
			break
		}
	}
	return r, err
}

// scanProcess returns what a process shows of its namespace.
func scanProcess(p *os.Root, name string, pid int, dir place) (*reader, error) {
	text, whole, err := readSome(p.Open, "mountinfo", maxMountinfo)
	if err != nil {
		return nil, err
	}
	if !whole {
		// The rest of the last line could pass for a shorter path.
		text = text[:bytes.LastIndexByte(text, '\n')+1]
		err = fmt.Errorf("mountinfo has more than %d bytes", maxMountinfo)
	}
	files, omitted := pinned(text, dir)
	if len(files) == 0 {
		return nil, err
	}
	r := &reader{StaleReader: client.StaleReader{Files: files, FilesOmitted: omitted}, key: name}
	if e := r.identify(p, pid); e != nil {
		return nil, e
	}
	return r, err
}

// identify makes p the process that the reader names, if there is none yet or if p is in a container.
func (r *reader) identify(p *os.Root, pid int) error {
	groups, _, err := readSome(p.Open, "cgroup", maxSmallFile)
	if err != nil {
		return err
	}
	place := cgroup.Of(groups, nil)
	if r.PID != 0 && place.ContainerID == "" {
		return nil
	}
	comm, _, err := readSome(p.Open, "comm", maxSmallFile)
	if err != nil {
		return err
	}
	r.TaskID, r.ContainerID = place.TaskID, place.ContainerID
	r.PID, r.Comm = pid, cut(strings.TrimSuffix(string(comm), "\n"))
	if r.ContainerID != "" {
		r.key = r.ContainerID
	}
	return nil
}

// readSome returns the first limit bytes of a file, and reports whether they are all of it.
func readSome(open func(string) (*os.File, error), name string, limit int64) (text []byte, whole bool, err error) {
	f, err := open(name)
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	text, err = io.ReadAll(io.LimitReader(f, limit+1))
	if int64(len(text)) > limit {
		return text[:limit], false, err
	}
	return text, true, err
}

// vanished reports whether err means that the process has ended: its directory is gone, or it has no namespaces any
// more (EINVAL, for a zombie's mountinfo).
func vanished(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.EINVAL)
}

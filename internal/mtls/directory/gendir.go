package directory

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// genDir is the open directory of a generation. Its files are plain descriptors: os.File asks the kernel five more
// things about each, which took as long as all the rest of a publication. Links are never followed.
type genDir struct {
	fd   int
	path string // for errors
}

func openGeneration(root *os.Root, name string) (*genDir, error) {
	d, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return openGenerationAt(d, name)
}

func openGenerationAt(dir *os.File, name string) (*genDir, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return &genDir{fd, name}, nil
}

func (g *genDir) close() { unix.Close(g.fd) }

// each calls do with every file, and with the directory.
func (g *genDir) each(do func(fd int) error) error {
	errs := []error{do(g.fd)}
	buf := make([]byte, 4<<10)
	for {
		n, err := unix.ReadDirent(g.fd, buf)
		if err != nil || n <= 0 {
			return errors.Join(append(errs, err)...)
		}
		_, _, names := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range names {
			errs = append(errs, g.with(name, unix.O_RDONLY, do))
		}
	}
}

// with opens a file and calls do with it.
func (g *genDir) with(name string, flags int, do func(fd int) error) error {
	fd, err := unix.Openat(g.fd, name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if err == nil {
		err = errors.Join(do(fd), unix.Close(fd))
	}
	if err != nil {
		return &fs.PathError{Op: "use", Path: g.path + "/" + name, Err: err}
	}
	return nil
}

func writeFD(fd int, content []byte) error {
	for len(content) > 0 {
		n, err := unix.Write(fd, content)
		if err != nil {
			return err
		}
		content = content[n:]
	}
	return nil
}

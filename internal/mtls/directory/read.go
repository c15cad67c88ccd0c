package directory

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// readNames lists a directory. (os.File.ReadDir would look at every entry, which takes longer than all the rest.)
func readNames(root *os.Root) ([]string, error) {
	d, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// readBounded reads a regular file that has no second name.
func readBounded(gen *os.Root, name string, limit int64) ([]byte, *unix.Stat_t, error) {
	f, err := gen.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	st := new(unix.Stat_t)
	if err := unix.Fstat(int(f.Fd()), st); err != nil {
		return nil, nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 || st.Size > limit {
		return nil, nil, fmt.Errorf("%s is not a plain file of at most %d bytes", name, limit)
	}
	content, err := io.ReadAll(io.LimitReader(f, limit))
	return content, st, err
}

//go:build system

package container

import (
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// readSet reads the published files as a reader does that wants what belongs together: by one file, and by the directory
// that ..data was when it looked.
func readSet(dir string) error {
	one, err := os.ReadFile(filepath.Join(dir, "client.pem"))
	if err != nil {
		return err
	}
	if _, err := tls.X509KeyPair(one, one); err != nil {
		return fmt.Errorf("client.pem: %w", err)
	}
	fd, err := unix.Open(filepath.Join(dir, "..data"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("..data: %w", err)
	}
	defer unix.Close(fd)
	var text [2][]byte
	for i, name := range []string{"client.crt", "client.key"} {
		file, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("%s of one set: %w", name, err)
		}
		f := os.NewFile(uintptr(file), name)
		text[i], err = io.ReadAll(f)
		f.Close()
		if err != nil {
			return err
		}
	}
	if _, err := tls.X509KeyPair(text[0], text[1]); err != nil {
		return fmt.Errorf("client.crt and client.key of one set: %w", err)
	}
	return nil
}

//go:build !windows

package cli

import (
	"os"

	"golang.org/x/sys/unix"
)

// enableEscapes reports whether the terminal f understands escape sequences.
func enableEscapes(*os.File) bool { return true }

// terminalSize returns the size of the terminal f, or 0 if it is not a terminal.
func terminalSize(f *os.File) (columns, lines int) {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	return int(size.Col), int(size.Row)
}

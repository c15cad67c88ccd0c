//go:build !windows

package cli

import (
	"os"

	"golang.org/x/sys/unix"
)

// enableEscapes reports whether the terminal f understands escape sequences.
func enableEscapes(*os.File) bool { return true }

// terminalWidth returns the columns of the terminal f, or 0 if it is not a terminal.
func terminalWidth(f *os.File) int {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}

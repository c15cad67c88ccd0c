package cli

import (
	"os"

	"golang.org/x/sys/windows"
)

// enableEscapes switches the console f to escape sequences, which it would otherwise print as they are, and reports
// whether it could.
func enableEscapes(f *os.File) bool {
	console := windows.Handle(f.Fd())
	var mode uint32
	if err := windows.GetConsoleMode(console, &mode); err != nil {
		return false
	}
	return windows.SetConsoleMode(console, mode|windows.ENABLE_VIRTUAL_TERMINAL_PROCESSING) == nil
}

//go:build !windows

package cli

import "os"

// enableEscapes reports whether the terminal f understands escape sequences.
func enableEscapes(*os.File) bool { return true }

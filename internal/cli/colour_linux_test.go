package cli

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"sevagent/internal/must"
)

// terminal returns a terminal of 24 lines of 80 columns.
func terminal(t *testing.T) *os.File {
	t.Helper()
	controller, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("cannot make a terminal here:", err)
	}
	t.Cleanup(func() { controller.Close() })
	fd := int(controller.Fd())
	must.Do(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0), "unlock the terminal")
	number := must.Get(unix.IoctlGetInt(fd, unix.TIOCGPTN))(t, "ask for the terminal's number")
	path := fmt.Sprintf("/dev/pts/%d", number)
	f := must.Get(os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0))(t, "open %s", path)
	t.Cleanup(func() { f.Close() })
	must.Do(t, unix.IoctlSetWinsize(int(f.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}), "set its size")
	return f
}

// Colours are for terminals, unless the user or the terminal has none.
func TestColours(t *testing.T) {
	screen := terminal(t)
	file := must.Get(os.Create(filepath.Join(t.TempDir(), "file")))(t, "create a file")
	defer file.Close()
	for _, c := range []struct {
		out           io.Writer
		noColor, term string
		want          bool
	}{
		{screen, "", "xterm", true},
		{&output{Writer: screen}, "", "xterm", true},
		{screen, "1", "xterm", false},
		{screen, "", "dumb", false},
		{file, "", "xterm", false},
		{io.Discard, "", "xterm", false},
	} {
		t.Setenv("NO_COLOR", c.noColor)
		t.Setenv("TERM", c.term)
		if got := Colours(c.out); got != c.want {
			t.Errorf("Colours(%T) = %v with NO_COLOR=%q, TERM=%s; want %v", c.out, got, c.noColor, c.term, c.want)
		}
	}
	t.Setenv("COLUMNS", "")
	if width, height := Width(screen), Height(screen); width != 80 || height != 24 {
		t.Errorf("the terminal has %d columns and %d lines, want 80 and 24", width, height)
	}
	if Height(file) != 0 {
		t.Error("a file has a height")
	}
}

package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/cobra"

	"sevagent/internal/must"
)

// A file is replaced as a whole and keeps its permissions: one that only its owner may read stays so.
func TestWriteOutputFile(t *testing.T) {
	for _, perm := range []fs.FileMode{0, 0o644, 0o600} {
		path := filepath.Join(t.TempDir(), "report")
		if perm != 0 {
			must.Do(t, os.WriteFile(path, []byte("a longer text than the new one"), perm), "write a file")
		}
		before, _ := os.Stat(path)
		if err := WriteOutput(t.Context(), path, io.Discard, []byte("new")); err != nil {
			t.Errorf("file of mode %v: %v", perm, err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != "new" {
			t.Errorf("file of mode %v: it holds %q (%v)", perm, got, err)
		}
		if after, err := os.Stat(path); err != nil || before != nil && after.Mode() != before.Mode() {
			t.Errorf("file of mode %v: its mode is now %v (%v)", before.Mode(), after.Mode(), err)
		}
	}
}

func TestWriteOutputStdout(t *testing.T) {
	for _, path := range []string{"", "-"} {
		var b bytes.Buffer
		if err := WriteOutput(t.Context(), path, &b, []byte("text")); err != nil || b.String() != "text" {
			t.Errorf("path %q: standard output gets %q (%v)", path, b.String(), err)
		}
	}
}

// A symbolic link is followed, to a file that is there and to one that is not, and stays.
func TestWriteOutputLink(t *testing.T) {
	for _, exists := range []bool{true, false} {
		dir := t.TempDir()
		target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
		if exists {
			must.Do(t, os.WriteFile(target, []byte("a longer text than the new one"), 0o644), "write a file")
		}
		if err := os.Symlink("target", link); err != nil {
			t.Skip("cannot make symbolic links:", err)
		}
		if err := WriteOutput(t.Context(), link, io.Discard, []byte("new")); err != nil {
			t.Errorf("target exists: %v: %v", exists, err)
		}
		if to, err := os.Readlink(link); err != nil || to != "target" {
			t.Errorf("target exists: %v: the link leads to %q (%v)", exists, to, err)
		}
		if got, err := os.ReadFile(target); err != nil || string(got) != "new" {
			t.Errorf("target exists: %v: the target holds %q (%v)", exists, got, err)
		}
	}
}

func TestWriteOutputDirectory(t *testing.T) {
	if err := WriteOutput(t.Context(), t.TempDir(), io.Discard, []byte("new")); err == nil {
		t.Error("a directory was written to")
	}
}

// full fails as a full disk does.
type full struct{}

var errFull = errors.New("no space left on device")

func (full) Write([]byte) (int, error) { return 0, errFull }

// TestWriteErrors: a command that drops the error of a write fails all the same; another failure of it comes first.
func TestWriteErrors(t *testing.T) {
	other := errors.New("something else")
	root := func() *cobra.Command {
		root := &cobra.Command{Use: "tool", Short: "Do something"}
		root.AddCommand(
			&cobra.Command{Use: "drops", RunE: func(cmd *cobra.Command, _ []string) error {
				fmt.Fprintln(cmd.OutOrStdout(), "text")
				return nil
			}},
			&cobra.Command{Use: "fails", RunE: func(cmd *cobra.Command, _ []string) error {
				fmt.Fprintln(cmd.OutOrStdout(), "text")
				return other
			}},
			&cobra.Command{Use: "log", RunE: func(cmd *cobra.Command, _ []string) error {
				fmt.Fprintln(BestEffort(cmd.OutOrStdout()), "text")
				return nil
			}})
		return root
	}
	for _, test := range []struct {
		args []string
		want error
	}{
		{[]string{"drops"}, errFull},
		{[]string{"fails"}, other},
		{[]string{"log"}, nil},
		{[]string{"version"}, errFull},
		{[]string{"--help"}, errFull},
		{[]string{"help", "version"}, errFull},
		{[]string{"completion", "bash"}, errFull},
	} {
		err := Execute(context.Background(), root(), test.args, nil, full{}, io.Discard)
		if !errors.Is(err, test.want) {
			t.Errorf("%q with a full disk returns %v, want %v", test.args, err, test.want)
		}
	}
}

// Package simscript has what the tests of several programs share: commands for testscript, and a build of programs.
package simscript

import (
	"errors"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// Exits is the command `exits STATUS PROGRAM [ARGUMENT ...]`: it runs a program and fails unless it ends with that exit
// status. The commands stdout and stderr see what the program printed.
func Exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS PROGRAM [ARGUMENT ...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		e, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("run %s: %v", args[1], err)
		}
		got = e.ExitCode()
	}
	if got != want {
		ts.Fatalf("%s ended with exit status %d, want %d", args[1], got, want)
	}
}

// RunWith builds programs into a directory, with the race detector if the test has it, sets bin to that, and runs the
// tests. It returns the exit status for TestMain.
func RunWith(m *testing.M, bin *string, packages ...string) int {
	dir, err := os.MkdirTemp("", "programs")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	*bin = dir
	args := []string{"build", "-ldflags=-s -w", "-o", dir}
	info, _ := debug.ReadBuildInfo()
	if info != nil && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, packages...)...).CombinedOutput(); err != nil {
		panic("go build: " + string(out))
	}
	return m.Run()
}

// Package program holds what the example programs have in common around their subject: flags, signals and exit
// statuses, certificates from files, and a server that keeps serving while its files are read again.
//
// The programs that stand in for a Nitro Enclave take their certificates from files, since an enclave has no agent and
// no published directory. How the files get into it, in its image or encrypted for a key that KMS releases only to it,
// is out of scope here.
package program

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// usageError is wrong usage or configuration.
type usageError struct{ error }

// Usage marks an error as wrong usage or configuration.
func Usage(err error) error { return usageError{err} }

// Flags are the flags of a program. It accepts nothing else on its command line.
type Flags struct {
	*flag.FlagSet
	stdout io.Writer
}

// Parse reads the command line. Errors, including that help was asked for and printed, are for Main.
func (f *Flags) Parse() error {
	switch err := f.FlagSet.Parse(os.Args[1:]); {
	case errors.Is(err, flag.ErrHelp):
		f.SetOutput(f.stdout)
		f.PrintDefaults()
		return err
	case err != nil:
		return Usage(err)
	case f.NArg() > 0:
		return Usage(fmt.Errorf("%q is not a flag", f.Arg(0)))
	}
	return nil
}

// Main runs a program until it is done or told to stop. The exit status is 1 if it fails, and 2 for a usage error.
func Main(name string, run func(ctx context.Context, flags *Flags, stdout, stderr io.Writer) error) {
	flags := &Flags{flag.NewFlagSet(name, flag.ContinueOnError), os.Stdout}
	flags.SetOutput(io.Discard) // the error is reported below
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, flags, os.Stdout, os.Stderr)
	stop()
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}

	fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
	if _, ok := errors.AsType[usageError](err); ok {
		os.Exit(2)
	}
	os.Exit(1)
}

// Command front is what is installed as /usr/bin/sevagent. It asks the running agent for evidence and becomes, for
// everything else, the whole program that ../ is, installed as sevagentd.
//
// The two are one program to their users. They are apart because a caller waits for evidence: the whole program's libraries
// take longer to start than the agent takes to answer. What does not go well here is done again by the whole program, which
// knows what to say about it, and which does all of it alone, too.
package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/pflag"

	"sevagent/client"
	"sevagent/internal/atomicfile"
	"sevagent/internal/configfile"
	"sevagent/internal/evidence"
)

func main() {
	if evidenceFor(os.Args[1:]) {
		return
	}
	fmt.Fprintf(os.Stderr, "sevagent: %v\n", become())
	os.Exit(1)
}

// evidenceFor does what sevagent evidence does, and reports whether that was asked for and went well.
func evidenceFor(args []string) bool {
	flags := pflag.NewFlagSet("sevagent", pflag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Usage = func() {}
	config := flags.String("config", "/etc/sevagent", "")
	socket := flags.String("socket", "", "")
	nonceHex := flags.String("nonce", "", "")
	bind := flags.String("bind", evidence.BindNone, "")
	file := flags.StringP("output", "o", "", "")
	if err := flags.Parse(args); err != nil || flags.NArg() != 1 || flags.Arg(0) != "evidence" {
		return false
	}
	nonce := make([]byte, 32)
	rand.Read(nonce)
	if *nonceHex != "" {
		var err error
		if nonce, err = hex.DecodeString(*nonceHex); err != nil || len(nonce) < evidence.MinNonce || len(nonce) > evidence.MaxNonce {
			return false
		}
	}
	switch *bind {
	case evidence.BindNone, evidence.BindClient, evidence.BindServer:
	default:
		return false
	}
	if *socket == "" {
		*socket = configfile.Socket(*config)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	doc, err := client.New(*socket).Evidence(ctx, nonce, *bind)
	if err != nil {
		return false
	}
	if *file != "" {
		return atomicfile.Write(*file, doc, 0o644) == nil
	}
	if _, err := os.Stdout.Write(doc); err != nil {
		os.Exit(1) // whoever was to read it has gone
	}
	return true
}

// become replaces the process by the whole program, which keeps the arguments, the environment, the process ID that
// systemd knows and the sockets that it passed. It returns only if it cannot.
func become() error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find sevagentd beside the running program: %w", err)
	}
	// Where the package has it, and where make build has it.
	places := []string{filepath.Join(filepath.Dir(self), "../libexec/sevagent/sevagentd"), filepath.Join(filepath.Dir(self), "sevagentd")}
	for _, place := range places {
		if err := syscall.Exec(place, os.Args, os.Environ()); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("start %s: %w", place, err)
		}
	}
	return fmt.Errorf("start sevagentd: it is neither of %s; reinstall the package sevagent", strings.Join(places, " and "))
}

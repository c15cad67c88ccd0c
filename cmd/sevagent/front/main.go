// Command front is what is installed as /usr/bin/sevagent. It asks the running agent for evidence and becomes, for
// everything else, the whole program that cmd/sevagentd is.
//
// The two are one program to their users. They are apart because a caller waits for evidence: the whole program's libraries
// take longer to start than the agent takes to answer. So this one links as little as it can: not even net/http, net and
// package client. What does not go well here is done again by the whole program, which knows what to say about it, and
// which does all of it alone, too.
package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"sevagent/internal/atomicfile"
	"sevagent/internal/configfile"
)

func main() {
	if evidenceFor(os.Args[1:]) {
		return
	}
	fmt.Fprintf(os.Stderr, "sevagent: %v\n", become())
	os.Exit(1)
}

// What package evidence calls by these names, and package client DefaultSocket; a test compares them.
const (
	bindNone      = "none"
	bindClient    = "client"
	bindServer    = "server"
	minNonce      = 16
	maxNonce      = 64
	defaultSocket = "/run/sevagent/sevagent.sock"
)

// request is the command line of sevagent evidence.
type request struct{ config, socket, nonce, bind, file string }

// parse knows the flags of sevagent evidence, each followed by its value or by = and that. Whatever else may be there, help
// and mistakes among it, is not for this program.
func parse(args []string) (r request, ok bool) {
	r = request{config: "/etc/sevagent", bind: bindNone}
	flags := map[string]*string{"--config": &r.config, "--socket": &r.socket, "--nonce": &r.nonce, "--bind": &r.bind, "--output": &r.file, "-o": &r.file}
	command := false
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		if arg == "evidence" && !command {
			command = true
			continue
		}
		name, value, has := strings.Cut(arg, "=")
		flag := flags[name]
		if flag == nil || name == "-o" && has { // of which the value could begin with it
			return r, false
		}
		if !has {
			if len(args) == 0 {
				return r, false
			}
			value, args = args[0], args[1:]
		}
		*flag = value
	}
	return r, command
}

// evidenceFor does what sevagent evidence does, and reports whether that was asked for and went well.
func evidenceFor(args []string) bool {
	r, ok := parse(args)
	if !ok {
		return false
	}
	nonce := make([]byte, 32)
	var err error
	if r.nonce != "" {
		nonce, err = hex.DecodeString(r.nonce)
	} else {
		_, err = unix.Getrandom(nonce, 0) // of up to 256 bytes never less; crypto/rand is 160 kB more
	}
	if err != nil || len(nonce) < minNonce || len(nonce) > maxNonce {
		return false
	}
	if r.bind != bindNone && r.bind != bindClient && r.bind != bindServer {
		return false
	}
	if r.socket == "" {
		r.socket = configfile.Socket(r.config)
	}
	if r.socket == "" {
		r.socket = defaultSocket
	}
	doc, ok := ask(r.socket, nonce, r.bind)
	if !ok {
		return false
	}
	if r.file != "" {
		// Until now a signal has ended this program, which waits. A file half written would be left behind.
		signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGTERM)
		return atomicfile.Write(r.file, doc, 0o644) == nil
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

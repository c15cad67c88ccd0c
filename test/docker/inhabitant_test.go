//go:build node

package docker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/client"
	"sevagent/client/certs"
	"sevagent/test/lab"
)

// A container's only process is this binary, run again. It answers each line of its standard input with a reply, and
// ends when its standard input does.
const roleVariable = "SEVAGENT_DOCKER_ROLE"

// reply is what the command was about, and nothing else.
type reply struct {
	Signals  []received `json:",omitempty"` // since the start
	Loaded   *loaded    `json:",omitempty"`
	Tally    *tally     `json:",omitempty"`
	Attempts []attempt  `json:",omitempty"`
	Refused  *refusal   `json:",omitempty"` // by the agent
	Names    []string   `json:",omitempty"` // in a directory
	Text     string     `json:",omitempty"`
	At       time.Time  // when it was done
	Err      string     `json:",omitempty"`
}

type received struct {
	Signal string
	At     time.Time
}

// loaded is what is current in the published directory.
type loaded struct {
	Generation string
	Client     string // subject of the client's certificate, by package certs
	PEM        string // the same, of client.pem by its name at the top
}

// tally is what a reader has met that loads all the time.
type tally struct {
	Loads       int
	Bad         int
	First       string // of the bad ones
	Generations int    // that it has seen
}

// refusal is the agent's, or that it cannot be reached: Status is 0.
type refusal struct {
	Status     int
	Code       string
	RetryAfter time.Duration
}

// attempt is something that the owner of a file can do, and what came of it.
type attempt struct{ What, Err string }

type inhabitant struct {
	dir *certs.Directory

	mu      sync.Mutex
	signals []received
	tally   tally
	seen    map[string]bool

	flood *flood
}

// inhabit is the main program of a container.
func inhabit() error {
	in := &inhabitant{seen: make(map[string]bool)}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2)
	go func() {
		for s := range signals {
			in.mu.Lock()
			in.signals = append(in.signals, received{unix.SignalName(s.(syscall.Signal)), time.Now()})
			in.mu.Unlock()
		}
	}()
	answers := json.NewEncoder(os.Stdout)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		r, err := in.do(strings.Fields(lines.Text()))
		r.At = time.Now()
		if err != nil {
			r.Err = err.Error()
		}
		if err := answers.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

func (in *inhabitant) do(command []string) (r reply, err error) {
	switch command[0] {
	case "signals":
		in.mu.Lock()
		defer in.mu.Unlock()
		r.Signals = append(r.Signals, in.signals...)
	case "read":
		if in.dir, err = certs.Open(""); err == nil {
			go in.read()
		}
	case "load":
		r.Loaded, err = in.load()
	case "tally":
		in.mu.Lock()
		defer in.mu.Unlock()
		t := in.tally
		t.Generations = len(in.seen)
		r.Tally = &t
	case "cat":
		var text []byte
		text, err = os.ReadFile(command[1])
		r.Text = string(text)
	case "list":
		var entries []os.DirEntry
		entries, err = os.ReadDir(command[1])
		for _, e := range entries {
			r.Names = append(r.Names, e.Name())
		}
	case "read-all":
		r.Attempts, err = readAll()
	case "escape":
		r.Attempts, err = escape(command[1:])
	case "tamper":
		r.Attempts, err = tamper()
	case "evidence":
		r.Text, r.Refused, err = askEvidence(command[1])
	case "tool":
		r.Text, err = runTool(command[1])
	case "refresh":
		_, err = client.New("").Refresh(context.Background())
		r.Refused, err = refused(err)
	case "flood":
		in.flood = startFlood()
		r.Refused, err = in.flood.limited()
	case "calm":
		r.Text = in.flood.stop()
	case "attack":
		r.Attempts, err = attack()
	case "drop":
		err = os.WriteFile(filepath.Join(lab.Published, command[1]), []byte("not ours\n"), 0o644)
	case "remove":
		err = os.Remove(filepath.Join(lab.Published, command[1]))
	case "point": // a link, elsewhere, the way that no reader meets it missing
		temporary := filepath.Join(lab.Published, "new")
		if err = os.Symlink(command[2], temporary); err == nil {
			err = os.Rename(temporary, filepath.Join(lab.Published, command[1]))
		}
	default:
		err = fmt.Errorf("unknown command %q", command)
	}
	return r, err
}

// load reads what is current in the two ways that the contract has.
func (in *inhabitant) load() (*loaded, error) {
	set := in.dir.Set()
	pair, err := lab.LoadOne(lab.Published)
	if err != nil {
		return nil, err
	}
	return &loaded{set.Generation, set.Client.Leaf.Subject.CommonName, pair.Leaf.Subject.CommonName}, in.dir.Err()
}

// read loads all the time.
func (in *inhabitant) read() {
	for {
		generation, err := lab.LoadCurrent(lab.Published, 2*time.Millisecond)
		if err == nil {
			_, err = lab.LoadOne(lab.Published)
		}
		in.mu.Lock()
		in.tally.Loads++
		in.seen[generation] = true
		if err != nil {
			in.tally.Bad++
			if in.tally.First == "" {
				in.tally.First = err.Error()
			}
		}
		in.mu.Unlock()
		time.Sleep(20 * time.Millisecond) // so as to leave the processors to others
	}
}

// attempts are what somebody has tried, and what came of it.
type attempts []attempt

func (list *attempts) try(what string, err error) {
	a := attempt{What: what}
	if err != nil {
		a.Err = err.Error()
	}
	*list = append(*list, a)
}

// open opens a file and closes it.
func open(path string, flags int) error {
	f, err := os.OpenFile(path, flags, 0o644)
	if err == nil {
		f.Close()
	}
	return err
}

// attack does to every file of the current generation what permissions do not keep root from.
func attack() ([]attempt, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil, err
	}
	// The 14 capabilities of a default container, among them DAC_OVERRIDE, FOWNER and CHOWN.
	if os.Getuid() != 0 || !bytes.Contains(status, []byte("CapEff:\t00000000a80425fb\n")) {
		return nil, errors.New("not root with a container's default capabilities")
	}
	generation, err := os.Readlink(filepath.Join(lab.Published, "..data"))
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(lab.Published, generation)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var list attempts
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		list.try("write "+path, open(path, os.O_WRONLY))
		list.try("append to "+path, open(path, os.O_WRONLY|os.O_APPEND))
		list.try("truncate "+path, unix.Truncate(path, 0))
		list.try("write by its link "+path, open(filepath.Join(lab.Published, e.Name()), os.O_RDWR))
		list.try("chmod "+path, os.Chmod(path, 0o777))
		list.try("chown "+path, os.Chown(path, 1000, 1000))
		list.try("link "+path, os.Link(path, filepath.Join(lab.Published, "stolen")))
		list.try("rename "+path, os.Rename(path, filepath.Join(lab.Published, "moved")))
		list.try("rename over "+path, renameOver(path))
		list.try("make mutable "+path, makeMutable(path))
		list.try("mount over "+path, unix.Mount("/proc/self/status", path, "", unix.MS_BIND, ""))
		list.try("remove "+path, os.Remove(path))
	}
	list.try("create in "+dir, open(filepath.Join(dir, "evil"), os.O_WRONLY|os.O_CREATE))
	list.try("chmod "+dir, os.Chmod(dir, 0o777))
	list.try("rename "+dir, os.Rename(dir, filepath.Join(lab.Published, "moved")))
	list.try("make mutable "+dir, makeMutable(dir))
	return list, nil
}

func renameOver(path string) error {
	other := filepath.Join(lab.Published, "other")
	if err := os.WriteFile(other, nil, 0o444); err != nil {
		return fmt.Errorf("write another: %v", err)
	}
	defer os.Remove(other)
	return os.Rename(other, path)
}

func makeMutable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0)
}

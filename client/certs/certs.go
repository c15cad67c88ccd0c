// Package certs keeps a Go program on the newest certificates that the node's sevagent has published, across any
// number of rotations, without a restart and without a goroutine.
//
// A container gets them by mounting the directory /etc/ecs/mtls, or a consumer's own subdirectory, read-only. Mount the
// directory, not a file of it: a file would stay what it was when the container started.
//
//	dir, err := certs.Open("")
//	server := &http.Server{TLSConfig: dir.ServerConfig()}
//	client := &http.Client{Transport: &http.Transport{DialTLSContext: dir.DialTLS}}
//
// The contract with the publisher, for a reader in any language: resolve ..data once and read everything from there, or
// read one file that is complete in itself, such as client.pem. Opening client.crt and then client.key by their names
// at the top sooner or later gives a key of one generation with a certificate of the next.
//
// This package does the former. Each handshake checks where ..data leads, which takes a microsecond or two; when that
// is a new generation, the whole set is loaded from it. A set that cannot be loaded never replaces one that works: see
// Directory.Err. Established connections are left alone, as with any change of a certificate.
package certs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultDir is where the agent publishes.
const DefaultDir = "/etc/ecs/mtls"

const (
	// retryAfter is how long a generation that could not be loaded is not retried, so that not every handshake tries
	// it.
	retryAfter = time.Second

	// maxAttempts bounds how often in a row a new generation may appear while the previous one is being read.
	maxAttempts = 100
)

// Directory is a published directory. It is safe for concurrent use, and has nothing to close.
type Directory struct {
	path  string
	link  string // ..data
	state atomic.Pointer[state]
	mu    sync.Mutex // held while loading
}

// state is the result of the last check of ..data. It never changes.
type state struct {
	target string // where ..data led; empty: nowhere
	set    *Set   // of target, or if err is set, the last good one
	err    error
	tried  time.Time
}

// Open loads the set that is published in a directory; empty: DefaultDir. An error that is fs.ErrNotExist means that
// there is none: nothing is published yet, or something else is mounted there.
func Open(dir string) (*Directory, error) {
	if dir == "" {
		dir = DefaultDir
	}
	path, err := filepath.Abs(dir) // the program may change its working directory
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", dir, err)
	}
	d := &Directory{path: path, link: filepath.Join(path, "..data")}
	d.state.Store(new(state))
	if st := d.refresh(); st.set == nil {
		return nil, st.err
	}
	return d, nil
}

// Set returns the newest set that could be loaded. The pointer stays the same until there is another: what is derived
// from a set can be kept beside it.
func (d *Directory) Set() *Set { return d.refresh().set }

// Err returns why Set is not the newest one; nil: it is. An older set works until Set.NotAfter, so this is for the log
// and for metrics rather than for a liveness probe.
func (d *Directory) Err() error { return d.refresh().err }

// refresh returns the state of the present ..data, and loads it if need be.
func (d *Directory) refresh() *state {
	if st, ok := d.current(); ok {
		return st
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	old, ok := d.current()
	if ok {
		return old // another caller has just loaded it
	}
	st := d.load()
	if st.err != nil {
		st.set = old.set
	}
	d.state.Store(st)
	return st
}

// current returns the last state, and reports whether it is still valid.
func (d *Directory) current() (*state, bool) {
	st := d.state.Load()
	target, err := d.target()
	return st, err == nil && target == st.target && (st.err == nil || time.Since(st.tried) < retryAfter)
}

// target returns where ..data leads: the name of the present generation.
func (d *Directory) target() (string, error) {
	target, err := os.Readlink(d.link)
	if err != nil {
		return "", fmt.Errorf("find the published certificates: %w; is the published directory mounted there, "+
			"as a directory and not a single file, and is sevagent running?", err)
	}
	return target, nil
}

// load reads the present generation. What was read counts if ..data still leads to it afterwards: then nothing was
// removed in between, and a file that was missing is not published.
func (d *Directory) load() *state {
	for range maxAttempts {
		target, err := d.target()
		if err != nil {
			return &state{err: err}
		}
		if filepath.Base(target) != target || !filepath.IsLocal(target) {
			return &state{err: fmt.Errorf("find the published certificates: %s leads out of its directory", d.link)}
		}
		set, err := readSet(filepath.Join(d.path, target))
		if now, _ := d.target(); now == target {
			return &state{target: target, set: set, err: err, tried: time.Now()}
		}
	}
	return &state{err: errors.New("load the published certificates: there were new ones at each attempt")}
}

// readFile returns nil without an error for a missing file.
func readFile(dir, name string) ([]byte, error) {
	content, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return content, err
}

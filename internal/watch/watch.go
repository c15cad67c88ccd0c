// Package watch notices rotations as docs/reading-certificates.md describes it, for containers without code of their
// own: each generation that becomes current, once, and whole.
package watch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// poll is how often the link is read although nothing was noticed: a directory that is made again is another one to
	// inotify. Without inotify, whose instances containers share a limit of, it is read each second.
	poll       = 10 * time.Second
	pollAlone  = time.Second
	retryFirst = time.Second
	retryMost  = time.Minute
)

// Watch calls Do for each generation that becomes current in Dir, until ctx ends. A set that is there from the start is
// none. While Do runs, or fails, generations that follow each other become one; a failure is retried.
type Watch struct {
	Dir string
	Do  func(ctx context.Context, generation string) error
	// Failed gets the errors of Do and when it will be tried again.
	Failed func(err error, wait time.Duration)
}

// Run returns nil when ctx ends.
func (w Watch) Run(ctx context.Context) error { return w.follow(ctx, w.current()) }

// follow is Run from a generation on, which is done.
func (w Watch) follow(ctx context.Context, done string) error {
	interval := pollAlone
	events := make(<-chan fsnotify.Event)
	notify, err := fsnotify.NewWatcher()
	if err == nil {
		defer notify.Close()
		interval, events = poll, notify.Events
	}
	retry := retryFirst
	var failed string   // the generation that Do has failed for last
	var again time.Time // when it may be tried for that one again
	for {
		wait := interval
		if notify != nil && notify.Add(w.Dir) != nil {
			wait = pollAlone // it is not there yet, or watches have run out
		}
		switch generation := w.current(); {
		case generation == "" || generation == done:
		case generation == failed && time.Now().Before(again): // what happens in the directory does not hurry it
			wait = min(wait, time.Until(again))
		default:
			err := w.Do(ctx, generation)
			switch {
			case ctx.Err() != nil:
				return nil
			case err == nil:
				done, failed = generation, ""
				continue // another rotation may have happened while Do ran
			case generation != failed:
				retry = retryFirst
			}
			w.Failed(err, retry)
			failed, again = generation, time.Now().Add(retry)
			wait, retry = min(wait, retry), min(2*retry, retryMost)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-events:
		case <-time.After(wait):
		}
	}
}

// current returns the current generation if all of its files are there, by the names that readers use, too; empty: none
// is.
func (w Watch) current() string {
	generation, err := os.Readlink(filepath.Join(w.Dir, "..data"))
	if err != nil {
		return ""
	}
	if err := complete(w.Dir, generation); err != nil {
		return ""
	}
	return generation
}

func complete(dir, generation string) error {
	text, err := os.ReadFile(filepath.Join(dir, generation, "manifest.json"))
	if err != nil {
		return err
	}
	var manifest struct {
		Files []struct{ File string }
	}
	if err := json.Unmarshal(text, &manifest); err != nil {
		return fmt.Errorf("read the manifest of %s: %w", generation, err)
	}
	if len(manifest.Files) == 0 {
		return errors.New("no file is published")
	}
	for _, f := range manifest.Files {
		for _, path := range []string{filepath.Join(dir, generation, f.File), filepath.Join(dir, f.File)} {
			if _, err := os.Lstat(path); err != nil {
				return err
			}
		}
	}
	return nil
}

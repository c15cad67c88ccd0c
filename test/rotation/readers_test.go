//go:build node

package rotation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"

	"sevagent/test/lab"
)

// A reader is this binary, run again in a mount namespace of its own, where it sees the published directory at
// containerDir only, read-only. It ends when its standard input does, and then prints its tally.
const (
	roleVariable      = "SEVAGENT_ROTATION_ROLE"
	publishedVariable = "SEVAGENT_ROTATION_PUBLISHED"
	containerVariable = "SEVAGENT_ROTATION_CONTAINER"
)

// pause is between two loads, up to twice as long; gap between two opens of a load. With more loads, the agent would
// wait longer for a quiet moment, up to half a second at each rotation.
const (
	pause = 50 * time.Millisecond
	gap   = 6 * time.Millisecond
)

func TestMain(m *testing.M) {
	role := os.Getenv(roleVariable)
	if role == "" {
		os.Exit(m.Run())
	}
	if err := reader(role); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", role, err)
		os.Exit(1)
	}
}

// enter makes what is published appear in the container, and disappear from where the agent writes it.
func enter(published, container string) error {
	if err := syscall.Mount(published, container, "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if err := syscall.Mount("", container, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("make read-only: %w", err)
	}
	if err := syscall.Unmount(published, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", published, err)
	}
	return nil
}

func reader(role string) error {
	dir := os.Getenv(containerVariable)
	if err := enter(os.Getenv(publishedVariable), dir); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	var t tally
	var err error
	switch role {
	case "go":
		loop(ctx, &t, func() error { return loadResolved(dir, rand.N(2*gap)) })
	case "go-slow": // many rotations pass between two opens
		loop(ctx, &t, func() error { return loadResolved(dir, 50*time.Millisecond) })
	case "go-one-file":
		loop(ctx, &t, func() error { return loadOne(dir) })
	case "go-path": // not by the contract
		loop(ctx, &t, func() error { return lab.Load(dir, gap) })
	case "watch-file":
		err = watchFile(ctx, &t, dir)
	case "watch-dir":
		err = watchDir(ctx, &t, dir)
	default:
		err = errors.New("no such role")
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(t)
}

func loop(ctx context.Context, t *tally, load func() error) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(rand.N(2 * pause)):
		}
		t.note(load())
	}
}

// notice loads the generation that is current, and prints its name when it is another one than last.
func notice(t *tally, dir string, last *string) {
	gen, err := lab.Current(dir)
	if err == nil {
		if gen == *last {
			return
		}
		err = lab.Load(gen, 0)
	}
	t.note(err)
	*last = gen
	fmt.Println(filepath.Base(gen))
}

// watchFile watches one file by its path, as controller-runtime's certwatcher does: handleEvent there.
func watchFile(ctx context.Context, t *tally, dir string) error {
	return watch(ctx, t, dir, filepath.Join(dir, "..data/client.crt"),
		func(w *fsnotify.Watcher, e fsnotify.Event) (bool, error) {
			switch {
			case e.Has(fsnotify.Write), e.Has(fsnotify.Create):
				return true, nil
			case e.Has(fsnotify.Chmod), e.Has(fsnotify.Remove):
				return true, w.Add(e.Name) // it may be another file by now
			}
			return false, nil
		})
}

// watchDir watches the directory for a new ..data, as Envoy does.
func watchDir(ctx context.Context, t *tally, dir string) error {
	return watch(ctx, t, dir, dir, func(_ *fsnotify.Watcher, e fsnotify.Event) (bool, error) {
		return filepath.Base(e.Name) == "..data" && e.Has(fsnotify.Create), nil
	})
}

func watch(ctx context.Context, t *tally, dir, path string,
	on func(*fsnotify.Watcher, fsnotify.Event) (bool, error)) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Add(path); err != nil {
		return err
	}
	last := ""
	notice(t, dir, &last)
	for {
		select {
		case e := <-w.Events:
			look, err := on(w, e)
			if err != nil {
				return fmt.Errorf("watch %s after %s: %w", path, e, err)
			}
			if look {
				notice(t, dir, &last)
			}
		case err := <-w.Errors:
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

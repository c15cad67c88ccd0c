package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fsnotify/fsnotify"

	"sevagent/internal/must"
)

// rotate makes a generation the current one of dir.
func rotate(t *testing.T, dir, name string) {
	t.Helper()
	must.Do(t, os.Mkdir(filepath.Join(dir, name), 0o755), "make a generation")
	for file, text := range map[string]string{"client.pem": name, "manifest.json": `{"files": [{"file": "client.pem"}]}`} {
		must.Do(t, os.WriteFile(filepath.Join(dir, name, file), []byte(text), 0o600), "write %s", file)
	}
	tmp := filepath.Join(dir, "..tmp")
	must.Do(t, os.Symlink(name, tmp), "make a link")
	must.Do(t, os.Rename(tmp, filepath.Join(dir, "..data")), "put the link in place")
	if err := os.Symlink("..data/client.pem", filepath.Join(dir, "client.pem")); !os.IsExist(err) {
		must.Do(t, err, "make a link")
	}
}

// watching runs "sevagent watch" until the test ends, which it has to do without an error.
func watching(t *testing.T, args ...string) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	var stderr bytes.Buffer
	go func() { ended <- run(ctx, append([]string{"watch"}, args...), nil, &stderr, &stderr) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("watch ended with %v", err)
		}
		t.Logf("watch printed:\n%s", stderr.String())
	})
}

// appears waits until a file has a text.
func appears(t *testing.T, file, text string) {
	t.Helper()
	w := must.Get(fsnotify.NewWatcher())(t, "watch a directory")
	defer w.Close()
	must.Do(t, w.Add(filepath.Dir(file)), "watch the directory of %s", file)
	for {
		if got, _ := os.ReadFile(file); string(got) == text {
			return
		}
		select {
		case <-w.Events:
		case <-t.Context().Done():
			t.Fatalf("%s never had %q", file, text)
		}
	}
}

func TestWatchRunsACommand(t *testing.T) {
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	watching(t, "--dir", dir, "--", "sh", "-c", "cat "+dir+"/client.pem >>"+out)
	rotate(t, dir, "one")
	appears(t, out, "one")
	rotate(t, dir, "two")
	appears(t, out, "onetwo")
}

func TestWatchSignals(t *testing.T) {
	dir, out, pidFile := t.TempDir(), filepath.Join(t.TempDir(), "out"), filepath.Join(t.TempDir(), "pid")
	program := exec.Command("sh", "-c", "trap 'echo hup >>"+out+"' HUP; touch "+out+"; while :; do sleep 1 & wait $!; done")
	must.Do(t, program.Start(), "start a program")
	defer program.Wait()
	defer program.Process.Kill()
	appears(t, out, "") // it has its handler
	must.Do(t, os.WriteFile(pidFile, fmt.Append(nil, program.Process.Pid, "\n"), 0o600), "write its number")
	watching(t, "--dir", dir, "--signal", "hup", "--pid-file", pidFile)
	rotate(t, dir, "one")
	appears(t, out, "hup\n")
}

func TestWatchUsage(t *testing.T) {
	for want, args := range map[string][]string{
		"want a command after --":      nil,
		"or --signal with --pid-file":  {"--signal", "HUP"},
		"and not both":                 {"--signal", "HUP", "--pid-file", "f", "--", "true"},
		"--signal HANGUP is no signal": {"--signal", "HANGUP", "--pid-file", "f"},
	} {
		var out bytes.Buffer
		if err := run(t.Context(), append([]string{"watch"}, args...), nil, &out, &out); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", args, err, want)
		}
	}
}

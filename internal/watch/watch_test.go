package watch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"sevagent/internal/must"
)

// published is a directory in the layout of the agent's.
type published struct {
	*testing.T
	dir string
}

// generation makes one with its files.
func (p published) generation(name string, files ...string) {
	p.Helper()
	text := `{"files": [`
	for i, file := range files {
		if i > 0 {
			text += ", "
		}
		text += `{"file": "` + file + `"}`
		p.write(filepath.Join(name, file), name)
	}
	p.write(filepath.Join(name, "manifest.json"), text+"]}")
}

func (p published) write(name, text string) {
	p.Helper()
	path := filepath.Join(p.dir, name)
	must.Do(p, os.MkdirAll(filepath.Dir(path), 0o755), "make a directory")
	must.Do(p, os.WriteFile(path, []byte(text), 0o600), "write %s", name)
}

func (p published) link(name, target string) {
	p.Helper()
	tmp := filepath.Join(p.dir, "..tmp")
	must.Do(p, os.Symlink(target, tmp), "make a link")
	must.Do(p, os.Rename(tmp, filepath.Join(p.dir, name)), "put the link in place")
}

// start runs a Watch. Each generation that it is given is sent, and answered with what is received.
func (p published) start() (seen chan string, answer chan error, failed chan error) {
	seen, answer, failed = make(chan string), make(chan error), make(chan error, 10)
	ctx, cancel := context.WithCancel(p.Context())
	ended := make(chan error, 1)
	w := Watch{
		Dir: p.dir,
		Do: func(ctx context.Context, generation string) error {
			select {
			case seen <- generation:
				return <-answer
			case <-ctx.Done():
				return ctx.Err()
			}
		},
		Failed: func(err error, _ time.Duration) { failed <- err },
	}
	first := w.current() // before anything is published
	go func() { ended <- w.follow(ctx, first) }()
	p.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			p.Errorf("it ended with %v", err)
		}
	})
	return seen, answer, failed
}

// Every generation counts once, when all of it is there; those that come while one is dealt with become one.
func TestGenerations(t *testing.T) {
	p := published{t, t.TempDir()}
	seen, answer, _ := p.start()

	p.generation("one", "client.crt", "client.key")
	p.link("..data", "one")
	p.link("client.crt", "..data/client.crt") // as the agent makes them, after the switch
	p.link("client.key", "..data/client.key")
	if got := <-seen; got != "one" {
		t.Fatalf("got %s, want one", got)
	}
	p.generation("two", "client.crt", "client.key")
	p.link("..data", "two")
	p.generation("three", "client.crt", "client.key")
	p.link("..data", "three")
	answer <- nil
	if got := <-seen; got != "three" {
		t.Errorf("got %s, want three", got)
	}
	answer <- nil
	p.write("elsewhere", "no rotation")
	p.generation("four", "client.crt", "client.key")
	p.link("..data", "four")
	if got := <-seen; got != "four" {
		t.Errorf("got %s, want four", got)
	}
	answer <- nil
}

// What is there from the start has been read already, and what fails is tried again.
func TestFailureIsRetried(t *testing.T) {
	p := published{t, t.TempDir()}
	p.generation("one", "client.pem")
	p.link("..data", "one")
	p.link("client.pem", "..data/client.pem")
	before := (&Watch{Dir: p.dir}).current()
	if before != "one" {
		t.Fatalf("the current generation is %q, want one", before)
	}
	seen, answer, failed := p.start()
	p.generation("two", "client.pem")
	p.link("..data", "two")
	var got []string
	for _, err := range []error{errors.New("no nginx yet"), nil} {
		got = append(got, <-seen)
		answer <- err
	}
	if !slices.Equal(got, []string{"two", "two"}) || len(failed) != 1 {
		t.Errorf("got %q, %d failures; want two twice, and one failure", got, len(failed))
	}
}

// What happens in the directory, such as the links that follow the switch, does not hurry a retry.
func TestRetryWaits(t *testing.T) {
	p := published{t, t.TempDir()}
	seen, answer, failed := p.start()
	p.generation("one", "client.pem")
	p.link("client.pem", "..data/client.pem")
	p.link("..data", "one")
	began := time.Now()
	<-seen
	answer <- errors.New("no nginx yet")
	for <-failed; ; p.write("elsewhere", "no rotation") {
		select {
		case <-seen:
			answer <- nil
			if waited := time.Since(began); waited < retryFirst {
				t.Errorf("tried again after %v, want %v", waited, retryFirst)
			}
			return
		default:
		}
	}
}

// A set is whole when the names that readers use are there, too.
func TestWhole(t *testing.T) {
	p := published{t, t.TempDir()}
	w := Watch{Dir: p.dir}
	whole := func(want string) {
		t.Helper()
		if got := w.current(); got != want {
			t.Errorf("the current generation is %q, want %q", got, want)
		}
	}
	whole("")
	p.link("..data", "one")
	whole("")
	p.write("one/manifest.json", "{")
	whole("")
	p.write("one/manifest.json", "{}")
	whole("")
	p.generation("one", "client.pem")
	whole("")
	p.link("client.pem", "..data/client.pem")
	whole("one")
	must.Do(t, os.Remove(filepath.Join(p.dir, "one/client.pem")), "remove a file")
	whole("")
}

package directory

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/must"
)

func TestOpens(t *testing.T) {
	dir := mtlstest.MemoryDir(t)
	for _, name := range []string{"a", "b"} {
		must.Do(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644), "make a file")
	}
	o := newOpens()
	defer o.close()
	open := func(name string) {
		t.Helper()
		mtlstest.Read(t, filepath.Join(dir, name))
	}
	open("a")
	if o.drain(nil) {
		t.Error("an open is reported before anything is followed")
	}
	o.follow(dir)
	open("a")
	open("b")
	var names []string
	if !o.drain(func(name string) { names = append(names, name) }) || !slices.Equal(names, []string{"a", "b"}) {
		t.Errorf("opens of a and b are reported as %q", names)
	}
	if o.drain(nil) {
		t.Error("an open is reported twice, or one that nobody made")
	}

	began := time.Now()
	o.waitForGap()
	if took := time.Since(began); took < quietFor {
		t.Errorf("it was quiet after %v, want at least %v without an open", took, quietFor)
	}

	// A reader at work puts the switch off; one that never ends does not do so for ever, or this test would hang.
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			default:
				os.ReadFile(filepath.Join(dir, "a"))
				os.ReadFile(filepath.Join(dir, "b"))
			}
		}
	}()
	for !o.drain(nil) {
	}
	o.waitForGap()
	close(stop)
	<-ended

	other := mtlstest.MemoryDir(t)
	must.Do(t, os.WriteFile(filepath.Join(other, "a"), nil, 0o644), "make a file")
	o.follow(other)
	open("a")
	if o.drain(nil) {
		t.Error("an open is reported in a directory that is no longer followed")
	}
	mtlstest.Read(t, filepath.Join(other, "a"))
	if !o.drain(nil) {
		t.Error("an open is not reported in the directory that is followed now")
	}
}

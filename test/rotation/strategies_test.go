package rotation

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sevagent/internal/config"
	"sevagent/internal/mtls"
	"sevagent/internal/mtls/source"
	"sevagent/internal/promtext"
	"sevagent/test/lab"
)

// strategy is a way to bring a directory from one version to the next. All flush what they write.
type strategy struct {
	name string
	// start prepares a directory and returns what publishes a version there.
	start func(tb testing.TB, dir string, disk bool) func(material) error
	// generations: there is a ..data to resolve.
	generations bool
}

var (
	ours = strategy{"sevagent", startRotator, true}
	// peers are reimplementations of what others do.
	peers = []strategy{
		{"in-place", startWith(writeInPlace), false}, // spiffe-helper, step ca renew --daemon
		// consul-template, aws-workload-credentials-provider
		{"rename-per-file", startWith(renameEach), false},
		{"symlink-no-retention", startWith(swapWithoutRetention), true}, // Kubernetes' AtomicWriter, without retention
	}
	strategies = append([]strategy{ours}, peers...)
)

func startWith(publish func(dir string, files []file) error) func(testing.TB, string, bool) func(material) error {
	return func(_ testing.TB, dir string, _ bool) func(material) error {
		return func(m material) error { return publish(dir, m.files) }
	}
}

func writeInPlace(dir string, files []file) error {
	for _, f := range files {
		if err := writeFile(filepath.Join(dir, f.name), f, os.O_TRUNC); err != nil {
			return err
		}
	}
	return nil
}

func writeFile(path string, f file, flag int) error {
	h, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|flag, f.mode())
	if err != nil {
		return err
	}
	_, err = h.Write(f.content)
	return errors.Join(err, h.Sync(), h.Close())
}

func renameEach(dir string, files []file) error {
	for _, f := range files {
		tmp := filepath.Join(dir, "."+f.name+".tmp")
		if err := writeFile(tmp, f, os.O_EXCL); err != nil {
			return err
		}
		if err := os.Rename(tmp, filepath.Join(dir, f.name)); err != nil {
			return err
		}
	}
	return syncDir(dir)
}

func swapWithoutRetention(dir string, files []file) error {
	data := filepath.Join(dir, "..data")
	before, err := lab.Current(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	next := fmt.Sprintf("..%d", time.Now().UnixNano())
	if err := os.Mkdir(filepath.Join(dir, next), 0o755); err != nil {
		return err
	}
	for _, f := range files {
		if err := writeFile(filepath.Join(dir, next, f.name), f, os.O_EXCL); err != nil {
			return err
		}
	}
	if err := syncDir(filepath.Join(dir, next)); err != nil {
		return err
	}
	if err := os.Symlink(next, data+"_tmp"); err != nil {
		return err
	}
	if err := os.Rename(data+"_tmp", data); err != nil {
		return err
	}
	if before != "" {
		return errors.Join(os.RemoveAll(before), syncDir(dir))
	}
	for _, f := range files {
		if err := os.Symlink(filepath.Join("..data", f.name), filepath.Join(dir, f.name)); err != nil {
			return err
		}
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// startRotator runs a Rotator whose only secret is a file in memory, and publishes by a Refresh.
func startRotator(tb testing.TB, dir string, disk bool) func(material) error {
	tb.Helper()
	secrets, err := os.MkdirTemp("/dev/shm", "rotation")
	if err != nil {
		secrets = tb.TempDir()
	}
	tb.Cleanup(func() { os.RemoveAll(secrets) })
	secret := filepath.Join(secrets, "secret.json")
	r := mtls.New(mtls.Config{
		Settings: mtls.Settings{
			MTLS: config.MTLS{
				Path: dir, AllowDisk: disk, PollInterval: 24 * time.Hour,
				Owner: config.Owner{UID: os.Getuid(), GID: os.Getgid()}, KeyMode: 0o400, CertMode: 0o444,
			},
			Secrets: []mtls.NamedSource{{Name: "bench", Source: source.File(secret)}},
		},
		Registerer: promtext.New(),
		Log:        slog.New(slog.DiscardHandler),
	})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	running := false
	tb.Cleanup(func() {
		stop()
		if !running {
			return
		}
		if err := <-done; err != nil {
			tb.Errorf("Run: %v", err)
		}
	})
	return func(m material) error {
		// Nobody reads it before the Refresh.
		if err := os.WriteFile(secret, []byte(m.secret), 0o600); err != nil {
			return err
		}
		if !running {
			running = true
			go func() { done <- r.Run(ctx) }()
		}
		before := r.Status().Generation
		change, err := r.Refresh(ctx)
		if err == nil && change.Generation == before {
			err = errors.New("nothing was published")
		}
		return err
	}
}

package rotation

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/internal/must"
	"sevagent/test/lab"
)

// fileSystem makes an empty directory on a file system of this kind, or skips.
func fileSystem(b *testing.B, kind string) string {
	b.Helper()
	magic, candidates := int64(unix.TMPFS_MAGIC), []string{"/dev/shm", os.TempDir()}
	if kind == "ext4" {
		magic, candidates = unix.EXT4_SUPER_MAGIC, []string{os.TempDir(), "."}
	}
	for _, c := range candidates {
		var st unix.Statfs_t
		if unix.Statfs(c, &st) != nil || int64(st.Type) != magic {
			continue
		}
		dir, err := os.MkdirTemp(c, "rotation")
		if err != nil {
			continue
		}
		b.Cleanup(func() { removeAll(dir) })
		must.Do(b, os.Chmod(dir, 0o755), "open the directory")
		return must.Get(filepath.Abs(dir))(b, "find the directory")
	}
	b.Skipf("needs a %s to write to: none of %q is one", kind, candidates)
	return ""
}

// BenchmarkPublish is the time from a version in memory to its eight files. That of sevagent has what the others do
// not: parsing and validation, the wait of 8 ms at least for a gap between reads, and the self-test.
func BenchmarkPublish(b *testing.B) {
	versions := newMaterial(b, 2)
	for _, s := range strategies {
		for _, kind := range []string{"tmpfs", "ext4"} {
			b.Run(s.name+"/"+kind, func(b *testing.B) {
				publish := s.start(b, fileSystem(b, kind), kind != "tmpfs")
				must.Do(b, publish(versions[1]), "publish the first version")
				var took []time.Duration
				for b.Loop() {
					began := time.Now()
					must.Do(b, publish(versions[len(took)%2]), "publish")
					took = append(took, time.Since(began))
				}
				b.ReportMetric(percentile(took, 50), "p50-ms")
				b.ReportMetric(percentile(took, 99), "p99-ms")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// BenchmarkReaders counts loads that fail while a directory rotates, every 50 ms or as fast as the strategy can. The
// readers by path open one file after the other with 5 ms between, as a JVM that starts does. The others do what a
// strategy offers: resolve ..data once, or read client.pem in one go. The window is failures / (rotations × load
// rate): the time in which a load must not fall, whatever the rates.
func BenchmarkReaders(b *testing.B) {
	const (
		readers = 4 // of each kind
		gap     = 5 * time.Millisecond
		think   = 50 * time.Millisecond // between two loads, on average
		every   = 50 * time.Millisecond
		atLeast = 3 * time.Second
	)
	versions := newMaterial(b, 16)
	for _, s := range strategies {
		b.Run(s.name, func(b *testing.B) {
			dir := fileSystem(b, "tmpfs")
			publish := s.start(b, dir, false)
			rotations := 0
			rotate := func() {
				must.Do(b, publish(versions[rotations%len(versions)]), "publish")
				rotations++
			}
			rotate()

			byPath := func() error { return lab.Load(dir, gap) }
			byContract := func() error { return loadOne(dir) }
			if s.generations {
				byContract = func() error { return loadResolved(dir, gap) }
			}
			stop := make(chan struct{})
			var wg sync.WaitGroup
			var mu sync.Mutex
			var path, contract tally // guarded by mu
			read := func(sum *tally, load func() error) {
				var t tally
				for {
					select {
					case <-stop:
						mu.Lock()
						sum.add(t)
						mu.Unlock()
						return
					case <-time.After(rand.N(2 * think)):
						t.note(load())
					}
				}
			}
			for range readers {
				wg.Go(func() { read(&path, byPath) })
				wg.Go(func() { read(&contract, byContract) })
			}

			tick := time.NewTicker(every)
			defer tick.Stop()
			began := time.Now()
			for b.Loop() {
				<-tick.C
				rotate()
			}
			for time.Since(began) < atLeast {
				<-tick.C
				rotate()
			}
			took := time.Since(began)
			close(stop)
			wg.Wait()

			percent := func(n int, t tally) float64 { return 100 * float64(n) / float64(max(1, t.Loads)) }
			window := func(t tally) float64 {
				return float64(t.bad()*int(took.Microseconds())) / float64(rotations*max(1, t.Loads))
			}
			b.ReportMetric(float64(rotations)/took.Seconds(), "rotations/s")
			b.ReportMetric(percent(path.Mismatches, path), "path-mismatch-%")
			b.ReportMetric(percent(path.Missing, path), "path-missing-%")
			b.ReportMetric(window(path), "path-window-us")
			b.ReportMetric(percent(contract.Mismatches, contract), "contract-mismatch-%")
			b.ReportMetric(percent(contract.Missing, contract), "contract-missing-%")
			b.ReportMetric(0, "ns/op")
		})
	}
}

package directory

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/internal/mtls/certset"
	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/must"
	"sevagent/internal/sim"
)

// BenchmarkPublish times the bare publication of six files for a client, or nine for a client and a server, without the
// wait for a quiet moment: on a tmpfs, where flushing costs nothing, and on the file system of $SEVAGENT_BENCH_DIR or
// else of the source, where it does.
func BenchmarkPublish(b *testing.B) {
	disk := os.Getenv("SEVAGENT_BENCH_DIR")
	if disk == "" {
		disk = "."
	}
	for _, where := range []string{"/dev/shm", disk} {
		var st unix.Statfs_t
		if err := unix.Statfs(where, &st); err != nil {
			b.Skipf("%s: %v", where, err)
		}
		name := map[int64]string{unix.TMPFS_MAGIC: "tmpfs", unix.EXT4_SUPER_MAGIC: "ext4"}[int64(st.Type)]
		if name == "" {
			name = "other"
		}
		ca := mtlstest.NewCA(b, "ca", nil)
		run := func(name string, secret func(testing.TB, string) []byte) {
			b.Run(name, func(b *testing.B) {
				d := benchDirectory(b, where)
				var sets [2]*certset.Set
				for i, name := range []string{"first", "second"} {
					sets[i] = mustSet(b, secret(b, name))
				}
				d.evidence = make([]byte, 12<<10)
				var took []time.Duration
				for i := 0; b.Loop(); i++ {
					began := time.Now()
					if _, err := d.publish(sets[i%2]); err != nil {
						b.Fatalf("publish: %v", err)
					}
					took = append(took, time.Since(began))
					b.StopTimer() // rotations are rare: those before are long gone
					must.Do(b, d.Collect(time.Now().Add(time.Hour)), "collect what an hour makes collectable")
					b.StartTimer()
				}
				slices.Sort(took)
				ms := func(p int) float64 { return float64(took[len(took)*p/100].Microseconds()) / 1000 }
				b.ReportMetric(ms(50), "p50-ms")
				b.ReportMetric(ms(99), "p99-ms")
			})
		}
		run(name+"/client", func(t testing.TB, name string) []byte { return ca.ClientSecret(t, name) })
		run(name+"/client-and-server", ca.ServerSecret)
	}
}

func benchDirectory(b *testing.B, where string) *published {
	dir, err := os.MkdirTemp(where, ".bench-")
	if err != nil {
		b.Skip(err)
	}
	b.Cleanup(func() { sim.RemoveAll(dir) })
	dir, err = filepath.Abs(dir)
	must.Do(b, err, "find the directory")
	return newDirectoryIn(b, dir)
}

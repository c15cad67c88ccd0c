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

// BenchmarkPublish times the bare publication of six files for a client, or nine for a client and a server, without
// the wait for a gap between reads: on a tmpfs, where flushing costs nothing, and on the file system of
// $SEVAGENT_BENCH_DIR or else of the source, where it does.
func BenchmarkPublish(b *testing.B) {
	disk := os.Getenv("SEVAGENT_BENCH_DIR")
	if disk == "" {
		disk = "."
	}
	ca := mtlstest.NewCA(b, "ca", nil)
	clientSecret := func(t testing.TB, name string) []byte { return ca.ClientSecret(t, name) }
	for _, where := range []string{"/dev/shm", disk} {
		var st unix.Statfs_t
		must.Do(b, unix.Statfs(where, &st), "find the file system of %s", where)
		fs := map[int64]string{unix.TMPFS_MAGIC: "tmpfs", unix.EXT4_SUPER_MAGIC: "ext4"}[int64(st.Type)]
		b.Run(fs+"/client", func(b *testing.B) { benchmarkPublish(b, where, clientSecret) })
		b.Run(fs+"/client-and-server", func(b *testing.B) { benchmarkPublish(b, where, ca.ServerSecret) })
	}
}

func benchmarkPublish(b *testing.B, where string, secret func(testing.TB, string) []byte) {
	dir := must.Get(os.MkdirTemp(where, ".bench-"))(b, "make a directory")
	b.Cleanup(func() { sim.RemoveAll(dir) })
	d := newDirectoryIn(b, must.Get(filepath.Abs(dir))(b, "find it"))
	d.evidence = make([]byte, 12<<10)
	sets := []*certset.Set{mustSet(b, secret(b, "first")), mustSet(b, secret(b, "second"))}
	var took []time.Duration
	var worked time.Duration
	for i := 0; b.Loop(); i++ {
		began, before := time.Now(), processTime(b)
		d.mustPublish(sets[i%2])
		worked += processTime(b) - before
		took = append(took, time.Since(began))
		b.StopTimer() // rotations are rare: those before are long gone
		must.Do(b, d.Collect(time.Now().Add(time.Hour)), "collect what an hour makes collectable")
		b.StartTimer()
	}
	slices.Sort(took)
	ms := func(p int) float64 { return float64(took[len(took)*p/100].Microseconds()) / 1000 }
	b.ReportMetric(ms(50), "p50-ms")
	b.ReportMetric(ms(99), "p99-ms")
	b.ReportMetric(float64(worked.Microseconds())/1000/float64(len(took)), "cpu-ms") // comparable on a busy machine
}

// processTime returns the user and system time of this process so far.
func processTime(b *testing.B) time.Duration {
	var u unix.Rusage
	must.Do(b, unix.Getrusage(unix.RUSAGE_SELF, &u), "measure the time of this process")
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

package agent

import (
	"log/slog"
	"math"
	"os"
	"runtime/debug"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"

	"sevagent/internal/must"
)

func TestCgroupMemory(t *testing.T) {
	const own = "0::/system.slice/sevagent.service\n"
	for _, c := range []struct {
		name, cgroup string
		files        map[string]string // below /sys/fs/cgroup
		want         int64
	}{
		{"v2", own, map[string]string{"system.slice/sevagent.service/memory.max": "268435456\n",
			"system.slice/sevagent.service/memory.high": "max\n", "system.slice/memory.max": "max\n"}, 268435456},
		{"v2, high below max", own, map[string]string{"system.slice/sevagent.service/memory.max": "268435456\n",
			"system.slice/sevagent.service/memory.high": "201326592\n"}, 201326592},
		{"v2, lower above", own, map[string]string{"system.slice/sevagent.service/memory.max": "268435456\n",
			"system.slice/memory.max": "134217728\n"}, 134217728},
		{"v2, a container's own root", "0::/\n", map[string]string{"memory.max": "268435456\n"}, 268435456},
		{"v2, outside of the namespace", "0::/../../other\n",
			map[string]string{"memory.max": "268435456\n"}, 268435456},
		{"v2, no limit", own, map[string]string{"system.slice/sevagent.service/memory.max": "max\n"}, math.MaxInt64},
		{"v2, no controller", own, nil, math.MaxInt64},
		{"v1", "9:name=systemd:/a\n4:cpu,memory:/a\n0::/b\n", map[string]string{
			"memory/a/memory.limit_in_bytes": "268435456\n", "memory/memory.limit_in_bytes": "9223372036854771712\n"},
			268435456},
		{"v1, another controller", "4:memory_more:/a\n", map[string]string{
			"memory/a/memory.limit_in_bytes": "268435456\n"}, math.MaxInt64},
		{"both", "4:memory:/a\n0::/a\n", map[string]string{"unified/a/memory.max": "7\n",
			"memory/a/memory.limit_in_bytes": "9\n"}, 7},
		{"a colon in the path", "0::/a:b\n", map[string]string{"a:b/memory.max": "7\n"}, 7},
		{"garbage", "\n0::\n:\n0::/a\n", map[string]string{"a/memory.max": "-1\n", "memory.max": "0\n"}, math.MaxInt64},
		{"nothing", "", nil, math.MaxInt64},
	} {
		root := fstest.MapFS{"proc/self/cgroup": {Data: []byte(c.cgroup)}}
		for name, content := range c.files {
			root["sys/fs/cgroup/"+name] = &fstest.MapFile{Data: []byte(content)}
		}
		if got := cgroupMemory(root); got != c.want {
			t.Errorf("%s: %d bytes, want %d", c.name, got, c.want)
		}
	}
	if got := cgroupMemory(fstest.MapFS{}); got != math.MaxInt64 {
		t.Errorf("without /proc: %d bytes, want no limit", got)
	}
}

// TestPrepareProcess is about the process of the test, and puts back what it changes.
func TestPrepareProcess(t *testing.T) {
	limit := debug.SetMemoryLimit(-1)
	defer func() {
		debug.SetMemoryLimit(limit)
		must.Do(t, unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0), "make the process dumpable again")
	}()
	t.Setenv("GOMEMLIMIT", "1GiB")
	prepareProcess(slog.New(slog.DiscardHandler))
	if got := debug.SetMemoryLimit(-1); got != limit {
		t.Errorf("with GOMEMLIMIT in the environment, the limit became %d, want that it stays %d", got, limit)
	}
	dumpable := must.Get(unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0))(t, "ask whether the process is dumpable")
	if dumpable != 0 {
		t.Errorf("the process is dumpable: %d", dumpable)
	}

	// What the agent reads about itself stays readable.
	for _, file := range []string{"cgroup", "mountinfo", "status", "stat", "limits"} {
		if _, err := os.ReadFile("/proc/self/" + file); err != nil {
			t.Errorf("the agent cannot read about itself: %v", err)
		}
	}
	if fds, err := os.ReadDir("/proc/self/fd"); err != nil || len(fds) == 0 {
		t.Errorf("read the open descriptors: %d, %v", len(fds), err)
	}

	must.Do(t, os.Unsetenv("GOMEMLIMIT"), "clear the environment")
	prepareProcess(slog.New(slog.DiscardHandler))
	own := cgroupMemory(os.DirFS("/"))
	want := limit
	if own < math.MaxInt64 {
		want = own / 10 * goShare
	}
	if got := debug.SetMemoryLimit(-1); got != want {
		t.Errorf("the limit is %d, want %d of the cgroup's %d", got, want, own)
	}
}

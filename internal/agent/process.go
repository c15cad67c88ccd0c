package agent

import (
	"bytes"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// prepareProcess does what concerns the process as a whole, before there is a key in its memory.
func prepareProcess(log *slog.Logger) {
	// PR_SET_DUMPABLE(2const): no core dump, and no ptrace, /proc/PID/mem or the like for processes of the same user.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		log.Warn("other processes of the agent's user may read its memory", "err", err)
	}
	if _, set := os.LookupEnv("GOMEMLIMIT"); set {
		return
	}
	if limit := cgroupMemory(os.DirFS("/")); limit < math.MaxInt64 {
		debug.SetMemoryLimit(limit / 10 * goShare)
		log.Debug("memory is limited", "cgroup_bytes", limit, "go_bytes", limit/10*goShare)
	}
}

// goShare is how many tenths of the cgroup's memory Go may take before it collects garbage more often. Of the rest, the
// kernel takes 12 KB for each of 6,000 connections, which Go does not know of.
const goShare = 7

// cgroupMemory returns the lowest limit on memory, in bytes, of the process's cgroup and those above it, in both
// versions of cgroups; math.MaxInt64: none. A file that is missing or says something else limits nothing.
func cgroupMemory(root fs.FS) int64 {
	lowest := int64(math.MaxInt64)
	text, _ := fs.ReadFile(root, "proc/self/cgroup")
	for line := range strings.Lines(string(text)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3) // hierarchy, controllers, path: cgroups(7)
		if len(fields) != 3 {
			continue
		}
		var mounts, files []string
		switch {
		case fields[0] == "0" && fields[1] == "":
			mounts, files = []string{"sys/fs/cgroup", "sys/fs/cgroup/unified"}, []string{"memory.max", "memory.high"}
		case strings.Contains(","+fields[1]+",", ",memory,"):
			mounts, files = []string{"sys/fs/cgroup/memory"}, []string{"memory.limit_in_bytes"}
		}
		for dir := path.Clean("/" + fields[2]); ; dir = path.Dir(dir) {
			for _, mount := range mounts {
				for _, file := range files {
					content, _ := fs.ReadFile(root, path.Join(mount, dir, file))
					limit, err := strconv.ParseInt(string(bytes.TrimSpace(content)), 10, 64) // or the word max
					if err == nil && limit > 0 {
						lowest = min(lowest, limit)
					}
				}
			}
			if dir == "/" {
				break
			}
		}
	}
	return lowest
}

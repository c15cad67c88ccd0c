package promtext

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process adds what concerns the process itself, under the names that Prometheus's libraries give it, as far as the
// kernel says: memory, descriptors, processor time, and what Go needs.
func (r *Registry) Process() {
	started := time.Now()
	r.add("process_cpu_seconds_total", "Processor time of the process, in user and in kernel mode.", "counter").
		series[""] = processorTime
	resident := r.Gauge("process_resident_memory_bytes", "Memory that is resident.")
	virtual := r.Gauge("process_virtual_memory_bytes", "Address space in use.")
	open := r.Gauge("process_open_fds", "Open file descriptors.")
	limit := r.Gauge("process_max_fds", "How many file descriptors may be open.")
	r.Gauge("process_start_time_seconds", "When the process was started.").Set(float64(started.UnixMilli()) / 1000)
	r.Gauges("go_info", "The version of Go.", "version").With(runtime.Version()).Set(1)
	r.GaugeFunc("go_goroutines", "Goroutines.", func() float64 { return float64(runtime.NumGoroutine()) })
	heap := r.Gauge("go_memstats_heap_alloc_bytes",
		"Memory of objects on the heap, garbage that is not collected yet included.")
	system := r.Gauge("go_memstats_sys_bytes", "Address space that Go has from the kernel.")
	released := r.Gauge("go_memstats_heap_released_bytes", "Memory of the heap that Go has given back to the kernel.")
	collected := r.Gauge("go_memstats_last_gc_time_seconds", "When garbage was last collected.")

	r.before = append(r.before, func() {
		if pages, ok := memoryPages(); ok {
			size := float64(os.Getpagesize())
			virtual.Set(pages[0] * size)
			resident.Set(pages[1] * size)
		}
		if list, err := os.ReadDir("/proc/self/fd"); err == nil {
			open.Set(float64(len(list) - 1)) // without that of the list itself
		}
		if files, ok := fileLimit(); ok {
			limit.Set(files)
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		heap.Set(float64(m.HeapAlloc))
		system.Set(float64(m.Sys))
		released.Set(float64(m.HeapReleased))
		collected.Set(float64(m.LastGC) / 1e9)
	})
}

func processorTime() float64 {
	var usage syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &usage) != nil {
		return 0
	}
	seconds := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	return seconds(usage.Utime) + seconds(usage.Stime)
}

// fileLimit reads proc_pid_limits(5), where the unit's filter of system calls refuses to return a limit.
func fileLimit() (float64, bool) {
	text, _ := os.ReadFile("/proc/self/limits")
	_, rest, _ := strings.Cut(string(text), "Max open files")
	if fields := strings.Fields(rest); len(fields) > 0 {
		files, err := strconv.ParseFloat(fields[0], 64)
		return files, err == nil
	}
	return 0, false
}

// memoryPages reads proc_pid_statm(5): total size and resident set, in pages.
func memoryPages() (pages [2]float64, ok bool) {
	text, err := os.ReadFile("/proc/self/statm")
	fields := strings.Fields(string(text))
	if err != nil || len(fields) < 2 {
		return pages, false
	}
	for i := range pages {
		if pages[i], err = strconv.ParseFloat(fields[i], 64); err != nil {
			return pages, false
		}
	}
	return pages, true
}

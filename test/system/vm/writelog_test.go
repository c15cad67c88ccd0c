//go:build system

package vm_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
)

// A writeLog is every write to a disk, in the order of their completion, and every flush: what QEMU's blklogwrites
// records, in the format of the kernel's dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst).
type writeLog struct {
	f       *os.File
	sector  int64 // bytes
	entries []logEntry
}

type logEntry struct {
	sector, sectors int64
	flags           uint64
	data            int64 // where it is in the log
}

const (
	logMagic = 0x6a736677736872

	logFlush   = 1 << 0
	logFUA     = 1 << 1
	logDiscard = 1 << 2
)

func readLog(path string) (*writeLog, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	super := make([]byte, 28) // magic u64, version u64, nr_entries u64, sectorsize u32
	if _, err := f.ReadAt(super, 0); err != nil {
		return nil, err
	}
	if le.Uint64(super) != logMagic || le.Uint64(super[8:]) != 1 {
		return nil, fmt.Errorf("%s is no log of writes, or of a version other than 1", path)
	}
	l := &writeLog{f: f, sector: int64(le.Uint32(super[24:]))}
	// The super block is behind while the machine runs: its power was cut. The log ends at the first entry of zeros.
	for at := l.sector; ; {
		header := make([]byte, 32) // sector u64, nr_sectors u64, flags u64, data_len u64
		_, err := f.ReadAt(header, at)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		e := logEntry{int64(le.Uint64(header)), int64(le.Uint64(header[8:])), le.Uint64(header[16:]), at + l.sector}
		if e.sectors == 0 && e.flags == 0 {
			break
		}
		at += l.sector
		if e.flags&logDiscard == 0 {
			at += e.sectors * l.sector
		}
		l.entries = append(l.entries, e)
	}
	return l, nil
}

func (l *writeLog) close() { l.f.Close() }

// after returns the number of entries that end before an offset in the log.
func (l *writeLog) after(offset int64) int {
	for i, e := range l.entries {
		if e.data >= offset {
			return i
		}
	}
	return len(l.entries)
}

// replay puts onto a disk what it holds after a power cut behind entry n: all that came before its last flush, and of
// the writes since then those that the disk happened to have written out of its cache, in any order but complete.
func (l *writeLog) replay(disk io.WriterAt, n int, random *rand.Rand) (lost int, err error) {
	flushed := 0
	for i, e := range l.entries[:n] {
		if e.flags&logFlush != 0 {
			flushed = i
		}
	}
	for i, e := range l.entries[:n] {
		if e.sectors == 0 || e.flags&logDiscard != 0 {
			continue
		}
		noted := e.sector*l.sector == diskSize-block
		if i > flushed && e.flags&logFUA == 0 && !noted && random.IntN(2) == 0 {
			lost++
			continue
		}
		b := make([]byte, e.sectors*l.sector)
		if _, err := l.f.ReadAt(b, e.data); err != nil {
			return lost, fmt.Errorf("replay write %d: %w", i, err)
		}
		if _, err := disk.WriteAt(b, e.sector*l.sector); err != nil {
			return lost, err
		}
	}
	return lost, nil
}

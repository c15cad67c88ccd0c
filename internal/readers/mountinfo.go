package readers

import (
	"bytes"
	"path/filepath"
	"strings"

	"sevagent/client"
)

// genPrefix begins the name of a generation, a directory in the published directory: see package mtls.
const genPrefix = "..gen-"

// mount is what matters here of a line of mountinfo, proc_pid_mountinfo(5).
type mount struct {
	device string // "major:minor", field 3
	root   string // field 4: the path, within its file system, of what is mounted
	point  string // field 5: where, seen from the process's root
	// deleted: root was unlinked. The kernel appends "//deleted" to the path, which has no "//" otherwise
	// (fs/d_path.c, dentry_path).
	deleted bool
}

// parseMount reads the first five fields of a line.
func parseMount(line []byte) (m mount, ok bool) {
	fields := bytes.SplitN(bytes.TrimSuffix(line, []byte("\n")), []byte(" "), 6)
	if len(fields) < 6 {
		return mount{}, false
	}
	m = mount{device: string(fields[2]), root: unescape(fields[3]), point: unescape(fields[4])}
	m.root, m.deleted = strings.CutSuffix(m.root, "//deleted")
	return m, m.root != "" || m.deleted
}

// unescape undoes the kernel's \ooo, three octal digits for a space, a tab, a newline, a backslash or a number sign
// (fs/seq_file.c, mangle_path).
func unescape(field []byte) string {
	if bytes.IndexByte(field, '\\') < 0 {
		return string(field)
	}
	b := make([]byte, 0, len(field))
	for i := 0; i < len(field); i++ {
		if c, ok := octal(field[i:]); ok {
			b = append(b, c)
			i += len(`\ooo`) - 1
		} else {
			b = append(b, field[i])
		}
	}
	return string(b)
}

func octal(s []byte) (byte, bool) {
	if len(s) < 4 || s[0] != '\\' {
		return 0, false
	}
	n := 0
	for _, c := range s[1:4] {
		if c < '0' || c > '7' {
			return 0, false
		}
		n = n<<3 | int(c-'0')
	}
	return byte(n), n <= 0xff
}

// place is where the published directory is: a path within a file system, the same in every mount namespace.
type place struct {
	device string
	root   string // cleaned: "/" if the directory is the whole file system
}

// locate returns the place of a directory from the mountinfo of a process that sees it at path, which has no symbolic
// links, on device.
func locate(mountinfo []byte, path, device string) (place, bool) {
	var found mount
	for line := range bytes.Lines(mountinfo) {
		m, ok := parseMount(line)
		// Of two mounts at the same point the later one is on top.
		if ok && m.device == device && !m.deleted && len(m.point) >= len(found.point) && below(path, m.point) {
			found = m
		}
	}
	if found.point == "" {
		return place{}, false
	}
	rest, err := filepath.Rel(found.point, path)
	if err != nil {
		return place{}, false
	}
	return place{device, filepath.Join(found.root, rest)}, true
}

// below reports whether path is dir or something in it. Both are clean.
func below(path, dir string) bool {
	return dir == "/" || path == dir || strings.HasPrefix(path, dir) && path[len(dir)] == '/'
}

// pinned returns the mounts of a mount namespace that hold something in the published directory: a generation, a file
// of one, or a published directory that was deleted. It returns at most maxFiles; omitted counts the others.
func pinned(mountinfo []byte, dir place) (files []client.StaleMount, omitted int) {
	for line := range bytes.Lines(mountinfo) {
		m, ok := parseMount(line)
		if !ok || m.device != dir.device || !below(m.root, dir.root) {
			continue
		}
		rest := strings.Trim(strings.TrimPrefix(m.root, dir.root), "/")
		generation, file, _ := strings.Cut(rest, "/")
		consumer := ""
		next, after, _ := strings.Cut(file, "/")
		if !strings.HasPrefix(generation, genPrefix) && strings.HasPrefix(next, genPrefix) {
			consumer, generation, file = generation, next, after
		}
		if !strings.HasPrefix(generation, genPrefix) && (rest != "" || !m.deleted) {
			continue
		}
		if len(files) == maxFiles {
			omitted++
			continue
		}
		files = append(files, client.StaleMount{
			MountPoint: cut(m.point), Consumer: consumer, File: file, Generation: generation, Deleted: m.deleted,
		})
	}
	return files, omitted
}

// cut shortens text that a container chose.
func cut(s string) string {
	if len(s) > maxText {
		return s[:maxText] + "…"
	}
	return s
}

//go:build node

package readers

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"sevagent/internal/must"
	"sevagent/test/lab"
)

const (
	rotations = 150 // while the readers work
	strict    = 4   // more, each of which every reader must have taken
	pause     = 50 * time.Millisecond
)

// recipe is one of the document, and how to run it.
type recipe struct {
	name  string
	needs []string // programs
	// prepare returns what to run in the container, made of the recipe's code, or what is missing.
	prepare func(m *machine, code string) (args []string, missing string)
	// addr is where it serves. Without one it is a client: it makes a request for each line of its input, or if once is
	// set, one for each process.
	addr string
	once bool
	// told: it reads its files again when something makes it, the recipe "watch" if it has a signal; the others do at each
	// handshake.
	told   bool
	signal string
	// user is the uid that it runs as. One other than root sees the consumer's directory, which it owns.
	user int
}

var readers = []*recipe{
	{name: "go-client", needs: []string{"go"}, prepare: goProgram("go-client")},
	{name: "go-plain", needs: []string{"go"}, prepare: goProgram("go-plain")},
	{name: "go-server", needs: []string{"go"}, prepare: goProgram("go-server"), addr: "127.0.0.1:8444"},
	{name: "curl", needs: []string{"curl", "sh"}, once: true,
		prepare: func(_ *machine, code string) ([]string, string) {
			return []string{"sh", "-ec", code}, ""
		}},
	{name: "requests", prepare: func(m *machine, code string) ([]string, string) {
		python := lab.Python("python")
		if err := exec.Command(python, "-c", "import requests").Run(); err != nil {
			return nil, "needs requests in .cache/venv: make test-node makes it"
		}
		return []string{python, m.program("client-requests.py", code, "client.py")}, ""
	}},
	{name: "python-client", needs: []string{"python3"}, prepare: func(m *machine, code string) ([]string, string) {
		return []string{"python3", m.program("client.py", code, "client.py")}, ""
	}},
	{name: "python-server", needs: []string{"python3"}, addr: "127.0.0.1:8445",
		prepare: func(m *machine, code string) ([]string, string) {
			return []string{"python3", m.program("server.py", code, "server.py")}, ""
		}},
	{name: "node-client", needs: []string{"node"}, prepare: func(m *machine, code string) ([]string, string) {
		return []string{"node", m.program("client.js", code, "client.js")}, ""
	}},
	{name: "node-server", needs: []string{"node"}, addr: "127.0.0.1:8446", told: true,
		prepare: func(m *machine, code string) ([]string, string) {
			return []string{"node", m.program("server.js", code, "server.js")}, ""
		}},
	{name: "java", needs: []string{"java", "javac"}, prepare: javaProgram},
	{name: "nginx", needs: []string{"nginx"}, addr: "127.0.0.1:8443", told: true, signal: "HUP", user: 101,
		prepare: func(m *machine, code string) ([]string, string) {
			dir := m.owned("nginx", 101)
			lab.Write(m.t, filepath.Join(dir, "nginx.conf"), lab.Read(m.t, "testdata/nginx.conf"))
			lab.Write(m.t, filepath.Join(dir, "recipe.conf"), code)
			return []string{"nginx", "-p", dir, "-c", "nginx.conf", "-e", "error.log"}, ""
		}},
	{name: "haproxy", needs: []string{"haproxy"}, addr: "127.0.0.1:8447", told: true, signal: "USR2", user: 101,
		prepare: func(m *machine, code string) ([]string, string) {
			config := filepath.Join(m.owned("haproxy", 101), "haproxy.cfg")
			lab.Write(m.t, config, lab.Read(m.t, "testdata/haproxy.cfg")+code)
			return []string{"haproxy", "-W", "-db", "-f", config}, ""
		}},
}

// program writes a recipe, followed by the test's own part that drives it.
func (m *machine) program(name, code, driver string) string {
	path := filepath.Join(m.work, name)
	lab.Write(m.t, path, code+lab.Read(m.t, filepath.Join("testdata", driver)))
	return path
}

// owned makes a directory for a user.
func (m *machine) owned(name string, user int) string {
	dir := filepath.Join(m.work, name)
	must.Do(m.t, errors.Join(os.Mkdir(dir, 0o755), os.Chown(dir, user, user)), "make a directory for %s", name)
	return dir
}

// goProgram builds one program of all Go recipes, which takes the name of one.
func goProgram(name string) func(*machine, string) ([]string, string) {
	return func(m *machine, _ string) ([]string, string) {
		binary := filepath.Join(m.work, "go-recipes")
		if _, err := os.Stat(binary); err == nil {
			return []string{binary, name}, ""
		}
		dir := binary + ".d"
		files := []string{filepath.Join(dir, "drive.go")}
		lab.Write(m.t, files[0], lab.Read(m.t, "testdata/drive.go"))
		all := lab.Recipes(m.t)
		for _, name := range []string{"go-client", "go-plain", "go-server"} {
			file := filepath.Join(dir, name+".go")
			lab.Write(m.t, file, all[name])
			files = append(files, file)
		}
		// In the module, where the package is
		build := exec.Command("go", append([]string{"build", "-o", binary}, files...)...)
		lab.MustRun(m.t, build)
		return []string{binary, name}, ""
	}
}

func javaProgram(m *machine, code string) ([]string, string) {
	dir := filepath.Join(m.work, "java")
	published, drive := filepath.Join(dir, "Published.java"), filepath.Join(dir, "Drive.java")
	lab.Write(m.t, published, code)
	lab.Write(m.t, drive, lab.Read(m.t, "testdata/Drive.java"))
	lab.MustRun(m.t, exec.Command("javac", "-d", dir, published, drive))
	return []string{"java", "-cp", dir, "Drive"}, ""
}

// reader is a recipe that runs.
type reader struct {
	*recipe
	m         *machine
	missing   string // what it needs and does not have; empty: it runs
	ended     <-chan struct{}
	exchange  func() (name string, err error) // one handshake, and the name in the certificate of the reader's side
	rotations *lab.Output                     // what watch prints, for a reader that is signaled

	handshakes int
	failures   []string
	seen       map[string]bool // names
	late       time.Duration   // the longest that a strict rotation took to arrive
}

// start brings a recipe up, or says why it cannot be.
func (m *machine) start(r *recipe, code string) *reader {
	m.t.Helper()
	p := &reader{recipe: r, m: m, seen: make(map[string]bool)}
	for _, program := range r.needs {
		if _, err := exec.LookPath(program); err != nil {
			p.missing = "needs " + program
			return p
		}
	}
	if code == "" {
		m.t.Fatalf("the document has no recipe %s", r.name)
	}
	var args []string
	if args, p.missing = r.prepare(m, code); p.missing != "" {
		return p
	}
	source := lab.Published
	if r.user != 0 {
		source = consumerDir
	}
	if r.once {
		p.exchange = func() (string, error) {
			out, err := container(source, r.user, args...).CombinedOutput()
			if err != nil {
				return "", fmt.Errorf("%w: %s", err, out)
			}
			return string(out), nil
		}
		return p
	}
	cmd := container(source, r.user, args...)
	if r.addr != "" {
		p.ended = lab.Start(m.t, r.name, cmd).Ended
		p.exchange = func() (string, error) { return m.call(r.addr) }
		if r.signal != "" {
			p.rotations = m.watch(r, cmd.Process.Pid)
		}
		return p
	}
	stdin := must.Get(cmd.StdinPipe())(m.t, "make a pipe")
	out, in, err := os.Pipe()
	must.Do(m.t, err, "make a pipe")
	m.t.Cleanup(func() { out.Close() })
	cmd.Stdout = in
	p.ended = lab.Start(m.t, r.name, cmd).Ended
	in.Close()
	lines := bufio.NewScanner(out)
	p.exchange = func() (string, error) {
		if _, err := io.WriteString(stdin, "\n"); err != nil {
			return "", err
		}
		out.SetReadDeadline(time.Now().Add(lab.Hang))
		if !lines.Scan() {
			return "", fmt.Errorf("no answer: %w", errors.Join(lines.Err(), io.EOF))
		}
		name, ok := strings.CutPrefix(lines.Text(), "ok ")
		if !ok {
			return "", errors.New(lines.Text())
		}
		return name, nil
	}
	return p
}

// note counts a handshake.
func (p *reader) note(name string, err error) {
	p.handshakes++
	if err != nil {
		p.failures = append(p.failures, err.Error())
		return
	}
	p.seen[name] = true
}

// work shakes hands until stop is closed.
func (p *reader) work(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-p.ended:
			p.failures = append(p.failures, "the process has ended")
			return
		case <-time.After(rand.N(2 * pause)):
			p.note(p.exchange())
		}
	}
}

// TestReaders rotates under all recipes at once. None may fail a handshake. Then come rotations after which nothing of
// the version before is accepted, CA included, and each of the readers has to follow.
func TestReaders(t *testing.T) {
	if lab.Work() == "" {
		t.Skip("run test/run readers, which makes the namespaces")
	}
	code := lab.Recipes(t)
	m := newMachine(t, code["consumer"])
	m.watching = code["watch"]
	var all, running []*reader
	for _, r := range readers {
		p := m.start(r, code[r.name])
		all = append(all, p)
		if p.missing == "" {
			running = append(running, p)
		}
	}
	seen := m.runOnRotation()
	for _, p := range running {
		lab.Until(t, p.name, func() error { _, err := p.exchange(); return err })
	}
	m.refused.Store(nil) // what came before they were ready

	stop, done := make(chan struct{}), make(chan struct{})
	for _, p := range running {
		go func() {
			p.work(stop)
			done <- struct{}{}
		}()
	}
	began := time.Now()
	for range rotations {
		m.rotate(false)
	}
	took := time.Since(began)
	close(stop)
	for range running {
		<-done
	}
	if text := m.refused.Load(); text != nil {
		t.Errorf("the server refused a client: %s", *text)
	}

	// A reader that never stops reading the consumer's directory, so that it is switched a good while after the main
	// one. A signal in between would come too early.
	go func() {
		for t.Context().Err() == nil {
			os.ReadFile(consumerDir + "/server.pem")
			time.Sleep(2 * time.Millisecond)
		}
	}()
	for range strict {
		m.rotate(true)
		m.talkAs(m.ca(), m.ca())
		published := time.Now()
		for _, p := range running {
			if !p.told {
				name, err := p.exchange()
				if err == nil && name != m.name() {
					err = fmt.Errorf("shows %s after %s was published", name, m.name())
				}
				p.note(name, err)
				continue
			}
			err := lab.Poll(func() error { // it learns of the rotation, and takes its time
				name, err := p.exchange()
				if err == nil && name != m.name() {
					err = fmt.Errorf("shows %s, although %s is published", name, m.name())
				}
				return err
			})
			p.note(m.name(), err)
			p.late = max(p.late, time.Since(published))
		}
	}
	last := current(t)
	lab.Until(t, "the command of watch", func() error {
		if text, err := os.ReadFile(seen); err != nil || !bytes.HasSuffix(bytes.TrimSpace(text), []byte(last)) {
			return fmt.Errorf("has run the command for %.300q, not last for %s, %v", text, last, err)
		}
		return nil
	})

	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "recipe\thandshakes\tfailures\tversions\tsignals\tlate")
	for _, p := range all {
		t.Run(p.name, func(t *testing.T) {
			if p.missing != "" {
				t.Skip(p.missing)
			}
			fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%v\n", p.name, p.handshakes, len(p.failures), len(p.seen),
				p.signals(), p.late.Round(time.Millisecond))
			if len(p.failures) > 0 {
				slices.Sort(p.failures)
				t.Errorf("%d of %d handshakes failed: %.2000s", len(p.failures), p.handshakes,
					strings.Join(slices.Compact(p.failures), "\n"))
			}
			if len(p.seen) < 3 {
				t.Errorf("%d versions were seen, too few to tell anything", len(p.seen))
			}
		})
	}
	w.Flush()
	t.Logf("%d rotations in %.1f s, each acknowledged, then %d strict ones\n%s", rotations, took.Seconds(), strict,
		table.String())
	if text, err := os.ReadFile(filepath.Join(m.work, "nginx/error.log")); err == nil {
		t.Logf("nginx: %d reloads, of which it refused %d for a key that did not match, and %d for another reason",
			bytes.Count(text, []byte("signal 1 (SIGHUP)")), bytes.Count(text, []byte("key values mismatch")),
			bytes.Count(text, []byte("[emerg]"))-bytes.Count(text, []byte("key values mismatch")))
	}
}

// watch runs that recipe beside a server, as its user.
func (m *machine) watch(r *recipe, pid int) *lab.Output {
	m.t.Helper()
	pidFile := filepath.Join(m.work, r.name+".pid")
	lab.Write(m.t, pidFile, fmt.Sprintln(pid))
	names := strings.NewReplacer("sevagent", lab.Bin("sevagent"), "HUP", r.signal, "/run/nginx.pid", pidFile)
	code := names.Replace(m.watching)
	return lab.Start(m.t, "watch "+r.name, container(consumerDir, r.user, "sh", "-ec", code)).Output
}

// signals returns how many a reader got.
func (p *reader) signals() int {
	if p.rotations == nil {
		return 0
	}
	return strings.Count(p.rotations.String(), "rotated: ")
}

// runOnRotation has a command note each generation, and returns where.
func (m *machine) runOnRotation() string {
	m.t.Helper()
	out := filepath.Join(m.work, "generations")
	lab.Start(m.t, "watch", container(lab.Published, 0, lab.Bin("sevagent"), "watch", "--", "sh", "-c",
		"readlink /etc/ecs/mtls/..data >>"+out))
	return out
}

// Command guest runs inside of a virtual machine: it does there what the tests want to know about, and tells them over
// the second serial port, one line each. For tests alone.
//
//	guest scenario    what the kernel's command line names, lab.scenario=NAME,...
//	guest secret      writes another version of the secret
//	guest check       looks at what is published on the disk
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// scenarios by their name in lab.scenario=.
var scenarios = map[string]func(*lab){
	"start":    (*lab).start,
	"life":     (*lab).life,
	"record":   (*lab).record,
	"nodevice": (*lab).noDevice,
	"remount":  (*lab).remount,
	"rotate":   (*lab).rotate,
	"last":     (*lab).last,
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

func run() error {
	what := strings.Join(os.Args[1:], " ")
	if what == "secret" {
		return renew()
	}
	l, err := newLab()
	if err != nil {
		return err
	}
	switch what {
	case "check":
		l.step("what the power cut left", func() (string, error) { return checkPublished(diskPath) })
		return nil
	case "scenario":
		for name := range strings.SplitSeq(l.options["scenario"], ",") {
			scenario := scenarios[name]
			if scenario == nil {
				return fmt.Errorf("no scenario %q", name)
			}
			scenario(l)
		}
		l.say("end")
		return nil
	}
	return errors.New("usage: guest scenario|secret|check")
}

// lab is this boot.
type lab struct {
	port    *os.File
	options map[string]string // lab.NAME=VALUE of the kernel's command line
	failed  bool
}

func newLab() (*lab, error) {
	port, err := os.OpenFile("/dev/ttyS1", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	// Raw: what is written is what arrives.
	if t, err := unix.IoctlGetTermios(int(port.Fd()), unix.TCGETS); err == nil {
		t.Oflag &^= unix.OPOST
		t.Lflag &^= unix.ECHO | unix.ICANON
		if err := unix.IoctlSetTermios(int(port.Fd()), unix.TCSETS, t); err != nil {
			return nil, err
		}
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	l := &lab{port: port, options: make(map[string]string)}
	for _, word := range strings.Fields(string(line)) {
		if option, ok := strings.CutPrefix(word, "lab."); ok {
			name, value, _ := strings.Cut(option, "=")
			l.options[name] = value
		}
	}
	return l, nil
}

// say tells the tests one line.
func (l *lab) say(words ...string) {
	text := strings.ReplaceAll(strings.Join(words, " "), "\n", "\\n")
	fmt.Fprintf(l.port, "LAB %s\n", text)
}

// step does one thing, and tells how it went.
func (l *lab) step(name string, do func() (string, error)) {
	if l.failed {
		return // what follows builds upon it
	}
	start := time.Now() // a jump of the clock does not count: it has a monotonic part
	detail, err := do()
	took := time.Since(start).Round(time.Millisecond)
	if err != nil {
		l.failed = true
		l.say("fail", name+":", took.String()+":", err.Error())
		return
	}
	l.say("ok", name+":", took.String()+":", detail)
}

// until tries until there is no error, and returns the last one after 40 seconds.
func until(try func() error) (err error) {
	for start := time.Now(); time.Since(start) < 40*time.Second; time.Sleep(50 * time.Millisecond) {
		if err = try(); err == nil {
			return nil
		}
	}
	return err
}

func has(text []byte, words ...string) error {
	for _, w := range words {
		if !bytes.Contains(text, []byte(w)) {
			return fmt.Errorf("%q is not in %s", w, text)
		}
	}
	return nil
}

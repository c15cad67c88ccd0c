// Command guest runs inside of a virtual machine: it does there what the tests ask for, and reports over the second
// serial port, one line for each step. For tests alone.
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
var scenarios = map[string]func(*boot){
	"start":    (*boot).start,
	"life":     (*boot).life,
	"record":   (*boot).record,
	"nodevice": (*boot).noDevice,
	"remount":  (*boot).remount,
	"rotate":   (*boot).rotate,
	"last":     (*boot).last,
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
	m, err := newBoot()
	if err != nil {
		return err
	}
	switch what {
	case "check":
		m.step("what the power cut left", func() (string, error) { return checkPublished(diskPath) })
		return nil
	case "scenario":
		for name := range strings.SplitSeq(m.options["scenario"], ",") {
			scenario := scenarios[name]
			if scenario == nil {
				return fmt.Errorf("no scenario %q", name)
			}
			scenario(m)
		}
		m.say("end")
		return nil
	}
	return errors.New("usage: guest scenario|secret|check")
}

// boot is this one.
type boot struct {
	port    *os.File
	options map[string]string // lab.NAME=VALUE of the kernel's command line
	failed  bool
}

func newBoot() (*boot, error) {
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
	m := &boot{port: port, options: make(map[string]string)}
	for _, word := range strings.Fields(string(line)) {
		if option, ok := strings.CutPrefix(word, "lab."); ok {
			name, value, _ := strings.Cut(option, "=")
			m.options[name] = value
		}
	}
	return m, nil
}

// say sends the tests one line.
func (m *boot) say(words ...string) {
	text := strings.ReplaceAll(strings.Join(words, " "), "\n", "\\n")
	fmt.Fprintf(m.port, "LAB %s\n", text)
}

// step does one thing, and sends how it went.
func (m *boot) step(name string, do func() (string, error)) {
	if m.failed {
		return // what follows builds upon it
	}
	start := time.Now() // a jump of the clock does not count: it has a monotonic part
	detail, err := do()
	took := time.Since(start).Round(time.Millisecond)
	if err != nil {
		m.failed = true
		m.say("fail", name+":", took.String()+":", err.Error())
		return
	}
	m.say("ok", name+":", took.String()+":", detail)
}

func has(text []byte, words ...string) error {
	for _, w := range words {
		if !bytes.Contains(text, []byte(w)) {
			return fmt.Errorf("%q is not in %s", w, text)
		}
	}
	return nil
}

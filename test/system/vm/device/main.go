// Command device is the SNP device of a virtual machine without one: /dev/sev-guest by CUSE, and reports for the
// kernel's own configfs-tsm through the module in ../kmod. For tests alone.
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"sevagent/internal/sim"
	"sevagent/internal/sim/cuse"
	"sevagent/internal/snp"
	"sevagent/test/lab"
)

func main() {
	dir := flag.String("dir", "", "directory with the simulator's root")
	character := flag.Bool("cuse", false, "serve /dev/sev-guest")
	backend := flag.String("tsm-backend", "", "serve the provider module behind this device")
	initial := flag.Bool("init", false, "make the directory's root, with a policy for verifiers, and end")
	flag.Parse()
	if *initial {
		if _, err := lab.NewDevice(*dir); err != nil {
			fmt.Fprintln(os.Stderr, "device:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *dir, *character, *backend); err != nil {
		fmt.Fprintln(os.Stderr, "device:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dir string, character bool, backend string) error {
	psp, err := sim.Load(dir, sim.DefaultOptions(time.Now()))
	if err != nil {
		return err
	}
	var starting sync.WaitGroup
	ended := make(chan error, 2)
	if character {
		starting.Add(1)
		go func() { ended <- cuse.Serve(ctx, "sev-guest", psp, starting.Done) }()
	}
	if backend != "" {
		f, err := os.OpenFile(backend, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		go func() { ended <- serveTSM(ctx, f, psp) }()
	}
	go func() {
		starting.Wait()
		for character { // until udev has made the node
			if _, err := os.Stat("/dev/sev-guest"); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		daemon.SdNotify(false, daemon.SdNotifyReady)
	}()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return nil
	}
}

// serveTSM answers the module, as its source says.
func serveTSM(ctx context.Context, f *os.File, psp *sim.PSP) error {
	le := binary.LittleEndian
	for {
		var question [4 + snp.ReportDataSize]byte
		if _, err := f.Read(question[:]); err != nil {
			return fmt.Errorf("serve configfs-tsm: %w", err)
		}
		report, certs, err := psp.ReportContext(ctx, [snp.ReportDataSize]byte(question[4:]), le.Uint32(question[:]))
		var result int32
		if host, ok := errors.AsType[*sim.HostError](err); ok {
			result = -int32(host.Errno())
		} else if err != nil {
			result = -int32(unix.EIO)
		}
		answer := le.AppendUint32(nil, uint32(result))
		answer = le.AppendUint32(answer, uint32(len(report)))
		answer = le.AppendUint32(answer, uint32(len(certs)))
		answer = append(append(answer, report...), certs...)
		if _, err := f.Write(answer); err != nil && !errors.Is(err, unix.EPIPE) { // the caller has gone
			return fmt.Errorf("serve configfs-tsm: %w", err)
		}
	}
}

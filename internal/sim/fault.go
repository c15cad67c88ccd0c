package sim

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Faults that a PSP can be made to show, by SetFault or by the content of the fault file. An argument follows after a
// space. An unknown fault makes every request fail with an error that says so.
const (
	FaultBusy     = "busy"     // the host throttles
	FaultWiped    = "wiped"    // the kernel has destroyed its key
	FaultEcho     = "echo"     // REPORT_DATA is not what was asked for
	FaultFlip     = "flip"     // a bit of the report is flipped
	FaultTable    = "table"    // the host's certificate table is hostile
	FaultVersion  = "version6" // the report has a version newer than the latest known one
	FaultFirmware = "firmware" // followed by a status, "firmware 0x27"
	FaultHang     = "hang"     // no response until the fault is over or the program has ended
)

// SetFault makes the PSP show a fault until it is set to "". It takes precedence over the fault file.
func (p *PSP) SetFault(fault string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = fault
}

func (p *PSP) currentFault() string {
	p.mu.Lock()
	fault := p.fault
	p.mu.Unlock()
	if fault == "" && p.FaultFile != "" {
		text, _ := os.ReadFile(p.FaultFile) // absent: no fault
		fault = string(text)
	}
	return strings.TrimSpace(fault)
}

// fault is a fault with its argument.
type fault struct {
	name   string
	status uint32 // of FaultFirmware
}

func parseFault(text string) (f fault, err error) {
	name, arg, _ := strings.Cut(text, " ")
	f.name = name
	switch name {
	case "", FaultBusy, FaultWiped, FaultEcho, FaultFlip, FaultTable, FaultVersion, FaultHang:
	case FaultFirmware:
		var status uint64
		status, err = strconv.ParseUint(arg, 0, 32)
		f.status = uint32(status)
	default:
		return f, fmt.Errorf("simulate a fault: %q is unknown", text)
	}
	if err != nil {
		return f, fmt.Errorf("simulate a fault: %q: %w", text, err)
	}
	return f, nil
}

// hangStep is how often a hanging request checks whether the fault is over.
const hangStep = 5 * time.Millisecond

// hang waits while the fault is FaultHang.
func (p *PSP) hang(ctx context.Context) error {
	for p.currentFault() == FaultHang {
		if err := pause(ctx, hangStep); err != nil {
			return err
		}
	}
	return nil
}

// refusal is the error of a request that gets no report.
func (f fault) refusal() error {
	switch f.name {
	case FaultBusy:
		return &HostError{ExitInfo2: vmmBusy}
	case FaultWiped:
		return &HostError{Wiped: true}
	case FaultFirmware:
		return &HostError{ExitInfo2: uint64(f.status)}
	}
	return nil
}

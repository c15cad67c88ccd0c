package tpm

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sevagent/internal/must"
	"sevagent/internal/nitro"
	"sevagent/internal/sim/nitrotpm"
	"sevagent/internal/sim/simnitro"
)

// bench is a TPM over a simulated one.
type bench struct {
	*TPM
	sim *nitrotpm.TPM
	ca  *simnitro.CA
}

func newBench(t *testing.T) *bench {
	t.Helper()
	ca := must.Get(simnitro.New())(t, "make a root")
	sim := nitrotpm.New(ca)
	return &bench{New(Config{Paths: []string{"/dev/tpmrm0", "/dev/tpm0"}, Open: sim.Open, Log: slog.New(slog.DiscardHandler)}), sim, ca}
}

var userData, nonce = [64]byte{1, 2, 3}, [64]byte{4, 5, 6}

// gives checks that a document comes that says what was asked for, and that nothing is left.
func (b *bench) gives(t *testing.T) {
	t.Helper()
	text := must.Get(b.Document(t.Context(), userData, nonce))(t, "get a document")
	d := must.Get(nitro.Verify(text, nitro.Config{Roots: b.ca.Pool(), Now: time.Now()}))(t, "verify the document")
	if !slices.Equal(d.UserData, userData[:]) || !slices.Equal(d.Nonce, nonce[:]) || d.PublicKey != nil {
		t.Errorf("user_data %x, nonce %x, public_key %x", d.UserData, d.Nonce, d.PublicKey)
	}
	if indices, objects, sessions := b.sim.Left(); indices+objects+sessions != 0 {
		t.Errorf("%d indices, %d objects and %d sessions are left", indices, objects, sessions)
	}
}

func TestDocument(t *testing.T) {
	b := newBench(t)
	for range 3 {
		b.gives(t)
	}
	if b.Path() != "/dev/tpmrm0" {
		t.Errorf("by %s", b.Path())
	}
	if n := len(b.sim.Commands()) / 3; n > 12 {
		t.Errorf("%d commands for a document", n)
	}
}

// TestManagerRefuses: where the kernel's resource manager does not pass AWS's command on, the TPM itself is asked, from
// then on at once.
func TestManagerRefuses(t *testing.T) {
	b := newBench(t)
	b.sim.SetFault(nitrotpm.FaultManager)
	b.gives(t)
	before := len(b.sim.Commands())
	b.gives(t)
	if b.Path() != "/dev/tpm0" || len(b.sim.Commands())-before > 12 {
		t.Errorf("by %s, with %d commands for the second document", b.Path(), len(b.sim.Commands())-before)
	}
}

// TestLeftovers: what a killed agent has left does not matter.
func TestLeftovers(t *testing.T) {
	b := newBench(t)
	device := must.Get(b.sim.Open("/dev/tpmrm0"))(t, "open the TPM")
	killed := &session{device, make([]byte, 32)}
	must.Do(t, killed.define(), "define the index")
	must.Do(t, device.Close(), "close the TPM")
	b.sim.Restart()
	if indices, _, _ := b.sim.Left(); indices != 1 {
		t.Fatalf("%d indices are left by the killed agent", indices)
	}
	b.gives(t)
}

func TestFaults(t *testing.T) {
	for _, c := range []struct {
		fault string
		is    error // or nil
		text  string
	}{
		{nitrotpm.FaultAbsent, ErrAbsent, ""},
		{nitrotpm.FaultForeign, ErrNotNitro, ""},
		{nitrotpm.FaultOwner, nil, "its owner has a password"},
		{nitrotpm.FaultCode + " 12a 14b", nil, "its memory is full"},
		{nitrotpm.FaultCode + " 20000001 921", nil, "it is locked after wrong passwords"},
		{nitrotpm.FaultError + " InternalError", nil, `refuses to make a document: "InternalError"`},
		{nitrotpm.FaultGarbage, nil, "the answer of the NitroTPM is none to a request for a document"},
		{nitrotpm.FaultRetry + " 1000000", nil, "TPM_RC_RETRY"},
	} {
		t.Run(c.fault, func(t *testing.T) {
			b := newBench(t)
			b.sim.SetFault(c.fault)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err := b.Document(ctx, userData, nonce)
			if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want %v %s", err, c.is, c.text)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than a line: %q", err)
			}
			b.sim.SetFault("")
			b.gives(t)
		})
	}
}

// TestRetry: commands that are put off are sent again.
func TestRetry(t *testing.T) {
	b := newBench(t)
	b.sim.SetFault(nitrotpm.FaultRetry + " 3")
	b.gives(t)
}

// TestBusy: /dev/tpm0 admits one process.
func TestBusy(t *testing.T) {
	b := newBench(t)
	b.sim.SetFault(nitrotpm.FaultManager)
	b.gives(t)
	other := must.Get(b.sim.Open("/dev/tpm0"))(t, "open the TPM")
	if _, err := b.Document(t.Context(), userData, nonce); !errors.Is(err, ErrBusy) ||
		!strings.Contains(err.Error(), "stop the other program") {
		t.Errorf("while another has it open: %v", err)
	}
	must.Do(t, other.Close(), "close the TPM")
	b.gives(t)
}

// TestHang: a caller leaves at its deadline, and later ones are told that the TPM is busy until it has answered.
func TestHang(t *testing.T) {
	b := newBench(t)
	b.sim.SetFault(nitrotpm.FaultHang)
	for _, want := range []error{context.DeadlineExceeded, ErrBusy, ErrBusy} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, err := b.Document(ctx, userData, nonce); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
		cancel()
	}
	b.sim.SetFault("")
	b.gives(t)
}

// TestManyCallers: one document at a time, and each caller gets its own.
func TestManyCallers(t *testing.T) {
	b := newBench(t)
	var wg sync.WaitGroup
	for i := range byte(20) {
		wg.Go(func() {
			text, err := b.Document(t.Context(), [64]byte{i}, nonce)
			if err != nil {
				t.Errorf("get a document: %v", err)
				return
			}
			d, err := nitro.Verify(text, nitro.Config{Roots: b.ca.Pool(), Now: time.Now()})
			if err != nil || d.UserData[0] != i {
				t.Errorf("a document for another: %v", err)
			}
		})
	}
	wg.Wait()
}

// FuzzDecode holds decode to: whatever a TPM answers, there is an error or a document within the index.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("\xa1\x6bAttestation\xa1\x68document\x59\x01\x00abc"))
	f.Add([]byte("\xa1\x65Error\x6dInternalError"))
	f.Add([]byte("\xbf\x6bAttestation\xbf\x68document\x59\xff\xff"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		start, size, err := decode(answer)
		if err == nil && (start < 3 || size < 0 || start+size > indexSize) {
			t.Errorf("a document from %d, %d bytes", start, size)
		}
	})
}

// TestFile: by files, as the kernel has them.
func TestFile(t *testing.T) {
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and /dev/fuse")
	}
	ca := must.Get(simnitro.New())(t, "make a root")
	sim := nitrotpm.New(ca)
	dir := t.TempDir()
	server := must.Get(nitrotpm.Mount(dir, sim))(t, "mount a simulated TPM")
	defer server.Unmount()
	b := &bench{New(Config{Paths: []string{dir + "/tpmrm0", dir + "/tpm0"}, Log: slog.New(slog.DiscardHandler)}), sim, ca}
	b.gives(t)
}

package tpm_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sevagent/internal/must"
	"sevagent/internal/nitro"
	"sevagent/internal/sim/nitrotpm"
	"sevagent/internal/sim/simnitro"
	"sevagent/internal/tpm"
)

var userData, nonce = [64]byte{1, 2, 3}, [64]byte{4, 5, 6}

// node is a simulated NitroTPM and the product's owner of it, which runs until the test ends.
type node struct {
	sim  *nitrotpm.TPM
	tpm  *tpm.TPM
	log  *bytes.Buffer
	stop func()
}

// start starts one. In testing/synctest it has to be stopped.
func start(t testing.TB, prepare func(*nitrotpm.TPM)) *node {
	t.Helper()
	ca := must.Get(simnitro.New())(t, "make a root")
	n := &node{sim: nitrotpm.New(ca), log: new(bytes.Buffer)}
	if prepare != nil {
		prepare(n.sim)
	}
	n.tpm = tpm.New(tpm.Config{
		Open: n.sim.Open, Roots: ca.Pool(), Log: slog.New(slog.NewTextHandler(n.log, nil)),
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.tpm.Run(ctx) }()
	n.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		ended <- nil
	}
	t.Cleanup(n.stop)
	return n
}

// works asks for a document, and checks that nothing is left in the TPM.
func (n *node) works(t testing.TB) {
	t.Helper()
	document, _, err := n.tpm.Document(t.Context(), userData, nonce)
	if err != nil || len(document) == 0 {
		t.Fatalf("no document: %v", err)
	}
	n.empty(t)
}

func (n *node) empty(t testing.TB) {
	t.Helper()
	if indices, objects, sessions := n.sim.Left(); indices+objects+sessions != 0 {
		t.Errorf("left in the TPM: %d indices, %d objects, %d sessions", indices, objects, sessions)
	}
}

// inTime runs a test in a bubble where time passes at once.
func inTime(t *testing.T, test func(*testing.T)) { synctest.Test(t, test) }

func TestDocument(t *testing.T) {
	inTime(t, func(t *testing.T) {
		n := start(t, nil)
		n.works(t)
		first := len(n.sim.Commands())
		n.works(t)
		later := n.sim.Commands()[first:]
		// Define, write, the request, three reads, undefine.
		want := []uint32{0x12a, 0x137, 0x20000001, 0x14e, 0x14e, 0x14e, 0x122}
		if !slices.Equal(later, want) {
			t.Errorf("the second document took the commands %x, want %x", later, want)
		}
		s := n.tpm.State()
		if s.Path != "/dev/tpmrm0" || s.Err != nil || s.Documents != 2 || s.Failures != 0 || !s.At.Equal(time.Now()) {
			t.Errorf("state %+v", s)
		}
		if d := s.Document; d == nil || d.Kind != nitro.NitroTPM || !bytes.Equal(d.UserData, userData[:]) ||
			!bytes.Equal(d.Nonce, nonce[:]) || d.PublicKey != nil || d.InstanceID != "i-0123456789abcdef0" {
			t.Errorf("document %+v", d)
		}
		if n.log.Len() > 0 {
			t.Errorf("logged although all went well: %s", n.log)
		}
	})
}

func TestPaths(t *testing.T) {
	for _, c := range []struct {
		fault, path string
		want        error
	}{
		{"", "/dev/tpmrm0", nil},
		{nitrotpm.FaultManager, "/dev/tpm0", nil},
		{nitrotpm.FaultUnlisted, "/dev/tpm0", nil},
		{nitrotpm.FaultAbsent, "", tpm.ErrAbsent},
		{nitrotpm.FaultForeign, "", tpm.ErrNotNitro},
	} {
		t.Run("fault "+c.fault, func(t *testing.T) {
			inTime(t, func(t *testing.T) {
				n := start(t, func(sim *nitrotpm.TPM) { sim.SetFault(c.fault) })
				var commands int
				for range 2 {
					commands = len(n.sim.Commands())
					_, _, err := n.tpm.Document(t.Context(), userData, nonce)
					if !errors.Is(err, c.want) {
						t.Fatalf("error %v, want %v", err, c.want)
					}
					n.empty(t)
				}
				if s := n.tpm.State(); s.Path != c.path {
					t.Errorf("path %q, want %q", s.Path, c.path)
				}
				if c.want == nil && len(n.sim.Commands())-commands != 7 {
					t.Errorf("the second document took %d commands, want 7: the path that works is not remembered",
						len(n.sim.Commands())-commands)
				}
				for _, code := range n.sim.Commands() {
					if c.want != nil && code != 0x17a {
						t.Errorf("the command %#x was sent to a TPM that is not AWS's", code)
					}
				}
				if c.want != nil && strings.Count(n.log.String(), "level=") != 1 {
					t.Errorf("logged %q, want one line that there is no NitroTPM", n.log)
				}
				n.sim.SetFault("")
				n.works(t) // as after the driver was loaded
			})
		})
	}
}

// ours is the agent's index.
const ours = 0x01a5e7a6

// leave defines an index with a password that nobody knows, as a killed program leaves it.
func leave(t testing.TB, sim *nitrotpm.TPM, index uint32) {
	t.Helper()
	f := must.Get(sim.Open(nitrotpm.Manager))(t, "open the TPM")
	defer f.Close()
	var define []byte
	for _, part := range []any{
		uint16(0x8002), uint32(0), uint32(0x12a), uint32(0x40000001),
		uint32(9), uint32(0x40000009), uint16(0), byte(0), uint16(0),
		uint16(4), []byte("lost"), uint16(14), index, uint16(0xb), uint32(0x40004), uint16(0), uint16(8192),
	} {
		define = must.Get(binary.Append(define, binary.BigEndian, part))(t, "write a command")
	}
	binary.BigEndian.PutUint32(define[2:], uint32(len(define)))
	must.Get(f.Write(define))(t, "define an index")
	answer := make([]byte, 4096)
	n := must.Get(f.Read(answer))(t, "read the answer")
	if rc := binary.BigEndian.Uint32(answer[6:n]); rc != 0 {
		t.Fatalf("define an index: %#x", rc)
	}
}

func TestStaleIndex(t *testing.T) {
	inTime(t, func(t *testing.T) {
		n := start(t, func(sim *nitrotpm.TPM) { leave(t, sim, ours); sim.Restart() })
		synctest.Wait()
		n.empty(t) // before anybody has asked for a document
		leave(t, n.sim, ours)
		n.works(t)
	})
}

func TestFailures(t *testing.T) {
	for _, c := range []struct {
		fault string
		want  error
		code  string
	}{
		{"retry 1", nil, ""},
		{"retry 6", nil, ""},
		{"retry 1000000", tpm.ErrPutOff, "nitrotpm_put_off"},
		{"code 137 90a", tpm.ErrPutOff, "nitrotpm_put_off"},
		{"code 20000001 920", tpm.ErrPutOff, "nitrotpm_put_off"},
		{"code 12a 14b", tpm.ErrNVSpace, "nitrotpm_nv_space"},
		{"code 12a 2d5", tpm.ErrNotNitro, "nitrotpm_foreign"},
		{"code 137 921", tpm.ErrLockout, "nitrotpm_lockout"},
		{"code 14e 98e", tpm.ErrPassword, "nitrotpm_password"},
		{"code 14e 9a2", tpm.ErrPassword, "nitrotpm_password"},
		{nitrotpm.FaultOwner, tpm.ErrOwner, "nitrotpm_owner"},
		{nitrotpm.FaultEcho, tpm.ErrEcho, "nitrotpm_echo"},
		{nitrotpm.FaultNonce, tpm.ErrEcho, "nitrotpm_echo"},
		{nitrotpm.FaultKey, tpm.ErrEcho, "nitrotpm_echo"},
		{nitrotpm.FaultEnclave, tpm.ErrEcho, "nitrotpm_echo"},
		{nitrotpm.FaultGarbage, tpm.ErrMalformed, "nitrotpm_malformed_answer"},
		{"error InternalError", new(tpm.RefusedError), "nitrotpm_refused"},
		{"code 137 101", new(tpm.CommandError), "nitrotpm_failed"},
		{"slow 1s", tpm.ErrSlow, "nitrotpm_slow"},
	} {
		t.Run(c.fault, func(t *testing.T) {
			inTime(t, func(t *testing.T) {
				n := start(t, nil)
				n.works(t)
				n.sim.SetFault(c.fault)
				began := time.Now()
				document, _, err := n.tpm.Document(t.Context(), userData, nonce)
				if took := time.Since(began); took > tpm.DefaultBudget {
					t.Errorf("it took %v, more than the budget", took)
				}
				synctest.Wait()
				time.Sleep(time.Minute) // what is under way ends
				if c.want == nil {
					if err != nil {
						t.Fatalf("no document: %v", err)
					}
					n.empty(t)
					return
				}
				ok := errors.Is(err, c.want)
				switch c.want.(type) {
				case *tpm.RefusedError:
					_, ok = errors.AsType[*tpm.RefusedError](err)
				case *tpm.CommandError:
					_, ok = errors.AsType[*tpm.CommandError](err)
				}
				if !ok || document != nil || tpm.Code(err) != c.code {
					t.Errorf("error %v with the code %q, want %v with %q", err, tpm.Code(err), c.want, c.code)
				}
				if s := n.tpm.State(); tpm.Code(s.Err) != c.code || s.Failures != 1 || s.Document == nil {
					t.Errorf("state %+v; want the failure, and the last good document", s)
				}
				if refused := strings.HasPrefix(c.code, "nitrotpm_refused"); !refused && c.code != "nitrotpm_failed" &&
					tpm.Advice(err) == "" {
					t.Error("no advice")
				}
				if c.fault != nitrotpm.FaultOwner {
					n.empty(t)
				}
				n.sim.SetFault("")
				n.works(t)
				if lines := strings.Count(n.log.String(), "level="); lines != 2 {
					t.Errorf("%d lines logged, want the failure and its end:\n%s", lines, n.log)
				}
			})
		})
	}
}

// TestNVSpace: the error lists the indices that there are.
func TestNVSpace(t *testing.T) {
	inTime(t, func(t *testing.T) {
		n := start(t, nil)
		n.works(t)
		for i := range uint32(4) {
			leave(t, n.sim, 0x01800000+i)
		}
		_, _, err := n.tpm.Document(t.Context(), userData, nonce)
		if !errors.Is(err, tpm.ErrNVSpace) || !strings.Contains(err.Error(), "0x1800000 0x1800001 0x1800002 0x1800003") {
			t.Errorf("error %v, want that there is no room, and the indices", err)
		}
	})
}

func TestBusy(t *testing.T) {
	inTime(t, func(t *testing.T) {
		n := start(t, func(sim *nitrotpm.TPM) { sim.SetFault(nitrotpm.FaultManager) })
		n.works(t) // through tpm0
		other := must.Get(n.sim.Open(nitrotpm.Raw))(t, "open the TPM as another program")
		time.AfterFunc(time.Second, func() { other.Close() })
		n.works(t)
		other = must.Get(n.sim.Open(nitrotpm.Raw))(t, "open the TPM as another program")
		if _, _, err := n.tpm.Document(t.Context(), userData, nonce); tpm.Code(err) != "nitrotpm_busy" {
			t.Errorf("error %v, want that another process has the TPM open", err)
		}
		other.Close()
		n.works(t)
	})
}

// TestHang: a command that blocks delays its caller by the budget, and later callers by nothing.
func TestHang(t *testing.T) {
	inTime(t, func(t *testing.T) {
		n := start(t, nil)
		n.works(t)
		n.sim.SetFault(nitrotpm.FaultHang)
		ask := func() time.Duration {
			began := time.Now()
			if _, _, err := n.tpm.Document(t.Context(), userData, nonce); !errors.Is(err, tpm.ErrSlow) {
				t.Errorf("error %v, want ErrSlow", err)
			}
			return time.Since(began)
		}
		if took := ask(); took != tpm.DefaultBudget {
			t.Errorf("the first caller waited %v, want the budget", took)
		}
		time.Sleep(time.Millisecond)
		if took := ask(); took != 0 {
			t.Errorf("the second caller waited %v, want an answer at once", took)
		}
		n.sim.SetFault("")
		time.Sleep(time.Second)
		n.works(t)
	})
}

// TestGone: a caller that leaves says nothing about the TPM.
func TestGone(t *testing.T) {
	inTime(t, func(t *testing.T) {
		n := start(t, nil)
		n.works(t)
		n.sim.SetFault(nitrotpm.FaultHang)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, _, err := n.tpm.Document(ctx, userData, nonce); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want Canceled", err)
		}
		n.sim.SetFault("")
		time.Sleep(time.Second)
		n.empty(t)
		if s := n.tpm.State(); s.Err != nil || s.Failures != 0 || n.log.Len() > 0 {
			t.Errorf("state %+v, log %q", s, n.log)
		}
		n.works(t)
	})
}

func TestStop(t *testing.T) {
	inTime(t, func(t *testing.T) {
		n := start(t, nil)
		n.works(t)
		n.sim.SetFault(nitrotpm.FaultHang)
		failed := make(chan error, 1)
		go func() {
			_, _, err := n.tpm.Document(context.WithoutCancel(t.Context()), userData, nonce)
			failed <- err
		}()
		synctest.Wait()
		time.AfterFunc(time.Second, func() { n.sim.SetFault("") })
		n.stop()
		<-failed // a document, or ErrStopped: both were ready
		n.empty(t)
		if _, _, err := n.tpm.Document(t.Context(), userData, nonce); !errors.Is(err, tpm.ErrStopped) {
			t.Errorf("error %v, want ErrStopped", err)
		}
	})
}

func TestQueue(t *testing.T) {
	inTime(t, func(t *testing.T) {
		n := start(t, nil)
		n.works(t)
		n.sim.SetFault(nitrotpm.FaultHang)
		errs := make(chan error, 32)
		for range 32 {
			go func() {
				_, _, err := n.tpm.Document(t.Context(), userData, nonce)
				errs <- err
			}()
		}
		full, slow := 0, 0
		for range 32 {
			switch err := <-errs; {
			case errors.Is(err, tpm.ErrQueueFull):
				full++
			case errors.Is(err, tpm.ErrSlow):
				slow++
			default:
				t.Errorf("error %v", err)
			}
		}
		if slow < 16 || slow > 17 || full+slow != 32 {
			t.Errorf("%d refused at once and %d later, want 16 to wait, one to be served, the rest refused", full, slow)
		}
		n.sim.SetFault("")
		time.Sleep(time.Second)
		n.works(t)
	})
}

// BenchmarkDocument is the agent's share: the document is made once.
func BenchmarkDocument(b *testing.B) {
	n := start(b, func(sim *nitrotpm.TPM) {
		sign := sim.Sign
		var made []byte
		sim.Sign = func(f simnitro.Fields) (_ []byte, err error) {
			if made == nil {
				made, err = sign(f)
			}
			return made, err
		}
	})
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := n.tpm.Document(b.Context(), userData, nonce); err != nil {
			b.Fatal(err)
		}
	}
}

//go:build node

package docker

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/internal/evidence"
	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/internal/sim/simaws"
	"sevagent/internal/sim/tsmfs"
	"sevagent/test/lab"
)

// region is the agent's, and that of the simulated device.
const region = "us-east-2"

// withSocket and withAll are what containers mount: the directory of the socket, and the certificates too.
var (
	withSocket = []string{readOnly("/run/sevagent", "/run/sevagent")}
	withAll    = append([]string{whole}, withSocket...)
)

// simulated is one device for all tests: its keys take long to make.
var simulated = sync.OnceValues(func() (*sim.PSP, error) { return lab.NewDevice(lab.Work()) })

// startAttesting is startAgent with a simulated device, in mode enforce.
func startAttesting(t *testing.T, attestation, settings string) *agent {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("the simulated device needs /dev/fuse:", err)
	}
	const tsm = "/run/tsm"
	must.Do(t, os.MkdirAll(tsm, 0o755), "make a mount point")
	mounted := must.Get(tsmfs.Mount(tsm, must.Get(simulated())(t, "make a simulated device")))(t, "mount the device")
	t.Cleanup(func() {
		if err := mounted.Unmount(); err != nil {
			t.Error("unmount the device:", err)
		}
	})
	return configureAgent(t, fmt.Sprintf("transport: configfs, configfs: %s, policy: %s, %s", tsm,
		filepath.Join(lab.Work(), "policy.yaml"), attestation), settings)
}

// verified is what sevctl says of evidence.
type verified struct {
	Nonce   string
	Binding evidence.Binding
	Caller  evidence.Caller
}

// verify has sevctl verify a document.
func verify(t *testing.T, document, nonce string) (v verified, err error) {
	t.Helper()
	cmd := exec.Command(lab.Bin("sevctl"), "evidence", "verify", "-", "--format", "json", "--nonce", nonce, "--region",
		region,
		"--policy", filepath.Join(lab.Work(), "policy.yaml"), "--allow-custom-roots")
	cmd.Stdin = strings.NewReader(document)
	out, errs, status := lab.Run(t, cmd)
	if status != 0 {
		return v, fmt.Errorf("sevctl: exit status %d: %s", status, errs)
	}
	must.Do(t, json.Unmarshal([]byte(out), &v), "decode %s", out)
	return v, nil
}

func newNonce() string {
	var nonce [32]byte
	rand.Read(nonce[:])
	return hex.EncodeToString(nonce[:])
}

// spki is the hash of a certificate's key.
func spki(t *testing.T, certificate string) string {
	t.Helper()
	block, _ := pem.Decode([]byte(certificate))
	if block == nil {
		t.Fatalf("not PEM: %q", certificate)
	}
	cert := must.Get(x509.ParseCertificate(block.Bytes))(t, "parse a certificate")
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// startECS starts an ECS agent that listens as the real one does: on all addresses.
func startECS(t *testing.T) *simaws.ECSAgent {
	t.Helper()
	agent := must.Get(simaws.NewECSAgent(":51678"))(t, "make an ECS agent")
	t.Cleanup(agent.Close)
	must.Do(t, agent.Register("test", "arn:aws:ecs:us-east-2:111122223333:container-instance/test/0123456789abcdef"),
		"serve introspection")
	return agent
}

// TestEvidence: containers get evidence by the mounted directory alone, which binds the certificate that they see, and
// names the caller's uid, container and task.
func TestEvidence(t *testing.T) {
	const arn = "arn:aws:ecs:us-east-2:111122223333:task/test/"
	startAttesting(t, "rate: 50, burst: 64", "")
	agent := startECS(t)
	tools := append([]string{readOnly(lab.Bin("sevagent"), tool)}, withAll...)
	other := task + "0" // another task, which test/run sweeps up as well
	documents := make(map[string]string)
	var last struct{ id, nonce string }
	for _, x := range []struct {
		name string
		args []string
		want evidence.Caller
	}{
		{"root", nil, evidence.ContainerCaller(0, "", arn+task)},
		{"a user, of another task", []string{"--user=1000:1000", "--cgroup-parent=/ecs/" + other},
			evidence.ContainerCaller(1000, "", arn+other)},
		{"a task that the ECS agent contradicts", []string{"--user=7:7", "--cgroup-parent=/ecs/" + other},
			evidence.ContainerCaller(7, "", "")},
		{"a cgroup parent of its own", []string{"--cgroup-parent=/ecs/" + task + "/x"},
			evidence.Caller{Kind: evidence.CallerUnknown}},
	} {
		c := startContainer(t, image, append(x.args, tools...)...)
		if x.want.Kind == evidence.CallerContainer {
			x.want.ContainerID = c.id
		}
		agent.Run(c.id, cmp.Or(x.want.TaskARN, arn+task))
		want := spki(t, c.ask("cat "+lab.Published+"/client.crt").Text)
		for _, way := range []string{"evidence", "tool"} {
			nonce := newNonce()
			r := c.ask(way + " " + nonce)
			if r.Refused != nil {
				t.Fatalf("%s, %s: refused: %+v", x.name, way, r.Refused)
			}
			v, err := verify(t, r.Text, nonce)
			if err != nil {
				t.Fatalf("%s, %s: %v", x.name, way, err)
			}
			if v.Nonce != "verified" || v.Binding.Kind != "client" || v.Binding.SPKISHA256.String() != want ||
				v.Caller.String() != x.want.String() {
				t.Errorf("%s, %s: evidence is %+v, want caller %+v and key %s", x.name, way, v, x.want, want)
			}
			if _, err := verify(t, r.Text, newNonce()); err == nil {
				t.Errorf("%s, %s: another nonce is verified", x.name, way)
			}
			if x.want.ContainerID != "" {
				documents[c.id], last.id, last.nonce = r.Text, c.id, nonce
			}
		}
	}
	// Nobody takes another's name.
	for id := range documents {
		if id == last.id {
			continue
		}
		forged := strings.ReplaceAll(documents[last.id], last.id, id)
		if _, err := verify(t, forged, last.nonce); err == nil ||
			!strings.Contains(err.Error(), "report_data_mismatch") {
			t.Errorf("with another container's name: %v, want report_data_mismatch", err)
		}
	}
}

// TestSharedNamespaces: a container that shares namespaces with another or with the node is the caller that it is by
// its cgroup.
func TestSharedNamespaces(t *testing.T) {
	const arn = "arn:aws:ecs:us-east-2:111122223333:task/test/"
	startAttesting(t, "rate: 50, burst: 64", "")
	agent := startECS(t)
	// Of the same task, it has the namespaces that others share.
	pause := startContainer(t, image, append([]string{"--ipc=shareable"}, withSocket...)...)
	agent.Run(pause.id, arn+task)
	for _, args := range [][]string{
		{"--network=container:" + pause.id, "--ipc=container:" + pause.id}, // as awsvpc and ipcMode: task do
		{"--pid=container:" + pause.id},                                    // pidMode: task
		{"--pid=host"},
		{"--network=host", "--ipc=host"},
		{"--pid=host", "--network=host", "--ipc=host"},
	} {
		c := startContainer(t, image, append(args, withAll...)...)
		agent.Run(c.id, arn+task)
		nonce := newNonce()
		r := c.ask("evidence " + nonce)
		if r.Refused != nil {
			t.Errorf("%v: refused: %+v", args, *r.Refused)
			continue
		}
		want := evidence.ContainerCaller(0, c.id, arn+task)
		if v := must.Get(verify(t, r.Text, nonce))(t, "%v: verify", args); v.Caller.String() != want.String() {
			t.Errorf("%v: the caller is %+v, want %+v", args, v.Caller, want)
		}
	}
}

// TestFlood: a container that floods is asked to wait, while another gets its evidence with the next report, and sees
// rotations.
func TestFlood(t *testing.T) {
	const reports = "sevagent_attestation_report_seconds_count"
	a := startAttesting(t, "rate: 0.25, burst: 2", "") // the gate and evidence.json use the burst up
	limit := unix.Rlimit{Cur: 8192, Max: 8192}         // LimitNOFILE= of sevagent.service
	must.Do(t, unix.Prlimit(a.Pid, unix.RLIMIT_NOFILE, &limit, nil), "limit the agent's descriptors")
	polite := startContainer(t, image, withAll...)
	polite.ask("read")
	greedy := startContainer(t, image, withSocket...)
	r := greedy.ask("flood")
	if r.Refused.Status != http.StatusTooManyRequests || r.Refused.RetryAfter < time.Second {
		t.Errorf("a flood gets %+v, want 429 and when to come again", *r.Refused)
	}
	nonce, before, began := newNonce(), a.metric(reports), time.Now()
	answer := polite.ask("evidence " + nonce)
	took, made := time.Since(began), a.metric(reports)-before
	if generation := a.rotate(); generation != polite.ask("load").Loaded.Generation {
		t.Error("another does not see a rotation")
	}
	t.Logf("another's evidence took %v and %v reports; the flood had %s", took.Round(time.Millisecond), made,
		greedy.ask("calm").Text)
	if answer.Refused != nil {
		t.Fatalf("another is refused: %+v", *answer.Refused)
	}
	// The next one, one that was under way, and one between the answer and the metric.
	if made > 3 {
		t.Errorf("%v reports were made before another had its evidence, want that it comes with the next", made)
	}
	if _, err := verify(t, answer.Text, nonce); err != nil {
		t.Errorf("verify another's evidence: %v", err)
	}
}

// TestRestart: containers go on through the mounts that they have while the agent is stopped, killed and started.
func TestRestart(t *testing.T) {
	a := startAttesting(t, "rate: 50, burst: 64", `owner: "1000:1000"`)
	c := startContainer(t, image, append([]string{"--user=1000:1000"}, withAll...)...)
	c.ask("read")
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		before := c.ask("load").Loaded
		a.Stop(t, s)
		if s == syscall.SIGTERM && a.Failed() {
			t.Error("the agent did not end in order")
		}
		if r := c.ask("evidence " + newNonce()).Refused; r == nil || r.Code != "unreachable" {
			t.Errorf("%v: without an agent, evidence is refused with %+v, want that it cannot be reached", s, r)
		}
		if got := c.ask("load").Loaded; *got != *before {
			t.Errorf("%v: without an agent a container has %+v, want %+v", s, *got, *before)
		}
		a.start()
		if got := c.ask("load").Loaded; *got != *before {
			t.Errorf("%v: after a restart a container has %+v, want %+v", s, *got, *before)
		}
		for range 2 {
			want := loaded{a.rotate(), a.subject(), a.subject()}
			if got := c.ask("load").Loaded; *got != want {
				t.Errorf("%v: after a restart and a rotation a container has %+v, want %+v", s, *got, want)
			}
			nonce := newNonce()
			r := c.ask("evidence " + nonce)
			if r.Refused != nil {
				t.Fatalf("%v: evidence is refused: %+v", s, *r.Refused)
			}
			v := must.Get(verify(t, r.Text, nonce))(t, "%v: verify the evidence", s)
			if want := spki(t, c.ask("cat "+lab.Published+"/client.crt").Text); v.Binding.SPKISHA256.String() != want ||
				v.Caller.ContainerID != c.id {
				t.Errorf("%v: evidence is %+v, want key %s and container %s", s, v, want, c.id)
			}
		}
	}
	if s := c.ask("tally").Tally; s.Bad != 0 || s.Loads == 0 {
		t.Errorf("of %d loads %d were bad: %s", s.Loads, s.Bad, s.First)
	}
}

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"

	"sevagent/internal/awsconfig"
	"sevagent/internal/must"
	"sevagent/internal/sim/simaws"
)

// lab is a machine with directories of its own, a systemd, AWS on loopback, and a sevagent that is ready. The scripts
// of cmd/bootstrap test what needs no systemd.
type lab struct {
	*testing.T
	dir      string
	machine  machine
	systemd  *fakeSystemd
	metadata *simaws.IMDS
	stack    *simaws.CloudFormation
	options  Options
	proved   string          // the status of the agent's attestation, JSON
	out      strings.Builder // what the last run printed
}

func newLab(t *testing.T) *lab {
	l := &lab{T: t, dir: t.TempDir(), metadata: &simaws.IMDS{Instance: simaws.DefaultInstance()},
		proved: `{"verdict": "pass", "roots": "amd", "measurement": "ab", "reported_tcb": "4.0"}`}
	l.stack = &simaws.CloudFormation{Region: l.metadata.Instance.Region, AccountID: l.metadata.Instance.AccountID}
	for name, handler := range map[string]http.Handler{
		"AWS_EC2_METADATA_SERVICE_ENDPOINT": l.metadata, "AWS_ENDPOINT_URL_CLOUDFORMATION": l.stack,
	} {
		s := httptest.NewServer(handler)
		t.Cleanup(s.Close)
		t.Setenv(name, s.URL)
	}
	l.systemd = &fakeSystemd{units: map[string]fakeUnit{agentUnit: {result: "done"}, ecsUnit: {}, signalUnit: {}}}
	dirs := Dirs{Config: l.path("etc/sevagent"), State: l.path("var")}
	l.machine = machine{
		dirs: dirs, unitDir: l.path("units"), instanceIDFile: l.path("instance-id"),
		connect: func(context.Context) (systemd, error) { return l.systemd, nil },
		aws:     awsconfig.Load,
	}
	l.options = Options{
		Target: Target{Cluster: "prod"}, Dirs: dirs, SignalTimeout: 10 * time.Second, Timeout: 10 * time.Second,
		MetadataTimeout: 10 * time.Second, Deadline: time.Minute,
		Socket: l.serveAgent(), ECSConfig: l.path("etc/ecs/ecs.config"), ECSData: l.path("ecs-data"),
		Services: ServicesSystemd, Install: Install{When: InstallNever},
	}
	return l
}

// serveAgent stands in for a sevagent that is ready, and returns its socket.
func (l *lab) serveAgent() string {
	short := must.Get(os.MkdirTemp("", "sb"))(l, "make a directory with a short path") // as sockets have
	l.Cleanup(func() { os.RemoveAll(short) })
	socket := must.Get(net.Listen("unix", filepath.Join(short, "s")))(l, "listen on the agent's socket")
	mux := http.NewServeMux()
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"status": "pass"}`) })
	mux.HandleFunc("/v1/status", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"attestation": %s}`, l.proved)
	})
	server := httptest.NewUnstartedServer(mux)
	server.Listener.Close()
	server.Listener = socket
	server.Start()
	l.Cleanup(server.Close)
	return socket.Addr().String()
}

func (l *lab) path(name string) string { return filepath.Join(l.dir, name) }

// write puts a file into the lab; its name's directory need not exist.
func (l *lab) write(name, content string) {
	l.Helper()
	must.Do(l, os.MkdirAll(filepath.Dir(l.path(name)), 0o755), "make the directory of %s", name)
	must.Do(l, os.WriteFile(l.path(name), []byte(content), 0o755), "write %s", name)
}

// read returns a file's content, "" if there is none.
func (l *lab) read(name string) string {
	data, err := os.ReadFile(l.path(name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		l.Fatalf("read %s: %v", name, err)
	}
	return string(data)
}

func (l *lab) holds(name, want string) {
	l.Helper()
	if got := l.read(name); !strings.Contains(got, want) {
		l.Errorf("%s does not have %q:\n%s", name, want, got)
	}
}

func (l *lab) run() error {
	l.systemd.calls = nil
	l.out.Reset()
	return newNode(l.options, l.machine, &l.out).run(l.Context())
}

func (l *lab) succeeds() {
	l.Helper()
	if err := l.run(); err != nil {
		l.Fatalf("bootstrap fails: %v\n%s", err, l.out.String())
	}
}

func (l *lab) fails(want string) {
	l.Helper()
	wantError(l, l.run(), want)
}

func wantError(t testing.TB, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("the error is %v, want %q in it", err, want)
	}
}

func (l *lab) mayJoin() error {
	return l.machine.mayJoin(l.Context(), l.options.Dirs, reportTo(&l.out))
}

func (l *lab) asked(want ...string) {
	l.Helper()
	if !slices.Equal(l.systemd.calls, want) {
		l.Errorf("systemd was asked for %q, want %q", l.systemd.calls, want)
	}
}

// fakeSystemd records what it is asked for, and knows some units.
type fakeSystemd struct {
	calls []string
	units map[string]fakeUnit
}

type fakeUnit struct {
	result     string // of a job that is waited for; "": it never ends
	properties map[string]any
	broken     bool // loaded, but it cannot be started
}

func (f *fakeSystemd) call(what ...string) error {
	f.calls = append(f.calls, strings.Join(what, " "))
	return nil
}

func (f *fakeSystemd) Close() {}

func (f *fakeSystemd) ReloadContext(context.Context) error { return f.call("reload") }

func (f *fakeSystemd) ResetFailedUnitContext(context.Context, string) error { return nil }

func (f *fakeSystemd) EnableUnitFilesContext(_ context.Context, files []string, _, _ bool) (
	bool, []dbus.EnableUnitFileChange, error) {
	return true, nil, f.call("enable", files[0])
}

func (f *fakeSystemd) MaskUnitFilesContext(_ context.Context, files []string, _, _ bool) (
	[]dbus.MaskUnitFileChange, error) {
	return nil, f.call("mask", files[0])
}

func (f *fakeSystemd) UnmaskUnitFilesContext(_ context.Context, files []string, _ bool) (
	[]dbus.UnmaskUnitFileChange, error) {
	return nil, f.call("unmask", files[0])
}

func (f *fakeSystemd) StartUnitContext(_ context.Context, unit, _ string, ch chan<- string) (int, error) {
	return f.job("start", unit, ch)
}

func (f *fakeSystemd) RestartUnitContext(_ context.Context, unit, _ string, ch chan<- string) (int, error) {
	return f.job("restart", unit, ch)
}

func (f *fakeSystemd) StopUnitContext(_ context.Context, unit, _ string, ch chan<- string) (int, error) {
	return f.job("stop", unit, ch)
}

func (f *fakeSystemd) job(what, unit string, ch chan<- string) (int, error) {
	u, ok := f.units[unit]
	if !ok || u.broken {
		return 0, errors.New("no job for it")
	}
	if ch == nil {
		what = "queue " + what
	} else {
		what = "wait " + what
		if u.result != "" {
			ch <- u.result
		}
	}
	return 1, f.call(what, unit)
}

func (f *fakeSystemd) GetAllPropertiesContext(_ context.Context, unit string) (map[string]any, error) {
	u, ok := f.units[unit]
	if !ok {
		return map[string]any{"LoadState": "not-found"}, nil
	}
	p := map[string]any{"LoadState": "loaded"}
	maps.Copy(p, u.properties)
	return p, nil
}

var (
	running     = fakeUnit{properties: map[string]any{"ActiveState": "active"}}
	agentFailed = fakeUnit{result: "failed", properties: map[string]any{
		"Result": "exit-code", "ExecMainStatus": int32(1), "StatusText": "proving"}}
)

// TestServices: the agent is waited for; the ECS agent and the signal are queued, since both come after the unit that
// runs bootstrap.
func TestServices(t *testing.T) {
	l := newLab(t)
	l.options.Target.Stack, l.options.Target.ReadyResource = "prod", "NodesReady"
	l.succeeds()
	first := []string{
		"unmask ecs.service", "reload", "enable sevagent.service", "wait restart sevagent.service",
		"enable ecs.service", "queue restart ecs.service",
		"enable sevagent-signal.service", "queue start sevagent-signal.service",
	}
	l.asked(first...)

	l.succeeds()
	again := slices.Clone(first) // nothing is restarted
	again[3], again[5] = "wait start sevagent.service", "queue start ecs.service"
	l.asked(again...)

	// A missing unit is found before anything is written.
	delete(l.systemd.units, ecsUnit)
	os.RemoveAll(l.path("etc"))
	l.fails("services: look for ecs.service: not-found")
	if l.read("etc/sevagent/conf.d/50-bootstrap.yaml") != "" {
		t.Error("the agent is configured although ecs.service is missing")
	}
}

// TestAgentFails: the reason is the agent's own last line, and the ECS agent, which is queued behind the user data,
// does not join with the AMI's configuration.
func TestAgentFails(t *testing.T) {
	l := newLab(t)
	l.write("bin/journalctl", `#!/bin/sh
echo '{"time":"t","level":"INFO","msg":"gate not passed","err":"no"}'
echo 'sevagent: pass the gate: device_missing: /dev/sev-guest is not there; see the guide'
echo '{"time":"t","level":"INFO","msg":"bye"}'
`)
	t.Setenv("PATH", l.path("bin")+":"+os.Getenv("PATH"))
	l.stack.SetStack("prod", "CREATE_IN_PROGRESS")
	l.stack.SetResource("prod", "NodesReady", "CREATE_IN_PROGRESS", true)
	l.options.Target.Stack, l.options.Target.ReadyResource = "prod", "NodesReady"
	l.systemd.units[agentUnit] = agentFailed
	l.fails("start sevagent: sevagent.service: job failed, result exit-code, exit status 1: " +
		"pass the gate: device_missing: /dev/sev-guest is not there; see 'journalctl -u sevagent.service'")
	want := simaws.Signal{Stack: "prod", Resource: "NodesReady", Status: "FAILURE",
		UniqueID: "9abcdef0:start sevagent: /dev/sev-guest is not there"}
	if got := l.stack.Signals(); !slices.Equal(got, []simaws.Signal{want}) {
		t.Errorf("the signals are %v, want %v", got, want)
	}
	l.asked("unmask ecs.service", "reload", "enable sevagent.service", "wait restart sevagent.service",
		"mask ecs.service", "queue stop ecs.service")

	// A running ECS agent is left alone: a later run of bootstrap has failed.
	l.systemd.units[ecsUnit] = running
	l.fails("start sevagent: ")
	l.asked("unmask ecs.service", "reload", "enable sevagent.service", "wait start sevagent.service")

	// Without a journal, the reason is the unit's status; and this one never becomes ready.
	l.write("bin/journalctl", "#!/bin/sh\nexit 1\n")
	l.options.Timeout = 300 * time.Millisecond
	l.systemd.units[agentUnit] = fakeUnit{properties: map[string]any{"StatusText": "waiting for a secret"}}
	l.fails("sevagent.service: not ready within 300ms: waiting for a secret; see")
}

// TestMayJoinAfterFailure: which failures take the permission to join away. The script mayjoin of cmd/bootstrap has the
// rest.
func TestMayJoinAfterFailure(t *testing.T) {
	l := newLab(t)
	may := func(want string) {
		t.Helper()
		if err := l.mayJoin(); want != "" {
			wantError(t, err, want)
		} else if err != nil {
			t.Errorf("the node may not join: %v", err)
		}
	}
	l.succeeds()
	may("")

	// Without the metadata service, cloud-init knows which instance this is, or nobody does.
	l.metadata.SetFault(http.StatusForbidden)
	may("it is not known whether this is it: get the instance identity document by IMDSv2")
	l.write("instance-id", "i-0123456789abcdef0\n")
	may("")
	l.write("instance-id", "i-00000000000000000\n")
	may("has finished on i-0123456789abcdef0, and this is i-00000000000000000: the AMI was made from a node;")
	os.Remove(l.path("instance-id"))
	l.metadata.SetFault(0)

	// A run that fails while the ECS agent runs is a later one, of a node that may join again after a reboot.
	l.systemd.units[ecsUnit], l.systemd.units[agentUnit] = running, agentFailed
	l.fails("start sevagent")
	may("")

	// A run that fails while it does not run takes the permission away, also where the metadata service does not
	// answer.
	l.systemd.units[ecsUnit] = fakeUnit{}
	l.fails("start sevagent")
	may("bootstrap has not finished well on i-0123456789abcdef0;")
	l.metadata.SetFault(http.StatusForbidden)
	may("bootstrap has not finished well on this machine;")
	l.metadata.SetFault(0)

	// And so does a failure after ecs.service was queued.
	l.systemd.units[agentUnit] = fakeUnit{result: "done"}
	l.succeeds()
	may("")
	l.systemd.units[signalUnit] = fakeUnit{broken: true}
	l.options.Target.Stack, l.options.Target.ReadyResource = "prod", "NodesReady"
	l.options.SignalTimeout = time.Millisecond
	l.fails("start signal: sevagent-signal.service: no job for it")
	may("bootstrap has not finished well")
}

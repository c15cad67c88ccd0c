package bootstrap

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rogpeppe/go-internal/testscript"

	"sevagent/client"
	"sevagent/internal/cli"
	"sevagent/internal/localapi"
	"sevagent/internal/sim/simaws"
	"sevagent/internal/sim/simscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"bootstrap": func() {
		if dir := os.Getenv("TEST_SYSTEMD"); dir != "" {
			testOnlyConnect = func(context.Context) (systemd, error) { return fakeSystemd(dir), nil }
		}
		testOnlyFingerprint = os.Getenv("TEST_FINGERPRINT")
		testOnlyUnitDir = os.Getenv("TEST_UNIT_DIR")
		testOnlyInstanceIDFile = os.Getenv("TEST_INSTANCE_ID")
		cli.Main("bootstrap", Run)
	}})
}

// fakeSystemd is a directory. What is asked of it is a line of its file calls. A file named after a unit is a unit that it
// knows; its content is the result of a job that starts it, and lines KEY=VALUE of properties.
type fakeSystemd string

func (f fakeSystemd) note(format string, args ...any) error {
	file, err := os.OpenFile(filepath.Join(string(f), "calls"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = fmt.Fprintf(file, format+"\n", args...)
	return err
}

func (f fakeSystemd) unit(name string) (lines []string) {
	data, err := os.ReadFile(filepath.Join(string(f), name))
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSpace(string(data)), "\n")
}

func (f fakeSystemd) Close() {}

func (f fakeSystemd) ReloadContext(context.Context) error { return f.note("reload") }

func (f fakeSystemd) EnableUnitFilesContext(_ context.Context, files []string, runtime, force bool) (bool, []dbus.EnableUnitFileChange, error) {
	return true, nil, f.note("enable %s", files[0])
}

func (f fakeSystemd) StopUnitContext(ctx context.Context, unit, mode string, ch chan<- string) (int, error) {
	return 1, f.note("queue stop %s", unit)
}

func (f fakeSystemd) MaskUnitFilesContext(_ context.Context, files []string, runtime, force bool) ([]dbus.MaskUnitFileChange, error) {
	return nil, f.note("mask %s", files[0])
}

func (f fakeSystemd) UnmaskUnitFilesContext(_ context.Context, files []string, runtime bool) ([]dbus.UnmaskUnitFileChange, error) {
	return nil, f.note("unmask %s", files[0])
}

func (f fakeSystemd) ResetFailedUnitContext(context.Context, string) error { return nil }

func (f fakeSystemd) StartUnitContext(ctx context.Context, unit, mode string, ch chan<- string) (int, error) {
	return 1, f.job("start", unit, ch)
}

func (f fakeSystemd) RestartUnitContext(ctx context.Context, unit, mode string, ch chan<- string) (int, error) {
	return 1, f.job("restart", unit, ch)
}

func (f fakeSystemd) job(what, unit string, ch chan<- string) error {
	lines := f.unit(unit)
	if lines == nil {
		return fmt.Errorf("Unit %s not found.", unit)
	}
	how := "queue"
	if ch != nil {
		how = "wait"
		if lines[0] != "never" {
			ch <- lines[0]
		}
	}
	return f.note("%s %s %s", how, what, unit)
}

func (f fakeSystemd) GetAllPropertiesContext(_ context.Context, unit string) (map[string]any, error) {
	lines := f.unit(unit)
	if lines == nil {
		return map[string]any{"LoadState": "not-found"}, nil
	}
	p := map[string]any{"LoadState": "loaded"}
	for _, line := range lines[1:] {
		key, value, _ := strings.Cut(line, "=")
		p[key] = value
		if n, err := strconv.Atoi(value); err == nil {
			p[key] = int32(n)
		}
	}
	return p, nil
}

// TestScripts runs the binary as a binary, with AWS and the ECS agent on loopback and, where a script asks for it, the
// sevagent's real local API in front of a fixed state.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   "testdata",
		Setup: setup,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": simscript.Exits,
			"agent": agent,
			// metadata-fault STATUS makes the metadata service answer with that HTTP status.
			"metadata-fault": func(ts *testscript.TestScript, neg bool, args []string) {
				status, err := strconv.Atoi(args[0])
				ts.Check(err)
				ts.Value("metadata").(*simaws.IMDS).SetFault(status)
			},
			// no-v1 fails if a request came without a token.
			"no-v1": func(ts *testscript.TestScript, neg bool, args []string) {
				if n := ts.Value("metadata").(*simaws.IMDS).V1Requests(); n != 0 {
					ts.Fatalf("%d requests to the metadata service came without a token", n)
				}
			},
			// stack NAME STATE [RESOURCE=STATE ...] sets what the stack is like. A + at the end: the resource waits.
			"stack": func(ts *testscript.TestScript, neg bool, args []string) {
				setStack(ts.Value("cloudformation").(*simaws.CloudFormation), args)
			},
			// later-stack is stack after a while.
			"later-stack": func(ts *testscript.TestScript, neg bool, args []string) {
				timer := time.AfterFunc(700*time.Millisecond, func() { setStack(ts.Value("cloudformation").(*simaws.CloudFormation), args) })
				ts.Defer(func() { timer.Stop() })
			},
			// signal-fault CODE CALLS makes calls to CloudFormation fail.
			"signal-fault": func(ts *testscript.TestScript, neg bool, args []string) {
				calls, err := strconv.Atoi(args[1])
				ts.Check(err)
				ts.Value("cloudformation").(*simaws.CloudFormation).Fail(args[0], calls)
			},
			// signals [RESOURCE STATUS UNIQUEID ...] fails unless these are the signals that were accepted.
			"signals": func(ts *testscript.TestScript, neg bool, args []string) {
				got := []string{}
				for _, s := range ts.Value("cloudformation").(*simaws.CloudFormation).Signals() {
					got = append(got, s.Resource, s.Status, s.UniqueID)
				}
				if strings.Join(got, "\n") != strings.Join(args, "\n") {
					ts.Fatalf("signals are %q, want %q", got, args)
				}
			},
			// registered CLUSTER [ARN] makes the ECS agent say so.
			"registered": func(ts *testscript.TestScript, neg bool, args []string) {
				ts.Value("ecs").(*simaws.ECSAgent).Register(args[0], strings.Join(args[1:], ""))
			},
			// waits-for FILE waits until it is there.
			"waits-for": func(ts *testscript.TestScript, neg bool, args []string) {
				for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
					if _, err := os.Stat(ts.MkAbs(args[0])); err == nil {
						return
					}
					if time.Now().After(deadline) {
						ts.Fatalf("%s is not there after 20 s", args[0])
					}
				}
			},
			// sign FILE makes FILE.asc by a new key, puts the key into KEY.asc, and its fingerprint into $FINGERPRINT.
			"sign": sign,
		},
	})
}

func setup(env *testscript.Env) error {
	metadata := &simaws.IMDS{Instance: simaws.DefaultInstance()}
	cfn := &simaws.CloudFormation{Region: metadata.Instance.Region, AccountID: metadata.Instance.AccountID}
	ecs := new(simaws.ECSAgent)
	ms, cs, es := httptest.NewServer(metadata), httptest.NewServer(cfn), httptest.NewServer(ecs)
	for _, s := range []*httptest.Server{ms, cs, es} {
		env.Defer(s.Close)
	}
	env.Values["metadata"], env.Values["cloudformation"], env.Values["ecs"] = metadata, cfn, ecs
	short, err := os.MkdirTemp("", "sb") // sockets have short paths
	if err != nil {
		return err
	}
	env.Defer(func() { os.RemoveAll(short) })
	for name, value := range map[string]string{
		"AWS_EC2_METADATA_SERVICE_ENDPOINT": ms.URL, "AWS_ENDPOINT_URL_CLOUDFORMATION": cs.URL, "HOME": env.WorkDir,
		"TEST_UNIT_DIR": filepath.Join(env.WorkDir, "units"), "TEST_INSTANCE_ID": filepath.Join(env.WorkDir, "instance-id"),
		"AWS_REGION": "", "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_PROFILE": "", "STACK_ID": cfn.StackID("prod"),
		"SOCKET":                        filepath.Join(short, "s"),
		"SEVAGENT_BOOTSTRAP_SERVICES":   servicesNone,
		"SEVAGENT_BOOTSTRAP_SOCKET":     filepath.Join(short, "s"),
		"SEVAGENT_BOOTSTRAP_CONFIG_DIR": filepath.Join(env.WorkDir, "etc/sevagent"),
		"SEVAGENT_BOOTSTRAP_STATE_DIR":  filepath.Join(env.WorkDir, "var"),
		"SEVAGENT_BOOTSTRAP_ECS_CONFIG": filepath.Join(env.WorkDir, "etc/ecs/ecs.config"),
		"SEVAGENT_BOOTSTRAP_TIMEOUT":    "10s", "SEVAGENT_BOOTSTRAP_SIGNAL_TIMEOUT": "10s",
		"SEVAGENT_BOOTSTRAP_INTROSPECTION": es.URL,
		"GORACE":                           "atexit_sleep_ms=0", // or every program takes a second to end
		// Nothing on loopback is asked through a proxy.
		"HTTP_PROXY": "http://192.0.2.1:9", "http_proxy": "http://192.0.2.1:9",
	} {
		env.Setenv(name, value)
	}
	return os.MkdirAll(filepath.Join(env.WorkDir, "etc/sevagent"), 0o755)
}

// agent STATUS starts a local API whose readiness is STATUS and whose last verdict is pass, by AMD's roots.
func agent(ts *testscript.TestScript, neg bool, args []string) {
	l, err := net.Listen("unix", ts.Getenv("SOCKET"))
	ts.Check(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	api := localapi.New(localapi.Config{
		Health: func(time.Time) *client.Health {
			h := new(client.Health)
			h.Add("attestation:gate", client.Check{Status: client.HealthStatus(args[0]), Output: "for a reason"})
			return h
		},
		Status: func(time.Time) *client.Status {
			return &client.Status{Attestation: client.Attestation{
				Verdict: "pass", Roots: "amd", Measurement: strings.Repeat("ab", 48), ReportedTCB: "4.0.29.222",
			}}
		},
		Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
	})
	go func() { done <- api.Run(ctx, l, nil) }()
	ts.Defer(func() { cancel(); <-done })
}

func setStack(cfn *simaws.CloudFormation, args []string) {
	cfn.SetStack(args[0], args[1])
	for _, resource := range args[2:] {
		id, state, _ := strings.Cut(resource, "=")
		state, waits := strings.CutSuffix(state, "+")
		cfn.SetResource(args[0], id, state, waits)
	}
}

func sign(ts *testscript.TestScript, neg bool, args []string) {
	for _, tool := range []string{"gpg", "gpgv"} {
		if _, err := exec.LookPath(tool); err != nil {
			ts.Fatalf("%s is missing", tool)
		}
	}
	home, err := os.MkdirTemp("", "gpg") // sockets have short paths
	ts.Check(err)
	gpg := func(args ...string) string {
		cmd := exec.Command("gpg", append([]string{"--homedir", home, "--batch", "--quiet", "--yes", "--pinentry-mode=loopback", "--passphrase="}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			ts.Fatalf("%v: %v\n%s", cmd.Args, err, out)
		}
		return string(out)
	}
	ts.Defer(func() {
		exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		os.RemoveAll(home)
	})
	gpg("--quick-generate-key", "test@example.com", "rsa2048", "sign", "never")
	for line := range strings.Lines(gpg("--list-keys", "--with-colons")) {
		if fields := strings.Split(line, ":"); fields[0] == "fpr" && ts.Getenv("FINGERPRINT") != fields[9] {
			ts.Setenv("FINGERPRINT", fields[9])
			gpg("--quick-add-key", fields[9], "rsa2048", "sign", "never") // as Amazon does, sign by a subkey
			break
		}
	}
	gpg("--armor", "--output", ts.MkAbs("key.asc"), "--export")
	for _, file := range args {
		gpg("--armor", "--output", ts.MkAbs(file+".asc"), "--detach-sign", ts.MkAbs(file))
	}
}

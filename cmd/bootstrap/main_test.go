package main

import (
	"context"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"sevagent/client"
	"sevagent/internal/bootstrap"
	"sevagent/internal/cli/clitest"
	"sevagent/internal/localapi"
	"sevagent/internal/promtext"
	"sevagent/internal/sim/simaws"
	"sevagent/internal/sim/simscript"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"bootstrap": main}) }

func TestHelpFits(t *testing.T) { clitest.HelpFits(t, run) }

// TestScripts runs the binary as a binary, with AWS and the ECS agent on loopback and, where a script asks for it, the
// real local API of sevagent in front of a fixed state.
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
			// region NAME moves the instance and its stacks there.
			"region": func(ts *testscript.TestScript, neg bool, args []string) {
				ts.Value("metadata").(*simaws.IMDS).Move(args[0])
				cfn := ts.Value("cloudformation").(*simaws.CloudFormation)
				cfn.Move(args[0])
				ts.Setenv("STACK_ID", cfn.StackID("prod"))
			},
			// no-v1 fails if a request came without a token.
			"no-v1": func(ts *testscript.TestScript, neg bool, args []string) {
				if n := ts.Value("metadata").(*simaws.IMDS).V1Requests(); n != 0 {
					ts.Fatalf("%d requests to the metadata service came without a token", n)
				}
			},
			// stack NAME STATE [RESOURCE=STATE ...] puts the stack into a state. A + at the end: the resource waits.
			"stack": func(ts *testscript.TestScript, neg bool, args []string) {
				setStack(ts.Value("cloudformation").(*simaws.CloudFormation), args)
			},
			// later-stack is stack after a while.
			"later-stack": func(ts *testscript.TestScript, neg bool, args []string) {
				cfn := ts.Value("cloudformation").(*simaws.CloudFormation)
				timer := time.AfterFunc(700*time.Millisecond, func() { setStack(cfn, args) })
				ts.Defer(func() { timer.Stop() })
			},
			// signal-fault CODE CALLS makes calls to CloudFormation fail.
			"signal-fault": func(ts *testscript.TestScript, neg bool, args []string) {
				calls, err := strconv.Atoi(args[1])
				ts.Check(err)
				ts.Value("cloudformation").(*simaws.CloudFormation).Fail(args[0], calls)
			},
			// cluster NAME [PROVIDER ...] makes a cluster that lists these capacity providers.
			"cluster": func(ts *testscript.TestScript, neg bool, args []string) {
				ts.Value("clusters").(*simaws.Clusters).Set(args[0], args[1:]...)
			},
			// cluster-soon is cluster once a node has asked three times.
			"cluster-soon": func(ts *testscript.TestScript, neg bool, args []string) {
				clusters, stop := ts.Value("clusters").(*simaws.Clusters), make(chan struct{})
				ts.Defer(func() { close(stop) })
				go func() {
					for want := clusters.Calls() + 3; clusters.Calls() < want; time.Sleep(5 * time.Millisecond) {
						select {
						case <-stop:
							return
						default:
						}
					}
					clusters.Set(args[0], args[1:]...)
				}()
			},
			// cluster-fault CODE CALLS makes calls to ECS fail.
			"cluster-fault": func(ts *testscript.TestScript, neg bool, args []string) {
				calls, err := strconv.Atoi(args[1])
				ts.Check(err)
				ts.Value("clusters").(*simaws.Clusters).Fail(args[0], calls)
			},
			// signals [RESOURCE STATUS UNIQUEID ...] fails unless these are the signals that were accepted.
			"signals": func(ts *testscript.TestScript, neg bool, args []string) {
				got := []string{}
				for _, s := range ts.Value("cloudformation").(*simaws.CloudFormation).Signals() {
					got = append(got, s.Resource, s.Status, s.UniqueID)
				}
				if !slices.Equal(got, args) {
					ts.Fatalf("signals are %q, want %q", got, args)
				}
			},
			// registered [CLUSTER ARN] makes the ECS agent report that, or, before it is registered, refuse connections.
			"registered": func(ts *testscript.TestScript, neg bool, args []string) {
				ecs := ts.Value("ecs").(*simaws.ECSAgent)
				if len(args) == 0 {
					ecs.Shut()
					return
				}
				ts.Check(ecs.Register(args[0], args[1]))
			},
			// later-registered is registered after a while.
			"later-registered": func(ts *testscript.TestScript, neg bool, args []string) {
				ecs := ts.Value("ecs").(*simaws.ECSAgent)
				timer := time.AfterFunc(300*time.Millisecond, func() { ecs.Register(args[0], args[1]) })
				ts.Defer(func() { timer.Stop() })
			},
			// waits-for FILE waits until the file exists.
			"waits-for": func(ts *testscript.TestScript, neg bool, args []string) {
				for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
					if _, err := os.Stat(ts.MkAbs(args[0])); err == nil {
						return
					}
					if time.Now().After(deadline) {
						ts.Fatalf("%s does not exist after two minutes", args[0])
					}
				}
			},
		},
	})
}

func setup(env *testscript.Env) error {
	metadata := &simaws.IMDS{Instance: simaws.DefaultInstance()}
	cfn := &simaws.CloudFormation{Region: metadata.Instance.Region, AccountID: metadata.Instance.AccountID}
	ecs, err := simaws.NewECSAgent("127.0.0.1:0")
	if err != nil {
		return err
	}
	env.Defer(ecs.Close)
	clusters := &simaws.Clusters{Region: metadata.Instance.Region, AccountID: metadata.Instance.AccountID}
	ms, cs, as := httptest.NewServer(metadata), httptest.NewServer(cfn), httptest.NewServer(clusters)
	for _, s := range []*httptest.Server{ms, cs, as} {
		env.Defer(s.Close)
	}
	env.Values["metadata"], env.Values["cloudformation"], env.Values["ecs"] = metadata, cfn, ecs
	env.Values["clusters"] = clusters
	short, err := os.MkdirTemp("", "sb") // sockets have short paths
	if err != nil {
		return err
	}
	env.Defer(func() { os.RemoveAll(short) })
	for name, value := range map[string]string{
		"AWS_EC2_METADATA_SERVICE_ENDPOINT": ms.URL, "AWS_ENDPOINT_URL_CLOUDFORMATION": cs.URL, "HOME": env.WorkDir,
		"AWS_ENDPOINT_URL_ECS": as.URL,
		"AWS_REGION":           "", "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_PROFILE": "",
		"STACK_ID":                        cfn.StackID("prod"),
		"SOCKET":                          filepath.Join(short, "s"),
		"SEVAGENT_BOOTSTRAP_SERVICES":     bootstrap.ServicesNone,
		"SEVAGENT_BOOTSTRAP_SOCKET":       filepath.Join(short, "s"),
		"SEVAGENT_BOOTSTRAP_CONFIG_DIR":   filepath.Join(env.WorkDir, "etc/sevagent"),
		"SEVAGENT_BOOTSTRAP_STATE_DIR":    filepath.Join(env.WorkDir, "var"),
		"SEVAGENT_BOOTSTRAP_ECS_CONFIG":   filepath.Join(env.WorkDir, "etc/ecs/ecs.config"),
		"SEVAGENT_BOOTSTRAP_ECS_DATA_DIR": filepath.Join(env.WorkDir, "ecs-data"),
		"SEVAGENT_BOOTSTRAP_TIMEOUT":      "10s", "SEVAGENT_BOOTSTRAP_SIGNAL_TIMEOUT": "10s",
		"SEVAGENT_BOOTSTRAP_INTROSPECTION": ecs.URL(),
		"GORACE":                           "atexit_sleep_ms=0", // or every program takes a second to end
		// Nothing here asks the systemd of the machine that runs the tests.
		"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=" + filepath.Join(short, "no-bus"),
		// Requests to loopback bypass the proxy.
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
		Metrics: promtext.New(), Log: slog.New(slog.DiscardHandler),
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

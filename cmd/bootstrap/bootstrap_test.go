package main

import (
	"context"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rogpeppe/go-internal/testscript"

	"sevagent/internal/localapi"
	"sevagent/internal/sim/simaws"
	"sevagent/internal/sim/simscript"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"bootstrap": main}) }

// TestScripts runs the binary as a binary, with the metadata service on loopback and, where a script asks for it, the
// agent's real local API in front of a fixed state.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			metadata := &simaws.IMDS{Instance: simaws.DefaultInstance()}
			server := httptest.NewServer(metadata)
			env.Defer(server.Close)
			env.Values["metadata"] = metadata
			env.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.URL)
			env.Setenv("HOME", env.WorkDir)
			short, err := os.MkdirTemp("", "sb") // sockets have short paths
			if err != nil {
				return err
			}
			env.Defer(func() { os.RemoveAll(short) })
			env.Setenv("SOCKET", filepath.Join(short, "s"))
			env.Setenv("SEVAGENT_BOOTSTRAP_SERVICES", servicesNone)
			env.Setenv("SEVAGENT_BOOTSTRAP_SOCKET", filepath.Join(short, "s"))
			env.Setenv("SEVAGENT_BOOTSTRAP_CONFIG_DIR", filepath.Join(env.WorkDir, "etc/sevagent"))
			env.Setenv("SEVAGENT_BOOTSTRAP_ECS_CONFIG", filepath.Join(env.WorkDir, "etc/ecs/ecs.config"))
			env.Setenv("SEVAGENT_BOOTSTRAP_TIMEOUT", "10s")
			return os.MkdirAll(filepath.Join(env.WorkDir, "etc/sevagent"), 0o755)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": simscript.Exits,
			// agent STATUS starts a local API whose readiness is STATUS and whose last verdict is pass, by AMD's roots.
			"agent": func(ts *testscript.TestScript, neg bool, args []string) {
				l, err := net.Listen("unix", ts.Getenv("SOCKET"))
				ts.Check(err)
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan error, 1)
				api := localapi.New(localapi.Config{
					Health: func(time.Time) *localapi.Health {
						h := new(localapi.Health)
						h.Add("attestation:gate", localapi.Check{Status: args[0], Output: "for a reason"})
						return h
					},
					Status: func(time.Time) any {
						return map[string]any{"attestation": map[string]string{
							"verdict": "pass", "roots": "amd", "measurement": strings.Repeat("ab", 48), "reported_tcb": "4.0.29.222"}}
					},
					Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
				})
				go func() { done <- api.Run(ctx, l, nil) }()
				ts.Defer(func() { cancel(); <-done })
			},
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
		},
	})
}

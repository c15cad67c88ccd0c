package bootstrap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"sevagent/internal/awsconfig"
	"sevagent/internal/must"
	"sevagent/internal/sim/simaws"
)

// lateNode is a node in virtual time: AWS and the ECS agent are called in memory, and may be late or ill.
type lateNode struct {
	*testing.T
	metadata *simaws.IMDS
	stack    *simaws.CloudFormation
	ecs      *simaws.ECSAgent
	machine  machine
	dirs     Dirs
	began    time.Time
	out      strings.Builder

	// ill returns what is wrong with a request: an HTTP status, an error of the network, or errHung; nil: nothing.
	ill func(*http.Request) error
	// silent makes the ECS agent refuse connections, as it does until it has registered.
	silent atomic.Bool
}

var (
	errRefused = errors.New("connect: connection refused")
	errHung    = errors.New("no answer")
)

type status int

func (s status) Error() string { return http.StatusText(int(s)) }

func newLateNode(t *testing.T) *lateNode {
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "")
		}
	}
	t.Setenv("HOME", t.TempDir())
	n := &lateNode{T: t, metadata: &simaws.IMDS{Instance: simaws.DefaultInstance()}, ecs: new(simaws.ECSAgent)}
	n.stack = &simaws.CloudFormation{Region: n.metadata.Instance.Region, AccountID: n.metadata.Instance.AccountID}
	n.stack.SetStack("prod", "CREATE_IN_PROGRESS")
	n.stack.SetResource("prod", "NodesReady", "CREATE_IN_PROGRESS", true)
	n.dirs = Dirs{Config: t.TempDir(), State: t.TempDir()}
	n.machine = machine{
		dirs:           n.dirs,
		instanceIDFile: filepath.Join(t.TempDir(), "instance-id"),
		ecsLog:         filepath.Join(t.TempDir(), "log"),
		aws: func(options ...func(*aws.Config)) (aws.Config, error) {
			own := func(cfg *aws.Config) { cfg.HTTPClient = n.client(10 * time.Second) }
			return awsconfig.Load(append(options, own)...)
		},
		local: n.client(5 * time.Second),
		proc:  t.TempDir(),
	}
	n.listener(0)
	signals := Target{Cluster: "prod", Stack: "prod", ReadyResource: "NodesReady", Region: n.stack.Region,
		InstanceID: n.metadata.Instance.ID}
	text := must.Get(json.Marshal(signals))(t, "encode the target")
	must.Do(t, os.WriteFile(filepath.Join(n.dirs.Config, signalFile), text, 0o644), "write signal.json")
	n.register()
	return n
}

// inBubble runs a test of the node in virtual time.
func (n *lateNode) inBubble(test func(t *testing.T)) {
	outside := n.T
	synctest.Test(outside, func(t *testing.T) {
		n.T = t
		test(t)
	})
	n.T = outside
}

func (n *lateNode) client(timeout time.Duration) *http.Client {
	return &http.Client{Timeout: timeout, Transport: n}
}

// RoundTrip implements http.RoundTripper.
func (n *lateNode) RoundTrip(req *http.Request) (*http.Response, error) {
	rec := httptest.NewRecorder()
	err := error(nil)
	if n.ill != nil && req.URL.Hostname() != "127.0.0.1" {
		err = n.ill(req)
	}
	code, isStatus := err.(status)
	switch {
	case err == errHung:
		<-req.Context().Done()
		return nil, req.Context().Err()
	case isStatus:
		http.Error(rec, code.Error(), int(code))
	case err != nil:
		return nil, err
	case req.URL.Hostname() == "169.254.169.254":
		n.metadata.ServeHTTP(rec, req)
	case req.URL.Hostname() != "127.0.0.1":
		n.stack.ServeHTTP(rec, req)
	case n.silent.Load():
		return nil, errRefused
	default:
		n.ecs.ServeHTTP(rec, req)
	}
	return rec.Result(), nil
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// target is where an instance of a group finds its target lifecycle state.
const target = "meta-data/autoscaling/target-lifecycle-state"

func (n *lateNode) targets(state string) { n.metadata.Set(target, state) }

func (n *lateNode) register() {
	n.silent.Store(false)
	n.ecs.Register("prod", "arn:aws:ecs:us-east-2:111122223333:container-instance/prod/1")
}

// listener makes a user the one who listens where the ECS agent does.
func (n *lateNode) listener(uid int) {
	must.Do(n, os.MkdirAll(filepath.Join(n.machine.proc, "self/net"), 0o755), "make a directory")
	table := fmt.Sprintf("sl local_address …\n 0: %s:C9DE 00000000:0000 0A 0:0 0:0 0 %d 0 77 1\n",
		strings.Repeat("0", 32), uid)
	must.Do(n, os.WriteFile(filepath.Join(n.machine.proc, "self/net/tcp"), nil, 0o644), "write the table of sockets")
	must.Do(n, os.WriteFile(filepath.Join(n.machine.proc, "self/net/tcp6"), []byte(table), 0o644), "write that of IPv6")
}

// until makes what matches ill, in one way, for some time from now on.
func (n *lateNode) until(d time.Duration, ill error, matches ...string) {
	end := time.Now().Add(d)
	n.ill = func(req *http.Request) error {
		hit := func(part string) bool { return strings.Contains(req.URL.String(), part) }
		if time.Now().Before(end) && (matches == nil || slices.ContainsFunc(matches, hit)) {
			return ill
		}
		return nil
	}
}

func (n *lateNode) signal() error {
	n.out.Reset()
	n.began = time.Now()
	return n.machine.signal(n.Context(), SignalOptions{
		Dirs: n.dirs, Introspection: "http://127.0.0.1:51678", Timeout: 5 * time.Minute, SignalTimeout: 5 * time.Minute,
	}, reportTo(&n.out))
}

// took fails unless that much time has passed since the last run began.
func (n *lateNode) took(least, most time.Duration) {
	n.Helper()
	if d := time.Since(n.began); d < least || d > most {
		n.Errorf("it took %v, want %v to %v", d, least, most)
	}
}

func (n *lateNode) signaled(want ...simaws.Signal) {
	n.Helper()
	if got := n.stack.Signals(); !slices.Equal(got, want) {
		n.Errorf("the signals are %v, want %v\n%s", got, want, n.out.String())
	}
}

var success = simaws.Signal{Stack: "prod", Resource: "NodesReady", Status: "SUCCESS", UniqueID: "i-0123456789abcdef0"}

func failure(why string) simaws.Signal {
	return simaws.Signal{Stack: "prod", Resource: "NodesReady", Status: "FAILURE", UniqueID: "9abcdef0:" + why}
}

// illnesses are what time heals.
func illnesses() map[string]error {
	return map[string]error{
		"refused": errRefused, "hanging": errHung, "500": status(500), "502": status(502), "503": status(503),
		"429": status(429), "404": status(404), "401": status(401), "400": status(400),
	}
}

// TestMetadataLate: whatever is wrong with the metadata service, it is asked until the deadline.
func TestMetadataLate(t *testing.T) {
	for name, ill := range illnesses() {
		t.Run(name, func(t *testing.T) {
			n := newLateNode(t)
			n.inBubble(func(t *testing.T) {
				n.began = time.Now()
				n.until(30*time.Second, ill)
				doc, err := n.machine.identity(t.Context(), 2*time.Minute)
				if err != nil || doc.InstanceID != n.metadata.Instance.ID {
					t.Errorf("the instance is %q, error %v", doc.InstanceID, err)
				}
				n.took(30*time.Second, 45*time.Second)

				n.began = time.Now()
				n.until(time.Hour, ill)
				_, err = n.machine.identity(t.Context(), 2*time.Minute)
				wantError(t, err, "get the instance identity document by IMDSv2: no answer within 2m0s: ")
				if strings.Contains(err.Error(), "operation error") {
					t.Errorf("the error has the SDK's words: %v", err)
				}
				wantError(t, err, "; is this an EC2 instance, and its metadata service on?")
				n.took(2*time.Minute, 2*time.Minute+time.Second)
			})
		})
	}
}

// TestMetadataOdd: an answer that does not name the instance, or only half of it, is as good as none.
func TestMetadataOdd(t *testing.T) {
	for name, answer := range map[string]string{
		"empty": "", "object": "{}", "null": "null", "half": `{"instanceId": "i-0123456789`, "list": "[]",
		"no region": `{"instanceId": "i-0123456789abcdef0"}`, "no instance": `{"region": "us-east-2"}`,
		"huge": `{"instanceId": "` + strings.Repeat("x", 1<<20) + `", "region": "us-east-2"}`,
	} {
		t.Run(name, func(t *testing.T) {
			n := newLateNode(t)
			n.inBubble(func(t *testing.T) {
				n.began = time.Now()
				n.metadata.Set("dynamic/instance-identity/document", answer)
				_, err := n.machine.identity(t.Context(), 2*time.Minute)
				wantError(t, err, "get the instance identity document by IMDSv2: no answer within 2m0s: ")
				n.took(2*time.Minute, 2*time.Minute+time.Second)
			})
		})
	}
	n := newLateNode(t)
	n.targets("Warmed:" + strings.Repeat("x", 1<<20))
	n.inBubble(func(t *testing.T) {
		if state := n.machine.warmPool(t.Context()); len(state) != maxState {
			t.Errorf("a state of %d bytes, want it cut off after %d", len(state), maxState)
		}
	})
}

// TestMetadataOff: a service that is switched off is not asked again.
func TestMetadataOff(t *testing.T) {
	for name, off := range map[string]func(n *lateNode){
		"HTTP status 403 of the metadata service, asked for a token; ": func(n *lateNode) {
			n.until(time.Hour, status(http.StatusForbidden))
		},
		"AWS_EC2_METADATA_DISABLED is set; ": func(n *lateNode) { n.Setenv("AWS_EC2_METADATA_DISABLED", "true") },
	} {
		t.Run(name, func(t *testing.T) {
			n := newLateNode(t)
			off(n)
			n.inBubble(func(t *testing.T) {
				n.began = time.Now()
				_, err := n.machine.identity(t.Context(), 2*time.Minute)
				wantError(t, err, "is this an EC2 instance, and its metadata service on?")
				wantError(t, err, "by IMDSv2: "+name)
				n.took(0, time.Second)
				if err := n.signal(); err == nil {
					t.Error("the signal succeeds without credentials")
				}
				n.took(0, time.Second)
			})
		})
	}
}

// TestSignalLate: a node that has joined is signaled, although all or one of what the signal needs is late or ill.
func TestSignalLate(t *testing.T) {
	ills := illnesses()
	ills["403"] = status(http.StatusForbidden) // of the token, it means that the service is off
	for name, ill := range ills {
		for what, part := range map[string]string{
			"all": "", "token": "/latest/api/token", "role": "security-credentials", "CloudFormation": "cloudformation",
			"warm pool": "target-lifecycle-state",
		} {
			if what == "CloudFormation" && strings.HasPrefix(name, "4") && name != "429" {
				continue // it has no such answers without a code
			}
			if name == "403" && (what == "all" || what == "token") {
				continue
			}
			t.Run(name+"/"+what, func(t *testing.T) {
				n := newLateNode(t)
				n.inBubble(func(t *testing.T) {
					n.until(40*time.Second, ill, part)
					must.Do(t, n.signal(), "signal")
					n.signaled(success)
					n.took(0, 70*time.Second)
				})
			})
		}
	}
}

// TestSignalCodes: codes of CloudFormation that pass, and those that do not.
func TestSignalCodes(t *testing.T) {
	for code, calls := range map[string]int{
		"Throttling": 20, "InvalidClientTokenId": 5, "ExpiredToken": 5, "RequestExpired": 5, "SignatureDoesNotMatch": 5,
		"InternalFailure": 5, "503": 5, "RequestLimitExceeded": 5,
	} {
		t.Run(code, func(t *testing.T) {
			n := newLateNode(t)
			n.stack.Fail(code, calls)
			n.inBubble(func(t *testing.T) {
				must.Do(t, n.signal(), "signal")
				n.signaled(success)
			})
		})
	}
	n := newLateNode(t)
	n.stack.Fail("AccessDenied", 0)
	n.inBubble(func(t *testing.T) {
		wantError(t, n.signal(), "grant the node's role cloudformation:SignalResource on the stack")
		n.took(0, time.Second)
	})
	n.stack.Fail("503", 0)
	n.inBubble(func(t *testing.T) {
		wantError(t, n.signal(), "signal: signal NodesReady of stack prod: not signaled within 5m0s: ")
		n.took(5*time.Minute, 5*time.Minute+time.Second)
		n.stack.Fail("", 0)
		must.Do(t, n.signal(), "signal again, as systemd does")
		n.signaled(success)
	})
}

// TestWarmPool: in a warm pool no time counts and nothing is signaled, until the instance goes into service.
func TestWarmPool(t *testing.T) {
	const long = 3 * time.Hour
	for _, state := range []string{"Warmed:Stopped", "Warmed:Running", "Warmed:Hibernated"} {
		t.Run(state, func(t *testing.T) {
			n := newLateNode(t)
			n.inBubble(func(t *testing.T) {
				n.targets(state)
				n.silent.Store(true)
				inService := time.AfterFunc(long, func() { n.targets("InService") })
				registered := time.AfterFunc(long+4*time.Minute, n.register)
				defer inService.Stop()
				defer registered.Stop()
				must.Do(t, n.signal(), "signal")
				n.signaled(success)
				n.took(long+4*time.Minute, long+5*time.Minute)
			})
		})
	}
	t.Run("stopped in the pool", func(t *testing.T) {
		n := newLateNode(t)
		n.inBubble(func(t *testing.T) {
			n.targets("Warmed:Stopped")
			n.ill = func(req *http.Request) error { return context.Cause(req.Context()) }
			n.machine.local = &http.Client{Transport: roundTrip(func(req *http.Request) (*http.Response, error) {
				return nil, context.Cause(req.Context())
			})}
			ctx, cancel := context.WithCancelCause(t.Context())
			stop := time.AfterFunc(time.Minute, func() { cancel(errors.New("terminated signal received")) })
			defer stop.Stop()
			err := n.machine.signal(ctx, SignalOptions{Dirs: n.dirs, Introspection: "http://127.0.0.1:51678",
				Timeout: time.Minute, SignalTimeout: time.Minute}, reportTo(&n.out))
			wantError(t, err, "terminated signal received")
			if strings.Count(err.Error(), "terminated") != 1 {
				t.Errorf("it says so more than once: %v", err)
			}
			n.signaled()
		})
	})
	t.Run("registered in the pool", func(t *testing.T) {
		n := newLateNode(t)
		n.inBubble(func(t *testing.T) {
			n.targets("Warmed:Running")
			early := time.AfterFunc(long-time.Minute, func() { n.signaled() })
			inService := time.AfterFunc(long, func() { n.targets("InService") })
			defer early.Stop()
			defer inService.Stop()
			must.Do(t, n.signal(), "signal")
			n.signaled(success)
			n.took(long, long+time.Minute)
		})
	})
	t.Run("back in the pool", func(t *testing.T) {
		n := newLateNode(t)
		n.inBubble(func(t *testing.T) {
			n.silent.Store(true)
			back := time.AfterFunc(time.Minute, func() { n.targets("Warmed:Stopped") })
			inService := time.AfterFunc(long, func() { n.targets("InService"); n.register() })
			defer back.Stop()
			defer inService.Stop()
			must.Do(t, n.signal(), "signal")
			n.signaled(success)
		})
	})
	t.Run("stopped", func(t *testing.T) { // and started again, into service, where it does not register
		n := newLateNode(t)
		n.inBubble(func(t *testing.T) {
			n.targets("Warmed:Stopped")
			n.silent.Store(true)
			ctx, stop := context.WithTimeout(t.Context(), time.Hour)
			defer stop()
			if err := n.machine.signal(ctx, SignalOptions{
				Dirs: n.dirs, Introspection: "http://127.0.0.1:51678", Timeout: time.Minute, SignalTimeout: time.Minute,
			}, reportTo(&n.out)); err == nil {
				t.Error("a signal that was stopped succeeds")
			}
			n.signaled()
			n.targets("InService")
			wantError(t, n.signal(), "registration: wait for the ECS agent to register: not within 5m0s: ")
			n.signaled(failure("registration: connect: connection refused"))
		})
	})
}

// TestSuccessAfterFailure: the record of a failure, of an earlier boot for instance, keeps another from being signaled,
// and not a success. After a success nothing is signaled.
func TestSuccessAfterFailure(t *testing.T) {
	n := newLateNode(t)
	n.inBubble(func(t *testing.T) {
		failed := failure("registration: connect: connection refused")
		n.silent.Store(true)
		for range 2 {
			wantError(t, n.signal(), "registration: ")
			n.signaled(failed)
		}
		if !strings.Contains(n.out.String(), "none: i-0123456789abcdef0 signaled FAILURE to stack prod at ") {
			t.Errorf("the failure is signaled again:\n%s", n.out.String())
		}
		n.register()
		for range 2 {
			must.Do(t, n.signal(), "signal the success")
			n.signaled(failed, success)
		}
		n.silent.Store(true)
		must.Do(t, n.signal(), "look for what was signaled")
		n.took(0, time.Second)
	})
}

// TestECSLog: the ECS agent answers only once it has registered; why it has not is in its log.
func TestECSLog(t *testing.T) {
	const denied = "operation error ECS: RegisterContainerInstance, https response error StatusCode: 400, " +
		"RequestID: 1, api error AccessDeniedException: User: arn:aws:sts::111122223333:assumed-role/node/i-1 " +
		"is not authorized"
	for name, c := range map[string]struct{ log, reason, id string }{
		"structured": {`level=info time=2026-11-30T10:00:00Z msg="Registering Instance with ECS"
level=error time=2026-11-30T10:00:01Z msg="Unable to register as a container instance with ECS" error="` + denied + `"
level=info time=2026-11-30T10:00:02Z msg="level=error is not this" module=agent.go
`, "ECS agent: Unable to register as a container instance with ECS: operation error ECS: ",
			"registration: AccessDeniedException: User: arn:aws:s..."},
		"json": {`{"level":"critical","time":"2026-11-30T10:00:01Z","msg":"Error",` +
			`"error":"saved cluster does not match"}
{"level":"warn","time":"2026-11-30T10:00:02Z","msg":"something else"}
`, "ECS agent: Error: saved cluster does not match", "registration: Error: saved cluster does not match"},
		"old": {"2018-03-21T13:01:15Z [ERROR] Error registering: no route\n2018-03-21T13:01:16Z [INFO] bye\n",
			"ECS agent: Error registering: no route", "registration: ECS agent: Error registering: no route"},
		"hostile": {`level=critical time=t msg="no \x1b[31m\u202e\nway"` + "\n",
			`ECS agent: no \x1b[31m\u202e\nway; see`, `registration: ECS agent: no \x1b[31m\u202e\nway`},
		"long": {"level=error time=t msg=" + strings.Repeat("long ", 1<<20) + "\nlevel=error time=t msg=\"" +
			strings.Repeat("ü", 1<<15) + "\"\n", "ECS agent: üü", ""},
		"nothing": {"level=info time=t msg=fine\n", "ECS agent not reachable: connect: connection refused", ""},
	} {
		t.Run(name, func(t *testing.T) {
			n := newLateNode(t)
			must.Do(t, os.WriteFile(n.machine.ecsLog, []byte(c.log), 0o644), "write the ECS agent's log")
			n.silent.Store(true)
			n.inBubble(func(t *testing.T) {
				err := n.signal()
				wantError(t, err, "wait for the ECS agent to register: not within 5m0s: ")
				wantError(t, err, c.reason)
				if len(err.Error()) > 2<<10 {
					t.Errorf("the error has %d bytes, want it bounded", len(err.Error()))
				}
				if c.id != "" {
					n.signaled(failure(c.id))
				}
			})
		})
	}
}

// TestNotTheECSAgent has a process listen in the ECS agent's place, which anyone can while that agent is down.
func TestNotTheECSAgent(t *testing.T) {
	n := newLateNode(t)
	must.Do(t, os.WriteFile(n.machine.ecsLog, []byte("level=error time=t msg=old\n"), 0o644), "write a log")
	n.listener(65534)
	n.inBubble(func(t *testing.T) {
		wantError(t, n.signal(), "ECS agent not reachable: uid 65534, not root, listens at 127.0.0.1:51678")
		n.signaled(failure("registration: uid 65534, not root, listens at 127.0...."))
	})
}

// TestDeadline: all of bootstrap is bounded, and the failure says by what.
func TestDeadline(t *testing.T) {
	n := newLateNode(t)
	n.until(time.Hour, errHung)
	n.inBubble(func(t *testing.T) {
		n.began = time.Now()
		err := newNode(Options{
			Target: Target{Cluster: "prod"}, Dirs: n.dirs, SignalTimeout: time.Minute, Timeout: time.Minute,
			MetadataTimeout: time.Hour, Deadline: 20 * time.Minute, Socket: "/nowhere", Services: ServicesNone,
			ECSConfig: filepath.Join(n.dirs.Config, "ecs.config"), ECSData: "/nowhere",
			Install: Install{When: InstallNever},
		}, n.machine, &n.out).run(t.Context())
		wantError(t, err,
			"metadata: get the instance identity document by IMDSv2: bootstrap is not done within 20m0s: ")
		n.took(20*time.Minute, 20*time.Minute+time.Second)
	})
}

// TestFailureInWarmPool: a failure of bootstrap in a warm pool is signaled once the instance goes into service.
func TestFailureInWarmPool(t *testing.T) {
	l := newLab(t)
	l.stack.SetStack("prod", "CREATE_IN_PROGRESS")
	l.stack.SetResource("prod", "NodesReady", "CREATE_IN_PROGRESS", true)
	l.metadata.Set(target, "Warmed:Stopped")
	l.options.Target.Stack, l.options.Target.ReadyResource = "prod", "NodesReady"
	l.systemd.units[agentUnit] = agentFailed
	l.write("bin/journalctl", "#!/bin/sh\nexit 1\n")
	t.Setenv("PATH", l.path("bin")+":"+os.Getenv("PATH"))
	l.fails("start sevagent: ")
	l.holds("etc/sevagent/signal.json", `"ready_resource": "NodesReady"`)
	if calls := l.systemd.calls; !slices.Contains(calls, "queue start sevagent-signal.service") {
		t.Errorf("systemd was asked for %q, want the signal to wait", calls)
	}
	if got := l.stack.Signals(); len(got) != 0 {
		t.Errorf("%v was signaled in the warm pool", got)
	}
	if out := l.out.String(); !strings.Contains(out, "none yet: the instance is in a warm pool, Warmed:Stopped") {
		t.Errorf("bootstrap does not say why it does not signal:\n%s", out)
	}

	signal := func() {
		t.Helper()
		must.Do(t, l.machine.signal(t.Context(), SignalOptions{
			Dirs: l.options.Dirs, Introspection: "http://127.0.0.1:1", Timeout: time.Minute, SignalTimeout: time.Minute,
		}, reportTo(&l.out)), "signal in service")
	}
	want := []simaws.Signal{failure("start sevagent: proving")}
	l.metadata.Set(target, "InService")
	for range 2 {
		signal()
		if got := l.stack.Signals(); !slices.Equal(got, want) {
			t.Errorf("the signals are %v, want %v", got, want)
		}
	}

	// Bootstrap is run again and succeeds: there is no failure to signal any more.
	l.systemd.units[agentUnit] = fakeUnit{result: "done"}
	l.succeeds()
	if target := l.read("etc/sevagent/signal.json"); strings.Contains(target, "failure") {
		t.Errorf("signal.json still has the failure:\n%s", target)
	}
}

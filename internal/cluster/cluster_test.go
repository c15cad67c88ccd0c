package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/smithy-go"

	"sevagent/internal/cluster/clustertest"
	"sevagent/internal/must"
)

// start serves a and returns an Inspector that asks it, and does not pause long between attempts.
func start(t testing.TB, a *clustertest.AWS) *Inspector {
	t.Helper()
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	return New(Config{Cluster: "prod", AnswerTimeout: 10 * time.Millisecond, AWS: aws.Config{
		Region: a.Region, BaseEndpoint: &server.URL,
		Credentials: aws.CredentialsProviderFunc(func(ctx context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "AKID", SecretAccessKey: "secret"}, nil
		}),
		Retryer: func() aws.Retryer {
			// The adaptive mode would pause for seconds after it was throttled.
			return retry.NewStandard(func(o *retry.StandardOptions) { o.MaxAttempts, o.MaxBackoff = attempts, time.Millisecond })
		},
	}})
}

func inspect(t testing.TB, a *clustertest.AWS) *Snapshot {
	t.Helper()
	return must.Get(start(t, a).Inspect(t.Context()))(t, "inspect the cluster")
}

// outcomes lists the checks that did not pass.
func outcomes(checks []Check) []string {
	var out []string
	for _, c := range checks {
		if c.Status != Pass {
			out = append(out, fmt.Sprintf("%s %s", c.ID, c.Status))
			if c.Advice == "" {
				out = append(out, c.ID+" has no advice")
			}
		}
	}
	return out
}

// TestBroken breaks one property after another of a cluster in AWS, and expects exactly its check to say so.
func TestBroken(t *testing.T) {
	n := func(change func(n *clustertest.Node)) func(*clustertest.AWS) {
		return func(a *clustertest.AWS) { change(a.Nodes[1]) }
	}
	type AWS = clustertest.AWS
	type Node = clustertest.Node
	for _, test := range []struct {
		name   string
		change func(*AWS)
		want   []string
		detail string
	}{
		{"nothing", func(a *AWS) {}, nil, ""},
		{"latest version", func(a *AWS) { a.Spec = "$Latest" }, nil, ""},
		{"cluster gone", func(a *AWS) { a.Cluster = "prod2" },
			[]string{"cluster-active fail"}, "there is no cluster prod in us-east-2"},
		{"cluster deleted", func(a *AWS) { a.Status = "INACTIVE" }, []string{"cluster-active fail"}, "INACTIVE"},
		{"cluster deprovisioning", func(a *AWS) { a.Status = "DEPROVISIONING" },
			[]string{"cluster-active fail"}, "DEPROVISIONING"},
		{"no insights", func(a *AWS) { a.Insights = "" }, []string{"container-insights warn"}, "not set"},
		{"fargate", func(a *AWS) { a.ExtraProviders = []string{"FARGATE"} },
			[]string{"capacity-providers warn"}, "outside the SEV-SNP nodes"},
		{"provider gone", func(a *AWS) { a.ExtraProviders = []string{"gone"} },
			[]string{"capacity-providers fail"}, "gone: the cluster names it"},
		{"no provider", func(a *AWS) { a.NoProvider = true }, []string{
			"capacity-providers fail", "auto-scaling-group unknown", "launch-template unknown",
			"template-version unknown", "scale-in-protection unknown", "membership unknown",
		}, "no capacity provider"},
		{"stopped", n(func(n *Node) { n.State = "stopped" }), []string{"nodes-running fail"}, "but stopped"},
		{"unknown to EC2", n(func(n *Node) { n.Unknown = true }), []string{"nodes-running fail"}, "no such instance"},
		{"type", n(func(n *Node) { n.Type = "m5.large" }), []string{"instance-types fail"}, "m5.large has no SEV-SNP"},
		{"template's type", func(a *AWS) { a.Versions[2].Type = "m5.large" },
			[]string{"instance-types fail"}, "it launches m5.large"},
		{"snp", n(func(n *Node) { n.SNP = "disabled" }), []string{"snp-enabled fail"}, "AmdSevSnp is disabled"},
		{"snp not set", n(func(n *Node) { n.SNP = "" }), []string{"snp-enabled fail"}, "not set"},
		{"boot mode", n(func(n *Node) { n.BootMode = "legacy-bios" }), []string{"boot-mode fail"}, "legacy-bios"},
		{"agent", n(func(n *Node) { n.Disconnected = true }), []string{"agent-connected fail"}, "not connected"},
		{"draining", n(func(n *Node) { n.Status = "DRAINING" }), []string{"agent-connected warn"}, "draining"},
		{"registration failed", n(func(n *Node) { n.Status = "REGISTRATION_FAILED" }),
			[]string{"agent-connected fail"}, "REGISTRATION_FAILED"},
		{"unhealthy", n(func(n *Node) { n.Health = "Unhealthy" }), []string{"auto-scaling-group fail"}, "1 of its 3"},
		{"too few", func(a *AWS) { a.Desired = 5 },
			[]string{"auto-scaling-group warn"}, "3 instances in service, 5 desired"},
		{"too many", func(a *AWS) { a.Desired = 2; a.Nodes[0].Unprotected = true }, []string{
			"auto-scaling-group warn", "scale-in-protection fail"},
			"3 instances in service, 2 desired; protected from scale-in: i-00000000000000002, i-00000000000000003"},
		{"type without SNP", func(a *AWS) { a.Versions[2].Type = "m5.large" },
			[]string{"instance-types fail"}, "m5.large, which has no SEV-SNP in us-east-2"},
		{"type not offered", func(a *AWS) { a.Versions[2].Type = "m7a.large" },
			[]string{"instance-types fail"}, "m7a.large, which has SEV-SNP, but is not offered in us-east-2"},
		{"type that does not exist", func(a *AWS) { a.Versions[2].Type = "m6a.lage" },
			[]string{"instance-types fail"}, "m6a.lage, which does not exist"},
		{"type of a machine, unknown", n(func(n *Node) { n.Type = "m99.large" }),
			[]string{"instance-types fail"}, "m99.large has no SEV-SNP in us-east-2"},
		{"group gone", func(a *AWS) {
			a.GroupMissing = true
		},
			[]string{"auto-scaling-group fail", "launch-template unknown", "template-version unknown",
				"scale-in-protection unknown", "membership unknown"}, "does not exist"},
		{"template's snp", func(a *AWS) { a.Versions[2].SNP = "" },
			[]string{"launch-template fail"}, "AmdSevSnp is not set"},
		{"template's default", func(a *AWS) { a.Spec = "9" },
			[]string{"launch-template fail", "template-version fail"}, "Could not find"},
		{"region", func(a *AWS) { a.Supported = nil },
			[]string{"instance-types unknown", "region fail"}, "no instance type in us-east-2"},
		{"image", func(a *AWS) { a.Images["ami-00000000000000002"] = "" }, []string{"ami-boot-mode fail"}, "legacy BIOS"},
		{"image gone", func(a *AWS) { a.Images = nil }, []string{"ami-boot-mode fail"}, "no new node can start"},
		{"old image gone", n(func(n *Node) { n.Image = "ami-0000000000000000f" }),
			[]string{"ami-boot-mode warn"}, "nodes run it"},
		{"NitroTPM of the AMI", func(a *AWS) { a.TPM = map[string]string{"ami-00000000000000002": "v2.0"} },
			[]string{"nitrotpm warn"}, "it has no NitroTPM"},
		{"NitroTPM of one node", func(a *AWS) { a.TPM = map[string]string{a.Nodes[0].ID: "v2.0"} },
			[]string{"nitrotpm warn"}, "new nodes get no NitroTPM"},
		{"version", n(func(n *Node) { n.Version = "1" }),
			[]string{"template-version fail"}, "version 1, the group has lt-00000000000000001 version 2"},
		{"imds", n(func(n *Node) { n.Tokens = "optional" }), []string{"imdsv2 fail"}, "HttpTokens is optional"},
		{"template's imds", func(a *AWS) { a.Versions[2].Tokens = "optional" }, []string{"imdsv2 fail"}, "new nodes"},
		{"volume", n(func(n *Node) { n.Unencrypted = true }), []string{"root-encrypted fail"}, "not encrypted"},
		{"no volume", n(func(n *Node) { n.NoRootVolume = true }), []string{"root-encrypted unknown"}, "does not say"},
		{"protection without scaling", func(a *AWS) { a.ManagedScaling = false },
			[]string{"scale-in-protection fail"}, "no effect"},
		{"group does not protect", func(a *AWS) { a.Protects = false },
			[]string{"scale-in-protection fail"}, "does not protect"},
		{"exposed node", n(func(n *Node) { n.Unprotected = true }), []string{"scale-in-protection fail"}, "1 instances"},
		{"protected for ever", func(a *AWS) { a.Protection = false },
			[]string{"scale-in-protection warn"}, "nobody lifts"},
		{"not in the cluster", n(func(n *Node) { n.InCluster = false }),
			[]string{"membership fail"}, "but not in the cluster"},
		{"not yet in the cluster", n(func(n *Node) { n.InCluster, n.Launched = false, time.Now() }),
			[]string{"membership warn"}, "not joined the cluster yet"},
		{"not in the group", func(a *AWS) { a.Nodes[1].InGroup, a.Desired = false, 2 },
			[]string{"membership fail"}, "in no group"},
		{"joined before the association", n(func(n *Node) { n.Provider = "" }),
			[]string{"membership fail"}, "places nothing on it"},
		{"not attested", n(func(n *Node) { n.Attested = "false" }), []string{"attested fail"}, "is false"},
		{"no attribute", n(func(n *Node) { n.Attested, n.Measurement, n.TCB = "", "", "" }),
			[]string{"attested fail"}, "is missing"},
		{"no measurement", n(func(n *Node) { n.Measurement = "" }),
			[]string{"attested fail"}, "sevagent.measurement is missing"},
		{"simulated", n(func(n *Node) { n.Attested = "simulated" }), []string{"attested fail"}, "not AMD's"},
		{"measurement", n(func(n *Node) { n.Measurement = strings.Repeat("cd", 48) }),
			[]string{"attested-equal fail"}, "sevagent.measurement is cdcd"},
		{"other type, other measurement", n(func(n *Node) {
			n.Measurement, n.Type = strings.Repeat("cd", 48), "m6a.xlarge"
		}), nil, ""},
		{"tcb", n(func(n *Node) { n.TCB = "3.0.20.200" }), []string{"attested-equal warn"}, "sevagent.tcb is 3.0.20.200"},
		{"no nodes yet", func(a *AWS) { a.Nodes = nil },
			[]string{"nodes-running fail", "auto-scaling-group warn"}, "no instance has joined"},
		{"no nodes wanted", func(a *AWS) { a.Nodes, a.Desired = nil, 0 }, []string{"nodes-running warn"}, "wants none"},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := clustertest.New(3)
			test.change(a)
			checks := Evaluate(inspect(t, a))
			if got := outcomes(checks); !slices.Equal(got, test.want) {
				t.Errorf("checks that did not pass: %q, want %q", got, test.want)
			}
			says := func(c Check) bool { return c.Status != Pass && strings.Contains(c.Detail, test.detail) }
			if test.want != nil && !slices.ContainsFunc(checks, says) {
				t.Errorf("no check says %q: %+v", test.detail, checks)
			}
		})
	}
}

// TestDenied lets one call after another fail. What needs it is unknown, what does not goes on.
func TestDenied(t *testing.T) {
	group := []string{"auto-scaling-group", "launch-template", "template-version", "scale-in-protection", "membership"}
	// The group shows its instances; which others there may be is not known.
	nodes := []string{"nodes-running", "agent-connected", "membership", "attested", "attested-equal",
		"instance-types", "snp-enabled", "boot-mode", "ami-boot-mode", "nitrotpm", "imdsv2", "root-encrypted"}
	for api, want := range map[string][]string{
		apiClusters:   append([]string{"cluster-active", "container-insights", "capacity-providers"}, group...),
		apiProviders:  append([]string{"capacity-providers"}, group...),
		apiGroups:     group,
		apiTemplates:  {"launch-template", "template-version"},
		apiContainers: nodes,
		apiContainer:  nodes,
		apiInstances: {"nodes-running", "instance-types", "snp-enabled", "boot-mode", "ami-boot-mode", "nitrotpm", "imdsv2",
			"root-encrypted"},
		apiVolumes: {"root-encrypted"},
		apiImages:  {"ami-boot-mode", "nitrotpm"},
		apiTypes:   {"instance-types", "region"},
	} {
		t.Run(api, func(t *testing.T) {
			a := clustertest.New(3)
			a.Deny[api] = "AccessDeniedException"
			checks := Evaluate(inspect(t, a))
			var got []string
			for _, c := range checks {
				switch {
				case c.Status == Unknown:
					got = append(got, c.ID)
					if !strings.Contains(c.Detail, api+" is denied to the role viewer (AccessDeniedException)") ||
						c.Advice != "Grant "+api+" to the caller, the role viewer." || c.Call != api {
						t.Errorf("%s says %q and advises %q, want %s in both", c.ID, c.Detail, c.Advice, api)
					}
				case c.Status != Pass:
					t.Errorf("%s is %s: %s", c.ID, c.Status, c.Detail)
				}
			}
			slices.Sort(got)
			if want := slices.Sorted(slices.Values(want)); !slices.Equal(got, want) {
				t.Errorf("unknown are %q, want %q", got, want)
			}
		})
	}
}

// TestCaller: if a denial does not name the caller, STS does, and if that does not either, nothing is lost.
func TestCaller(t *testing.T) {
	a := clustertest.New(1)
	a.Nameless, a.Deny[apiVolumes] = true, "UnauthorizedOperation"
	if s := inspect(t, a); s.Caller != a.Caller || s.Calls.ByAPI[apiCaller] != 1 {
		t.Errorf("the caller is %q, by the calls %v; want %q", s.Caller, s.Calls.ByAPI, a.Caller)
	}
	a.Deny[apiCaller] = "AccessDenied"
	s := inspect(t, a)
	i := slices.IndexFunc(Evaluate(s), func(c Check) bool { return c.Status == Unknown })
	if advice := Evaluate(s)[i].Advice; s.Caller != "" || !strings.Contains(advice, "to the caller; see") {
		t.Errorf("of the caller %q it is advised %q", s.Caller, advice)
	}
	a = clustertest.New(1)
	if s := inspect(t, a); s.Calls.ByAPI[apiCaller] != 0 {
		t.Error("nothing was denied, and STS was asked")
	}
}

// TestStack: the stack's name is in its tags, and its state is asked for; a denial of that changes no check.
func TestStack(t *testing.T) {
	a := clustertest.New(1)
	a.Stack, a.StackStatus = "web", "DELETE_FAILED"
	if s := inspect(t, a); s.Stack != (Stack{"web", "DELETE_FAILED"}) {
		t.Errorf("the stack is %v, want web, DELETE_FAILED", s.Stack)
	}
	a.Deny["cloudformation:DescribeStacks"] = "AccessDenied"
	s := inspect(t, a)
	if got := outcomes(Evaluate(s)); s.Stack != (Stack{Name: "web"}) || got != nil {
		t.Errorf("the stack is %v, and did not pass: %q; want web, and nothing", s.Stack, got)
	}
}

// TestRegion: a region that does not exist answers with no answer of AWS's, or not at all.
func TestRegion(t *testing.T) {
	for _, test := range []struct {
		region, deny string
		want         RegionError
	}{
		{"us-eats-2", "", RegionError{Region: "us-eats-2", Near: "us-east-2"}},
		{"us-east-9", "", RegionError{Region: "us-east-9", Near: "us-east-1"}},
		{"mars-central-1", "", RegionError{Region: "mars-central-1"}},
		{"eu-south-2", "", RegionError{Region: "eu-south-2", Disabled: true}},
		{"us-eats-2", "UnauthorizedOperation", RegionError{Region: "us-eats-2"}},
		{"us-west-2", "", RegionError{}},
		{"us-east-9", "UnauthorizedOperation", RegionError{}},
	} {
		t.Run(test.region+" "+test.deny, func(t *testing.T) {
			a := clustertest.New(1)
			a.NoRegion = test.region
			if test.deny != "" {
				a.Deny[apiRegions] = test.deny
			}
			cfg := start(t, a).cfg
			cfg.AWS.Region = test.region
			_, err := New(cfg).Inspect(t.Context())
			got, ok := errors.AsType[*RegionError](err)
			if !ok {
				got = new(RegionError)
			}
			if *got != test.want || err == nil || strings.Contains(err.Error(), "invalid character") {
				t.Errorf("Inspect returns %v, want %+v", err, test.want)
			}
		})
	}
}

// TestNoIdentity: nothing else would be answered either.
func TestNoIdentity(t *testing.T) {
	a := clustertest.New(1)
	a.Deny[apiClusters] = "UnrecognizedClientException"
	_, err := start(t, a).Inspect(t.Context())
	if api, ok := errors.AsType[smithy.APIError](err); !ok || api.ErrorCode() != "UnrecognizedClientException" {
		t.Errorf("Inspect returns %v, want UnrecognizedClientException", err)
	}
}

// TestThrottled: throttling costs time and calls, not answers.
func TestThrottled(t *testing.T) {
	a := clustertest.New(3)
	a.Throttle = map[string]int{apiClusters: 1, apiContainers: 2, apiInstances: 2}
	s := inspect(t, a)
	if got := outcomes(Evaluate(s)); got != nil {
		t.Errorf("did not pass: %q", got)
	}
	total, by := a.Calls()
	if s.Calls.Total != total || !maps.Equal(s.Calls.ByAPI, by) || by[apiContainers] != 3 {
		t.Errorf("counted %v, AWS saw %d: %v", s.Calls, total, by)
	}
}

// TestThousand holds the base checks to their promise: at most 60 calls for 1,000 nodes.
func TestThousand(t *testing.T) {
	a := clustertest.New(1000)
	a.Nodes[998].SNP = ""
	s := inspect(t, a)
	checks := Evaluate(s)
	if got := outcomes(checks); !slices.Equal(got, []string{"snp-enabled fail"}) {
		t.Errorf("did not pass: %q", got)
	}
	if len(s.Nodes) != 1000 || s.Calls.Total > 60 {
		t.Errorf("%d nodes by %d calls: %v", len(s.Nodes), s.Calls.Total, s.Calls.ByAPI)
	}
	t.Logf("%d calls: %v", s.Calls.Total, s.Calls.ByAPI)
}

// BenchmarkThousand says what the base checks of 1,000 nodes cost, without the network.
func BenchmarkThousand(b *testing.B) {
	a := clustertest.New(1000)
	calls := 0
	for b.Loop() {
		s := inspect(b, a)
		Evaluate(s)
		calls = s.Calls.Total
	}
	b.ReportMetric(float64(calls), "calls")
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/verify")
}

// TestCanceled: an operator who interrupts gets no report.
func TestCanceled(t *testing.T) {
	in := start(t, clustertest.New(1))
	ctx, cancel := context.WithCancel(t.Context())
	in.cfg.Progress = func(string, int) { cancel() }
	if s, err := in.Inspect(ctx); err == nil {
		t.Errorf("Inspect returns a Snapshot of %d nodes", len(s.Nodes))
	}
}

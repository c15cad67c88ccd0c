package cluster

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

var good = strings.Repeat("ab", 48)

// healthySnapshot is a cluster of two nodes in which all is well.
func healthySnapshot() *Snapshot {
	s := &Snapshot{
		Name: "prod", Region: "us-east-2", Time: time.Date(2026, 11, 25, 9, 0, 0, 0, time.UTC),
		Cluster: &Cluster{
			Name: "prod", ARN: "arn:aws:ecs:us-east-2:123456789012:cluster/prod", Status: "ACTIVE", Insights: "enhanced",
			Providers: []string{"prod-snp"},
		},
		Providers: []Provider{{
			Name: "prod-snp", Status: "ACTIVE", GroupARN: "arn", Group: "g", ManagedScaling: true, ManagedProtection: true,
		}},
		Groups: []Group{{Name: "g", Min: 1, Desired: 2, Max: 3, ProtectsNew: true, GracePeriod: 5 * time.Minute,
			Templates: []Template{{
				ID: "lt-1", Spec: "$Latest", Version: 3, ImageID: "ami-1", InstanceType: "m6a.large", SNP: "enabled",
				HTTPTokens: "required",
			}}}},
		Images:    map[string]Image{"ami-1": {BootMode: "uefi"}},
		Supported: []string{"m6a.large"},
		Failures:  make(map[string]error),
	}
	for _, id := range []string{"i-1", "i-2"} {
		s.Nodes = append(s.Nodes, Node{ID: id,
			Container: &Container{
				ARN:    "arn:aws:ecs:us-east-2:123456789012:container-instance/prod/c" + id,
				Status: "ACTIVE", Provider: "prod-snp", Connected: true,
				Attributes: map[string]string{AttrAttested: "true", AttrMeasurement: good, AttrTCB: "4.0.29.222"},
			},
			Member: &Member{
				Group: "g", Lifecycle: "InService", Health: "Healthy", TemplateID: "lt-1", TemplateVersion: "3", Protected: true,
			},
			Instance: &Instance{
				Type: "m6a.large", State: "running", ImageID: "ami-1", SNP: "enabled", BootMode: "uefi", HTTPTokens: "required",
				RootVolume: "vol-1", RootKnown: true, RootEncrypted: true, Launched: s.Time.Add(-time.Hour)},
		})
	}
	return s
}

// TestChecks has what AWS can say and clustertest does not, and the edges of each check.
func TestChecks(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(s *Snapshot)
		want   []string
	}{
		{"nothing", func(s *Snapshot) {}, nil},
		{"insights off", func(s *Snapshot) { s.Cluster.Insights = "disabled" }, []string{"container-insights warn"}},
		{"provider inactive", func(s *Snapshot) { s.Providers[0].Status = "INACTIVE" },
			[]string{"capacity-providers fail"}},
		{"provider of another kind", func(s *Snapshot) {
			s.Cluster.Providers = append(s.Cluster.Providers, "managed")
			s.Providers = append(s.Providers, Provider{Name: "managed", Status: "ACTIVE"})
		}, []string{"capacity-providers warn"}},
		{"terminating member", func(s *Snapshot) {
			n := &s.Nodes[0]
			n.Member.Lifecycle, n.Container, n.Instance.State, s.Groups[0].Desired = "Terminating", nil, "shutting-down", 1
		}, nil},
		{"member just launched", func(s *Snapshot) {
			s.Nodes[0].Member.Lifecycle, s.Nodes[0].Container, s.Groups[0].Desired = "Pending", nil, 1
		}, nil},
		{"instance not known to EC2, in the group alone", func(s *Snapshot) {
			s.Nodes[0].Instance, s.Nodes[0].Container = nil, nil
		}, []string{"membership fail"}},
		{"external instance", func(s *Snapshot) {
			s.Nodes = append(s.Nodes, Node{ID: "mi-1", Container: &Container{
				Status: "ACTIVE", Connected: true, Attributes: s.Nodes[0].Container.Attributes,
			}})
		}, []string{"nodes-running fail", "membership fail"}},
		{"boot mode not said", func(s *Snapshot) { s.Nodes[0].Instance.BootMode = "" }, []string{"boot-mode fail"}},
		{"boot mode preferred", func(s *Snapshot) { s.Nodes[0].Instance.BootMode = "uefi-preferred" }, nil},
		{"NitroTPM everywhere", func(s *Snapshot) {
			s.Images["ami-1"] = Image{BootMode: "uefi", TPM: "v2.0"}
			s.Nodes[0].Instance.TPM, s.Nodes[1].Instance.TPM = "v2.0", "v2.0"
		}, nil},
		{"NitroTPM on one node", func(s *Snapshot) { s.Nodes[0].Instance.TPM = "v2.0" }, []string{"nitrotpm warn"}},
		{"nodes older than their AMI's NitroTPM", func(s *Snapshot) {
			s.Images["ami-1"] = Image{BootMode: "uefi", TPM: "v2.0"}
		}, []string{"nitrotpm warn"}},
		{"AMI without the nodes' NitroTPM", func(s *Snapshot) {
			s.Nodes[0].Instance.TPM, s.Nodes[1].Instance.TPM = "v2.0", "v2.0"
		}, []string{"nitrotpm warn"}},
		{"launch suspended", func(s *Snapshot) { s.Groups[0].SuspendedLaunches = true },
			[]string{"auto-scaling-group warn"}},
		{"group being deleted", func(s *Snapshot) { s.Groups[0].Status = "Delete in progress" },
			[]string{"auto-scaling-group fail"}},
		{"launch configuration", func(s *Snapshot) {
			s.Groups[0].Templates, s.Groups[0].LaunchConfiguration = nil, "old"
		}, []string{"launch-template fail"}},
		{"mixed instances", func(s *Snapshot) { s.Groups[0].InstanceTypes = []string{"m6a.large", "m7i.large"} },
			[]string{"instance-types fail"}},
		{"template says no type", func(s *Snapshot) { s.Groups[0].Templates[0].InstanceType = "" }, nil},
		{"template says no tokens", func(s *Snapshot) { s.Groups[0].Templates[0].HTTPTokens = "" }, nil},
		{"node of another template", func(s *Snapshot) { s.Nodes[0].Member.TemplateID = "lt-2" },
			[]string{"template-version fail"}},
		{"node of no template", func(s *Snapshot) {
			s.Nodes[0].Member.TemplateID, s.Nodes[0].Member.TemplateVersion = "", ""
		}, []string{"template-version fail"}},
		{"all protection off", func(s *Snapshot) {
			s.Providers[0].ManagedScaling, s.Providers[0].ManagedProtection, s.Groups[0].ProtectsNew = false, false, false
			s.Nodes[0].Member.Protected, s.Nodes[1].Member.Protected = false, false
		}, nil},
		{"protected by choice, without managed scaling", func(s *Snapshot) {
			s.Providers[0].ManagedScaling, s.Providers[0].ManagedProtection = false, false
		}, nil},
		{"volume not said", func(s *Snapshot) { s.Nodes[0].Instance.RootKnown = false },
			[]string{"root-encrypted unknown"}},
		{"simulated and allowed", func(s *Snapshot) {
			s.AllowCustomRoots = true
			s.Nodes[0].Container.Attributes[AttrAttested] = "simulated"
		}, []string{"attested warn"}},
		{"measurement that is none", func(s *Snapshot) {
			for _, n := range s.Nodes {
				n.Container.Attributes[AttrMeasurement] = "abc"
			}
		}, []string{"attested fail"}},
		{"no attributes at all", func(s *Snapshot) {
			s.Nodes[0].Container.Attributes, s.Nodes[1].Container.Attributes = nil, nil
		}, []string{"attested fail", "attested-equal unknown"}},
		{"no TCB", func(s *Snapshot) { delete(s.Nodes[0].Container.Attributes, AttrTCB) }, []string{"attested fail"}},
		{"all fails at once", func(s *Snapshot) { s.Nodes[0].Instance.SNP, s.Nodes[1].Instance.SNP = "", "disabled" },
			[]string{"snp-enabled fail"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := healthySnapshot()
			test.change(s)
			if got := outcomes(Evaluate(s)); !slices.Equal(got, test.want) {
				t.Errorf("checks that did not pass: %q, want %q", got, test.want)
			}
		})
	}
}

// TestTable: every check has a name that is its own, fits the help text, and can advise on what it finds.
func TestTable(t *testing.T) {
	name := regexp.MustCompile(`^[a-z][a-z0-9-]{0,18}$`)
	seen := make(map[string]bool)
	for _, p := range checks {
		if !name.MatchString(p.id) || seen[p.id] || p.title == "" || len(p.title) > 80-len("  ")-19-len("  ") {
			t.Errorf("check %q, %q: want a short name of its own and a title that fits 80 columns", p.id, p.title)
		}
		if seen[p.id] = true; p.find == nil || p.advice != "" && p.things == "" {
			t.Errorf("check %s lacks its function, or has advice and no things", p.id)
		}
	}
}

// TestSummarize: the worst finding leads, with the number of findings.
func TestSummarize(t *testing.T) {
	var c Check
	c.add(Warn, "b", "w")
	c.add(Fail, "c", "f")
	c.add(Unknown, "a", "u")
	c.of = 7
	(&property{things: "things", advice: "do"}).summarize(new(Snapshot), &c)
	want := "3 of 7 things, such as c: f"
	if c.Status != Fail || c.Detail != want || c.Advice != "do" || c.Resources[1].ID != "a" {
		t.Errorf("%+v, want fail with %q", c, want)
	}
}

func TestDistance(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"prod", "Prod", 0}, {"prod", "prd", 1}, {"", "abc", 3}, {"kitten", "sitting", 3}} {
		if got := distance(test.a, test.b); got != test.want {
			t.Errorf("distance(%q, %q) = %d, want %d", test.a, test.b, got, test.want)
		}
	}
}

// TestAdvice: advice has the names of what was found, and fits the finding and the state of the stack.
func TestAdvice(t *testing.T) {
	const terminate = "'aws ec2 terminate-instances --region us-east-2 --instance-ids i-1'"
	for _, test := range []struct {
		name, check string
		change      func(s *Snapshot)
		want        []string
		not         string
	}{
		{"a node to replace", "snp-enabled", func(s *Snapshot) { s.Nodes[0].Instance.SNP = "" }, []string{
			"'aws ecs update-container-instances-state --cluster prod --region us-east-2 --status DRAINING " +
				"--container-instances ci-1'", terminate}, "i-2"},
		{"outside of its provider", "membership", func(s *Snapshot) { s.Nodes[0].Container.Provider = "" },
			[]string{"registered without", terminate}, "boot gate"},
		{"in no group", "membership", func(s *Snapshot) { s.Nodes[0].Member = nil },
			[]string{"not made by the stack", terminate}, "boot gate"},
		{"not joined", "membership", func(s *Snapshot) { s.Nodes[0].Container, s.Nodes[1].Container = nil, nil },
			[]string{"boot gate", "--instance-id i-1'"}, "i-2"},
		{"no nodes wanted", "nodes-running", func(s *Snapshot) { s.Nodes, s.Groups[0].Desired = nil, 0 },
			[]string{"set-desired-capacity --auto-scaling-group-name g --region us-east-2"}, "journalctl"},
		{"no nodes launched", "nodes-running", func(s *Snapshot) { s.Nodes = nil },
			[]string{"describe-scaling-activities --auto-scaling-group-name g --region us-east-2"}, "journalctl"},
		{"no nodes joined", "nodes-running", func(s *Snapshot) { s.Nodes[0].Container, s.Nodes[1].Container = nil, nil },
			[]string{"journalctl -u sevagent"}, "describe-scaling-activities"},
		{"machine gone", "nodes-running", func(s *Snapshot) { s.Nodes[0].Instance = nil },
			[]string{"--force --container-instance ci-1'"}, "journalctl"},
		{"more than wanted", "auto-scaling-group", func(s *Snapshot) { s.Groups[0].Desired = 1 },
			[]string{"--no-protected-from-scale-in --instance-ids i-1'"}, "launches fail"},
		{"group of another kind of name", "auto-scaling-group",
			func(s *Snapshot) {
				s.Groups[0].Name, s.Groups[0].SuspendedLaunches = `my "g" $x`, true
				s.Providers[0].Group = s.Groups[0].Name
			}, []string{`--auto-scaling-group-name "my \"g\" \$x" --region`}, ""},
		{"exposed", "scale-in-protection", func(s *Snapshot) { s.Nodes[1].Member.Protected = false },
			[]string{"--protected-from-scale-in --auto-scaling-group-name g --region us-east-2 --instance-ids i-2'"}, "i-1"},
		{"tokens", "imdsv2", func(s *Snapshot) { s.Nodes[1].Instance.HTTPTokens = "optional" },
			[]string{"--instance-id i-2'"}, "eploy"},
		{"fargate", "capacity-providers", func(s *Snapshot) { s.Cluster.Providers = []string{"FARGATE", "prod-snp"} },
			[]string{"put-cluster-capacity-providers --cluster prod --region us-east-2 --capacity-providers prod-snp "}, ""},

		{"no stack", "launch-template", noSNP(""), []string{"Deploy the stack again."}, "cloudformation"},
		{"stack", "launch-template", noSNP("UPDATE_COMPLETE"), []string{"Deploy the stack web again."}, "delete-stack"},
		{"stack not asked", "launch-template", noSNP("-"), []string{"Deploy the stack web again."}, ""},
		{"stack rolled back", "launch-template", noSNP("UPDATE_ROLLBACK_COMPLETE"),
			[]string{"Deploy the stack web again."}, ""},
		{"deletion failed", "launch-template", noSNP("DELETE_FAILED"),
			[]string{"is DELETE_FAILED", "'aws cloudformation delete-stack --stack-name web --region us-east-2'"},
			"Deploy the stack web again"},
		{"rollback failed", "launch-template", noSNP("UPDATE_ROLLBACK_FAILED"),
			[]string{"continue-update-rollback --stack-name web"}, "Deploy the stack web again"},
		{"update failed", "launch-template", noSNP("UPDATE_FAILED"), []string{"rollback-stack --stack-name web"}, ""},
		{"creation rolled back", "launch-template", noSNP("ROLLBACK_COMPLETE"),
			[]string{"can only be deleted", "delete-stack"}, "Deploy the stack web again"},
		{"being rolled back", "launch-template", noSNP("ROLLBACK_IN_PROGRESS"), []string{"Wait until"}, "delete-stack"},
		{"being updated", "launch-template", noSNP("UPDATE_IN_PROGRESS"), []string{"Wait until"}, "Deploy the stack"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := healthySnapshot()
			test.change(s)
			checks := Evaluate(s)
			c := checks[slices.IndexFunc(checks, func(c Check) bool { return c.ID == test.check })]
			for _, want := range test.want {
				if !strings.Contains(c.Advice, want) {
					t.Errorf("%s (%s: %s) advises %q, want %q in it", c.ID, c.Status, c.Detail, c.Advice, want)
				}
			}
			if test.not != "" && strings.Contains(c.Advice, test.not) || strings.Contains(c.Advice, "{") &&
				!strings.Contains(c.Advice, "{AmdSevSnp") {
				t.Errorf("%s advises %q, which must not have %q in it, nor a placeholder", c.ID, c.Advice, test.not)
			}
		})
	}
}

// noSNP breaks the launch template of a cluster whose stack, web, is in a state.
func noSNP(status string) func(*Snapshot) {
	return func(s *Snapshot) {
		s.Groups[0].Templates[0].SNP = ""
		switch status {
		case "":
		case "-":
			s.Stack = Stack{Name: "web"}
		default:
			s.Stack = Stack{Name: "web", Status: status}
		}
	}
}

func TestWho(t *testing.T) {
	for arn, want := range map[string]string{
		"": "the caller",
		"arn:aws:sts::123456789012:assumed-role/viewer/someone": "the role viewer",
		"arn:aws-cn:iam::123456789012:user/division/bob":        "the user bob",
		"arn:aws:iam::123456789012:root":                        "arn:aws:iam::123456789012:root",
	} {
		if got := (&Snapshot{Caller: arn}).who(); got != want {
			t.Errorf("the caller %q is %q, want %q", arn, got, want)
		}
	}
}

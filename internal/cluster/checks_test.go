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
		Cluster:   &Cluster{Name: "prod", ARN: "arn:aws:ecs:us-east-2:123456789012:cluster/prod", Status: "ACTIVE", Insights: "enhanced", Providers: []string{"prod-snp"}},
		Providers: []Provider{{Name: "prod-snp", Status: "ACTIVE", GroupARN: "arn", Group: "g", ManagedScaling: true, ManagedProtection: true}},
		Groups: []Group{{Name: "g", Min: 1, Desired: 2, Max: 3, ProtectsNew: true, GracePeriod: 5 * time.Minute,
			Templates: []Template{{ID: "lt-1", Spec: "$Latest", Version: 3, ImageID: "ami-1", InstanceType: "m6a.large", SNP: "enabled", HTTPTokens: "required"}}}},
		Images:    map[string]Image{"ami-1": {BootMode: "uefi"}},
		Supported: []string{"m6a.large"},
		Failures:  make(map[string]error),
	}
	for _, id := range []string{"i-1", "i-2"} {
		s.Nodes = append(s.Nodes, Node{ID: id,
			Container: &Container{Status: "ACTIVE", Provider: "prod-snp", Connected: true, Attributes: map[string]string{AttrAttested: "true", AttrMeasurement: good, AttrTCB: "4.0.29.222"}},
			Member:    &Member{Group: "g", Lifecycle: "InService", Health: "Healthy", TemplateID: "lt-1", TemplateVersion: "3", Protected: true},
			Instance: &Instance{Type: "m6a.large", State: "running", ImageID: "ami-1", SNP: "enabled", BootMode: "uefi", HTTPTokens: "required",
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
		{"provider inactive", func(s *Snapshot) { s.Providers[0].Status = "INACTIVE" }, []string{"capacity-providers fail"}},
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
		{"instance not known to EC2, in the group alone", func(s *Snapshot) { s.Nodes[0].Instance, s.Nodes[0].Container = nil, nil }, []string{"membership fail"}},
		{"external instance", func(s *Snapshot) {
			s.Nodes = append(s.Nodes, Node{ID: "mi-1", Container: &Container{Status: "ACTIVE", Connected: true, Attributes: s.Nodes[0].Container.Attributes}})
		}, []string{"nodes-running fail", "membership fail"}},
		{"boot mode not said", func(s *Snapshot) { s.Nodes[0].Instance.BootMode = "" }, []string{"boot-mode fail"}},
		{"boot mode preferred", func(s *Snapshot) { s.Nodes[0].Instance.BootMode = "uefi-preferred" }, nil},
		{"launch suspended", func(s *Snapshot) { s.Groups[0].SuspendedLaunches = true }, []string{"auto-scaling-group warn"}},
		{"group being deleted", func(s *Snapshot) { s.Groups[0].Status = "Delete in progress" }, []string{"auto-scaling-group fail"}},
		{"launch configuration", func(s *Snapshot) {
			s.Groups[0].Templates, s.Groups[0].LaunchConfiguration = nil, "old"
		}, []string{"launch-template fail"}},
		{"mixed instances", func(s *Snapshot) { s.Groups[0].InstanceTypes = []string{"m6a.large", "m7i.large"} }, []string{"instance-types fail"}},
		{"template says no type", func(s *Snapshot) { s.Groups[0].Templates[0].InstanceType = "" }, nil},
		{"template says no tokens", func(s *Snapshot) { s.Groups[0].Templates[0].HTTPTokens = "" }, nil},
		{"node of another template", func(s *Snapshot) { s.Nodes[0].Member.TemplateID = "lt-2" }, []string{"template-version fail"}},
		{"node of no template", func(s *Snapshot) { s.Nodes[0].Member.TemplateID, s.Nodes[0].Member.TemplateVersion = "", "" }, []string{"template-version fail"}},
		{"all protection off", func(s *Snapshot) {
			s.Providers[0].ManagedScaling, s.Providers[0].ManagedProtection, s.Groups[0].ProtectsNew = false, false, false
			s.Nodes[0].Member.Protected, s.Nodes[1].Member.Protected = false, false
		}, nil},
		{"protected by choice, without managed scaling", func(s *Snapshot) { s.Providers[0].ManagedScaling, s.Providers[0].ManagedProtection = false, false }, nil},
		{"volume not said", func(s *Snapshot) { s.Nodes[0].Instance.RootKnown = false }, []string{"root-encrypted unknown"}},
		{"simulated and allowed", func(s *Snapshot) {
			s.AllowCustomRoots = true
			s.Nodes[0].Container.Attributes = map[string]string{AttrAttested: "simulated", AttrMeasurement: good, AttrTCB: "4.0.29.222"}
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
		{"all fails at once", func(s *Snapshot) { s.Nodes[0].Instance.SNP, s.Nodes[1].Instance.SNP = "", "disabled" }, []string{"snp-enabled fail"}},
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
		if seen[p.id] = true; p.find == nil || (p.things == "") != (p.advice == "") {
			t.Errorf("check %s lacks its function, or one of things and advice", p.id)
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
	if want := "3 of 7 things, such as c: f"; c.Status != Fail || c.Detail != want || c.Advice != "do" || c.Resources[1].ID != "a" {
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

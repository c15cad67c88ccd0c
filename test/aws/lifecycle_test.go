//go:build aws

package aws_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"sevagent/internal/must"
	"sevagent/test/lab"
)

// calls is how often an operation was called, such as ecs:DescribeClusters.
func (c *cloud) calls(operation string) int {
	c.t.Helper()
	resp := must.Get(http.Post(c.url+"/_emulator/calls", "application/json", nil))(c.t, "ask the emulator for the calls")
	defer resp.Body.Close()
	text := must.Get(io.ReadAll(resp.Body))(c.t, "read the calls")
	var calls map[string]int
	must.Do(c.t, json.Unmarshal(text, &calls), "decode %s", text)
	return calls[operation]
}

// containers are the properties of a cluster's container instances.
func (c *cloud) containers(cluster, property string) []string {
	c.t.Helper()
	list := strings.Fields(c.query("containerInstanceArns", "ecs", "list-container-instances", "--cluster", cluster))
	if len(list) == 0 {
		return nil
	}
	return strings.Fields(c.query("containerInstances[]."+property, append([]string{"ecs", "describe-container-instances",
		"--cluster", cluster, "--container-instances"}, list...)...))
}

// deployed deploys cluster.yaml and fails the test if that does not end well.
func (c *cloud) deployed(stack string, parameters ...string) {
	c.t.Helper()
	if out, status := c.deploy(stack, "cluster.yaml", parameters...); status != 0 {
		c.t.Fatalf("deploy %s with %v: exit status %d\n%s\n%s", stack, parameters, status, out, c.events())
	}
}

// TestFirstBootRace holds up the association of the capacity provider while real nodes boot. They join after it, and
// belong to it.
func TestFirstBootRace(t *testing.T) {
	t.Parallel()
	n := newNodes(t)
	n.control("hold", map[string]any{"resource": "CapacityProviderAssociation"})
	deployed := make(chan string, 1)
	go func() {
		out, status := n.deploy("race", "cluster.yaml", n.basic("race", "DesiredCapacity=2")...)
		deployed <- fmt.Sprint(status, " ", out)
	}()
	lab.Until(t, "both nodes ask for their capacity provider, again and again", func() error {
		if asked := n.calls("ecs:DescribeClusters"); asked < 6 {
			return fmt.Errorf("asked %d times", asked)
		}
		return nil
	})
	if early := n.containers("race", "ec2InstanceId"); len(early) > 0 {
		t.Errorf("%v joined before the association", early)
	}
	n.control("release", map[string]any{"resource": "CapacityProviderAssociation"})
	if out := <-deployed; !strings.HasPrefix(out, "0 ") {
		t.Fatalf("%s\n%s", out, n.events())
	}
	if got := n.containers("race", "capacityProviderName"); !slices.Equal(got, []string{"race-snp", "race-snp"}) {
		t.Errorf("the nodes' capacity providers are %v", got)
	}
}

// TestProviderNeverListed makes the association later than nodes wait. The stack fails at once, and says why.
func TestProviderNeverListed(t *testing.T) {
	t.Parallel()
	n := newNodes(t)
	n.broken = func() defect { return neverListed }
	n.control("hold", map[string]any{"resource": "CapacityProviderAssociation"})
	deployed := make(chan int, 1)
	go func() {
		_, status := n.deploy("late", "cluster.yaml", n.basic("late", "MinSize=1")...)
		deployed <- status
	}()
	lab.Until(t, "the node gives up", func() error {
		if n.calls("cloudformation:SignalResource") == 0 {
			return errors.New("no signal yet")
		}
		return nil
	})
	n.control("release", map[string]any{"resource": "CapacityProviderAssociation"})
	if status := <-deployed; status == 0 {
		t.Error("it was deployed")
	}
	events := n.query("StackEvents[?ResourceStatus=='CREATE_FAILED'].ResourceStatusReason", "cloudformation",
		"describe-stack-events", "--stack-name", "late")
	if !strings.Contains(events, ":provider: not within 2s: the cluster does not list it") {
		t.Errorf("the events say %q", events)
	}
}

// steps are what a stack's last update did to the group: + for a node that was waited for, - for one that went.
func (c *cloud) steps(stack string) (steps string) {
	c.t.Helper()
	text := c.aws("cloudformation", "describe-stack-events", "--stack-name", stack, "--output", "json",
		"--query", "StackEvents[].[LogicalResourceId, ResourceStatus, ResourceStatusReason]")
	var events [][3]string
	must.Do(c.t, json.Unmarshal([]byte(text), &events), "decode the events")
	for _, e := range events { // the newest first
		switch {
		case e[2] == "User Initiated":
			return steps
		case strings.HasPrefix(e[2], "New instance(s) added"):
			steps = "+" + steps
		case strings.HasPrefix(e[2], "Terminating instance(s)"):
			steps = "-" + steps
		}
	}
	return steps
}

// TestSuccessorFirst replaces nodes: a node goes once its successor has joined, wherever MaxSize has room for both.
func TestSuccessorFirst(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	for i, test := range []struct {
		name, minimum, desired, maximum, want string
	}{
		{"room", "2", "2", "4", "+-+-"},
		{"above the minimum", "1", "2", "3", "+-+-"},
		{"the defaults", "1", "1", "3", "+-"},
		{"room for one", "1", "1", "2", "+-"},
		{"no room", "2", "2", "2", "-+-+"},
		{"one node at most", "1", "1", "1", "-+"},
		{"no node wanted", "0", "0", "2", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, stack := *c, fmt.Sprint("roll", i)
			c.t = t
			c.deployed(stack, c.basic(stack, "MinSize="+test.minimum, "DesiredCapacity="+test.desired,
				"MaxSize="+test.maximum)...)
			c.deployed(stack, "InstanceType=m6a.xlarge")
			if got := c.steps(stack); got != test.want {
				t.Errorf("the steps are %q, want %q", got, test.want)
			}
			if got := c.group(stack, "DesiredCapacity"); got != test.desired {
				t.Errorf("the group wants %s nodes, want %s", got, test.desired)
			}
			if got := fmt.Sprint(len(c.instances(stack))); got != test.desired {
				t.Errorf("%s nodes, want %s", got, test.desired)
			}
		})
	}

	// Scaled from zero by hand: one node that no parameter knows of.
	t.Run("scaled from zero", func(t *testing.T) {
		c := *c
		c.t = t
		c.aws("autoscaling", "set-desired-capacity", "--auto-scaling-group-name", "roll6-snp", "--desired-capacity", "1")
		c.deployed("roll6", "InstanceType=m6a.2xlarge")
		if got := c.steps("roll6"); got != "+-" {
			t.Errorf("the steps are %q", got)
		}
	})

	// Nothing waits for tasks that stay on a node which is drained.
	t.Run("slow drains", func(t *testing.T) {
		c := *c
		c.t = t
		c.control("drains", map[string]any{"slow": true})
		c.deployed("roll0", "InstanceType=m6a.2xlarge")
		states := strings.Fields(c.group("roll0", "Instances[].LifecycleState"))
		if want := []string{"Terminating:Wait", "Terminating:Wait", "InService", "InService"}; !slices.Equal(states, want) {
			t.Errorf("the nodes are %v, want %v", states, want)
		}
		c.control("drains", map[string]any{"slow": false})
		if got := len(c.instances("roll0")); got != 2 {
			t.Errorf("%d nodes, want 2", got)
		}
	})
}

// TestSizes changes the sizes of a live stack, while nodes are protected and after somebody has scaled by hand.
func TestSizes(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	scale := func(n string) {
		c.aws("autoscaling", "set-desired-capacity", "--auto-scaling-group-name", "sizes-snp", "--desired-capacity", n)
	}
	for _, step := range []struct {
		name            string
		before          func()
		sizes           string // MinSize DesiredCapacity MaxSize
		wanted, running int    // nodes that the group wants, and that run
		steps           string
	}{
		{"none", nil, "0 0 3", 0, 0, ""},
		{"0 to 2, which run already", func() { scale("2") }, "0 2 3", 2, 2, ""},
		{"2 to 0, protected", nil, "0 0 3", 0, 2, ""},
		{"and back", nil, "0 2 3", 2, 2, ""},
		{"2 to 0, unprotected", func() {
			c.aws(append([]string{"autoscaling", "set-instance-protection", "--no-protected-from-scale-in",
				"--auto-scaling-group-name", "sizes-snp", "--instance-ids"}, c.instances("sizes")...)...)
		}, "0 0 3", 0, 0, ""},
		{"0 to 3", nil, "2 3 3", 3, 3, "+"},
		{"3 to 1, protected", nil, "1 1 1", 1, 3, ""},
		{"1 to 4", nil, "1 4 5", 4, 4, "+"},
		{"another maximum, with scaling's size", func() { scale("5") }, "1 4 6", 5, 5, ""},
	} {
		t.Run(step.name, func(t *testing.T) {
			c := *c
			c.t = t
			if step.before != nil {
				step.before()
			}
			s := strings.Fields(step.sizes)
			parameters := []string{"MinSize=" + s[0], "DesiredCapacity=" + s[1], "MaxSize=" + s[2]}
			if step.name == "none" {
				// On the way, what the parameter's pattern must let pass.
				lines := "EcsConfig=# a comment\n\n  " + strings.Join(hostile[:5], "\n\t")
				parameters = c.basic("sizes", append(parameters, lines)...)
			}
			c.deployed("sizes", parameters...)
			if got := c.group("sizes", "DesiredCapacity"); got != fmt.Sprint(step.wanted) {
				t.Errorf("the group wants %s nodes, want %d", got, step.wanted)
			}
			if got := len(c.instances("sizes")); got != step.running {
				t.Errorf("%d nodes run, want %d", got, step.running)
			}
			if got := len(c.containers("sizes", "ec2InstanceId")); got != step.running {
				t.Errorf("%d nodes are in the cluster, want %d", got, step.running)
			}
			if got := c.steps("sizes"); got != step.steps {
				t.Errorf("the steps are %q, want %q", got, step.steps)
			}
		})
	}
}

// TestNames renames a live stack, and gives a second one the name of the first.
func TestNames(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	c.deployed("one", c.basic("first", "DesiredCapacity=2")...)
	before := c.instances("first")

	out, status := c.deploy("two", "cluster.yaml", c.basic("first")...)
	if status == 0 {
		t.Errorf("a second stack with the name was deployed: %s", out)
	}
	if got := c.status("two"); got != "ROLLBACK_COMPLETE" {
		t.Errorf("the second stack is %s", got)
	}
	if events := c.events(); !strings.Contains(events, "ReleaseDocument") || strings.Contains(events, "LaunchTemplate") {
		t.Errorf("it was not refused first of all:\n%s", events)
	}
	if got := c.status("one"); got != "CREATE_COMPLETE" {
		t.Errorf("the first stack is %s", got)
	}
	if got := c.query("clusters[0].status", "ecs", "describe-clusters", "--clusters", "first"); got != "ACTIVE" {
		t.Errorf("the first stack's cluster is %s", got)
	}
	if after := c.instances("first"); !slices.Equal(after, before) {
		t.Errorf("the first stack's nodes are %v, and were %v", after, before)
	}
	if failing, _, exit := c.verify("first"); exit != 0 {
		t.Errorf("the first cluster does not verify: %v", failing)
	}

	c.deployed("one", "ClusterName=second")
	if got := c.status("one"); got != "UPDATE_COMPLETE" {
		t.Errorf("after the change of name the stack is %s", got)
	}
	if failing, _, exit := c.verify("second"); exit != 0 || len(c.instances("second")) != 2 {
		t.Errorf("the renamed cluster does not verify: %v", failing)
	}
	for what, left := range map[string]string{
		"clusters": c.query("clusterArns", "ecs", "list-clusters"),
		"groups": c.query("AutoScalingGroups[].AutoScalingGroupName", "autoscaling",
			"describe-auto-scaling-groups"),
		"capacity providers": c.query("capacityProviders[].name", "ecs", "describe-capacity-providers"),
		"launch templates":   c.query("LaunchTemplates[].LaunchTemplateName", "ec2", "describe-launch-templates"),
		"security groups":    c.query("SecurityGroups[].GroupName", "ec2", "describe-security-groups"),
		"documents": c.query("DocumentIdentifiers[].Name", "ssm", "list-documents", "--filters",
			"Key=Owner,Values=Self"),
		"nodes": c.query("Reservations[].Instances[].Tags[?Key=='sevagent:cluster'].Value", "ec2", "describe-instances",
			"--filters", "Name=instance-state-name,Values=running"),
	} {
		if strings.Contains(left, "first") {
			t.Errorf("%s that are left: %s", what, left)
		}
	}

	// The name is free again, and goes back.
	c.deployed("three", c.basic("first")...)
	if out, status := c.deploy("one", "cluster.yaml", "ClusterName=first"); status == 0 {
		t.Errorf("a stack took the name of another: %s", out)
	}
	if got := c.status("one") + " " + c.status("three"); got != "UPDATE_ROLLBACK_COMPLETE CREATE_COMPLETE" {
		t.Errorf("the stacks are %s", got)
	}
	for _, cluster := range []string{"first", "second"} {
		if failing, _, exit := c.verify(cluster); exit != 0 {
			t.Errorf("cluster %s does not verify: %v", cluster, failing)
		}
	}
}

// TestUpdatesKeepProtection lets the stack's automation run at the end of updates that delete no group.
func TestUpdatesKeepProtection(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	c.deployed("keep", c.basic("keep", "DesiredCapacity=2")...)
	c.deployed("keep", "ContainerInsightsEnabled=enhanced")
	c.control("settle", nil)
	if got := c.group("keep", "Instances[].ProtectedFromScaleIn"); got != "True\tTrue" {
		t.Errorf("the nodes' protection is %s", got)
	}
}

//go:build aws

// Package aws_test deploys the templates to an emulated AWS with the aws CLI, as docs/deploy.md says, and checks what
// stands there with sevctl.
package aws_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sevagent/internal/must"
	"sevagent/test/lab"
)

const region = "us-east-2"

// cloud is an emulated AWS with a network in it.
type cloud struct {
	t    *testing.T
	url  string
	dir  string // where commands run: a copy of what they need
	env  []string
	vars map[string]string // what the documents take for granted; in env, too

	automationFails bool // what an automation prints that fails is expected
}

// newCloud starts the emulator. Nodes that are launched boot at once, with attributes as bootstrap sets them.
func newCloud(t *testing.T) *cloud {
	t.Helper()
	c := &cloud{t: t, dir: t.TempDir(), vars: make(map[string]string)}
	emulator := exec.Command(lab.Python("python"), "-m", "emulator", "--port", "0", "--until-eof")
	emulator.Dir = filepath.Join(lab.Repository(), "test/aws/emulator")
	emulator.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	out := must.Get(emulator.StdoutPipe())(t, "make a pipe")
	end := must.Get(emulator.StdinPipe())(t, "make a pipe")
	p := lab.Start(t, "the emulator", emulator)
	t.Cleanup(func() {
		end.Close()
		<-p.Ended
		if text := p.Output.String(); strings.Contains(text, "Traceback") && !c.automationFails {
			t.Errorf("the emulator failed: %s", lab.Tail(text))
		}
	})
	c.url = strings.TrimSpace(must.Get(bufio.NewReader(out).ReadString('\n'))(t, "start the emulator"))
	for _, name := range []string{"cloudformation", "tools", "Makefile"} {
		must.Do(t, os.Symlink(filepath.Join(lab.Repository(), name), filepath.Join(c.dir, name)), "link %s", name)
	}
	c.env = append(os.Environ(),
		"PATH="+strings.Join([]string{lab.Python("."), lab.Bin("."), os.Getenv("PATH")}, ":"),
		"AWS_ENDPOINT_URL="+c.url, "AWS_ACCESS_KEY_ID=operator", "AWS_SECRET_ACCESS_KEY=secret",
		"AWS_DEFAULT_REGION="+region,
		"AWS_REGION="+region, "AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE=/dev/null", "AWS_PAGER=",
		"NO_PROXY=127.0.0.1")
	c.control("boot", map[string]any{"mode": "register", "attributes": map[string]string{
		"sevagent.attested": "true", "sevagent.measurement": strings.Repeat("5a", 48), "sevagent.tcb": "4.0.29.222",
	}})
	c.set("VPC", c.aws("ec2", "create-vpc", "--cidr-block", "10.9.0.0/16", "--query", "Vpc.VpcId", "--output", "text"))
	var subnets []string
	for i, zone := range []string{"a", "b"} {
		subnets = append(subnets, c.aws("ec2", "create-subnet", "--vpc-id", c.get("VPC"), "--cidr-block",
			fmt.Sprintf("10.9.%d.0/20", 16*i),
			"--availability-zone", region+zone, "--query", "Subnet.SubnetId", "--output", "text"))
	}
	c.set("SUBNETS", strings.Join(subnets, ","))
	c.set("PACKAGE_URL", "https://packages.example.com/sevagent.rpm")
	c.set("PACKAGE_SHA256", strings.Repeat("0a", 32))
	return c
}

// control calls the emulator's control API.
func (c *cloud) control(action string, arguments map[string]any) {
	c.t.Helper()
	if arguments == nil {
		arguments = make(map[string]any)
	}
	body := must.Get(json.Marshal(arguments))(c.t, "encode the arguments of %s", action)
	resp := must.Get(http.Post(c.url+"/_emulator/"+action, "application/json", bytes.NewReader(body)))(c.t,
		"ask the emulator for %s", action)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		c.t.Fatalf("%s: %s", action, resp.Status)
	}
}

func (c *cloud) set(name, value string) {
	c.vars[name] = value
	c.env = append(c.env, name+"="+value)
}

func (c *cloud) get(name string) string { return c.vars[name] }

// run runs a program as a user does, and returns what it prints and its exit status.
func (c *cloud) run(name string, args ...string) (out string, status int) {
	c.t.Helper()
	cmd := c.command(name, args...)
	text, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		c.t.Fatalf("%s: %v", name, err)
	}
	return string(text), cmd.ProcessState.ExitCode()
}

func (c *cloud) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	for _, path := range []string{lab.Bin(name), lab.Python(name)} {
		if path, err := exec.LookPath(path); err == nil {
			cmd.Path, cmd.Err = path, nil
		}
	}
	cmd.Dir, cmd.Env = c.dir, c.env
	return cmd
}

func (c *cloud) must(name string, args ...string) string {
	c.t.Helper()
	out, status := c.run(name, args...)
	if status != 0 {
		c.t.Fatalf("%s %s: exit status %d\n%s", name, strings.Join(args, " "), status, lab.Tail(out))
	}
	return strings.TrimSpace(out)
}

func (c *cloud) aws(args ...string) string {
	c.t.Helper()
	return c.must("aws", args...)
}

// deploy updates or creates a stack.
func (c *cloud) deploy(stack, template string, parameters ...string) (out string, status int) {
	c.t.Helper()
	args := []string{"cloudformation", "deploy", "--stack-name", stack, "--template-file", "cloudformation/" + template,
		"--capabilities", "CAPABILITY_IAM", "--no-fail-on-empty-changeset"}
	if len(parameters) > 0 {
		args = append(append(args, "--parameter-overrides"), parameters...)
	}
	return c.run("aws", args...)
}

// basic are the parameters of the smallest cluster.
func (c *cloud) basic(name string, more ...string) []string {
	return append([]string{"ClusterName=" + name, "VpcId=" + c.get("VPC"), "SubnetIds=" + c.get("SUBNETS"),
		"PackageUrl=" + c.get("PACKAGE_URL"), "PackageSha256=" + c.get("PACKAGE_SHA256")}, more...)
}

// query asks the aws CLI for one value.
func (c *cloud) query(query string, args ...string) string {
	c.t.Helper()
	return c.aws(append(args, "--query", query, "--output", "text")...)
}

func (c *cloud) output(stack, name string) string {
	c.t.Helper()
	return c.query("Stacks[0].Outputs[?OutputKey=='"+name+"'].OutputValue", "cloudformation", "describe-stacks",
		"--stack-name", stack)
}

// status is that of a stack.
func (c *cloud) status(stack string) string {
	c.t.Helper()
	return c.query("Stacks[0].StackStatus", "cloudformation", "describe-stacks", "--stack-name", stack)
}

// group is a property of a cluster's Auto Scaling group, node one of its first node.
func (c *cloud) group(cluster, property string) string {
	c.t.Helper()
	return c.query("AutoScalingGroups[0]."+property, "autoscaling", "describe-auto-scaling-groups",
		"--auto-scaling-group-names", cluster+"-snp")
}

func (c *cloud) node(cluster, property string) string {
	c.t.Helper()
	return c.query("Reservations[0].Instances[0]."+property, "ec2", "describe-instances",
		"--instance-ids", c.instances(cluster)[0])
}

func (c *cloud) instances(cluster string) []string {
	c.t.Helper()
	return strings.Fields(c.group(cluster, "Instances[].InstanceId"))
}

// check is one result of sevctl verify.
type check struct {
	ID     string `json:"id"`
	Status string `json:"status"`
	Detail string `json:"detail"`
}

// verify runs sevctl verify and returns the checks that do not pass, by ID, and the number of API calls.
func (c *cloud) verify(cluster string, args ...string) (failing map[string]check, calls, status int) {
	c.t.Helper()
	cmd := c.command("sevctl", append([]string{"verify", cluster, "--format", "json"}, args...)...)
	// What goes to standard error, such as the SDK's word of a retry, is no part of the document
	out, err := cmd.Output()
	if cmd.ProcessState == nil {
		c.t.Fatalf("sevctl verify: %v", err)
	}
	var report struct {
		Checks []check `json:"checks"`
		Calls  struct {
			Total int `json:"total"`
		} `json:"calls"`
	}
	status = cmd.ProcessState.ExitCode()
	if err := json.Unmarshal(out, &report); err != nil || len(report.Checks) == 0 {
		c.t.Fatalf("sevctl verify: %v, exit status %d\n%s", err, status, lab.Tail(string(out)))
	}
	failing = make(map[string]check)
	for _, k := range report.Checks {
		if k.Status != "pass" {
			failing[k.ID] = k
		}
	}
	return failing, report.Calls.Total, status
}

//go:build aws

package aws_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"sevagent/internal/sim/simaws"
	"sevagent/test/lab"
)

// nodes boots what the emulated Auto Scaling group launches: the real bootstrap with the environment of the real user
// data, beside a real sevagent on a simulated device that they all share. What is not real is EC2, systemd and the ECS
// agent.
type nodes struct {
	*cloud
	socket string
	// broken returns what is wrong with the next node.
	broken func() defect
}

type defect string

const (
	nothingWrong  defect = ""
	noAgent       defect = "no agent" // bootstrap finds no socket
	noPackage     defect = "no package"
	wrongCluster  defect = "wrong cluster"
	neverRegister defect = "never registers"
	neverListed   defect = "its capacity provider is never listed"
)

// newNodes makes the emulator launch real nodes.
func newNodes(t *testing.T) *nodes {
	t.Helper()
	n := &nodes{cloud: newCloud(t), broken: func() defect { return nothingWrong }}
	n.socket = n.simulatedNode()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		userData, err := io.ReadAll(r.Body)
		if err == nil {
			err = n.boot(r.URL.Query().Get("id"), string(userData))
		}
		if err != nil && n.broken() == nothingWrong {
			t.Errorf("boot: %v", err)
		}
	}))
	t.Cleanup(server.Close)
	program := filepath.Join(t.TempDir(), "boot")
	lab.WriteProgram(t, program, "#!/bin/sh\nexec curl -sS -f --data-binary @- \""+server.URL+"/boot?id=$1\"\n")
	n.control("boot", map[string]any{"mode": "exec", "program": program})
	n.control("patience", map[string]any{"seconds": lab.Hang.Seconds()})
	return n
}

// simulatedNode starts a real sevagent and returns its socket.
func (c *cloud) simulatedNode(args ...string) (socket string) {
	c.t.Helper()
	node := lab.Start(c.t, "sevsim node", exec.Command(lab.Bin("sevsim"), append([]string{"node"}, args...)...))
	lab.Until(c.t, "the simulated node", func() error {
		m := regexp.MustCompile(`sevagent status --socket (\S+)`).FindStringSubmatch(node.Output.String())
		if m == nil {
			return errors.New(node.Output.String())
		}
		socket = m[1]
		return nil
	})
	return socket
}

// option is a line of the user data's first document, which holds bootstrap's options.
var option = regexp.MustCompile(`(?m)^[A-Z_]+=.*$`)

// bootstrapEnvironment is that of bootstrap on an instance with such user data and metadata service.
func (c *cloud) bootstrapEnvironment(imds, userData string) []string {
	env := append(os.Environ(), "AWS_ENDPOINT_URL="+c.url, "AWS_EC2_METADATA_SERVICE_ENDPOINT="+imds,
		"AWS_EC2_METADATA_DISABLED=", "NO_PROXY=127.0.0.1")
	options, _, _ := strings.Cut(userData, "\n==sevagent==\n")
	for _, o := range option.FindAllString(options, -1) {
		env = append(env, "SEVAGENT_BOOTSTRAP_"+o)
	}
	return env
}

// boot does what an instance does with its user data.
func (n *nodes) boot(id, userData string) error {
	wrong := n.broken()
	instance := simaws.DefaultInstance()
	instance.ID = id
	imds := httptest.NewServer(&simaws.IMDS{Instance: instance})
	defer imds.Close()
	dir, err := os.MkdirTemp("", "boot")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if wrong == noPackage {
		return n.script(dir, imds.URL, userData)
	}
	env := n.bootstrapEnvironment(imds.URL, userData)
	// What is not to come is not waited for.
	bootstrap := func(inVain bool, args ...string) error {
		timeout := lab.Hang
		if inVain {
			timeout = 2 * time.Second
		}
		cmd := exec.Command(lab.Bin("bootstrap"), append(args, "--timeout", timeout.String())...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("bootstrap %s: %w\n%s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	socket := n.socket
	if wrong == noAgent {
		socket = filepath.Join(dir, "none")
	}
	config := filepath.Join(dir, "etc")
	provider := lab.Hang
	if wrong == neverListed {
		provider = 2 * time.Second
	}
	if err := bootstrap(wrong == noAgent, "--services", "none", "--socket", socket, "--config-dir", config,
		"--state-dir", dir, "--provider-timeout", provider.String(),
		"--ecs-config", filepath.Join(dir, "ecs.config")); err != nil {
		return err
	}
	var metadata string
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, metadata)
	}))
	defer agent.Close()
	if wrong == neverRegister {
		agent.Close() // it listens only once it has registered
	} else if metadata, err = n.register(id, filepath.Join(dir, "ecs.config"), wrong); err != nil {
		return err
	}
	return bootstrap(wrong != nothingWrong, "signal", "--introspection", agent.URL, "--config-dir", config,
		"--state-dir", dir)
}

// register is the ECS agent's part: it registers as ecs.config says, and returns what its introspection answers.
func (n *nodes) register(id, ecsConfig string, wrong defect) (metadata string, err error) {
	text, err := os.ReadFile(ecsConfig)
	if err != nil {
		return "", err
	}
	set := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			set[key] = value
		}
	}
	if wrong == wrongCluster {
		return `{"Cluster": "default", "Version": "1.106.1",
			"ContainerInstanceArn": "arn:aws:ecs:us-east-2:123456789012:container-instance/default/1"}`, nil
	}
	var attributes map[string]string
	if err := json.Unmarshal([]byte(set["ECS_INSTANCE_ATTRIBUTES"]), &attributes); err != nil {
		return "", err
	}
	args := []string{"ecs", "register-container-instance", "--cluster", set["ECS_CLUSTER"],
		"--instance-identity-document-signature", "x",
		"--instance-identity-document", fmt.Sprintf(`{"instanceId":"%s","region":"%s"}`, id, region),
		"--version-info", "agentVersion=1.106.1,agentHash=8dfceca6,dockerVersion=DockerVersion: 25.0.16",
		"--query", "containerInstance.containerInstanceArn", "--output", "text", "--attributes"}
	for name, value := range attributes {
		args = append(args, "name="+name+",value="+value)
	}
	cmd := exec.Command(lab.Python("aws"), args...)
	cmd.Env = n.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("register %s: %w\n%s", id, err, out)
	}
	return fmt.Sprintf(`{"Cluster": "%s", "ContainerInstanceArn": "%s", "Version": "1.106.1"}`, set["ECS_CLUSTER"],
		strings.TrimSpace(string(out))), nil
}

// script runs the script of the user data on an AMI that lacks sevagent.
func (n *nodes) script(dir, imds, userData string) error {
	_, script, _ := strings.Cut(userData, "#!/bin/bash\n")
	replaced := strings.NewReplacer(
		"imds=http://169.254.169.254/latest", "imds="+imds+"/latest",
		"/usr/libexec/sevagent/bootstrap", filepath.Join(dir, "bootstrap"),
		"https://cloudformation.$region.$domain/", n.url+"/",
		"--retry 6", "--retry 0").Replace(script)
	cmd := exec.Command("bash", "-c", replaced)
	cmd.Env = append(os.Environ(), "NO_PROXY=127.0.0.1")
	if out, err := cmd.CombinedOutput(); err == nil {
		return fmt.Errorf("the script did not fail: %s", out)
	}
	return nil
}

// TestBoot creates a stack whose nodes are booted by the real bootstrap, and replaces them in a rolling update.
func TestBoot(t *testing.T) {
	t.Parallel()
	n := newNodes(t)
	if out, status := n.deploy("real", "cluster.yaml", n.basic("real", "DesiredCapacity=2",
		"MinSize=1")...); status != 0 {
		t.Fatalf("%s\n%s", out, n.events())
	}
	if got := n.status("real"); got != "CREATE_COMPLETE" {
		t.Errorf("the stack is %s", got)
	}
	before := n.instances("real")
	failing, _, _ := n.verify("real")
	// A simulated device is no proof, and bootstrap says so in the attribute. All else is as it should be.
	for id, k := range failing {
		if id != "attested" && k.Status != "warn" {
			t.Errorf("%s %s: %s", id, k.Status, k.Detail)
		}
	}
	if !strings.Contains(failing["attested"].Detail, "roots that are not AMD's") {
		t.Errorf("attested: %+v, want that the nodes are simulated", failing["attested"])
	}

	if out, status := n.deploy("real", "cluster.yaml", "InstanceType=m6a.xlarge"); status != 0 {
		t.Fatalf("%s\n%s", out, n.events())
	}
	after := n.instances("real")
	for _, id := range after {
		if strings.Contains(strings.Join(before, " "), id) {
			t.Errorf("%s was not replaced", id)
		}
	}
	if len(after) != 2 || n.status("real") != "UPDATE_COMPLETE" {
		t.Errorf("after the update: %v", after)
	}
}

// TestBootFails breaks a node at every stage. The stack fails at once, and its events say which step failed and why.
func TestBootFails(t *testing.T) {
	t.Parallel()
	n := newNodes(t)
	for i, test := range []struct {
		wrong defect
		says  string
	}{
		{noPackage, "download: curl: (7)"},
		{noAgent, "proof"},
		{wrongCluster, "registration: registered to default instead of"},
		{neverRegister, "registration: connect: connection refused"},
	} {
		t.Run(string(test.wrong), func(t *testing.T) {
			n.broken = func() defect { return test.wrong }
			stack := fmt.Sprint("fails", i)
			c := *n.cloud
			c.t = t
			parameters := c.basic(stack, "PackageUrl=https://127.0.0.1:1/sevagent.rpm")
			if out, status := c.deploy(stack, "cluster.yaml", parameters...); status == 0 {
				t.Fatalf("it was deployed: %s", out)
			}
			events := c.query("StackEvents[?ResourceStatus=='CREATE_FAILED'].ResourceStatusReason", "cloudformation",
				"describe-stack-events", "--stack-name", stack)
			if !strings.Contains(events, test.says) {
				t.Errorf("the events say %q, want %q", events, test.says)
			}
		})
	}
}

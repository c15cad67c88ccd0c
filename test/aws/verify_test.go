//go:build aws

package aws_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sevagent/client"
	"sevagent/internal/must"
	"sevagent/internal/sim/simaws"
	"sevagent/test/lab"
)

// TestBroken breaks one property at a time of a cluster of two nodes. Exactly its check turns red.
func TestBroken(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	for i, test := range []struct {
		name string
		do   func(c *cloud, cluster, node string)
		want []string
	}{
		{"nothing", func(*cloud, string, string) {}, nil},
		{"insights", func(c *cloud, cluster, _ string) {
			c.aws("ecs", "update-cluster-settings", "--cluster", cluster, "--settings",
				"name=containerInsights,value=disabled")
		}, []string{"container-insights"}},
		{"metadata without a token", func(c *cloud, _, node string) {
			c.aws("ec2", "modify-instance-metadata-options", "--instance-id", node, "--http-tokens", "optional")
		}, []string{"imdsv2"}},
		{"left the cluster", func(c *cloud, cluster, node string) {
			c.aws("ecs", "deregister-container-instance", "--cluster", cluster, "--container-instance",
				c.container(cluster, node), "--force")
		}, []string{"membership"}},
		{"attribute", func(c *cloud, cluster, node string) {
			c.attribute(cluster, node, "sevagent.attested", "false")
		}, []string{"attested"}},
		{"measurement", func(c *cloud, cluster, node string) {
			c.attribute(cluster, node, "sevagent.measurement", strings.Repeat("cd", 48))
		}, []string{"attested-equal"}},
		{"scale-in protection", func(c *cloud, cluster, node string) {
			c.aws("autoscaling", "set-instance-protection", "--auto-scaling-group-name", cluster+"-snp",
				"--instance-ids", node, "--no-protected-from-scale-in")
		}, []string{"scale-in-protection"}},
		{"a newer template", func(c *cloud, cluster, _ string) {
			c.aws("autoscaling", "update-auto-scaling-group", "--auto-scaling-group-name", cluster+"-snp",
				"--launch-template", "LaunchTemplateName="+cluster+"-snp,Version="+
					c.query("LaunchTemplateVersion.VersionNumber", "ec2", "create-launch-template-version",
						"--launch-template-name", cluster+"-snp", "--source-version", "1", "--launch-template-data",
						`{"EbsOptimized":true}`))
		}, []string{"template-version"}},
		{"not SNP", func(c *cloud, _, node string) { c.damage(node, "snp", "disabled") }, []string{"snp-enabled"}},
		{"type", func(c *cloud, _, node string) { c.damage(node, "type", "m5.large") }, []string{"instance-types"}},
		{"legacy boot", func(c *cloud, _, node string) { c.damage(node, "boot_mode", "legacy-bios") },
			[]string{"boot-mode"}},
		{"root volume", func(c *cloud, _, node string) { c.damage(node, "root_encrypted", false) },
			[]string{"root-encrypted"}},
		{"agent", func(c *cloud, _, node string) { c.damage(node, "agent_connected", false) },
			[]string{"agent-connected"}},
		{"stopped", func(c *cloud, _, node string) { c.aws("ec2", "stop-instances", "--instance-ids", node) },
			[]string{"nodes-running"}},
		{"template without SNP", func(c *cloud, cluster, _ string) {
			c.aws("autoscaling", "update-auto-scaling-group", "--auto-scaling-group-name", cluster+"-snp",
				"--launch-template", "LaunchTemplateName="+cluster+"-snp,Version="+
					c.query("LaunchTemplateVersion.VersionNumber", "ec2", "create-launch-template-version",
						"--launch-template-name", cluster+"-snp", "--source-version", "1", "--launch-template-data",
						`{"CpuOptions":{"AmdSevSnp":"disabled"}}`))
		}, []string{"launch-template", "template-version"}},
		{"unhealthy", func(c *cloud, _, node string) {
			c.aws("autoscaling", "set-instance-health", "--instance-id", node, "--health-status", "Unhealthy")
		}, []string{"auto-scaling-group"}},
		{"no FARGATE but another provider", func(c *cloud, cluster, _ string) {
			c.aws("ecs", "put-cluster-capacity-providers", "--cluster", cluster, "--capacity-providers", cluster+"-snp",
				"FARGATE", "--default-capacity-provider-strategy", "capacityProvider="+cluster+"-snp,weight=1")
		}, []string{"capacity-providers"}},
		// Of all that come after
		{"image", func(c *cloud, _, node string) { c.damage(node, "image_boot_mode", nil) }, []string{"ami-boot-mode"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := *c
			c.t = t
			cluster := fmt.Sprint("b", i)
			if out, status := c.deploy(cluster, "cluster.yaml",
				c.basic(cluster, "DesiredCapacity=2", "MinSize=2")...); status != 0 {
				t.Fatalf("%s\n%s", out, c.events())
			}
			test.do(&c, cluster, c.instances(cluster)[0])
			failing, _, _ := c.verify(cluster)
			var got []string
			for id := range failing {
				got = append(got, id)
			}
			slices.Sort(got)
			if !slices.Equal(got, test.want) {
				t.Errorf("checks that do not pass: %v, want %v", failing, test.want)
			}
		})
	}
}

// damage breaks a property of an instance that no API breaks.
func (c *cloud) damage(instance, property string, value any) {
	c.t.Helper()
	c.control("damage", map[string]any{"instance": instance, property: value})
}

// attribute sets an attribute of a container instance.
func (c *cloud) attribute(cluster, instance, name, value string) {
	c.t.Helper()
	c.aws("ecs", "put-attributes", "--cluster", cluster, "--attributes",
		"name="+name+",value="+value+",targetType=container-instance,targetId="+c.container(cluster, instance))
}

// container is the ARN of an instance's container instance.
func (c *cloud) container(cluster, instance string) string {
	c.t.Helper()
	list := strings.Fields(c.query("containerInstanceArns", "ecs", "list-container-instances", "--cluster", cluster))
	args := append([]string{"ecs", "describe-container-instances", "--cluster", cluster, "--container-instances"},
		list...)
	return c.query("containerInstances[?ec2InstanceId=='"+instance+"'].containerInstanceArn", args...)
}

// TestTrouble is what sevctl says when AWS does not do as it is asked.
func TestTrouble(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	if out, status := c.deploy("b", "cluster.yaml", c.basic("b")...); status != 0 {
		t.Fatalf("%s\n%s", out, c.events())
	}
	says := func(name string, status int, text string, args ...string) {
		t.Helper()
		out, got := c.run("sevctl", append([]string{"verify"}, args...)...)
		if got != status || !strings.Contains(out, text) {
			t.Errorf("%s: exit status %d, want %d and %q:\n%s", name, got, status, text, lab.Tail(out))
		}
	}
	says("no such cluster", 1, "b", "c")
	says("no such profile", 2, "nobody", "b", "nobody")

	c.control("fault", map[string]any{"service": "ec2", "operation": "DescribeVolumes", "code": "UnauthorizedOperation",
		"status": 403, "times": -1})
	c.control("fault", map[string]any{"service": "ec2", "operation": "DescribeLaunchTemplateVersions",
		"code": "UnauthorizedOperation", "status": 403, "times": -1})
	failing, _, status := c.verify("b")
	for id, k := range failing {
		if k.Status != "unknown" || !slices.Contains([]string{"launch-template", "root-encrypted", "template-version"},
			id) {
			t.Errorf("with one API denied: %s %s: %s", id, k.Status, k.Detail)
		}
	}
	if len(failing) == 0 || status != 1 {
		t.Errorf("with one API denied: %v, exit status %d", failing, status)
	}
	c.control("clear-faults", nil)

	c.control("fault", map[string]any{"service": "ecs", "operation": "DescribeClusters", "code": "ThrottlingException",
		"status": 400, "times": 2})
	if failing, _, status := c.verify("b"); status != 0 {
		t.Errorf("throttled twice: %v, exit status %d", failing, status)
	}
	c.env = append(c.env, "AWS_ENDPOINT_URL=http://127.0.0.1:1")
	says("unreachable", 3, "127.0.0.1:1", "b")
}

// TestAdvice is what sevctl advises on clusters and names as people have them.
func TestAdvice(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	says := func(name string, status int, texts []string, args ...string) {
		t.Helper()
		out, got := c.run("sevctl", append([]string{"verify"}, args...)...)
		for _, text := range texts {
			if got != status || !strings.Contains(out, text) {
				t.Errorf("%s: exit status %d, want %d and %q:\n%s", name, got, status, text, out)
			}
		}
	}
	if out, status := c.deploy("s", "cluster.yaml", c.basic("b", "MinSize=2", "DesiredCapacity=2")...); status != 0 {
		t.Fatalf("%s\n%s", out, c.events())
	}
	node := c.instances("b")[0]
	c.damage(node, "snp", "disabled")
	says("a node without SEV-SNP", 1, []string{
		"'aws ec2 terminate-instances --region us-east-2 --instance-ids " + node + "'",
		"--cluster b --region us-east-2 --status DRAINING --container-instances "}, "b")
	c.damage(node, "snp", "enabled")

	says("a region for a profile", 2, []string{"looks like a region: use --region us-east-2"}, "b", "us-east-2")

	// Protected instances stay although the group wants fewer.
	if out, status := c.deploy("s", "cluster.yaml",
		c.basic("b", "MinSize=1", "DesiredCapacity=1", "MaxSize=1")...); status != 0 {
		t.Fatalf("%s\n%s", out, c.events())
	}
	says("more nodes than wanted", 0, []string{"2 instances in service, 1 desired; protected from scale-in: ",
		"--auto-scaling-group-name b-snp --region us-east-2 --no-protected-from-scale-in"}, "b")

	if out, status := c.deploy("e", "cluster.yaml",
		c.basic("none", "MinSize=0", "DesiredCapacity=0")...); status != 0 {
		t.Fatalf("%s\n%s", out, c.events())
	}
	says("no nodes", 0, []string{"it has no nodes and wants none",
		"set-desired-capacity --auto-scaling-group-name none-snp --region us-east-2"}, "none")

	c.control("fault", map[string]any{"service": "ec2", "operation": "DescribeInstances",
		"code": "UnauthorizedOperation", "status": 403, "times": -1})
	out, _ := c.run("sevctl", "verify", "b")
	if strings.Count(out, "ec2:DescribeInstances is denied to ") != 1 || !strings.Contains(out, "unknown without it: ") {
		t.Errorf("ec2:DescribeInstances is denied, and sevctl says:\n%s", out)
	}
}

// TestThousand verifies a cluster of 1,000 nodes.
func TestThousand(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	if out, status := c.deploy("big", "cluster.yaml", c.basic("big", "MinSize=0", "DesiredCapacity=0",
		"MaxSize=1000")...); status != 0 {
		t.Fatalf("%s\n%s", out, c.events())
	}
	c.control("fleet", map[string]any{"group": "big-snp", "cluster": "big", "count": 1000})
	began := time.Now()
	failing, calls, status := c.verify("big")
	t.Logf("1,000 nodes: %d API calls, %v", calls, time.Since(began).Round(10*time.Millisecond))
	if calls > 60 {
		t.Errorf("%d API calls, want at most 60", calls)
	}
	for id, k := range failing {
		if k.Status != "warn" {
			t.Errorf("%s %s: %s", id, k.Status, k.Detail)
		}
	}
	if status != 0 {
		t.Errorf("exit status %d", status)
	}
}

// TestPinFleet runs the commands of docs/policy.md on the cluster prod, whose node is a real sevagent on a simulated
// device, with a simulated NitroTPM where that can be mounted.
func TestPinFleet(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root, as Run Command has it")
	}
	c := newCloud(t)
	if out, status := c.deploy("prod", "cluster.yaml", c.basic("prod")...); status != 0 {
		t.Fatalf("%s\n%s", out, c.events())
	}
	id := c.instances("prod")[0]
	_, err := os.Stat("/dev/fuse")
	tpm := err == nil
	socket := c.simulatedNode("--instance-id", id, fmt.Sprint("--nitrotpm=", tpm))
	dir := filepath.Dir(filepath.Dir(socket))
	c.answerBy(socket)
	var node client.Status
	text := c.must("sevagent", "status", "--json", "--socket", socket)
	must.Do(t, json.Unmarshal([]byte(text), &node), "decode %s", text)
	c.attribute("prod", id, "sevagent.measurement", node.Attestation.Measurement)

	// As printed; but a simulator has roots of its own, which a user of the page has not.
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	must.Do(t, os.WriteFile(policy, []byte("profile: aws-shared\nroots: "+dir+"/sim/roots.pem\n"), 0o644),
		"write a policy")
	wrapped := t.TempDir()
	lab.WriteProgram(t, filepath.Join(wrapped, "sevctl"), `#!/bin/sh
case $1-$2 in
policy-pin) set -- "$@" --policy `+policy+` --allow-custom-roots ;;
verify-*) set -- "$@" --allow-custom-roots ;;
esac
exec `+lab.Bin("sevctl")+` "$@"
`)
	page := lab.Read(t, filepath.Join(lab.Repository(), "docs/policy.md"))
	_, rest, _ := strings.Cut(page, "```sh pin-fleet\n")
	commands, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("docs/policy.md has no block pin-fleet")
	}
	out, status := c.run("bash", "-euo", "pipefail", "-c", "PATH="+wrapped+":$PATH\n"+commands)
	if status != 0 || !strings.Contains(out, "fleet.yaml is valid") {
		t.Fatalf("exit status %d\n%s", status, out)
	}
	fleet := lab.Read(t, filepath.Join(c.dir, "fleet.yaml"))
	wants := []string{"  # " + id + "\n  - value: \"" + node.Attestation.Measurement}
	if tpm {
		wants = append(wants, "  mode: require\n", "  # "+id+"\n  - name: \"ami-", "    - pcr: 12\n")
	}
	for _, want := range wants {
		if !strings.Contains(fleet, want) {
			t.Errorf("the policy lacks %q:\n%s", want, fleet)
		}
	}

	// A node that came from elsewhere does not meet what was pinned, and contributes nothing.
	other := c.simulatedNode()
	c.answerBy(other)
	failing, _, status := c.verify("prod", "--attest", "--policy", "fleet.yaml", "--allow-custom-roots")
	if status != 1 || failing["attestation"].Status != "fail" {
		t.Errorf("another node: exit status %d, %v", status, failing)
	}
	out, status = c.run("sevctl", "policy", "pin", "--from-fleet", "prod", "--policy", policy, "--allow-custom-roots")
	if status != 1 || !strings.Contains(out, "refused: "+id) || strings.Contains(out, "measurement:") {
		t.Errorf("pin from another node: exit status %d\n%s", status, out)
	}
}

// answerBy lets the agent with this socket answer Run Command on every instance.
func (c *cloud) answerBy(socket string) {
	c.t.Helper()
	dir := c.t.TempDir()
	program, wrapper := filepath.Join(dir, "command"), filepath.Join(dir, "sevagent")
	lab.WriteProgram(c.t, wrapper, "#!/bin/sh\nexec "+lab.Bin("sevagent")+" --socket "+socket+" \"$@\"\n")
	// cloud-init, which no instance here has, leaves the instance's ID in a file.
	lab.WriteProgram(c.t, program, "#!/bin/bash\necho $1 > "+program+".id\n"+
		"sed 's,/var/lib/cloud/data/instance-id,"+program+".id,; s,/usr/bin/sevagent,"+wrapper+",' | bash -s\n")
	c.control("command", map[string]any{"program": program})
}

// TestAttest asks a node through Run Command for evidence: a real sevagent on a simulated device answers.
func TestAttest(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	if out, status := c.deploy("b", "cluster.yaml", c.basic("b")...); status != 0 {
		t.Fatalf("%s\n%s", out, c.events())
	}
	socket := c.simulatedNode("--instance-id", c.instances("b")[0])
	dir := filepath.Dir(filepath.Dir(socket))
	var node client.Status
	text := c.must("sevagent", "status", "--json", "--socket", socket)
	must.Do(t, json.Unmarshal([]byte(text), &node), "decode %s", text)
	c.attribute("b", c.instances("b")[0], "sevagent.measurement", node.Attestation.Measurement)

	c.answerBy(socket)
	policy := filepath.Join(dir, "sim/policy.yaml")
	if os.Getuid() != 0 { // and Run Command is
		failing, _, status := c.verify("b", "--attest", "--policy", policy, "--allow-custom-roots")
		if status != 1 || !strings.Contains(failing["attestation"].Detail, "not by the node's root") {
			t.Errorf("asked by somebody: exit status %d, %v", status, failing)
		}
		return
	}
	if failing, _, status := c.verify("b", "--attest", "--policy", policy, "--allow-custom-roots"); status != 0 {
		t.Errorf("exit status %d: %v", status, failing)
	}
	if failing, _, status := c.verify("b", "--attest"); status != 1 || failing["attestation"].Status != "fail" {
		t.Errorf("by AMD's roots: exit status %d, %v; a simulated device must not pass", status, failing)
	}

	// Another genuine node answers for this one.
	other := c.simulatedNode()
	c.answerBy(other)
	policy = filepath.Join(filepath.Dir(filepath.Dir(other)), "sim/policy.yaml")
	failing, _, status := c.verify("b", "--attest", "--policy", policy, "--allow-custom-roots")
	if status != 1 || !strings.Contains(failing["attestation"].Detail, "it is the instance "+simaws.DefaultInstance().ID) {
		t.Errorf("evidence of another instance: exit status %d, %v", status, failing)
	}
}

//go:build aws

package aws_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"sevagent/internal/must"
	"sevagent/test/lab"
)

// recipes are the command blocks of a document, by name.
func recipes(t *testing.T, document string) (names []string, blocks map[string]string) {
	t.Helper()
	text := lab.Read(t, filepath.Join(lab.Repository(), document))
	blocks = make(map[string]string)
	for _, m := range regexp.MustCompile("(?ms)^```sh recipe=([a-z-]+)\n(.*?)^```$").FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
		blocks[m[1]] = m[2]
	}
	if fences := strings.Count(text, "\n```sh"); fences != len(names) {
		t.Errorf("%s has %d blocks of commands, and %d of them have names", document, fences, len(names))
	}
	return names, blocks
}

// TestGuide runs docs/deploy.md from the first block to the last.
func TestGuide(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	names, blocks := recipes(t, "docs/deploy.md")

	// What the document takes for granted.
	c.set("BUCKET", "deploy-bucket")
	c.aws("s3", "mb", "s3://deploy-bucket")
	c.set("AMI", c.query("Parameter.Value", "ssm", "get-parameter", "--name",
		"/aws/service/ecs/optimized-ami/amazon-linux-2023/recommended/image_id"))
	c.set("ENCLAVE_SG", c.query("GroupId", "ec2", "create-security-group", "--group-name", "enclave", "--description",
		"enclave", "--vpc-id", c.get("VPC")))
	c.set("REPOSITORY", "arn:aws:ecr:us-east-2:123456789012:repository/api")
	c.set("IMAGE", "123456789012.dkr.ecr.us-east-2.amazonaws.com/api:1")
	c.certificates()

	before := map[string]func(){
		"publish": func() {
			c.dist("a package")
		},
		"service": func() { c.set("NODES_SG", c.output("confidential-cluster", "SecurityGroupId")) },
		"mtls": func() {
			c.set("SECRET", c.query("ARN", "secretsmanager", "describe-secret", "--secret-id",
				"confidential-cluster-mtls"))
		},
	}
	after := map[string]func(out string){
		"publish": func(out string) {
			m := published("deploy-bucket").FindStringSubmatch(out)
			if m == nil {
				t.Fatalf("make publish printed %q", out)
			}
			c.set("PACKAGE_URL", m[1])
			c.set("PACKAGE_SHA256", m[2])
			if got := c.aws("s3", "cp", m[1], "-"); got != "a package" {
				t.Errorf("the bucket holds %q", got)
			}
		},
		"basic": func(string) {
			c.stands("confidential-cluster", "CREATE_COMPLETE", 1)
			tags := c.query("Tags[].[Key,Value]", "ec2", "describe-tags", "--filters",
				"Name=resource-id,Values="+c.instances("confidential-cluster")[0])
			if !strings.Contains(tags, "production") || !strings.Contains(tags, "security") {
				t.Errorf("a node has the tags %s", tags)
			}
		},
		"verify": func(out string) {
			if strings.Contains(out, "\x1b") {
				t.Error("the table has colours, and nobody looks")
			}
		},
		"ubuntu":     func(string) { c.stands("confidential-ubuntu", "CREATE_COMPLETE", 1) },
		"custom-ami": func(string) { c.stands("confidential-custom", "CREATE_COMPLETE", 2) },
		"mtls": func(string) {
			c.stands("confidential-cluster", "UPDATE_COMPLETE", 1)
			data := c.userData("confidential-cluster")
			for _, want := range []string{"\nMTLS_SECRET=" + c.get("SECRET") + "\n",
				"\nENCLAVE_ENDPOINT=enclave-internal.example.com:3000,enclave-backup.example.com:3000\n"} {
				if !strings.Contains(data, want) {
					t.Errorf("the user data lacks %s", want)
				}
			}
			if rules := c.query("Rules[].Name", "events", "list-rules"); !strings.Contains(rules, "PushRule") {
				t.Errorf("the rules are %s", rules)
			}
		},
		"consumers": func(string) {
			c.stands("confidential-cluster", "UPDATE_COMPLETE", 1)
			if data := c.userData("confidential-cluster"); !strings.Contains(data,
				"\nMTLS_CONSUMER=api=1000:1000=client.pem,ca.crt\n") {
				t.Errorf("the user data lacks the consumer:\n%s", data)
			}
		},
		"ecs-config": func(string) {
			c.stands("confidential-cluster", "UPDATE_COMPLETE", 1)
			if data := c.userData("confidential-cluster"); !strings.Contains(data,
				"\nECS_INSTANCE_ATTRIBUTES={\"pool\":\"general\",\"tier\":\"backend\"}\n") {
				t.Errorf("the user data lacks the lines:\n%s", data)
			}
		},
		"service": func(string) {
			if n := c.query("services[0].runningCount", "ecs", "describe-services", "--cluster", "confidential-cluster",
				"--services", "api"); n != "1" {
				t.Errorf("%s tasks of the service run, want 1", n)
			}
		},
		"change": func(string) {
			c.stands("confidential-cluster", "UPDATE_COMPLETE", 1)
			if got := c.node("confidential-cluster", "InstanceType"); got != "m6a.xlarge" {
				t.Errorf("the node is a %s", got)
			}
		},
		"pause": func(string) {
			if got := c.status("confidential-ubuntu"); got != "UPDATE_COMPLETE" {
				t.Errorf("the paused stack is %s", got)
			}
			if got := c.query("AutoScalingGroups[0].DesiredCapacity", "autoscaling", "describe-auto-scaling-groups",
				"--auto-scaling-group-names", "confidential-ubuntu-snp"); got != "0" {
				t.Errorf("the paused group wants %s nodes", got)
			}
		},
		"resume": func(string) {
			if got := c.status("confidential-ubuntu"); got != "UPDATE_COMPLETE" {
				t.Errorf("the resumed stack is %s", got)
			}
		},
		"rename": func(string) {
			if got := c.output("confidential-ubuntu", "ClusterName"); got != "confidential-renamed" {
				t.Errorf("the cluster is called %s", got)
			}
			if left := c.query("AutoScalingGroups[].AutoScalingGroupName", "autoscaling",
				"describe-auto-scaling-groups", "--auto-scaling-group-names", "confidential-ubuntu-snp"); left != "" {
				t.Errorf("the old cluster's group is left: %s", left)
			}
		},
	}
	for _, name := range []string{"change", "pause", "resume", "rename", "delete"} {
		if blocks[name] == "" {
			t.Errorf("docs/deploy.md has no commands that show %s", name)
		}
	}
	c.follow(names, blocks, before, after)
	if left := c.query("StackSummaries[?StackStatus!='DELETE_COMPLETE'].StackName", "cloudformation",
		"list-stacks"); strings.Contains(left, "cluster") || strings.Contains(left, "api") {
		t.Errorf("stacks that are left: %s", left)
	}
}

// follow runs the blocks of a guide in order, and what a test has to do before and to see after each.
func (c *cloud) follow(names []string, blocks map[string]string, before map[string]func(),
	after map[string]func(out string)) {
	c.t.Helper()
	for _, name := range names {
		began := time.Now()
		if do := before[name]; do != nil {
			do()
		}
		out, status := c.run("bash", "-euo", "pipefail", "-c", blocks[name])
		if status != 0 {
			c.t.Fatalf("%s: exit status %d\n%s\n%s", name, status, lab.Tail(out), c.events())
		}
		if do := after[name]; do != nil {
			do(out)
		}
		c.t.Logf("%-12s %v", name, time.Since(began).Round(100*time.Millisecond))
	}
}

// stands checks a stack, its nodes, and the cluster as sevctl sees it.
func (c *cloud) stands(name, status string, nodes int) {
	c.t.Helper()
	if got := c.status(name); got != status {
		c.t.Errorf("stack %s is %s, want %s", name, got, status)
	}
	if got := len(c.instances(name)); got != nodes {
		c.t.Errorf("%s has %d nodes, want %d", name, got, nodes)
	}
	failing, _, exit := c.verify(name)
	for _, k := range failing {
		if k.Status != "warn" {
			c.t.Errorf("%s: %s %s: %s", name, k.ID, k.Status, k.Detail)
		}
	}
	if exit != 0 {
		c.t.Errorf("%s: sevctl verify ended with %d", name, exit)
	}
}

// published is what "make publish" prints about a package in bucket.
func published(bucket string) *regexp.Regexp {
	return regexp.MustCompile(`^PackageUrl=(s3://` + bucket + `/sevagent/\S+\.rpm) PackageSha256=([0-9a-f]{64})\n$`)
}

func (c *cloud) userData(cluster string) string {
	c.t.Helper()
	id := c.instances(cluster)[0]
	return c.must("bash", "-c", "aws ec2 describe-instance-attribute --instance-id "+id+
		" --attribute userData --query UserData.Value --output text | base64 -d")
}

// events are the reasons for which anything has failed.
func (c *cloud) events() string {
	out, _ := c.run("bash", "-c", `
		failed="StackEvents[?ends_with(ResourceStatus, 'FAILED')].[LogicalResourceId, ResourceStatusReason]"
		for s in $(aws cloudformation list-stacks --query 'StackSummaries[].StackName' --output text); do
			aws cloudformation describe-stack-events --stack-name $s --query "$failed" --output text
		done`)
	return out
}

// dist makes a package and, in the tree where commands run, the script that publishes it.
func (c *cloud) dist(content string) {
	c.t.Helper()
	lab.Write(c.t, filepath.Join(c.dir, "dist/sevagent-1.0.0-1.x86_64.rpm"), content)
	os.Remove(filepath.Join(c.dir, "tools")) // a link into the repository
	lab.WriteProgram(c.t, filepath.Join(c.dir, "tools/publish"),
		lab.Read(c.t, filepath.Join(lab.Repository(), "tools/publish")))
}

func (c *cloud) certificates() {
	c.t.Helper()
	var fields map[string]string
	text := lab.ClientSecret(c.t, lab.NewCA(c.t, "Guide CA"), "node")
	must.Do(c.t, json.Unmarshal([]byte(text), &fields), "decode the secret")
	for field, file := range map[string]string{"client_cert": "client.crt", "client_key": "client.key",
		"ca_cert": "ca.crt"} {
		lab.Write(c.t, filepath.Join(c.dir, file), fields[field])
	}
}

// TestMigrationGuide compares the tables of docs/migrate-from-terraform.md with the template.
func TestMigrationGuide(t *testing.T) {
	read := func(name string) string { return lab.Read(t, filepath.Join(lab.Repository(), name)) }
	document, template := read("docs/migrate-from-terraform.md"), read("cloudformation/cluster.yaml")
	inputs := strings.Fields(`name vpc_id subnet_ids instance_type ami_id ami_os min_size max_size desired_capacity
		root_volume_size root_volume_type root_device_name container_insights_enabled service_connect_namespace
		health_check_grace_period protect_from_scale_in enable_auto_scaling target_cpu_utilization
		enable_managed_scaling target_capacity max_scaling_step_size min_scaling_step_size base_capacity
		managed_termination_protection user_data_extra enable_enclave_mtls enclave_security_group_ids enclave_endpoints
		mtls_certificate_secrets_arns mtls_certificate_path tags`)
	outputs := strings.Fields(`cluster_id cluster_arn cluster_name capacity_provider_name capacity_provider_arn
		autoscaling_group_name autoscaling_group_arn launch_template_id launch_template_arn security_group_id
		iam_role_arn iam_instance_profile_arn`)
	for _, old := range append(inputs, outputs...) {
		rows := regexp.MustCompile("(?m)^\\| `"+old+"` \\|(.*)$").FindAllStringSubmatch(document, -1)
		if len(rows) != 1 {
			t.Errorf("%s has %d rows, want one", old, len(rows))
			continue
		}
		names := regexp.MustCompile("`([A-Z][A-Za-z]+)`").FindAllStringSubmatch(rows[0][1], 1)
		if old == "tags" {
			continue // of the stack
		}
		if len(names) == 0 || !strings.Contains(template, "\n  "+names[0][1]+":") {
			t.Errorf("%s: the row names no parameter or output of the template: %s", old, rows[0][1])
		}
	}
}

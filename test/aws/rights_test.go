//go:build aws

package aws_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"sevagent/internal/must"
)

// statement is one of a role's policies.
type statement struct {
	Sid       string
	Effect    string
	Action    list
	Resource  list
	Condition map[string]map[string]any
}

// list is a string or several in JSON.
type list []string

func (l *list) UnmarshalJSON(text []byte) error {
	var one string
	if json.Unmarshal(text, &one) == nil {
		*l = list{one}
		return nil
	}
	return json.Unmarshal(text, (*[]string)(l))
}

// role returns the name of a stack's role.
func (c *cloud) role(stack, logicalID string) string {
	c.t.Helper()
	return c.query("StackResources[0].PhysicalResourceId", "cloudformation", "describe-stack-resources",
		"--stack-name", stack, "--logical-resource-id", logicalID)
}

// rights are the statements of a role's inline policies.
func (c *cloud) rights(role string) []statement {
	c.t.Helper()
	var all []statement
	for _, name := range strings.Fields(c.query("PolicyNames", "iam", "list-role-policies", "--role-name", role)) {
		text := c.aws("iam", "get-role-policy", "--role-name", role, "--policy-name", name, "--query", "PolicyDocument")
		var policy struct{ Statement []statement }
		must.Do(c.t, json.Unmarshal([]byte(text), &policy), "decode %s", text)
		all = append(all, policy.Statement...)
	}
	return all
}

// allow returns the statements that allow an action.
func allow(statements []statement, action string) []statement {
	return slices.DeleteFunc(slices.Clone(statements), func(s statement) bool {
		return s.Effect != "Allow" || !slices.Contains(s.Action, action)
	})
}

// TestRights compares what roles may with what they are to do, for the parameters that ask for more.
func TestRights(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	deploy := func(parameters ...string) []statement {
		t.Helper()
		if out, status := c.deploy("r", "cluster.yaml", append(c.basic("r"), parameters...)...); status != 0 {
			t.Fatalf("%s\n%s", out, c.events())
		}
		return c.rights(c.role("r", "NodeRole"))
	}
	node := deploy()
	for _, action := range []string{"ecs:TagResource", "ec2:DescribeTags", "ssm:UpdateInstanceInformation"} {
		if got := allow(node, action); len(got) > 0 {
			t.Errorf("nobody asked for it, and the nodes may %s", action)
		}
	}
	signal := allow(node, "cloudformation:SignalResource")
	stack := c.query("Stacks[0].StackId", "cloudformation", "describe-stacks", "--stack-name", "r")
	if len(signal) != 1 || !slices.Equal(signal[0].Resource, list{stack}) {
		t.Errorf("the nodes may signal %+v, want %s alone", signal, stack)
	}

	// Tags of container instances: in ecs.config, and those of the EC2 instance.
	node = deploy(`UserDataExtra=echo 'ECS_CONTAINER_INSTANCE_TAGS={"team":"a"}' >> /etc/ecs/ecs.config`)
	tag := allow(node, "ecs:TagResource")
	condition := "map[StringEquals:map[ecs:CreateAction:RegisterContainerInstance]]"
	if len(tag) != 1 || fmt.Sprint(tag[0].Condition) != condition ||
		!slices.Equal(tag[0].Resource, list{"arn:aws:ecs:us-east-2:123456789012:container-instance/r/*"}) {
		t.Errorf("tags: %+v, want at the registration of this cluster's instances alone", tag)
	}
	if got := allow(node, "ec2:DescribeTags"); len(got) > 0 {
		t.Errorf("tags of ecs.config let the nodes read those of EC2")
	}
	node = deploy("UserDataExtra=echo ECS_CONTAINER_INSTANCE_PROPAGATE_TAGS_FROM=ec2_instance >> /etc/ecs/ecs.config")
	if len(allow(node, "ecs:TagResource")) != 1 || len(allow(node, "ec2:DescribeTags")) != 1 {
		t.Errorf("propagated tags: %+v", node)
	}

	release := c.rights(c.role("r", "EventsRole"))
	want := list{
		"arn:aws:ssm:us-east-2:123456789012:document/sevagent-release-r",
		"arn:aws:ssm:us-east-2:123456789012:automation-definition/sevagent-release-r:*",
		"arn:aws:ssm:us-east-2:123456789012:automation-execution/*",
	}
	if start := allow(release, "ssm:StartAutomationExecution"); len(start) != 1 || !slices.Equal(start[0].Resource, want) {
		t.Errorf("the rule may start %+v, want %v", start, want)
	}
	if send := allow(release, "ssm:SendCommand"); len(send) > 0 {
		t.Errorf("without rotation push, the rule may send %+v", send)
	}
}

// TestSurroundings gives a stack what an account may ask for: a boundary and a path for roles, a key for volumes, and
// DNS servers of its own.
func TestSurroundings(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	boundary := c.query("Policy.Arn", "iam", "create-policy", "--policy-name", "boundary", "--policy-document",
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`)
	key := "arn:aws:kms:us-east-2:123456789012:key/8a5b2f3e-0000-4000-8000-000000000001"
	secret := c.query("ARN", "secretsmanager", "create-secret", "--name", "mtls", "--secret-string", "x")
	given := c.basic("s", "PermissionsBoundaryArn="+boundary, "RolePath=/teams/security/", "RootVolumeKmsKeyArn="+key,
		"DnsResolverCidr=10.1.0.0/24", "EnableEnclaveMtls=true", "MtlsCertificateSecretsArns="+secret,
		"EnableRotationPush=true")
	if out, status := c.deploy("s", "cluster.yaml", given...); status != 0 {
		t.Fatalf("%s\n%s", out, c.events())
	}
	roles := c.query("Roles[].[RoleName]", "iam", "list-roles", "--path-prefix", "/teams/security/")
	for _, logicalID := range []string{"NodeRole", "EventsRole", "ReleaseRole"} {
		name := c.role("s", logicalID)
		if !strings.Contains(roles, name) {
			t.Errorf("%s is not at the path", name)
		}
		if got := c.query("Role.PermissionsBoundary.PermissionsBoundaryArn", "iam", "get-role", "--role-name",
			name); got != boundary {
			t.Errorf("%s has the boundary %s", name, got)
		}
	}
	if all := c.query("length(Roles)", "iam", "list-roles"); all != "3" {
		t.Errorf("the stack has %s roles, and three were looked at", all)
	}
	if got := c.query("LaunchTemplateVersions[0].LaunchTemplateData.BlockDeviceMappings[0].Ebs.KmsKeyId", "ec2",
		"describe-launch-template-versions", "--launch-template-name", "s-snp"); got != key {
		t.Errorf("root volumes are encrypted with %s", got)
	}
	dns := c.query("SecurityGroups[0].IpPermissionsEgress[?ToPort==`53`].[IpProtocol,FromPort,IpRanges[0].CidrIp]", "ec2",
		"describe-security-groups", "--group-ids", c.output("s", "SecurityGroupId"))
	if lines := strings.Split(dns, "\n"); len(lines) != 2 || !slices.Contains(lines, "udp\t53\t10.1.0.0/24") ||
		!slices.Contains(lines, "tcp\t53\t10.1.0.0/24") {
		t.Errorf("to the resolvers: %q", dns)
	}
	send := allow(c.rights(c.role("s", "EventsRole")), "ssm:SendCommand")
	document := list{"arn:aws:ssm:us-east-2:123456789012:document/sevagent-refresh-s"}
	if len(send) != 2 || !slices.Equal(send[0].Resource, document) || len(send[1].Condition) == 0 {
		t.Errorf("the rule may send %+v, want %v to nodes with the cluster's tag", send, document)
	}
	if out, status := c.deploy("s", "cluster.yaml", "PermissionsBoundaryArn=", "DnsResolverCidr="); status != 0 {
		t.Fatalf("%s\n%s", out, c.events())
	}
	if got := c.query("Role.PermissionsBoundary", "iam", "get-role", "--role-name",
		c.role("s", "NodeRole")); got != "None" {
		t.Errorf("the boundary stays: %s", got)
	}
}

// TestDeleteInUse deletes a stack while a service uses its capacity provider. That fails, and the cluster lives on with
// its nodes protected; when the service is gone, it succeeds.
func TestDeleteInUse(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	if out, status := c.deploy("u", "cluster.yaml", c.basic("u")...); status != 0 {
		t.Fatalf("%s\n%s", out, c.events())
	}
	protected := func() string {
		return c.group("u", "Instances[].ProtectedFromScaleIn")
	}
	if got := protected(); got != "True" {
		t.Fatalf("nodes are protected: %s", got)
	}
	if out, status := c.deploy("api", "service.yaml", "ServiceName=api", "ClusterName=u",
		"Image=123456789012.dkr.ecr.us-east-2.amazonaws.com/api:1",
		"ImageRepositoryArn=arn:aws:ecr:us-east-2:123456789012:repository/api", "SubnetIds="+c.get("SUBNETS"),
		"SecurityGroupIds="+c.output("u", "SecurityGroupId")); status != 0 {
		t.Fatalf("%s\n%s", out, c.events())
	}
	c.aws("cloudformation", "delete-stack", "--stack-name", "u")
	if out, status := c.run("aws", "cloudformation", "wait", "stack-delete-complete", "--stack-name", "u"); status == 0 {
		t.Fatalf("the stack is gone, with a service on it: %s", out)
	}
	c.control("settle", nil)
	if status, nodes := c.status("u"), protected(); status != "DELETE_FAILED" || nodes != "True" {
		t.Errorf("the stack is %s, and its nodes are protected: %s", status, nodes)
	}
	for _, stack := range []string{"api", "u"} {
		c.aws("cloudformation", "delete-stack", "--stack-name", stack)
		c.aws("cloudformation", "wait", "stack-delete-complete", "--stack-name", stack)
	}
}

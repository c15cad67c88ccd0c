//go:build aws

package aws_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sevagent/internal/must"
	"sevagent/test/lab"
)

// TestDeployer deploys, updates and deletes a cluster as the role of deployer.yaml, with CloudFormation in its name. It
// holds what the cluster's roles may do against the boundary.
func TestDeployer(t *testing.T) {
	t.Parallel()
	admin := newCloud(t)
	ca := admin.privateCA("team", "EC_prime256v1", "")
	out, status := admin.deploy("deployers", "deployer.yaml", "NamePrefix=team-", "VpcId="+admin.get("VPC"),
		"PackageBucket=packages", "PrivateCaArns="+ca)
	if status != 0 {
		t.Fatalf("%s\n%s", out, admin.events())
	}
	boundary := admin.output("deployers", "BoundaryArn")
	keys := admin.query("Credentials.[AccessKeyId,SecretAccessKey,SessionToken]", "sts", "assume-role", "--role-arn",
		admin.output("deployers", "DeployerRoleArn"), "--role-session-name", "somebody")
	session := strings.Fields(keys)
	c := *admin
	c.env = append(slices.Clone(admin.env), "AWS_ACCESS_KEY_ID="+session[0], "AWS_SECRET_ACCESS_KEY="+session[1],
		"AWS_SESSION_TOKEN="+session[2])
	group := admin.query("GroupId", "ec2", "create-security-group", "--group-name", "enclave", "--description", "e",
		"--vpc-id", admin.get("VPC"))
	secret := admin.query("ARN", "secretsmanager", "create-secret", "--name", "team-mtls", "--secret-string", "x")

	// What it must not do.
	if out, status := c.deploy("other", "cluster.yaml", c.basic("team-a")...); status == 0 ||
		!strings.Contains(out, "cloudformation:") || !strings.Contains(out, "not authorized") {
		t.Errorf("a stack without the prefix: exit status %d: %s", status, out)
	}
	if out, status := c.deploy("team-a", "cluster.yaml", c.basic("team-a")...); status == 0 ||
		!strings.Contains(admin.events(), "not authorized to perform: iam:CreateRole") {
		t.Errorf("roles without the boundary: exit status %d: %s\n%s", status, out, admin.events())
	}
	c.aws("cloudformation", "delete-stack", "--stack-name", "team-a")
	c.aws("cloudformation", "wait", "stack-delete-complete", "--stack-name", "team-a")

	for _, parameters := range [][]string{
		c.basic("team-a", "PermissionsBoundaryArn="+boundary, "PackageUrl=s3://packages/sevagent.rpm"),
		{"InstanceType=m6a.xlarge", "EnableAutoScaling=true", "EnableEnclaveMtls=true", "EnclaveSecurityGroupIds=" + group,
			"MtlsCertificateSecretsArns=" + secret, "MtlsPrivateCaArn=" + ca, "EnableRotationPush=true",
			"DnsResolverCidr=10.1.0.0/24",
			"UserDataExtra=echo ECS_CONTAINER_INSTANCE_PROPAGATE_TAGS_FROM=ec2_instance >> /etc/ecs/ecs.config"},
	} {
		if out, status := c.deploy("team-a", "cluster.yaml", parameters...); status != 0 {
			t.Fatalf("%v: %s\n%s", parameters, out, admin.events())
		}
	}
	admin.bounded(boundary, "team-a")
	// CloudFormation as that role, for someone else; it stays the stack's role.
	if out, status := admin.run("aws", "cloudformation", "deploy", "--stack-name", "team-a", "--template-file",
		"cloudformation/cluster.yaml", "--capabilities", "CAPABILITY_IAM", "--role-arn",
		admin.output("deployers", "DeployerRoleArn"), "--parameter-overrides", "EnableAutoScaling=false",
		"EnableEnclaveMtls=false", "EnclaveSecurityGroupIds=", "MtlsCertificateSecretsArns=", "MtlsPrivateCaArn=",
		"UserDataExtra="); status != 0 {
		t.Fatalf("%s\n%s", out, admin.events())
	}
	c.aws("cloudformation", "delete-stack", "--stack-name", "team-a")
	c.aws("cloudformation", "wait", "stack-delete-complete", "--stack-name", "team-a")
}

// bounded reports rights of a stack's roles of which their boundary would leave nothing. Either may be the narrower
// one: what counts on AWS is what both allow.
func (c *cloud) bounded(boundary, stack string) {
	c.t.Helper()
	text := c.aws("iam", "get-policy-version", "--policy-arn", boundary, "--version-id", "v1", "--query",
		"PolicyVersion.Document")
	var policy struct{ Statement []statement }
	must.Do(c.t, json.Unmarshal([]byte(text), &policy), "decode %s", text)
	within := func(action, resource string) bool {
		return slices.ContainsFunc(policy.Statement, func(s statement) bool {
			return slices.ContainsFunc(s.Action, func(a string) bool { return glob(a, action) }) &&
				slices.ContainsFunc(s.Resource, func(r string) bool { return glob(r, resource) || glob(resource, r) })
		})
	}
	count := 0
	for _, logicalID := range []string{"NodeRole", "EventsRole", "ReleaseRole"} {
		for _, s := range c.rights(c.role(stack, logicalID)) {
			for _, action := range s.Action {
				for _, resource := range s.Resource {
					count++
					if !within(action, resource) {
						c.t.Errorf("%s: the boundary takes away %s on %s", logicalID, action, resource)
					}
				}
			}
		}
	}
	if count < 20 {
		c.t.Errorf("%d rights were compared", count)
	}
}

// glob matches as IAM does.
func glob(pattern, text string) bool {
	return regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, ".*") + "$").MatchString(text)
}

// TestAccounts runs docs/accounts.md.
func TestAccounts(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	names, blocks := recipes(t, "docs/accounts.md")
	c.set("VPC_CIDR", "10.9.0.0/16")
	c.set("ROUTE_TABLES", c.query("RouteTables[0].RouteTableId", "ec2", "describe-route-tables", "--filters",
		"Name=vpc-id,Values="+c.get("VPC")))
	c.set("KEY_ARN", c.query("KeyMetadata.Arn", "kms", "create-key"))
	c.follow(names, blocks, nil, map[string]func(string){
		"deployer": func(string) {
			if got := c.output("sevagent-deployers", "DeployerRoleArn"); !strings.Contains(got, ":role/sevagent-deployers/") {
				t.Errorf("the role is %q", got)
			}
		},
	})
}

// TestEndpoints makes the endpoints, with and without those that are optional, and compares them with the guide's list.
func TestEndpoints(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	table := c.query("RouteTables[0].RouteTableId", "ec2", "describe-route-tables", "--filters",
		"Name=vpc-id,Values="+c.get("VPC"))
	parameters := []string{"VpcId=" + c.get("VPC"), "VpcCidr=10.9.0.0/16", "SubnetIds=" + c.get("SUBNETS"),
		"RouteTableIds=" + table}
	services := func() []string {
		all := strings.Fields(c.query("VpcEndpoints[?State!='deleted'].ServiceName", "ec2", "describe-vpc-endpoints"))
		slices.Sort(all)
		return all
	}
	if out, status := c.deploy("endpoints", "endpoints.yaml",
		append(parameters, "EnableTagPropagation=true", "EnablePrivateCa=true")...); status != 0 {
		t.Fatalf("%s\n%s", out, c.events())
	}
	var told []string
	guide := lab.Read(t, lab.Repository()+"/docs/accounts.md")
	for _, m := range regexp.MustCompile("(?m)^\\| (`[a-z0-9., `-]+`) \\|.*\\|$").FindAllStringSubmatch(
		guide[strings.Index(guide, "## Without a NAT gateway"):], -1) {
		for _, name := range regexp.MustCompile("`([a-z0-9.-]+)`").FindAllStringSubmatch(m[1], -1) {
			told = append(told, fmt.Sprintf("com.amazonaws.%s.%s", region, name[1]))
		}
	}
	slices.Sort(told)
	if got := services(); !slices.Equal(got, told) {
		t.Errorf("the template makes %v, and the guide tells of %v", got, told)
	}
	if out, status := c.deploy("endpoints", "endpoints.yaml", "EnableTagPropagation=false",
		"EnableRunCommand=false", "EnablePrivateCa=false"); status != 0 {
		t.Fatalf("%s\n%s", out, c.events())
	}
	for _, name := range services() {
		if strings.Contains(name, "ssm") || strings.Contains(name, "messages") || strings.HasSuffix(name, ".ec2") ||
			strings.HasSuffix(name, ".acm-pca") {
			t.Errorf("%s is left", name)
		}
	}
	elsewhere := c.query("Vpc.VpcId", "ec2", "create-vpc", "--cidr-block", "10.8.0.0/16")
	if out, status := c.deploy("bad", "endpoints.yaml", append(parameters[1:], "VpcId="+elsewhere)...); status == 0 ||
		!strings.Contains(strings.Join(strings.Fields(out), " "), "all of them") {
		t.Errorf("subnets of another VPC: exit status %d: %s", status, out)
	}
}

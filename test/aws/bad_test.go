//go:build aws

package aws_test

import (
	"fmt"
	"strings"
	"testing"
)

// TestBadInput violates one constraint at a time. Each is refused before anything is created, in words that say what to
// do.
func TestBadInput(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	groups := make([]string, 7)
	for i := range groups {
		groups[i] = fmt.Sprintf("sg-0123456789abcde%02d", i)
	}
	elsewhere := c.aws("ec2", "create-vpc", "--cidr-block", "10.8.0.0/16", "--query", "Vpc.VpcId", "--output", "text")
	mtls := []string{"EnableEnclaveMtls=true",
		"MtlsCertificateSecretsArns=arn:aws:secretsmanager:us-east-2:123456789012:secret:x-AbCdEf"}
	for i, test := range []struct {
		name, says string
		parameters []string
	}{
		{"name that ECS reserves", "not starting with aws, ecs or fargate", []string{"ClusterName=aws-x"}},
		{"name with a blank", "a letter, then letters, digits", []string{"ClusterName=my cluster"}},
		{"type without SNP", "a type with AMD SEV-SNP", []string{"InstanceType=t3.micro"}},
		{"system", "amazon-linux-2023 or ubuntu", []string{"AmiOs=windows"}},
		{"package of the other system", "nonexistent value at index 1", []string{"AmiOs=ubuntu"}},
		{"AMI", "an AMI's ID", []string{"AmiId=ami-1"}},
		{"seven security groups", "at most five", append(mtls, "EnclaveSecurityGroupIds="+strings.Join(groups, ","))},
		{"not a security group", "security group IDs", append(mtls, "EnclaveSecurityGroupIds=sg-1")},
		{"not a secret", "full ARNs of secrets", []string{"EnableEnclaveMtls=true",
			"MtlsCertificateSecretsArns=arn:aws:s3:::x"}},
		{"endpoint without a port", "the port is required", append(mtls, "EnclaveEndpoints=enclave.example.com")},
		{"endpoint's port", "HOST:PORT", append(mtls, "EnclaveEndpoints=enclave.example.com:70000")},
		{"port", "1 to 65535", append(mtls, "EnclavePort=65536")},
		{"path that climbs", "an absolute path", append(mtls, "MtlsCertificatePath=/etc/../root")},
		{"path of the system", "no directory of the system", append(mtls, "MtlsCertificatePath=/usr/lib")},
		{"owner by name", "a numeric uid:gid", append(mtls, "MtlsOwner=app:app")},
		{"owner without a group", "a numeric uid:gid", append(mtls, "MtlsOwner=1000")},
		{"consumer without files", "NAME=UID:GID=FILE,FILE", append(mtls, "MtlsConsumers=api=1000:1000")},
		{"consumer's owner by name", "NAME=UID:GID=FILE,FILE", append(mtls, "MtlsConsumers=api=app:app=ca.crt")},
		{"consumer in a script", "NAME=UID:GID=FILE,FILE", append(mtls, "MtlsConsumers=api=1:1=ca.crt';id;'")},
		{"too many consumers", "at most 96 characters",
			append(mtls, "MtlsConsumers="+strings.Repeat(",a=1:1=ca.crt", 9)[1:])},
		{"mTLS without secrets", "needs MtlsCertificateSecretsArns", []string{"EnableEnclaveMtls=true"}},
		{"4,097 bytes of user data", "4096", []string{"UserDataExtra=#" + strings.Repeat("x", 4096)}},
		{"a script with the script's own delimiter", "without MIME-Version: and ==sevagent==",
			[]string{"UserDataExtra=true\n==sevagent==\n"}},
		{"a script that is a message", "without MIME-Version:", []string{"UserDataExtra=#x\nMIME-version: 1.0"}},
		{"another cluster in ecs.config", "without ECS_CLUSTER", []string{"EcsConfig=ECS_LOGLEVEL=warn\n\n ECS_CLUSTER=x"}},
		{"no assignment in ecs.config", "lines KEY=VALUE", []string{"EcsConfig=export ECS_LOGLEVEL=warn"}},
		{"ecs.config of Windows", "lines KEY=VALUE", []string{"EcsConfig=ECS_LOGLEVEL=warn\r\nECS_A=b"}},
		{"769 bytes of ecs.config", "at most 768", []string{"EcsConfig=A=" + strings.Repeat("x", 767)}},
		{"cloud-config", "not cloud-config", []string{"UserDataExtra=#cloud-config"}},
		{"neither package nor AMI", "The public AMIs do not contain sevagent",
			[]string{"PackageUrl=", "PackageSha256="}},
		{"package without its checksum", "needs PackageSha256", []string{"PackageSha256="}},
		{"package over HTTP", "https://HOST/PATH or s3://BUCKET/KEY",
			[]string{"PackageUrl=http://example.com/sevagent.rpm"}},
		{"checksum", "64 lower-case hexadecimal digits", []string{"PackageSha256=abc"}},
		{"volume too small", "8 to 16384", []string{"RootVolumeSize=1"}},
		{"volume smaller than the AMI's", "set RootVolumeSize to 30 or more", []string{"RootVolumeSize=20"}},
		{"desired above the maximum", "raise MaxSize", []string{"DesiredCapacity=4", "MaxSize=3"}},
		{"minimum above the desired", "raise DesiredCapacity", []string{"MinSize=2", "DesiredCapacity=1"}},
		{"subnets of another VPC", "all of them", []string{"VpcId=" + elsewhere}},
		{"key by its alias", "the ARN of a KMS key",
			[]string{"RootVolumeKmsKeyArn=arn:aws:kms:us-east-2:123456789012:alias/ebs"}},
		{"boundary", "the ARN of an IAM policy",
			[]string{"PermissionsBoundaryArn=arn:aws:iam::123456789012:role/x"}},
		{"path without its end", "a path such as /", []string{"RolePath=/teams"}},
		{"resolver without its length", "an IPv4 range", []string{"DnsResolverCidr=10.0.0.2"}},
		{"target above 100", "1 to 100", []string{"TargetCapacity=101"}},
		{"mode", "enforce, warn or off", []string{"AttestationMode=maybe"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := *c
			c.t = t
			out, status := c.deploy(fmt.Sprint("bad", i), "cluster.yaml", append(c.basic("bad"), test.parameters...)...)
			if status == 0 {
				t.Fatalf("it was deployed: %s", out)
			}
			if flat := strings.Join(strings.Fields(out), " "); !strings.Contains(flat, test.says) {
				t.Errorf("%q is not in what it says: %s", test.says, out)
			}
		})
	}
	if n := c.query("length(Roles)", "iam", "list-roles") + c.query("length(clusterArns)", "ecs",
		"list-clusters"); n != "00" {
		t.Errorf("roles and clusters were created: %s", n)
	}
	t.Run("region", func(t *testing.T) {
		c := *c
		c.t = t
		there := func(args ...string) string {
			return c.aws(append(args, "--region", "eu-central-1", "--output", "text")...)
		}
		vpc := there("ec2", "create-vpc", "--cidr-block", "10.0.0.0/16", "--query", "Vpc.VpcId")
		subnet := there("ec2", "create-subnet", "--vpc-id", vpc, "--cidr-block", "10.0.0.0/24", "--query",
			"Subnet.SubnetId")
		args := append([]string{"cloudformation", "deploy", "--region", "eu-central-1", "--stack-name", "far",
			"--template-file", "cloudformation/cluster.yaml", "--capabilities", "CAPABILITY_IAM",
			"--parameter-overrides"}, c.basic("far", "VpcId="+vpc, "SubnetIds="+subnet)...)
		if out, status := c.run("aws", args...); status == 0 || !strings.Contains(out, "set AllowAnyRegion=true") {
			t.Errorf("exit status %d: %s", status, out)
		}
	})
}

// TestVariants toggles what can be toggled, on one stack, and deletes it with live nodes.
func TestVariants(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	group := c.query("GroupId", "ec2", "create-security-group", "--group-name", "enclave", "--description", "e",
		"--vpc-id", c.get("VPC"))
	secret := c.query("ARN", "secretsmanager", "create-secret", "--name", "mtls", "--secret-string", "x")
	provider := func(query string) string {
		return c.query("capacityProviders[0].autoScalingGroupProvider."+query, "ecs", "describe-capacity-providers",
			"--capacity-providers", "v-snp")
	}
	for _, step := range []struct {
		name       string
		parameters []string
		check      func() string // what is wrong
	}{
		{"no nodes at all", c.basic("v", "MinSize=0", "DesiredCapacity=0"), func() string {
			if n := len(c.instances("v")); n != 0 {
				return fmt.Sprintf("%d nodes", n)
			}
			return ""
		}},
		{"two nodes", []string{"MinSize=1", "DesiredCapacity=2"}, func() string {
			if n := len(c.instances("v")); n != 2 {
				return fmt.Sprintf("%d nodes, want 2", n)
			}
			if got := provider("managedTerminationProtection") +
				c.group("v", "NewInstancesProtectedFromScaleIn"); got != "ENABLEDTrue" {
				return "protection is " + got
			}
			return ""
		}},
		{"nothing changed", nil, func() string { return "" }},
		{"CPU beside managed scaling", []string{"EnableAutoScaling=true"}, func() string {
			if got := c.query("length(ScalingPolicies)", "autoscaling", "describe-policies",
				"--auto-scaling-group-name", "v-snp"); got != "1" {
				return got + " policies"
			}
			return ""
		}},
		{"managed scaling off", []string{"EnableManagedScaling=false"}, func() string {
			// Its parameter still says true; ECS would refuse it.
			if got := provider("managedTerminationProtection") +
				c.group("v", "NewInstancesProtectedFromScaleIn"); got != "DISABLEDFalse" {
				return "protection is " + got
			}
			return ""
		}},
		{"protection asked for by itself", []string{"ProtectFromScaleIn=true"}, func() string {
			if got := c.group("v", "NewInstancesProtectedFromScaleIn"); got != "True" {
				return "protection is " + got
			}
			return ""
		}},
		{"insights off", []string{"ContainerInsightsEnabled=false"}, func() string {
			if got := c.query("clusters[0].settings[0].value", "ecs", "describe-clusters", "--clusters", "v",
				"--include", "SETTINGS"); got != "disabled" {
				return "insights are " + got
			}
			return ""
		}},
		{"mTLS on", []string{"EnableEnclaveMtls=true", "EnclaveSecurityGroupIds=" + group,
			"MtlsCertificateSecretsArns=" + secret, "EnclavePort=3000"}, func() string {
			sg := c.output("v", "SecurityGroupId")
			if got := c.query("SecurityGroups[0].IpPermissions[].[FromPort,ToPort,UserIdGroupPairs[0].GroupId]", "ec2",
				"describe-security-groups", "--group-ids", sg); got != "3000\t3000\t"+group {
				return "the way in is " + got
			}
			return ""
		}},
		{"mTLS off", []string{"EnableEnclaveMtls=false"}, func() string {
			sg := c.output("v", "SecurityGroupId")
			if got := c.query("length(SecurityGroups[0].IpPermissions)", "ec2", "describe-security-groups",
				"--group-ids", sg); got != "0" {
				return "the way in is still there: " + got
			}
			if strings.Contains(c.userData("v"), secret) {
				return "the user data still names the secret"
			}
			return ""
		}},
	} {
		out, status := c.deploy("v", "cluster.yaml", step.parameters...)
		if status != 0 {
			t.Fatalf("%s: exit status %d\n%s\n%s", step.name, status, out, c.events())
		}
		if wrong := step.check(); wrong != "" {
			t.Errorf("%s: %s", step.name, wrong)
		}
	}
	c.aws("cloudformation", "delete-stack", "--stack-name", "v")
	c.aws("cloudformation", "wait", "stack-delete-complete", "--stack-name", "v")
	if left := c.query("length(AutoScalingGroups)", "autoscaling", "describe-auto-scaling-groups") +
		c.query("length(Roles)", "iam", "list-roles"); left != "00" {
		t.Errorf("groups and roles that are left: %s", left)
	}
}

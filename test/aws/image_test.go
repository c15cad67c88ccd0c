//go:build aws

package aws_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sevagent/internal/must"
	"sevagent/test/lab"
)

// image deploys image.yaml with the parameters that have no default, and others.
func (c *cloud) image(stack string, more ...string) (out string, status int) {
	c.t.Helper()
	subnet, _, _ := strings.Cut(c.get("SUBNETS"), ",")
	return c.deploy(stack, "image.yaml", append([]string{"VpcId=" + c.get("VPC"), "SubnetId=" + subnet,
		"PackageUrl=" + c.get("PACKAGE_URL"), "PackageSha256=" + c.get("PACKAGE_SHA256")}, more...)...)
}

func (c *cloud) resource(stack, name string) string {
	c.t.Helper()
	return c.query("StackResources[0].PhysicalResourceId", "cloudformation", "describe-stack-resources", "--stack-name",
		stack, "--logical-resource-id", name)
}

// changed puts a template of the same name, changed, into the directory where commands run.
func (c *cloud) changed(name, old, new string) {
	c.t.Helper()
	text := lab.Read(c.t, filepath.Join(lab.Repository(), "cloudformation", name))
	if strings.Count(text, old) != 1 {
		c.t.Fatalf("%s has %q %d times", name, old, strings.Count(text, old))
	}
	os.Remove(filepath.Join(c.dir, "cloudformation"))
	lab.Write(c.t, filepath.Join(c.dir, "cloudformation", name), strings.Replace(text, old, new, 1))
}

// TestImageStack creates the pipeline, changes it in each way, and deletes it.
func TestImageStack(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	recipe := func() string {
		arn := c.output("image", "RecipeArn")
		if got := c.query("imagePipeline.imageRecipeArn", "imagebuilder", "get-image-pipeline", "--image-pipeline-arn",
			c.output("image", "PipelineArn")); got != arn {
			t.Errorf("the pipeline builds %s, and the recipe is %s", got, arn)
		}
		return arn[strings.LastIndex(arn, "/")+1:]
	}
	want := func(step, status, version string, out string, exit int) {
		t.Helper()
		if got := c.status("image"); got != status || (exit == 0) != !strings.Contains(status, "ROLLBACK") {
			t.Fatalf("%s: %s, exit status %d\n%s\n%s", step, got, exit, out, c.events())
		}
		if got := recipe(); got != version {
			t.Errorf("%s: the recipe has version %s, want %s", step, got, version)
		}
	}
	out, status := c.image("image")
	want("create", "CREATE_COMPLETE", "1.0.0", out, status)

	recipeJSON := c.aws("imagebuilder", "get-image-recipe", "--image-recipe-arn", c.output("image", "RecipeArn"))
	for _, part := range []string{
		`"parentImage": "ssm:/aws/service/ecs/optimized-ami/amazon-linux-2023/recommended/image_id"`,
		`"encrypted": true`, c.get("PACKAGE_URL"), c.get("PACKAGE_SHA256"),
	} {
		if !strings.Contains(recipeJSON, part) {
			t.Errorf("the recipe lacks %s: %s", part, recipeJSON)
		}
	}

	// Another package is another version of the recipe, and leaves the components.
	component := c.resource("image", "PackageComponent")
	out, status = c.image("image", "PackageSha256="+strings.Repeat("0b", 32))
	want("another package", "UPDATE_COMPLETE", "1.0.1", out, status)
	if got := c.resource("image", "PackageComponent"); got != component {
		t.Errorf("another package: the component is now %s", got)
	}
	// Another component is another build of it, and another version of the recipe.
	c.changed("image.yaml", "kernel.kptr_restrict = 2", "kernel.kptr_restrict = 1")
	out, status = c.image("image")
	want("another component", "UPDATE_COMPLETE", "1.0.2", out, status)
	if got := c.resource("image", "HardeningComponent"); !strings.HasSuffix(got, "/1.0.0/2") {
		t.Errorf("another component: it is %s", got)
	}
	// A version that is given is kept to: what changes without another one is refused, and nothing stays of it.
	out, status = c.image("image", "RecipeVersion=2.0.0")
	want("a version", "UPDATE_COMPLETE", "2.0.0", out, status)
	component = c.resource("image", "HardeningComponent")
	c.changed("image.yaml", "kernel.kptr_restrict = 2", "kernel.kptr_restrict = 0")
	out, status = c.image("image", "RecipeVersion=2.0.0")
	want("the same version", "UPDATE_ROLLBACK_COMPLETE", "2.0.0", out, status)
	if reasons := c.events(); !strings.Contains(reasons, "already exists") ||
		!strings.Contains(reasons, "image-recipe/sevagent/2.0.0") {
		t.Errorf("the same version: %s", reasons)
	}
	if got := c.resource("image", "HardeningComponent"); got != component {
		t.Errorf("the same version: the component is %s, want %s", got, component)
	}
	out, status = c.image("image", "RecipeVersion=2.0.1")
	want("the next version", "UPDATE_COMPLETE", "2.0.1", out, status)

	// All that is optional, and back.
	out, status = c.image("image", "RecipeVersion=2.0.x", "AmiParameterName=/sevagent/ami", "KeepImages=4",
		"LogBucket=logs-of-builds",
		"SnsTopicArn=arn:aws:sns:us-east-2:123456789012:builds", "EnableImageScanning=true", "Schedule=",
		"CopyToOtherRegion=false",
		"PackageUrl=s3://packages/sevagent.rpm")
	want("everything", "UPDATE_COMPLETE", "2.0.2", out, status)
	if role, policy := c.resource("image", "BuilderRole"), "package"; !strings.Contains(
		c.aws("iam", "get-role-policy", "--role-name", role, "--policy-name", policy),
		"arn:aws:s3:::packages/sevagent.rpm") {
		t.Error("the role may not read the package")
	}
	pipeline := c.aws("imagebuilder", "get-image-pipeline", "--image-pipeline-arn", c.output("image", "PipelineArn"))
	if strings.Contains(pipeline, "scheduleExpression") || !strings.Contains(pipeline, `"imageScanningEnabled": true`) {
		t.Errorf("the pipeline is %s", pipeline)
	}
	c.aws("imagebuilder", "start-image-pipeline-execution", "--image-pipeline-arn", c.output("image", "PipelineArn"))
	ami := c.query("Parameter.Value", "ssm", "get-parameter", "--name", "/sevagent/ami")
	if mode := c.query("Images[0].BootMode", "ec2", "describe-images", "--image-ids", ami); mode != "uefi-preferred" {
		t.Errorf("the AMI has boot mode %s", mode)
	}
	if n := c.query("length(Images)", "ec2", "describe-images", "--owners", "self", "--region", "eu-west-1",
		"--filters", "Name=tag:sevagent:image,Values=sevagent"); n != "0" {
		t.Errorf("there are %s copies", n)
	}
	out, status = c.image("image", "AmiParameterName=", "KeepImages=0", "LogBucket=", "SnsTopicArn=",
		"EnableImageScanning=false",
		"Schedule=cron(0 4 ? * sun *)", "CopyToOtherRegion=true")
	want("nothing of that", "UPDATE_COMPLETE", "2.0.3", out, status)

	c.aws("cloudformation", "delete-stack", "--stack-name", "image")
	c.aws("cloudformation", "wait", "stack-delete-complete", "--stack-name", "image")
}

// ami is what describe-images returns of an AMI, as far as it is registered again.
type ami struct {
	ImageID, Name, Description, BootMode, TpmSupport, ImdsSupport, RootDeviceName, Architecture string

	EnaSupport          bool
	BlockDeviceMappings []any
	Tags                []struct{ Key, Value string }
}

// amis are those of the image in a region.
func (c *cloud) amis(region string) (all []ami) {
	c.t.Helper()
	text := c.aws("ec2", "describe-images", "--region", region, "--owners", "self", "--filters",
		"Name=tag:sevagent:image,Values=sevagent", "--query", "Images")
	must.Do(c.t, json.Unmarshal([]byte(text), &all), "decode %s", text)
	return all
}

// build runs the pipeline, and what its end starts. It returns the build's ARN and the state of the last automation.
func (c *cloud) build(stack string) (arn, automation string) {
	c.t.Helper()
	arn = c.query("imageBuildVersionArn", "imagebuilder", "start-image-pipeline-execution", "--image-pipeline-arn",
		c.output(stack, "PipelineArn"))
	return arn, c.automation()
}

func (c *cloud) automation() string {
	c.t.Helper()
	c.control("settle", nil)
	return c.query("AutomationExecutionMetadataList[0].AutomationExecutionStatus", "ssm",
		"describe-automation-executions", "--filters", "Key=DocumentNamePrefix,Values=sevagent-nitrotpm-sevagent")
}

// TestImageNitroTPM builds AMIs with and without a NitroTPM. The automation runs with the rights of its role.
func TestImageNitroTPM(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	const uefi = "QU1aTlVFRkk="
	parent := func(name, mode string) string {
		return c.query("ImageId", "ec2", "register-image", "--name", name, "--boot-mode", mode, "--uefi-data", uefi,
			"--root-device-name", "/dev/xvda")
	}
	parameter := func(region string) string {
		return c.query("Parameter.Value", "ssm", "get-parameter", "--name", "/sevagent/ami", "--region", region)
	}
	given := []string{"ParentImage=" + parent("good", "uefi-preferred"), "AmiParameterName=/sevagent/ami"}
	regions := []string{"us-east-2", "eu-west-1"}

	if out, status := c.image("image", append(given, "NitroTpm=true", "KeepImages=3")...); status == 0 ||
		!strings.Contains(strings.Join(strings.Fields(out), " "), "set KeepImages=0") {
		t.Errorf("with KeepImages: exit status %d: %s", status, out)
	}
	c.aws("cloudformation", "delete-stack", "--stack-name", "image")

	// Without: what Image Builder makes, for comparison.
	if out, status := c.image("image", given...); status != 0 {
		t.Fatalf("%s\n%s", out, c.events())
	}
	c.build("image")
	plain := make(map[string]ami)
	for _, region := range regions {
		all := c.amis(region)
		if len(all) != 1 || all[0].BootMode != "uefi-preferred" || all[0].TpmSupport != "" {
			t.Fatalf("without NitroTpm, %s has %+v", region, all)
		}
		plain[region] = all[0]
	}
	before := parameter("us-east-2")

	// With. The first attempt ends in the middle; the second goes on.
	if out, status := c.image("image", "NitroTpm=true"); status != 0 {
		t.Fatalf("%s\n%s", out, c.events())
	}
	if got := parameter("us-east-2"); got != before {
		t.Errorf("the update alone changes the parameter to %s", got)
	}
	c.control("fault", map[string]any{"service": "ec2", "operation": "DeregisterImage", "code": "InternalError"})
	build, status := c.build("image")
	if status != "Success" {
		t.Fatalf("the automation ended with %s", status)
	}
	for _, region := range regions {
		all := slices.DeleteFunc(c.amis(region), func(a ami) bool { return a.ImageID == plain[region].ImageID })
		if len(all) != 1 {
			t.Fatalf("%s has these AMIs of one build: %+v", region, all)
		}
		got, want := all[0], plain[region]
		if got.BootMode+got.TpmSupport+got.ImdsSupport != "uefiv2.0v2.0" || !got.EnaSupport {
			t.Errorf("%s: %+v", region, got)
		}
		if got.Description != want.Description || got.RootDeviceName != want.RootDeviceName ||
			got.Architecture != want.Architecture || !strings.HasSuffix(got.Name, "Z-nitrotpm") {
			t.Errorf("%s: %+v, want it as Image Builder's %+v", region, got, want)
		}
		tags := make(map[string]string)
		for _, tag := range got.Tags {
			tags[tag.Key] = tag.Value
		}
		if len(tags) != len(want.Tags) || tags["sevagent:image"] != "sevagent" || tags["Ec2ImageBuilderArn"] != build {
			t.Errorf("%s: the tags are %v", region, tags)
		}
		snapshot := regexp.MustCompile("snap-[0-9a-f]+")
		devices := func(a ami) string { return snapshot.ReplaceAllString(fmt.Sprint(a.BlockDeviceMappings), "snap") }
		if devices(got) != devices(want) || !strings.Contains(devices(got), "Encrypted:true") {
			t.Errorf("%s: the devices are %v, want %v", region, devices(got), devices(want))
		}
		if data := c.query("UefiData.Value", "ec2", "describe-image-attribute", "--region", region, "--image-id",
			got.ImageID, "--attribute", "uefiData"); data != uefi {
			t.Errorf("%s: the UEFI variables are %q", region, data)
		}
		if id := parameter(region); id != got.ImageID {
			t.Errorf("%s: the parameter has %s, want %s", region, id, got.ImageID)
		}
	}

	// Once more, by hand: nothing is left to do.
	made := c.amis("us-east-2")
	c.aws("ssm", "start-automation-execution", "--document-name", c.output("image", "RegisterDocumentName"),
		"--parameters", "image="+build)
	if status := c.automation(); status != "Success" || len(c.amis("us-east-2")) != len(made) {
		t.Errorf("started again, it ends with %s and leaves %+v of %+v", status, c.amis("us-east-2"), made)
	}
	// Its role is for this image's AMIs.
	keys := strings.Fields(c.query("Credentials.[AccessKeyId,SecretAccessKey,SessionToken]", "sts", "assume-role",
		"--role-session-name", "test", "--role-arn", "arn:aws:iam::123456789012:role/"+c.role("image", "RegisterRole")))
	for _, args := range [][]string{
		{"ec2", "deregister-image", "--image-id", strings.TrimPrefix(given[0], "ParentImage=")},
		{"ec2", "register-image", "--name", "other", "--boot-mode", "uefi"},
		{"ec2", "create-tags", "--resources", made[0].ImageID, "--tags", "Key=k,Value=v"},
	} {
		if out, status := c.run("env", append([]string{"AWS_ACCESS_KEY_ID=" + keys[0], "AWS_SECRET_ACCESS_KEY=" + keys[1],
			"AWS_SESSION_TOKEN=" + keys[2], "aws"}, args...)...); status == 0 || !strings.Contains(out, "not authorized") {
			t.Errorf("the automation's role may %v: %s", args, out)
		}
	}

	// What cannot have a NitroTPM stays as it is, and is not handed on.
	before = parameter("us-east-2")
	if out, status := c.image("image", "ParentImage="+parent("bad", "legacy-bios")); status != 0 {
		t.Fatalf("%s\n%s", out, c.events())
	}
	c.automationFails = true
	if _, status := c.build("image"); status != "Failed" || parameter("us-east-2") != before {
		t.Errorf("legacy BIOS: the automation ended with %s, and the parameter has %s", status, parameter("us-east-2"))
	}
	if all := c.amis("us-east-2"); len(all) != len(made)+1 {
		t.Errorf("legacy BIOS: the AMIs are %+v", all)
	}
	why := c.query("AutomationExecutionMetadataList[0].FailureMessage", "ssm", "describe-automation-executions")
	if !strings.Contains(why, "its boot mode is legacy-bios") {
		t.Errorf("legacy BIOS: %s", why)
	}

	// And without again.
	if out, status := c.image("image", given[0], "NitroTpm=false"); status != 0 {
		t.Fatalf("%s\n%s", out, c.events())
	}
	c.build("image")
	if id := parameter("us-east-2"); c.query("Images[0].BootMode", "ec2", "describe-images", "--image-ids",
		id) != "uefi-preferred" {
		t.Errorf("without NitroTpm again, the parameter has %s", id)
	}
	c.aws("cloudformation", "delete-stack", "--stack-name", "image")
	c.aws("cloudformation", "wait", "stack-delete-complete", "--stack-name", "image")
}

// TestImageBadInput violates one constraint at a time.
func TestImageBadInput(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	for i, test := range []struct{ name, says, parameter string }{
		{"no checksum", "64 lower-case hexadecimal digits", "PackageSha256="},
		{"a deb", "ends in .rpm", "PackageUrl=https://packages.example.com/sevagent.deb"},
		{"a package over HTTP", "https://HOST/PATH or s3://BUCKET/KEY",
			"PackageUrl=http://packages.example.com/sevagent.rpm"},
		{"a quote in the URL", "https://HOST/PATH or s3://BUCKET/KEY",
			"PackageUrl=https://packages.example.com/'$(id)'.rpm"},
		{"two wildcards", "one of which may be an x", "RecipeVersion=1.x.x"},
		{"a version of two numbers", "three numbers", "RecipeVersion=1.0"},
		{"a name with capitals", "lower-case letters", "ImageName=Sevagent"},
		{"a type that boots no SNP guest", "m6a, c6a or r6a", "InstanceType=t3.micro"},
		{"a parameter of AWS's", "neither with /aws nor with /ssm", "AmiParameterName=/aws/ami"},
		{"a volume smaller than the parent's", "30 to 16000", "RootVolumeSize=8"},
		{"a schedule", "an expression of Image Builder", "Schedule=weekly"},
		{"a parent without ssm:", "ssm: and the name",
			"ParentImage=/aws/service/ecs/optimized-ami/amazon-linux-2023/recommended/image_id"},
	} {
		out, status := c.image(fmt.Sprint("bad", i), test.parameter)
		if flat := strings.Join(strings.Fields(out), " "); status == 0 || !strings.Contains(flat, test.says) {
			t.Errorf("%s: exit status %d, and %q is not in what it says: %s", test.name, status, test.says, out)
		}
	}
	c.env = append(c.env, "AWS_DEFAULT_REGION=us-west-2", "AWS_REGION=us-west-2")
	c.set("VPC", c.query("Vpcs[0].VpcId", "ec2", "describe-vpcs"))
	c.set("SUBNETS", c.query("Subnets[0].SubnetId", "ec2", "describe-subnets"))
	if out, status := c.image("west"); status == 0 || !strings.Contains(out,
		"AMD SEV-SNP is available in us-east-2 and eu-west-1") {
		t.Errorf("another region: exit status %d: %s", status, out)
	}
}

// step is one step of a component, its parameters filled in.
type step struct{ component, phase, name, script string }

// steps are those of the components as Image Builder gets them, checked on the way.
func steps(t *testing.T, c *cloud) (all []step) {
	t.Helper()
	if out, status := c.image("steps"); status != 0 {
		t.Fatalf("deploy: %s\n%s", out, c.events())
	}
	var recipe struct {
		ImageRecipe struct {
			Components []struct {
				ComponentArn string
				Parameters   []struct {
					Name  string
					Value []string
				}
			}
		}
	}
	text := c.aws("imagebuilder", "get-image-recipe", "--image-recipe-arn", c.output("steps", "RecipeArn"))
	must.Do(t, json.Unmarshal([]byte(text), &recipe), "decode %s", text)
	for _, component := range recipe.ImageRecipe.Components {
		data := c.query("component.data", "imagebuilder", "get-component", "--component-build-version-arn",
			component.ComponentArn)
		yaml := c.command("python", "-c", "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout)")
		yaml.Stdin = strings.NewReader(data)
		text := must.Get(yaml.Output())(t, "read %s as YAML", component.ComponentArn)
		var document struct {
			Name          string
			SchemaVersion float64
			Phases        []struct {
				Name  string
				Steps []struct {
					Name, Action, OnFailure string
					TimeoutSeconds          int
					Inputs                  struct{ Commands []string }
				}
			}
		}
		must.Do(t, json.Unmarshal(text, &document), "decode %s", text)
		if document.SchemaVersion != 1.0 || len(data) > 16000 {
			t.Errorf("%s: schemaVersion %v, %d bytes", document.Name, document.SchemaVersion, len(data))
		}
		for _, phase := range document.Phases {
			if !slices.Contains([]string{"build", "validate", "test"}, phase.Name) ||
				(phase.Name == "test" && len(document.Phases) != 1) {
				t.Errorf("%s has the phase %s", document.Name, phase.Name)
			}
			for _, s := range phase.Steps {
				if s.Action != "ExecuteBash" || s.OnFailure != "Abort" || s.TimeoutSeconds == 0 ||
					len(s.Inputs.Commands) != 1 {
					t.Errorf("%s: step %+v", document.Name, s)
				}
				script := s.Inputs.Commands[0]
				for _, p := range component.Parameters {
					script = strings.ReplaceAll(script, "{{ "+p.Name+" }}", p.Value[0])
				}
				if strings.Contains(script, "{{") || !strings.HasPrefix(script, "set -euo pipefail\n") {
					t.Errorf("%s: step %s is %s", document.Name, s.Name, script)
				}
				all = append(all, step{document.Name, phase.Name, s.Name, script})
			}
		}
	}
	return all
}

func find(t *testing.T, all []step, name string) string {
	t.Helper()
	for _, s := range all {
		if s.name == name {
			return s.script
		}
	}
	t.Fatalf("there is no step %s", name)
	return ""
}

// TestImageSteps checks the components' documents, and runs what they do without AWS, in a directory that is thrown
// away.
func TestImageSteps(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	all := steps(t, c)
	_, noShellcheck := exec.LookPath("shellcheck")
	for _, s := range all {
		for _, checker := range [][]string{{"bash", "-n"}, {"shellcheck", "--shell=bash"}} {
			if checker[0] == "shellcheck" && noShellcheck != nil {
				continue
			}
			file := filepath.Join(c.dir, "step")
			lab.Write(t, file, s.script)
			if out, status := c.run(checker[0], append(checker[1:], file)...); status != 0 {
				t.Errorf("%s: step %s: %s", s.component, s.name, out)
			}
		}
	}
	// The component that removes the machine's identity is the last that builds.
	order := make([]string, 0, len(all))
	for _, s := range all {
		order = append(order, s.phase+" "+s.name)
	}
	if want := []string{"build Install", "build Harden", "build Clean", "validate NothingIsLeft", "test Boot",
		"test Package", "test Gate", "test Hardening"}; !slices.Equal(order, want) {
		t.Errorf("the steps are %v, want %v", order, want)
	}
	t.Run("install", func(t *testing.T) { install(t, c, find(t, all, "Install")) })
	if out, err := exec.Command("unshare", "-rm", "true").CombinedOutput(); err != nil {
		t.Skipf("no name spaces here for the other steps: %v: %s", err, out)
	}
	t.Run("harden", func(t *testing.T) { harden(t, all) })
	t.Run("test", func(t *testing.T) { tested(t, all) })
}

// install runs the step with a curl, dnf and rpm that write down what they are asked.
func install(t *testing.T, c *cloud, script string) {
	const curl = `#!/bin/bash
echo "curl $*" >>"$CALLS"
out=
for ((i = 1; i <= $#; i++)); do [ "${!i}" != -o ] || { j=$((i + 1)); out=${!j}; }; done
case "$*" in
*/api/token*) echo token ;;
*/meta-data/iam/security-credentials/) echo builder ;;
*/meta-data/iam/security-credentials/builder)
	printf '{\n  "AccessKeyId" : "AKIA",\n  "SecretAccessKey" : "a/secret+key",\n  "Token" : "session=="\n}\n' ;;
*404*) echo 'curl: (22) The requested URL returned error: 404' >&2; exit 22 ;;
*) [[ $* != *"-K -"* ]] || sed 's/^/config /' >>"$CALLS"; printf 'the package' >"$out" ;;
esac
`
	const sum = "6f0e5c7f6d5c3f3c4ac6b4f5b6a0a4a6c0c9e9fd1ff0d3c8b1f5d1a1e1c1b1a1" // of something else
	good := strings.Fields(c.must("bash", "-c", "printf 'the package' | sha256sum"))[0]
	for _, test := range []struct {
		name, url, sum string
		installs       bool
		calls          []string
		says           string
	}{
		{"over HTTPS", "https://packages.example.com/sevagent.rpm", good, true, []string{"-L --proto =https -o "}, ""},
		{"from S3", "s3://bucket/a/sevagent.rpm", good, true, []string{
			"--aws-sigv4 aws:amz:us-east-2:s3 -K - ", "https://s3.us-east-2.amazonaws.com/bucket/a/sevagent.rpm",
			`config user = "AKIA:a/secret+key"`, `config header = "X-Amz-Security-Token: session=="`,
			"X-aws-ec2-metadata-token: token http://169.254.169.254/latest/meta-data/iam/security-credentials/builder"},
			""},
		{"wrong checksum", "https://packages.example.com/sevagent.rpm", sum, false, nil,
			"nothing is installed: the package has " + good},
		{"wrong checksum from S3", "s3://bucket/a/sevagent.rpm", sum, false, nil,
			"nothing is installed: the package has " + good},
		{"not there", "https://packages.example.com/404.rpm", good, false, nil, "error: 404"},
	} {
		dir := t.TempDir()
		calls := filepath.Join(dir, "calls")
		lab.WriteProgram(t, filepath.Join(dir, "bin/curl"), curl)
		for _, name := range []string{"dnf", "rpm"} {
			lab.WriteProgram(t, filepath.Join(dir, "bin", name),
				"#!/bin/bash\necho \""+name+" $*\" >>\"$CALLS\"\n[ "+name+" = rpm ] || [ \"$(cat \"${!#}\")\" = 'the package' ]\n")
		}
		os.Mkdir(filepath.Join(dir, "tmp"), 0o755)
		text := strings.NewReplacer(c.get("PACKAGE_URL"), test.url, c.get("PACKAGE_SHA256"), test.sum).Replace(script)
		cmd := exec.Command("bash", "-c", text)
		cmd.Env = []string{"PATH=" + filepath.Join(dir, "bin") + ":/usr/bin:/bin", "CALLS=" + calls, "TMPDIR=" +
			filepath.Join(dir, "tmp")}
		out, err := cmd.CombinedOutput()
		done := lab.Read(t, calls)
		if (err == nil) != test.installs || strings.Contains(done, "dnf -y install ") != test.installs {
			t.Errorf("%s: %v\n%s\n%s", test.name, err, out, done)
		}
		if !strings.Contains(string(out), test.says) {
			t.Errorf("%s: it does not say %q: %s", test.name, test.says, out)
		}
		for _, call := range test.calls {
			if !strings.Contains(done, call) {
				t.Errorf("%s: no call with %q: %s", test.name, call, done)
			}
		}
		for line := range strings.Lines(done) {
			if strings.HasPrefix(line, "curl ") && strings.Contains(line, "secret+key") {
				t.Errorf("%s: a key is on the command line: %s", test.name, line)
			}
		}
		if left, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(left) != 0 {
			t.Errorf("%s: %d files are left", test.name, len(left))
		}
	}
}

// root is a directory that a script sees as /, with this machine's programs and, before them, others.
type root struct {
	t   *testing.T
	dir string
}

func newRoot(t *testing.T, programs map[string]string) root {
	t.Helper()
	r := root{t, t.TempDir()}
	for _, dir := range []string{"dev", "etc", "home", "hostusr", "proc", "programs", "root", "sys", "tmp",
		"usr/lib/systemd", "usr/libexec", "var/log", "var/lib"} {
		must.Do(t, os.MkdirAll(filepath.Join(r.dir, dir), 0o755), "make a directory")
	}
	link := func(target, name string) {
		if err := os.Symlink(target, filepath.Join(r.dir, name)); !os.IsExist(err) {
			must.Do(t, err, "make a link")
		}
	}
	for _, in := range []string{"", "/lib"} {
		for _, e := range must.Get(os.ReadDir("/usr"+in))(t, "list this machine's programs") {
			link("/hostusr"+in+"/"+e.Name(), "usr"+in+"/"+e.Name())
		}
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		if target, err := os.Readlink("/" + name); err == nil {
			link(target, name)
		}
	}
	r.write("dev/null", "")
	for name, text := range programs {
		r.program(name, text)
	}
	return r
}

func (r root) program(name, text string) {
	r.t.Helper()
	lab.WriteProgram(r.t, filepath.Join(r.dir, "programs", name),
		"#!/bin/bash\necho \"${0##*/} $*\" >>/calls\n"+text+"\n")
}

func (r root) write(path, content string) {
	r.t.Helper()
	lab.Write(r.t, filepath.Join(r.dir, path), content)
}

func (r root) read(path string) string {
	content, err := os.ReadFile(filepath.Join(r.dir, path))
	if err != nil {
		return err.Error()
	}
	return string(content)
}

// run runs a script with the directory as its root, in name spaces of its own.
func (r root) run(script string) (out string, status int) {
	r.t.Helper()
	r.write("script", script)
	cmd := exec.Command("unshare", "-rm", "bash", "-euc", `
		mount --rbind /usr "$1/hostusr"
		mount -o remount,bind,ro "$1/hostusr"
		mount --bind /dev/null "$1/dev/null"
		exec chroot "$1" /usr/bin/env -i HOME=/root PATH=/programs:/usr/sbin:/usr/bin:/sbin:/bin bash /script`, "bash", r.dir)
	text, _ := cmd.CombinedOutput()
	return string(text), cmd.ProcessState.ExitCode()
}

// harden runs the hardening component in a root with all that it is to remove, and what it is to leave.
func harden(t *testing.T, all []step) {
	r := newRoot(t, map[string]string{"systemctl": "", "swapoff": "", "dnf": "",
		"cloud-init": "rm -rf /var/lib/cloud/instance"})
	gone := []string{"etc/ssh/ssh_host_ed25519_key", "etc/ssh/ssh_host_rsa_key.pub", "root/.ssh/authorized_keys",
		"home/ec2-user/.ssh/authorized_keys",
		"home/ec2-user/.bash_history", "root/.aws/credentials", "etc/sudoers.d/90-cloud-init-users",
		"etc/docker/key.json", "etc/sevagent/conf.d/50-bootstrap.yaml",
		"etc/sevagent/signal.json", "var/lib/sevagent/signaled.json", "var/lib/ecs/data/agent.db",
		"var/log/ecs/ecs-agent.log", "var/log/journal/ab/system.journal",
		"var/lib/cloud/instance/user-data.txt", "var/lib/systemd/random-seed"}
	kept := []string{"etc/ssh/sshd_config", "etc/ecs/ecs.config", "etc/sevagent/config.yaml", "home/ec2-user/.bashrc",
		"etc/sudoers", "var/lib/cloud/seed"}
	for _, path := range append(slices.Clone(gone), kept...) {
		r.write(path, "something\n")
	}
	r.write("etc/machine-id", "0123456789abcdef0123456789abcdef\n")
	r.write("var/log/messages", "what has happened\n")
	r.write("etc/fstab", "UUID=1  /  xfs  defaults 0 1\n# /dev/b none swap sw 0 0\n/dev/xvdb none swap sw 0 0\n"+
		"LABEL=swap\tswap\tswap\tdefaults 0 0\n")

	// Before, the validation has something to say.
	if out, status := r.run(find(t, all, "NothingIsLeft")); status != 1 ||
		!strings.Contains(out, "/root/.ssh/authorized_keys") || !strings.Contains(out, "/etc/machine-id") {
		t.Errorf("validation before: exit status %d: %s", status, out)
	}
	for range 2 { // as often as one likes
		for _, name := range []string{"Harden", "Clean", "NothingIsLeft"} {
			if out, status := r.run(find(t, all, name)); status != 0 {
				t.Fatalf("%s: exit status %d: %s", name, status, out)
			}
		}
	}
	for _, path := range gone {
		if _, err := os.Lstat(filepath.Join(r.dir, path)); err == nil {
			t.Errorf("/%s is still there", path)
		}
	}
	for _, path := range kept {
		if got := r.read(path); got != "something\n" {
			t.Errorf("/%s: %s", path, got)
		}
	}
	for path, want := range map[string]string{
		"etc/machine-id":   "",
		"var/log/messages": "",
		"etc/fstab":        "UUID=1  /  xfs  defaults 0 1\n# /dev/b none swap sw 0 0\n",
		"etc/sysctl.d/90-sevagent.conf": "kernel.core_pattern = |/bin/false\nfs.suid_dumpable = 0\n" +
			"kernel.dmesg_restrict = 1\nkernel.kptr_restrict = 2\n",
		"etc/ssh/sshd_config.d/10-sevagent.conf": "PasswordAuthentication no\nKbdInteractiveAuthentication no\n" +
			"PermitRootLogin no\n",
	} {
		if got := r.read(path); got != want {
			t.Errorf("/%s is %q, want %q", path, got, want)
		}
	}
	calls := r.read("calls")
	for _, want := range []string{"systemctl disable sshd.service", "systemctl mask sshd.service",
		"systemctl mask swap.target", "swapoff -a", "systemctl stop ecs.service", "systemctl is-enabled ecs.service",
		"cloud-init clean --logs"} {
		if !strings.Contains(calls, want+"\n") {
			t.Errorf("no call %s: %s", want, calls)
		}
	}
	if regexp.MustCompile(`systemctl (disable|mask)\b.*(ecs|docker|sevagent)`).MatchString(calls) {
		t.Errorf("a unit of the node is switched off: %s", calls)
	}
}

// tested runs the test component on an instance as it should be, and on one after another that is not.
func tested(t *testing.T, all []step) {
	const systemctl = `case "$*" in
	"is-enabled --quiet "*) exit 1 ;;
	"is-active --quiet "*) exit 3 ;;
	"show --property=DropInPaths --value ecs.service") echo /usr/lib/systemd/system/ecs.service.d/10-sevagent.conf ;;
	esac`
	good := func(t *testing.T) root {
		r := newRoot(t, map[string]string{
			"systemctl": systemctl, "uname": "echo 6.1.0", "sevagent": "echo 1.0.0", "systemd-analyze": "",
			"swapon": "", "modprobe": "",
			"rpm": `[ "$1" = -q ] || printf '%s\n' /usr/bin/sevagent /usr/lib/systemd/system/` +
				`{sevagent.service,sevagent.socket,etc-ecs-mtls.mount,ecs.service.d/10-sevagent.conf}`,
			"sysctl": "echo '|/bin/false'",
		})
		r.write("sys/firmware/efi/runtime", "")
		r.write("boot/config-6.1.0", "CONFIG_SEV_GUEST=m\n")
		r.write("proc/cpuinfo", "flags : fpu sse\n")
		r.write("etc/machine-id", "0123456789abcdef0123456789abcdef\n")
		r.write("usr/lib/systemd/system/ecs.service.d/10-sevagent.conf", "")
		r.write("usr/libexec/sevagent/bootstrap", "")
		os.Chmod(filepath.Join(r.dir, "usr/libexec/sevagent/bootstrap"), 0o755)
		return r
	}
	for _, test := range []struct {
		name, step, says string
		change           func(root)
	}{
		{"as it should be", "", "", func(root) {}},
		{"legacy BIOS", "Boot", "not booted by UEFI",
			func(r root) { os.RemoveAll(filepath.Join(r.dir, "sys/firmware")) }},
		{"a kernel without the driver", "Boot", "kernel 6.1.0 is built without",
			func(r root) { r.write("boot/config-6.1.0", "# CONFIG_SEV_GUEST is not set\n") }},
		{"no package", "Package", "", func(r root) { r.program("rpm", "exit 1") }},
		{"a program that does not run", "Package", "", func(r root) { r.program("sevagent", "exit 126") }},
		{"a package without units", "Package", "", func(r root) { r.program("rpm", "") }},
		{"no drop-in", "Package", "", func(r root) {
			os.Remove(filepath.Join(r.dir, "usr/lib/systemd/system/ecs.service.d/10-sevagent.conf"))
		}},
		{"a unit that systemd does not understand", "Package", "",
			func(r root) { r.program("systemd-analyze", "exit 1") }},
		{"the agent enabled", "Gate", "sevagent.service is enabled", func(r root) { r.program("systemctl", "exit 0") }},
		{"a node's configuration", "Gate", "50-bootstrap.yaml is in the AMI",
			func(r root) { r.write("etc/sevagent/conf.d/50-bootstrap.yaml", "") }},
		{"a node's marker", "Gate", "/var/lib/sevagent has files",
			func(r root) { r.write("var/lib/sevagent/signaled.json", "{}") }},
		{"ecs.service without the drop-in", "Gate", "does not know its drop-in",
			func(r root) { r.program("systemctl", strings.Replace(systemctl, "10-sevagent", "other", 1)) }},
		{"an ECS agent that runs", "Gate", "the ECS agent runs",
			func(r root) { r.program("systemctl", strings.Replace(systemctl, "exit 3", "exit 0", 1)) }},
		{"an SNP guest without a device", "Gate", "without /dev/sev-guest",
			func(r root) { r.write("proc/cpuinfo", "flags : fpu sev_snp\n") }},
		{"swap", "Hardening", "there is swap", func(r root) { r.program("swapon", "echo /dev/xvdb") }},
		{"core files", "Hardening", "core files are written", func(r root) { r.program("sysctl", "echo core") }},
		{"sshd", "Hardening", "sshd runs", func(r root) { r.program("systemctl", "exit 0") }},
	} {
		r := good(t)
		test.change(r)
		for _, s := range all {
			if s.phase != "test" || (test.step != "" && s.name != test.step) {
				continue
			}
			out, status := r.run(s.script)
			if (status == 0) != (test.step == "") || !strings.Contains(out, test.says) {
				t.Errorf("%s: step %s ended with %d: %s", test.name, s.name, status, out)
			}
		}
		if calls := r.read("calls"); test.step == "" && !strings.Contains(calls,
			"systemd-analyze verify --man=no sevagent.service sevagent.socket etc-ecs-mtls.mount\n") {
			t.Errorf("the calls are %s", calls)
		}
	}
}

// TestImageGuide runs docs/image.md from the first block to the last.
func TestImageGuide(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	names, blocks := recipes(t, "docs/image.md")
	c.set("BUCKET", "image-bucket")
	c.aws("s3", "mb", "s3://image-bucket")
	subnet, _, _ := strings.Cut(c.get("SUBNETS"), ",")
	c.set("SUBNET", subnet)
	var first string
	set := func(out string) {
		m := published("image-bucket").FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("make publish printed %q", out)
		}
		c.set("PACKAGE_URL", m[1])
		c.set("PACKAGE_SHA256", m[2])
	}
	ami := func(out string) string {
		m := regexp.MustCompile(`^(ami-[0-9a-f]+)\s+uefi-preferred\n$`).FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("describe-images printed %q", out)
		}
		return m[1]
	}
	before := map[string]func(){
		"publish": func() { c.dist("a package") },
		"update": func() {
			c.dist("another package")
			out, _ := c.run("bash", "-euo", "pipefail", "-c", blocks["publish"])
			set(out)
		},
	}
	second := regexp.MustCompile(`^(ami-[0-9a-f]+)\s+uefi\s+v2.0\n$`)
	var registered string
	after := map[string]func(out string){
		"publish": set,
		"build": func(out string) {
			if !strings.Contains(out, "image/sevagent/1.0.0/1") {
				t.Errorf("it builds %s", out)
			}
		},
		"state": func(out string) {
			if !strings.Contains(out, "AVAILABLE") {
				t.Errorf("the state is %s", out)
			}
		},
		"ami": func(out string) {
			first = ami(out)
			c.set("AMI", first)
		},
		"other-region": func(out string) { ami(out) },
		"cluster": func(string) {
			c.stands("confidential-cluster", "CREATE_COMPLETE", 1)
			if got := c.node("confidential-cluster", "ImageId"); got != first {
				t.Errorf("the node runs %s, want %s", got, first)
			}
			if data := c.userData("confidential-cluster"); !strings.Contains(data, "url=''\n") {
				t.Error("the node gets a package to install")
			}
		},
		"update": func(out string) {
			if arn := c.output("sevagent-image", "RecipeArn"); !strings.HasSuffix(arn, "/1.0.1") {
				t.Errorf("the recipe is %s", arn)
			}
		},
		"replace": func(string) {
			c.stands("confidential-cluster", "UPDATE_COMPLETE", 1)
			got := c.node("confidential-cluster", "ImageId")
			if want := c.query("Parameter.Value", "ssm", "get-parameter", "--name", "/sevagent/ami"); got == first ||
				got != want {
				t.Errorf("the node runs %s, want %s", got, want)
			}
		},
		"nitrotpm-build": func(string) { c.control("settle", nil) },
		"nitrotpm-state": func(out string) {
			if !regexp.MustCompile(`^Success\s+None\n$`).MatchString(out) {
				t.Errorf("the automation's state is %s", out)
			}
		},
		"nitrotpm-ami": func(out string) {
			m := second.FindStringSubmatch(out)
			if m == nil || m[1] != c.query("Parameter.Value", "ssm", "get-parameter", "--name", "/sevagent/ami") {
				t.Fatalf("describe-images printed %q", out)
			}
			registered = m[1]
		},
		"nitrotpm-again": func(string) {
			c.control("settle", nil)
			if out := c.must("bash", "-c", blocks["nitrotpm-state"]); !strings.HasPrefix(out, "Success") {
				t.Errorf("started again, the automation's state is %s", out)
			}
			if out := c.must("bash", "-c", blocks["nitrotpm-ami"]); !strings.HasPrefix(out, registered) {
				t.Errorf("started again, the newest AMI is %s, want %s", out, registered)
			}
		},
	}
	c.follow(names, blocks, before, after)
	if left := c.query("StackSummaries[?StackStatus!='DELETE_COMPLETE'].StackName", "cloudformation",
		"list-stacks"); left != "" {
		t.Errorf("stacks that are left: %s", left)
	}
}

"""Image Builder: versions, references, updates by replacement and their rollback, what an execution leaves."""

import copy
import json

from support import EmulatorTest, client

DOCUMENT = "name: d\nschemaVersion: 1.0\nparameters:\n  - Text: {type: string}\n" \
           "phases:\n  - name: build\n    steps:\n" \
           "      - {name: S, action: ExecuteBash, inputs: {commands: [\"echo '{{ Text }}'\"]}}\n"

BODY = {"Resources": {
    "Role": {"Type": "AWS::IAM::Role", "Properties": {"AssumeRolePolicyDocument": {}}},
    "Profile": {"Type": "AWS::IAM::InstanceProfile", "Properties": {"Roles": [{"Ref": "Role"}]}},
    "Component": {"Type": "AWS::ImageBuilder::Component", "Properties": {
        "Name": "part", "Version": "1.0.0", "Platform": "Linux", "Data": DOCUMENT}},
    "Recipe": {"Type": "AWS::ImageBuilder::ImageRecipe", "Properties": {
        "Name": "image", "Version": "1.0.0",
        "ParentImage": "ssm:/aws/service/ecs/optimized-ami/amazon-linux-2023/recommended/image_id",
        "Components": [{"ComponentArn": {"Fn::GetAtt": ["Component", "Arn"]},
                        "Parameters": [{"Name": "Text", "Value": ["a"]}]}]}},
    "Infrastructure": {"Type": "AWS::ImageBuilder::InfrastructureConfiguration", "Properties": {
        "Name": "image", "InstanceProfileName": {"Ref": "Profile"}}},
    "Distribution": {"Type": "AWS::ImageBuilder::DistributionConfiguration",
                     "Properties": {"Name": "image", "Distributions": [
        {"Region": r, "AmiDistributionConfiguration": {"Name": "i-{{ imagebuilder:buildDate }}", "AmiTags": {"k": "v"}}}
        for r in ("us-east-2", "eu-west-1")]}},
    "Pipeline": {"Type": "AWS::ImageBuilder::ImagePipeline", "Properties": {
        "Name": "image", "ImageRecipeArn": {"Fn::GetAtt": ["Recipe", "Arn"]},
        "InfrastructureConfigurationArn": {"Fn::GetAtt": ["Infrastructure", "Arn"]},
        "DistributionConfigurationArn": {"Fn::GetAtt": ["Distribution", "Arn"]}}},
}}


def body(**properties):
    """The stack with other properties: Recipe_Version="1.0.x"."""
    changed = copy.deepcopy(BODY)
    for path, value in properties.items():
        name, _, key = path.partition("_")
        changed["Resources"][name]["Properties"][key] = value
    return changed


class ImageBuilder(EmulatorTest):
    def setUp(self):
        super().setUp()
        self.imagebuilder = client("imagebuilder")

    def recipe_of_the_pipeline(self):
        found = self.imagebuilder.get_image_pipeline(imagePipelineArn=self.resources()["Pipeline"])
        return found["imagePipeline"]["imageRecipeArn"]

    def test_rollback_after_the_recipe(self):
        self.deploy(body())
        before = self.resources()
        changed = body(Recipe_Version="2.0.0")
        changed["Resources"]["Late"] = {"Type": "AWS::ImageBuilder::ImagePipeline", "DependsOn": "Pipeline",
                                        "Properties": {
            **changed["Resources"]["Pipeline"]["Properties"]}}  # the name is taken
        self.assertEqual(self.update(changed)["StackStatus"], "UPDATE_ROLLBACK_COMPLETE", self.stack_events())
        self.assertEqual(self.resources(), before)
        self.assertEqual(self.recipe_of_the_pipeline(), before["Recipe"])

    def test_refused(self):
        for name, (properties, want) in enumerate([
            ({"Component_Version": "1.0.x"}, "semanticVersion must match pattern"),
            ({"Component_Name": "a/b"}, "name must match pattern"),
            ({"Component_Platform": "Plan9"}, "one of"),
            ({"Component_Data": "phases: []\nschemaVersion: 1.0\n"}, "document is not valid"),
            ({"Component_Data": "name: [\n"}, "document is not valid"),
            ({"Component_Data": DOCUMENT + "#" * 16000}, "from 1 to 16000"),
            ({"Component_Colour": "red"}, "extraneous key [Colour]"),
            ({"Recipe_Version": "x.x.0"}, "may have one wildcard"),
            ({"Recipe_ParentImage": "ssm:/no/such"}, "parentImage"),
            ({"Recipe_ParentImage": "ami-00000000"}, "parentImage"),
            ({"Recipe_Components": [{"ComponentArn": {"Fn::GetAtt": ["Component", "Arn"]}}]}, "['Text'] do not match"),
            ({"Infrastructure_InstanceProfileName": "none"}, "instance profile does not exist"),
            ({"Infrastructure_InstanceMetadataOptions": {"HttpTokens": "maybe"}}, "httpTokens must match pattern"),
            ({"Distribution_Distributions": [{"Region": "us-east-2"}] * 2}, "A region occurs twice"),
            ({"Pipeline_ImageRecipeArn": "arn:aws:imagebuilder:us-east-2:123456789012:image-recipe/none/1.0.0"},
             "does not exist"),
            ({"Pipeline_Schedule": {"PipelineExecutionStartCondition": "ALWAYS"}}, "one of"),
        ]):
            with self.subTest(want):
                stack = self.deploy(body(**properties), name=f"s{name}")
                self.assertEqual(stack["StackStatus"], "ROLLBACK_COMPLETE", properties)
                self.assertTrue(any(want in r for _, _, r in self.stack_events(f"s{name}")),
                                self.stack_events(f"s{name}"))

    def test_what_is_used_stays(self):
        self.deploy(body())
        r = self.resources()
        self.refused("ResourceDependencyException", self.imagebuilder.delete_component,
                     componentBuildVersionArn=r["Component"])
        self.refused("ResourceDependencyException", self.imagebuilder.delete_image_recipe, imageRecipeArn=r["Recipe"])

    def test_types(self):
        self.deploy(body())
        arn = self.resources()["Component"]
        self.assertEqual(self.imagebuilder.get_component(componentBuildVersionArn=arn)["component"]["type"], "BUILD")

    def test_parameters_need_a_role(self):
        distributions = [{"Region": "us-east-2", "SsmParameterConfigurations": [{"ParameterName": "/ami"}]}]
        self.assertEqual(self.deploy(body(Distribution_Distributions=distributions))["StackStatus"],
                         "ROLLBACK_COMPLETE")
        self.assertTrue(any("execution role is required" in r for _, _, r in self.stack_events()))

    def test_an_execution_and_its_event(self):
        """User guide, "EventBridge integration in Image Builder"; the tags are those of its managed policies."""
        events, ssm = client("events"), client("ssm")
        ssm.create_document(Name="document", DocumentType="Automation", Content=json.dumps({
            "schemaVersion": "0.3", "mainSteps": [], "parameters": {"image": {"type": "String"}}}))
        events.put_rule(Name="r", EventPattern=json.dumps({
            "source": ["aws.imagebuilder"], "detail-type": ["EC2 Image Builder Image State Change"],
            "resources": [{"prefix": "arn:aws:imagebuilder:us-east-2:123456789012:image/image/"}],
            "detail": {"state": {"status": ["AVAILABLE"]}}}))
        events.put_targets(Rule="r", Targets=[{
            "Id": "t", "Arn": "arn:aws:ssm:us-east-2:123456789012:automation-definition/document:$DEFAULT",
            "RoleArn": "arn:aws:iam::123456789012:role/r",
            "InputTransformer": {"InputPathsMap": {"i": "$.resources[0]"}, "InputTemplate": '{"image": [<i>]}'}}])
        devices = [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 40, "VolumeType": "gp3", "Encrypted": True}}]
        self.deploy(body(Recipe_BlockDeviceMappings=devices))
        build = self.imagebuilder.start_image_pipeline_execution(imagePipelineArn=self.resources()["Pipeline"])
        self.control("settle")
        self.assertEqual(len(ssm.describe_automation_executions()["AutomationExecutionMetadataList"]), 1)
        image = self.imagebuilder.get_image(imageBuildVersionArn=build["imageBuildVersionArn"])["image"]
        self.assertEqual([a["region"] for a in image["outputResources"]["amis"]], ["us-east-2", "eu-west-1"])
        for made in image["outputResources"]["amis"]:
            ec2 = client("ec2", made["region"])
            ami, = ec2.describe_images(ImageIds=[made["image"]])["Images"]
            ebs = ami["BlockDeviceMappings"][0]["Ebs"]
            self.assertEqual((ami["BootMode"], ebs["VolumeSize"], ebs["Encrypted"]), ("uefi-preferred", 40, True))
            snapshot, = ec2.describe_snapshots(SnapshotIds=[ebs["SnapshotId"]])["Snapshots"]
            for tags in ami["Tags"], snapshot["Tags"]:
                self.assertIn({"Key": "CreatedBy", "Value": "EC2 Image Builder"}, tags)

"""Parameters, rules, conditions and functions of templates."""

import json

from support import EmulatorTest

PARAMETER = {"Type": "AWS::SSM::Parameter::Value<String>"}
LOGS = {"Type": "AWS::Logs::LogGroup", "Properties": {"LogGroupName": "l"}}


def template(**sections):
    return {"Resources": {"Logs": LOGS}, **sections}


class Parameters(EmulatorTest):
    def refuse(self, parameter, **given):
        return self.refused("ValidationError", self.deploy, template=template(Parameters={"P": parameter}), **given)

    def test_constraints(self):
        for parameter, value, want in [
            ({"Type": "String", "AllowedValues": ["a", "b"]}, "c", "Parameter 'P' must be one of AllowedValues"),
            ({"Type": "String", "AllowedPattern": "[a-z]+"}, "a1", "Parameter 'P' must match pattern [a-z]+"),
            ({"Type": "String", "MinLength": 3}, "ab", "Parameter 'P' must contain at least 3 characters"),
            ({"Type": "String", "MaxLength": 1}, "ab", "Parameter 'P' must contain at most 1 characters"),
            ({"Type": "Number"}, "ten", "Parameter 'P' must be a number"),
            ({"Type": "Number", "MinValue": 8}, "7", "Parameter 'P' must be a number not less than 8"),
            ({"Type": "Number", "MaxValue": 8}, "9", "Parameter 'P' must be a number not greater than 8"),
            ({"Type": "CommaDelimitedList", "AllowedPattern": "[a-z]*"}, "a,B",
             "Parameter 'P' must match pattern [a-z]*"),
            ({"Type": "String", "AllowedPattern": "[a-z]+", "ConstraintDescription": "small letters"}, "A",
             "Parameter P failed to satisfy constraint: small letters"),
            ({"Type": "AWS::EC2::VPC::Id"}, "vpc-1",
             "Parameter validation failed: parameter value vpc-1 for parameter name P does not exist"),
            (PARAMETER, "/no/such", "Unable to fetch parameters [/no/such] from parameter store for this account."),
        ]:
            with self.subTest(want):
                self.assertEqual(self.refuse(parameter, P=value), want)
        # Nothing is left of what was refused.
        self.assertEqual(self.cloudformation.list_stacks()["StackSummaries"], [])

    def test_longest_value(self):
        self.assertIn("4096", self.refuse({"Type": "String"}, P="x" * 4097))
        self.assertEqual(self.deploy(template(Parameters={"P": {"Type": "String"}}), P="x" * 4096)["StackStatus"],
                         "CREATE_COMPLETE")

    def test_names(self):
        self.assertEqual(self.refuse({"Type": "String"}, P="x", Q="y"), "Parameters: [Q] do not exist in the template")
        self.assertEqual(self.refuse({"Type": "String"}), "Parameters: [P] must have values")

    def test_use_previous_value(self):
        """UsePreviousValue gives the text that was passed: of a list, and of an SSM parameter its name."""
        parameters = {"List": {"Type": "CommaDelimitedList"}, "Image": PARAMETER}
        outputs = {"List": {"Value": {"Fn::Join": ["+", {"Ref": "List"}]}}, "Image": {"Value": {"Ref": "Image"}}}
        self.ssm.put_parameter(Name="/image", Value="ami-1", Type="String")
        first = template(Parameters=parameters, Outputs=outputs)
        self.deploy(first, List="a,b", Image="/image")
        self.assertEqual(self.outputs(), {"List": "a+b", "Image": "ami-1"})
        self.ssm.put_parameter(Name="/image", Value="ami-2", Type="String", Overwrite=True)
        second = {**first, "Outputs": {**outputs, "More": {"Value": "x"}}}
        self.update(second, List=None, Image=None)
        self.assertEqual(self.outputs(), {"List": "a+b", "Image": "ami-2", "More": "x"})
        shown = {p["ParameterKey"]: p for p in self.stack()["Parameters"]}
        self.assertEqual((shown["Image"]["ParameterValue"], shown["Image"]["ResolvedValue"]), ("/image", "ami-2"))

    def test_public_parameters(self):
        for name in ("/aws/service/ecs/optimized-ami/amazon-linux-2023/recommended/image_id",
                     "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"):
            image = self.ssm.get_parameter(Name=name)["Parameter"]["Value"]
            found = self.ec2.describe_images(ImageIds=[image])["Images"][0]
            self.assertEqual(found["BootMode"], "uefi-preferred", name)


class Rules(EmulatorTest):
    def check(self, rule, want, **given):
        body = template(Parameters={"A": {"Type": "String", "Default": ""}, "B": {"Type": "String", "Default": ""}},
                        Rules={"R": rule})
        if want:
            self.assertEqual(self.refused("ValidationError", self.deploy, template=body, **given), want)
        else:
            self.assertEqual(self.deploy(body, **given)["StackStatus"], "CREATE_COMPLETE")

    def test_assertion(self):
        one = {"Assertions": [{"Assert": {"Fn::Not": [{"Fn::And": [{"Fn::Equals": [{"Ref": "A"}, ""]},
                                                                   {"Fn::Equals": [{"Ref": "B"}, ""]}]}]},
                               "AssertDescription": "give A or B"}]}
        self.check(one, "Template validation error: Rule R: give A or B")
        self.check(one, None, B="x")

    def test_condition(self):
        one = {"RuleCondition": {"Fn::Equals": [{"Ref": "A"}, "on"]},
               "Assertions": [{"Assert": {"Fn::Contains": [["x", "y"], {"Ref": "B"}]}, "AssertDescription": "x or y"}]}
        self.check(one, "Template validation error: Rule R: x or y", A="on", B="z")
        self.check(one, None, A="off", B="z")

    def test_region(self):
        one = {"Assertions": [{"Assert": {"Fn::Contains": [["eu-west-1"], {"Ref": "AWS::Region"}]},
                               "AssertDescription": "elsewhere"}]}
        self.check(one, "Template validation error: Rule R: elsewhere")

    def test_attributes_of_what_parameters_name(self):
        first, second = self.subnet(), self.subnet("us-east-2b")
        vpcs = [s["VpcId"] for s in self.ec2.describe_subnets(SubnetIds=[first, second])["Subnets"]]
        self.ec2.create_tags(Resources=[vpcs[0]], Tags=[{"Key": "Department", "Value": "IT"}])
        kinds = {"Vpc": {"Type": "AWS::EC2::VPC::Id"}, "Subnets": {"Type": "List<AWS::EC2::Subnet::Id>"}}
        for name, expression, holds in [
            ("of one list", {"Fn::EachMemberEquals": [{"Fn::ValueOf": ["Subnets", "VpcId"]}, {"Ref": "Vpc"}]}, True),
            ("of all of a type", {"Fn::EachMemberIn": [{"Fn::ValueOfAll": ["AWS::EC2::Subnet::Id", "VpcId"]},
                                                       {"Fn::RefAll": "AWS::EC2::VPC::Id"}]}, True),
            ("of another", {"Fn::EachMemberEquals": [{"Fn::ValueOf": ["Subnets", "VpcId"]}, vpcs[1]]}, False),
            ("zone", {"Fn::EachMemberIn": [{"Fn::ValueOf": ["Subnets", "AvailabilityZone"]}, ["us-east-2a"]]}, True),
            ("tag", {"Fn::Equals": [{"Fn::ValueOf": ["Vpc", "Tags.Department"]}, "IT"]}, True),
            ("no such tag", {"Fn::Equals": [{"Fn::ValueOf": ["Vpc", "Tags.Owner"]}, "IT"]}, False),
        ]:
            with self.subTest(name):
                assertions = [{"Assert": expression, "AssertDescription": "no"}]
                body = template(Parameters=kinds, Rules={"R": {"Assertions": assertions}})
                if holds:
                    self.deploy(body, name=name.replace(" ", "-"), Vpc=vpcs[0], Subnets=first)
                else:
                    self.refused("ValidationError", self.deploy, template=body, name="x", Vpc=vpcs[0], Subnets=first)
        body = template(Parameters=kinds, Rules={"R": {"Assertions": [{"Assert": {"Fn::Equals": [
            {"Fn::ValueOf": ["Vpc", "CidrBlock"]}, "x"]}}]}})
        got = self.refused("ValidationError", self.deploy, template=body, Vpc=vpcs[0], Subnets=first)
        self.assertIn("no attribute", got)


FUNCTIONS = """
AWSTemplateFormatVersion: 2010-09-09
Parameters:
  Name: {Type: String, Default: n}
  Ids: {Type: CommaDelimitedList, Default: ""}
  Many: {Type: Number, Default: 2}
Mappings:
  Os: {ubuntu: {Root: /dev/sda1}}
Conditions:
  Off: !Equals [a, b]
  Empty: !Equals [!Join ["", !Ref Ids], ""]
  Two: !Equals [!Ref Many, 2]
  Both: !And [!Condition Empty, !Not [!Equals [!Ref Name, x]]]
  Either: !Or [!Equals [!Ref Name, x], !Condition Two]
Resources:
  Logs: {Type: AWS::Logs::LogGroup, Properties: {LogGroupName: !Sub "${AWS::StackName}-${Name}"}}
  Never: {Type: AWS::Logs::LogGroup, Condition: No}
Outputs:
  Ref: {Value: !Ref Logs}
  Sub: {Value: !Sub ["${Logs} ${Logs.Arn} ${!Literal} ${Own} ${AWS::Partition}", {Own: !Ref Name}]}
  GetAtt: {Value: !GetAtt Logs.Arn}
  If: {Value: !If [Both, both, not]}
  Either: {Value: !If [Either, one, other]}
  Map: {Value: !FindInMap [Os, ubuntu, Root]}
  Slot: {Value: !Select [1, !Split [",", !Join [",", [!Join [",", !Ref Ids], "none,none"]]]]}
  Base64: {Value: !Base64 a}
  Skipped: {Condition: Off, Value: x}
"""


class Functions(EmulatorTest):
    def test_functions(self):
        self.deploy(FUNCTIONS)
        arn = "arn:aws:logs:us-east-2:123456789012:log-group:s-n:*"
        self.assertEqual(self.outputs(), {
            "Ref": "s-n", "Sub": f"s-n {arn} ${{Literal}} n aws", "GetAtt": arn, "If": "both", "Either": "one",
            "Map": "/dev/sda1", "Slot": "none", "Base64": "YQ=="})
        self.assertEqual(list(self.resources()), ["Logs"])

    def test_no_value_leaves_a_list(self):
        sg = {"Type": "AWS::EC2::SecurityGroup", "Properties": {"GroupDescription": "d", "SecurityGroupIngress": [
            {"Fn::If": ["No", {"IpProtocol": "tcp", "FromPort": 1, "ToPort": 1, "CidrIp": "10.0.0.0/8"},
                        {"Ref": "AWS::NoValue"}]},
            {"IpProtocol": "tcp", "FromPort": 2, "ToPort": 2, "CidrIp": "10.0.0.0/8"}]}}
        self.deploy({"Conditions": {"No": {"Fn::Equals": ["a", "b"]}}, "Resources": {"Group": sg}})
        found = self.ec2.describe_security_groups(GroupIds=[self.resources()["Group"]])["SecurityGroups"][0]
        self.assertEqual([p["FromPort"] for p in found["IpPermissions"]], [2])

    def test_dynamic_reference(self):
        self.ssm.put_parameter(Name="/group", Value="from-ssm", Type="String")
        self.deploy({"Resources": {"Logs": {**LOGS, "Properties": {"LogGroupName": "{{resolve:ssm:/group}}"}}}})
        self.assertEqual(self.resources(), {"Logs": "from-ssm"})

    def test_refused_templates(self):
        for resources, want in [
            ({"A": {"Type": "AWS::No::Such"}}, "Template format error: Unrecognized resource types: [AWS::No::Such]"),
            ({"A": {**LOGS, "Properties": {"LogGroupName": {"Ref": "B"}}}},
             "Template format error: Unresolved resource dependencies [B] in the Resources block of the template"),
            ({"A": {**LOGS, "DependsOn": "B"}, "B": {**LOGS, "DependsOn": "A"}},
             "Circular dependency between resources: [A, B]"),
            ({}, "Template format error: At least one Resources member must be defined."),
        ]:
            with self.subTest(want):
                self.assertEqual(self.refused("ValidationError", self.deploy, template={"Resources": resources}), want)
        self.assertIn("YAML not well-formed", self.refused("ValidationError", self.deploy, template="a: [\n"))
        self.assertIn("51200", self.refused("ValidationError", self.deploy, template=template(Description="x" * 51200)))

    def test_unknown_property(self):
        stack = self.deploy({"Resources": {"Logs": {"Type": "AWS::ECS::Cluster", "Properties": {"Colour": "red"}}}})
        self.assertEqual(stack["StackStatus"], "ROLLBACK_COMPLETE")
        self.assertIn(("Logs", "CREATE_FAILED", "#: extraneous key [Colour] is not permitted"), self.stack_events())

    def test_capabilities(self):
        role = {"Type": "AWS::IAM::Role", "Properties": {"AssumeRolePolicyDocument": {}}}
        message = self.refused("InsufficientCapabilitiesException", self.cloudformation.create_change_set,
                               StackName="s",
                               ChangeSetName="c", ChangeSetType="CREATE",
                               TemplateBody=json.dumps({"Resources": {"R": role}}))
        self.assertEqual(message, "Requires capabilities : [CAPABILITY_IAM]")

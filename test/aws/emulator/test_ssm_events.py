"""Run Command, and the rule that starts it."""

import contextlib
import io
import json
import os
import tempfile

from support import EmulatorTest, client

SCRIPT = """#!/bin/sh
script=$(cat)
case $script in
*fail*) echo broken >&2; exit 7 ;;
*) echo "$1 $EMULATOR_INSTANCE_ID $AWS_REGION $script" ;;
esac
"""


class NodesTest(EmulatorTest):
    def setUp(self):
        super().setUp()
        with tempfile.NamedTemporaryFile("w", suffix=".sh", delete=False) as file:
            file.write(SCRIPT)
        self.addCleanup(os.unlink, file.name)
        os.chmod(file.name, 0o755)
        self.nodes = sorted(i["InstanceId"] for i in self.group(size=2)["Instances"])
        self.program = file.name


class RunCommand(NodesTest):
    def send(self, command="hello", **target):
        sent = self.ssm.send_command(DocumentName="AWS-RunShellScript", Parameters={"commands": [command]},
                                     **target)["Command"]
        self.until(lambda: self.ssm.list_commands(CommandId=sent["CommandId"])["Commands"][0]["Status"]
                   not in ("Pending", "InProgress"))
        return sent["CommandId"]

    def test_no_agent(self):
        self.assertIn("not in a valid state", self.refused("InvalidInstanceId", self.send, InstanceIds=self.nodes))

    def test_output(self):
        self.control("command", program=self.program)
        command, node = self.send(InstanceIds=self.nodes), self.nodes[0]
        got = self.ssm.get_command_invocation(CommandId=command, InstanceId=node)
        self.assertEqual((got["Status"], got["ResponseCode"]), ("Success", 0))
        self.assertEqual(got["StandardOutputContent"], f"{node} {node} us-east-2 hello\n")

    def test_failure(self):
        self.control("command", program=self.program)
        command = self.send("fail", InstanceIds=self.nodes[:1])
        got = self.ssm.get_command_invocation(CommandId=command, InstanceId=self.nodes[0])
        self.assertEqual((got["Status"], got["ResponseCode"], got["StandardErrorContent"]), ("Failed", 7, "broken\n"))
        self.assertEqual(self.ssm.list_commands(CommandId=command)["Commands"][0]["ErrorCount"], 1)

    def test_by_tag(self):
        self.control("command", program=self.program)
        command = self.send(Targets=[{"Key": "tag:aws:autoscaling:groupName", "Values": ["g"]}])
        found = self.ssm.list_command_invocations(CommandId=command, Details=True)["CommandInvocations"]
        self.assertEqual(sorted(i["InstanceId"] for i in found), self.nodes)
        self.assertIn("hello", found[0]["CommandPlugins"][0]["Output"])

    def test_limits(self):
        self.control("command", program=self.program)
        self.refused("ValidationException", self.send, InstanceIds=[f"i-{n:017x}" for n in range(51)])
        command = self.send("x" * 30000, InstanceIds=self.nodes[:1])
        got = self.ssm.get_command_invocation(CommandId=command, InstanceId=self.nodes[0])
        self.assertEqual(len(got["StandardOutputContent"]), 24000)
        self.refused("InvocationDoesNotExist", self.ssm.get_command_invocation, CommandId=command,
                     InstanceId=self.nodes[1])


class Document(NodesTest):
    def setUp(self):
        super().setUp()
        self.control("command", program=self.program)
        self.ssm.create_document(Name="greet", DocumentType="Command", Content=json.dumps({
            "schemaVersion": "2.2", "parameters": {"who": {"type": "String", "allowedPattern": "^[a-z]+$"}},
            "mainSteps": [{"name": "greet", "action": "aws:runShellScript",
                           "inputs": {"runCommand": ["hello {{ who }}", "bye {{who}}"]}}]}))

    def greet(self, name="greet", **parameters):
        sent = self.ssm.send_command(DocumentName=name, InstanceIds=self.nodes[:1], Parameters=parameters)
        return sent["Command"]["CommandId"]

    def test_own_document(self):
        command = self.greet(who=["world"])
        self.until(lambda: self.ssm.list_commands(CommandId=command)["Commands"][0]["Status"] == "Success")
        got = self.ssm.get_command_invocation(CommandId=command, InstanceId=self.nodes[0])["StandardOutputContent"]
        self.assertTrue(got.endswith("hello world\nbye world\n"), got)

    def test_refused(self):
        self.refused("InvalidParameters", self.greet, who=["$(reboot)"])
        self.refused("InvalidParameters", self.greet)
        self.refused("InvalidParameters", self.greet, who=["a"], commands=["reboot"])
        self.refused("InvalidDocument", self.greet, name="other", who=["a"])


class Rule(EmulatorTest):
    def body(self, **more):
        target = {"Id": "nodes",
                  "Arn": {"Fn::Sub": "arn:${AWS::Partition}:ssm:${AWS::Region}::document/AWS-RunShellScript"},
                  "RoleArn": "arn:aws:iam::123456789012:role/push", "Input": '{"commands": ["sevagent refresh"]}',
                  "RunCommandParameters": {"RunCommandTargets": [{"Key": "tag:aws:autoscaling:groupName",
                                                                  "Values": ["g"]}]}}
        target = {k: v for k, v in {**target, **more}.items() if v is not None}
        return {"Resources": {"Rule": {"Type": "AWS::Events::Rule", "Properties": {
            "EventPattern": {"source": ["aws.secretsmanager"], "detail-type": ["Secret Label Updated"]},
            "Targets": [target]}}},
            "Outputs": {"Arn": {"Value": {"Fn::GetAtt": ["Rule", "Arn"]}}}}

    def test_rule(self):
        events = client("events")
        self.assertEqual(self.deploy(self.body())["StackStatus"], "CREATE_COMPLETE", self.stack_events())
        name = self.resources()["Rule"]
        rule = events.describe_rule(Name=name)
        self.assertEqual((rule["Arn"], rule["State"]), (self.outputs()["Arn"], "ENABLED"))
        self.assertIn("Secret Label Updated", rule["EventPattern"])
        target, = events.list_targets_by_rule(Rule=name)["Targets"]
        self.assertEqual(target["RunCommandParameters"]["RunCommandTargets"][0]["Values"], ["g"])
        self.update(self.body(Input='{"commands": ["true"]}'))
        self.assertEqual(events.list_targets_by_rule(Rule=name)["Targets"][0]["Input"], '{"commands": ["true"]}')
        self.cloudformation.delete_stack(StackName="s")
        self.assertEqual(events.list_rules()["Rules"], [])

    def test_a_command_needs_targets_and_a_role(self):
        for more in ({"RoleArn": None}, {"RunCommandParameters": None}):
            self.assertEqual(self.deploy(self.body(**more), name="x")["StackStatus"], "ROLLBACK_COMPLETE")
            self.cloudformation.delete_stack(StackName="x")

    def test_event_runs_the_command(self):
        with tempfile.NamedTemporaryFile("w", suffix=".sh", delete=False) as file:
            file.write(SCRIPT)
        self.addCleanup(os.unlink, file.name)
        os.chmod(file.name, 0o755)
        self.control("command", program=file.name)
        node = self.group()["Instances"][0]["InstanceId"]
        self.deploy(self.body())
        self.assertEqual(self.control("event", source="aws.other", detail_type="Secret Label Updated", detail={}),
                         {"targets": 0})
        self.assertEqual(self.control("event", source="aws.secretsmanager", detail_type="Secret Label Updated",
                                      detail={}), {"targets": 1})
        command, = self.ssm.list_commands()["Commands"]
        self.assertEqual(command["Parameters"]["commands"], ["sevagent refresh"])
        found, = self.ssm.list_command_invocations(CommandId=command["CommandId"])["CommandInvocations"]
        self.assertEqual(found["InstanceId"], node)


class Automation(EmulatorTest):
    """SSM user guide, "aws:executeScript", and StartAutomationExecution of the API reference."""

    SCRIPT = "import boto3\n\ndef put(event, context):\n" \
             "    boto3.client('ssm').put_parameter(Name='/said', Value=event['said'], Type='String')\n"

    def setUp(self):
        super().setUp()
        self.iam.create_role(RoleName="automation", AssumeRolePolicyDocument="{}")
        self.ssm.create_document(Name="put", DocumentType="Automation", Content=json.dumps({
            "schemaVersion": "0.3", "assumeRole": "arn:aws:iam::123456789012:role/automation",
            "parameters": {"what": {"type": "String", "allowedPattern": "^[a-z]+$"}},
            "mainSteps": [{"name": "put", "action": "aws:executeScript", "inputs": {
                "Runtime": "python3.11", "Handler": "put", "Script": self.SCRIPT,
                "InputPayload": {"said": "{{ what }}"}}}]}))

    def allow(self, action):
        self.iam.put_role_policy(RoleName="automation", PolicyName="p", PolicyDocument=json.dumps({
            "Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": action, "Resource": "*"}]}))

    def executions(self):
        self.control("settle")
        found = self.ssm.describe_automation_executions(Filters=[{"Key": "DocumentNamePrefix", "Values": ["pu"]}])
        return [e["AutomationExecutionStatus"] for e in found["AutomationExecutionMetadataList"]]

    def said(self):
        return self.ssm.get_parameter(Name="/said")["Parameter"]["Value"]

    def test_parameters(self):
        self.allow("ssm:PutParameter")
        self.ssm.start_automation_execution(DocumentName="put", Parameters={"what": ["hello"]})
        self.assertEqual((self.executions(), self.said()), (["Success"], "hello"))
        for given in {}, {"what": ["$(reboot)"]}, {"what": ["a"], "more": ["b"]}:
            self.refused("InvalidParameters", self.ssm.start_automation_execution, DocumentName="put", Parameters=given)
        self.refused("InvalidDocument", self.ssm.start_automation_execution, DocumentName="other")

    def test_rights_of_its_role(self):
        self.allow("ssm:GetParameter")
        with contextlib.redirect_stderr(io.StringIO()) as err:
            self.ssm.start_automation_execution(DocumentName="put", Parameters={"what": ["hello"]})
            self.assertEqual(self.executions(), ["Failed"])
        self.assertIn("not authorized to perform: ssm:PutParameter", err.getvalue())

    def test_a_rule_hands_it_a_part_of_the_event(self):
        self.allow("ssm:PutParameter")
        events = client("events")
        events.put_rule(Name="r", EventPattern=json.dumps({"source": ["aws.imagebuilder"],
                                                           "resources": [{"prefix": "he"}]}))
        events.put_targets(Rule="r", Targets=[{
            "Id": "t", "Arn": "arn:aws:ssm:us-east-2:123456789012:automation-definition/put:$DEFAULT",
            "RoleArn": "arn:aws:iam::123456789012:role/r",
            "InputTransformer": {"InputPathsMap": {"w": "$.resources[0]"}, "InputTemplate": '{"what": [<w>]}'}}])
        for resource, targets in (("ciao", 0), ("hello", 1)):
            self.assertEqual(self.control("event", source="aws.imagebuilder", detail_type="d", detail={},
                                          resources=[resource]), {"targets": targets})
        self.assertEqual((self.executions(), self.said()), (["Success"], "hello"))

"""What the tests share: one emulator in this process, emptied before each test, and clients for it."""

import json
import os
import time
import unittest
import urllib.request
import uuid

os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}

import boto3  # noqa: E402
from botocore.config import Config  # noqa: E402
from botocore.exceptions import ClientError  # noqa: E402
from emulator import cloudformation  # noqa: E402
from emulator.server import Server, reset  # noqa: E402

REGION = "us-east-2"
_server = Server().start()
_clients = {}


def client(service, region=REGION):
    key = (service, region)
    if key not in _clients:
        config = Config(retries={"total_max_attempts": 1})
        _clients[key] = boto3.client(service, region_name=region, endpoint_url=_server.url, config=config)
    return _clients[key]


HANG = 180  # s, far longer than anything takes that works: it keeps a test from hanging, and judges no speed


class EmulatorTest(unittest.TestCase):
    url = _server.url

    def setUp(self):
        reset()
        for service in ("cloudformation", "ec2", "ecs", "autoscaling", "ssm", "iam"):
            setattr(self, service, client(service))

    def control(self, action, **arguments):
        request = urllib.request.Request(f"{self.url}/_emulator/{action}", json.dumps(arguments).encode(),
                                         method="POST")
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def refused(self, code, call, **arguments):
        """The message of the error that a call must end in."""
        with self.assertRaises(ClientError) as caught:
            call(**arguments)
        self.assertEqual(caught.exception.response["Error"]["Code"], code, caught.exception)
        return caught.exception.response["Error"]["Message"]

    def until(self, done):
        """Waits for a condition."""
        deadline = time.monotonic() + HANG
        while not done():
            if time.monotonic() > deadline:
                self.fail("what the test waits for does not come")
            time.sleep(0.02)

    # Stacks

    def deploy(self, template, name="s", kind="CREATE", tags=None, **parameters):
        """Creates and executes a change set, as `aws cloudformation deploy` does, and returns the stack."""
        given = [{"ParameterKey": k, **({"UsePreviousValue": True} if v is None else {"ParameterValue": v})}
                 for k, v in parameters.items()]
        body = template if isinstance(template, str) else json.dumps(template)
        made = self.cloudformation.create_change_set(
            StackName=name, ChangeSetName="c", ChangeSetType=kind, TemplateBody=body, Parameters=given,
            Capabilities=["CAPABILITY_IAM"], Tags=[{"Key": k, "Value": v} for k, v in (tags or {}).items()])
        change_set = self.cloudformation.describe_change_set(ChangeSetName=made["Id"])
        if change_set["Status"] == "FAILED":
            return change_set
        self.cloudformation.execute_change_set(ChangeSetName=made["Id"])
        running = cloudformation.find(made["StackId"], REGION)
        self.until(lambda: not running.running
                   or running.waiting)  # a request is answered after 50 seconds, done or not
        return self.stack(made["StackId"])

    def update(self, template, name="s", **rest):
        return self.deploy(template, name, "UPDATE", **rest)

    def stack(self, name="s"):
        return self.cloudformation.describe_stacks(StackName=name)["Stacks"][0]

    def outputs(self, name="s"):
        return {o["OutputKey"]: o["OutputValue"] for o in self.stack(name)["Outputs"]}

    def stack_events(self, name="s"):
        """Stack events, the oldest first, as (logical ID, status, reason)."""
        found = self.cloudformation.describe_stack_events(StackName=name)["StackEvents"]
        return [(e["LogicalResourceId"], e["ResourceStatus"], e.get("ResourceStatusReason", ""))
                for e in reversed(found)]

    def resources(self, name="s"):
        found = self.cloudformation.describe_stack_resources(StackName=name)["StackResources"]
        return {r["LogicalResourceId"]: r["PhysicalResourceId"] for r in found}

    # What most tests of nodes stand on

    def image(self, **more):
        return self.ec2.register_image(Name=f"image {uuid.uuid4()}", BootMode="uefi", RootDeviceName="/dev/xvda", **more)["ImageId"]

    def subnet(self, zone="us-east-2a"):
        vpc = self.ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
        return self.ec2.create_subnet(VpcId=vpc, CidrBlock="10.9.0.0/20", AvailabilityZone=zone)["Subnet"]["SubnetId"]

    def launch_template(self, name="t", **data):
        data = {"ImageId": self.image(), "InstanceType": "m6a.large", **data}
        return self.ec2.create_launch_template(LaunchTemplateName=name,
                                               LaunchTemplateData=data)["LaunchTemplate"]["LaunchTemplateId"]

    def group(self, name="g", size=1, **more):
        template = self.launch_template(f"{name}-template", CpuOptions={"AmdSevSnp": "enabled"})
        self.autoscaling.create_auto_scaling_group(
            AutoScalingGroupName=name, MinSize=0, MaxSize=10, DesiredCapacity=size, VPCZoneIdentifier=self.subnet(),
            LaunchTemplate={"LaunchTemplateId": template, "Version": "$Latest"}, **more)
        return self.describe_group(name)

    def describe_group(self, name="g"):
        return self.autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"][0]

    def register(self, cluster, instance_id, **attributes):
        return self.ecs.register_container_instance(
            cluster=cluster, instanceIdentityDocument=json.dumps({"instanceId": instance_id}),
            attributes=[{"name": k.replace("__", "."), "value": v} for k, v in attributes.items()])["containerInstance"]

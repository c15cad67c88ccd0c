"""What an assumed role may ask for, and what CloudFormation may do in its name."""

import json

import boto3
from botocore.exceptions import ClientError
from support import REGION, EmulatorTest

ANY = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}'
LOGS = {"Resources": {"Logs": {"Type": "AWS::Logs::LogGroup", "Properties": {}}}}


class Authorization(EmulatorTest):
    def session(self, *statements, service="cloudformation"):
        """A client of a role with these rights."""
        trust = {"Statement": [{"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}]}
        role = self.iam.create_role(RoleName="r", AssumeRolePolicyDocument=json.dumps(trust))["Role"]
        policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **s} for s in statements]}
        self.iam.put_role_policy(RoleName="r", PolicyName="p", PolicyDocument=json.dumps(policy))
        keys = boto3.client("sts", region_name=REGION, endpoint_url=self.url).assume_role(
            RoleArn=role["Arn"], RoleSessionName="somebody")["Credentials"]
        return boto3.client(
            service, region_name=REGION, endpoint_url=self.url, aws_access_key_id=keys["AccessKeyId"],
            aws_secret_access_key=keys["SecretAccessKey"], aws_session_token=keys["SessionToken"])

    def status(self, *statements, name="mine", template=LOGS):
        client = self.session(*statements)
        made = client.create_change_set(StackName=name, ChangeSetName="c", ChangeSetType="CREATE",
                                        TemplateBody=json.dumps(template), Capabilities=["CAPABILITY_IAM"])
        client.execute_change_set(ChangeSetName=made["Id"], StackName=name)
        return self.stack(name)["StackStatus"]

    MINE = {"Action": ["cloudformation:CreateChangeSet", "cloudformation:ExecuteChangeSet"],
            "Resource": "arn:aws:cloudformation:us-east-2:123456789012:stack/mine*/*"}

    def test_in_its_name(self):
        self.assertEqual(self.status(self.MINE, {"Action": "logs:*", "Resource": "*"}), "CREATE_COMPLETE")

    def test_not_in_its_name(self):
        self.assertEqual(self.status(self.MINE), "ROLLBACK_COMPLETE")
        why = [reason for name, status, reason in self.stack_events("mine") if status == "CREATE_FAILED"]
        self.assertIn("not authorized to perform: logs:CreateLogGroup", why[0])

    def test_another_stack(self):
        with self.assertRaises(ClientError) as caught:
            self.status(self.MINE, name="other")
        self.assertEqual(caught.exception.response["Error"]["Code"], "AccessDenied")

    def test_amis_by_their_tags(self):
        """Service authorization reference, "Amazon EC2": RegisterImage is asked for the AMI and for its snapshots."""
        image, snapshot = "arn:aws:ec2:*::image/*", "arn:aws:ec2:*::snapshot/*"
        mine = {"StringEquals": {"aws:ResourceTag/of": "mine"}}
        asked = {"StringEquals": {"aws:RequestTag/of": "mine"}}
        ec2 = self.session(
            {"Action": "ec2:DescribeImages", "Resource": "*"},
            {"Action": ["ec2:DeregisterImage", "ec2:DescribeImageAttribute"], "Resource": image, "Condition": mine},
            {"Action": "ec2:RegisterImage", "Resource": image, "Condition": asked},
            {"Action": "ec2:RegisterImage", "Resource": snapshot, "Condition": mine},
            {"Action": "ec2:CreateTags", "Resource": image,
             "Condition": {"StringEquals": {"ec2:CreateAction": "RegisterImage"}}}, service="ec2")
        own = self.image(TagSpecifications=[{"ResourceType": "image", "Tags": [{"Key": "of", "Value": "mine"}]}])
        foreign = self.image()
        snapshots = [ec2.describe_images(ImageIds=[i])["Images"][0]["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
                     for i in (own, foreign)]
        self.ec2.create_tags(Resources=snapshots[:1], Tags=[{"Key": "of", "Value": "mine"}])

        def register(snapshot, tag):
            return {"Name": f"{snapshot} {tag}", "BlockDeviceMappings": [
                {"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": snapshot}}],
                "TagSpecifications": [{"ResourceType": "image", "Tags": [{"Key": "of", "Value": tag}]}]}

        ec2.register_image(**register(snapshots[0], "mine"))
        self.refused("AccessDenied", ec2.register_image, **register(snapshots[1], "mine"))
        self.refused("AccessDenied", ec2.register_image, **register(snapshots[0], "yours"))
        ec2.describe_image_attribute(ImageId=own, Attribute="uefiData")
        self.refused("AccessDenied", ec2.describe_image_attribute, ImageId=foreign, Attribute="uefiData")
        self.refused("AccessDenied", ec2.deregister_image, ImageId=foreign)
        ec2.deregister_image(ImageId=own)

    def test_boundary(self):
        boundary = self.iam.create_policy(PolicyName="b", PolicyDocument=ANY)["Policy"]["Arn"]
        allowed = {"Action": "iam:*", "Resource": "arn:aws:iam::123456789012:role/mine*",
                   "Condition": {"StringEquals": {"iam:PermissionsBoundary": boundary}}}
        for given, want in ({"PermissionsBoundary": boundary}, "CREATE_COMPLETE"), ({}, "ROLLBACK_COMPLETE"):
            with self.subTest(want):
                role = {"Type": "AWS::IAM::Role", "Properties": {"AssumeRolePolicyDocument": {}, **given}}
                self.assertEqual(self.status(self.MINE, allowed, template={"Resources": {"R": role}}), want)
                self.cloudformation.delete_stack(StackName="mine")
                self.iam.delete_role_policy(RoleName="r", PolicyName="p")
                self.iam.delete_role(RoleName="r")

"""What an assumed role may ask for, and what CloudFormation may do in its name."""

import json

import boto3
from botocore.exceptions import ClientError
from support import REGION, EmulatorTest

ANY = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}'
LOGS = {"Resources": {"Logs": {"Type": "AWS::Logs::LogGroup", "Properties": {}}}}


class Authorization(EmulatorTest):
    def session(self, *statements):
        """A CloudFormation client of a role with these rights."""
        trust = {"Statement": [{"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}]}
        role = self.iam.create_role(RoleName="r", AssumeRolePolicyDocument=json.dumps(trust))["Role"]
        policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **s} for s in statements]}
        self.iam.put_role_policy(RoleName="r", PolicyName="p", PolicyDocument=json.dumps(policy))
        keys = boto3.client("sts", region_name=REGION, endpoint_url=self.url).assume_role(
            RoleArn=role["Arn"], RoleSessionName="somebody")["Credentials"]
        return boto3.client(
            "cloudformation", region_name=REGION, endpoint_url=self.url, aws_access_key_id=keys["AccessKeyId"],
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

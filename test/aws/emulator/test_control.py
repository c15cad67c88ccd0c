"""The control API and the program."""

import os
import subprocess
import sys
import unittest
import urllib.error
import urllib.request

import support
from botocore.exceptions import ClientError
from support import EmulatorTest


class Faults(EmulatorTest):
    def test_codes(self):
        for service, call, code, status in [
            ("ecs", lambda: self.ecs.list_clusters(), "ThrottlingException", 400),
            ("ec2", lambda: self.ec2.describe_vpcs(), "RequestLimitExceeded", 503),
            ("autoscaling", lambda: self.autoscaling.describe_policies(), "AccessDenied", 403),
            ("ssm", lambda: self.ssm.list_commands(), "InternalServerError", 500),
        ]:
            with self.subTest(code):
                self.control("fault", service=service, code=code, status=status)
                with self.assertRaises(ClientError) as caught:
                    call()
                self.assertEqual(caught.exception.response["Error"]["Code"], code)
                self.assertEqual(caught.exception.response["ResponseMetadata"]["HTTPStatusCode"], status)
                call()  # once only

    def test_operation_and_times(self):
        self.control("fault", service="ecs", operation="ListClusters", code="AccessDeniedException", status=400,
                     times=-1)
        self.ecs.describe_clusters()
        for _ in range(3):
            self.refused("AccessDeniedException", self.ecs.list_clusters)
        self.control("clear-faults")
        self.ecs.list_clusters()
        self.assertEqual(self.control("calls"), {"ecs:ListClusters": 1})

    def test_not_for_the_services(self):
        """CloudFormation's own calls are not disturbed, nor counted."""
        self.control("fault", service="ecs", times=-1)
        stack = self.deploy({"Resources": {"C": {"Type": "AWS::ECS::Cluster"}}})
        self.assertEqual(stack["StackStatus"], "CREATE_COMPLETE")

    def test_mistakes(self):
        for action, arguments in [("no-such", {}), ("fault", {}), ("boot", {"mode": "sideways"}),
                                  ("boot", {"mode": "exec"})]:
            with self.assertRaises(urllib.error.HTTPError):
                self.control(action, **arguments)


class Program(unittest.TestCase):
    def start(self, *options):
        environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.abspath(support.__file__))}
        process = subprocess.Popen([sys.executable, "-m", "emulator", *options], env=environment, stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, text=True)
        self.addCleanup(process.stdin.close)
        self.addCleanup(process.stdout.close)
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}/_emulator/health") as answer:
            self.assertEqual(answer.status, 200)
        return process

    def test_ends_on_sigterm(self):
        process = self.start()
        process.terminate()
        self.assertEqual(process.wait(support.HANG), 0)

    def test_ends_with_its_input(self):
        process = self.start("--until-eof")
        process.stdin.close()
        self.assertEqual(process.wait(support.HANG), 0)

"""Stacks: change sets, updates, rollback, signals, rolling replacement, deletion."""

import threading

from support import HANG, EmulatorTest, client

WAIT = {"Resources": {"Ready": {"Type": "AWS::CloudFormation::WaitCondition",
                                "CreationPolicy": {"ResourceSignal": {"Count": 2, "Timeout": "PT5M"}}}}}


def logs(name="l", **more):
    return {"Type": "AWS::Logs::LogGroup", "Properties": {"LogGroupName": name, **more}}


class ChangeSets(EmulatorTest):
    def test_create(self):
        made = self.cloudformation.create_change_set(StackName="s", ChangeSetName="c", ChangeSetType="CREATE",
                                                     TemplateBody='{"Resources": {"A": {"Type": '
                                                                  '"AWS::Logs::LogGroup"}}}')
        self.assertEqual(self.stack()["StackStatus"], "REVIEW_IN_PROGRESS")
        change, = self.cloudformation.describe_change_set(ChangeSetName=made["Id"])["Changes"]
        self.assertEqual((change["ResourceChange"]["Action"], change["ResourceChange"]["LogicalResourceId"]),
                         ("Add", "A"))
        self.cloudformation.execute_change_set(ChangeSetName="c", StackName="s")
        self.assertEqual(self.stack()["StackStatus"], "CREATE_COMPLETE")

    def test_nothing_new(self):
        body = {"Parameters": {"P": {"Type": "String", "Default": "a"}}, "Resources": {"A": logs()}}
        self.deploy(body)
        change_set = self.update(body, P=None)
        self.assertEqual((change_set["Status"], change_set["ExecutionStatus"]), ("FAILED", "UNAVAILABLE"))
        self.assertIn("didn't contain changes", change_set["StatusReason"])
        self.assertEqual(self.update(body, P="b")["Status"], "FAILED")  # of no consequence for a resource

    def test_outputs_after_update(self):
        self.deploy({"Resources": {"A": logs()}, "Outputs": {"O": {"Value": "one"}}})
        self.update({"Resources": {"A": logs()}, "Outputs": {"O": {"Value": "two"}}})
        self.assertEqual(self.outputs(), {"O": "two"})

    def test_stack_tags(self):
        self.deploy({"Resources": {"C": {"Type": "AWS::ECS::Cluster", "Properties": {"ClusterName": "c"}}}},
                    tags={"Team": "a"})
        self.update({"Resources": {"C": {"Type": "AWS::ECS::Cluster", "Properties": {"ClusterName": "c"}}}},
                    tags={"Team": "b"})
        found = self.ecs.describe_clusters(clusters=["c"], include=["TAGS"])["clusters"][0]["tags"]
        self.assertIn({"key": "Team", "value": "b"}, found)
        self.assertIn({"key": "aws:cloudformation:stack-name", "value": "s"}, found)


TOGGLED = {
    "Parameters": {"On": {"Type": "String"}, "Size": {"Type": "String", "Default": "small"}},
    "Mappings": {"Days": {"small": {"Days": 7}, "large": {"Days": 30}}},
    "Conditions": {"IsOn": {"Fn::Equals": [{"Ref": "On"}, "true"]}},
    "Resources": {
        "Always": logs("always", RetentionInDays={"Fn::FindInMap": ["Days", {"Ref": "Size"}, "Days"]}),
        "Sometimes": {**logs("sometimes", RetentionInDays={"Fn::If": ["IsOn", 1, 3]}), "Condition": "IsOn"},
    },
}


class Updates(EmulatorTest):
    def groups(self):
        return {g["logGroupName"]: g.get("retentionInDays") for g in client("logs").describe_log_groups()["logGroups"]}

    def test_condition_toggled(self):
        self.deploy(TOGGLED, On="false")
        self.assertEqual(self.groups(), {"always": 7})
        self.update(TOGGLED, On="true")
        self.assertEqual(self.groups(), {"always": 7, "sometimes": 1})
        self.update(TOGGLED, On="false")
        self.assertEqual((self.groups(), list(self.resources())), ({"always": 7}, ["Always"]))

    def test_through_find_in_map(self):
        self.deploy(TOGGLED, On="false")
        self.update(TOGGLED, On="false", Size="large")
        self.assertEqual(self.groups(), {"always": 30})

    def test_replacement(self):
        self.deploy({"Resources": {"A": {"Type": "AWS::Logs::LogGroup", "Properties": {"LogGroupName": "one"}}}})
        self.update({"Resources": {"A": {"Type": "AWS::Logs::LogGroup", "Properties": {"LogGroupName": "two"}}}})
        self.assertEqual((self.resources(), self.groups()), ({"A": "two"}, {"two": None}))

    def test_replacement_of_a_named_resource(self):
        def group(description):
            return {"Resources": {"G": {"Type": "AWS::EC2::SecurityGroup",
                                        "Properties": {"GroupName": "g", "GroupDescription": description}}}}

        self.deploy(group("one"))
        self.assertEqual(self.update(group("two"))["StackStatus"], "UPDATE_ROLLBACK_COMPLETE")
        self.assertIn("CloudFormation cannot update a stack when a custom-named resource requires replacing. Rename g "
                      "and update the stack again.", [reason for _, _, reason in self.stack_events()])

    def test_rollback_of_an_update(self):
        self.deploy({"Resources": {"A": logs("a", RetentionInDays=7)}})
        stack = self.update({"Resources": {"A": logs("a", RetentionInDays=30),
                                           "B": {**logs("a"), "DependsOn": "A"}}})  # the name is taken
        self.assertEqual(stack["StackStatus"], "UPDATE_ROLLBACK_COMPLETE")
        self.assertEqual(self.groups(), {"a": 7})
        self.assertIn("ResourceAlreadyExistsException",
                      next(r for n, s, r in self.stack_events() if (n, s) == ("B", "CREATE_FAILED")))

    def test_rollback_of_a_creation(self):
        stack = self.deploy({"Resources": {"A": logs("a"), "B": {**logs("a"), "DependsOn": "A"}}})
        self.assertEqual((stack["StackStatus"], self.groups(), self.resources()), ("ROLLBACK_COMPLETE", {}, {}))
        message = self.refused("ValidationError", self.update, template={"Resources": {"A": logs("b")}})
        self.assertIn("is in ROLLBACK_COMPLETE state and can not be updated.", message)


class Signals(EmulatorTest):
    def signal(self, unique_id, status="SUCCESS", resource="Ready", stack="s"):
        self.cloudformation.signal_resource(StackName=stack, LogicalResourceId=resource, UniqueId=unique_id,
                                            Status=status)

    def settle(self, name="s"):
        self.until(lambda: not self.stack(name)["StackStatus"].endswith("_IN_PROGRESS"))
        return self.stack(name)["StackStatus"]

    def test_success(self):
        self.assertEqual(self.deploy(WAIT)["StackStatus"], "CREATE_IN_PROGRESS")
        self.signal("i-1")
        self.assertEqual(self.stack()["StackStatus"], "CREATE_IN_PROGRESS")
        self.signal("i-2")
        self.assertEqual(self.settle(), "CREATE_COMPLETE")
        self.assertIn(("Ready", "CREATE_IN_PROGRESS", "Received SUCCESS signal with UniqueId i-2"), self.stack_events())

    def test_failure_rolls_back(self):
        """The unique ID is the only text of a signal that reaches the events."""
        stack = self.deploy(WAIT)
        self.signal("i-1 download-checksum", "FAILURE")
        self.assertEqual(self.settle(), "ROLLBACK_COMPLETE")
        self.assertIn(("Ready", "CREATE_FAILED", "Received FAILURE signal with UniqueId i-1 download-checksum"),
                      self.stack_events(stack["StackId"]))

    def test_time_out(self):
        self.deploy(WAIT)
        self.control("expire", name="s", region="us-east-2")
        self.assertEqual(self.settle(), "ROLLBACK_COMPLETE")
        self.assertIn(("Ready", "CREATE_FAILED",
                       "Failed to receive 2 resource signal(s) within the specified duration"), self.stack_events())

    def test_refused(self):
        self.deploy(WAIT)
        self.signal("i-1")
        self.assertIn("Signal with ID i-1 for resource Ready already exists.",
                      self.refused("ValidationError", self.signal, unique_id="i-1"))
        self.assertEqual(self.refused("ValidationError", self.signal, unique_id="i-1", resource="No"),
                         "Resource No does not exist for stack s")
        self.signal("i-2")
        self.settle()
        self.assertIn("is in CREATE_COMPLETE state and cannot be signaled.",
                      self.refused("ValidationError", self.signal, unique_id="i-3"))

    def test_longest_unique_id(self):
        self.deploy(WAIT)
        self.signal("x" * 64)
        self.assertIn("less than or equal to 64", self.refused("ValidationError", self.signal, unique_id="x" * 65))

    def test_patience(self):
        """A request can be made to wait with the stack, so that `aws cloudformation deploy` polls once."""
        self.control("patience", seconds=HANG)
        timer = threading.Timer(0.3, lambda: (self.signal("i-1"), self.signal("i-2")))
        timer.start()
        self.assertEqual(self.deploy(WAIT)["StackStatus"], "CREATE_COMPLETE")
        timer.join()


def node_template(image, subnet, desired=2, maximum=4, in_service=1, user_data="", **policy):
    """A group of nodes that waits for their signals, with a cluster and its capacity provider."""
    rolling = {"MaxBatchSize": 1, "MinInstancesInService": in_service, "WaitOnResourceSignals": True,
               "PauseTime": "PT5M", **policy}
    return {
        "Parameters": {"Type": {"Type": "String"}},
        "Resources": {
            "Template": {"Type": "AWS::EC2::LaunchTemplate",
                         "Properties": {"LaunchTemplateName": "t", "LaunchTemplateData": {
                "ImageId": image, "InstanceType": {"Ref": "Type"}, "CpuOptions": {"AmdSevSnp": "enabled"},
                "UserData": {"Fn::Base64": user_data}}}},
            # The cluster is deleted after the group: it cannot be while it has container instances.
            "Group": {"Type": "AWS::AutoScaling::AutoScalingGroup", "DependsOn": "Cluster",
                      "UpdatePolicy": {"AutoScalingRollingUpdate": rolling},
                      "Properties": {"AutoScalingGroupName": "g", "MinSize": 0, "MaxSize": maximum,
                                     "DesiredCapacity": desired,
                                     "VPCZoneIdentifier": [subnet], "LaunchTemplate": {
                                         "LaunchTemplateId": {"Ref": "Template"},
                                         "Version": {"Fn::GetAtt": ["Template", "LatestVersionNumber"]}}}},
            "Cluster": {"Type": "AWS::ECS::Cluster", "Properties": {"ClusterName": "c"}},
            "Provider": {"Type": "AWS::ECS::CapacityProvider", "Properties": {
                "Name": "p", "AutoScalingGroupProvider": {"AutoScalingGroupArn": {"Ref": "Group"}}}},
            "Association": {"Type": "AWS::ECS::ClusterCapacityProviderAssociations", "Properties": {
                "Cluster": {"Ref": "Cluster"}, "CapacityProviders": [{"Ref": "Provider"}],
                "DefaultCapacityProviderStrategy": [{"CapacityProvider": {"Ref": "Provider"}, "Weight": 1}]}},
            "Ready": {"Type": "AWS::CloudFormation::WaitCondition", "DependsOn": "Association",
                      "CreationPolicy": {"ResourceSignal": {"Count": desired, "Timeout": "PT5M"}}},
        },
        "Outputs": {"GroupArn": {"Value": {"Fn::GetAtt": ["Group", "AutoScalingGroupARN"]}}},
    }


class Nodes(EmulatorTest):
    def setUp(self):
        super().setUp()
        self.control("boot", mode="register")
        self.body = node_template(self.image(), self.subnet())

    def instances(self):
        return [i["InstanceId"] for i in self.describe_group()["Instances"]]

    def test_rolling_update(self):
        """One node at a time, each new one waited for; those replaced leave the cluster."""
        self.deploy(self.body, Type="m6a.large")
        before = self.instances()
        self.assertEqual(self.update(self.body, Type="c6a.large")["StackStatus"], "UPDATE_COMPLETE")
        after = self.instances()
        self.assertFalse(set(before) & set(after))
        reasons = [r for n, _, r in self.stack_events() if n == "Group"]
        for instance in before:
            self.assertIn(f"Terminating instance(s) [{instance}]; replacing with 1 new instance(s).", reasons)
        for instance in after:
            self.assertIn(f"Received SUCCESS signal with UniqueId {instance}", reasons)
        self.assertEqual(len(self.ecs.list_container_instances(cluster="c")["containerInstanceArns"]), 2)

    def steps(self):
        """What the last update did to the group: + for nodes that were waited for, - for nodes that were terminated."""
        marks = {"New instance(s) added": "+", "Terminating instance(s)": "-"}
        found = []
        for name, status, reason in self.stack_events():
            if (name, status, reason) == ("s", "UPDATE_IN_PROGRESS", "User Initiated"):
                found = []
            found += [mark for text, mark in marks.items() if name == "Group" and reason.startswith(text)]
        return "".join(found)

    def test_order_of_a_rolling_update(self):
        """A group has room for a batch on top of MinInstancesInService, up to MaxSize; then the successor is first."""
        for desired, maximum, in_service, batch, want in [
            (2, 4, 2, 1, "+-+-"),  # room for one more
            (2, 4, 1, 1, "-+-+"),  # which is not asked for
            (2, 2, 1, 1, "-+-+"),  # or is not there
            (1, 2, 1, 1, "+-"),
            (3, 6, 3, 3, "+-"),  # all at once
            (2, 6, 3, 1, "+-+-"),  # more than there are
            (3, 4, 3, 2, "+-+-+-"),  # MaxSize has room for one of two
        ]:
            with self.subTest(desired=desired, maximum=maximum, in_service=in_service, batch=batch):
                super().setUp()
                self.control("boot", mode="register")
                body = node_template(self.image(), self.subnet(), desired, maximum, in_service, MaxBatchSize=batch)
                self.deploy(body, Type="m6a.large")
                before = self.instances()
                stack = self.update(body, Type="c6a.large")
                self.assertEqual(stack["StackStatus"], "UPDATE_COMPLETE", self.stack_events())
                self.assertEqual(self.steps(), want)
                self.assertFalse(set(before) & set(self.instances()))
                group = self.describe_group()
                self.assertEqual((group["MinSize"], group["DesiredCapacity"]), (0, desired))

    def test_bad_policies(self):
        for want, value in [("MaxBatchSize", 101), ("MinActiveInstancesPercent", 101), ("PauseTime", "PT1H1S"),
                            ("MinHealthyPercentage", 100)]:
            with self.subTest(want):
                super().setUp()
                body = node_template(self.image(), self.subnet(), desired=0, **{want: value})
                self.deploy(body, Type="m6a.large")
                self.assertEqual(self.update(body, Type="c6a.large")["StackStatus"], "UPDATE_ROLLBACK_FAILED")
                self.assertIn(want, str([r for _, _, r in self.stack_events()]))

    def test_growth_by_an_update(self):
        """A larger DesiredCapacity waits for the nodes that it launches (PauseTime), and only for those."""
        self.deploy(self.body, Type="m6a.large")
        grown = node_template(self.image(), self.subnet(), desired=3)
        old, new = self.body["Resources"], grown["Resources"]
        new["Template"], new["Ready"] = old["Template"], old["Ready"]
        new["Group"]["Properties"]["VPCZoneIdentifier"] = old["Group"]["Properties"]["VPCZoneIdentifier"]
        self.assertEqual(self.update(grown, Type="m6a.large")["StackStatus"], "UPDATE_COMPLETE", self.stack_events())
        self.assertEqual((self.steps(), len(self.instances())), ("+", 3))
        self.autoscaling.set_desired_capacity(AutoScalingGroupName="g", DesiredCapacity=4)
        grown["Resources"]["Group"]["Properties"]["DesiredCapacity"] = 4
        self.assertEqual(self.update(grown, Type="m6a.large")["StackStatus"], "UPDATE_COMPLETE", self.stack_events())
        self.assertEqual((self.steps(), len(self.instances())), ("", 4))

    def test_slow_drains(self):
        """Managed draining keeps a terminated node until its tasks are gone, and nothing waits for that."""
        self.deploy(self.body, Type="m6a.large")
        before = self.instances()
        self.control("drains", slow=True)
        stack = self.update(self.body, Type="c6a.large")
        self.assertEqual(stack["StackStatus"], "UPDATE_COMPLETE", self.stack_events())
        states = {i["InstanceId"]: i["LifecycleState"] for i in self.describe_group()["Instances"]}
        self.assertEqual([states.pop(i) for i in before], ["Terminating:Wait"] * 2)
        self.assertEqual(list(states.values()), ["InService"] * 2)
        draining = self.ecs.list_container_instances(cluster="c", status="DRAINING")["containerInstanceArns"]
        self.assertEqual(len(draining), 2)
        self.control("drains", slow=False)
        self.assertEqual(len(self.instances()), 2)
        self.assertEqual(len(self.ecs.list_container_instances(cluster="c")["containerInstanceArns"]), 2)

    def providers(self):
        arns = self.ecs.list_container_instances(cluster="c")["containerInstanceArns"]
        found = self.ecs.describe_container_instances(cluster="c", containerInstances=arns)["containerInstances"]
        return [n.get("capacityProviderName") for n in found]

    def test_the_race_of_the_first_boot(self):
        """Nodes boot when they are launched. Unless their user data makes them wait, that is before the association."""
        for provider, want in [("", None), ("CAPACITY_PROVIDER=p\n", "p")]:
            user_data = f"#!/bin/bash\nCLUSTER=c\n{provider}==sevagent==\nCLUSTER=d\n"
            with self.subTest(user_data):
                super().setUp()
                self.control("boot", mode="register")
                body = node_template(self.image(), self.subnet(), user_data=user_data)
                stack = self.deploy(body, Type="m6a.large")
                self.assertEqual(stack["StackStatus"], "CREATE_COMPLETE", self.stack_events())
                self.assertEqual(self.providers(), [want, want])

    def test_hold(self):
        self.control("hold", resource="Association")
        self.deploy(self.body, Type="m6a.large")
        self.assertEqual(self.stack()["StackStatus"], "CREATE_IN_PROGRESS")
        self.assertEqual(self.stack_events()[-1][0], "Association")
        self.control("release", resource="Association")
        self.until(lambda: self.stack()["StackStatus"] == "CREATE_COMPLETE")

    def test_no_room_for_a_rolling_update(self):
        self.body = node_template(self.image(), self.subnet(), desired=1, maximum=1)
        self.deploy(self.body, Type="m6a.large")
        self.assertEqual(self.update(self.body, Type="c6a.large")["StackStatus"], "UPDATE_ROLLBACK_COMPLETE")
        self.assertIn("MinInstancesInService must be less than the autoscaling group's MaxSize",
                      [r for _, _, r in self.stack_events()])

    def test_room_made_for_a_rolling_update(self):
        self.body = node_template(self.image(), self.subnet(), desired=1, maximum=2)
        self.deploy(self.body, Type="m6a.large")
        self.assertEqual(self.update(self.body, Type="c6a.large")["StackStatus"], "UPDATE_COMPLETE")
        self.assertIn("Temporarily setting autoscaling group MinSize and DesiredCapacity to 2.",
                      [r for _, _, r in self.stack_events()])
        self.assertEqual(len(self.instances()), 1)

    def test_failed_rolling_update(self):
        """A node that signals FAILURE ends the update; the nodes are then rolled back, and have to signal again."""
        self.deploy(self.body, Type="m6a.large")
        self.control("boot", mode="none")
        seen = set(self.instances())
        done = threading.Event()

        def play():
            status = "FAILURE"
            while not done.wait(0.02):
                for instance in set(self.instances()) - seen:
                    seen.add(instance)
                    self.cloudformation.signal_resource(StackName="s", LogicalResourceId="Group", UniqueId=instance,
                                                        Status=status)
                    status = "SUCCESS"

        player = threading.Thread(target=play)
        player.start()
        self.control("patience", seconds=HANG)
        stack = self.update(self.body, Type="c6a.large")
        done.set()
        player.join()
        self.assertEqual(stack["StackStatus"], "UPDATE_ROLLBACK_COMPLETE", self.stack_events())
        self.assertIn("Received 1 FAILURE signal(s) out of 1. Unable to satisfy 100% MinSuccessfulInstancesPercent "
                      "requirement",
                      [r for n, s, r in self.stack_events() if (n, s) == ("Group", "UPDATE_FAILED")])
        types = {i["InstanceType"] for r in self.ec2.describe_instances(InstanceIds=self.instances())["Reservations"]
                 for i in r["Instances"]}
        self.assertEqual(types, {"m6a.large"})

    def test_deletion_with_protected_nodes(self):
        """aws/containers-roadmap#2862: what is protected from scale-in blocks the deletion of its group."""
        self.deploy(self.body, Type="m6a.large")
        self.autoscaling.set_instance_protection(AutoScalingGroupName="g", InstanceIds=self.instances()[:1],
                                                 ProtectedFromScaleIn=True)
        self.cloudformation.delete_stack(StackName="s")
        self.assertEqual(self.stack()["StackStatus"], "DELETE_FAILED")
        self.autoscaling.set_instance_protection(AutoScalingGroupName="g", InstanceIds=self.instances(),
                                                 ProtectedFromScaleIn=False)
        self.cloudformation.delete_stack(StackName="s")
        self.refused("ValidationError", self.stack)

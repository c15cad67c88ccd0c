"""AWS::AutoScaling::*, and the rolling update of a group."""

import copy
import time

from . import api, autoscaling, ec2, nodes, ssm
from .api import delete_quietly, text
from .resource import Type, required
from .template import invalid, seconds


class AutoScalingGroup(Type):
    name = "AutoScalingGroupName"

    def _arguments(self, c, p):
        arguments = copy.deepcopy(p)
        arguments["VPCZoneIdentifier"] = ",".join(arguments.get("VPCZoneIdentifier", []))
        tags = {t["Key"]: t for t in p.get("Tags", [])}
        merged = [{**t, "PropagateAtLaunch": tags.get(t["Key"], {}).get("PropagateAtLaunch", True)}
                  for t in c.tags(p.get("Tags"))]
        arguments["Tags"] = [{**t, "ResourceId": p[self.name], "ResourceType": "auto-scaling-group"} for t in merged]
        if "Cooldown" in arguments:
            arguments["DefaultCooldown"] = arguments.pop("Cooldown")
        for item in ("MetricsCollection", "NotificationConfigurations", "LifecycleHookSpecificationList"):
            arguments.pop(item, None)
        return arguments

    def create(self, c, p):
        required(p, "MinSize", "MaxSize")
        name = self._named(c, p, 255)
        c.call("autoscaling", "CreateAutoScalingGroup", self._arguments(c, p))
        return name, {"AutoScalingGroupARN": autoscaling.find(c.region, name).arn}

    def update(self, c, resource, p, old):
        p[self.name] = resource.physical_id
        arguments = self._arguments(c, p)
        tags = arguments.pop("Tags")
        scheduled = c.update_policy.get("AutoScalingScheduledAction", {}).get("IgnoreUnmodifiedGroupSizeProperties")
        for size in ("MinSize", "MaxSize", "DesiredCapacity"):
            if api.text(scheduled).lower() == "true" and p.get(size) == old.get(size):
                arguments.pop(size, None)
        policy = c.update_policy.get("AutoScalingRollingUpdate")
        rolling = RollingUpdate(c, resource, policy) if policy is not None else None
        known = [s.instance.id for s in autoscaling.find(c.region, resource.physical_id).active_instances()]
        c.call("autoscaling", "CreateOrUpdateTags", {"Tags": tags})
        c.call("autoscaling", "UpdateAutoScalingGroup", arguments)
        if rolling:
            rolling.grow(known)
            rolling.run()
        return resource.attributes

    def delete(self, c, resource):
        """CloudFormation empties the group first. What is protected from scale-in blocks that: containers-roadmap#2862.

        AWS waits for hours that the protection goes; here it has to go while an automation runs.
        """
        name, asg = resource.physical_id, c.client("autoscaling")
        if not asg.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]:
            return
        group, deadline = autoscaling.find(c.region, name), time.monotonic() + 120
        while True:
            working = ssm.automating()
            asg.update_auto_scaling_group(AutoScalingGroupName=name, MinSize=0, MaxSize=0, DesiredCapacity=0)
            if not group.instance_states or not working or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        if group.instance_states:
            raise invalid("Could not scale to desired capacity because all remaining instances are protected from "
                          f"scale-in. (Service: AutoScaling, Error: ScalingActivityInProgress, group {name})")
        asg.delete_auto_scaling_group(AutoScalingGroupName=name)


LIMITS = {"MaxBatchSize": 100, "MinActiveInstancesPercent": 100, "MinSuccessfulInstancesPercent": 100}
ROLLING = {*LIMITS, "MinInstancesInService", "PauseTime", "SuspendProcesses", "WaitOnResourceSignals"}


class RollingUpdate:
    """AutoScalingRollingUpdate: replaces the instances of another launch template version batch by batch.

    The template reference documents the properties, and leaves open when a group grows first. That is as observed on
    AWS (guardian/testing-asg-rolling-update on GitHub, observations): before anything is terminated, the group is given
    room for a batch on top of MinInstancesInService, up to its MaxSize; a batch is as large as that then permits.
    """

    def __init__(self, c, resource, policy):
        self.c, self.resource = c, resource
        self.group = autoscaling.find(c.region, resource.physical_id)
        if unknown := sorted(set(policy) - ROLLING):
            raise invalid(f"Encountered unsupported property {unknown[0]}")
        for name, most in LIMITS.items():
            if not 0 <= int(policy.get(name, 1)) <= most:
                raise invalid(f"{name} must be between 0 and {most}")
        self.batch = int(policy.get("MaxBatchSize", 1))
        self.in_service = int(policy.get("MinInstancesInService", 0))
        self.active = int(policy.get("MinActiveInstancesPercent", 100))
        self.percent = int(policy.get("MinSuccessfulInstancesPercent", 100))
        self.signals = text(policy.get("WaitOnResourceSignals", False)).lower() == "true"
        self.pause = policy.get("PauseTime", "PT5M" if self.signals else "PT0S")
        if seconds(self.pause) > 3600:
            raise invalid("PauseTime must be at most one hour, PT1H")

    def _note(self, why):
        self.c.stack.event(self.resource, "UPDATE_IN_PROGRESS", why)

    def grow(self, known):
        """Waits for the signals of what a larger DesiredCapacity has launched besides the known instances."""
        self._await([i for i in self._instances() if i not in known])

    def run(self):
        group = self.group
        target = group.ec2_launch_template.get_version(group.launch_template_version)
        obsolete = [s.instance.id for s in group.active_instances() if self._obsolete(s.instance, target)]
        if not obsolete:
            return
        if self.in_service >= group.max_size:
            raise invalid("MinInstancesInService must be less than the autoscaling group's MaxSize")
        low, desired = group.min_size, group.desired_capacity
        room = max(desired, min(group.max_size, self.in_service + self.batch))
        batch = max(1, min(self.batch, len(obsolete), room - self.in_service))
        self._note(f"Rolling update initiated. Terminating {len(obsolete)} obsolete instance(s) in batches of {batch}, "
                   f"while keeping at least {self.in_service} instance(s) in service.")
        if room > desired:
            self._note(f"Temporarily setting autoscaling group MinSize and DesiredCapacity to {room}.")
            group.min_size, known = room, self._instances()
            group.set_desired_capacity(room)
            self.grow(known)
        total = len(obsolete)
        while obsolete:
            gone, obsolete = obsolete[:batch], obsolete[batch:]
            size = room if obsolete else desired
            new = max(0, size - (len(self._instances()) - len(gone)))
            self._note(f"Terminating instance(s) [{','.join(gone)}]; replacing with {new} new instance(s).")
            autoscaling.terminate(self.c.region, group.name, gone)
            progress = 100 * (total - len(obsolete)) // total
            self._note(f"Successfully terminated instance(s) [{','.join(gone)}] (Progress {progress}%).")
            if not obsolete:
                group.min_size = low
            known = self._instances()
            group.set_desired_capacity(size)
            self.grow(known)
        active = len(self._instances())
        if active * 100 < self.active * desired:
            raise invalid(f"{active} of {desired} instances are InService. Unable to satisfy {self.active}% "
                          "MinActiveInstancesPercent requirement")

    def _instances(self):
        return [s.instance.id for s in self.group.active_instances()]

    def _obsolete(self, instance, target):
        """A rollback makes a new version with the old data; here, instances that were made from such data stay."""
        if self.c.stack.status.startswith("UPDATE_ROLLBACK"):
            made_from = self.group.ec2_launch_template.get_version(instance.launch_template_version)
            return _comparable(made_from.data) != _comparable(target.data)
        return instance.launch_template_version != target.number

    def _await(self, launched):
        if not launched:
            return
        if not self.signals:
            nodes.boot_pending()
            return
        self._note(f"New instance(s) added to autoscaling group - Waiting on {len(launched)} resource signal(s) with a "
                   f"timeout of {self.pause}.")
        self.c.stack._await(self.resource, self.c.signals, len(launched), self.percent, seconds(self.pause), True,
                            set(launched))


def _comparable(data):
    """Launch template data whose user data is no object of its own."""
    return {**data, "UserData": ec2.user_data(data)}


class ScalingPolicy(Type):
    tagged = False
    replacing = ("AutoScalingGroupName",)

    def create(self, c, p):
        name = c.generated_name()
        arn = c.call("autoscaling", "PutScalingPolicy", {**p, "PolicyName": name})["PolicyARN"]
        return arn, {"PolicyName": name, "Arn": arn}

    def update(self, c, resource, p, old):
        c.call("autoscaling", "PutScalingPolicy", {**p, "PolicyName": resource.attributes["PolicyName"]})
        return resource.attributes

    def delete(self, c, resource):
        delete_quietly(c.client("autoscaling").delete_policy, "ValidationError",
                       PolicyName=resource.attributes["PolicyName"],
                       AutoScalingGroupName=resource.properties["AutoScalingGroupName"])

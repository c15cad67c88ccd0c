"""AWS::AutoScaling::*, and the rolling update of a group."""

import copy
import time

from . import api, autoscaling, nodes, ssm
from .api import delete_quietly, text
from .resource import Type, required
from .template import invalid


class AutoScalingGroup(Type):
    name = "AutoScalingGroupName"

    def _arguments(self, c, p):
        arguments = copy.deepcopy(p)
        arguments["VPCZoneIdentifier"] = ",".join(arguments.get("VPCZoneIdentifier", []))
        tags = {t["Key"]: t for t in p.get("Tags", [])}
        merged = [{**t, "PropagateAtLaunch": tags.get(t["Key"], {}).get("PropagateAtLaunch", True)} for t in c.tags(p.get("Tags"))]
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
        c.call("autoscaling", "UpdateAutoScalingGroup", arguments)
        c.call("autoscaling", "CreateOrUpdateTags", {"Tags": tags})
        if "AutoScalingRollingUpdate" in c.update_policy:
            RollingUpdate(c, resource, c.update_policy["AutoScalingRollingUpdate"]).run()
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
            raise invalid("Could not scale to desired capacity because all remaining instances are protected from scale-in. "
                          f"(Service: AutoScaling, Error: ScalingActivityInProgress, group {name})")
        asg.delete_auto_scaling_group(AutoScalingGroupName=name)


class RollingUpdate:
    """AutoScalingRollingUpdate: replaces the instances of another launch template version batch by batch."""

    def __init__(self, c, resource, policy):
        self.c, self.resource = c, resource
        self.group = autoscaling.find(c.region, resource.physical_id)
        self.batch = int(policy.get("MaxBatchSize", 1))
        self.in_service = int(policy.get("MinInstancesInService", 0))
        self.percent = int(policy.get("MinSuccessfulInstancesPercent", 100))
        self.signals = text(policy.get("WaitOnResourceSignals", False)).lower() == "true"
        self.pause = policy.get("PauseTime", "PT5M" if self.signals else "PT0S")

    def _note(self, why):
        self.c.stack.event(self.resource, "UPDATE_IN_PROGRESS", why)

    def run(self):
        group = self.group
        target = group.ec2_launch_template.get_version(group.launch_template_version)
        obsolete = [s.instance.id for s in group.instance_states if self._obsolete(s.instance, target)]
        if not obsolete:
            return
        if self.in_service >= group.max_size:
            raise invalid("MinInstancesInService must be less than the autoscaling group's MaxSize")
        self._note(f"Rolling update initiated. Terminating {len(obsolete)} obsolete instance(s) in batches of {self.batch}, while "
                   f"keeping at least {self.in_service} instance(s) in service.")
        desired = group.desired_capacity
        extra = max(0, min(self.batch, self.in_service - (desired - self.batch)))
        if extra:
            self._note(f"Temporarily setting autoscaling group MinSize and DesiredCapacity to {desired + extra}.")
            self._await(self._launch(extra))
        total = len(obsolete)
        while obsolete:
            batch, obsolete = obsolete[:self.batch], obsolete[self.batch:]
            self._note(f"Terminating instance(s) [{','.join(batch)}]; replacing with {len(batch)} new instance(s).")
            autoscaling.terminate(self.c.region, group.name, batch)
            self._note(f"Successfully terminated instance(s) [{','.join(batch)}] (Progress {100 * (total - len(obsolete)) // total}%).")
            missing = desired + (extra if obsolete else 0) - len(group.instance_states)
            if missing > 0:
                self._await(self._launch(missing))

    def _obsolete(self, instance, target):
        """A rollback makes a new version with the old data; here, instances that were made from such data stay."""
        if self.c.stack.status.startswith("UPDATE_ROLLBACK"):
            made_from = self.group.ec2_launch_template.get_version(instance.launch_template_version)
            return made_from.data != target.data
        return instance.launch_template_version != target.number

    def _launch(self, count):
        known = {s.instance.id for s in self.group.instance_states}
        self.group.replace_autoscaling_group_instances(count, self.group.get_propagated_tags())
        return [s.instance.id for s in self.group.instance_states if s.instance.id not in known]

    def _await(self, launched):
        from .stacks import seconds  # which needs this module

        if not self.signals:
            nodes.boot_pending()
            return
        self._note(f"New instance(s) added to autoscaling group - Waiting on {len(launched)} resource signal(s) with a timeout of {self.pause}.")
        self.c.stack._await(self.resource, self.c.signals, len(launched), self.percent, seconds(self.pause), True, set(launched))


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
        delete_quietly(c.client("autoscaling").delete_policy, "ValidationError", PolicyName=resource.attributes["PolicyName"],
                       AutoScalingGroupName=resource.properties["AutoScalingGroupName"])

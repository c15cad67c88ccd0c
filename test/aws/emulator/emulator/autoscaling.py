"""Auto Scaling: groups that obey their launch template's version, protect, and are deleted, as AWS documents."""

from moto.autoscaling.models import (ASG_NAME_TAG, AutoScalingBackend, FakeAutoScalingGroup, InstanceState,
                                     autoscaling_backends)
from moto.autoscaling.responses import AutoScalingResponse
from moto.core.responses import ActionResult

from . import ec2, nodes
from .api import ACCOUNT, AWSError, extend, operation
from .control import settings


def backend(region):
    return autoscaling_backends[ACCOUNT][region]


def find(region, name):
    group = backend(region).autoscaling_groups.get(name)
    if group is None:
        raise AWSError("ValidationError", f"AutoScalingGroup name not found - AutoScalingGroup '{name}' not found")
    return group


def by_reference(region, reference):
    """The group of a name or an ARN."""
    return next((g for g in backend(region).autoscaling_groups.values() if reference in (g.name, g.arn)), None)


def group_of(region, instance_id):
    for group in backend(region).autoscaling_groups.values():
        if any(s.instance.id == instance_id for s in group.instance_states):
            return group
    return None


@extend(FakeAutoScalingGroup)
def replace_autoscaling_group_instances(original, self, count_needed, propagated_tags):
    """Launches of the version that the group names, spread over its subnets."""
    if not self.ec2_launch_template:
        original(self, count_needed, propagated_tags)
        return
    version = self.ec2_launch_template.get_version(self.launch_template_version)
    tags = {**self.instance_tags, **propagated_tags, ASG_NAME_TAG: self.name}
    subnets = (self.vpc_zone_identifier or "").split(",")
    if subnets == [""]:
        subnets = [next(s.id for s in self.ec2_backend.describe_subnets()
                        if s.availability_zone in self.availability_zones)]
    launched = []
    for index, subnet in enumerate(subnets):
        share = count_needed // len(subnets) + (index < count_needed % len(subnets))
        launched += ec2.launch(self.region, share, version, self.ec2_launch_template, subnet, tags, self)
    self.instance_states += [
        InstanceState(i, protected_from_scale_in=self.new_instances_protected_from_scale_in) for i in launched]
    nodes.launched(self.region, [i.id for i in launched], ec2.user_data(version.data))


def _launch_template(self):
    template = self.auto_scaling_group and self.auto_scaling_group.ec2_launch_template
    if not template:
        return None
    version = getattr(self.instance, "launch_template_version", None) or template.default_version_number
    return {"LaunchTemplateId": template.id, "LaunchTemplateName": template.name, "Version": str(version)}


InstanceState.launch_template = property(_launch_template)


def _check_sizes(low, high, desired):
    if low > high:
        raise AWSError("ValidationError", f"Max bound, {high}, must be greater than or equal to min bound, {low}")
    if desired is not None and not low <= desired <= high:
        raise AWSError("ValidationError",
                       f"Desired capacity:{desired} must be between the specified min size:{low} and max size:{high}")


@extend(AutoScalingBackend)
def create_auto_scaling_group(original, self, name, *args, **kwargs):
    if name in self.autoscaling_groups:
        raise AWSError("AlreadyExists",
                       f"AutoScalingGroup by this name already exists - A group with the name {name} already exists")
    _check_sizes(int(kwargs["min_size"]), int(kwargs["max_size"]), kwargs.get("desired_capacity"))
    return original(self, name, *args, **kwargs)


@extend(AutoScalingBackend)
def update_auto_scaling_group(original, self, name, *args, **kwargs):
    group = find(self.region_name, name)
    low = group.min_size if kwargs.get("min_size") is None else kwargs["min_size"]
    high = group.max_size if kwargs.get("max_size") is None else kwargs["max_size"]
    _check_sizes(int(low), int(high), kwargs.get("desired_capacity"))
    return original(self, name, *args, **kwargs)


@extend(AutoScalingResponse)
def set_desired_capacity(original, request):
    group = find(request.region, request._get_param("AutoScalingGroupName"))
    desired = request._get_int_param("DesiredCapacity")
    if desired > group.max_size:
        raise AWSError("ValidationError",
                       f"New SetDesiredCapacity value {desired} is above max value {group.max_size} for the "
                       "AutoScalingGroup.")
    if desired < group.min_size:
        raise AWSError("ValidationError",
                       f"New SetDesiredCapacity value {desired} is below min value {group.min_size} for the "
                       "AutoScalingGroup.")
    result = original(request)
    nodes.boot_pending()
    return result


@extend(AutoScalingBackend)
def set_instance_protection(original, self, group_name, *args, **kwargs):
    find(self.region_name, group_name)
    return original(self, group_name, *args, **kwargs)


@operation(AutoScalingResponse)
def delete_auto_scaling_group(request, p):
    b, group = backend(request.region), find(request.region, p["AutoScalingGroupName"])
    ids = [s.instance.id for s in group.instance_states]
    if ids and not p.get("ForceDelete"):
        raise AWSError("ResourceInUse",
                       "You cannot delete an AutoScalingGroup while there are instances or pending Spot instance "
                       "request(s) still in the group.")
    if ids:
        group.instance_states = []
        group.ec2_backend.terminate_instances(ids)
    del b.autoscaling_groups[group.name]
    b.policies = {n: policy for n, policy in b.policies.items() if policy.auto_scaling_group_name != group.name}
    return {}


@extend(AutoScalingResponse)
def put_scaling_policy(original, request):
    return ActionResult({"PolicyARN": original(request)._result["PolicyArn"], "Alarms": []})  # moto misspells the name


def terminate(region, name, instance_ids):
    """Takes instances out of a group for good; the group's size is left to the caller.

    Managed draining makes them wait for their tasks first. They count no more then, and nobody waits for them: the hook
    takes up to 48 hours (Amazon ECS developer guide, "Managed instance draining").
    """
    from . import ecs  # which needs this module

    group = find(region, name)
    if settings.slow_drains and ecs.drain(region, group, instance_ids):
        for state in group.instance_states:
            if state.instance.id in instance_ids:
                state.lifecycle_state = "Terminating:Wait"
        return
    group.instance_states = [s for s in group.instance_states if s.instance.id not in instance_ids]
    group.ec2_backend.terminate_instances(instance_ids)


def drains(slow, region="us-east-2"):
    """For the control API: whether nodes that ECS drains keep their tasks. When that ends, those that waited go."""
    settings.slow_drains = bool(slow)
    for group in [] if slow else list(backend(region).autoscaling_groups.values()):
        if waiting := [s.instance.id for s in group.instance_states if s.lifecycle_state == "Terminating:Wait"]:
            terminate(region, group.name, waiting)

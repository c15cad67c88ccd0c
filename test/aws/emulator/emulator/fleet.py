"""A large cluster at once, for tests of scale."""

from moto.ecs.models import ContainerInstance

from . import api, ec2, ecs
from .autoscaling import InstanceState, find
from .control import settings


def create(group, cluster, count, region="us-east-2", attributes=None):
    """Adds count registered nodes to a group that exists, past its size and without its boot."""
    asg = find(region, group)
    version = asg.ec2_launch_template.get_version(asg.launch_template_version)
    subnets = asg.vpc_zone_identifier.split(",")
    tags = {**asg.instance_tags, **asg.get_propagated_tags(), "aws:autoscaling:groupName": group}
    backend, ids = ecs.backend(region), []
    registered = backend.container_instances.setdefault(cluster, {})
    provider = ecs.provider_of(backend, asg)
    for index in range(count):
        instance, = ec2.launch(region, 1, version, asg.ec2_launch_template, subnets[index % len(subnets)], tags, asg)
        asg.instance_states.append(InstanceState(instance,
                                                 protected_from_scale_in=asg.new_instances_protected_from_scale_in))
        node = ContainerInstance(instance.id, api.ACCOUNT, region, cluster, backend=backend)
        node.attributes |= settings.attributes if attributes is None else attributes
        node.capacity_provider_name = provider
        registered[node.id] = node
        ids.append(instance.id)
    size = len(asg.instance_states)
    asg.desired_capacity, asg.max_size = size, max(asg.max_size, size)
    return {"instances": ids}

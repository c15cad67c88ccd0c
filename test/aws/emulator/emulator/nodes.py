"""What instances do once they run: nothing, the least that a node does, or what a program of the test does."""

import os
import subprocess
import sys
import threading

from . import api
from .control import settings

_lock = threading.Lock()
_pending = []  # (region, instance ID) launched and not booted; guarded by _lock
_running = 0  # programs; guarded by _lock


def launched(region, instance_ids, user_data):
    """Called by ec2 for new instances of a group."""
    if settings.boot == "register":
        with _lock:
            _pending.extend((region, i) for i in instance_ids)
    elif settings.boot == "exec":
        for instance_id in instance_ids:
            _start(region, instance_id, user_data or b"")


def booting():
    with _lock:
        return _running > 0


def reset():
    with _lock:
        _pending.clear()


def boot_pending():
    """Registers the new nodes with their cluster and signals for them."""
    with _lock:
        waiting, _pending[:] = _pending[:], []
    for region, instance_id in waiting:
        if not _register(region, instance_id):
            with _lock:
                _pending.append((region, instance_id))


def _register(region, instance_id):
    """Whether the instance could be booted: its cluster is known once the capacity provider belongs to one."""
    found = api.client("ec2", region).describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]
    if found["State"]["Name"] != "running":
        return True
    tags = {t["Key"]: t["Value"] for t in found.get("Tags", [])}
    cluster = cluster_of(region, tags.get("aws:autoscaling:groupName"))
    if cluster is None:
        return False
    register(region, cluster, instance_id, settings.attributes)
    _signal(region, tags.get("aws:cloudformation:stack-id"), instance_id)
    return True


def cluster_of(region, group):
    ecs = api.client("ecs", region)
    providers = {p["name"] for p in ecs.describe_capacity_providers()["capacityProviders"]
                 if p.get("autoScalingGroupProvider", {}).get("autoScalingGroupArn", "").endswith(f"/{group}")}
    for arn in ecs.list_clusters()["clusterArns"]:
        cluster = ecs.describe_clusters(clusters=[arn])["clusters"][0]
        if cluster["status"] == "ACTIVE" and providers & set(cluster["capacityProviders"]):
            return arn
    return None


def register(region, cluster, instance_id, attributes):
    """What the ECS agent does when it starts."""
    document = f'{{"instanceId": "{instance_id}", "region": "{region}", "accountId": "{api.ACCOUNT}"}}'
    return api.client("ecs", region).register_container_instance(
        cluster=cluster, instanceIdentityDocument=document, instanceIdentityDocumentSignature="emulated",
        versionInfo={"agentVersion": "1.106.1", "agentHash": "8dfceca6", "dockerVersion": "DockerVersion: 25.0.16"},
        attributes=[{"name": name, "value": value} for name, value in attributes.items()],
    )["containerInstance"]


def _signal(region, stack_id, instance_id):
    from . import cloudformation  # which imports this module through stacks

    if stack_id is None:
        return
    stack = cloudformation.find(stack_id, region)
    for name in list(stack.signals):
        if stack.template["Resources"][name]["Type"] in ("AWS::AutoScaling::AutoScalingGroup", "AWS::CloudFormation::WaitCondition"):
            try:
                stack.signal(name, instance_id, "SUCCESS")
            except api.AWSError:
                pass  # a node signals without knowing what waits


def environment(region, instance_id):
    """The environment of a program of the test that stands in for a node."""
    return {**os.environ, "EMULATOR_INSTANCE_ID": instance_id, "AWS_REGION": region, "AWS_DEFAULT_REGION": region,
            "AWS_ENDPOINT_URL": settings.endpoint or "", "AWS_ACCESS_KEY_ID": "NODE", "AWS_SECRET_ACCESS_KEY": "node"}


def _start(region, instance_id, user_data):
    global _running
    with _lock:
        _running += 1

    def run():
        global _running
        try:
            done = subprocess.run([settings.boot_program, instance_id], input=user_data, env=environment(region, instance_id),
                                  stdout=sys.stderr, check=False, timeout=600)
            if done.returncode:
                print(f"{settings.boot_program} {instance_id}: exit status {done.returncode}", file=sys.stderr)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"{settings.boot_program} {instance_id}: {error}", file=sys.stderr)
        finally:
            with _lock:
                _running -= 1

    threading.Thread(target=run, daemon=True).start()

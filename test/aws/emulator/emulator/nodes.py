"""What instances do once they run: nothing, the least that a node does, or what a program of the test does."""

import os
import re
import subprocess
import sys
import threading

from . import api
from .control import settings

_lock = threading.Lock()
_pending = []  # Nodes that have not done all that a node does; guarded by _lock
_running = 0  # programs; guarded by _lock


class _Node:
    """An instance that does what sevagent's bootstrap and the ECS agent do, as far as its user data says so."""

    def __init__(self, region, instance_id, user_data):
        self.region, self.id = region, instance_id
        options = user_data.decode(errors="replace").partition("\n==sevagent==\n")[0]
        told = dict(re.findall(r"^([A-Z_]+)=(.+)$", options, re.MULTILINE))
        self.cluster, self.provider = told.get("CLUSTER"), told.get("CAPACITY_PROVIDER")
        self.registered = False

    def boot(self):
        """Whether the node is done. It is tried again until it is."""
        ec2 = api.client("ec2", self.region)
        found = ec2.describe_instances(InstanceIds=[self.id])["Reservations"][0]["Instances"][0]
        if found["State"]["Name"] != "running":
            return True
        tags = {t["Key"]: t["Value"] for t in found.get("Tags", [])}
        stack_id = tags.get("aws:cloudformation:stack-id")
        if not self.registered:
            cluster = self._cluster(tags.get("aws:autoscaling:groupName"))
            if cluster is None:
                return False
            register(self.region, cluster, self.id, settings.attributes)
            self.registered = True
            _signal(self.region, stack_id, self.id, "AWS::AutoScaling::AutoScalingGroup")
        return _signal(self.region, stack_id, self.id, "AWS::CloudFormation::WaitCondition")

    def _cluster(self, group):
        """The cluster to join, once the node may; None until then.

        A node whose user data names no capacity provider joins at once, and may be earlier than the provider. One whose
        user data names no cluster either finds that through its provider.
        """
        if self.cluster is None:
            return cluster_of(self.region, group)
        if self.provider:
            found = api.client("ecs", self.region).describe_clusters(clusters=[self.cluster])["clusters"]
            if not found or self.provider not in found[0]["capacityProviders"]:
                return None
        return self.cluster


def launched(region, instance_ids, user_data):
    """Called by autoscaling for new instances of a group: they boot at once."""
    if settings.boot == "register":
        with _lock:
            _pending.extend(_Node(region, i, user_data or b"") for i in instance_ids)
        boot_pending()
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
    """Lets the nodes try again what they could not do yet. Called after whatever they may have waited for."""
    with _lock:
        waiting, _pending[:] = _pending[:], []
    for node in waiting:
        if not node.boot():
            with _lock:
                _pending.append(node)


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


def _signal(region, stack_id, instance_id, kind):
    """Signals the stack's resources of a type. Whether it need not be tried again: one to come may still wait."""
    from . import cloudformation  # which imports this module through stacks

    if stack_id is None:
        return True
    stack = cloudformation.find(stack_id, region)
    resources = [n for n, r in stack.template["Resources"].items() if r["Type"] == kind]
    accepted = False
    for name in [n for n in resources if n in stack.signals]:
        try:
            stack.signal(name, instance_id, "SUCCESS")
            accepted = True
        except api.AWSError:
            pass  # a node signals without knowing what waits
    return accepted or not stack.status.endswith("_IN_PROGRESS") or all(n in stack.resources for n in resources)


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
            done = subprocess.run([settings.boot_program, instance_id], input=user_data,
                                  env=environment(region, instance_id),
                                  stdout=sys.stderr, check=False, timeout=600)
            if done.returncode:
                print(f"{settings.boot_program} {instance_id}: exit status {done.returncode}", file=sys.stderr)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"{settings.boot_program} {instance_id}: {error}", file=sys.stderr)
        finally:
            with _lock:
                _running -= 1

    threading.Thread(target=run, daemon=True).start()

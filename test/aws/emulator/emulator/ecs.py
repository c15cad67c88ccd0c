"""ECS: clusters, capacity providers and container instances as AWS documents them, and services that place tasks."""

import json
import uuid

from moto.ecs.exceptions import ClusterNotFoundException
from moto.ecs.models import ecs_backends
from moto.ecs.responses import EC2ContainerServiceResponse

from . import autoscaling, nodes
from .api import ACCOUNT, AWSError, operation
from .placement import matches, schedule

PAGE = 100  # most items a request of ECS describes or lists


def backend(region):
    return ecs_backends[ACCOUNT][region]


def client_error(message):
    return AWSError("ClientException", message)


def cluster_of(b, reference):
    cluster = b.clusters.get((reference or "default").split("/")[-1])
    if cluster is None or cluster.status != "ACTIVE":
        raise ClusterNotFoundException()
    return cluster


def nodes_of(b, cluster):
    return b.container_instances.get(cluster.name, {})


# Clusters


def _describe_cluster(b, cluster, include=()):
    tasks = [t for t in b.tasks.get(cluster.name, {}).values() if t.last_status == "RUNNING"]
    result = {
        "clusterArn": cluster.arn, "clusterName": cluster.name, "status": cluster.status,
        "registeredContainerInstancesCount": len(nodes_of(b, cluster)), "runningTasksCount": len(tasks),
        "pendingTasksCount": 0, "activeServicesCount": len(_services(b, cluster)), "statistics": [], "tags": [],
        "settings": [],
        "capacityProviders": cluster.capacity_providers or [],
        "defaultCapacityProviderStrategy": cluster.default_capacity_provider_strategy or [],
    }
    if cluster.service_connect_defaults:
        result["serviceConnectDefaults"] = cluster.service_connect_defaults
    if "SETTINGS" in include:
        result["settings"] = cluster.settings
    if "TAGS" in include:
        result["tags"] = cluster.tags or []
    if "CONFIGURATIONS" in include and cluster.configuration:
        result["configuration"] = cluster.configuration
    return result


@operation(EC2ContainerServiceResponse)
def create_cluster(request, p):
    b, name = backend(request.region), p.get("clusterName", "default")
    for provider in p.get("capacityProviders", []):
        _provider(b, provider)
    cluster = b.clusters.get(name)
    if cluster is None or cluster.status != "ACTIVE":
        connect = p.get("serviceConnectDefaults")
        cluster = b.create_cluster(name, p.get("tags", []), p.get("settings"), p.get("configuration"),
                                   p.get("capacityProviders"),
                                   p.get("defaultCapacityProviderStrategy"), service_connect_defaults=connect)
    return {"cluster": _describe_cluster(b, cluster, ("SETTINGS", "TAGS", "CONFIGURATIONS"))}


@operation(EC2ContainerServiceResponse)
def describe_clusters(request, p):
    b, found, failures = backend(request.region), [], []
    for reference in p.get("clusters") or ["default"]:
        cluster = b.clusters.get(reference.split("/")[-1])
        if cluster:
            found.append(_describe_cluster(b, cluster, p.get("include", [])))
        else:
            arn = f"arn:aws:ecs:{request.region}:{ACCOUNT}:cluster/{reference.split('/')[-1]}"
            failures.append({"arn": arn, "reason": "MISSING"})
    return {"clusters": found, "failures": failures}


@operation(EC2ContainerServiceResponse)
def update_cluster_settings(request, p):
    b = backend(request.region)
    cluster = cluster_of(b, p["cluster"])
    given = {s["name"]: s for s in p["settings"]}
    cluster.settings = [s for s in cluster.settings or [] if s["name"] not in given] + list(given.values())
    return {"cluster": _describe_cluster(b, cluster, ("SETTINGS",))}


@operation(EC2ContainerServiceResponse)
def list_clusters(request, p):
    return paged([c.arn for c in backend(request.region).clusters.values() if c.status == "ACTIVE"], "clusterArns", p)


@operation(EC2ContainerServiceResponse)
def delete_cluster(request, p):
    b = backend(request.region)
    cluster = cluster_of(b, p["cluster"])
    if nodes_of(b, cluster):
        raise AWSError("ClusterContainsContainerInstancesException",
                       "The Cluster cannot be deleted while Container Instances are active or draining.")
    if _services(b, cluster):
        raise AWSError("ClusterContainsServicesException", "The Cluster cannot be deleted while Services are active.")
    cluster.status = "INACTIVE"
    return {"cluster": _describe_cluster(b, cluster)}


def paged(items, name, p):
    start, size = int(p.get("nextToken", 0)), int(p.get("maxResults", PAGE))
    return {name: items[start:start + size], **({"nextToken": str(start + size)} if len(items) > start + size else {})}


# Capacity providers


FARGATE = ("FARGATE", "FARGATE_SPOT")  # are there for every cluster


def _provider(b, reference):
    provider = b._get_provider(reference)
    if provider is None:
        raise client_error("The specified capacity provider was not found. Specify a valid name or ARN and try again.")
    return provider


def provider_of(b, group):
    """The name of the capacity provider of a group that belongs to a cluster."""
    associated = {name for c in b.clusters.values() if c.status == "ACTIVE" for name in c.capacity_providers or []}
    for provider in b.capacity_providers.values():
        if provider.auto_scaling_group_provider["autoScalingGroupArn"] == group.arn and provider.name in associated:
            return provider.name
    return None


def _protect(region, details, group):
    """Managed termination protection: needs managed scaling, and ECS turns on the group's own protection."""
    if details.get("managedTerminationProtection") != "ENABLED":
        return
    if details.get("managedScaling", {}).get("status", "DISABLED") != "ENABLED":
        raise client_error("The managed termination protection setting for the capacity provider is invalid. To enable "
                           "managed termination protection for a capacity provider, managed scaling must be enabled.")
    group.new_instances_protected_from_scale_in = True
    for state in group.instance_states:
        state.protected_from_scale_in = True


@operation(EC2ContainerServiceResponse)
def create_capacity_provider(request, p):
    b, name, details = backend(request.region), p["name"], p["autoScalingGroupProvider"]
    if name.lower().startswith(("aws", "ecs", "fargate")):
        raise client_error("The specified capacity provider name is invalid. Up to 255 characters are allowed, "
                           "including letters, numbers, underscores, and hyphens. The name can't be prefixed with "
                           "\"aws\", \"ecs\", or \"fargate\".")
    if name in b.capacity_providers:
        raise client_error("A capacity provider with the specified name already exists.")
    group = autoscaling.by_reference(request.region, details["autoScalingGroupArn"])
    if group is None:
        raise client_error("The specified Auto Scaling group ARN is invalid. Specify a valid ARN and try again.")
    details["autoScalingGroupArn"] = group.arn
    details.setdefault("managedDraining", "ENABLED")
    _protect(request.region, details, group)
    return {"capacityProvider": b.create_capacity_provider(name, details, p.get("tags"))}


@operation(EC2ContainerServiceResponse)
def update_capacity_provider(request, p):
    b = backend(request.region)
    provider, details = _provider(b, p["name"]), p["autoScalingGroupProvider"]
    old = provider.auto_scaling_group_provider
    merged = {**old, **details, "managedScaling": {**old.get("managedScaling", {}),
                                                   **details.get("managedScaling", {})}}
    _protect(request.region, merged, autoscaling.by_reference(request.region, old["autoScalingGroupArn"]))
    provider.auto_scaling_group_provider = merged
    provider.update_status = "UPDATE_COMPLETE"
    return {"capacityProvider": provider}


@operation(EC2ContainerServiceResponse)
def describe_capacity_providers(request, p):
    b = backend(request.region)
    names = p.get("capacityProviders")
    names = [*b.capacity_providers, *FARGATE] if names is None else names
    found, failures = b.describe_capacity_providers([n for n in names if n not in FARGATE])
    fargate = [{"capacityProviderArn": f"arn:aws:ecs:{request.region}:{ACCOUNT}:capacity-provider/{n}", "name": n,
                "status": "ACTIVE", "tags": []}
               for n in names if n in FARGATE]
    return {"capacityProviders": [*found, *fargate], "failures": failures}


@operation(EC2ContainerServiceResponse)
def delete_capacity_provider(request, p):
    b = backend(request.region)
    provider = _provider(b, p["capacityProvider"])
    if any(provider.name in (c.capacity_providers or []) for c in b.clusters.values() if c.status == "ACTIVE"):
        raise client_error("The specified capacity provider is in use and cannot be removed.")
    # The instances stay protected: aws/containers-roadmap#2862.
    return {"capacityProvider": b.delete_capacity_provider(provider.name)}


@operation(EC2ContainerServiceResponse)
def put_cluster_capacity_providers(request, p):
    b = backend(request.region)
    cluster = cluster_of(b, p["cluster"])
    names = [name if name in FARGATE else _provider(b, name).name for name in p["capacityProviders"]]
    strategy = p["defaultCapacityProviderStrategy"]
    if not {s["capacityProvider"] for s in strategy} <= set(names):
        raise AWSError("InvalidParameterException",
                       "The specified capacity provider strategy cannot contain a capacity provider that "
                       "is not associated with the cluster. Associate the capacity provider with the cluster and try "
                       "again.")
    used = {s["capacityProvider"] for service in _services(b, cluster)
            for s in getattr(service, "capacity_provider_strategy", None) or []}
    if gone := used - set(names):
        raise AWSError("ResourceInUseException",
                       f"The specified capacity provider is in use and cannot be removed: {', '.join(gone)}")
    cluster.capacity_providers, cluster.default_capacity_provider_strategy = names, strategy
    nodes.boot_pending()
    return {"cluster": _describe_cluster(b, cluster)}


# Container instances


@operation(EC2ContainerServiceResponse)
def register_container_instance(request, p):
    b = backend(request.region)
    cluster = cluster_of(b, p.get("cluster"))
    instance_id = json.loads(p["instanceIdentityDocument"])["instanceId"]
    known = nodes_of(b, cluster)
    # An agent that comes back names the ARN that it was given.
    node = known.get(p.get("containerInstanceArn", "").split("/")[-1])
    node = node or b.register_container_instance(cluster.name, instance_id)
    for attribute in p.get("attributes", []):
        node.attributes[attribute["name"]] = attribute.get("value", "")
    node.version_info = p.get("versionInfo") or node.version_info
    node.tags = p.get("tags", [])
    group = autoscaling.group_of(request.region, instance_id)
    # Nodes that register before the association do not belong to the capacity provider.
    if group and (name := provider_of(b, group)) in (cluster.capacity_providers or []):
        node.capacity_provider_name = name
    schedule(b, cluster)
    return {"containerInstance": _describe_node(b, cluster, node)}


def _describe_node(b, cluster, node, include=()):
    tasks = [t for t in b.tasks.get(cluster.name, {}).values()
             if t.container_instance_arn == node.container_instance_arn and t.last_status == "RUNNING"]
    result = {
        "containerInstanceArn": node.container_instance_arn, "ec2InstanceId": node.ec2_instance_id, "version": 1,
        "versionInfo": node.version_info, "remainingResources": node.remaining_resources,
        "registeredResources": node.registered_resources, "status": node.status, "agentConnected": node.agent_connected,
        "runningTasksCount": len(tasks), "pendingTasksCount": 0, "registeredAt": node.registered_at, "attachments": [],
        "attributes": dict(node.attributes), "tags": getattr(node, "tags", []) if "TAGS" in include else [],
    }
    if name := getattr(node, "capacity_provider_name", None):
        result["capacityProviderName"] = name
    return result


@operation(EC2ContainerServiceResponse)
def list_container_instances(request, p):
    b = backend(request.region)
    cluster = cluster_of(b, p.get("cluster"))
    found = [n.container_instance_arn for n in nodes_of(b, cluster).values()
             if p.get("status") in (None, n.status) and ("filter" not in p or matches(p["filter"], n))]
    return paged(found, "containerInstanceArns", p)


@operation(EC2ContainerServiceResponse)
def describe_container_instances(request, p):
    b, wanted = backend(request.region), p.get("containerInstances", [])
    cluster = cluster_of(b, p.get("cluster"))
    if not wanted:
        raise AWSError("InvalidParameterException", "Container Instances cannot be empty.")
    if len(wanted) > PAGE:
        raise AWSError("InvalidParameterException", f"instances can have at most {PAGE} items.")
    found, failures = [], []
    for reference in wanted:
        node = nodes_of(b, cluster).get(reference.split("/")[-1])
        if node:
            found.append(_describe_node(b, cluster, node, p.get("include", [])))
        else:
            failures.append({"arn": reference, "reason": "MISSING"})
    return {"containerInstances": found, "failures": failures}


@operation(EC2ContainerServiceResponse)
def put_attributes(request, p):
    """A target is given by its ARN or, with its type, by its ID."""
    b = backend(request.region)
    cluster = cluster_of(b, p.get("cluster"))
    nodes = nodes_of(b, cluster)
    for attribute in p["attributes"]:
        target = attribute.get("targetId", "").split("/")[-1]
        if target not in nodes:
            raise AWSError("TargetNotFoundException", f"Could not find {attribute.get('targetId')}")
    for attribute in p["attributes"]:
        nodes[attribute["targetId"].split("/")[-1]].attributes[attribute["name"]] = attribute.get("value")
    schedule(b, cluster)
    return {"attributes": p["attributes"]}


def drain(region, group, instance_ids):
    """Whether ECS drains instances of a group before they terminate: it does if their capacity provider says so."""
    b = backend(region)
    provider = b.capacity_providers.get(provider_of(b, group))
    if provider is None or provider.auto_scaling_group_provider.get("managedDraining") != "ENABLED":
        return False
    for known in b.container_instances.values():
        for node in known.values():
            if node.ec2_instance_id in instance_ids:
                node.status = "DRAINING"
    return True


def terminated(region, instance_ids):
    """ECS deregisters a container instance when its EC2 instance terminates."""
    b, gone = backend(region), set(instance_ids)
    for name, known in b.container_instances.items():
        for key in [k for k, node in known.items() if node.ec2_instance_id in gone]:
            del known[key]
        if name in b.clusters:
            schedule(b, b.clusters[name])


# Services and tasks


def _services(b, cluster):
    return [s for s in b.services.values() if s.cluster_name == cluster.name and s.status == "ACTIVE"]


_KEPT = {  # what moto's service does not keep of a request
    "placementConstraints": "placement_constraints", "placementStrategy": "placement_strategy",
    "capacityProviderStrategy": "capacity_provider_strategy", "deploymentConfiguration": "deployment_configuration",
    "enableExecuteCommand": "enable_execute_command",
    "healthCheckGracePeriodSeconds": "health_check_grace_period_seconds",
    "enableECSManagedTags": "enable_ecs_managed_tags", "serviceConnectConfiguration": "service_connect_configuration",
    "availabilityZoneRebalancing": "availability_zone_rebalancing",
}


def _keep(service, p):
    for name, attribute in _KEPT.items():
        if name in p:
            setattr(service, attribute, p[name])
        elif not hasattr(service, attribute):
            setattr(service, attribute, None)


@operation(EC2ContainerServiceResponse)
def create_service(request, p):
    b = backend(request.region)
    cluster = cluster_of(b, p.get("cluster"))
    if any(s.name == p["serviceName"] for s in _services(b, cluster)):
        raise AWSError("InvalidParameterException", "Creation of service was not idempotent.")
    if p.get("launchType") and p.get("capacityProviderStrategy"):
        raise AWSError("InvalidParameterException",
                       "Specifying both a launch type and capacity provider strategy is not supported. "
                       "Remove one and try again.")
    for item in p.get("capacityProviderStrategy", []):
        if item["capacityProvider"] not in (cluster.capacity_providers or []):
            raise AWSError("InvalidParameterException",
                           "The specified capacity provider strategy cannot contain a capacity provider "
                           "that is not associated with the cluster. Associate the capacity provider with the cluster "
                           "and try again.")
    service = b.create_service(
        cluster.name, p["serviceName"], p.get("desiredCount", 1), p.get("taskDefinition"), p.get("loadBalancers"),
        p.get("schedulingStrategy", "REPLICA"), p.get("tags"), p.get("deploymentController"), p.get("launchType"),
        p.get("serviceRegistries"), p.get("platformVersion"), p.get("propagateTags", "NONE"),
        p.get("networkConfiguration"), p.get("role"))
    service.task_definition = b.describe_task_definition(p["taskDefinition"]).arn
    _keep(service, p)
    schedule(b, cluster)
    return {"service": service}


@operation(EC2ContainerServiceResponse)
def update_service(request, p):
    b = backend(request.region)
    cluster = cluster_of(b, p.get("cluster"))
    service = b._get_service(cluster.name, p["service"].split("/")[-1])
    if "taskDefinition" in p:
        service.task_definition = b.describe_task_definition(p["taskDefinition"]).arn
    if "desiredCount" in p:
        service.desired_count = p["desiredCount"]
    if "networkConfiguration" in p:
        service.network_configuration = p["networkConfiguration"]
    if p.get("forceNewDeployment") or "taskDefinition" in p:
        service.deployments[0]["id"] = f"ecs-svc/{uuid.uuid4().int % 10**19}"
    _keep(service, p)
    schedule(b, cluster, restart=service if p.get("forceNewDeployment") else None)
    return {"service": service}


@operation(EC2ContainerServiceResponse)
def delete_service(request, p):
    b = backend(request.region)
    cluster = cluster_of(b, p.get("cluster"))
    service = b._get_service(cluster.name, p["service"].split("/")[-1])
    if service.desired_count > 0 and not p.get("force"):
        raise AWSError("InvalidParameterException", "The service cannot be stopped while it is scaled above 0.")
    service.status, service.desired_count = "INACTIVE", 0
    schedule(b, cluster)
    return {"service": service}


@operation(EC2ContainerServiceResponse)
def list_tasks(request, p):
    b = backend(request.region)
    cluster = cluster_of(b, p.get("cluster"))
    wanted = {
        "group": f"service:{p['serviceName'].split('/')[-1]}" if "serviceName" in p else None,
        "desired_status": p.get("desiredStatus", "RUNNING"), "started_by": p.get("startedBy"),
    }
    found = [t.task_arn for t in b.tasks.get(cluster.name, {}).values()
             if all(v in (None, getattr(t, k)) for k, v in wanted.items())
             and t.container_instance_arn.endswith(p.get("containerInstance", ""))
             and p.get("family") in (None, t.task_definition_arn.split("/")[-1].split(":")[0])]
    return paged(found, "taskArns", p)


@operation(EC2ContainerServiceResponse)
def describe_tasks(request, p):
    """moto moves a task to its end by describing it."""
    b = backend(request.region)
    known = {t.id: t for t in b.tasks.get(cluster_of(b, p.get("cluster")).name, {}).values()}
    found = [known[r.split("/")[-1]] for r in p["tasks"] if r.split("/")[-1] in known]
    return {"tasks": found, "failures": [{"arn": r, "reason": "MISSING"} for r in p["tasks"]
                                         if r.split("/")[-1] not in known]}

"""AWS::ECS::*"""

from .api import delete_quietly
from .resource import Type, lower, required
from .template import invalid


class Cluster(Type):
    name = "ClusterName"

    def create(self, c, p):
        self._named(c, p)
        settings = p.pop("ClusterSettings", None)
        p["Tags"] = lower(c.tags(p.get("Tags")))
        made = c.call("ecs", "CreateCluster", {**p, **({"Settings": settings} if settings else {})})["cluster"]
        return made["clusterName"], {"Arn": made["clusterArn"]}

    def update(self, c, resource, p, old):
        changed = {k: p[k] for k in ("Configuration", "ServiceConnectDefaults") if k in p}
        c.call("ecs", "UpdateCluster", {**changed, "Cluster": resource.physical_id,
                                        "Settings": p.get("ClusterSettings")
                                        or [{"name": "containerInsights", "value": "disabled"}]})
        c.client("ecs").tag_resource(resourceArn=resource.attributes["Arn"], tags=lower(c.tags(p.get("Tags"))))
        return resource.attributes

    def delete(self, c, resource):
        delete_quietly(c.client("ecs").delete_cluster, "ClusterNotFoundException", cluster=resource.physical_id)


class CapacityProvider(Type):
    name = "Name"

    def replaced_by(self, old, new):
        def group(p):
            return p.get("AutoScalingGroupProvider", {}).get("AutoScalingGroupArn")

        return super().replaced_by(old, new) or group(old) != group(new)

    def create(self, c, p):
        required(p, "AutoScalingGroupProvider")
        self._named(c, p, 255)
        p["Tags"] = lower(c.tags(p.get("Tags")))
        return c.call("ecs", "CreateCapacityProvider", p)["capacityProvider"]["name"], {}

    def update(self, c, resource, p, old):
        details = {k: v for k, v in p["AutoScalingGroupProvider"].items() if k != "AutoScalingGroupArn"}
        c.call("ecs", "UpdateCapacityProvider", {"Name": resource.physical_id, "AutoScalingGroupProvider": details})
        return {}

    def delete(self, c, resource):
        if c.client("ecs").describe_capacity_providers(capacityProviders=[resource.physical_id])["capacityProviders"]:
            c.client("ecs").delete_capacity_provider(capacityProvider=resource.physical_id)


class ClusterCapacityProviderAssociations(Type):
    tagged = False
    replacing = ("Cluster",)

    def create(self, c, p):
        required(p, "Cluster", "CapacityProviders", "DefaultCapacityProviderStrategy")
        c.call("ecs", "PutClusterCapacityProviders", p)
        return p["Cluster"], {}

    def update(self, c, resource, p, old):
        return self.create(c, p)[1]

    def delete(self, c, resource):
        delete_quietly(c.client("ecs").put_cluster_capacity_providers, "ClusterNotFoundException",
                       cluster=resource.physical_id,
                       capacityProviders=[], defaultCapacityProviderStrategy=[])


class TaskDefinition(Type):
    def replaced_by(self, old, new):
        def without_tags(p):
            return {k: v for k, v in p.items() if k != "Tags"}

        return without_tags(old) != without_tags(new)

    def create(self, c, p):
        p.setdefault("Family", c.generated_name(255))
        p["Tags"] = lower(c.tags(p.get("Tags")))
        arn = c.call("ecs", "RegisterTaskDefinition", p)["taskDefinition"]["taskDefinitionArn"]
        return arn, {"TaskDefinitionArn": arn}

    def update(self, c, resource, p, old):
        c.client("ecs").tag_resource(resourceArn=resource.physical_id, tags=lower(c.tags(p.get("Tags"))))
        return resource.attributes

    def delete(self, c, resource):
        delete_quietly(c.client("ecs").deregister_task_definition, "ClientException",
                       taskDefinition=resource.physical_id)


class Service(Type):
    name = "ServiceName"
    replacing = ("Cluster", "LaunchType", "SchedulingStrategy", "DeploymentController", "Role")

    def create(self, c, p):
        self._named(c, p, 255)
        p["Tags"] = lower(c.tags(p.get("Tags")))
        made = c.call("ecs", "CreateService", self._renamed(p))["service"]
        self._settled(made)
        return made["serviceArn"], {"Name": made["serviceName"], "ServiceArn": made["serviceArn"]}

    def update(self, c, resource, p, old):
        fixed = {*self.replacing, self.name, "Tags"}
        changed = {k: v for k, v in p.items() if k not in fixed}
        changed |= {k: [] for k in ("PlacementConstraints", "PlacementStrategies") if k in old and k not in p}
        service = {"Service": resource.attributes["Name"], "Cluster": p.get("Cluster", "default")}
        self._settled(c.call("ecs", "UpdateService", {**self._renamed(changed), **service})["service"])
        return resource.attributes

    @staticmethod
    def _renamed(p):
        """The API's name for PlacementStrategies is in the singular."""
        p = dict(p)
        if "PlacementStrategies" in p:
            p["PlacementStrategy"] = p.pop("PlacementStrategies")
        return p

    @staticmethod
    def _settled(service):
        """AWS waits up to three hours for a service to settle; here it settles at once or never."""
        if service["runningCount"] < service["desiredCount"]:
            raise invalid("Resource handler returned message: \"Error occurred during operation 'ECS Deployment did "
                          f"not stabilize'.\" {service['events'][0]['message'] if service.get('events') else ''}")

    def delete(self, c, resource):
        cluster = resource.properties.get("Cluster", "default")
        delete_quietly(c.client("ecs").delete_service, "ServiceNotFoundException", "ClusterNotFoundException",
                       cluster=cluster, service=resource.attributes["Name"], force=True)

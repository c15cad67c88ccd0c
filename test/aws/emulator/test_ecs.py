"""ECS: clusters, capacity providers, container instances, placement."""

from support import EmulatorTest

CONTAINER = {"name": "app", "image": "app", "memory": 512, "cpu": 256}
ATTESTED = [{"type": "memberOf", "expression": "attribute:sevagent.attested == true"}]


class Clusters(EmulatorTest):
    def body(self, insights):
        return {"Resources": {"C": {"Type": "AWS::ECS::Cluster", "Properties": {
            "ClusterName": "c", "ClusterSettings": [{"Name": "containerInsights", "Value": insights}]}}}}

    def test_settings(self):
        self.deploy(self.body("enabled"))
        self.update(self.body("enhanced"))
        found, = self.ecs.describe_clusters(clusters=["c"], include=["SETTINGS"])["clusters"]
        self.assertEqual(found["settings"], [{"name": "containerInsights", "value": "enhanced"}])
        self.assertEqual(self.ecs.describe_clusters(clusters=["c"])["clusters"][0]["settings"], [])

    def test_settings_by_the_api(self):
        self.ecs.create_cluster(clusterName="c", settings=[{"name": "containerInsights", "value": "enabled"}])
        self.ecs.update_cluster_settings(cluster="c", settings=[{"name": "containerInsights", "value": "disabled"}])
        found, = self.ecs.describe_clusters(clusters=["c"], include=["SETTINGS"])["clusters"]
        self.assertEqual(found["settings"], [{"name": "containerInsights", "value": "disabled"}])

    def test_missing(self):
        self.assertEqual(self.ecs.describe_clusters(clusters=["no"])["failures"][0]["reason"], "MISSING")

    def test_deletion(self):
        self.ecs.create_cluster(clusterName="c")
        instance = self.group()["Instances"][0]["InstanceId"]
        self.register("c", instance)
        self.refused("ClusterContainsContainerInstancesException", self.ecs.delete_cluster, cluster="c")
        self.ec2.terminate_instances(InstanceIds=[instance])
        self.ecs.delete_cluster(cluster="c")
        self.assertEqual(self.ecs.describe_clusters(clusters=["c"])["clusters"][0]["status"], "INACTIVE")
        self.assertEqual(self.ecs.list_clusters()["clusterArns"], [])


class TaskSize(EmulatorTest):
    def test_of_the_task_alone(self):
        """On EC2 it is enough that the task has a memory value (API reference, ContainerDefinition, memory)."""
        self.ecs.create_cluster(clusterName="c")
        node = self.register("c", self.group()["Instances"][0]["InstanceId"])
        self.ecs.register_task_definition(family="t", cpu="256", memory="512",
                                          containerDefinitions=[{"name": "app", "image": "app"}])
        self.ecs.create_service(cluster="c", serviceName="s", taskDefinition="t", desiredCount=1)
        arns = [node["containerInstanceArn"]]
        found, = self.ecs.describe_container_instances(cluster="c", containerInstances=arns)["containerInstances"]
        left = {r["name"]: r["integerValue"] - s["integerValue"]
                for r, s in zip(found["registeredResources"], found["remainingResources"]) if "integerValue" in s}
        self.assertEqual((left["CPU"], left["MEMORY"]), (256, 512))


class CapacityProviders(EmulatorTest):
    def create(self, name="p", scaling="ENABLED", protection="ENABLED", group="g"):
        return self.ecs.create_capacity_provider(name=name, autoScalingGroupProvider={
            "autoScalingGroupArn": group, "managedScaling": {"status": scaling},
            "managedTerminationProtection": protection})

    def test_protection(self):
        """ECS protects the group and its instances, also once the provider is gone (aws/containers-roadmap#2862)."""
        self.group()
        self.create()
        found = self.describe_group()
        self.assertTrue(found["NewInstancesProtectedFromScaleIn"])
        self.assertTrue(found["Instances"][0]["ProtectedFromScaleIn"])
        self.ecs.delete_capacity_provider(capacityProvider="p")
        self.assertTrue(self.describe_group()["Instances"][0]["ProtectedFromScaleIn"])

    def test_refused(self):
        self.group()
        self.assertIn("managed scaling must be enabled",
                      self.refused("ClientException", self.create, scaling="DISABLED"))
        for name in ("aws-x", "ecs1", "Fargate"):
            self.assertIn("name is invalid", self.refused("ClientException", self.create, name=name))
        self.assertIn("group ARN is invalid", self.refused("ClientException", self.create, group="no"))

    def test_fargate_is_always_there(self):
        self.ecs.create_cluster(clusterName="c")
        strategy = [{"capacityProvider": "FARGATE", "weight": 1}]
        self.ecs.put_cluster_capacity_providers(cluster="c", capacityProviders=["FARGATE"],
                                                defaultCapacityProviderStrategy=strategy)
        self.assertEqual(self.ecs.describe_clusters(clusters=["c"])["clusters"][0]["capacityProviders"], ["FARGATE"])
        found, = self.ecs.describe_capacity_providers(capacityProviders=["FARGATE"])["capacityProviders"]
        self.assertEqual(found["status"], "ACTIVE")

    def test_in_use(self):
        self.group()
        self.create()
        self.ecs.create_cluster(clusterName="c")
        strategy = [{"capacityProvider": "p", "weight": 1}]
        self.refused("InvalidParameterException", self.ecs.put_cluster_capacity_providers, cluster="c",
                     capacityProviders=[],
                     defaultCapacityProviderStrategy=strategy)
        self.ecs.put_cluster_capacity_providers(cluster="c", capacityProviders=["p"],
                                                defaultCapacityProviderStrategy=strategy)
        self.assertIn("in use", self.refused("ClientException", self.ecs.delete_capacity_provider,
                                             capacityProvider="p"))

    def test_by_cloudformation(self):
        group = self.group()

        def body(status):
            return {"Resources": {"P": {"Type": "AWS::ECS::CapacityProvider",
                                        "Properties": {"Name": "p", "AutoScalingGroupProvider": {
                "AutoScalingGroupArn": "g", "ManagedScaling": {"Status": status, "TargetCapacity": 90}}}}}}

        self.deploy(body("ENABLED"))
        self.update(body("DISABLED"))
        found, = self.ecs.describe_capacity_providers(capacityProviders=["p"])["capacityProviders"]
        provider = found["autoScalingGroupProvider"]
        self.assertEqual(provider["autoScalingGroupArn"], group["AutoScalingGroupARN"])
        self.assertEqual((provider["managedScaling"]["status"], provider["managedScaling"]["targetCapacity"]),
                         ("DISABLED", 90))
        self.assertEqual(provider["managedDraining"], "ENABLED")


class ContainerInstances(EmulatorTest):
    def test_registration(self):
        self.ecs.create_cluster(clusterName="c")
        instance = self.group()["Instances"][0]["InstanceId"]
        node = self.register("c", instance, sev__snp="verified")
        self.assertIn({"name": "sev.snp", "value": "verified"}, node["attributes"])
        arns = [node["containerInstanceArn"]]
        found, = self.ecs.describe_container_instances(cluster="c", containerInstances=arns)["containerInstances"]
        self.assertEqual((found["ec2InstanceId"], found["status"], found["agentConnected"]), (instance, "ACTIVE", True))
        self.assertEqual(self.ecs.describe_clusters(clusters=["c"])["clusters"][0]["registeredContainerInstancesCount"],
                         1)

    def test_again_with_its_arn(self):
        self.ecs.create_cluster(clusterName="c")
        node = self.register("c", self.group()["Instances"][0]["InstanceId"])
        again = self.ecs.register_container_instance(
            cluster="c", containerInstanceArn=node["containerInstanceArn"],
            instanceIdentityDocument='{"instanceId": "i-0"}')
        self.assertEqual(again["containerInstance"]["containerInstanceArn"], node["containerInstanceArn"])

    def test_no_such_cluster(self):
        self.refused("ClusterNotFoundException", self.register, cluster="no",
                     instance_id=self.group()["Instances"][0]["InstanceId"])

    def test_association_comes_first(self):
        """A node that registers before its group's capacity provider is associated does not belong to it."""
        self.ecs.create_cluster(clusterName="c")
        early, late = (i["InstanceId"] for i in self.group(size=2)["Instances"])
        self.ecs.create_capacity_provider(name="p", autoScalingGroupProvider={"autoScalingGroupArn": "g"})
        self.assertNotIn("capacityProviderName", self.register("c", early))
        self.ecs.put_cluster_capacity_providers(cluster="c", capacityProviders=["p"],
                                                defaultCapacityProviderStrategy=[])
        self.assertEqual(self.register("c", late)["capacityProviderName"], "p")

    def test_query(self):
        self.ecs.create_cluster(clusterName="c")
        one, two = (i["InstanceId"] for i in self.group(size=2)["Instances"])
        self.register("c", one, zone="a", level="3")
        self.register("c", two, zone="b")
        for expression, want in [
            ("attribute:zone == a", 1), ("attribute:zone != a", 1),
            ("attribute:level exists", 1), ("attribute:level !exists", 1),
            ("attribute:zone == a and attribute:level == 3", 1), ("attribute:zone == a || attribute:zone == b", 2),
            ("not(attribute:zone == a)", 1),
            ("(attribute:zone equals a or agentConnected == false) and attribute:level exists", 1),
            (f"ec2InstanceId == {one}", 1), ("attribute:ecs.instance-type == m6a.large", 2),
        ]:
            with self.subTest(expression):
                self.assertEqual(len(self.ecs.list_container_instances(cluster="c",
                                                                       filter=expression)["containerInstanceArns"]),
                                 want)
        self.refused("InvalidParameterException", self.ecs.list_container_instances, cluster="c",
                     filter="attribute:zone ==")


class Services(EmulatorTest):
    def setUp(self):
        super().setUp()
        self.ecs.create_cluster(clusterName="c")
        self.nodes = [i["InstanceId"] for i in self.group(size=3)["Instances"]]
        self.ecs.register_task_definition(family="app", containerDefinitions=[CONTAINER])

    def service(self):
        return self.ecs.describe_services(cluster="c", services=["app"])["services"][0]

    def counts(self):
        return self.service()["runningCount"], self.service()["pendingCount"]

    def places(self):
        arns = self.ecs.list_tasks(cluster="c", serviceName="app")["taskArns"]
        tasks = self.ecs.describe_tasks(cluster="c", tasks=arns)["tasks"] if arns else []
        return [t["containerInstanceArn"] for t in tasks if t["lastStatus"] == "RUNNING"]

    def test_only_on_attested_nodes(self):
        attested = self.register("c", self.nodes[0], sevagent__attested="true")["containerInstanceArn"]
        self.register("c", self.nodes[1], sevagent__attested="false")
        self.register("c", self.nodes[2])
        self.ecs.create_service(cluster="c", serviceName="app", taskDefinition="app", desiredCount=2,
                                placementConstraints=ATTESTED)
        self.assertEqual((self.counts(), set(self.places())), ((2, 0), {attested}))

    def test_waits_for_a_node(self):
        self.register("c", self.nodes[0])
        self.ecs.create_service(cluster="c", serviceName="app", taskDefinition="app", desiredCount=1,
                                placementConstraints=ATTESTED)
        self.assertEqual(self.counts(), (0, 1))
        self.assertIn("no container instance met all of its requirements", self.service()["events"][0]["message"])
        self.register("c", self.nodes[1], sevagent__attested="true")
        self.assertEqual(self.counts(), (1, 0))

    def test_constraint_of_the_task_definition(self):
        self.ecs.register_task_definition(family="app", containerDefinitions=[CONTAINER], placementConstraints=ATTESTED)
        self.register("c", self.nodes[0])
        self.ecs.create_service(cluster="c", serviceName="app", taskDefinition="app", desiredCount=1)
        self.assertEqual(self.counts(), (0, 1))

    def test_spread_and_distinct(self):
        for node in self.nodes:
            self.register("c", node)
        self.ecs.create_service(cluster="c", serviceName="app", taskDefinition="app", desiredCount=4,
                                placementConstraints=[{"type": "distinctInstance"}])
        self.assertEqual((self.counts(), len(set(self.places()))), ((3, 1), 3))

    def test_resources(self):
        self.register("c", self.nodes[0])
        self.ecs.create_service(cluster="c", serviceName="app", taskDefinition="app", desiredCount=100)
        self.assertEqual(self.counts(), (14, 86))  # 7482 MiB of a node, 512 MiB of a task

    def test_lost_node(self):
        for node in self.nodes[:2]:
            self.register("c", node)
        self.ecs.create_service(cluster="c", serviceName="app", taskDefinition="app", desiredCount=2)
        self.ec2.terminate_instances(InstanceIds=self.nodes[:1])
        self.assertEqual((self.counts(), len(set(self.places()))), ((2, 0), 1))

    def test_daemon(self):
        for node in self.nodes:
            self.register("c", node)
        self.ecs.create_service(cluster="c", serviceName="app", taskDefinition="app", schedulingStrategy="DAEMON")
        self.assertEqual(self.counts(), (3, 0))

    def test_by_cloudformation(self):
        self.register("c", self.nodes[0], sevagent__attested="true")

        def body(image, constraint="attribute:sevagent.attested == true"):
            return {"Resources": {
                "Task": {"Type": "AWS::ECS::TaskDefinition", "Properties": {
                    "Family": "mine", "ContainerDefinitions": [{"Name": "app", "Image": image, "Memory": 128,
                                                                "MountPoints": [
                        {"SourceVolume": "certs", "ContainerPath": "/certs", "ReadOnly": True}]}],
                    "Volumes": [{"Name": "certs", "Host": {"SourcePath": "/var/lib/sevagent"}}]}},
                "Service": {"Type": "AWS::ECS::Service", "Properties": {
                    "ServiceName": "app", "Cluster": "c", "TaskDefinition": {"Ref": "Task"}, "DesiredCount": 1,
                    "PlacementConstraints": [{"Type": "memberOf", "Expression": constraint}]}}},
                "Outputs": {"Name": {"Value": {"Fn::GetAtt": ["Service", "Name"]}}}}

        self.assertEqual(self.deploy(body("one"))["StackStatus"], "CREATE_COMPLETE", self.stack_events())
        self.assertEqual((self.outputs(), self.counts()), ({"Name": "app"}, (1, 0)))
        self.assertEqual(self.update(body("two"))["StackStatus"], "UPDATE_COMPLETE", self.stack_events())
        self.assertTrue(self.service()["taskDefinition"].endswith("mine:2"))
        self.assertEqual(self.service()["placementConstraints"][0]["expression"], "attribute:sevagent.attested == true")
        self.assertEqual(self.update(body("two", "attribute:none exists"))["StackStatus"], "UPDATE_COMPLETE",
                         self.stack_events())
        self.cloudformation.delete_stack(StackName="s")
        self.assertEqual(self.places(), [])

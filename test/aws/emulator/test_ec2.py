"""EC2 and Auto Scaling."""

import base64

from support import EmulatorTest, client


class InstanceTypes(EmulatorTest):
    def snp(self, region):
        pages = client("ec2", region).get_paginator("describe_instance_types").paginate(
            Filters=[{"Name": "processor-info.supported-features", "Values": ["amd-sev-snp"]}])
        return {t["InstanceType"].split(".")[0] for page in pages for t in page["InstanceTypes"]}

    def test_supported_features(self):
        self.assertEqual(self.snp("us-east-2"), {"m6a", "c6a", "r6a"})
        self.assertEqual(self.snp("us-west-2"), set())

    def test_pages(self):
        page = self.ec2.describe_instance_types()
        self.assertEqual(len(page["InstanceTypes"]), 100)
        self.assertIn("NextToken", page)


class Instances(EmulatorTest):
    def describe(self, instance_id):
        return self.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]

    def test_from_a_group(self):
        """An instance shows what its launch template says."""
        template = self.launch_template(
            CpuOptions={"AmdSevSnp": "enabled"},
            MetadataOptions={"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
            BlockDeviceMappings=[{"DeviceName": "/dev/xvda",
                                  "Ebs": {"Encrypted": True, "VolumeSize": 30, "VolumeType": "gp3"}}],
            UserData=base64.b64encode(b"#!/bin/sh").decode())
        self.autoscaling.create_auto_scaling_group(
            AutoScalingGroupName="g", MinSize=1, MaxSize=1, VPCZoneIdentifier=self.subnet(),
            LaunchTemplate={"LaunchTemplateId": template})
        instance = self.describe(self.describe_group()["Instances"][0]["InstanceId"])
        self.assertEqual(instance["CpuOptions"]["AmdSevSnp"], "enabled")
        self.assertEqual((instance["BootMode"], instance["CurrentInstanceBootMode"]), ("uefi", "uefi"))
        self.assertEqual((instance["MetadataOptions"]["HttpTokens"],
                          instance["MetadataOptions"]["HttpPutResponseHopLimit"]), ("required", 2))
        mapping, = instance["BlockDeviceMappings"]
        self.assertEqual((instance["RootDeviceName"], mapping["DeviceName"]), ("/dev/xvda", "/dev/xvda"))
        volume, = self.ec2.describe_volumes(VolumeIds=[mapping["Ebs"]["VolumeId"]])["Volumes"]
        self.assertTrue(volume["Encrypted"])

    def test_legacy_boot(self):
        """An image without a boot mode boots in legacy BIOS on AMD types."""
        image = self.ec2.register_image(Name="old")["ImageId"]
        self.assertNotIn("BootMode", self.ec2.describe_images(ImageIds=[image])["Images"][0])
        made, = self.ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1, InstanceType="m6a.large")["Instances"]
        self.assertEqual(self.describe(made["InstanceId"])["CurrentInstanceBootMode"], "legacy-bios")

    def test_snp_needs_its_type(self):
        self.refused("InvalidParameterCombination", self.ec2.run_instances, ImageId=self.image(), MinCount=1,
                     MaxCount=1,
                     InstanceType="t3.micro", CpuOptions={"AmdSevSnp": "enabled"})
        made, = self.ec2.run_instances(ImageId=self.image(), MinCount=1, MaxCount=1, InstanceType="m6a.large",
                                       CpuOptions={"AmdSevSnp": "enabled"})["Instances"]
        self.assertEqual(self.describe(made["InstanceId"])["CpuOptions"]["AmdSevSnp"], "enabled")

    def test_user_data_limit(self):
        self.launch_template("fits", UserData=base64.b64encode(b"x" * 16384).decode())
        self.refused("InvalidUserData.Malformed", self.launch_template, name="long",
                     UserData=base64.b64encode(b"x" * 16385).decode())


class Images(EmulatorTest):
    """EC2 API reference, RegisterImage and DescribeImageAttribute; user guide, "NitroTPM for Amazon EC2 instances"."""

    def describe(self, image):
        return self.ec2.describe_images(ImageIds=[image])["Images"][0]

    def attribute(self, image, name):
        answer = self.ec2.describe_image_attribute(ImageId=image, Attribute=name)
        return answer[name[0].upper() + name[1:]]

    def test_all_that_is_given(self):
        image = self.ec2.register_image(
            Name="tpm", BootMode="uefi", TpmSupport="v2.0", ImdsSupport="v2.0", EnaSupport=True, UefiData="QU1aTg==",
            TagSpecifications=[{"ResourceType": "image", "Tags": [{"Key": "k", "Value": "v"}]}])["ImageId"]
        found = self.describe(image)
        self.assertEqual([found.get(k) for k in ("BootMode", "TpmSupport", "ImdsSupport", "EnaSupport")],
                         ["uefi", "v2.0", "v2.0", True])
        self.assertEqual(found["Tags"], [{"Key": "k", "Value": "v"}])
        self.assertEqual(self.attribute(image, "uefiData"), {"Value": "QU1aTg=="})
        self.assertEqual(self.attribute(image, "tpmSupport"), {"Value": "v2.0"})
        self.assertNotIn("UefiData", found)  # it is an attribute only
        made, = self.ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1, InstanceType="m6a.large")["Instances"]
        shown = self.ec2.describe_instances(InstanceIds=[made["InstanceId"]])["Reservations"][0]["Instances"][0]
        self.assertEqual(shown["TpmSupport"], "v2.0")

    def test_what_is_not_given_is_lost(self):
        image = self.image()
        found = self.describe(image)
        self.assertEqual([found.get(k) for k in ("TpmSupport", "ImdsSupport", "EnaSupport", "SriovNetSupport")],
                         [None, None, False, None])
        self.assertEqual(self.attribute(image, "uefiData"), {})

    def test_from_a_snapshot(self):
        snapshot = self.describe(self.image())["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
        ebs = {"SnapshotId": snapshot, "VolumeSize": 30, "VolumeType": "gp3", "DeleteOnTermination": True}
        image = self.image(BlockDeviceMappings=[{"DeviceName": "/dev/xvda", "Ebs": ebs}])
        self.assertEqual(self.describe(image)["BlockDeviceMappings"],
                         [{"DeviceName": "/dev/xvda", "Ebs": {**ebs, "Encrypted": False}}])
        self.refused("InvalidParameterCombination", self.image,
                     BlockDeviceMappings=[{"DeviceName": "/dev/xvda", "Ebs": {**ebs, "Encrypted": True}}])
        self.refused("InvalidSnapshot.NotFound", self.image, BlockDeviceMappings=[
            {"DeviceName": "/dev/xvda", "Ebs": {**ebs, "SnapshotId": "snap-0123456789abcdef0"}}])

    def test_refused(self):
        for mode in "uefi-preferred", "legacy-bios":
            self.refused("InvalidParameterCombination", self.ec2.register_image, Name=mode, BootMode=mode,
                         TpmSupport="v2.0")
        self.refused("InvalidParameterValue", self.ec2.register_image, Name="old", BootMode="uefi",
                     TpmSupport="v1.2")
        self.ec2.register_image(Name="twice")
        self.refused("InvalidAMIName.Duplicate", self.ec2.register_image, Name="twice")


class Groups(EmulatorTest):
    def test_version(self):
        """The version that the group names, not the template's default one."""
        self.group(size=1)
        template = self.describe_group()["LaunchTemplate"]["LaunchTemplateId"]
        self.ec2.create_launch_template_version(LaunchTemplateId=template, LaunchTemplateData={
            "ImageId": self.image(), "InstanceType": "c6a.large", "UserData": base64.b64encode(b"two").decode()})
        self.autoscaling.set_desired_capacity(AutoScalingGroupName="g", DesiredCapacity=2)
        found = {i["LaunchTemplate"]["Version"]: i["InstanceType"] for i in self.describe_group()["Instances"]}
        self.assertEqual(found, {"1": "m6a.large", "2": "c6a.large"})

    def test_image_must_exist(self):
        template = self.launch_template(ImageId="ami-0123456789abcdef0")
        message = self.refused("ValidationError", self.autoscaling.create_auto_scaling_group, AutoScalingGroupName="g",
                               MinSize=1, MaxSize=1,
                               VPCZoneIdentifier=self.subnet(), LaunchTemplate={"LaunchTemplateId": template})
        self.assertIn("The image id '[ami-0123456789abcdef0]' does not exist", message)

    def test_sizes(self):
        self.group(size=1)
        self.refused("ValidationError", self.autoscaling.update_auto_scaling_group, AutoScalingGroupName="g", MinSize=5,
                     MaxSize=4)
        self.refused("ValidationError", self.autoscaling.set_desired_capacity, AutoScalingGroupName="g",
                     DesiredCapacity=11)

    def test_deletion(self):
        self.group(size=1)
        self.refused("ResourceInUse", self.autoscaling.delete_auto_scaling_group, AutoScalingGroupName="g")
        self.autoscaling.delete_auto_scaling_group(AutoScalingGroupName="g", ForceDelete=True)

    def test_protection(self):
        self.group(size=2, NewInstancesProtectedFromScaleIn=True)
        self.autoscaling.update_auto_scaling_group(AutoScalingGroupName="g", MinSize=0, DesiredCapacity=0)
        self.assertEqual([i["ProtectedFromScaleIn"] for i in self.describe_group()["Instances"]], [True, True])


class Resources(EmulatorTest):
    """The resource types of CloudFormation that moto lacks or keeps badly, one by one."""

    def test_security_group_rules(self):
        peer = self.ec2.create_security_group(GroupName="peer", Description="d")["GroupId"]

        def body(port):
            rule = {"GroupId": {"Fn::GetAtt": ["G", "GroupId"]}, "IpProtocol": "tcp", "FromPort": port, "ToPort": port}
            return {"Resources": {
                "G": {"Type": "AWS::EC2::SecurityGroup",
                      "Properties": {"GroupDescription": "d", "SecurityGroupEgress": [
                    {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "CidrIp": "0.0.0.0/0"}]}},
                "In": {"Type": "AWS::EC2::SecurityGroupIngress", "Properties": {**rule, "SourceSecurityGroupId": peer}},
                "Out": {"Type": "AWS::EC2::SecurityGroupEgress",
                        "Properties": {**rule, "DestinationSecurityGroupId": peer}}}}

        def ports():
            found = self.ec2.describe_security_groups(GroupIds=[self.resources()["G"]])["SecurityGroups"][0]
            return ([p["FromPort"] for p in found["IpPermissions"]],
                    sorted(p["FromPort"] for p in found["IpPermissionsEgress"]))

        self.deploy(body(9000))
        self.assertEqual(ports(), ([9000], [443, 9000]))  # and not the default rule that lets all out
        self.update(body(9001))
        self.assertEqual(ports(), ([9001], [443, 9001]))
        self.cloudformation.delete_stack(StackName="s")
        self.refused("ValidationError", self.stack)

    def test_scaling_policy(self):
        self.group(size=0)
        tracking = {"PredefinedMetricSpecification": {"PredefinedMetricType": "ASGAverageCPUUtilization"},
                    "TargetValue": 70}
        self.deploy({"Resources": {
            "Policy": {"Type": "AWS::AutoScaling::ScalingPolicy", "Properties": {
                "AutoScalingGroupName": "g", "PolicyType": "TargetTrackingScaling",
                "TargetTrackingConfiguration": tracking}}}})
        policy, = self.autoscaling.describe_policies(AutoScalingGroupName="g")["ScalingPolicies"]
        self.assertEqual(policy["TargetTrackingConfiguration"]["TargetValue"], 70)
        self.cloudformation.delete_stack(StackName="s")
        self.assertEqual(self.autoscaling.describe_policies(AutoScalingGroupName="g")["ScalingPolicies"], [])

    def test_identity(self):
        trust = {"Version": "2012-10-17",
                 "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"},
                                                         "Action": "sts:AssumeRole"}]}

        def body(action):
            document = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": action, "Resource": "*"}]}
            return {"Resources": {
                "Role": {"Type": "AWS::IAM::Role", "Properties": {
                    "AssumeRolePolicyDocument": trust, "Policies": [{"PolicyName": "in", "PolicyDocument": document}]}},
                "Policy": {"Type": "AWS::IAM::Policy", "Properties": {
                    "PolicyName": "more", "PolicyDocument": document, "Roles": [{"Ref": "Role"}]}},
                "Profile": {"Type": "AWS::IAM::InstanceProfile", "Properties": {"Roles": [{"Ref": "Role"}]}}}}

        def actions():
            role = self.resources()["Role"]
            return [self.iam.get_role_policy(RoleName=role, PolicyName=n)["PolicyDocument"]["Statement"][0]["Action"]
                    for n in ("in", "more")]

        self.deploy(body("ecs:Poll"))
        self.assertEqual(actions(), ["ecs:Poll", "ecs:Poll"])
        self.update(body("ecs:DiscoverPollEndpoint"))
        self.assertEqual(actions(), ["ecs:DiscoverPollEndpoint"] * 2)
        self.cloudformation.delete_stack(StackName="s")
        self.assertEqual((self.iam.list_roles()["Roles"], self.iam.list_instance_profiles()["InstanceProfiles"]),
                         ([], []))

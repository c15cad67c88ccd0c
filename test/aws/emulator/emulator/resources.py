"""Resource types of CloudFormation: each is created, updated and deleted through the public API of its service.

A property whose change replaces the resource is listed as the CloudFormation template reference has it ("Update
requires: Replacement"). A property that an API does not know fails the resource.
"""

from . import (resources_autoscaling, resources_ec2, resources_ecs, resources_iam, resources_imagebuilder,
               resources_other)

PROVIDERS = {
    "AWS::AutoScaling::AutoScalingGroup": resources_autoscaling.AutoScalingGroup(),
    "AWS::AutoScaling::ScalingPolicy": resources_autoscaling.ScalingPolicy(),
    "AWS::CloudFormation::WaitCondition": resources_other.WaitCondition(),
    "AWS::EC2::LaunchTemplate": resources_ec2.LaunchTemplate(),
    "AWS::EC2::SecurityGroup": resources_ec2.SecurityGroup(),
    "AWS::EC2::SecurityGroupEgress": resources_ec2.SecurityGroupRule("Destination", "egress"),
    "AWS::EC2::SecurityGroupIngress": resources_ec2.SecurityGroupRule("Source", "ingress"),
    "AWS::EC2::VPCEndpoint": resources_ec2.VPCEndpoint(),
    "AWS::ECS::CapacityProvider": resources_ecs.CapacityProvider(),
    "AWS::ECS::Cluster": resources_ecs.Cluster(),
    "AWS::ECS::ClusterCapacityProviderAssociations": resources_ecs.ClusterCapacityProviderAssociations(),
    "AWS::ECS::Service": resources_ecs.Service(),
    "AWS::ECS::TaskDefinition": resources_ecs.TaskDefinition(),
    "AWS::Events::Rule": resources_other.EventsRule(),
    "AWS::IAM::InstanceProfile": resources_iam.InstanceProfile(),
    "AWS::IAM::ManagedPolicy": resources_iam.ManagedPolicy(),
    "AWS::IAM::Policy": resources_iam.Policy(),
    "AWS::IAM::Role": resources_iam.Role(),
    "AWS::ImageBuilder::Component": resources_imagebuilder.Component(),
    "AWS::ImageBuilder::DistributionConfiguration": resources_imagebuilder.Changeable("DistributionConfiguration"),
    "AWS::ImageBuilder::ImagePipeline": resources_imagebuilder.Changeable("ImagePipeline"),
    "AWS::ImageBuilder::ImageRecipe": resources_imagebuilder.ImageRecipe(),
    "AWS::ImageBuilder::InfrastructureConfiguration": resources_imagebuilder.Changeable("InfrastructureConfiguration"),
    "AWS::ImageBuilder::LifecyclePolicy": resources_imagebuilder.Changeable("LifecyclePolicy"),
    "AWS::Logs::LogGroup": resources_other.LogGroup(),
    "AWS::SSM::Document": resources_other.SSMDocument(),
}

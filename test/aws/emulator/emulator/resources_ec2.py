"""AWS::EC2::*"""

from botocore.exceptions import ClientError

from .api import delete_quietly, text
from .resource import Type, required


def permission(p, direction):
    """An ingress or egress property as an IpPermission."""
    pair = {"GroupId": p[f"{direction}SecurityGroupId"]} if f"{direction}SecurityGroupId" in p else None
    described = {"Description": p["Description"]} if "Description" in p else {}
    return {
        "IpProtocol": text(p["IpProtocol"]),
        **{k: int(p[k]) for k in ("FromPort", "ToPort") if k in p},
        **({"UserIdGroupPairs": [pair | described]} if pair else {}),
        **({"IpRanges": [{"CidrIp": p["CidrIp"]} | described]} if "CidrIp" in p else {}),
        **({"Ipv6Ranges": [{"CidrIpv6": p["CidrIpv6"]} | described]} if "CidrIpv6" in p else {}),
        **({"PrefixListIds": [{"PrefixListId": p[f"{direction}PrefixListId"]} | described]}
           if f"{direction}PrefixListId" in p else {}),
    }


class SecurityGroup(Type):
    name = "GroupName"
    replacing = ("GroupDescription", "VpcId")

    def create(self, c, p):
        required(p, "GroupDescription")
        ec2 = c.client("ec2")
        made = ec2.create_security_group(
            GroupName=self._named(c, p, 255), Description=p["GroupDescription"],
            TagSpecifications=[{"ResourceType": "security-group", "Tags": c.tags(p.get("Tags"))}],
            **({"VpcId": p["VpcId"]} if "VpcId" in p else {}))
        group = made["GroupId"]
        if p.get("SecurityGroupEgress"):  # any rule replaces the default one, which allows all
            everything = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
            ec2.revoke_security_group_egress(GroupId=group, IpPermissions=[everything])
        self._rules(ec2, "authorize", group, p)
        vpc = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["VpcId"]
        return group, {"GroupId": group, "VpcId": vpc, "Id": group}

    @staticmethod
    def _rules(ec2, verb, group, p):
        for name, direction, kind in (("SecurityGroupIngress", "Source", "ingress"),
                                      ("SecurityGroupEgress", "Destination", "egress")):
            for rule in p.get(name) or []:
                getattr(ec2, f"{verb}_security_group_{kind}")(GroupId=group,
                                                              IpPermissions=[permission(rule, direction)])

    def update(self, c, resource, p, old):
        ec2, group = c.client("ec2"), resource.physical_id

        def only(left, right):
            return {n: [r for r in left.get(n) or [] if r not in (right.get(n) or [])]
                    for n in ("SecurityGroupIngress", "SecurityGroupEgress")}

        self._rules(ec2, "revoke", group, only(old, p))
        self._rules(ec2, "authorize", group, only(p, old))
        ec2.create_tags(Resources=[group], Tags=c.tags(p.get("Tags")))
        return resource.attributes

    def delete(self, c, resource):
        delete_quietly(c.client("ec2").delete_security_group, "InvalidGroup.NotFound", GroupId=resource.physical_id)


class SecurityGroupRule(Type):
    """AWS::EC2::SecurityGroupIngress and Egress."""

    tagged = False

    def __init__(self, direction, kind):
        self.direction, self.kind = direction, kind

    def replaced_by(self, old, new):
        return ({k: v for k, v in old.items() if k != "Description"}
                != {k: v for k, v in new.items() if k != "Description"})

    def _do(self, c, verb, p):
        return getattr(c.client("ec2"), f"{verb}_security_group_{self.kind}")(
            GroupId=p["GroupId"], IpPermissions=[permission(p, self.direction)])

    def create(self, c, p):
        required(p, "IpProtocol", "GroupId")
        made = self._do(c, "authorize", p).get("SecurityGroupRules") or [{"SecurityGroupRuleId": c.generated_name()}]
        return made[0]["SecurityGroupRuleId"], {"Id": made[0]["SecurityGroupRuleId"]}

    def update(self, c, resource, p, old):
        self._do(c, "revoke", old)
        self._do(c, "authorize", p)
        return resource.attributes

    def delete(self, c, resource):
        try:
            self._do(c, "revoke", resource.properties)
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("InvalidPermission.NotFound", "InvalidGroup.NotFound"):
                raise


class LaunchTemplate(Type):
    name = "LaunchTemplateName"

    def create(self, c, p):
        self._named(c, p)
        specifications = [s for s in p.pop("TagSpecifications", []) if s["ResourceType"] != "launch-template"]
        own = [t for s in c.properties.get("TagSpecifications", []) if s["ResourceType"] == "launch-template"
               for t in s["Tags"]]
        specifications.append({"ResourceType": "launch-template", "Tags": c.tags(own)})
        made = c.call("ec2", "CreateLaunchTemplate", {**p, "TagSpecifications": specifications})["LaunchTemplate"]
        return made["LaunchTemplateId"], self._attributes(made["LaunchTemplateId"], 1)

    @staticmethod
    def _attributes(template, latest):
        return {"LaunchTemplateId": template, "LatestVersionNumber": str(latest), "DefaultVersionNumber": "1"}

    def update(self, c, resource, p, old):
        if p["LaunchTemplateData"] == old["LaunchTemplateData"] and "Emulator::HalfUpdated" not in old:
            return resource.attributes
        made = c.call("ec2", "CreateLaunchTemplateVersion", {
            "LaunchTemplateId": resource.physical_id,
            "LaunchTemplateData": p["LaunchTemplateData"]})["LaunchTemplateVersion"]
        return self._attributes(resource.physical_id, made["VersionNumber"])

    def delete(self, c, resource):
        delete_quietly(c.client("ec2").delete_launch_template, "InvalidLaunchTemplateId.NotFound",
                       LaunchTemplateId=resource.physical_id)


class VPCEndpoint(Type):
    replacing = ("VpcId", "ServiceName", "VpcEndpointType")

    def create(self, c, p):
        required(p, "VpcId", "ServiceName")
        tags = {"TagSpecifications": [{"ResourceType": "vpc-endpoint", "Tags": c.tags(p.pop("Tags", []))}]}
        made = c.call("ec2", "CreateVpcEndpoint", {**p, **tags})["VpcEndpoint"]
        return made["VpcEndpointId"], {"Id": made["VpcEndpointId"]}

    def update(self, c, resource, p, old):
        def only(name):
            now, before = p.get(name, []), old.get(name, [])
            return {f"Add{name}": [v for v in now if v not in before],
                    f"Remove{name}": [v for v in before if v not in now]}

        changes = {k: v for k, v in {**only("SubnetIds"), **only("RouteTableIds")}.items() if v}
        if changes:
            c.client("ec2").modify_vpc_endpoint(VpcEndpointId=resource.physical_id, **changes)
        return resource.attributes

    def delete(self, c, resource):
        c.client("ec2").delete_vpc_endpoints(VpcEndpointIds=[resource.physical_id])

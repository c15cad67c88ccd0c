"""AWS::IAM::*"""

from .api import delete_quietly
from .resource import Type, required


class Role(Type):
    name = "RoleName"
    replacing = ("Path",)

    def create(self, c, p):
        required(p, "AssumeRolePolicyDocument")
        name = self._named(c, p, 64)
        policies, managed = p.pop("Policies", []), p.pop("ManagedPolicyArns", [])
        p["Tags"] = c.tags(p.get("Tags"))
        made = c.call("iam", "CreateRole", p)["Role"]
        self._attach(c, name, policies, managed)
        return name, {"Arn": made["Arn"], "RoleId": made["RoleId"]}

    def _attach(self, c, name, policies, managed):
        iam = c.client("iam")
        for policy in policies:
            c.call("iam", "PutRolePolicy", {"RoleName": name, **policy})
        for arn in managed:
            iam.attach_role_policy(RoleName=name, PolicyArn=arn)

    def _detach(self, c, name, old):
        iam = c.client("iam")
        for policy in old.get("Policies", []):
            delete_quietly(iam.delete_role_policy, "NoSuchEntity", RoleName=name, PolicyName=policy["PolicyName"])
        for arn in old.get("ManagedPolicyArns", []):
            delete_quietly(iam.detach_role_policy, "NoSuchEntity", RoleName=name, PolicyArn=arn)

    def update(self, c, resource, p, old):
        name = resource.physical_id
        self._detach(c, name, old)
        self._attach(c, name, p.get("Policies", []), p.get("ManagedPolicyArns", []))
        c.call("iam", "UpdateAssumeRolePolicy", {"RoleName": name, "PolicyDocument": p["AssumeRolePolicyDocument"]})
        if p.get("PermissionsBoundary"):
            c.client("iam").put_role_permissions_boundary(RoleName=name, PermissionsBoundary=p["PermissionsBoundary"])
        elif old.get("PermissionsBoundary"):
            c.client("iam").delete_role_permissions_boundary(RoleName=name)
        c.client("iam").tag_role(RoleName=name, Tags=c.tags(p.get("Tags")))
        return resource.attributes

    def delete(self, c, resource):
        self._detach(c, resource.physical_id, resource.properties)
        delete_quietly(c.client("iam").delete_role, "NoSuchEntity", RoleName=resource.physical_id)


class Policy(Type):
    """AWS::IAM::Policy: an inline policy of roles."""

    tagged = False

    def create(self, c, p):
        required(p, "PolicyName", "PolicyDocument")
        for role in p.get("Roles", []):
            c.call("iam", "PutRolePolicy",
                   {"RoleName": role, "PolicyName": p["PolicyName"], "PolicyDocument": p["PolicyDocument"]})
        return c.generated_name(), {}

    def update(self, c, resource, p, old):
        self._remove(c, old)
        self.create(c, p)
        return {}

    def _remove(self, c, p):
        for role in p.get("Roles", []):
            delete_quietly(c.client("iam").delete_role_policy, "NoSuchEntity", RoleName=role,
                           PolicyName=p["PolicyName"])

    def delete(self, c, resource):
        self._remove(c, resource.properties)


class InstanceProfile(Type):
    name = "InstanceProfileName"
    tagged = False
    replacing = ("Path",)

    def create(self, c, p):
        name, roles = self._named(c, p), p.pop("Roles")
        made = c.call("iam", "CreateInstanceProfile", p)["InstanceProfile"]
        for role in roles:
            c.client("iam").add_role_to_instance_profile(InstanceProfileName=name, RoleName=role)
        return name, {"Arn": made["Arn"]}

    def update(self, c, resource, p, old):
        iam, name = c.client("iam"), resource.physical_id
        for role in old["Roles"]:
            iam.remove_role_from_instance_profile(InstanceProfileName=name, RoleName=role)
        for role in p["Roles"]:
            iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=role)
        return resource.attributes

    def delete(self, c, resource):
        iam, name = c.client("iam"), resource.physical_id
        for role in resource.properties["Roles"]:
            delete_quietly(iam.remove_role_from_instance_profile, "NoSuchEntity", InstanceProfileName=name,
                           RoleName=role)
        delete_quietly(iam.delete_instance_profile, "NoSuchEntity", InstanceProfileName=name)


class ManagedPolicy(Type):
    name = "ManagedPolicyName"
    tagged = False
    replacing = ("Path", "Description")

    def create(self, c, p):
        required(p, "PolicyDocument")
        p["PolicyName"] = self._named(c, p)
        del p["ManagedPolicyName"]
        arn = c.call("iam", "CreatePolicy", p)["Policy"]["Arn"]
        return arn, {"PolicyArn": arn}

    def update(self, c, resource, p, old):
        arn, iam = resource.physical_id, c.client("iam")
        c.call("iam", "CreatePolicyVersion",
               {"PolicyArn": arn, "PolicyDocument": p["PolicyDocument"], "SetAsDefault": True})
        for version in iam.list_policy_versions(PolicyArn=arn)["Versions"]:
            if not version["IsDefaultVersion"]:
                iam.delete_policy_version(PolicyArn=arn, VersionId=version["VersionId"])
        return resource.attributes

    def delete(self, c, resource):
        delete_quietly(c.client("iam").delete_policy, "NoSuchEntity", PolicyArn=resource.physical_id)

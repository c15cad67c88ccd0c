"""IAM for roles that were assumed: what they ask for themselves, and what CloudFormation does in their name.

Calls with other keys are allowed. Policies are evaluated as the IAM guide, "Policy evaluation logic", has it for one
account: a Deny, else an Allow of the role's policies. What is asked of CloudFormation is compared by action and stack,
of AWS Private CA by action, CA and template, of AMIs by action, AMI, snapshot and tags, other calls from outside by
action; calls in a caller's name by action, resource and the condition keys of `context`.
"""

import fnmatch
import json
import threading

from moto.ec2.models import ec2_backends
from moto.iam.models import iam_backends
from moto.sts.models import sts_backends

from . import api
from .api import ACCOUNT, AWSError

_local = threading.local()
OPERATORS = {
    "StringEquals": lambda got, want: got == want, "StringLike": fnmatch.fnmatchcase,
    "ArnEquals": fnmatch.fnmatchcase, "ArnLike": fnmatch.fnmatchcase,
}


def role_of(access_key):
    """The name of the role that a key belongs to, or None."""
    found = sts_backends[ACCOUNT]["aws"].get_assumed_role_from_access_key(access_key)
    return found.role_arn.rpartition("/")[2] if found else None


def exists(arn):
    return _role(arn.rpartition("/")[2]) is not None


def act_for(role):
    """From now on, this thread works in the name of a role, or of nobody in particular."""
    _local.role = role


def statements(role):
    """Those of the role's inline policies; the roles here have no others. One that is gone has none."""
    made = _role(role)
    for text in made.policies.values() if made else ():
        yield from json.loads(text)["Statement"]


def check(role, action, resource="*", **context):
    """Refuses what the role may not do. A resource of * is one that is not known here, and fits every statement."""
    allowed = False
    for statement in statements(role):
        if not any(fnmatch.fnmatchcase(action.lower(), a.lower()) for a in _list(statement["Action"])):
            continue
        if resource != "*" and not any(fnmatch.fnmatchcase(resource, r) for r in _list(statement["Resource"])):
            continue
        if not _holds(statement.get("Condition", {}), context):
            continue
        if statement["Effect"] == "Deny":
            allowed = False
            break
        allowed = True
    if not allowed:
        raise AWSError("AccessDenied",
                       f"User: arn:aws:sts::{ACCOUNT}:assumed-role/{role}/s is not authorized to perform: "
                       f"{action} on resource: {resource} because no identity-based policy allows the {action} action")


def _list(value):
    return value if isinstance(value, list) else [value]


def _holds(conditions, context):
    """Whether the conditions hold. A call lacks the keys that its context lacks; those not known here are skipped."""
    for operator, keys in conditions.items():
        for key, wanted in keys.items():
            kind, _, tag = key.partition("/")
            if kind in TAGS and TAGS[kind] in context:
                got = context[TAGS[kind]].get(tag)
            elif key in KNOWN:
                got = context.get(KNOWN[key])
            else:
                continue
            if got is None or not any(OPERATORS[operator](got, w) for w in _list(wanted)):
                return False
    return True


KNOWN = {"iam:PermissionsBoundary": "boundary", "iam:PassedToService": "service", "iam:AWSServiceName": "service",
         "ec2:Vpc": "vpc", "ec2:CreateAction": "create", "acm-pca:TemplateArn": "template"}

TAGS = {"aws:RequestTag": "request_tags", "aws:ResourceTag": "resource_tags"}


def check_request(access_key, service, operation, request):
    """A call from outside."""
    role = role_of(access_key)
    if not role or service == "sts":
        return
    about, context = "*", {}
    if stack := request.form.get("StackName"):
        about = stack if stack.startswith("arn:") else arn("cloudformation", f"stack/{stack}/1")
    if service == "acm-pca":
        p = json.loads(request.get_data() or "{}")
        about, context = p.get("CertificateAuthorityArn", "*"), {"template": p.get("TemplateArn")}
    asked = [(f"{service}:{operation}", about, context)]
    if service == "ec2":
        asked = list(_images(operation, request)) or asked
    for action, about, context in asked:
        check(role, action, about, **context)


def _images(operation, request):
    """What calls about AMIs are authorized for: service authorization reference, "Amazon EC2"."""
    region = request.headers["Authorization"].partition("Credential=")[2].split("/")[2]
    backend, p = ec2_backends[ACCOUNT][region], request.form
    if operation == "RegisterImage":
        tags = {p[f"{k}.Key"]: p[f"{k}.Value"] for k in (n.rpartition(".")[0] for n in p if n.endswith(".Key"))}
        image = f"arn:aws:ec2:{region}::image/*"
        yield "ec2:RegisterImage", image, {"request_tags": tags}
        for key in p:
            if key.endswith(".SnapshotId"):
                yield "ec2:RegisterImage", f"arn:aws:ec2:{region}::snapshot/{p[key]}", {
                    "resource_tags": backend.tags.get(p[key], {})}
        if tags:
            yield "ec2:CreateTags", image, {"request_tags": tags, "create": "RegisterImage"}
    elif operation in ("DescribeImageAttribute", "DeregisterImage"):
        yield f"ec2:{operation}", f"arn:aws:ec2:{region}::image/{p['ImageId']}", {
            "resource_tags": backend.tags.get(p["ImageId"], {})}


# In the name of a caller


def arn(service, rest, region="us-east-2"):
    return f"arn:aws:{service}:{'' if service in ('iam', 's3') else region}:{ACCOUNT}:{rest}"


def _role(name):
    return next((r for r in iam_backends[ACCOUNT]["aws"].roles.values() if r.name == name), None)


def resource(service, operation, p):
    """The ARN of what a call is about, as far as policies distinguish it."""
    if service == "iam":
        if "InstanceProfileName" in p:
            return arn("iam", f"instance-profile{p.get('Path', '/')}{p['InstanceProfileName']}")
        made = _role(p["RoleName"])
        return made.arn if made else arn("iam", f"role{p.get('Path', '/')}{p['RoleName']}")
    if service == "ssm" and ("Name" in p or "ResourceId" in p):
        return arn("ssm", f"document/{p.get('Name') or p['ResourceId']}")
    if service == "events" and (name := p.get("Name") or p.get("Rule")):
        return arn("events", f"rule/{name}")
    if service == "autoscaling" and "AutoScalingGroupName" in p:
        return arn("autoscaling", f"autoScalingGroup:*:autoScalingGroupName/{p['AutoScalingGroupName']}")
    if service == "ecs" and (name := p.get("clusterName") or p.get("cluster")):
        return arn("ecs", f"cluster/{name.rpartition('/')[2]}")
    name = p.get("capacityProvider") or p.get("name")
    if service == "ecs" and name and operation != "CreateCapacityProvider":
        return arn("ecs", f"capacity-provider/{name.rpartition('/')[2]}")
    if service == "ec2" and "Resources" in p:
        kind = {"sg": "security-group", "lt": "launch-template"}.get(p["Resources"][0].split("-")[0])
        return arn("ec2", f"{kind}/{p['Resources'][0]}") if kind else "*"
    if service == "ec2" and "GroupId" in p:
        return arn("ec2", f"security-group/{p['GroupId']}")
    if service == "ec2" and "LaunchTemplate" in operation and not operation.startswith("Describe"):
        return arn("ec2", f"launch-template/{p.get('LaunchTemplateId', '*')}")
    return "*"


def _context(service, p):
    if service == "iam" and "RoleName" in p:
        made = _role(p["RoleName"])
        return {"boundary": p.get("PermissionsBoundary") or (made and made.permissions_boundary_arn)}
    if service == "ec2" and "GroupId" in p:
        group = api.client("ec2", "us-east-2").describe_security_groups(GroupIds=[p["GroupId"]])["SecurityGroups"]
        return {"vpc": arn("ec2", f"vpc/{group[0]['VpcId']}")} if group else {}
    return {}


def hook(params, model, **_):
    """Registered on the clients through which CloudFormation works."""
    role = getattr(_local, "role", None)
    if role is None:
        return
    service = model.service_model.service_name
    about, context = resource(service, model.name, params), _context(service, params)
    check(role, f"{service}:{model.name}", about, **context)
    for target in params.get("Targets", []) if model.name == "PutTargets" else []:
        if "RoleArn" in target:
            check(role, "iam:PassRole", target["RoleArn"], service="events.amazonaws.com")
    if model.name == "AddRoleToInstanceProfile":
        check(role, "iam:PassRole", _role(params["RoleName"]).arn, service="ec2.amazonaws.com")
    if model.name == "CreateAutoScalingGroup":
        check(role, "ec2:RunInstances", arn("ec2", "instance/*"))

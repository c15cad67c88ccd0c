"""The CloudFormation API: stacks and change sets over stacks.py."""

import re
import uuid

from moto.cloudformation.responses import CloudFormationResponse

from . import api, authorization
from .api import AWSError, operation
from .control import settings
from .resources import PROVIDERS
from .stacks import Stack, now
from .template import invalid, parse

CloudFormationResponse.RESPONSE_KEY_PATH_TO_TRANSFORMER = {}  # they expect moto's own stacks

_stacks = {}  # ID: Stack, also those deleted
_change_sets = {}  # ID: ChangeSet
NO_CHANGES = "The submitted information didn't contain changes. Submit different information to create a change set."


class ChangeSet:
    def __init__(self, name, kind, stack, body, raw, tags, capabilities):
        self.name, self.kind, self.stack, self.body, self.raw = name, kind, stack, body, raw
        self.tags, self.capabilities = tags, capabilities
        self.id = f"arn:aws:cloudformation:{stack.region}:{api.ACCOUNT}:changeSet/{name}/{uuid.uuid4()}"
        self.created, self.changes = now(), []
        self.status, self.execution, self.reason = "CREATE_COMPLETE", "AVAILABLE", None

    def describe(self):
        return {
            "ChangeSetName": self.name, "ChangeSetId": self.id, "StackId": self.stack.id, "StackName": self.stack.name,
            "Parameters": parameters(self.raw), "CreationTime": self.created, "ExecutionStatus": self.execution,
            "Status": self.status, "StatusReason": self.reason, "Tags": tag_list(self.tags), "Changes": self.changes,
            "Capabilities": self.capabilities,
        }


def reset():
    _stacks.clear()
    _change_sets.clear()


def find(name, region, deleted=False):
    if name in _stacks:
        return _stacks[name]
    for stack in _stacks.values():
        if stack.name == name and stack.region == region and stack.status != "DELETE_COMPLETE":
            return stack
    raise invalid(f"Stack [{name}] does not exist" if deleted else f"Stack with id {name} does not exist")


def find_change_set(p, region):
    name = p["ChangeSetName"]
    for change_set in _change_sets.values():
        if name in (change_set.id, change_set.name) and p.get("StackName", change_set.stack.name) in (
                change_set.stack.name, change_set.stack.id) and change_set.stack.region == region:
            return change_set
    raise AWSError("ChangeSetNotFound", f"ChangeSet [{name}] does not exist")


def parameters(raw, template=None, resolved=None):
    hidden = {n for n, spec in (template or {}).get("Parameters", {}).items() if spec.get("NoEcho")}
    return [{"ParameterKey": n, "ParameterValue": "****" if n in hidden else v,
             **({"ResolvedValue": resolved[n]} if resolved and n in resolved else {})} for n, v in raw.items()]


def tag_list(tags):
    return [{"Key": k, "Value": v} for k, v in tags.items()]


def given(p, stack=None):
    """The parameters of a request, with UsePreviousValue as the text that was given before."""
    result = {}
    for item in p.get("Parameters", []):
        name = item["ParameterKey"]
        if item.get("UsePreviousValue"):
            if stack is None or name not in stack.raw:
                raise invalid(f"Invalid input for parameter key {name}. Cannot specify usePreviousValue as true for a "
                              "parameter key not in the previous template")
            result[name] = stack.raw[name]
        else:
            result[name] = item.get("ParameterValue", "")
    return result


def body_of(p, stack=None):
    if p.get("UsePreviousTemplate") and stack:
        return stack.body
    if "TemplateBody" not in p:
        raise invalid("Either Template URL or Template Body must be specified." if "TemplateURL" not in p
                      else "TemplateURL is not emulated")
    return p["TemplateBody"]


def tags_of(p, default=None):
    return {t["Key"]: t["Value"] for t in p["Tags"]} if p.get("Tags") else (default or {})


def check(body, capabilities):
    """What AWS refuses before it looks at parameters."""
    template = parse(body)
    unknown = sorted({r["Type"] for r in template["Resources"].values()} - set(PROVIDERS))
    if unknown:
        raise invalid(f"Template format error: Unrecognized resource types: [{', '.join(unknown)}]")
    identity = [r for r in template["Resources"].values() if r["Type"].startswith("AWS::IAM::")]
    named = any(n in r.get("Properties", {}) for r in identity for n in ("RoleName", "InstanceProfileName", "UserName"))
    needed = "CAPABILITY_NAMED_IAM" if named else "CAPABILITY_IAM"
    if identity and needed not in capabilities and "CAPABILITY_NAMED_IAM" not in capabilities:
        raise AWSError("InsufficientCapabilitiesException", f"Requires capabilities : [{needed}]")
    return template


def check_updatable(stack):
    if stack.status not in ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE"):
        raise invalid(f"Stack:{stack.id} is in {stack.status} state and can not be updated.")


def check_name(name):
    if not re.fullmatch(r"[a-zA-Z][-a-zA-Z0-9]{0,127}", name):
        raise invalid(f"1 validation error detected: Value '{name}' at 'stackName' failed to satisfy constraint: "
                      "Member must satisfy regular expression pattern: [a-zA-Z][-a-zA-Z0-9]*")


def exists(name, region):
    return next((s for s in _stacks.values() if s.name == name and s.region == region
                 and s.status != "DELETE_COMPLETE"), None)


def nothing_new(stack, template, changes, tags):
    return not changes and template.get("Outputs") == stack.template.get("Outputs") and tags == stack.tags


@operation(CloudFormationResponse)
def create_change_set(request, p):
    check_name(p["StackName"])
    kind, capabilities = p.get("ChangeSetType", "UPDATE"), p.get("Capabilities", [])
    stack = exists(p["StackName"], request.region) or next((s for s in _stacks.values() if s.id == p["StackName"]),
                                                           None)
    if kind == "CREATE":
        if stack and stack.status != "REVIEW_IN_PROGRESS":
            raise invalid(f"Stack [{stack.name}] already exists and cannot be created again with the changeSet "
                          f"[{p['ChangeSetName']}].")
        body, raw, tags = body_of(p), given(p), tags_of(p)
        template = check(body, capabilities)
        stack = stack or Stack(p["StackName"], request.region, tags)
        scope, changes = stack.plan(template, raw, tags)
        if stack.id not in _stacks:
            _stacks[stack.id] = stack
            stack.set_status("REVIEW_IN_PROGRESS", "User Initiated")
        empty = False
    else:
        stack = find(p["StackName"], request.region)
        check_updatable(stack)
        body, raw, tags = body_of(p, stack), given(p, stack), tags_of(p, stack.tags)
        template = check(body, capabilities)
        scope, changes = stack.plan(template, raw, tags)
        empty = nothing_new(stack, template, changes, tags)
    change_set = ChangeSet(p["ChangeSetName"], kind, stack, body, scope.raw, tags, capabilities)
    change_set.changes = changes
    if empty:
        change_set.status, change_set.execution, change_set.reason = "FAILED", "UNAVAILABLE", NO_CHANGES
    if "RoleARN" in p:  # it stays the stack's: CloudFormation guide, "service role"
        stack.service_role = p["RoleARN"].rpartition("/")[2]
    _change_sets[change_set.id] = change_set
    return {"Id": change_set.id, "StackId": stack.id}


@operation(CloudFormationResponse)
def describe_change_set(request, p):
    return find_change_set(p, request.region).describe()


@operation(CloudFormationResponse)
def execute_change_set(request, p):
    change_set = find_change_set(p, request.region)
    if change_set.execution != "AVAILABLE":
        raise AWSError("InvalidChangeSetStatus",
                       f"ChangeSet [{change_set.id}] cannot be executed in its current status of "
                       f"[{change_set.status}]")
    c, stack = change_set, change_set.stack
    stack.caller = authorization.role_of(request.get_access_key())
    c.execution = "EXECUTE_IN_PROGRESS"

    def work():
        if c.kind == "CREATE":
            stack.tags = c.tags
            stack.create(c.body, c.raw, c.capabilities)
        else:
            stack.update(c.body, c.raw, c.tags, c.capabilities)
        c.execution = "EXECUTE_COMPLETE" if stack.status in ("CREATE_COMPLETE", "UPDATE_COMPLETE") else "EXECUTE_FAILED"

    stack.start(work, settings.patience)
    return {}


@operation(CloudFormationResponse)
def delete_stack(request, p):
    try:
        stack = find(p["StackName"], request.region)
    except AWSError:
        return {}
    if stack.running:
        raise invalid(f"Stack:{stack.id} is in {stack.status} state and can not be deleted.")
    if stack.status != "DELETE_COMPLETE":
        stack.caller = authorization.role_of(request.get_access_key())
        stack.start(stack.delete, settings.patience)
    return {}


def _describe(stack):
    result = {
        "StackId": stack.id, "StackName": stack.name, "CreationTime": stack.created, "StackStatus": stack.status,
        "Parameters": parameters(stack.raw, stack.template, stack.resolved), "Tags": tag_list(stack.tags),
        "Outputs": stack.outputs, "Capabilities": stack.capabilities, "DisableRollback": False, "NotificationARNs": [],
        "EnableTerminationProtection": False, "DriftInformation": {"StackDriftStatus": "NOT_CHECKED"},
    }
    if description := stack.template.get("Description"):
        result["Description"] = description
    if stack.updated:
        result["LastUpdatedTime"] = stack.updated
    if stack.reason:
        result["StackStatusReason"] = stack.reason
    return result


@operation(CloudFormationResponse)
def describe_stacks(request, p):
    if p.get("StackName"):
        return {"Stacks": [_describe(find(p["StackName"], request.region))]}
    return {"Stacks": [_describe(s) for s in _stacks.values() if s.region == request.region
                       and s.status != "DELETE_COMPLETE"]}


@operation(CloudFormationResponse)
def list_stacks(request, p):
    wanted = p.get("StackStatusFilter")
    stacks = [s for s in _stacks.values() if s.region == request.region and (not wanted or s.status in wanted)]
    keys = ("StackId", "StackName", "CreationTime", "StackStatus")
    return {"StackSummaries": [{k: _describe(s)[k] for k in keys} for s in stacks]}


@operation(CloudFormationResponse)
def describe_stack_events(request, p):
    return {"StackEvents": find(p["StackName"], request.region, deleted=True).events[::-1]}


def _resource(stack, resource, timestamp):
    return {
        "StackName": stack.name, "StackId": stack.id, "LogicalResourceId": resource.logical_id,
        "PhysicalResourceId": resource.physical_id, "ResourceType": resource.type, timestamp: resource.timestamp,
        "ResourceStatus": resource.status, "ResourceStatusReason": resource.reason,
        "DriftInformation": {"StackResourceDriftStatus": "NOT_CHECKED"},
    }


@operation(CloudFormationResponse)
def describe_stack_resources(request, p):
    if "StackName" not in p:
        for stack in _stacks.values():
            if any(r.physical_id == p.get("PhysicalResourceId") for r in stack.resources.values()):
                break
        else:
            raise invalid(f"Stack for {p.get('PhysicalResourceId')} does not exist")
    else:
        stack = find(p["StackName"], request.region)
    wanted = p.get("LogicalResourceId")
    return {"StackResources": [_resource(stack, r, "Timestamp") for r in stack.resources.values()
                               if wanted in (None, r.logical_id)]}


def _template_summary(body):
    template = parse(body)
    return template, [
        {"ParameterKey": name, "Description": spec.get("Description", ""), "NoEcho": bool(spec.get("NoEcho")),
         **({"DefaultValue": api.text(spec["Default"])} if "Default" in spec else {})}
        for name, spec in template.get("Parameters", {}).items()
    ]


@operation(CloudFormationResponse)
def get_template_summary(request, p):
    body = body_of(p) if "StackName" not in p else find(p["StackName"], request.region).body
    template, found = _template_summary(body)
    types = {item["ParameterKey"]: template["Parameters"][item["ParameterKey"]]["Type"] for item in found}
    return {"Parameters": [{**item, "ParameterType": types[item["ParameterKey"]]} for item in found],
            "ResourceTypes": sorted({r["Type"] for r in template["Resources"].values()}),
            "Description": template.get("Description", ""),
            "Version": template.get("AWSTemplateFormatVersion", "2010-09-09")}


@operation(CloudFormationResponse)
def signal_resource(request, p):
    find(p["StackName"], request.region).signal(p["LogicalResourceId"], p["UniqueId"], p["Status"])
    return {}


def _not_emulated(request, p):
    raise AWSError("InvalidAction",
                   "not emulated: stacks are made by change sets, as aws cloudformation deploy makes them")


for _not_emulated.__name__ in ("create_stack", "update_stack", "list_change_sets", "delete_change_set",
                               "describe_stack_resource",
                               "list_stack_resources", "get_template", "validate_template"):
    operation(CloudFormationResponse)(_not_emulated)  # or moto would answer of stacks of its own


def expire(name, region):
    """For the control API: the time of all that waits in a stack is over."""
    for signals in list(find(name, region).signals.values()):
        signals.expire()

"""SSM: Run Command answered by a program of the test, managed instances, Canonical's parameters, automations."""

import datetime
import json
import re
import subprocess
import sys
import threading
import time
import uuid

from botocore.exceptions import ClientError
from moto.ec2.models import ec2_backends
from moto.ssm.models import Parameter, SimpleSystemManagerBackend
from moto.ssm.responses import SimpleSystemManagerResponse

from . import authorization, nodes
from .api import ACCOUNT, AWSError, client, extend, operation
from .control import settings
from .ec2 import CANONICAL

_commands = {}  # ID: Command
STDOUT_LIMIT = 24000  # characters; SSM API reference, GetCommandInvocation, StandardOutputContent
PLUGIN_LIMIT = 2500  # characters; SSM API reference, CommandPlugin, Output
INSTANCES_LIMIT = 50  # SSM API reference, SendCommand, InstanceIds


def reset():
    _commands.clear()
    _executions.clear()


@extend(SimpleSystemManagerBackend)
def get_parameter(original, self, name):
    if name in CANONICAL:
        return Parameter(account_id=self.account_id, name=name, value=CANONICAL[name], parameter_type="String",
                         description="",
                         allowed_pattern=None, keyid=None, last_modified_date=0, version=1, data_type="aws:ec2:image")
    return original(self, name)


@extend(SimpleSystemManagerBackend)
def get_parameters(original, self, names):
    found = original(self, names)
    return found | {name: self.get_parameter(name) for name in names if name in CANONICAL}


def managed(region):
    """Instances whose SSM agent answers: all that run, when the test supplied a program."""
    if not settings.command_program:
        return []
    return [i for i in ec2_backends[ACCOUNT][region].all_instances() if i.state == "running"]


class Command:
    def __init__(self, region, p, instance_ids):
        self.id, self.region, self.parameters = str(uuid.uuid4()), region, p
        self.script = _script(region, p["DocumentName"], p.get("Parameters", {}))
        self.requested = datetime.datetime.now(datetime.timezone.utc)
        self.invocations = {i: Invocation(i) for i in instance_ids}
        self._room = threading.Semaphore(8)

    def start(self):
        for invocation in self.invocations.values():
            threading.Thread(target=self._run, args=(invocation, settings.command_program), daemon=True).start()

    def _run(self, invocation, program):
        with self._room:
            invocation.status = "InProgress"
            script, timeout = self.script, int(self.parameters.get("TimeoutSeconds", 3600))
            try:
                done = subprocess.run(
                    [program, invocation.instance_id], input=script, capture_output=True, text=True, check=False,
                    timeout=timeout, env=nodes.environment(self.region, invocation.instance_id))
                invocation.stdout, invocation.stderr, invocation.code = done.stdout, done.stderr, done.returncode
            except subprocess.TimeoutExpired:
                invocation.status = "TimedOut"
                return
            except OSError as error:
                invocation.stderr, invocation.code = str(error), 1
            invocation.status = "Success" if invocation.code == 0 else "Failed"

    @property
    def status(self):
        states = {i.status for i in self.invocations.values()}
        if states & {"Pending", "InProgress"}:
            return "InProgress" if states - {"Pending"} else "Pending"
        return "Success" if states <= {"Success"} else "Failed"

    def describe(self):
        p, done = self.parameters, [i for i in self.invocations.values() if i.status not in ("Pending", "InProgress")]
        return {
            "CommandId": self.id, "DocumentName": p["DocumentName"], "Comment": p.get("Comment", ""),
            "Parameters": p.get("Parameters", {}), "InstanceIds": p.get("InstanceIds", []),
            "Targets": p.get("Targets", []),
            "RequestedDateTime": self.requested, "Status": self.status, "StatusDetails": self.status,
            "TargetCount": len(self.invocations), "CompletedCount": len(done),
            "ErrorCount": sum(i.status != "Success" for i in done), "MaxConcurrency": p.get("MaxConcurrency", "50"),
            "MaxErrors": p.get("MaxErrors", "0"), "TimeoutSeconds": int(p.get("TimeoutSeconds", 3600)),
        }


class Invocation:
    def __init__(self, instance_id):
        self.instance_id, self.status, self.code, self.stdout, self.stderr = instance_id, "Pending", -1, "", ""

    def get(self, command):
        return {
            "CommandId": command.id, "InstanceId": self.instance_id, "DocumentName": command.parameters["DocumentName"],
            "PluginName": "aws:runShellScript", "ResponseCode": self.code, "Status": self.status,
            "StatusDetails": self.status,
            "StandardOutputContent": self.stdout[:STDOUT_LIMIT], "StandardErrorContent": self.stderr[:8000],
            "StandardOutputUrl": "", "StandardErrorUrl": "", "Comment": command.parameters.get("Comment", ""),
        }

    def list(self, command, details):
        result = {
            "CommandId": command.id, "InstanceId": self.instance_id, "DocumentName": command.parameters["DocumentName"],
            "RequestedDateTime": command.requested, "Status": self.status, "StatusDetails": self.status,
            "Comment": command.parameters.get("Comment", ""), "CommandPlugins": [],
        }
        if details:
            output = self.stdout + (f"\n----------ERROR-------\n{self.stderr}" if self.stderr else "")
            result["CommandPlugins"] = [{"Name": "aws:runShellScript", "Status": self.status,
                                         "StatusDetails": self.status,
                                         "ResponseCode": self.code, "Output": output[:PLUGIN_LIMIT]}]
        return result


def _targets(p, region):
    running = {i.id: i for i in managed(region)}
    ids = list(p.get("InstanceIds", []))
    if len(ids) > INSTANCES_LIMIT:
        raise AWSError("ValidationException",
                       "1 validation error detected: Value at 'instanceIds' failed to satisfy constraint: "
                       f"Member must have length less than or equal to {INSTANCES_LIMIT}")
    if unmanaged := [i for i in ids if i not in running]:
        raise AWSError("InvalidInstanceId",
                       f"Instances [[{', '.join(unmanaged)}]] not in a valid state for account {ACCOUNT}")
    if p.get("Targets"):
        ids += [i for i, instance in running.items() if all(_matches(instance, t) for t in p["Targets"])
                and i not in ids]
    return ids


def _matches(instance, target):
    key, values = target["Key"], target["Values"]
    if key.lower() == "instanceids":
        return instance.id in values
    if key.startswith("tag:"):
        tags = {t["key"]: t["value"] for t in instance.get_tags()}
        return tags.get(key.removeprefix("tag:")) in values
    raise AWSError("InvalidTarget", f"{key} is not a target key")


def _script(region, name, given):
    """The shell script that a document of type Command, of schema 2.2 and with one step, makes of its parameters."""
    if name == "AWS-RunShellScript":
        return "\n".join(given.get("commands", []))
    content, values = _document(region, name, given)
    step, = content["mainSteps"]
    if step["action"] != "aws:runShellScript":
        raise AWSError("InvalidDocument", f"{step['action']} is not emulated")
    return _filled("\n".join(step["inputs"]["runCommand"]), values)


def _document(region, name, given):
    """A document's content, and the values of its parameters."""
    try:
        content = json.loads(client("ssm", region).get_document(Name=name)["Content"])
    except ClientError:
        raise AWSError("InvalidDocument", f"Document with name {name} does not exist.") from None
    specs = content.get("parameters", {})
    if unknown := set(given) - set(specs):
        raise AWSError("InvalidParameters", f"Parameters not defined in the document: {', '.join(sorted(unknown))}")
    values = {}
    for key, spec in specs.items():
        value = given[key][0] if key in given else spec.get("default")
        if value is None or not re.fullmatch(spec.get("allowedPattern", "(?s).*"), value):
            raise AWSError("InvalidParameters", f"Parameter {key} is missing, or is not {spec.get('allowedPattern')}")
        values[key] = value
    return content, values


def _filled(text, values):
    return re.sub(r"\{\{ *(\w+) *\}\}", lambda found: values[found[1]], text)


@operation(SimpleSystemManagerResponse, json_body=True)
def send_command(request, p):
    if not p.get("InstanceIds") and not p.get("Targets"):
        raise AWSError("InvalidParameters", "Either InstanceIds or Targets must be specified")
    command = Command(request.region, p, _targets(p, request.region))
    _commands[command.id] = command
    description = command.describe()
    command.start()
    return {"Command": description}


def _find(command_id):
    if command_id not in _commands:
        raise AWSError("InvalidCommandId", "")
    return _commands[command_id]


@operation(SimpleSystemManagerResponse, json_body=True)
def list_commands(request, p):
    commands = [_find(p["CommandId"])] if "CommandId" in p else list(_commands.values())
    return {"Commands": [c.describe() for c in commands if p.get("InstanceId") in (None, *c.invocations)]}


@operation(SimpleSystemManagerResponse, json_body=True)
def get_command_invocation(request, p):
    command = _find(p["CommandId"])
    if p["InstanceId"] not in command.invocations:
        raise AWSError("InvocationDoesNotExist", "")
    return command.invocations[p["InstanceId"]].get(command)


@operation(SimpleSystemManagerResponse, json_body=True)
def list_command_invocations(request, p):
    commands = [_find(p["CommandId"])] if "CommandId" in p else list(_commands.values())
    found = [i.list(c, p.get("Details", False)) for c in commands for i in c.invocations.values()
             if p.get("InstanceId") in (None, i.instance_id)]
    start, size = int(p.get("NextToken", 0)), int(p.get("MaxResults", 50))
    return {"CommandInvocations": found[start:start + size],
            **({"NextToken": str(start + size)} if len(found) > start + size else {})}


# Automations

_executions = {}  # ID: what DescribeAutomationExecutions returns; guarded by _lock
_lock = threading.Lock()
_SCRIPT = """
import json, sys, time
sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.05))  # a test's time passes faster
names = {}
exec(sys.argv[1], names)
names[sys.argv[2]](json.loads(sys.argv[3]), {})
"""


def start_automation(region, document, given):
    """Runs the aws:executeScript steps of an Automation document, in this Python and with the rights of its role."""
    content, values = _document(region, document, given)
    execution = {"AutomationExecutionId": str(uuid.uuid4()), "DocumentName": document,
                 "AutomationExecutionStatus": "InProgress"}
    with _lock:
        _executions[execution["AutomationExecutionId"]] = execution
    environment = nodes.environment(region, "")
    if role := content.get("assumeRole"):
        keys = client("sts", region).assume_role(RoleArn=role, RoleSessionName="automation")["Credentials"]
        environment |= {"AWS_ACCESS_KEY_ID": keys["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"],
                        "AWS_SESSION_TOKEN": keys["SessionToken"]}

    def run():
        status = "Success"
        try:
            for step in content["mainSteps"]:
                if step["action"] != "aws:executeScript":
                    raise ValueError(f"{step['action']} is not emulated")
                inputs = step["inputs"]
                command = [sys.executable, "-c", _SCRIPT, inputs["Script"], inputs["Handler"],
                           _filled(json.dumps(inputs.get("InputPayload", {})), values)]
                for _ in range(int(step.get("maxAttempts", 1))):
                    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                          text=True, check=False, timeout=int(step.get("timeoutSeconds", 600)))
                    if done.returncode == 0:
                        break
                else:
                    raise ValueError(f"step {step['name']}: {done.stdout}")
        except (subprocess.SubprocessError, ValueError) as error:
            if not role or authorization.exists(role):  # a stack's deletion may take it from under an automation
                print(f"automation {document}: {error}", file=sys.stderr)
            status, execution["FailureMessage"] = "Failed", str(error)
        with _lock:
            execution["AutomationExecutionStatus"] = status

    threading.Thread(target=run, daemon=True).start()
    return execution["AutomationExecutionId"]


@operation(SimpleSystemManagerResponse, json_body=True)
def start_automation_execution(request, p):
    return {"AutomationExecutionId": start_automation(request.region, p["DocumentName"], p.get("Parameters", {}))}


@operation(SimpleSystemManagerResponse, json_body=True)
def describe_automation_executions(request, p):
    """The newest first, filtered by DocumentNamePrefix alone."""
    prefixes = [v for f in p.get("Filters", []) if f["Key"] == "DocumentNamePrefix" for v in f["Values"]]
    with _lock:
        found = [dict(e) for e in reversed(_executions.values())]
    return {"AutomationExecutionMetadataList": [
        e for e in found if not prefixes or e["DocumentName"].startswith(tuple(prefixes))]}


def automating():
    with _lock:
        return any(e["AutomationExecutionStatus"] == "InProgress" for e in _executions.values())


def settle():
    """For the control API: returns when no automation runs."""
    while automating():
        time.sleep(0.02)

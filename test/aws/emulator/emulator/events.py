"""EventBridge: rules that run commands and automations, for CloudFormation's own events and those that a test posts."""

import json
import re
import uuid

from moto.events.exceptions import ValidationException
from moto.events.models import EventsBackend, events_backends

from . import ssm
from .api import ACCOUNT, client, extend


@extend(EventsBackend)
def put_targets(original, self, name, event_bus_arn, targets):
    """EventBridge API reference, PutTargets: Run Command needs RunCommandParameters and a role; five targets a rule."""
    if len(targets) > 5:
        raise ValidationException("A rule has at most 5 targets")
    for target in targets:
        if ":document/" in target["Arn"] and "RunCommandParameters" not in target:
            raise ValidationException("Parameter(s) RunCommandParameters must be specified "
                                      f"for target: {target['Id']}.")
        if (":document/" in target["Arn"] or ":automation-definition/" in target["Arn"]) and "RoleArn" not in target:
            raise ValidationException(f"RoleArn is required for target {target['Arn']}.")
    return original(self, name, event_bus_arn, targets)


def emit(source, detail_type, detail, resources=(), region="us-east-2"):
    """Hands an event to the rules of the default bus, and their targets the work; returns how many targets got some."""
    event = {
        "version": "0", "id": str(uuid.uuid4()), "source": source, "detail-type": detail_type, "account": ACCOUNT,
        "time": "2026-11-24T00:00:00Z", "region": region, "resources": list(resources), "detail": detail,
    }
    started = 0
    for rule in events_backends[ACCOUNT][region].event_buses["default"].rules.values():
        if rule.state == "ENABLED" and rule.event_pattern.matches_event(event):
            for target in rule.targets:
                _start(region, target, event)
                started += 1
    return {"targets": started}


def _transformed(transformer, event):
    """The target's input. A variable stands alone as a value here: EventBridge API reference, InputTransformer."""
    text = transformer["InputTemplate"]
    for name, path in transformer.get("InputPathsMap", {}).items():
        value = event
        for part in re.findall(r"[\w-]+", path):
            value = value[int(part)] if isinstance(value, list) else value[part]
        text = text.replace(f"<{name}>", json.dumps(value))
    return json.loads(text)


def _start(region, target, event):
    given = json.loads(target.get("Input") or "{}")
    if transformer := target.get("InputTransformer"):
        given = _transformed(transformer, event)
    if ":automation-definition/" in target["Arn"]:
        ssm.start_automation(region, target["Arn"].split("/")[1].split(":")[0], given)
    elif ":document/" in target["Arn"]:
        client("ssm", region).send_command(
            DocumentName=target["Arn"].split("/")[-1], Parameters=given,
            Targets=target["RunCommandParameters"]["RunCommandTargets"])


def stack_status(stack):
    """What CloudFormation emits when the status of a stack changes."""
    emit("aws.cloudformation", "CloudFormation Stack Status Change", {
        "stack-id": stack.id, "status-details": {"status": stack.status, "status-reason": stack.reason},
    }, [stack.id], stack.region)

"""Stacks: creation, update, rollback and deletion of resources in order, signals, and the events of all that.

An operation runs in a thread of its own. The caller waits until it has ended or until it waits for a signal, so
that most requests are answered when their work is done and tests need no polling.
"""

import contextlib
import copy
import datetime
import threading
import time
import uuid
from dataclasses import dataclass, field

from . import api, authorization, events, nodes
from .api import AWSError, reason
from .control import holds
from .resource import Context
from .resources import PROVIDERS
from .template import Scope, invalid, order, parse, references, seconds


def now():
    return datetime.datetime.now(datetime.timezone.utc)


@dataclass
class Resource:
    logical_id: str
    type: str
    physical_id: str = ""
    properties: dict = field(default_factory=dict)
    attributes: dict = field(default_factory=dict)
    status: str = ""
    reason: str = ""
    timestamp: datetime.datetime = field(default_factory=now)
    body: dict = field(default_factory=dict)


class Failed(Exception):
    """A resource failed; its event has been written."""

    def __init__(self, logical_id, why):
        super().__init__(why)
        self.logical_id = logical_id


class Signals:
    """The signals to one resource that is being created or updated."""

    def __init__(self):
        self.received = {}  # unique ID: status
        self.changed = threading.Condition()
        self.expired = False

    def receive(self, unique_id, status):
        with self.changed:
            self.received[unique_id] = status
            self.changed.notify_all()

    def expire(self):
        with self.changed:
            self.expired = True
            self.changed.notify_all()

    def wait(self, enough, timeout):
        """Whether enough(received) came true in time."""
        deadline = time.monotonic() + timeout
        with self.changed:
            while not enough(self.received):
                left = deadline - time.monotonic()
                if self.expired or left <= 0:
                    return False
                self.changed.wait(left)
        return True


class Stack:
    def __init__(self, name, region, tags):
        self.name, self.region, self.tags = name, region, tags
        self.id = f"arn:aws:cloudformation:{region}:{api.ACCOUNT}:stack/{name}/{uuid.uuid4()}"
        self.created, self.updated = now(), None
        self.status, self.reason = "", ""
        self.body, self.template, self.raw, self.resolved = "", {}, {}, {}
        self.capabilities = []
        self.caller = self.service_role = None  # in whose name it works, if that is a role
        self.resources = {}  # logical ID: Resource, in the order of creation
        self.replaced = {}  # logical ID: what the update that runs has replaced, in that order
        self.outputs = []
        self.events = []
        self.signals = {}  # logical ID: Signals, while the resource accepts them
        self.changed = threading.Condition()  # guards the next two
        self.running = False
        self.waiting = False

    # Events

    def set_status(self, status, why=""):
        self.status, self.reason = status, why
        self._event(self.name, self.id, "AWS::CloudFormation::Stack", status, why)
        events.stack_status(self)

    def event(self, resource, status, why=""):
        resource.status, resource.reason, resource.timestamp = status, why, now()
        self._event(resource.logical_id, resource.physical_id, resource.type, status, why)

    def _event(self, logical_id, physical_id, kind, status, why):
        self.events.append({
            "StackId": self.id, "EventId": f"{logical_id}-{status}-{len(self.events)}", "StackName": self.name,
            "LogicalResourceId": logical_id, "PhysicalResourceId": physical_id, "ResourceType": kind,
            "Timestamp": now(),
            "ResourceStatus": status, **({"ResourceStatusReason": why} if why else {}),
        })

    # Running an operation

    def start(self, work, patience):
        """Runs work, and returns when it has ended or waits for signals that nobody is about to send."""
        self.running = True

        def run():
            authorization.act_for(self.service_role or self.caller)
            try:
                work()
            except Exception as error:  # noqa: BLE001, a mistake of ours must show in the stack, not hang it
                self.set_status(self.status.replace("IN_PROGRESS", "FAILED"), f"Internal Failure: {reason(error)}")
                raise
            finally:
                with self.changed:
                    self.running = False
                    self.changed.notify_all()

        threading.Thread(target=run, name=self.name, daemon=True).start()
        deadline = time.monotonic() + 50  # below the read timeout of AWS clients
        started = time.monotonic()
        with self.changed:
            while self.running and time.monotonic() < deadline:
                idle = self.waiting and not nodes.booting() and time.monotonic() > started + patience
                if idle:
                    break
                self.changed.wait(0.05)

    def _wait(self, signals, enough, timeout):
        nodes.boot_pending()
        if enough(signals.received):
            return True  # without a moment in which start takes this for waiting
        with self._idle():
            return signals.wait(enough, timeout)

    def _hold(self, name):
        if holds.has(name):
            with self._idle():
                holds.wait(name)

    @contextlib.contextmanager
    def _idle(self):
        """While the operation waits for somebody else."""
        with self.changed:
            self.waiting = True
            self.changed.notify_all()
        try:
            yield
        finally:
            with self.changed:
                self.waiting = False

    # Create

    def scope(self, template, raw):
        return Scope(template, raw, stack_id=self.id, stack_name=self.name, region=self.region,
                     resources=self.resources)

    def create(self, body, raw, capabilities=()):
        template = parse(body)
        self._take(body, template, raw, capabilities)
        self.set_status("CREATE_IN_PROGRESS", "User Initiated")
        try:
            scope = self.scope(template, raw)
            self._take(body, template, raw, capabilities, scope)
            active = scope.active("Resources")
            for name in order(active, last=lambda n: waits(active[n])):
                self._create(name, active[name], scope)
            self.outputs = outputs(scope)
        except (Failed, AWSError) as error:
            self._creation_failed(error)
            return
        nodes.boot_pending()
        self.set_status("CREATE_COMPLETE")

    def _take(self, body, template, raw, capabilities, scope=None):
        self.body, self.template, self.capabilities = body, template, list(capabilities)
        self.raw = scope.raw if scope else dict(raw)
        self.resolved = scope.resolved if scope else {}

    def _creation_failed(self, error):
        why = reason(error)
        if isinstance(error, Failed):
            why = f"The following resource(s) failed to create: [{error.logical_id}]."
        self.set_status("ROLLBACK_IN_PROGRESS", f"{why} Rollback requested by user.")
        failures = self._delete_all()
        if failures:
            self.set_status("ROLLBACK_FAILED", f"The following resource(s) failed to delete: [{', '.join(failures)}].")
        else:
            self.set_status("ROLLBACK_COMPLETE")

    def _create(self, name, body, scope):
        resource = Resource(name, body["Type"], body=body)
        self.event(resource, "CREATE_IN_PROGRESS")
        signals = self.signals[name] = Signals()
        try:
            resource.properties = scope.evaluate(body.get("Properties") or {})
            provider = PROVIDERS[resource.type]
            self._hold(name)
            context = Context(self, name, scope.evaluate(body.get("UpdatePolicy") or {}), resource.properties)
            resource.physical_id, resource.attributes = provider.create(context, copy.deepcopy(resource.properties))
            self.resources[name] = resource
            self.event(resource, "CREATE_IN_PROGRESS", "Resource creation Initiated")
            self._creation_policy(resource, scope, signals)
        except Exception as error:  # noqa: BLE001, whatever a service answers fails the resource
            self.event(resource, "CREATE_FAILED", reason(error))
            raise Failed(name, reason(error)) from error
        finally:
            del self.signals[name]
        self.event(resource, "CREATE_COMPLETE")

    def _creation_policy(self, resource, scope, signals):
        policy = scope.evaluate(resource.body.get("CreationPolicy") or {})
        if "ResourceSignal" not in policy:
            if resource.type == "AWS::CloudFormation::WaitCondition" and "Handle" not in resource.properties:
                raise invalid("WaitCondition without CreationPolicy needs Handle and Timeout")
            return
        count = int(policy["ResourceSignal"].get("Count", 1))
        timeout = seconds(policy["ResourceSignal"].get("Timeout", "PT5M"))
        group = resource.type == "AWS::AutoScaling::AutoScalingGroup"
        percent = int(policy.get("AutoScalingCreationPolicy", {}).get("MinSuccessfulInstancesPercent",
                                                                      100)) if group else 100
        if count == 0:
            return
        self._await(resource, signals, count, percent, timeout, group)

    def _await(self, resource, signals, count, percent, timeout, group, only=None):
        """Waits for count signals, of which percent have to be successes; `only` are the unique IDs that count."""
        def counted(received):
            return {u: s for u, s in received.items() if only is None or u in only}

        def enough(received):
            mine = counted(received)
            return len(mine) >= count or (not group and "FAILURE" in mine.values())

        in_time = self._wait(signals, enough, timeout)
        mine = counted(signals.received)
        failures = [u for u, s in mine.items() if s == "FAILURE"]
        successes = len(mine) - len(failures)
        if not group:
            if failures:
                raise invalid(f"Received FAILURE signal with UniqueId {failures[0]}")
            if not in_time:
                raise invalid(f"Failed to receive {count - successes} resource signal(s) within the specified duration")
        elif successes * 100 < percent * count:
            got = f"{len(failures)} FAILURE" if failures else f"{successes} SUCCESS"
            raise invalid(f"Received {got} signal(s) out of {count}. "
                          f"Unable to satisfy {percent}% MinSuccessfulInstancesPercent requirement")

    def signal(self, name, unique_id, status):
        if not self.status.endswith("_IN_PROGRESS") or self.status.startswith(("DELETE", "ROLLBACK", "REVIEW")):
            raise invalid(f"Stack {self.id} is in {self.status} state and cannot be signaled.")
        if len(unique_id) > 64:  # CloudFormation API reference, SignalResource
            raise invalid(f"1 validation error detected: Value '{unique_id}' at 'uniqueId' failed to satisfy "
                          "constraint: Member must have length less than or equal to 64")
        resources = self.template["Resources"]
        if name not in resources:
            raise invalid(f"Resource {name} does not exist for stack {self.name}")
        if resources[name]["Type"] not in SIGNALLED:
            raise invalid(f"Resource {name} is of type {resources[name]['Type']} and cannot be signaled")
        if name not in self.signals:
            state = self.resources[name].status if name in self.resources else "CREATE_PENDING"
            raise invalid(f"Resource {name} is in {state} state and cannot be signaled.")
        signals = self.signals[name]
        if unique_id in signals.received and status != "FAILURE":
            raise invalid(f"Signal with ID {unique_id} for resource {name} already exists.  "
                          "Signals may only be updated with a FAILURE status.")
        verb = "UPDATE" if self.status.startswith("UPDATE") and name in self.resources else "CREATE"
        physical = self.resources[name].physical_id if name in self.resources else ""
        self._event(name, physical, resources[name]["Type"], f"{verb}_IN_PROGRESS",
                    f"Received {status} signal with UniqueId {unique_id}")
        signals.receive(unique_id, status)

    # Update

    def plan(self, template, raw, tags):
        """The changes that an update would make, as a change set lists them."""
        scope = self.scope(template, raw)
        active = scope.active("Resources")
        changes, changed = [], set()
        for name in order(active):
            body = active[name]
            if name not in self.resources:
                changes.append(change("Add", name, body["Type"]))
                changed.add(name)
                continue
            resource = self.resources[name]
            if resource.type != body["Type"]:
                raise invalid("Update of resource type is not permitted. The new template modifies resource type of "
                              f"the following resources: [{name}]")
            properties = scope.evaluate(body.get("Properties") or {})
            attributes = {n for n in references(only_attributes(body.get("Properties") or {})) if n in changed}
            if properties != resource.properties or attributes or (tags != self.tags
                                                                   and PROVIDERS[body["Type"]].tagged):
                replaced = PROVIDERS[body["Type"]].replaced_by(resource.properties, properties)
                changes.append(change("Modify", name, body["Type"], resource.physical_id,
                                      "True" if replaced else "False"))
                changed.add(name)
        for name, resource in self.resources.items():
            if name not in active:
                changes.append(change("Remove", name, resource.type, resource.physical_id))
        return scope, changes

    def update(self, body, raw, tags, capabilities=()):
        before = (self.body, self.template, self.raw, self.capabilities, self.tags)
        template = parse(body)
        self.updated, self.replaced = now(), {}
        self.set_status("UPDATE_IN_PROGRESS", "User Initiated")
        try:
            self._apply(body, template, raw, tags, capabilities)
        except (Failed, AWSError) as error:
            self._update_failed(error, before)
            return
        nodes.boot_pending()
        self.set_status("UPDATE_COMPLETE")

    def _update_failed(self, error, before):
        why = reason(error)
        if isinstance(error, Failed):
            why = f"The following resource(s) failed to update: [{error.logical_id}]."
        self.set_status("UPDATE_ROLLBACK_IN_PROGRESS", why)
        body, template, raw, capabilities, tags = before
        made = self._unreplace()
        try:
            self._apply(body, template, raw, tags, capabilities, cleanup="UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS",
                        old=made)
        except (Failed, AWSError) as second:
            self.set_status("UPDATE_ROLLBACK_FAILED", reason(second) if isinstance(second, AWSError) else str(second))
            return
        self.set_status("UPDATE_ROLLBACK_COMPLETE")

    def _unreplace(self):
        """Goes back to the physical resources that are still there, and returns their successors."""
        made = []
        for name, old in self.replaced.items():
            made.append(self.resources[name])
            self.resources[name] = old
            self.event(old, "UPDATE_COMPLETE")
        return made

    def _apply(self, body, template, raw, tags, capabilities, cleanup="UPDATE_COMPLETE_CLEANUP_IN_PROGRESS", old=()):
        scope = self.scope(template, raw)
        retagged = tags != self.tags
        self._take(body, template, raw, capabilities, scope)
        self.tags = tags
        active = scope.active("Resources")
        old = list(old)  # resources to be deleted when all else is done
        for name in order(active, last=lambda n: waits(active[n])):
            if name in self.resources:
                old += self._update(name, active[name], scope, retagged)
            else:
                self._create(name, active[name], scope)
        self.outputs = outputs(scope)
        self.set_status(cleanup)
        gone = {n: r for n, r in self.resources.items() if n not in active}
        old.reverse()
        old += [gone[n] for n in reversed(order({n: r.body for n, r in gone.items()}))]
        for resource in old:
            if resource.body.get("DeletionPolicy") != "Retain":
                self._delete(resource)
            if self.resources.get(resource.logical_id) is resource:
                del self.resources[resource.logical_id]

    def _update(self, name, body, scope, retagged):
        resource = self.resources[name]
        provider = PROVIDERS[resource.type]
        resource.body = body
        signals = self.signals[name] = Signals()
        try:
            properties = scope.evaluate(body.get("Properties") or {})
            if properties == resource.properties and not (retagged and provider.tagged):
                return []
            context = Context(self, name, scope.evaluate(body.get("UpdatePolicy") or {}), properties, signals)
            if provider.replaced_by(resource.properties, properties):
                return self._replace(context, provider, resource, properties)
            self.event(resource, "UPDATE_IN_PROGRESS")
            before = resource.properties
            resource.properties = properties
            try:
                resource.attributes = provider.update(context, resource, copy.deepcopy(properties), before)
            except Exception:
                resource.properties = {**properties, "Emulator::HalfUpdated": True}  # the rollback has to touch it
                raise
            self.event(resource, "UPDATE_COMPLETE")
            return []
        except Failed:
            raise
        except Exception as error:  # noqa: BLE001, whatever a service answers fails the resource
            self.event(resource, "UPDATE_FAILED", reason(error))
            raise Failed(name, reason(error)) from error
        finally:
            del self.signals[name]

    def _replace(self, context, provider, resource, properties):
        name = provider.name
        if name and name in properties and properties[name] == resource.properties.get(name):
            raise invalid("CloudFormation cannot update a stack when a custom-named resource requires replacing. "
                          f"Rename {properties[provider.name]} and update the stack again.")
        self.event(resource, "UPDATE_IN_PROGRESS",
                   "Requested update requires the creation of a new physical resource; hence creating one.")
        old = copy.copy(resource)
        resource.physical_id, resource.attributes = provider.create(context, copy.deepcopy(properties))
        resource.properties = properties
        self.replaced.setdefault(resource.logical_id, old)
        self.event(resource, "UPDATE_COMPLETE")
        return [old]

    # Delete

    def delete(self):
        self.set_status("DELETE_IN_PROGRESS", "User Initiated")
        failures = self._delete_all()
        if failures:
            self.set_status("DELETE_FAILED", f"The following resource(s) failed to delete: [{', '.join(failures)}].")
        else:
            self.set_status("DELETE_COMPLETE")

    def _delete_all(self):
        """Deletes in reverse order; what depends on something that stays, stays as well."""
        failures, kept = [], set()
        bodies = {n: r.body for n, r in self.resources.items()}
        for name in reversed(order(bodies)):
            resource = self.resources[name]
            if name in kept:
                continue
            if resource.body.get("DeletionPolicy") == "Retain":
                self.event(resource, "DELETE_SKIPPED")
                del self.resources[name]
                continue
            if self._delete(resource):
                del self.resources[name]
            else:
                failures.append(name)
                kept |= ancestors(name, bodies)
        return failures

    def _delete(self, resource):
        self.event(resource, "DELETE_IN_PROGRESS")
        try:
            PROVIDERS[resource.type].delete(Context(self, resource.logical_id, {}, resource.properties), resource)
        except Exception as error:  # noqa: BLE001, whatever a service answers fails the deletion
            self.event(resource, "DELETE_FAILED", reason(error))
            return False
        self.event(resource, "DELETE_COMPLETE")
        return True


SIGNALLED = {"AWS::AutoScaling::AutoScalingGroup", "AWS::EC2::Instance", "AWS::CloudFormation::WaitCondition"}


def waits(body):
    """Resources that wait for signals come after all that can be made without them: AWS makes those in parallel."""
    return "CreationPolicy" in body or body["Type"] == "AWS::CloudFormation::WaitCondition"


def ancestors(name, bodies):
    """All that name refers to, directly or not."""
    found = {n for n in references(bodies[name]) if n in bodies and n != name}
    return found.union(*(ancestors(n, bodies) for n in found))


def only_attributes(value):
    """The Fn::GetAtt and Fn::Sub of value: a change of the resource may change them, unlike its Ref."""
    if isinstance(value, list):
        return [only_attributes(v) for v in value]
    if not isinstance(value, dict):
        return None
    return [{k: v} if k == "Fn::GetAtt" or (k == "Fn::Sub" and "." in str(v)) else only_attributes(v)
            for k, v in value.items()]


def change(action, logical_id, kind, physical_id=None, replacement=None):
    details = {"Action": action, "LogicalResourceId": logical_id, "ResourceType": kind, "Scope": [], "Details": []}
    if physical_id:
        details["PhysicalResourceId"] = physical_id
    if replacement:
        details |= {"Replacement": replacement, "Scope": ["Properties"]}
    return {"Type": "Resource", "ResourceChange": details}


def outputs(scope):
    result = []
    for name, body in scope.active("Outputs").items():
        value = scope.evaluate(body["Value"])
        if isinstance(value, (list, dict)):
            raise invalid("Template format error: The Value field of every Outputs member must evaluate to a String: "
                          f"{name}")
        result.append({"OutputKey": name, "OutputValue": api.text(value),
                       **({"Description": body["Description"]} if "Description" in body else {})})
    return result

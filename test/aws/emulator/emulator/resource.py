"""What all resource types of CloudFormation share."""

import random
import string

from . import api, authorization
from .api import call, text
from .template import invalid


class Context:
    """What a resource type is given: the stack, the resource's name, and its update policy."""

    def __init__(self, stack, logical_id, update_policy, properties, signals=None):
        self.stack, self.region, self.logical_id = stack, stack.region, logical_id
        self.update_policy, self.properties, self.signals = update_policy, properties, signals

    def client(self, service):
        return api.client(service, self.region, authorization.hook)

    def call(self, service, operation, properties):
        return call(service, self.region, operation, properties, authorization.hook)

    def generated_name(self, limit=128):
        suffix = "".join(random.choices(string.ascii_letters + string.digits, k=12))
        return f"{self.stack.name}-{self.logical_id}"[:limit - 13] + "-" + suffix

    def tags(self, own):
        """The stack's tags, the resource's own, and those that CloudFormation adds."""
        merged = dict(self.stack.tags)
        for tag in own or []:
            merged[tag["Key"]] = text(tag["Value"])
        merged |= {"aws:cloudformation:stack-name": self.stack.name, "aws:cloudformation:stack-id": self.stack.id,
                   "aws:cloudformation:logical-id": self.logical_id}
        return [{"Key": k, "Value": v} for k, v in merged.items()]


class Type:
    """A resource type. create returns (physical ID, attributes), update the attributes."""

    name = None  # the property that names the resource
    tagged = True  # whether a change of the stack's tags updates it
    replacing = ()  # properties whose change replaces it

    def replaced_by(self, old, new):
        return any(old.get(p) != new.get(p) for p in (*self.replacing, *([self.name] if self.name else [])))

    def create(self, c, p):
        raise NotImplementedError

    def update(self, c, resource, p, old):
        raise NotImplementedError

    def delete(self, c, resource):
        raise NotImplementedError

    def _named(self, c, p, limit=128):
        p.setdefault(self.name, c.generated_name(limit))
        return text(p[self.name])


def lower(tags):
    return [{"key": t["Key"], "value": t["Value"]} for t in tags]


def required(p, *names):
    missing = [n for n in names if n not in p]
    if missing:
        raise invalid("Properties validation failed with message: "
                      + ", ".join(f"#: required key [{n}] not found" for n in missing))

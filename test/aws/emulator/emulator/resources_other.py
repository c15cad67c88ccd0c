"""AWS::CloudFormation::*, AWS::Events::*, AWS::Logs::*, AWS::SSM::*"""

from . import api
from .api import delete_quietly
from .resource import Type
from .template import invalid


class EventsRule(Type):
    name = "Name"
    replacing = ("EventBusName",)

    def _put(self, c, p):
        targets = p.pop("Targets", [])
        arn = c.call("events", "PutRule",
                     {**p, "EventPattern": p["EventPattern"]} if "EventPattern" in p else p)["RuleArn"]
        if targets:
            answer = c.call("events", "PutTargets", {"Rule": p["Name"], "Targets": targets})
            if answer["FailedEntryCount"]:
                raise invalid(answer["FailedEntries"][0]["ErrorMessage"])
        return arn

    def create(self, c, p):
        name = self._named(c, p, 64)
        return name, {"Arn": self._put(c, p)}

    def update(self, c, resource, p, old):
        gone = {t["Id"] for t in old.get("Targets", [])} - {t["Id"] for t in p.get("Targets", [])}
        if gone:
            c.client("events").remove_targets(Rule=resource.physical_id, Ids=list(gone))
        return {"Arn": self._put(c, {**p, "Name": resource.physical_id})}

    def delete(self, c, resource):
        events, name = c.client("events"), resource.physical_id
        ids = [t["Id"] for t in resource.properties.get("Targets", [])]
        if ids:
            delete_quietly(events.remove_targets, "ResourceNotFoundException", Rule=name, Ids=ids)
        delete_quietly(events.delete_rule, "ResourceNotFoundException", Name=name)


class LogGroup(Type):
    name = "LogGroupName"

    def create(self, c, p):
        name, logs, days = self._named(c, p, 512), c.client("logs"), p.get("RetentionInDays")
        logs.create_log_group(logGroupName=name)
        if days:
            logs.put_retention_policy(logGroupName=name, retentionInDays=int(days))
        return name, {"Arn": f"arn:aws:logs:{c.region}:{api.ACCOUNT}:log-group:{name}:*"}

    def update(self, c, resource, p, old):
        if p.get("RetentionInDays"):
            c.client("logs").put_retention_policy(logGroupName=resource.physical_id,
                                                  retentionInDays=int(p["RetentionInDays"]))
        return resource.attributes

    def delete(self, c, resource):
        delete_quietly(c.client("logs").delete_log_group, "ResourceNotFoundException",
                       logGroupName=resource.physical_id)


class SSMDocument(Type):
    name = "Name"
    replacing = ("DocumentType",)

    def create(self, c, p):
        name = self._named(c, p)
        p.pop("UpdateMethod", None)
        p["Tags"] = c.tags(p.get("Tags"))
        c.call("ssm", "CreateDocument", p)
        return name, {}

    def update(self, c, resource, p, old):
        if p["Content"] == old["Content"] and "Emulator::HalfUpdated" not in old:
            return {}
        if p.get("UpdateMethod", "Replace") != "NewVersion":
            raise invalid("the emulator updates documents with UpdateMethod NewVersion only")
        made = c.call("ssm", "UpdateDocument",
                      {"Name": resource.physical_id, "Content": p["Content"], "DocumentVersion": "$LATEST",
                                                "DocumentFormat": p.get("DocumentFormat",
                                                                        "JSON")})["DocumentDescription"]
        c.client("ssm").update_document_default_version(Name=resource.physical_id,
                                                        DocumentVersion=made["DocumentVersion"])
        return {}

    def delete(self, c, resource):
        delete_quietly(c.client("ssm").delete_document, "InvalidDocument", Name=resource.physical_id)


class WaitCondition(Type):
    """Waits by its CreationPolicy; stacks.py counts the signals. "Updates aren't supported": template reference."""

    tagged = False

    def replaced_by(self, old, new):
        return False

    def create(self, c, p):
        if "Handle" in p:
            raise invalid("the emulator has wait conditions with a CreationPolicy only, none with a Handle")
        return f"{c.stack.id}/{c.logical_id}", {"Data": "{}"}

    def update(self, c, resource, p, old):
        raise invalid("Updates are not supported for wait conditions")

    def delete(self, c, resource):
        pass
